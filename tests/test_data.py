from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad, read_values
from scdgn.cells.normalize import log_normalized
from scdgn.cells.reading import check_trainable, from_anndata, read_cells
from scdgn.core.config import UNLABELED
from scdgn.errors import DataError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
FIELDS = Fields("celltype", "tech")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")


def small(**obs: Any) -> anndata.AnnData:
    """Six cells, four genes, two types, two batches, counts up to 100."""
    counts = np.random.default_rng(0).poisson(2, (6, 4)).astype(np.float32)
    counts[0] = (0, 3, 100, 1)
    columns = {"celltype": list("ababab"), "tech": list("xxxyyy")} | obs
    return anndata.AnnData(
        counts,
        obs=pd.DataFrame(columns, index=[f"cell{i}" for i in range(6)]),
        var=pd.DataFrame(index=["A", "B", "C", "D"]),
    )


def faults(adata: anndata.AnnData, fields: Fields = FIELDS) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        from_anndata(adata, fields)
    return caught.value.faults


# --- what is read


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "types", "batches"),
    [("pancreas_panc8_subset", (1000, 1000), 13, 5), ("pbmc_5batch", (3836, 1335), 8, 5)],
)
def test_shared_data(name: str, shape: tuple[int, int], types: int, batches: int) -> None:
    path = SHARED / f"{name}.h5ad"
    dataset = from_anndata(read_h5ad(path), FIELDS)
    assert dataset.x.shape == shape
    assert sp.issparse(dataset.x)
    assert dataset.x.dtype == np.float32
    assert dataset.values == "counts"
    assert (len(dataset.cell_types), len(dataset.batch_names)) == (types, batches)
    backed = read_h5ad(path, backed=True)
    assert from_anndata(backed, FIELDS).fingerprint() == dataset.fingerprint()
    backed.file.close()


@needs_data
def test_fractional_counts_are_counts() -> None:
    adata = read_h5ad(SHARED / "pancreas_panc8_subset.h5ad")
    fractional = adata[adata.obs["tech"] == "celseq"]
    assert not np.array_equal(fractional.X.data, np.round(fractional.X.data))
    assert from_anndata(fractional, FIELDS).values == "counts"


def test_values_can_be_declared() -> None:
    estimated = small()
    estimated.X = np.minimum(estimated.X, 5) * np.random.default_rng(0).uniform(1, 1.5, estimated.shape)
    assert from_anndata(estimated, FIELDS).values == "log"
    assert from_anndata(estimated, replace(FIELDS, values="counts")).values == "counts"
    (fault,) = faults(small(), replace(FIELDS, values="log"))
    assert "reaches 100" in fault


def test_whole_numbers_are_counts_however_shallow() -> None:
    shallow = small()
    shallow.X = np.minimum(shallow.X, 5)
    dataset, reading = read_cells(shallow, FIELDS)
    assert dataset.values == "counts"
    assert "since all are whole numbers: largest 5" in reading.sentence


def test_shares_of_a_total_are_as_linear_as_counts() -> None:
    """As scVI writes them, with a library size of 1; logarithms of a target sum would exceed 1 by far."""
    counts = small()
    shares = counts.copy()
    shares.X = (counts.X / np.maximum(counts.X.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    one, other = (log_normalized(from_anndata(adata, FIELDS)) for adata in (counts, shares))
    assert np.allclose(one.x, other.x, atol=1e-4)
    assert "shares of a cell's total" in read_cells(shares, FIELDS)[1].sentence


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_every_form_of_the_values_reads_alike(form: Any, dtype: type, tmp_path: Path) -> None:
    adata = small()
    expected = from_anndata(adata, FIELDS)
    adata.X = form(adata.X.astype(dtype))
    read = from_anndata(adata, FIELDS)
    assert sp.issparse(read.x) == sp.issparse(adata.X)
    assert read.x.dtype == np.float32
    assert read.fingerprint() == expected.fingerprint()
    adata.write_h5ad(tmp_path / "small.h5ad")
    backed = read_h5ad(tmp_path / "small.h5ad", backed=True)
    assert from_anndata(backed, FIELDS).fingerprint() == expected.fingerprint()
    assert from_anndata(backed[:4], FIELDS).fingerprint() == expected.take(np.arange(4)).fingerprint()
    backed.file.close()


def test_unsorted_sparse_rows_are_read_and_left_alone() -> None:
    adata = small()
    expected = from_anndata(adata, FIELDS)
    csr = sp.csr_matrix(adata.X)
    for start, stop in zip(csr.indptr, csr.indptr[1:], strict=False):
        csr.indices[start:stop] = csr.indices[start:stop][::-1].copy()
        csr.data[start:stop] = csr.data[start:stop][::-1].copy()
    csr = sp.csr_matrix((csr.data, csr.indices, csr.indptr), shape=csr.shape)
    before = csr.indices.copy()
    adata.X = csr
    assert from_anndata(adata, FIELDS).fingerprint() == expected.fingerprint()
    assert np.array_equal(adata.X.indices, before)


def test_csr_is_neither_copied_nor_surveyed_at_length() -> None:
    cells, stored = 60_000, 100
    shape = (cells, 4 * stored)
    indices = np.tile(np.arange(0, shape[1], 4, dtype=np.int32), cells)
    x = sp.csr_matrix((np.ones(cells * stored, dtype=np.float32), indices, np.arange(cells + 1) * stored), shape)
    adata = anndata.AnnData(
        x, obs=pd.DataFrame({"celltype": ["a", "b"] * (cells // 2)}, index=np.arange(cells).astype(str))
    )
    adata.var_names = [f"gene{number}" for number in range(shape[1])]
    tracemalloc.start()
    dataset = from_anndata(adata, Fields("celltype", None))
    read = tracemalloc.get_traced_memory()[1]
    dataset.fingerprint()
    printed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for part in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(dataset.x, part), getattr(adata.X, part))
    assert max(read, printed) < 0.5 * (x.data.nbytes + x.indices.nbytes)  # for the names of cells and types


def test_unsigned_indices_are_read_as_signed_ones(tmp_path: Path) -> None:
    adata = small()
    adata.X = sp.csr_matrix(adata.X)
    with anndata.settings.override(write_csr_csc_indices_with_min_possible_dtype=True):
        adata.write_h5ad(tmp_path / "small.h5ad")
    dataset = from_anndata(read_values(tmp_path / "small.h5ad"), FIELDS)
    assert dataset.x.indices.dtype == np.int32
    assert dataset.fingerprint() == from_anndata(adata, FIELDS).fingerprint()


def test_layer_and_gene_key() -> None:
    adata = small()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.full_like(adata.X, -1)
    adata.var["symbol"] = ["INS", "GCG", "SST", "PPY"]
    dataset = from_anndata(adata, Fields("celltype", "tech", layer="counts", gene_key="symbol"))
    assert dataset.genes.tolist() == ["INS", "GCG", "SST", "PPY"]
    assert np.array_equal(dataset.x, adata.layers["counts"])


@pytest.mark.parametrize(
    ("column", "types"),
    [
        ([2, 1, 2, 1, 2, 1], ("1", "2")),
        ([2.0, 1.0, 2.0, 1.0, 2.0, 1.0], ("1", "2")),
        ([True, False, True, False, True, False], ("False", "True")),
        (pd.Categorical(["b", "a"] * 3, categories=["c", "b", "a"]), ("a", "b")),
        (pd.array(["b", "a"] * 3, dtype="string"), ("a", "b")),
        (pd.Categorical([2, 1] * 3), ("1", "2")),
    ],
)
def test_labels_and_batches_of_any_type_become_sorted_names(column: Any, types: tuple[str, ...]) -> None:
    dataset = from_anndata(small(celltype=column, tech=column), FIELDS)
    assert dataset.cell_types == dataset.batch_names == types
    assert dataset.labels.tolist() == dataset.batches.tolist() == [1, 0, 1, 0, 1, 0]
    assert dataset.labels.dtype == dataset.batches.dtype == np.int64


def test_prediction_needs_neither_labels_nor_batches() -> None:
    dataset = from_anndata(small(), Fields(None, None))
    assert dataset.cell_types == ()
    assert set(dataset.labels.tolist()) == {UNLABELED}
    assert dataset.batch_names == ("query",)
    assert set(dataset.batches.tolist()) == {0}


# --- cells without labels


@pytest.mark.parametrize("column", [["a", "b", None, "b", "a", None], ["a", "b", "", "b", "a", "nan"]])
def test_unlabeled_cells(column: list[str | None]) -> None:
    adata = small(celltype=column, tech=["x", "x", "z", "y", "y", "y"])
    (fault,) = faults(adata)
    assert "2 of 6 cells" in fault
    for choice in ("--unlabeled drop", "--unlabeled domain", "--unlabeled-category"):
        assert choice in fault
    kept = from_anndata(adata, replace(FIELDS, unlabeled="domain"))
    assert kept.labels.tolist() == [0, 1, UNLABELED, 1, 0, UNLABELED]
    dropped = from_anndata(adata, replace(FIELDS, unlabeled="drop"))
    assert dropped.cells.tolist() == ["cell0", "cell1", "cell3", "cell4"]
    assert dropped.labels.tolist() == [0, 1, 1, 0]
    assert dropped.batch_names == ("x", "y")
    assert dropped.batches.tolist() == [0, 0, 1, 1]
    assert np.array_equal(dropped.x, kept.x[[0, 1, 3, 4]])


@pytest.mark.parametrize("unlabeled", ["error", "drop", "domain"])
def test_the_unlabeled_category_is_kept_without_a_type(unlabeled: Any) -> None:
    adata = small(celltype=["a", "b", "Unknown", "b", "a", "a"])
    dataset = from_anndata(adata, replace(FIELDS, unlabeled_category="Unknown", unlabeled=unlabeled))
    assert dataset.cell_types == ("a", "b")
    assert dataset.labels.tolist() == [0, 1, UNLABELED, 1, 0, 0]


# --- faults


def test_all_faults_are_reported_together() -> None:
    adata = small(tech=["x", None, "x", "y", "y", "y"])
    adata.var_names = pd.Index(["A", "B", "B", "D"])
    adata.X[2, 1] = np.nan
    adata.X[3, 3] = np.inf
    adata.X[4, 0] = -1
    adata.X[5, 0] = -2
    told = faults(adata, replace(FIELDS, labels_key="cell_type"))
    assert len(told) == 6
    text = "\n".join(told)
    assert "'cell_type' (--labels-key): did you mean celltype?" in text
    assert "1 of 6 cells have no batch" in text
    assert "var holds 1 gene name more than once (B)" in text
    assert "--gene-key" in text
    assert "1 NaN value, the first at cell cell2, gene B" in text
    assert "1 infinite value, the first at cell cell3, gene D" in text
    assert "2 negative values, the first at cell cell4, gene A" in text


def test_faulty_values_are_placed_in_sparse_data_too() -> None:
    adata = small()
    adata.X[2, 1] = -1
    dense = faults(adata)
    adata.X = sp.csc_matrix(adata.X)
    assert faults(adata) == dense
    assert "cell cell2, gene B" in dense[0]


def test_values_beyond_float32_are_infinite() -> None:
    adata = small()
    adata.X = adata.X.astype(np.float64)
    adata.X[0, 2] = 1e300
    assert "1 infinite value" in faults(adata)[0]


def test_missing_layer_column_and_values() -> None:
    adata = small()
    adata.layers["counts"] = adata.X
    assert "did you mean counts?" in faults(adata, replace(FIELDS, layer="count"))[0]
    assert "no column 'symbol' (--gene-key)" in faults(adata, replace(FIELDS, gene_key="symbol"))[0]
    adata.X = None
    assert "--layer (found: counts)" in faults(adata)[0]


def test_no_cells_no_genes() -> None:
    assert "no cells" in faults(small()[:0])[0]
    assert "no genes" in faults(small()[:, :0])[0]


def test_one_cell_type_only() -> None:
    assert "one cell type only ('a')" in faults(small(celltype="a"))[0]


def test_what_a_method_can_train_on() -> None:
    dataset = from_anndata(small(celltype=["a", "a", "b", "b", "b", "?"]), replace(FIELDS, unlabeled_category="?"))
    everything, first_batch, one_type, no_label = np.arange(6), np.arange(3), np.array([2, 3]), np.array([5])
    for method in ("nn", "dann", "scdgn"):
        check_trainable(dataset, everything, method)
        with pytest.raises(DataError, match="one type"):
            check_trainable(dataset, one_type, method)
        with pytest.raises(DataError, match="none of the 1 training cells has a label"):
            check_trainable(dataset, no_label, method)
    check_trainable(dataset, first_batch, "nn")
    for method in ("dann", "scdgn"):
        with pytest.raises(DataError, match=rf"{method} needs two training batches, there is one \('x'\).*--method nn"):
            check_trainable(dataset, first_batch, method)


# --- files


def test_unreadable_files(tmp_path: Path) -> None:
    good, text, other, cut = (tmp_path / name for name in ("good.h5ad", "text.h5ad", "other.h5ad", "cut.h5ad"))
    small().write_h5ad(good)
    text.write_text("not HDF5")
    with h5py.File(other, "w") as file:
        file["matrix"] = np.zeros(3)
    cut.write_bytes(good.read_bytes()[:-2000])
    empty = tmp_path / "empty.h5ad"
    empty.touch()
    for path, told in (
        (tmp_path / "god.h5ad", "does not exist: did you mean .*good.h5ad"),
        (tmp_path / "sub" / "good.h5ad", "does not exist: there is no .h5ad file in .*sub"),
        (tmp_path, "is a directory: .*good.h5ad"),
        (text, "not an AnnData file"),
        (empty, "not an AnnData file"),
        (other, "HDF5 but not AnnData"),
        (cut, "truncated"),
    ):
        for backed in (False, True):
            with pytest.raises(DataError, match=told) as caught:
                read_h5ad(path, backed)
            assert "\n" not in str(caught.value)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5ad"
    small().write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["obs"].attrs["_index"]
    with pytest.raises(DataError, match="cannot be read as AnnData"):
        read_h5ad(path)


def test_duplicate_genes_in_a_file_are_told_once(tmp_path: Path) -> None:
    adata = small()
    adata.var_names = pd.Index(["A", "B", "B", "D"])
    adata.write_h5ad(tmp_path / "twice.h5ad")
    assert len(faults(read_h5ad(tmp_path / "twice.h5ad"))) == 1


def test_one_matrix_of_a_file(tmp_path: Path) -> None:
    adata = small()
    adata.layers["counts"], adata.layers["other"] = adata.X.copy(), adata.X.copy()
    adata.obsm["X_pca"], adata.raw = np.ones((6, 2)), adata
    adata.X = adata.X * 2
    adata.write_h5ad(tmp_path / "small.h5ad")
    for layer, layers in ((None, []), ("counts", ["counts"])):
        read = read_values(tmp_path / "small.h5ad", layer)
        assert list(read.layers) == layers and not read.obsm and read.raw is None
        fields = replace(FIELDS, layer=layer)
        assert from_anndata(read, fields).fingerprint() == from_anndata(adata, fields).fingerprint()
    assert faults(read_values(tmp_path / "small.h5ad", "count"), replace(FIELDS, layer="count")) == faults(
        adata, replace(FIELDS, layer="count")
    )


def test_damaged_indices_are_told(tmp_path: Path) -> None:
    """SciPy would read and write where they point, and the process die of it."""
    adata = small()
    adata.X = sp.csr_matrix(adata.X)
    for name, value in (("indices", 4), ("indices", -1), ("indptr", 10**6)):
        adata.write_h5ad(tmp_path / "small.h5ad")
        with h5py.File(tmp_path / "small.h5ad", "a") as file:
            file["X"][name][2] = value
        with pytest.raises(DataError, match="cannot be read as AnnData"):
            read_values(tmp_path / "small.h5ad")


# --- Dataset


def test_take_keeps_the_coding() -> None:
    dataset = from_anndata(small(), FIELDS)
    taken = dataset.take(np.array([5, 3]))
    assert taken.cells.tolist() == ["cell5", "cell3"]
    assert (taken.labels.tolist(), taken.batches.tolist()) == ([1, 1], [1, 1])
    assert (taken.cell_types, taken.batch_names) == (("a", "b"), ("x", "y"))
    assert np.array_equal(taken.x, dataset.x[[5, 3]])
    assert len(dataset.take(dataset.batches == 1)) == 3


def test_fingerprint_sees_every_part() -> None:
    dataset = from_anndata(small(), FIELDS)
    changed = dataset.x.copy()
    changed[3, 3] += 1
    one_count, below_it = np.zeros((2, *dataset.x.shape), dtype=np.float32)
    one_count[1, 1] = below_it[2, 1] = 1
    others = [
        replace(dataset, x=changed),
        replace(dataset, x=one_count),
        replace(dataset, x=below_it),
        replace(dataset, values="log"),
        replace(dataset, genes=dataset.genes[::-1]),
        replace(dataset, cells=dataset.cells[::-1]),
        replace(dataset, labels=1 - dataset.labels),
        replace(dataset, batches=1 - dataset.batches),
        replace(dataset, cell_types=("a", "c")),
        replace(dataset, batch_names=("x", "z")),
        dataset.take(np.arange(6)[::-1]),
    ]
    prints = [other.fingerprint() for other in (dataset, *others)]
    assert len(set(prints)) == len(prints)


def test_fingerprint_ignores_storage() -> None:
    dataset = from_anndata(small(), FIELDS)
    with_stored_zeros = sp.csr_matrix(np.ones_like(dataset.x))
    with_stored_zeros.data[:] = dataset.x.reshape(-1)
    stored: list[Dataset] = [replace(dataset, x=sp.csr_matrix(dataset.x)), replace(dataset, x=with_stored_zeros)]
    assert {other.fingerprint() for other in stored} == {dataset.fingerprint()}

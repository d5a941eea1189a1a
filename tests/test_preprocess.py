from __future__ import annotations

import errno
import io
import json
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells import mapped, normalize, variable
from scdgn.cells import preprocess as module
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.mapped import COUNTS, GENES, VALUES
from scdgn.cells.normalize import log_normalize, log_normalized
from scdgn.cells.preprocess import Preprocessing, fit
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.variable import highly_variable_genes
from scdgn.core import expression as expression_module
from scdgn.core.expression import Sparse
from scdgn.errors import BundleError, DataError, OutputError, SettingsError
from tests.test_mapped import written

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
FILES = ("pancreas_panc8_subset", "pbmc_5batch")
SCALINGS = ("none", "standard", "standard-per-batch")
seeds = st.integers(0, 2**32 - 1)


def simulated(seed: int = 0, cells: int = 60, genes: int = 40, batches: int = 3) -> Dataset:
    """Skewed counts; some genes and cells without any, some genes constant."""
    rng = np.random.default_rng(seed)
    x = rng.negative_binomial(0.5, 0.1, (cells, genes)).astype(np.float32)
    x[:, rng.integers(genes)] = 0
    x[rng.integers(cells)] = 0
    return Dataset(
        x,
        "counts",
        np.array([f"gene{i}" for i in range(genes)]),
        np.array([f"cell{i}" for i in range(cells)]),
        rng.integers(2, size=cells),
        ("a", "b"),
        rng.integers(batches, size=cells),
        tuple(f"batch{i}" for i in range(batches)),
    )


def all_rows(dataset: Dataset) -> np.ndarray:
    return np.arange(len(dataset))


def shared(name: str) -> Dataset:
    return from_anndata(read_h5ad(SHARED / f"{name}.h5ad"), Fields("celltype", "tech"))


# --- against scanpy


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_agrees_with_the_pipeline_of_scanpy_on_real_data(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc

        adata = read_h5ad(SHARED / f"{name}.h5ad")
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        table = sc.pp.highly_variable_genes(adata, n_top_genes=400, batch_key="tech", inplace=False)
        scaled = sc.pp.scale(adata, max_value=10, copy=True)
    dataset = shared(name)
    normalized = log_normalize(dataset.x, "counts")
    assert sp.issparse(normalized)
    np.testing.assert_allclose(normalized.toarray(), adata.X.toarray(), rtol=1e-5)
    chosen = dataset.genes[highly_variable_genes(dataset, all_rows(dataset), PreprocessSettings(400))]
    assert chosen.tolist() == table.index[table["highly_variable"]].tolist()
    x = fit(dataset, all_rows(dataset), PreprocessSettings(scaling="standard")).transform(dataset)
    np.testing.assert_allclose(x, scaled.X, atol=2e-4)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_leave_one_batch_out_on_real_data(name: str) -> None:
    dataset = shared(name)
    for batch in range(len(dataset.batch_names)):
        train, held_out = np.flatnonzero(dataset.batches != batch), np.flatnonzero(dataset.batches == batch)
        preprocessing = fit(dataset, train, PreprocessSettings(n_top_genes=500, scaling="standard"))
        x = preprocessing.transform(dataset, train)
        assert x.shape == (len(train), 500)
        assert np.abs(x.mean(axis=0)).max() < 0.2  # clipping moves the mean of few genes, and little
        assert np.isfinite(preprocessing.transform(dataset, held_out)).all()


# --- laws


@pytest.mark.parametrize("scaling", SCALINGS)
@given(seed=seeds)
@settings(deadline=None, max_examples=5)
def test_other_rows_are_not_seen(scaling: Any, seed: int) -> None:
    dataset = simulated(seed)
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(dataset))[:30]
    others = np.setdiff1d(all_rows(dataset), train)
    x = dataset.x.copy()
    x[others] = rng.permutation(x[others].ravel()).reshape(len(others), -1) * 50
    changed = replace(dataset, x=x, labels=np.where(np.isin(all_rows(dataset), train), dataset.labels, 1))
    chosen = PreprocessSettings(n_top_genes=12, scaling=scaling)
    one, two = fit(dataset, train, chosen), fit(changed, train, chosen)
    assert one.genes.tolist() == two.genes.tolist()
    assert np.array_equal(one.mean, two.mean)
    assert np.array_equal(one.std, two.std)
    assert np.array_equal(one.transform(dataset, train), two.transform(changed, train))


@pytest.mark.parametrize("scaling", SCALINGS)
@given(seed=seeds)
@settings(deadline=None, max_examples=5)
def test_permuting_cells_permutes_the_input(scaling: Any, seed: int) -> None:
    dataset = simulated(seed)
    order = np.random.default_rng(seed).permutation(len(dataset))
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(n_top_genes=12, scaling=scaling))
    again = fit(dataset.take(order), all_rows(dataset), preprocessing.settings)
    assert again.genes.tolist() == preprocessing.genes.tolist()
    x = preprocessing.transform(dataset)
    np.testing.assert_allclose(again.transform(dataset.take(order)), x[order], atol=1e-4)
    np.testing.assert_allclose(preprocessing.transform(dataset, order), x[order], atol=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS)
@given(seed=seeds)
@settings(deadline=None, max_examples=5)
def test_storage_and_earlier_normalisation_change_nothing(scaling: Any, seed: int) -> None:
    dense = simulated(seed)
    sparse = replace(dense, x=sp.csr_matrix(dense.x))
    rows = np.random.default_rng(seed).permutation(len(dense))[:40]
    chosen = PreprocessSettings(n_top_genes=12, scaling=scaling)
    preprocessing = fit(dense, rows, chosen)
    for other in (sparse, log_normalized(dense), log_normalized(sparse)):
        again = fit(other, rows, chosen)
        assert again.genes.tolist() == preprocessing.genes.tolist()
        np.testing.assert_allclose(again.transform(other), preprocessing.transform(dense), atol=1e-4)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_json_round_trip(scaling: Any) -> None:
    dataset = simulated()
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(12, scaling, target_sum=5e3, clip=2))
    document = json.loads(json.dumps(preprocessing.to_json()))
    again = Preprocessing.from_json(document, preprocessing.mean, preprocessing.std)
    assert again.settings == preprocessing.settings
    assert np.array_equal(again.transform(dataset), preprocessing.transform(dataset))


def test_incomplete_or_contradictory_documents_are_refused() -> None:
    dataset = simulated()
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(12, "standard"))
    document = preprocessing.to_json()
    for damaged in (
        {key: value for key, value in document.items() if key != "panel"},
        document | {"settings": {"scale": 1}},
        document | {"genes": document["genes"][1:]},
        document | {"panel": document["panel"][:3]},
    ):
        with pytest.raises(BundleError, match="save the model again"):
            Preprocessing.from_json(damaged, preprocessing.mean, preprocessing.std)


# --- values


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_log_normalize(form: Any) -> None:
    x = form(np.array([[1, 3, 0], [0, 0, 0], [0.5, 0, 0.5]], dtype=np.float32))
    out = log_normalize(x, "counts", 100)
    dense = out.toarray() if sp.issparse(out) else out
    np.testing.assert_allclose(np.expm1(dense), [[25, 75, 0], [0, 0, 0], [50, 0, 50]], rtol=1e-5)
    assert out.dtype == np.float32
    assert x.max() == 3
    assert log_normalize(x, "log") is x


def test_standard_values_have_mean_0_and_variance_1_within_the_clip() -> None:
    dataset = simulated(cells=300)
    loose = fit(dataset, all_rows(dataset), PreprocessSettings(scaling="standard", clip=1e6)).transform(dataset)
    varied = loose.std(axis=0) > 0
    np.testing.assert_allclose(loose.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(loose[:, varied].std(axis=0, ddof=1), 1, atol=1e-4)
    tight = fit(dataset, all_rows(dataset), PreprocessSettings(scaling="standard", clip=0.5)).transform(dataset)
    np.testing.assert_array_equal(tight, np.clip(loose, -0.5, 0.5))


def test_scaling_per_batch_uses_each_batch_alone() -> None:
    dataset = simulated(cells=300)
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(scaling="standard-per-batch", clip=100))
    assert preprocessing.transductive
    assert not replace(preprocessing, settings=PreprocessSettings()).transductive
    x = preprocessing.transform(dataset)
    for batch in range(3):
        members = np.flatnonzero(dataset.batches == batch)
        np.testing.assert_allclose(x[members].mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(preprocessing.transform(dataset, members), x[members], atol=1e-5)


def test_a_batch_of_one_cell_is_scaled_by_the_training_cells() -> None:
    dataset = simulated()
    batches = np.zeros(len(dataset), dtype=np.int64)
    batches[7] = 1
    dataset = replace(dataset, batches=batches)
    per_batch = fit(dataset, all_rows(dataset), PreprocessSettings(scaling="standard-per-batch"))
    standard = replace(per_batch, settings=PreprocessSettings(scaling="standard"))
    assert np.array_equal(per_batch.transform(dataset)[7], standard.transform(dataset)[7])
    assert np.abs(per_batch.transform(dataset)[7]).max() > 0


@pytest.mark.parametrize("scaling", ["standard", "standard-per-batch"])
def test_a_gene_with_the_same_share_of_every_cell_becomes_zero(scaling: Any) -> None:
    dataset = simulated()
    share = dataset.x[:, 2:].sum(axis=1) * 3  # its logarithms differ by the rounding of float32 alone
    dataset = replace(dataset, x=np.column_stack([0 * share, share, dataset.x[:, 2:]]))
    full = np.flatnonzero(share)
    chosen = PreprocessSettings(scaling=scaling, target_sum=1)
    out = fit(dataset, full, chosen).transform(dataset, full)
    np.testing.assert_allclose(out[:, :2], 0, atol=1e-5)


# --- gene selection


@pytest.mark.parametrize("seed", range(6))
def test_variable_genes_are_those_of_scanpy(seed: int) -> None:
    import scanpy as sc
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    batches = np.repeat([f"batch{i}" for i in range(seed + 1)], 40)
    rates = rng.gamma(0.3, 4, 300) * rng.lognormal(
        0, 0.5, (len(batches), 300)
    )  # many genes of few counts, and silent ones
    counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
    dataset = replace(
        simulated(cells=len(batches), genes=300), x=counts, batches=np.unique(batches, return_inverse=True)[1]
    )
    logs = log_normalized(dataset)
    for n_top in (10, 100, 290):
        with warnings.catch_warnings(action="ignore"):
            adata = AnnData(logs.x, obs={"batch": batches.astype(object)})
            table = sc.pp.highly_variable_genes(adata, n_top_genes=n_top, batch_key="batch", inplace=False)
        expected = np.flatnonzero(table["highly_variable"])
        chosen = PreprocessSettings(n_top_genes=n_top)
        for one in (dataset, logs, replace(logs, x=logs.x.toarray())):
            assert highly_variable_genes(one, all_rows(one), chosen).tolist() == expected.tolist()


def test_genes_that_vary_within_batches_are_preferred_to_those_that_vary_between_them() -> None:
    rng = np.random.default_rng(0)
    batches = np.repeat([0, 1], 100)
    means = np.tile(rng.gamma(2, 10, 300), (200, 1))
    means[:, :4] = 5
    means[:100, 0] = 50  # differs between the batches alone
    means[::2, 1:4] = 50  # differ within both
    dataset = replace(simulated(cells=200, genes=300), x=rng.poisson(means).astype(np.float32), batches=batches)
    chosen = PreprocessSettings(n_top_genes=10)
    within = set(highly_variable_genes(dataset, all_rows(dataset), chosen).tolist())
    mixed = set(highly_variable_genes(replace(dataset, batches=0 * batches), all_rows(dataset), chosen).tolist())
    assert {1, 2, 3} <= within & mixed
    assert 0 in mixed - within


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_batches_that_cannot_rank_genes_have_no_say(form: Any) -> None:
    dataset = simulated(cells=100)
    lone, silent = dataset.x[50:51], np.zeros((5, 40), dtype=np.float32)
    tied = np.eye(2, 40, dtype=np.float32)  # two genes of one mean and one variance
    added = (lone, np.repeat(lone, 7, axis=0), silent, tied)
    x = np.vstack([dataset.x, *added])
    batches = np.concatenate([dataset.batches, np.repeat([3, 4, 5, 6], [len(cells) for cells in added])])
    names = np.array([f"cell{i}" for i in range(len(x))])
    larger = replace(dataset, x=form(x), cells=names, batches=batches, labels=np.zeros(len(x), dtype=np.int64))
    chosen = PreprocessSettings(n_top_genes=12)
    expected = highly_variable_genes(dataset, all_rows(dataset), chosen)
    assert highly_variable_genes(larger, all_rows(larger), chosen).tolist() == expected.tolist()


def test_cells_each_in_a_batch_of_its_own_are_taken_as_one_batch() -> None:
    dataset = simulated()
    chosen = PreprocessSettings(n_top_genes=12)
    apart, together = (replace(dataset, batches=batches) for batches in (all_rows(dataset), 0 * dataset.batches))
    expected = highly_variable_genes(together, all_rows(dataset), chosen)
    assert highly_variable_genes(apart, all_rows(dataset), chosen).tolist() == expected.tolist()


def test_where_no_genes_can_be_ranked_those_of_highest_variance_are_chosen() -> None:
    x = np.zeros((2, 40), dtype=np.float32)
    x[0, 30] = x[1, 20] = 1  # two genes of one mean and one variance: scanpy cannot compare them
    dataset = replace(simulated(cells=2), x=x, batches=np.zeros(2, dtype=np.int64))
    assert highly_variable_genes(dataset, all_rows(dataset), PreprocessSettings(2)).tolist() == [20, 30]


def test_a_constant_gene_is_not_chosen() -> None:
    dataset = log_normalized(simulated())
    dataset.x[:, 5] = 9.3  # alone among genes of its mean, where scanpy gives any variance, of rounding too, a 1
    assert 5 not in highly_variable_genes(dataset, all_rows(dataset), PreprocessSettings(12))


def test_all_genes_are_kept_where_there_are_few() -> None:
    dataset = simulated(genes=40)
    assert fit(dataset, all_rows(dataset), PreprocessSettings(40)).genes.tolist() == dataset.genes.tolist()


@given(seed=seeds, cells=st.integers(1, 8), genes=st.integers(1, 8), batches=st.integers(1, 4), top=st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_tiny_data_are_handled_without_a_warning(seed: int, cells: int, genes: int, batches: int, top: int) -> None:
    dataset = simulated(seed, cells, genes, batches)
    for scaling in SCALINGS:
        preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(top, scaling))
        assert len(preprocessing.genes) == min(top, genes)
        assert np.isfinite(preprocessing.transform(dataset)).all()


# --- genes by name


def renamed(dataset: Dataset, names: list[str]) -> Dataset:
    return replace(dataset, genes=np.array(names))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_query_with_more_genes_in_another_order_is_read_alike(scaling: Any, form: Any) -> None:
    dataset = simulated()
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(12, scaling))
    rng = np.random.default_rng(1)
    order = rng.permutation(40 + 100)
    x = np.hstack([dataset.x, rng.poisson(30, (len(dataset), 100)).astype(np.float32)])[:, order]
    names = np.array([*dataset.genes, *(f"other{i}" for i in range(100))])[order]
    query = replace(dataset, x=form(x), genes=names)
    np.testing.assert_allclose(preprocessing.transform(query), preprocessing.transform(dataset), atol=1e-4)
    assert preprocessing.match(names).found == 12


def test_missing_genes_are_counted_and_take_the_training_mean() -> None:
    dataset = simulated()
    kept = np.arange(40) != 3
    preprocessing = fit(log_normalized(dataset), all_rows(dataset), PreprocessSettings(scaling="standard"))
    query = replace(log_normalized(dataset), x=log_normalize(dataset.x, "counts")[:, kept], genes=dataset.genes[kept])
    match = preprocessing.match(query.genes)
    assert (match.found, match.missing) == (39, ("gene3",))
    full = preprocessing.transform(log_normalized(dataset))
    assert np.array_equal(preprocessing.transform(query)[:, kept], full[:, kept])
    assert not preprocessing.transform(query)[:, 3].any()
    raw = replace(preprocessing, settings=PreprocessSettings(scaling="none"))
    assert (raw.transform(query)[:, 3] == preprocessing.mean[3]).all()


def test_too_few_genes_are_refused_with_the_likely_reason() -> None:
    dataset = simulated()
    symbols = renamed(dataset, [f"Gene{i}" for i in range(40)])
    ensembl = renamed(dataset, [f"ENSG{i:011d}" for i in range(40)])
    mouse = renamed(dataset, [f"GENE{i}" for i in range(40)])
    unknown = renamed(dataset, [f"x{i}" for i in range(36)] + [f"Gene{i}" for i in range(4)])
    model = fit(symbols, all_rows(symbols), PreprocessSettings())
    for query, told in (
        (
            ensembl,
            r"^0 of the 40 genes of the model are in the data, 5 are needed: .*by Ensembl identifiers, the model by",
        ),
        (mouse, "40 would match but for upper and lower case"),
        (unknown, "^4 of the 40 genes .* --gene-key"),
    ):
        with pytest.raises(DataError, match=told):
            model.transform(query)
    with pytest.raises(DataError, match=r"by symbols, the model by Ensembl identifiers.*--gene-key"):
        fit(ensembl, all_rows(dataset), PreprocessSettings()).transform(symbols)


# --- limits


def test_settings_report_every_fault() -> None:
    with pytest.raises(SettingsError) as caught:
        fit(simulated(), np.arange(3), PreprocessSettings(0, "standart", -1.0, float("nan")))  # type: ignore[arg-type]
    assert len(caught.value.faults) == 4
    assert "choose one of none, standard, standard-per-batch" in str(caught.value)


def test_no_training_cells() -> None:
    with pytest.raises(DataError, match="no training cells"):
        fit(simulated(), np.arange(0), PreprocessSettings())


def test_transform_needs_little_memory_beyond_its_result() -> None:
    cells, genes = 20_000, 2_000
    stored = np.random.default_rng(0).integers(genes, size=(cells, 40))
    x = sp.csr_matrix((np.ones(stored.size, np.float32), stored.ravel(), np.arange(cells + 1) * 40), (cells, genes))
    x.sum_duplicates()
    dataset = replace(simulated(cells=cells, genes=2), x=x, genes=np.array([f"gene{i}" for i in range(genes)]))
    preprocessing = fit(dataset, np.arange(500), PreprocessSettings(n_top_genes=100, scaling="standard-per-batch"))
    tracemalloc.start()
    out = preprocessing.transform(dataset)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * out.nbytes


# --- as training holds it


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("values", ["counts", "log"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("units", [0, 1000])
def test_expression_is_the_input_however_it_is_held(
    scaling: Any, values: Any, missing: bool, small: bool, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DENSE_BYTES", 10**9 if small else 0)
    for blocks in (module, normalize):
        monkeypatch.setattr(blocks, "BLOCK", 7)
    dataset = simulated()
    dataset = replace(dataset, x=sp.csr_matrix(dataset.x * (np.random.default_rng(1).random(dataset.x.shape) < 0.3)))
    if values == "log":
        dataset = log_normalized(dataset)
    rows = np.random.default_rng(0).permutation(len(dataset))[:40]
    preprocessing = fit(dataset, rows, PreprocessSettings(n_top_genes=25, scaling=scaling, clip=1.5))
    seen = dataset
    if missing:
        kept = ~np.isin(dataset.genes, preprocessing.genes[:3])
        seen = replace(dataset, x=dataset.x[:, kept], genes=dataset.genes[kept])
    expression = preprocessing.expression(seen, rows, units)
    assert isinstance(expression, Sparse) == (not small or (scaling == "none" and units > 0 and not missing))
    dense = expression.dense() if isinstance(expression, Sparse) else expression
    np.testing.assert_allclose(dense.numpy(), preprocessing.transform(seen, rows), rtol=2e-5, atol=2e-6)


def test_a_large_matrix_is_looked_at_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_BYTES", 0)
    dataset = simulated()
    dataset = replace(dataset, x=sp.csr_matrix(dataset.x))
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(n_top_genes=10, scaling="standard"))
    expression = preprocessing.expression(dataset, all_rows(dataset)[::2])
    assert isinstance(expression, Sparse)
    assert expression.values.data_ptr() == dataset.x.data.ctypes.data
    assert expression.columns.data_ptr() == dataset.x.indices.ctypes.data


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("missing", [False, True])
def test_of_a_large_mapped_matrix_the_selected_genes_alone_are_kept(
    scaling: Any, missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DENSE_BYTES", 0)
    monkeypatch.setattr(expression_module, "ENTRIES_AT_ONCE", 50)
    dataset = simulated()
    dataset = replace(dataset, x=sp.csr_matrix(dataset.x * (np.random.default_rng(1).random(dataset.x.shape) < 0.3)))
    rows = np.random.default_rng(0).permutation(len(dataset))[:40]
    preprocessing = fit(dataset, rows, PreprocessSettings(n_top_genes=10, scaling=scaling))
    if missing:
        kept = ~np.isin(dataset.genes, preprocessing.genes[:3])
        dataset = replace(dataset, x=dataset.x[:, kept], genes=dataset.genes[kept])
    view = preprocessing.expression(dataset, rows)
    own = preprocessing.expression(replace(dataset, x=written(tmp_path / "rows", dataset.x)), rows)
    assert isinstance(view, Sparse) and isinstance(own, Sparse)
    assert own.selected is None and own.factors is None
    assert len(own.values) == int(own.counts.sum()) < len(dataset.x.data)
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == sorted([COUNTS, GENES, VALUES])
    some = torch.tensor([3, 3, 39, 0])
    for chosen in (torch.arange(40), some):
        assert torch.equal(own[chosen].dense(), view[chosen].dense())
    for mine, theirs in zip(own.rows(some), view.rows(some), strict=True):
        assert torch.equal(mine, theirs)


def test_a_disk_too_full_for_the_selected_genes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_BYTES", 0)
    dataset = simulated()
    dataset = replace(dataset, x=written(tmp_path / "rows", sp.csr_matrix(dataset.x)))
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(n_top_genes=10))

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped, "TemporaryFile", lambda dir: Full())
    with pytest.raises(
        OutputError, match=r"^cannot write the selected genes .*No space left.* the same command goes on$"
    ):
        preprocessing.expression(dataset, all_rows(dataset))


def test_dense_values_stay_dense_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = simulated()
    preprocessing = fit(dataset, all_rows(dataset), PreprocessSettings(n_top_genes=10))
    monkeypatch.setattr(module, "DENSE_BYTES", 10**9)
    full = replace(dataset, x=sp.csr_matrix(dataset.x + 1))
    assert not isinstance(preprocessing.expression(full, all_rows(full), 1000), Sparse)
    monkeypatch.setattr(module, "DENSE_BYTES", 0)
    assert not isinstance(preprocessing.expression(dataset, all_rows(dataset), 1000), Sparse)


def test_of_large_batches_some_cells_rank_the_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = simulated(cells=400, genes=60)
    settings = PreprocessSettings(n_top_genes=30)
    everything = highly_variable_genes(dataset, all_rows(dataset), settings)
    monkeypatch.setattr(variable, "RANKING_CELLS", 120)
    some = highly_variable_genes(dataset, all_rows(dataset), settings)
    assert np.array_equal(some, highly_variable_genes(dataset, all_rows(dataset), settings))
    assert 15 < len(np.intersect1d(some, everything)) < 30

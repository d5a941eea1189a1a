"""Cells annotated in their file come out as cells annotated in memory do, whatever the file looks like."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scdgn.cells import portions
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad, write_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.commands.settings import read_settings
from scdgn.errors import DataError
from scdgn.model import annotate, at_once, stored
from scdgn.model.annotate import CONFIDENCE, LABEL, LATENT, PROBABILITY
from scdgn.model.at_once import cells_at_once
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.model.stored import annotate_file, open_stored
from tests.faults import FAST, KEYS, SETTINGS, done, run, tiny, tree

FIELDS = Fields(None, None)
RESULTS = {f"obs/{LABEL}", f"obs/{CONFIDENCE}", f"obsm/{LATENT}", f"obsm/{PROBABILITY}"}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    dataset = from_anndata(tiny(), Fields("celltype", "tech"))
    settings, _ = read_settings("scdgn", "default", None, [f"{key}={value}" for key, value in SETTINGS.items()], {})
    return fit(dataset, np.arange(len(dataset)), settings, PreprocessSettings(), [0])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 cells at a time, and 700 stored values."""
    monkeypatch.setattr(at_once, "INPUT_AT_ONCE", 40 * 40)
    monkeypatch.setattr(portions, "VALUES_AT_ONCE", 700)
    monkeypatch.setattr(stored, "CELLS_SURVEYED", 50)


def in_memory(path: Path, bundle: Bundle, output: Path, fields: Fields = FIELDS) -> AnnData:
    adata = read_h5ad(path)
    annotate.annotate(adata, from_anndata(adata, fields), bundle)
    write_h5ad(adata, output)
    return read_h5ad(output)


def on_disk(path: Path, bundle: Bundle, output: Path, fields: Fields = FIELDS, top_k: int | None = None) -> AnnData:
    cells = open_stored(path)
    assert cells is not None and cells.has_rows(fields.layer)
    annotate_file(cells.check(fields), bundle, output, top_k=top_k)
    return read_h5ad(output)


def assert_same(one: AnnData, two: AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, two.obs, rtol=1e-5)
    pd.testing.assert_frame_equal(one.var, two.var)
    assert set(one.obsm) == set(two.obsm)
    for name in one.obsm:
        if isinstance(one.obsm[name], pd.DataFrame):
            pd.testing.assert_frame_equal(one.obsm[name], two.obsm[name], rtol=1e-5)
        else:
            assert one.obsm[name].dtype == two.obsm[name].dtype
            assert np.allclose(one.obsm[name], two.obsm[name], atol=1e-5)


# --- what is written


def full() -> AnnData:
    """Every part that an AnnData can have."""
    adata = tiny()
    adata.obs["note"] = [f"cell {i}" for i in range(adata.n_obs)]
    adata.obs["flag"] = pd.array([True, None] * 70, dtype="boolean")
    adata.obs["score"] = np.arange(adata.n_obs) / 3
    adata.layers["raw"] = adata.X.copy()
    adata.layers["dense"] = adata.X.toarray()
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.obsp["graph"] = adata.X @ adata.X.T
    adata.uns["info"] = {"a": np.arange(3), "b": "text"}
    adata.raw = adata[:, :20]
    return adata


def named_index() -> AnnData:
    adata = tiny()
    adata.obs.index.name = "cell_id"
    return adata


def indexed_by_a_column() -> AnnData:
    adata = tiny()
    adata.obs["cell_id"] = adata.obs_names.to_numpy()
    adata.obs.index.name = "cell_id"
    return adata


def changed(x: Callable[[AnnData], object]) -> Callable[[], AnnData]:
    def make() -> AnnData:
        adata = tiny()
        adata.X = x(adata)
        return adata

    return make


def unsorted(adata: AnnData) -> sp.csr_matrix:
    x = adata.X
    for start, stop in zip(x.indptr, x.indptr[1:], strict=False):
        x.indices[start:stop] = x.indices[start:stop][::-1].copy()
        x.data[start:stop] = x.data[start:stop][::-1].copy()
    return sp.csr_matrix((x.data, x.indices, x.indptr), shape=x.shape)


def with_empty_rows(adata: AnnData) -> sp.csr_matrix:
    x = adata.X.tolil()
    x[:60] = 0
    x[-1] = 0
    return sp.csr_matrix(x)


FORMS: dict[str, Callable[[], AnnData]] = {
    "as it is": tiny,
    "with everything": full,
    "a named index": named_index,
    "an index that is a column": indexed_by_a_column,
    "no columns": lambda: AnnData(tiny().X, var=tiny().var),
    "dense": changed(lambda adata: adata.X.toarray()),
    "dense float64": changed(lambda adata: adata.X.toarray().astype(float)),
    "dense integers": changed(lambda adata: adata.X.toarray().astype(np.int32)),
    "sparse integers": changed(lambda adata: adata.X.astype(np.int64)),
    "sparse float64": changed(lambda adata: sp.csr_array(adata.X.astype(float))),
    "unsorted": changed(unsorted),
    "cells without counts": changed(with_empty_rows),
    "one cell": lambda: tiny()[np.asarray(tiny().X.max(axis=1).todense()).ravel().argmax()].copy(),
    "genes missing and others": lambda: tiny(genes=60)[:, 5:].copy(),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_a_file_comes_out_as_from_memory(
    make: Callable[[], AnnData], compression: str | None, bundle: Bundle, tmp_path: Path
) -> None:
    make().write_h5ad(tmp_path / "cells.h5ad", compression=compression, convert_strings_to_categoricals=False)
    expected = in_memory(tmp_path / "cells.h5ad", bundle, tmp_path / "memory.h5ad")
    found = on_disk(tmp_path / "cells.h5ad", bundle, tmp_path / "disk.h5ad")
    assert_same(found, expected)
    again = on_disk(tmp_path / "disk.h5ad", bundle, tmp_path / "again.h5ad")  # results replace results
    assert_same(again, expected)
    # The form is AnnData's own, down to the attributes and the types of every number.
    assert layout(tmp_path / "disk.h5ad", RESULTS) == layout(tmp_path / "memory.h5ad", RESULTS)
    others = {name: item for name, item in layout(tmp_path / "cells.h5ad").items() if name != "obs"}
    assert others.items() <= layout(tmp_path / "disk.h5ad").items()
    assert contents(tmp_path / "cells.h5ad").items() <= contents(tmp_path / "disk.h5ad").items()


def layout(path: Path, within: set[str] | None = None) -> dict[str, object]:
    """Attributes, shape and type of every object of a file, or of those at and below the places named."""
    found: dict[str, object] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if within is None or any(name == place or name.startswith(f"{place}/") for place in within):
            attributes = {key: str(value) for key, value in item.attrs.items()}
            kind = (item.shape, item.dtype.str) if isinstance(item, h5py.Dataset) else None
            found[name] = (attributes, kind)

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def contents(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: np.asarray(item).tobytes() if item.dtype.kind != "O" else repr(item[()]).encode()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def test_chunks_are_bounded_by_cells_and_by_values(bundle: Bundle, tmp_path: Path, small_chunks: None) -> None:
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None
    chunks = list(cells.check(FIELDS).chunks(cells_at_once(bundle)))
    assert max(map(len, chunks)) <= 32
    assert all(chunk.x.nnz <= 700 for chunk in chunks) and len(chunks) > 5
    assert np.concatenate([chunk.cells for chunk in chunks]).tolist() == tiny().obs_names.tolist()
    assert (sp.vstack([chunk.x for chunk in chunks]) != tiny().X).nnz == 0


@pytest.mark.parametrize(("genes", "cells"), [(40, 65_536), (3000, 8192), (20_000, 1024), (10**9, 1)])
def test_input_of_a_chunk_is_near_100_megabytes(genes: int, cells: int) -> None:
    part = SimpleNamespace(preprocessing=SimpleNamespace(genes=range(genes)))
    assert cells_at_once(SimpleNamespace(parts=[part])) == cells  # type: ignore[arg-type]
    if genes > 40:
        assert cells_at_once(SimpleNamespace(parts=[part, part])) == max(1, cells // 2)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_chunks")
def test_counts_are_told_from_all_cells(tmp_path: Path) -> None:
    """The first chunks alone would be taken for log-normalised."""
    adata = tiny()
    x = adata.X.toarray()
    x[:130] = np.minimum(x[:130], 5)
    adata.X = sp.csr_matrix(x)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None
    checked = cells.check(FIELDS)
    assert checked.reading.sentence.startswith("values read as counts")
    assert {chunk.values for chunk in checked.chunks(32)} == {"counts"}


@pytest.mark.usefixtures("small_chunks")
def test_layer_and_genes_by_a_column(bundle: Bundle, tmp_path: Path) -> None:
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * -1
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{i:011}" for i in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    fields = Fields(None, None, layer="counts", gene_key="symbol")
    expected = in_memory(tmp_path / "cells.h5ad", bundle, tmp_path / "memory.h5ad", fields)
    assert_same(on_disk(tmp_path / "cells.h5ad", bundle, tmp_path / "disk.h5ad", fields), expected)


@pytest.mark.parametrize("types", [("T/NK", "T_NK", "B"), ("_index", "_index_", "B"), ("cell_id", "b", "c")])
def test_types_with_strange_names(types: tuple[str, ...], tmp_path: Path) -> None:
    adata = tiny(cell_types=types)
    dataset = from_anndata(adata, Fields("celltype", "tech"))
    settings, _ = read_settings("scdgn", "default", None, [f"{key}={value}" for key, value in SETTINGS.items()], {})
    bundle = fit(dataset, np.arange(len(dataset)), settings, PreprocessSettings(), [0])
    adata.obs.index.name = "cell_id"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    found = on_disk(tmp_path / "cells.h5ad", bundle, tmp_path / "disk.h5ad")
    assert list(found.obsm[PROBABILITY].columns) == annotate.column_names(bundle.cell_types)
    assert found.obsm[PROBABILITY].to_numpy().argmax(axis=1).tolist() == found.obs[LABEL].cat.codes.tolist()
    assert found.obsm[PROBABILITY].index.tolist() == adata.obs_names.tolist()


def test_an_embedding_that_there_was_not_and_a_column_of_another_type(bundle: Bundle, tmp_path: Path) -> None:
    adata = tiny()
    adata.obs.insert(0, LABEL, 1.5)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "a") as file:
        del file["obsm"]
    found = on_disk(tmp_path / "cells.h5ad", bundle, tmp_path / "disk.h5ad")
    assert list(found.obs) == [LABEL, "celltype", "tech", CONFIDENCE]
    assert set(found.obsm) == {LATENT, PROBABILITY}
    with h5py.File(tmp_path / "disk.h5ad") as file:
        assert dict(file["obsm"].attrs) == {"encoding-type": "dict", "encoding-version": "0.1.0"}


def test_annotating_again_and_again_does_not_grow_the_file(bundle: Bundle, tmp_path: Path) -> None:
    tiny(cells={"a": 3000}).write_h5ad(tmp_path / "0.h5ad")
    for turn in range(4):
        on_disk(tmp_path / f"{turn}.h5ad", bundle, tmp_path / f"{turn + 1}.h5ad")
    growth = (tmp_path / "4.h5ad").stat().st_size - (tmp_path / "2.h5ad").stat().st_size
    assert growth < 3000 * 4  # not by a number per cell; HDF5 does not give back the place of the types' names


@pytest.mark.usefixtures("small_chunks")
def test_the_first_types_alone_are_what_they_are_in_memory(bundle: Bundle, tmp_path: Path) -> None:
    adata = tiny()
    adata.write_h5ad(tmp_path / "0.h5ad")
    for turn, top_k in enumerate((2, None, 2, 2, 99)):  # in the place of what is there
        found = on_disk(tmp_path / f"{turn}.h5ad", bundle, tmp_path / f"{turn + 1}.h5ad", top_k=top_k).obsm[PROBABILITY]
        expected = adata.copy()
        annotate.annotate(expected, from_anndata(expected, FIELDS), bundle, top_k=top_k)
        if top_k is None:
            pd.testing.assert_frame_equal(found, expected.obsm[PROBABILITY], rtol=1e-5)
            continue
        kept = expected.obsm[PROBABILITY]
        assert sp.isspmatrix_csr(found) and found.has_canonical_format
        assert np.array_equal(found.indptr, kept.indptr) and np.array_equal(found.indices, kept.indices)
        assert (found.dtype, found.indices.dtype, found.shape) == (np.float32, np.int32, (140, 3))
        np.testing.assert_allclose(found.data, kept.data, rtol=1e-5)


# --- what goes through memory


def older_table(path: Path) -> None:
    with h5py.File(path, "a") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        for name in ("celltype", "tech"):
            del obs[name]
        obs.attrs["column-order"] = np.array([], dtype=float)


def columns_first(path: Path) -> None:
    adata = tiny()
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(path)


def numbered(path: Path) -> None:
    with h5py.File(path, "a") as file:
        names = file["obs/_index"][()]
        del file["obs/_index"]
        anndata.io.write_elem(
            file, "obs/_index", pd.array([name.decode() for name in names], dtype="string").astype(object)
        )
        del file["obs/_index"]
        anndata.io.write_elem(file, "obs/_index", pd.Categorical([name.decode() for name in names]))


@pytest.mark.parametrize("make", [older_table, columns_first, numbered])
def test_what_has_no_rows_on_disk_is_read_whole(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    done("predict", "cells.h5ad", "--model", "model", "-o", "expected.h5ad", "-q")
    make(Path("cells.h5ad"))
    monkeypatch.setattr(stored, "annotate_file", lambda *_: pytest.fail("its rows cannot be read by themselves"))
    done("predict", "cells.h5ad", "--model", "model", "-o", "out.h5ad", "-q")
    expected, found = read_h5ad("expected.h5ad"), read_h5ad("out.h5ad")
    assert found.obs[LABEL].tolist() == expected.obs[LABEL].tolist()
    assert np.allclose(found.obsm[LATENT], expected.obsm[LATENT], atol=1e-5)


# --- faults


def put(value: float, *places: tuple[int, int]) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        for place in places or ((110, 7),):
            adata.X[place] = value

    return change


def all_at_once(adata: AnnData) -> None:
    put(np.nan, (3, 1), (100, 2))(adata)
    put(np.inf, (120, 5))(adata)
    put(-1, (70, 3), (139, 39), (69, 4))(adata)
    adata.var_names = ["A", "A", *adata.var_names[2:]]


FAULTS: dict[str, tuple[Callable[[AnnData], object], Fields]] = {
    "NaN": (put(np.nan), FIELDS),
    "infinite": (put(np.inf), FIELDS),
    "negative": (put(-2), FIELDS),
    "all": (all_at_once, Fields(None, "lab", gene_key="symbol")),
    "duplicate genes": (all_at_once, FIELDS),
    "no logarithms": (lambda _: None, Fields(None, None, values="log")),
    "layer": (lambda _: None, Fields(None, None, layer="count")),
    "no values": (lambda adata: setattr(adata, "X", None), FIELDS),
    "batches missing": (lambda adata: adata.obs.__setitem__("lab", ["x", None] * 70), Fields(None, "lab")),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize(("change", "fields"), FAULTS.values(), ids=FAULTS)
def test_faults_are_told_as_from_memory(
    change: Callable[[AnnData], object], fields: Fields, form: Callable[[np.ndarray], object], tmp_path: Path
) -> None:
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray()
    change(adata)
    if adata.X is not None:
        adata.X = form(adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError) as expected:
        from_anndata(read_h5ad(tmp_path / "cells.h5ad"), fields)
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None and cells.has_rows(fields.layer)
    with pytest.raises(DataError) as found:
        cells.check(fields)
    assert found.value.faults == expected.value.faults


@pytest.mark.parametrize("shape", [(0, 40), (140, 0)])
def test_nothing_to_annotate(shape: tuple[int, int], tmp_path: Path) -> None:
    tiny()[: shape[0], : shape[1]].copy().write_h5ad(tmp_path / "cells.h5ad")
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None
    with pytest.raises(DataError, match="the data hold no"):
        cells.check(FIELDS)


def cut_values(file: h5py.File) -> None:
    data = file["X/data"][()]
    del file["X/data"]
    file["X/data"] = data[: len(data) // 2]


def not_monotonous(file: h5py.File) -> None:
    file["X/indptr"][70] = 10**6


@pytest.mark.parametrize("spoil", [cut_values, not_monotonous, lambda file: file.pop("X/indices")])
def test_damage_is_told_before_anything_is_written(
    spoil: Callable[[h5py.File], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    with h5py.File("cells.h5ad", "a") as file:
        spoil(file)
    before = tree(Path())
    ran = run("predict", "cells.h5ad", "--model", "model", "-o", "out.h5ad")
    assert ran.status == 2 and "cells.h5ad cannot be read as AnnData" in ran.err.splitlines()[-1]
    assert tree(Path()) == before


SCDGN = "import sys; sys.dont_write_bytecode = True; from scdgn.cli import main; main()"


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a full disk, as HDF5 sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("room", [10, 2_000, 10_000, 20_000, 40_000])
def test_a_disk_that_fills_up_beyond_the_copy(room: int, bundle: Bundle, tmp_path: Path) -> None:
    """HDF5 would end in a segmentation fault, were it told; see `scdgn.files.hdf5_output`."""
    tiny(cells={"a": 1500}).write_h5ad(tmp_path / "cells.h5ad")
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None
    with files_up_to((tmp_path / "cells.h5ad").stat().st_size + room), pytest.raises(OSError) as caught:
        annotate_file(cells.check(FIELDS), bundle, tmp_path / "out.h5ad")
    assert caught.value.errno == errno.EFBIG


def test_prediction_ends_at_the_first_write_that_fails(
    bundle: Bundle, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(cells={"a": 1500}).write_h5ad(tmp_path / "cells.h5ad")
    cells = open_stored(tmp_path / "cells.h5ad")
    assert cells is not None
    predict, seen = stored.predictions, []
    monkeypatch.setattr(stored, "predictions", lambda *given: seen.append(1) or predict(*given))
    with files_up_to((tmp_path / "cells.h5ad").stat().st_size + 10), pytest.raises(OSError):
        annotate_file(cells.check(FIELDS), bundle, tmp_path / "out.h5ad")
    assert len(seen) <= 1


def test_a_full_disk_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(cells={"a": 500, "b": 500, "c": 500}).write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    before = tree(Path())
    size = Path("cells.h5ad").stat().st_size + 2_000
    words = ("predict", "cells.h5ad", "--model", "model", "-o", "cells.h5ad", "-q")
    ran = subprocess.run(
        [sys.executable, "-c", SCDGN, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert ran.returncode == 2, ran
    assert ran.stderr.startswith("error: cannot write ") and "free some space" in ran.stderr
    assert tree(Path()) == before


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    before = tree(Path())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "predictions", interrupt)
    assert run("predict", "cells.h5ad", "--model", "model", "-o", "cells.h5ad", "-q").status == 130
    assert tree(Path()) == before


def test_memory_does_not_grow_with_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read whole, the larger file would take 200 MB more than the smaller."""
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("small.h5ad")
    done("train", "small.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    for name, cells in (("few", 70_000), ("many", 300_000)):
        with h5py.File(f"{name}.h5ad", "w") as file:
            anndata.io.write_elem(
                file, "/", AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(cells)]), var=tiny().var)
            )
            x = file.create_group("X")
            x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [cells, 40]})
            counts = tiny().X
            x["indptr"] = np.arange(cells + 1) * 40
            x["indices"] = np.tile(np.arange(40, dtype=np.int32), cells)
            x["data"] = np.resize(counts.toarray(), cells * 40)
    peaks = [peak("predict", f"{name}.h5ad", "--model", "model", "-o", "out.h5ad", "-q") for name in ("few", "many")]
    assert peaks[1] - peaks[0] < 100, peaks  # 27 measured


PEAK = """
import re, sys
from scdgn.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def peak(*words: str) -> float:
    """Megabytes resident at most."""
    ran = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, timeout=120, check=True)
    return int(ran.stdout) / 1024

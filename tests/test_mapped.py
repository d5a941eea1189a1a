"""Values that do not fit in memory: what is read from a shelf is what is read into memory."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells import mapped, portions, shelf, streamed
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.mapped import COUNTS, GENES, VALUES, MappedRows
from scdgn.cells.shelf import READ, SHELF, WHOLE, Shelf
from scdgn.cells.sources import Source, TrainingCells, read
from scdgn.errors import DataError, OutputError
from scdgn.search.folder import StudyFolder
from scdgn.search.plan import plan
from scdgn.search.shown.watching import Watcher
from scdgn.search.stages.job import Interrupted
from scdgn.search.studies import run, shelved
from scdgn.search.study.settings import StudySettings
from tests.faults import done, tiny

CELLS = {"a": 60, "b": 60, "c": 80, "d": 40}
FIELDS = Fields("celltype", "tech")
SPACE = {"hidden": [8, 12], "latent": 4, "domain_code": 4, "epochs": [2, 3]}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No values fit in memory, and they are read some cells at a time."""
    monkeypatch.setattr(streamed, "MAPPED", 0)
    monkeypatch.setattr(portions, "VALUES_AT_ONCE", 900)


@pytest.fixture
def shelves() -> Iterator[Callable[..., Shelf]]:
    """Makes shelves that are closed."""
    with ExitStack() as opened:

        def made(*given: Any, **named: Any) -> Shelf:
            return opened.enter_context(closing(Shelf(*given, **named)))

        yield made


def written(place: Path, rows: sp.csr_matrix) -> MappedRows:
    place.mkdir(exist_ok=True)
    rows.data.astype(np.float32).tofile(place / VALUES)
    rows.indices.astype(np.int32).tofile(place / GENES)
    np.diff(rows.indptr).astype(np.int64).tofile(place / COUNTS)
    return MappedRows.open(place, rows.shape[1])


def random_rows(seed: int, cells: int = 30, genes: int = 12) -> sp.csr_matrix:
    draws = np.random.default_rng(seed)
    return sp.csr_matrix(draws.poisson(0.4, (cells, genes)).astype(np.float32))


def same_matrix(one: Any, other: Any) -> None:
    assert one.shape == other.shape and (sp.csr_matrix(one) != sp.csr_matrix(other)).nnz == 0


def same_dataset(one: Dataset, other: Dataset) -> None:
    same_matrix(one.matrix, other.matrix)
    assert (one.values, one.cell_types, one.batch_names) == (other.values, other.cell_types, other.batch_names)
    for name in ("genes", "cells", "labels", "batches"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.fingerprint() == other.fingerprint()


def same_cells(one: TrainingCells, other: TrainingCells) -> None:
    same_dataset(one.dataset, other.dataset)
    assert (one.notes, one.declared, one.test_batches) == (other.notes, other.declared, other.test_batches)
    for name in ("train", "test", "scored", "validation"):
        assert np.array_equal(getattr(one.split, name), getattr(other.split, name))
    for mine, theirs in zip(one.unlabeled, other.unlabeled, strict=True):
        same_dataset(mine, theirs)


# Rows


@settings(max_examples=30)
@given(st.integers(0, 9), st.lists(st.integers(0, 29), max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_rows_are_those_of_the_matrix(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: list[int], start: int, stop: int
) -> None:
    matrix = random_rows(seed)
    there = written(tmp_path_factory.mktemp("rows"), matrix)
    chosen = np.array(rows, dtype=np.int64)
    for which in (chosen, np.isin(np.arange(30), chosen), slice(start, stop), slice(None)):
        same_matrix(there[which], matrix[which])
    again = there.take(chosen)
    assert again.values is there.values and again.shape == matrix[chosen].shape
    same_matrix(again[:], matrix[chosen])


def test_no_more_is_copied_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = written(tmp_path, random_rows(0))
    monkeypatch.setattr(mapped, "LARGEST", 8 * there.counts[:5].sum())
    assert there[:5].shape == (5, 12)
    with pytest.raises(MemoryError, match="6 cells take"):
        there[:6]


def test_another_process_maps_the_same_files(tmp_path: Path) -> None:
    there = written(tmp_path / "rows", random_rows(1)).take(np.array([4, 2]))
    sent = pickle.dumps(there)
    assert len(sent) < 1000
    same_matrix(pickle.loads(sent)[:], there[:])
    shutil.rmtree(tmp_path / "rows")
    with pytest.raises(DataError, match="which this machine does not see"):
        pickle.loads(sent)


# What is read


def raw_and_layers(adata: AnnData) -> AnnData:
    adata.raw = adata
    adata.layers["shifted"] = sp.csr_matrix(adata.X.multiply(2))
    return adata[:, :20].copy()


def with_antibodies(adata: AnnData) -> AnnData:
    adata.var["feature_types"] = ["Gene Expression"] * 35 + ["Antibody Capture"] * 5
    return adata


def logarithms(adata: AnnData) -> AnnData:
    adata.X = sp.csr_matrix(adata.X.multiply(1e4 / adata.X.sum(axis=1)))
    adata.X.data = np.log2(1 + adata.X.data).astype(np.float32)
    return adata


def twice(adata: AnnData) -> AnnData:
    adata.var_names = [*adata.var_names[:-2], *adata.var_names[:2]]
    return adata


def without_some_labels(adata: AnnData) -> AnnData:
    adata.obs["celltype"] = np.where(np.arange(adata.n_obs) % 7 == 0, "", adata.obs["celltype"].astype(str))
    return adata


def stored_as(form: Callable[[Any], Any]) -> Callable[[AnnData], AnnData]:
    def changed(adata: AnnData) -> AnnData:
        adata.X = form(adata.X)
        return adata

    return changed


FILES: dict[str, tuple[Callable[[AnnData], AnnData], Source]] = {
    "counts": (lambda adata: adata, Source(fields=FIELDS, test_batch="d")),
    "columns": (stored_as(sp.csc_matrix), Source(fields=FIELDS, test_batch="d")),
    "dense": (stored_as(lambda x: x.toarray()), Source(fields=FIELDS, test_batch="d")),
    "integers": (stored_as(lambda x: x.astype(np.int64)), Source(fields=FIELDS, test_batch="d")),
    "no test": (lambda adata: adata, Source(fields=FIELDS)),
    "raw": (raw_and_layers, Source(fields=replace(FIELDS, layer="raw"), test_batch="d")),
    "layer": (raw_and_layers, Source(fields=replace(FIELDS, layer="shifted"), test_batch="d")),
    "antibodies": (with_antibodies, Source(fields=FIELDS, test_batch="d")),
    "logarithms": (logarithms, Source(fields=FIELDS, test_batch="d")),
    "sums": (twice, Source(fields=replace(FIELDS, duplicate_genes="sum"), test_batch="d")),
    "dropped": (without_some_labels, Source(fields=replace(FIELDS, unlabeled="drop"), test_batch="d")),
    "unlabelled": (without_some_labels, Source(fields=replace(FIELDS, unlabeled="domain"), test_batch="d", adapt=True)),
    "a query": (without_some_labels, Source(fields=replace(FIELDS, unlabeled="drop"), query="d", adapt=True)),
}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", FILES)
def test_what_is_mapped_is_what_is_read(name: str, tmp_path: Path, shelves: Callable[..., Shelf]) -> None:
    change, source = FILES[name]
    write_h5ad(change(tiny(cells=CELLS)), tmp_path / "cells.h5ad")
    source = replace(source, data=tmp_path / "cells.h5ad")
    place = shelves(tmp_path / SHELF)
    there, again = (read(source, shelf=place) for _ in range(2))
    assert isinstance(there.dataset.x, MappedRows)
    expected = read(source)
    same_cells(there, expected)
    same_cells(again, expected)
    assert len(list((tmp_path / SHELF).glob(f"*/{WHOLE}"))) == 1


@pytest.mark.usefixtures("large")
def test_a_query_of_its_own_is_mapped_too(tmp_path: Path, shelves: Callable[..., Shelf]) -> None:
    for name, cells in (("cells", CELLS), ("query", {"e": 30, "f": 20})):
        write_h5ad(tiny(cells=cells), tmp_path / f"{name}.h5ad")
    source = Source(data=tmp_path / "cells.h5ad", fields=FIELDS, query=str(tmp_path / "query.h5ad"), adapt=True)
    there = read(source, shelf=shelves(tmp_path / SHELF))
    assert isinstance(there.unlabeled[0].x, MappedRows)
    same_cells(there, read(source))


@pytest.mark.usefixtures("large")
def test_faults_are_told_and_nothing_stays(tmp_path: Path, shelves: Callable[..., Shelf]) -> None:
    adata = tiny(cells=CELLS)
    adata.X.data[3] = -1
    write_h5ad(adata, tmp_path / "cells.h5ad")
    source = Source(data=tmp_path / "cells.h5ad", fields=FIELDS, test_batch="d")
    with pytest.raises(DataError) as expected:
        read(source)
    with pytest.raises(DataError) as told:
        read(source, shelf=shelves(tmp_path / SHELF))
    assert told.value.faults == expected.value.faults
    assert not list((tmp_path / SHELF).glob(f"*/{VALUES}"))
    with pytest.raises(DataError, match="obs has no column 'type'"):
        read(replace(source, fields=Fields("type", "tech")), shelf=shelves(tmp_path / SHELF))


@pytest.mark.usefixtures("large")
def test_what_is_read_otherwise_is_another_entry(tmp_path: Path, shelves: Callable[..., Shelf]) -> None:
    write_h5ad(tiny(cells=CELLS), tmp_path / "cells.h5ad")
    source = Source(data=tmp_path / "cells.h5ad", fields=FIELDS, test_batch="d")
    place = shelves(tmp_path / SHELF)

    def entries() -> int:
        return len(list((tmp_path / SHELF).glob(f"*/{WHOLE}")))

    read(source, shelf=place)
    read(replace(source, test_batch="a"), shelf=place)
    assert entries() == 1
    read(replace(source, fields=replace(FIELDS, values="linear")), shelf=place)
    assert entries() == 2
    write_h5ad(tiny(cells=CELLS, seed=5), tmp_path / "cells.h5ad")
    same_cells(read(source, shelf=place), read(source))
    assert entries() == 3


# What cuts the writing off


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_h5ad(tiny(cells=CELLS), tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


class Cut(Exception):
    """Whatever ends a process."""


def cut_after(calls: int) -> Callable[[], None]:
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise Cut

    return check


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("torn", [False, True])
def test_what_was_written_is_not_written_again(
    file: Path, torn: bool, monkeypatch: pytest.MonkeyPatch, shelves: Callable[..., Shelf]
) -> None:
    source = Source(data=file, fields=FIELDS, test_batch="d")
    expected, folder = read(source), file.parent / SHELF
    asked: list[int] = []
    row_portions = portions.row_portions

    def counted(stored: Any, at_once: int, start: int = 0) -> Iterator[Any]:
        asked.append(start)
        return row_portions(stored, at_once, start)

    monkeypatch.setattr(portions, "row_portions", counted)
    calls, there = 1, None
    while there is None:
        # Not until the values were looked at is any of them written.
        calls = 2 if list(folder.glob(f"*/{READ}")) else calls + 1
        with suppress(Cut):
            there = read(source, shelf=shelves(folder, check=cut_after(calls)))
        if torn:  # in the midst of a row
            for path in folder.glob(f"*/{VALUES}"):
                with path.open("a+b") as values:
                    values.write(b"torn")
            for path in folder.glob(f"*/{COUNTS}"):
                with path.open("a+b") as counts:
                    counts.write(b"abc")
    same_cells(there, expected)
    starts = [start for start in asked if start]
    assert len(starts) > 2 and starts == sorted(set(starts))


def _killed_there(file: Path, checks: int, syncs: int) -> None:
    """In a process of its own, which gets no further than so many portions, or arrays written."""
    streamed.MAPPED, portions.VALUES_AT_ONCE = 0, 900

    def killing(after: int) -> Callable[..., None]:
        left = iter(range(after))

        def kill(*_: Any) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        return kill

    shelf.os.fdatasync = killing(syncs)
    read(Source(data=file, fields=FIELDS), shelf=Shelf(file.parent / SHELF, check=killing(checks)))


@pytest.mark.usefixtures("large")
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(file: Path, shelves: Callable[..., Shelf]) -> None:
    source, folder = Source(data=file, fields=FIELDS), file.parent / SHELF
    far, sizes, looked_at = 1000, [0], []
    # While values are looked at; with the values of a portion written, its genes not; both, but not its counts.
    for checks, syncs in ((2, far), (far, 2), (far, 5)):
        process = multiprocessing.get_context("spawn").Process(target=_killed_there, args=(file, checks, syncs))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        looked_at.append(len(list(folder.glob(f"*/{READ}"))))
        sizes += [path.stat().st_size for path in folder.glob(f"*/{COUNTS}")]
    assert looked_at == [0, 1, 1] and sizes == sorted(set(sizes)) and len(sizes) == 3
    calls: list[None] = []
    there = read(source, shelf=shelves(folder, check=lambda: calls.append(None)))
    same_cells(there, read(source))
    stored = there.dataset.x.counts
    rest = int(stored[sizes[-1] // 8 :].sum())
    assert 0 < rest < int(stored.sum()) and len(calls) <= rest // (900 - int(stored.max())) + 1  # not looked at again
    (entry,) = folder.glob("*/")
    assert sorted(path.name for path in entry.iterdir()) == sorted([COUNTS, GENES, VALUES, WHOLE])


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", [VALUES, GENES, COUNTS, WHOLE])
def test_what_is_damaged_is_mended(file: Path, name: str, shelves: Callable[..., Shelf]) -> None:
    source, place = Source(data=file, fields=FIELDS, test_batch="d"), shelves(file.parent / SHELF)
    read(source, shelf=place)
    (damaged,) = (file.parent / SHELF).glob(f"*/{name}")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    same_cells(read(source, shelf=place), read(source))


@pytest.mark.usefixtures("large")
def test_a_full_disk_is_told_before_and_while_it_fills(
    file: Path, monkeypatch: pytest.MonkeyPatch, shelves: Callable[..., Shelf]
) -> None:
    source, folder = Source(data=file, fields=FIELDS, test_batch="d"), file.parent / SHELF
    usage = shutil.disk_usage(file)
    with monkeypatch.context() as patched:
        patched.setattr(shelf.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OutputError, match=r"do not fit in memory and take 0\.0 GB in .* free some space there"):
            read(source, shelf=shelves(folder))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shelf.os, "fdatasync", full)
        with pytest.raises(OutputError, match=r"^cannot write .*No space left on device.* the same command goes on$"):
            read(source, shelf=shelves(folder))
    assert not list(folder.glob(f"*/{WHOLE}"))
    same_cells(read(source, shelf=shelves(folder)), read(source))


def _read_there(file: Path) -> tuple[str, int]:
    """In a process of its own: the cells, and how much was put in order."""
    streamed.MAPPED, portions.VALUES_AT_ONCE = 0, 900
    said: list[str] = []
    with closing(Shelf(file.parent / SHELF, said.append)) as place:
        cells = read(Source(data=file, fields=FIELDS, test_batch="d"), shelf=place)
    return cells.dataset.fingerprint(), len(said)


def test_of_processes_that_begin_together_one_writes(file: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(_read_there, [file] * 3))
    assert {fingerprint for fingerprint, _ in found} == {read(Source(data=file, fields=FIELDS)).dataset.fingerprint()}
    assert sorted(said for _, said in found) == [0, 0, 1]


@pytest.mark.usefixtures("large")
def test_an_entry_stays_as_long_as_somebody_uses_it(file: Path, shelves: Callable[..., Shelf]) -> None:
    source, folder = Source(data=file, fields=FIELDS), file.parent / SHELF
    one, other, looking = (shelves(folder) for _ in range(3))
    cells = read(source, shelf=one)
    read(source, shelf=other)
    one.clear()
    assert list(folder.glob(f"*/{WHOLE}"))
    read(source, shelf=looking)
    looking.clear(found=False)
    other.close()
    assert list(folder.glob(f"*/{WHOLE}"))
    read(source, shelf=looking)
    looking.clear()
    assert not folder.exists()
    same_cells(cells, read(source))  # what is mapped stays readable


# The search


class _Saying(Watcher):
    """Keeps what is noted."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def note(self, text: str) -> None:
        self._said.append(text)


def settings_of(file: Path, name: str, **changes: Any) -> StudySettings:
    given: dict[str, Any] = {
        "source": Source(data=file, fields=FIELDS, test_batch="d"), "method": "scdgn", "trials": 3, "space": SPACE,
        "confirm": 2, "confirm_seeds": 2, "final_seeds": 2, "studies": file.parent / name, "device": "cpu",
    }  # fmt: skip
    return StudySettings(name="cells", **{**given, **changes})


def results(folder: Path) -> Any:
    """What came out, without what every run has of its own."""
    document = json.loads((folder / "summary.json").read_text())
    own = ("checksum", "id", "trained", "padding")
    return {key: value for key, value in document.items() if key not in own}


@pytest.mark.parametrize("changes", [{}, {"refit_all": True, "correct": "always"}], ids=["plain", "refitted"])
def test_a_search_comes_to_the_same(file: Path, changes: dict[str, Any], request: pytest.FixtureRequest) -> None:
    run(settings_of(file, "memory", **changes), track=False)
    request.getfixturevalue("large")
    run(settings_of(file, "mapped", **changes), track=False)
    memory, mapped_ones = (StudyFolder(file.parent / name / "cells") for name in ("memory", "mapped"))
    assert results(mapped_ones.path) == results(memory.path)
    weights = "weights.safetensors"
    assert (mapped_ones.model / weights).read_bytes() == (memory.model / weights).read_bytes()
    for number in range(3):
        with np.load(memory.predictions(number)) as one, np.load(mapped_ones.predictions(number)) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not (file.parent / "mapped" / SHELF).exists()


@pytest.mark.parametrize("adapts", [False, True])
def test_a_training_comes_to_the_same(
    file: Path, adapts: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(file.parent)
    words = [
        "train", "cells.h5ad", "--labels-key", "celltype", "--batch-key", "tech", "--test-batch", "d", "--json",
        "--set", "hidden=8", "--set", "epochs=2", "--seeds", "2", *["--adapt"] * adapts, "-o",
    ]  # fmt: skip
    done(*words, "memory")
    request.getfixturevalue("large")
    done(*words, "mapped")
    one, other = (Path(name, "weights.safetensors").read_bytes() for name in ("memory", "mapped"))
    assert one == other and sorted(path.name for path in Path().iterdir()) == ["cells.h5ad", "mapped", "memory"]


@pytest.mark.usefixtures("large")
def test_what_was_cut_off_finds_its_values(file: Path) -> None:
    asked = settings_of(file, "studies")
    said: list[str] = []
    with pytest.raises(Interrupted), shelved(asked, _Saying(said), lambda: False) as place:
        read(asked.source, shelf=place)
        raise Interrupted
    assert len(said) == 1 and "put in order" in said[0]
    run(asked, watch=_Saying(said), track=False)
    assert sum("put in order" in text for text in said) == 1 and not (file.parent / "studies" / SHELF).exists()


@pytest.mark.usefixtures("large")
def test_the_plan_tells_the_disk_and_writes_nothing(file: Path) -> None:
    asked = settings_of(file, "studies")
    assert asked.source.data is not None
    stored = anndata.read_h5ad(asked.source.data).X.nnz
    (lines,) = plan(asked)
    assert any(line.startswith(f"disk: at most {8 * stored / 1e9:,.1f} GB in ") for line in lines)
    assert not (file.parent / "studies").exists()

"""Groups of batches, such as the studies of samples: folds leave them out whole, and so may a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.sources import Source, TrainingCells, read
from scdgn.cells.splits import SLACK, leave_one_domain_out, unscored_types
from scdgn.errors import DataError
from scdgn.search.folder import StudyFolder
from scdgn.search.trials.cells import seal
from tests.faults import FAST, KEYS, done, run, tiny

CELLS = {"a1": 30, "a2": 40, "b1": 40, "b2": 30, "c1": 60, "d1": 50}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Six batches in four groups, called by their first letters."""
    adata = tiny(cells=CELLS)
    adata.obs["study"] = adata.obs["tech"].astype(str).str[0]
    adata.obs["cross"] = np.arange(adata.n_obs) % 2
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def cells_of(file: Path, *test: str, key: str = "study", **fields: int) -> TrainingCells:
    return read(Source(data=file, fields=Fields("celltype", "tech", group_key=key, **fields), test_batch=test))


@settings(max_examples=60)
@given(
    cells=st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 8)), min_size=1, max_size=120),
    groups=st.lists(st.sampled_from("PQRST"), min_size=9, max_size=9),
    max_folds=st.integers(2, 5),
)
def test_folds_leave_whole_groups_out(cells: list[tuple[int, int]], groups: list[str], max_folds: int) -> None:
    labels, batches = np.array(cells, dtype=np.int64).T
    rows = np.arange(len(labels))
    folds = leave_one_domain_out(labels, batches, rows, "ABCDEFGHI", max_folds, 2, groups)
    for fold in folds:
        out, train = ({groups[code] for code in batches[rows]} for rows in (fold.held_out, fold.train))
        assert not out & train and fold.name == "+".join(sorted(out))
        assert len(set(batches[fold.train])) >= 2
    own = leave_one_domain_out(labels, batches, rows, "ABCDEFGHI", max_folds)
    alone = leave_one_domain_out(labels, batches, rows, "ABCDEFGHI", max_folds, 2, "ABCDEFGHI")
    assert [fold.name for fold in own] == [fold.name for fold in alone]
    for fold, other in zip(own, alone, strict=True):
        np.testing.assert_array_equal(fold.train, other.train)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_rare_types_of_many_donors_are_scored_by_folds_of_as_many_cells(seed: int) -> None:
    draws = np.random.default_rng(seed)
    batches = np.repeat(np.arange(60), draws.integers(20, 60, 60))
    labels = draws.integers(0, 5, len(batches))
    for rare in range(5, 25):  # each in three cells of two donors
        for batch in draws.choice(60, 2, replace=False):
            labels[draws.choice(np.flatnonzero((batches == batch) & (labels < 5)), 3, replace=False)] = rare
    rows = np.arange(len(labels))
    folds = leave_one_domain_out(labels, batches, rows, [f"donor {code}" for code in range(60)])
    assert unscored_types(labels, rows, folds) == ()
    assert max(len(fold.held_out) for fold in folds) <= (1 + SLACK) * len(rows) / 5


def test_a_search_leaves_groups_out_and_calls_folds_by_them(file: Path) -> None:
    cells = cells_of(file, "d1")
    assert cells.groups == ("a", "a", "b", "b", "c", "d") and cells.test_batches == ("d1",)
    sealed = seal(cells, 5, adapt=False)
    assert [fold.name for fold in sealed.folds] == ["a", "b", "c"]
    assert [fold.domains for fold in sealed.folds] == [(0, 1), (2, 3), (4,)]
    assert not [note for note in cells.notes if "of the group" in note]


def test_a_group_that_is_named_is_held_out_whole_and_a_part_of_one_is_told(file: Path) -> None:
    cells = cells_of(file, "a", "d1")
    assert cells.test_batches == ("a1", "a2", "d1") and len(cells.split.test) == 120
    assert not [note for note in cells.notes if "of the group" in note]
    (note,) = (note for note in cells_of(file, "a1").notes if "of the group" in note)
    assert note.startswith("of the group 'a', a1 tests and a2 trains: ") and "--test-batch a " in note


def test_a_batch_in_two_groups_is_told_in_one_line(file: Path) -> None:
    with pytest.raises(DataError, match=r"batch 'a1' lies in several groups of obs\['cross'\] \('0', '1'\)") as error:
        cells_of(file, "d1", key="cross")
    assert len(error.value.faults) == 1 and "and so do 5 more" in str(error.value)
    with pytest.raises(DataError, match=r"no column 'studies' \(--group-key\): did you mean study"):
        cells_of(file, "d1", key="studies")


def test_small_batches_are_taken_together_within_their_group(file: Path) -> None:
    cells = cells_of(file, "d1", min_batch_cells=45)
    assert cells.dataset.batch_names == ("c1", "d1", "small batches of a", "small batches of b")
    assert cells.groups == ("c", "d", "a", "b")


def test_groups_without_a_value_are_told() -> None:
    adata = tiny()
    adata.obs["study"] = adata.obs["tech"].astype(str).replace("c", None)
    with pytest.raises(DataError, match=r"40 of 140 cells have no group in obs\['study'\]"):
        from_anndata(adata, Fields("celltype", "tech", group_key="study"))


def test_the_command_line_takes_groups(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    search = ("search", file, *KEYS, *FAST, "--group-key", "study", "--method", "nn")
    plan = done(*search, "--test-batch", "d", "--dry-run").out
    assert "in 5 domains of 3 groups, 50 sealed" in plan and "\n  a: trains on " in plan
    refused = run(*search, "--test-batch", "e")
    assert refused.status == 2 and "test batch 'e' does not exist" in refused.err
    trained = done("train", file, *KEYS, *FAST, "--group-key", "study", "--test-batch", "a1", "--json")
    assert "a1 tests and a2 trains" in trained.err and trained.record["test_cells"] == 30
    again = ("--trials", 1, "--confirm", 0, "--final-seeds", 1, "--no-ensemble", "--no-track", "-q")
    done(*search, "--test-batch", "d1", "--name", "grouped", *again)
    record = StudyFolder(Path("studies/grouped")).read_settings()
    assert record["data"]["group_key"] == "study"
    done("search", "--name", "grouped", "--no-track", "-q")  # goes on with the groups

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.splits import (
    Blocks,
    block_split,
    hold_out,
    leave_one_domain_out,
    read_blocks,
    stratified_validation,
    unscored_types,
)
from scdgn.core.config import UNLABELED
from scdgn.errors import DataError, SettingsError

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
PBMC_SPLITS = SHARED / "reference" / "pbmc_confounded_splits.json"
PBMC = SHARED / "data" / "pbmc_5batch.h5ad"

CELLS = st.lists(st.tuples(st.integers(UNLABELED, 5), st.integers(0, 8)), min_size=1, max_size=120)


def coded(labels: list[int], batches: list[int]) -> Dataset:
    """A data set of these codes, with types a, b, ... and batches A, B, ..."""
    cells = len(labels)
    return Dataset(
        x=np.ones((cells, 1), dtype=np.float32),
        values="log",
        genes=np.array(["g"]),
        cells=np.array([f"cell{i}" for i in range(cells)]),
        labels=np.array(labels),
        cell_types=tuple("abcdef"[: max(labels) + 1]),
        batches=np.array(batches),
        batch_names=tuple("ABCDEFGHI"[: max(batches) + 1]),
    )


def columns(cells: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, batches = np.array(cells, dtype=np.int64).T
    return labels, batches, np.arange(len(cells))


# Test batches


def single_domain_types(labels: np.ndarray, batches: np.ndarray, rows: np.ndarray) -> tuple[int, ...]:
    """Types that occur in one training domain only, which no leave-one-domain-out fold can score."""
    rows = rows[labels[rows] >= 0]
    pairs = np.unique(np.stack([labels[rows], batches[rows]]), axis=1)  # (2, pairs of type and domain that occur)
    types, domains = np.unique(pairs[0], return_counts=True)
    return tuple(types[domains == 1].tolist())


def test_hold_out_parts_the_cells_by_batch() -> None:
    data = coded([0, 1, 0, UNLABELED, 2, 0, UNLABELED], [0, 0, 1, 1, 2, 2, 2])
    split = hold_out(data, "C")
    assert split.train.tolist() == [0, 1, 2] and split.test.tolist() == [4, 5, 6] and split.scored.tolist() == [5]
    assert split.unscored == 2 and split.validation.tolist() == []
    split = hold_out(data, ["C"], validation_batches=["B"])
    assert split.train.tolist() == [0, 1] and split.validation.tolist() == [2]


def test_hold_out_names_every_unknown_batch_and_what_is_near() -> None:
    data = coded([0, 1], [0, 1])
    with pytest.raises(DataError) as error:
        hold_out(data, ["X", "A"], validation_batches=["Y"])
    assert [("'X'" in fault, "'Y'" in fault) for fault in error.value.faults] == [(True, False), (False, True)]
    assert "found: A, B" in str(error.value)
    with pytest.raises(DataError, match="no labelled cell is left"):
        hold_out(data, ["A", "B"])


# Blocks


@pytest.mark.skipif(not PBMC.exists(), reason="the shared PBMC batches (shared/data) are not there")
def test_blocks_of_the_shared_splits_select_the_cells_counted_there() -> None:
    data = from_anndata(read_h5ad(PBMC), Fields("celltype", "tech"))
    for name, published in json.loads(PBMC_SPLITS.read_text())["splits"].items():
        blocks = read_blocks(f"{PBMC_SPLITS}:{name}")
        assert (blocks.name, blocks.labels_key, blocks.batch_key) == (name, "celltype", "tech")
        split = block_split(data, blocks)
        assert (len(split.train), len(split.test), split.unscored) == (
            published["train_cells"],
            published["test_cells"],
            0,
        )
        assert bits(data.labels[split.train], data.batches[split.train]) == pytest.approx(
            published["mi_bits"], abs=1e-4
        )


def bits(labels: np.ndarray, domains: np.ndarray) -> float:
    """Mutual information as the difference of entropies."""

    def entropy(*codes: np.ndarray) -> float:
        share = np.unique(np.stack(codes), axis=1, return_counts=True)[1] / len(codes[0])
        return float(-(share * np.log2(share)).sum())

    return entropy(labels) + entropy(domains) - entropy(labels, domains)


def test_blocks_leave_unlabelled_cells_and_unnamed_domains_out() -> None:
    data = coded([0, 1, UNLABELED, 2, 2, 1, UNLABELED], [0, 0, 0, 0, 1, 2, 2])
    split = block_split(data, Blocks("one", "C", {"A": ("a", "c")}, "celltype", "tech"))
    assert split.train.tolist() == [0, 3] and split.test.tolist() == [5, 6] and split.scored.tolist() == []


def test_blocks_that_do_not_fit_the_data_name_every_fault() -> None:
    data = coded([0, 1, 0], [0, 1, 2])
    with pytest.raises(DataError) as error:
        block_split(data, Blocks("one", "Z", {"A": ("a", "x"), "Q": ("b",)}, "celltype", "tech"))
    assert len(error.value.faults) == 3
    for text in ("'Z'", "'Q'", "cell type 'x'"):
        assert sum(text in fault for fault in error.value.faults) == 1
    with pytest.raises(DataError, match="no labelled cell is left"):
        block_split(data, Blocks("one", "C", {"A": ("b",)}, "celltype", "tech"))


WHOLE = {
    "test_domain": "C",
    "labels_key": "celltype",
    "batch_key": "tech",
    "splits": {"split1": {"keep": {"A": ["a"], "B": ["b"]}}},
}


def edited(change: Callable[[dict], object]) -> str:
    content = copy.deepcopy(WHOLE)
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{", "split1", "is not JSON"),
        ("[]", "split1", "is not a JSON object"),
        (edited(lambda c: (c.pop("test_domain"), c.update(batch_key=3))), "split1", "'test_domain'.*'batch_key'"),
        (edited(lambda c: c.pop("splits")), "split1", "no object under 'splits'"),
        (json.dumps(WHOLE), "split2", "no split 'split2': did you mean split1"),
        (edited(lambda c: c["splits"]["split1"].update(keep={"A": "a"})), "split1", "no 'keep' that maps"),
        (edited(lambda c: c["splits"].update(split1=None)), "split1", "no 'keep' that maps"),
        (edited(lambda c: c["splits"]["split1"]["keep"].update(C=["a"])), "split1", "trains on its test domain"),
    ],
)
def test_split_files_of_another_form_are_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_blocks(f"{file}:{name}")


def test_split_references_of_another_form_are_refused(tmp_path: Path) -> None:
    for reference in ("splits.json", "splits.json:", ":split1"):
        with pytest.raises(SettingsError, match="FILE:NAME"):
            read_blocks(reference)
    with pytest.raises(DataError, match="cannot be read"):
        read_blocks(f"{tmp_path / 'absent.json'}:split1")


# Leave one domain out


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, max_folds=st.integers(2, 5))
def test_folds_keep_their_promises(cells: list[tuple[int, int]], max_folds: int) -> None:
    labels, batches, everything = columns(cells)
    rows = everything[::2]
    folds = leave_one_domain_out(labels, batches, rows, "ABCDEFGHI", max_folds)
    labelled = rows[labels[rows] != UNLABELED]
    assert len(folds) <= max_folds
    for fold in folds:
        assert sorted([*fold.train, *fold.held_out]) == labelled.tolist()
        assert set(batches[fold.held_out]) == set(fold.domains)
        assert not set(batches[fold.train]) & set(fold.domains)
        assert len(set(batches[fold.train])) >= 2
        assert set(labels[fold.scored]) <= set(labels[fold.train])
        assert not set(fold.unseen_types) & set(labels[fold.train])
        unscored = np.setdiff1d(fold.held_out, fold.scored)
        assert set(labels[unscored]) == set(fold.unseen_types)
        assert fold.coverage == len(fold.scored) / len(fold.held_out) > 0
    assert len({domain for fold in folds for domain in fold.domains}) == sum(len(fold.domains) for fold in folds)
    lonely = single_domain_types(labels, batches, rows)
    assert set(lonely) <= set(unscored_types(labels, rows, folds))


@settings(max_examples=30, deadline=None)
@given(cells=CELLS, seed=st.integers(0, 1000))
def test_folds_do_not_depend_on_the_order_of_the_rows(cells: list[tuple[int, int]], seed: int) -> None:
    labels, batches, rows = columns(cells)
    shuffled = np.random.default_rng(seed).permutation(rows)
    pairs = zip(
        leave_one_domain_out(labels, batches, rows, "ABCDEFGHI"),
        leave_one_domain_out(labels, batches, shuffled, "ABCDEFGHI"),
        strict=True,
    )
    for fold, other in pairs:
        assert fold.name == other.name
        np.testing.assert_array_equal(fold.train, other.train)
        np.testing.assert_array_equal(fold.scored, other.scored)


def test_each_domain_is_left_out_and_scored_on_trained_types_alone() -> None:
    labels, batches, rows = columns([(0, 0), (1, 0), (0, 1), (2, 1), (1, 2), (UNLABELED, 2), (0, 2)])
    folds = leave_one_domain_out(labels, batches, rows, "ABC")
    assert [fold.name for fold in folds] == ["A", "B", "C"]
    assert folds[1].held_out.tolist() == [2, 3] and folds[1].scored.tolist() == [2]
    assert folds[1].unseen_types == (2,) and folds[1].coverage == 0.5
    assert single_domain_types(labels, batches, rows) == (2,)


def test_many_domains_are_grouped_by_size() -> None:
    sizes = [100, 10, 20, 30, 40, 50, 60]
    batches = np.repeat(np.arange(7), sizes)
    labels = np.arange(len(batches)) % 3
    folds = leave_one_domain_out(labels, batches, np.arange(len(batches)), "ABCDEFG")
    assert len(folds) == 5
    assert sorted(len(fold.held_out) for fold in folds) == [50, 50, 50, 60, 100]


def test_types_of_one_group_of_domains_are_never_scored() -> None:
    # Type 2 is in domains A and B alone; of four domains in two groups, A and D, the largest and smallest, are one.
    batches = np.repeat([0, 1, 2, 3], [9, 8, 7, 6])
    labels = np.arange(30) % 2
    labels[[0, 25]] = 2  # in A and D
    rows = np.arange(30)
    folds = leave_one_domain_out(labels, batches, rows, "ABCD", max_folds=2)
    assert [fold.name for fold in folds] == ["A+D", "B+C"]
    assert single_domain_types(labels, batches, rows) == ()
    assert unscored_types(labels, rows, folds) == (2,)


def test_too_few_domains_make_no_fold() -> None:
    labels, batches, rows = columns([(0, 0), (1, 0), (0, 1), (1, 1), (UNLABELED, 2)])
    assert leave_one_domain_out(labels, batches, rows, "ABC") == ()
    assert len(leave_one_domain_out(labels, batches, rows, "ABC", min_training_domains=1)) == 2


# Validation inside the training cells


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_validation_takes_its_share_of_every_type(cells: list[tuple[int, int]], fraction: float, seed: int) -> None:
    labels, batches, rows = columns(cells)
    train, validation = stratified_validation(labels, rows, fraction, seed, batches)
    assert sorted([*train, *validation]) == rows[labels != UNLABELED].tolist()
    for cell_type in set(labels[labels != UNLABELED]):
        total, validated = (labels == cell_type).sum(), (labels[validation] == cell_type).sum()
        assert validated == 0 if total == 1 else 1 <= validated < total
        assert abs(validated - fraction * total) <= 1
        if total > 1 and 1 <= fraction * total <= total - 1:
            for batch in set(batches[labels == cell_type]):
                here = (labels == cell_type) & (batches == batch)
                assert abs(here[validation].sum() - validated / total * here.sum()) < 1 + 1e-9


@settings(max_examples=30, deadline=None)
@given(cells=CELLS, seed=st.integers(0, 1000))
def test_validation_is_decided_by_the_seed_and_not_by_the_order(cells: list[tuple[int, int]], seed: int) -> None:
    labels, batches, rows = columns(cells)
    shuffled = np.random.default_rng(seed).permutation(rows)
    once = stratified_validation(labels, rows, 0.2, seed, batches)
    again = stratified_validation(labels, shuffled, 0.2, seed, batches)
    for rows_once, rows_again in zip(once, again, strict=True):
        np.testing.assert_array_equal(rows_once, rows_again)


def test_other_seeds_validate_other_cells() -> None:
    labels = np.zeros(100, dtype=np.int64)
    drawn = {tuple(stratified_validation(labels, np.arange(100), 0.2, seed)[1]) for seed in range(5)}
    assert len(drawn) == 5 and {len(rows) for rows in drawn} == {20}


def test_neighbouring_rows_can_be_validated_together() -> None:
    labels = np.zeros(100, dtype=np.int64)
    assert any(1 in np.diff(stratified_validation(labels, np.arange(100), 0.2, seed)[1]) for seed in range(5))


def test_each_batch_gives_its_share_of_a_type() -> None:
    labels, batches = np.zeros(100, dtype=np.int64), np.tile([0, 1, 2, 2, 2], 20)
    for seed in range(5):
        _, validation = stratified_validation(labels, np.arange(100), 0.2, seed, batches)
        assert np.bincount(batches[validation]).tolist() == [4, 4, 12]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fractions_outside_0_and_1_are_refused(fraction: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        stratified_validation(np.zeros(3, dtype=np.int64), np.arange(3), fraction, 0)

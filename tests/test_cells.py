"""The seal: what the search is given holds no label of a test cell."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import UNLABELED
from scdgn.model.fitting import with_types_of
from scdgn.search.trials.cells import FOLD_TRAINS_ON, SearchCells, seal, without_labels
from tests.faults import tiny

DOMAINS = {"a": 40, "b": 40, "c": 40, "d": 30}


def cells_of(test: str | None = "d", unlabeled: tuple[Dataset, ...] = (), **changes: Any) -> TrainingCells:
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(**{"cells": DOMAINS, **changes}), reading)
    everyone, nobody = np.arange(len(dataset)), np.arange(0)
    split = (
        hold_out(dataset, test) if test else replace(hold_out(dataset, "d"), train=everyone, test=nobody, scored=nobody)
    )
    return TrainingCells(dataset, split, reading, (test,) if test else (), unlabeled, ())


def arrays_in(thing: object) -> list[np.ndarray]:
    """Every array that can be reached from an object."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, tuple | list):
        return [array for each in thing for array in arrays_in(each)]
    if is_dataclass(thing):
        return [array for entry in fields(thing) for array in arrays_in(getattr(thing, entry.name))]
    return []


def same(one: SearchCells, other: SearchCells) -> bool:
    mine, theirs = arrays_in(one), arrays_in(other)
    assert one.test is not None and other.test is not None
    assert (one.test.x != other.test.x).nnz == 0
    assert one.dataset.fingerprint() == other.dataset.fingerprint()
    return len(mine) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("adapt", [False, True])
def test_no_label_of_a_test_cell_passes_the_seal(adapt: bool) -> None:
    cells = cells_of()
    cells = replace(cells, unlabeled=(cells.dataset.take(cells.split.test),))
    sealed = seal(cells, 5, adapt)
    labels = cells.dataset.labels.copy()
    labels[cells.split.test] = np.random.default_rng(0).permutation(labels[cells.split.test])
    shuffled = replace(cells.dataset, labels=labels)
    other = replace(cells, dataset=shuffled, unlabeled=(shuffled.take(cells.split.test),))
    assert not np.array_equal(shuffled.labels, cells.dataset.labels)
    assert same(sealed, seal(other, 5, adapt))

    assert sealed.test is not None
    for query in (sealed.test, *sealed.unlabeled):
        assert (query.labels == UNLABELED).all() and query.cell_types == ()
    assert not any(np.shares_memory(array, cells.dataset.labels) for array in arrays_in(sealed))
    assert len(sealed.unlabeled) == adapt


def test_training_cells_are_those_of_the_split_with_their_labels() -> None:
    cells = cells_of()
    sealed = seal(cells, 5, adapt=False)
    names = np.array(cells.dataset.cell_types)[cells.dataset.labels[cells.split.train]]
    assert np.array_equal(np.array(sealed.dataset.cell_types)[sealed.dataset.labels], names)
    assert np.array_equal(sealed.dataset.cells, cells.dataset.cells[cells.split.train])
    assert np.array_equal(sealed.rows, np.arange(120))
    assert [fold.name for fold in sealed.folds] == ["a", "b", "c"]


def test_a_type_of_the_test_cells_alone_shapes_nothing() -> None:
    cells = cells_of(present={"a": ("B", "NK"), "b": ("B", "NK"), "c": ("B", "NK")})
    sealed = seal(cells, 5, adapt=False)
    assert cells.dataset.cell_types == ("B", "NK", "T")
    assert sealed.dataset.cell_types == ("B", "NK")


def test_types_are_coded_anew_and_cells_without_one_stay_so() -> None:
    dataset = cells_of().dataset
    labels = np.where(dataset.labels == 0, UNLABELED, dataset.labels)
    coded = with_types_of(replace(dataset, labels=labels), np.arange(len(labels)))
    assert coded.cell_types == dataset.cell_types[1:]
    assert np.array_equal(coded.labels, np.where(labels == UNLABELED, UNLABELED, labels - 1))


def test_without_labels_nothing_else_changes() -> None:
    dataset = cells_of().dataset
    stripped = without_labels(dataset)
    assert (stripped.labels == UNLABELED).all() and stripped.cell_types == ()
    assert stripped.x is dataset.x and stripped.batches is dataset.batches


def test_where_nothing_is_held_out_there_are_no_test_cells() -> None:
    sealed = seal(cells_of(test=None), 5, adapt=False)
    assert sealed.test is None and len(sealed.dataset) == 150 and len(sealed.folds) == 4


def test_a_fold_trains_on_two_domains_at_least() -> None:
    sealed = seal(cells_of(cells={"a": 40, "b": 40, "d": 30}), 5, adapt=False)
    assert FOLD_TRAINS_ON == 2 and sealed.folds == () and sealed.unscored_types == ()
    grouped = seal(cells_of(), 2, adapt=False)  # two groups of domains: where one is left out, one or two train
    assert all(len(set(grouped.dataset.batches[fold.train])) >= 2 for fold in grouped.folds)


def test_types_of_one_domain_are_told() -> None:
    present = {"a": ("B", "NK", "T"), "b": ("B", "NK"), "c": ("B", "NK"), "d": ("B", "NK", "T")}
    sealed = seal(cells_of(present=present), 5, adapt=False)
    assert [sealed.dataset.cell_types[code] for code in sealed.unscored_types] == ["T"]
    (fold,) = (fold for fold in sealed.folds if fold.name == "a")
    assert fold.unseen_types == sealed.unscored_types and fold.coverage < 1

"""The cells of a study, and the seal: what the search is given holds no label of a test cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import Fold, leave_one_domain_out, unscored_types
from scdgn.core.config import UNLABELED
from scdgn.model.fitting import with_types_of

FOLD_TRAINS_ON = 2
"""Fewest domains of a fold: with one, DANN and scDGN have nothing to align. The plain network keeps to it too, so that
the scores of the three methods mean the same."""


@dataclass(frozen=True, eq=False)
class SearchCells:
    """All that a search may look at.

    Attributes
    ----------
    dataset
        The labelled training cells, coded by the types that occur among them.
    test
        The test cells, all without a label; None where there are none.
    unlabeled
        Cells that may join the domain loss (adaptation).
    folds
        Leave-one-domain-out folds of `dataset`; none where the training domains are too few.
    unscored_types
        Codes of the types that no fold scores, because they occur in one domain (or group of domains) only.
    """

    dataset: Dataset
    test: Dataset | None
    unlabeled: tuple[Dataset, ...]
    folds: tuple[Fold, ...]
    unscored_types: tuple[int, ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """All training cells."""
        return np.arange(len(self.dataset))

    def among(self, rows: NDArray[np.int64], test: NDArray[np.int64]) -> SearchCells:
        """Some of the training and test cells, ascending, in the same folds, without those that then score nothing."""
        place = np.full(len(self.dataset), -1)
        place[rows] = np.arange(len(rows))

        def kept(of_fold: NDArray[np.int64]) -> NDArray[np.int64]:
            return place[of_fold][place[of_fold] >= 0]

        folds = [
            replace(fold, train=kept(fold.train), held_out=kept(fold.held_out), scored=kept(fold.scored))
            for fold in self.folds
        ]
        return replace(
            self,
            dataset=self.dataset.take(rows),
            test=None if self.test is None else self.test.take(test),
            folds=tuple(fold for fold in folds if len(fold.train) and len(fold.scored)),
        )


def seal(cells: TrainingCells, max_folds: int, adapt: bool) -> SearchCells:
    """Take the training cells out, and the labels off all others, which are left out altogether unless they may adapt.

    The labels of the test cells stay behind in `cells`, for the one evaluation at the end.
    """
    dataset = with_types_of(cells.dataset, cells.split.train).take(cells.split.train)
    folds = leave_one_domain_out(
        dataset.labels,
        dataset.batches,
        np.arange(len(dataset)),
        dataset.batch_names,
        max_folds,
        FOLD_TRAINS_ON,
        cells.groups,
    )
    return SearchCells(
        dataset=dataset,
        test=without_labels(cells.dataset.take(cells.split.test)) if len(cells.split.test) else None,
        unlabeled=tuple(without_labels(query) for query in cells.unlabeled) if adapt else (),
        folds=folds,
        unscored_types=unscored_types(dataset.labels, np.arange(len(dataset)), folds) if folds else (),
    )


def test_labels(cells: TrainingCells, types: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The seal broken: (test cells,) their types as codes into those trained, and which of them can be scored.

    Called where nothing is chosen any more.
    """
    scored: NDArray[np.bool_] = np.isin(cells.split.test, cells.split.scored)
    return np.where(scored, cells.dataset.types_among(types)[cells.split.test], UNLABELED), scored


def without_labels(dataset: Dataset) -> Dataset:
    """The same cells, and nothing about their types."""
    return replace(dataset, labels=np.full(len(dataset), UNLABELED, dtype=np.int64), cell_types=())

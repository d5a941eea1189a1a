"""Genes that tell a type from the others in every domain: those that are best in their worst domain.

A gene that marks a type in one domain and not in the next serves a network there, and misleads it on a domain that it
has not seen. So a type's genes are ranked by the domain in which they mark it least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.values import Matrix
from scdgn.core.config import UNLABELED

Rows = NDArray[np.int64]

FEWEST = 5
"""Cells of a type, and of others, that a domain must hold to have a say on the type's genes."""

SPREAD = 0.1
"""Added to the variances, so that a gene that hardly differs is not the best for hardly varying."""

_ROUNDING = 1e-6  # of float32: means that differ by less, relatively, are taken as equal

_BLOCK = 4096  # cells worked on at a time


def marker_genes(
    dataset: Dataset, rows: Rows, per_type: int, normalize: Callable[[Matrix], Matrix]
) -> NDArray[np.int64]:
    """Columns, ascending, of the genes that best mark a type of `rows` in every domain: so many of each type, united.

    In a domain, a gene marks a type by (mean of its cells - mean of the others) / sqrt(sum of both variances + 0.1).
    Domains with fewer than `FEWEST` cells of either have no say. A gene whose sign differs between those that have is
    none of the type's, nor is one that marks nothing; the others are ranked by their least absolute value, then by the
    order of the genes.

    A type on which no domain has a say, being rare or alone wherever it is, is compared with the others of all its
    domains together, or of all domains where these are fewer than `FEWEST`. A single cell is not compared.

    Parameters
    ----------
    dataset
        Cells without a type do not count.
    rows
        Indices of the training cells; no other is looked at.
    per_type
        Genes of every type.
    normalize
        From the values of cells to log-normalised ones, both (cells, genes).

    Returns
    -------
    Fewer than `per_type` of a type that fewer mark; none at all where nothing can be compared, as with a single type.
    """
    rows = rows[dataset.labels[rows] != UNLABELED]
    shape = len(dataset.cell_types), len(dataset.genes)
    held = np.zeros((len(dataset.batch_names), len(dataset.cell_types)), dtype=np.int64)  # (domains, types) cells
    np.add.at(held, (dataset.batches[rows], dataset.labels[rows]), 1)
    others = held.sum(axis=1, keepdims=True) - held
    has_say = (held >= FEWEST) & (others >= FEWEST)
    compared = has_say.any(axis=0)
    joined = np.flatnonzero(~compared & (held.sum(axis=0) > 1))  # types compared over their domains together

    lowest = np.where(compared[:, None], np.float32(np.inf), np.zeros(shape, dtype=np.float32))  # (types, genes)
    highest = -lowest
    inside, around = (_Moments.of_none(len(joined), len(dataset.genes)) for _ in range(2))
    everyone = _Moments.of_none(1, len(dataset.genes))
    # A domain at a time: tables of all of them would be too large where they are donors.
    for domain in np.flatnonzero(held.any(axis=1)):
        present = np.flatnonzero(held[domain])  # types
        own = _moments(dataset, rows[dataset.batches[rows] == domain], present, normalize)
        whole = own.sum()
        here = np.flatnonzero(has_say[domain, present])
        statistic, said = _statistic(own[here], whole - own[here]), present[here]
        lowest[said] = np.minimum(lowest[said], statistic)
        highest[said] = np.maximum(highest[said], statistic)
        here = np.flatnonzero(np.isin(present, joined))
        places = np.searchsorted(joined, present[here])
        inside.put(places, own[here])
        around.put(places, whole - own[here])
        everyone += whole
    few = around.cells < FEWEST
    around = around.where(~few) + (everyone - inside).where(few)
    lowest[joined] = highest[joined] = _statistic(inside, around)
    return _best(np.maximum(lowest, -highest), per_type)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Of groups of cells: their numbers (groups,), and sums of values and squares (groups, genes)."""

    cells: NDArray[np.int64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of_none(cls, groups: int, genes: int) -> _Moments:
        """Groups without cells."""
        return cls(np.zeros(groups, dtype=np.int64), np.zeros((groups, genes)), np.zeros((groups, genes)))

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.cells + other.cells, self.total + other.total, self.squares + other.squares)

    def put(self, groups: NDArray[np.int64], other: _Moments) -> None:
        """Add cells to some of the groups, in place."""
        self.cells[groups] += other.cells
        self.total[groups] += other.total
        self.squares[groups] += other.squares

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(self.cells - other.cells, self.total - other.total, self.squares - other.squares)

    def __getitem__(self, groups: NDArray[np.int64]) -> _Moments:
        return _Moments(self.cells[groups], self.total[groups], self.squares[groups])

    def where(self, kept: NDArray[np.bool_]) -> _Moments:
        """The same groups, without cells where not `kept`."""
        return _Moments(self.cells * kept, self.total * kept[:, None], self.squares * kept[:, None])

    def sum(self) -> _Moments:
        """One group of all."""
        return _Moments(*(np.sum(each, axis=0, keepdims=True) for each in (self.cells, self.total, self.squares)))

    def mean_and_variance(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(groups, genes) each; 0 without cells."""
        cells = np.maximum(self.cells, 1)[:, None]
        mean = self.total / cells
        return mean, np.maximum(self.squares / cells - mean**2, 0)


def _moments(dataset: Dataset, rows: Rows, types: NDArray[np.int64], normalize: Callable[[Matrix], Matrix]) -> _Moments:
    """Of the log-normalised values of the cells of each of `types`, ascending, among `rows`, which have no others."""

    def of(block: Rows) -> _Moments:
        group = np.searchsorted(types, dataset.labels[block])
        logs = normalize(dataset.x[block]).astype(np.float64)  # (cells, genes)
        squares = logs.power(2) if isinstance(logs, sp.csr_matrix) else logs**2
        # (types, cells): a row adds up the cells of a type.
        membership = sp.csr_matrix((np.ones(len(block)), (group, np.arange(len(block)))), (len(types), len(block)))
        sums = [_dense(membership @ values) for values in (logs, squares)]
        return _Moments(np.bincount(group, minlength=len(types)), *sums)

    return reduce(add, (of(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK)))


def _dense(x: Any) -> NDArray[np.float64]:
    return np.asarray(x.toarray() if isinstance(x, sp.csr_matrix) else x)


def _statistic(inside: _Moments, outside: _Moments) -> NDArray[np.float32]:
    """How well each gene tells the cells inside from those outside, (groups, genes); 0 if there are none of either.

    In single precision, in which what differs by the order of additions alone is equal.
    """
    (mean, variance), (other_mean, other_variance) = inside.mean_and_variance(), outside.mean_and_variance()
    difference = mean - other_mean
    differs = np.abs(difference) > _ROUNDING * np.maximum(np.abs(mean), np.abs(other_mean))
    differs &= ((inside.cells > 0) & (outside.cells > 0))[:, None]
    return np.where(differs, difference / np.sqrt(variance + other_variance + SPREAD), 0).astype(np.float32)


def _best(scores: NDArray[np.float32], per_type: int) -> NDArray[np.int64]:
    """Columns, ascending, of the highest positive scores of each type, (types, genes)."""
    scores = np.where(scores > 0, scores, 0)  # NaN, of a gene whose values are, too
    best = np.argsort(-scores, axis=1, kind="stable")[:, :per_type]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, best, np.take_along_axis(scores, best, axis=1) > 0, axis=1)
    return np.flatnonzero(chosen.any(axis=0))

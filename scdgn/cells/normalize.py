"""Library-size normalisation and logarithms, in blocks of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.mapped import MappedRows
from scdgn.cells.values import Matrix, Values

Rows = NDArray[np.int64]

Statistics = NDArray[np.float64]  # (genes,)

_SUMMED = 4096  # cells whose counts are summed at a time

BLOCK = 1024  # cells worked on at a time: what is needed beyond the input and the output


def log_normalize(x: Matrix, values: Values, target_sum: float = 1e4, panel: NDArray[np.bool_] | None = None) -> Matrix:
    """Counts of each cell scaled to the same total, then log(1 + value); log-normalised values as they are.

    Parameters
    ----------
    x
        (cells, genes), dense or CSR, which the result stays; never written to.
    target_sum
        The total; a cell without counts stays without.
    panel
        (genes,) the genes over which a cell's total is taken; default all.
    """
    if values == "log":
        return x
    factors = cell_factors(x, target_sum, panel)
    if isinstance(x, sp.csr_matrix):
        logs = np.log1p(x.data * np.repeat(factors, np.diff(x.indptr)))
        return sp.csr_matrix((logs, x.indices, x.indptr), shape=x.shape)
    scaled = x * factors[:, None]
    return np.asarray(np.log1p(scaled, out=scaled))


def cell_factors(
    x: Matrix | MappedRows, target_sum: float, panel: NDArray[np.bool_] | None, rows: Rows | None = None
) -> NDArray[np.float32]:
    """By which the counts of each cell, or of each of some rows, are multiplied to reach the total, (cells,)."""
    counted = np.ones(x.shape[1]) if panel is None else panel.astype(np.float64)
    # A portion at a time: all values are made double for the product.
    starts = range(0, max(x.shape[0] if rows is None else len(rows), 1), _SUMMED)
    parts = [slice(at, at + _SUMMED) if rows is None else rows[at : at + _SUMMED] for at in starts]
    totals = np.concatenate([x[part] @ counted for part in parts])
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.asarray(factors, dtype=np.float32)


def log_normalized(dataset: Dataset, target_sum: float = 1e4) -> Dataset:
    """The same cells with log-normalised values, for many fits and transforms with this target sum."""
    return replace(dataset, x=log_normalize(dataset.matrix, dataset.values, target_sum), values="log")


def log_blocks(
    dataset: Dataset,
    rows: Rows,
    target_sum: float,
    columns: NDArray[np.int64],
    panel: NDArray[np.bool_] | None = None,
) -> Iterator[Matrix]:
    """Log-normalised values of `rows`, a block of cells at a time, of the genes in `columns`."""
    for start in range(0, len(rows), BLOCK):
        yield log_normalize(dataset.x[rows[start : start + BLOCK]], dataset.values, target_sum, panel)[:, columns]


def row_blocks(x: NDArray[np.float32], rows: Rows) -> Callable[[], Iterator[Matrix]]:
    """The cells of some rows, `BLOCK` at a time."""
    return lambda: (x[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))


def mean_and_std(blocks: Callable[[], Iterator[Matrix]]) -> tuple[Statistics, Statistics]:
    """Over all cells of the blocks; 1 is the deviation of constant genes."""
    mean, variance = mean_and_variance(blocks)
    std = np.sqrt(variance)
    std[std <= 1e-6 * np.abs(mean)] = 1.0  # what float32 rounding leaves of a constant share of the counts
    return mean, std


def mean_and_variance(blocks: Callable[[], Iterator[Matrix]]) -> tuple[Statistics, Statistics]:
    """Over all cells, in two passes for the accuracy of the second; the variance is the unbiased one, 0 of one cell."""
    cells = 0
    mean, variance = np.zeros(1), np.zeros(1)  # (genes,) once added to
    for block in blocks():
        cells += block.shape[0]
        mean = mean + column_sums(block)
    mean /= cells
    for block in blocks():
        variance = variance + _squared_deviations(block, mean)
    return mean, variance / max(cells - 1, 1)


def column_sums(block: Matrix) -> Statistics:
    """(genes,) in double precision."""
    if isinstance(block, sp.csr_matrix):
        return np.bincount(block.indices, block.data, block.shape[1]).astype(np.float64)
    return np.asarray(block.sum(axis=0, dtype=np.float64))


def _squared_deviations(block: Matrix, mean: Statistics) -> Statistics:
    """(genes,) sums of the squared deviations from `mean`."""
    if isinstance(block, sp.csr_matrix):
        stored = np.bincount(block.indices, minlength=block.shape[1])
        squares = np.bincount(block.indices, (block.data - mean[block.indices]) ** 2, block.shape[1])
        return squares + (block.shape[0] - stored) * mean**2
    return np.asarray(((block - mean) ** 2).sum(axis=0))

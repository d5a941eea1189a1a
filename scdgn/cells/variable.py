"""Genes that vary most within the batches, as scanpy finds them, from sums over one batch after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.normalize import Rows, log_normalize, mean_and_variance
from scdgn.cells.settings import PreprocessSettings

RANKING_CELLS = 20_000
"""Most cells of a batch from which genes are ranked."""

RANKING_BATCHES = 50
"""Most batches that rank genes."""

BINS = 20
"""Of genes of about the same mean, within which dispersions are compared."""


def highly_variable_genes(dataset: Dataset, rows: Rows, settings: PreprocessSettings) -> NDArray[np.int64]:
    """Columns, ascending, of the genes that vary most within the batches of `rows`.

    They are those of scanpy's `highly_variable_genes`, flavour "seurat" (Satija et al. 2015), with a batch key: genes
    are ranked by the number of batches in which they are among the first `n_top_genes`, then by their normalised
    dispersion, the mean over the batches. A gene that does not vary in a batch is not ranked there. Batches that rank
    none, as single or identical cells, have no say. If there are no others, the cells are taken as one batch; if that
    fails too, the genes of highest variance are chosen.

    Of a batch of more than `RANKING_CELLS` as many are drawn, always the same: to rank genes they are plenty. Of more
    than `RANKING_BATCHES` those with the most cells are asked: hundreds of donors would take a minute.
    """
    n_genes, n_top = len(dataset.genes), settings.n_top_genes
    if n_genes <= n_top:
        return np.arange(n_genes)
    asked = batches_of(dataset, rows)
    if sum(len(members) > 1 for members in asked) > RANKING_BATCHES:
        asked = sorted(asked, key=len, reverse=True)[:RANKING_BATCHES]
    asked = [rows[np.sort(_some(members))] for members in asked]
    asked.sort(key=lambda members: int(dataset.batches[members[0]]))

    def logs(members: Rows) -> sp.csr_matrix:
        return sp.csr_matrix(log_normalize(dataset.x[members], dataset.values, settings.target_sum))  # (members, genes)

    rankings = [_rank(logs(members), n_top) for members in asked]
    ranked = [ranking for ranking in rankings if ranking is not None]
    if ranked:
        return np.sort(_first(ranked, n_top))
    x = logs(np.sort(np.concatenate(asked)))
    if (ranking := _rank(x, n_top)) is not None:
        return np.sort(_first([ranking], n_top))
    _, variance = mean_and_variance(lambda: iter([x]))
    return np.sort(np.argsort(-variance, kind="stable")[:n_top])


def batches_of(dataset: Dataset, rows: Rows) -> list[NDArray[np.int64]]:
    """Positions within `rows` of the cells of each batch."""
    batches = dataset.batches[rows]
    return [np.flatnonzero(batches == batch) for batch in np.unique(batches)]


def _some(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """All of them, or a sample of `RANKING_CELLS`."""
    if len(members) <= RANKING_CELLS:
        return members
    return np.random.default_rng(0).choice(members, RANKING_CELLS, replace=False)


class _Ranking(NamedTuple):
    """What a batch says of the genes: their normalised dispersions (genes,), 0 of those that do not vary, NaN where
    nothing can be said; and whether they are among the first.
    """

    dispersions: NDArray[np.float64]
    first: NDArray[np.bool_]


def _rank(x: sp.csr_matrix, n_top: int) -> _Ranking | None:
    """Rank the genes of a batch, (cells, genes) log-normalised; None where none can be."""
    import pandas as pd

    cells, genes = x.shape
    varies = _varying(x)
    if not varies.any():
        return None
    values = np.expm1(x.data)
    mean, squares = (np.bincount(x.indices, each, genes)[varies] / cells for each in (values, values * values))
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log((squares - mean**2) * (cells / (cells - 1)) / mean)
    dispersion[np.isneginf(dispersion)] = np.nan  # of no variance
    bins = pd.cut(np.log1p(mean), BINS, labels=False)
    of_bin = pd.Series(dispersion).groupby(bins)
    average, deviation = (of_bin.transform(name).to_numpy() for name in ("mean", "std"))
    alone = np.isnan(deviation)  # in its bin: such a gene has 1
    with np.errstate(divide="ignore", invalid="ignore"):
        normalized = (dispersion - np.where(alone, 0, average)) / np.where(alone, average, deviation)
    descending = -np.sort(-normalized[~np.isnan(normalized)])
    if not len(descending):
        return None
    dispersions, first = np.zeros(genes), np.zeros(genes, dtype=bool)
    dispersions[varies] = normalized
    first[varies] = normalized >= descending[:n_top][-1]
    return _Ranking(dispersions, first)


def _varying(x: sp.csr_matrix) -> NDArray[np.bool_]:
    """(genes,) which have more than one value: rounding would give the others a variance."""
    cells, genes = x.shape
    one = np.zeros(genes, dtype=x.dtype)
    one[x.indices] = x.data  # of a gene's values any
    differs = np.bincount(x.indices[x.data != one[x.indices]], minlength=genes) > 0
    return np.asarray(differs | ((np.bincount(x.indices, minlength=genes) < cells) & (one != 0)))


def _first(rankings: Sequence[_Ranking], n_top: int) -> NDArray[np.int64]:
    """Columns of the genes that are among the first of the most batches."""
    import pandas as pd

    genes = len(rankings[0].first)
    named = np.argsort(np.arange(genes).astype(str))  # by number as text: scanpy's order of those that are level
    batches = np.sum([ranking.first for ranking in rankings], axis=0)
    dispersions = pd.concat([pd.Series(ranking.dispersions) for ranking in rankings])
    mean = dispersions.groupby(level=0).mean().to_numpy()  # NaN, the last, where no batch says anything
    return named[np.lexsort((-mean[named], -batches[named]))][:n_top]

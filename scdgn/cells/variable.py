"""Genes that vary most within the batches, by scanpy."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.normalize import Rows, log_normalize, mean_and_variance
from scdgn.cells.settings import PreprocessSettings
from scdgn.threads import same_threads

RANKING_CELLS = 20_000
"""Most cells of a batch from which genes are ranked."""

RANKING_BATCHES = 50
"""Most batches that rank genes."""


def highly_variable_genes(dataset: Dataset, rows: Rows, settings: PreprocessSettings) -> NDArray[np.int64]:
    """Columns, ascending, of the genes that vary most within the batches of `rows`.

    By scanpy's `highly_variable_genes`, flavour "seurat" (Satija et al. 2015), with a batch key: genes are ranked by
    the number of batches in which they are among the first `n_top_genes`, then by their normalised dispersion. Batches
    that scanpy cannot rank, as single or identical cells, have no say. If it can rank none, the cells are taken as one
    batch; if that fails too, the genes of highest variance are chosen.

    Of a batch of more than `RANKING_CELLS` as many are drawn, always the same: to rank genes they are plenty, and all
    cells would be copied several times over. Of more than `RANKING_BATCHES` those with the most cells are asked:
    hundreds of donors would take a minute.
    """
    n_genes, n_top = len(dataset.genes), settings.n_top_genes
    if n_genes <= n_top:
        return np.arange(n_genes)
    asked = batches_of(dataset, rows)
    if sum(len(members) > 1 for members in asked) > RANKING_BATCHES:
        asked = sorted(asked, key=len, reverse=True)[:RANKING_BATCHES]
    rows = rows[np.sort(np.concatenate([_some(members) for members in asked]))]
    x = sp.csr_matrix(log_normalize(dataset.x[rows], dataset.values, settings.target_sum))  # (rows, genes)
    batches = [_without_constant_genes(x[members]) for members in batches_of(dataset, rows)]
    selected = _selected_by_scanpy(batches, n_top)
    if selected is None:
        ranked = [batch for batch in batches if _selected_by_scanpy([batch], n_top) is not None]
        selected = _selected_by_scanpy(ranked or [_without_constant_genes(x)], n_top)
    if selected is None:
        _, variance = mean_and_variance(lambda: iter([x]))
        selected = np.argsort(-variance, kind="stable")[:n_top]
    return np.sort(selected)


def batches_of(dataset: Dataset, rows: Rows) -> list[NDArray[np.int64]]:
    """Positions within `rows` of the cells of each batch."""
    batches = dataset.batches[rows]
    return [np.flatnonzero(batches == batch) for batch in np.unique(batches)]


def _some(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """All of them, or a sample of `RANKING_CELLS`."""
    if len(members) <= RANKING_CELLS:
        return members
    return np.random.default_rng(0).choice(members, RANKING_CELLS, replace=False)


def _without_constant_genes(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same cells, genes that do not vary set to 0: scanpy would rank them by the rounding of their variance."""
    varies = (x.max(axis=0) - x.min(axis=0)).toarray().ravel() > 0  # (genes,)
    return sp.csr_matrix(x.multiply(varies))


def _selected_by_scanpy(batches: list[sp.csr_matrix], n_top: int) -> NDArray[np.int64] | None:
    """Columns of the `n_top` genes that scanpy selects, or None if there is a batch that it cannot rank."""
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    codes = np.repeat(np.arange(len(batches)), [batch.shape[0] for batch in batches])
    # The warnings are of genes that do not vary, and of fewer than n_top that do.
    with same_threads(), warnings.catch_warnings(action="ignore"):
        adata = AnnData(sp.vstack(batches, format="csr"), obs={"batch": pd.Categorical(codes)})
        try:
            table = sc.pp.highly_variable_genes(
                adata, flavor="seurat", n_top_genes=n_top, batch_key="batch", inplace=False
            )
        except (IndexError, ValueError):  # no dispersion that can be normalised; no gene but zeros
            return None
    return np.flatnonzero(table["highly_variable"])

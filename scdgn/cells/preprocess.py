"""From values of any depth and gene set to the network's input, as learned from the training cells alone.

Normalise every cell to one total, take the logarithm, keep some genes, scale. What is fitted (the genes, their means
and standard deviations) comes from the training rows and from no other; the rest is done cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.mapped import MappedRows, spooled
from scdgn.cells.markers import marker_genes
from scdgn.cells.matching import GeneMatch, columns_of, needed_genes, why_unmatched
from scdgn.cells.normalize import (
    BLOCK,
    Rows,
    cell_factors,
    column_sums,
    log_blocks,
    log_normalize,
    mean_and_std,
    row_blocks,
)
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.values import Matrix
from scdgn.cells.variable import batches_of, highly_variable_genes
from scdgn.core.expression import Expression, Scale, Sparse, compressed, join, viewed
from scdgn.core.pack.first_layer import sparse_pays
from scdgn.errors import BundleError, DataError

DENSE_BYTES = 512 * 2**20
"""Largest input that is made dense as a whole."""

SHARING_CELLS = 4_096
"""Most cells from which the genes' shares of a cell's total are taken."""

WHOLE = 1e-3
"""Shares that differ by less from 1 are all of a cell's total, but for cells without counts and rounding."""


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """What was learned from the training cells; made by `fit`.

    Parameters
    ----------
    panel
        (panel genes,) all genes of the training data. A cell's total is taken over those of them that it has, so that
        a model of a 1000-gene panel normalises a query of 30,000 genes as it did its training cells.
    genes
        (genes,) the selected ones, in the order of the panel.
    mean, std
        (genes,) float32, of the log-normalised values of the training cells; the deviation of a constant gene is 1.
    settings
        How cells become input.
    shares
        (panel genes,) float32, mean value of each gene in the training cells, of a total of `target_sum`. Counts of a
        cell are normalised to what the genes that it has make up: all of it, unless some are missing, or the training
        cells were cut to some genes after they had been normalised. None in bundles of before that was known.
    """

    panel: NDArray[np.str_]
    genes: NDArray[np.str_]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    settings: PreprocessSettings
    shares: NDArray[np.float32] | None = None

    @property
    def silent(self) -> NDArray[np.float32]:
        """(genes,) the input of a gene that says nothing, since data lack it."""
        return self.mean if self.settings.scaling == "none" else np.zeros_like(self.mean)

    @property
    def deviation(self) -> NDArray[np.float32]:
        """(genes,) the standard deviation of the input of the training cells."""
        return self.std if self.settings.scaling == "none" else np.ones_like(self.std)

    @property
    def transductive(self) -> bool:
        """Whether a cell's input depends on the other cells that are transformed with it."""
        return self.settings.scaling == "standard-per-batch"

    def equals(self, other: Preprocessing) -> bool:
        """Whether it makes the same input of the same cells."""
        if self is other:
            return True
        arrays = ("panel", "genes", "mean", "std")
        alike = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)
        empty = np.empty(0, dtype=np.float32)
        shares = [empty if one.shares is None else one.shares for one in (self, other)]
        alike = alike and np.array_equal(shares[0], shares[1])
        return alike and self.settings == other.settings

    def match(self, genes: NDArray[np.str_]) -> GeneMatch:
        """Find the selected genes by name among `genes`: as it is, else without a version or a genome's prefix.

        Raises
        ------
        DataError
            If fewer than a tenth of them are there, or fewer than five.
        """
        columns = columns_of(self.genes, genes)
        decorated = int((genes[columns] != self.genes)[columns >= 0].sum()) if len(genes) else 0
        match = GeneMatch(columns, tuple(self.genes[columns < 0].tolist()), decorated)
        if match.found < needed_genes(len(self.genes)):
            raise DataError(
                f"{match.found} of the {len(self.genes)} genes of the model are in the data, "
                f"{needed_genes(len(self.genes))} are needed: {why_unmatched(self.genes, genes)}"
            )
        return match

    def transform(self, dataset: Dataset, rows: Rows | None = None) -> NDArray[np.float32]:
        """The network's input for the cells of `rows` (default: all), genes matched by name.

        A gene that the data lack is given the mean of the training cells under every scaling: it then says nothing for
        or against any type (0 once standardised), where a raw 0 would say that the gene was measured and found silent.

        With `standard-per-batch` the statistics are those of each batch among `rows`; a batch of a single cell, which
        has none, takes those of the training cells.

        Returns
        -------
        (rows, genes) float32, C-contiguous.

        Raises
        ------
        DataError
            If too few genes match (`match`).
        """
        rows = np.arange(len(dataset)) if rows is None else rows
        out = self.log_normalized(dataset, rows)
        if self.settings.scaling == "standard":
            _standardize(out, np.arange(len(rows)), self.mean, self.std, self.settings.clip)
        elif self.settings.scaling == "standard-per-batch":
            for members in batches_of(dataset, rows):
                mean, std = self._own_statistics(len(members), row_blocks(out, members))
                _standardize(out, members, mean, std, self.settings.clip)
        return out

    def log_normalized(self, dataset: Dataset, rows: Rows) -> NDArray[np.float32]:
        """(rows, genes) log-normalised values, missing genes at the mean of the training cells; before any scaling."""
        out = np.empty((len(rows), len(self.genes)), dtype=np.float32)
        start = 0
        for block in self._filled_blocks(dataset, rows):
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def expression(self, dataset: Dataset, rows: Rows, units: int = 0) -> Expression:
        """The network's input as training and scoring hold it: dense where that is small, else sparse.

        A large CSR matrix is not copied: cells are normalised and standardised when they are read. Of a mapped one the
        selected genes are written beside it, normalised (`mapped.spooled`).

        Parameters
        ----------
        units
            Hidden units of all models that will read the same mini-batches of these cells on a CPU, which gain from
            sparse input (`first_layer.sparse_pays`); 0 where dense input is as good.

        Raises
        ------
        DataError
            If too few genes match (`match`).
        OutputError
            If they cannot be written.
        """
        small = len(rows) * len(self.genes) * 4 <= DENSE_BYTES
        if isinstance(dataset.x, np.ndarray) or (small and (not units or self.settings.scaling != "none")):
            return torch.from_numpy(self.transform(dataset, rows))
        view = self._view(dataset, rows)
        if small:
            view = view.copy(view.device)
            return view if sparse_pays(view.density, units) else view.dense()
        return spooled(view, dataset.x.folder) if isinstance(dataset.x, MappedRows) else view

    def _view(self, dataset: Dataset, rows: Rows) -> Sparse:
        """The cells of a CSR matrix, or a mapped one, of which nothing is copied unless genes are missing."""
        x = dataset.x
        assert not isinstance(x, np.ndarray)
        columns = self.match(dataset.genes).columns
        scale = self._scale(dataset, rows)
        if (columns < 0).any():
            parts = [compressed(torch.from_numpy(block)) for block in self._filled_blocks(dataset, rows)]
            joined = join(parts)
            assert isinstance(joined, Sparse)
            return replace(joined, scale=scale)
        selected = np.full(x.shape[1], -1, dtype=np.int32)
        selected[columns] = np.arange(len(columns), dtype=np.int32)
        factors = None
        if dataset.values == "counts":
            panel, total = self._totalled(dataset.genes)
            factors = cell_factors(x, total, panel, rows)
        starts, counts, values, genes = (
            (x.starts, x.counts, x.values, x.genes)
            if isinstance(x, MappedRows)
            else (x.indptr[:-1].astype(np.int64), np.diff(x.indptr).astype(np.int64), x.data, x.indices)
        )
        return Sparse(
            starts=torch.from_numpy(starts[rows]),
            counts=torch.from_numpy(counts[rows]),
            columns=viewed(genes),
            values=viewed(values),
            genes=len(columns),
            selected=None if np.array_equal(selected, np.arange(len(selected))) else torch.from_numpy(selected),
            factors=None if factors is None else torch.from_numpy(factors),
            scale=scale,
        )

    def _scale(self, dataset: Dataset, rows: Rows) -> Scale | None:
        """How the cells of `rows` are standardised."""
        settings = self.settings
        if settings.scaling == "none":
            return None
        tables, group = [(self.mean, self.std)], None
        if settings.scaling == "standard-per-batch":
            batches = batches_of(dataset, rows)
            tables = [
                self._own_statistics(len(members), partial(self._filled_blocks, dataset, rows[members]))
                for members in batches
            ]
            group = torch.empty(len(rows), dtype=torch.int64)
            for place, members in enumerate(batches):
                group[torch.from_numpy(members)] = place
        mean, std = (torch.from_numpy(np.stack(table)) for table in zip(*tables, strict=True))
        return Scale(mean, std, settings.clip, group)

    def _own_statistics(
        self, cells: int, blocks: Callable[[], Iterator[Matrix]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of a batch, those of the training cells where it is a single cell; (genes,) each."""
        if cells == 1:
            return self.mean, self.std
        mean, std = mean_and_std(blocks)
        return mean.astype(np.float32), std.astype(np.float32)

    def _totalled(self, genes: NDArray[np.str_]) -> tuple[NDArray[np.bool_], float]:
        """(genes,) which of them count in a cell's total, and what it is normalised to."""
        found = np.zeros(len(genes), dtype=bool)
        columns = columns_of(self.panel, genes)
        there = columns >= 0
        found[columns[there]] = True
        share = 1.0 if self.shares is None else float(self.shares[there].sum(dtype=np.float64))
        return found, self.settings.target_sum * (1.0 if abs(share - 1) < WHOLE else share)

    def _filled_blocks(self, dataset: Dataset, rows: Rows) -> Iterator[NDArray[np.float32]]:
        """Log-normalised values of the selected genes, missing ones at their mean; (cells of a block, genes)."""
        columns = self.match(dataset.genes).columns
        there = columns >= 0
        panel, total = self._totalled(dataset.genes)
        for block in log_blocks(dataset, rows, total, columns[there], panel):
            out = np.empty((block.shape[0], len(columns)), dtype=np.float32)
            out[:, ~there] = self.mean[~there]
            out[:, there] = block.toarray() if isinstance(block, sp.csr_matrix) else block
            yield out

    def to_json(self) -> dict[str, Any]:
        """Everything but `mean`, `std` and `shares`, JSON-safe."""
        return {"panel": self.panel.tolist(), "genes": self.genes.tolist(), "settings": asdict(self.settings)}

    @classmethod
    def from_json(
        cls,
        document: dict[str, Any],
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        shares: NDArray[np.float32] | None = None,
    ) -> Preprocessing:
        """The inverse of `to_json`.

        Raises
        ------
        BundleError
            If the document is incomplete or does not fit the arrays.
        """
        try:
            panel, genes = np.array(document["panel"], dtype=str), np.array(document["genes"], dtype=str)
            settings = PreprocessSettings(**document["settings"])
        except (KeyError, TypeError) as error:
            raise BundleError(
                f"the preprocessing of the model is incomplete ({error}): save the model again"
            ) from error
        if not mean.shape == std.shape == genes.shape or not np.isin(genes, panel).all():
            raise BundleError("the preprocessing of the model contradicts itself: save the model again")
        if shares is not None and shares.shape != panel.shape:
            raise BundleError("the preprocessing of the model contradicts itself: save the model again")
        return cls(panel, genes, mean, std, settings, shares)


def fit(dataset: Dataset, rows: Rows, settings: PreprocessSettings) -> Preprocessing:
    """Learn genes and statistics from the cells of `rows`, looking at no other.

    Many fits on the same data are faster on `log_normalized(dataset, target_sum)`.

    Raises
    ------
    SettingsError, DataError
        For settings out of range; without training cells.
    """
    if len(rows) == 0:
        raise DataError("there are no training cells: check --test-batch and --split")
    columns = _selected(dataset, rows, settings)
    mean, std = mean_and_std(lambda: log_blocks(dataset, rows, settings.target_sum, columns))
    return Preprocessing(
        dataset.genes,
        dataset.genes[columns],
        mean.astype(np.float32),
        std.astype(np.float32),
        settings,
    )


def shares_of(dataset: Dataset, rows: Rows, target_sum: float) -> NDArray[np.float32]:
    """(genes,) mean values of some of the cells, those that are not empty, as shares of the total.

    See `Preprocessing.shares`: for models that are kept, whose queries may lack genes; the folds of a search do not.
    """
    some = rows[:: -(-len(rows) // SHARING_CELLS)]
    everything = np.arange(len(dataset.genes))
    sums, filled = np.zeros(len(dataset.genes)), 0
    for block in log_blocks(dataset, some, target_sum, everything):
        if isinstance(block, sp.csr_matrix):
            block = sp.csr_matrix((np.expm1(block.data), block.indices, block.indptr), shape=block.shape)
        else:
            block = np.expm1(block)
        sums += column_sums(block)
        filled += int((np.asarray(block.sum(axis=1)) > 0).sum())
    return np.asarray(sums / (max(filled, 1) * target_sum), dtype=np.float32)


def _selected(dataset: Dataset, rows: Rows, settings: PreprocessSettings) -> NDArray[np.int64]:
    """Columns, ascending, of the genes that the settings want; at least one."""
    if settings.gene_selection == "markers":
        normalize = partial(log_normalize, values=dataset.values, target_sum=settings.target_sum)
        markers = marker_genes(dataset, rows, settings.markers_per_type, normalize)
        if len(markers):
            return markers
    return highly_variable_genes(dataset, rows, settings)


def _standardize(
    out: NDArray[np.float32],
    rows: Rows,
    mean: NDArray[np.floating[Any]],
    std: NDArray[np.floating[Any]],
    clip: float,
) -> None:
    """Standardise the `rows` of `out` in place, within plus and minus `clip`."""
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        out[block] = np.clip((out[block] - mean) / std, -clip, clip)

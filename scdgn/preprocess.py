"""From values of any depth and gene set to the network's input, as learned from the training cells alone.

Normalise every cell to one total, take the logarithm, keep some genes, scale. What is fitted (the genes, their means
and standard deviations) comes from the training rows and from no other; the rest is done cell by cell.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from scdgn.config import field_faults, kinds_of, merge
from scdgn.data import Dataset
from scdgn.errors import BundleError, DataError, SettingsError
from scdgn.expression import Expression, Scale, Sparse, compressed, join, viewed
from scdgn.first_layer import sparse_pays
from scdgn.markers import marker_genes
from scdgn.threads import same_threads
from scdgn.values import Matrix, Values

Scaling = Literal["none", "standard", "standard-per-batch"]
GeneSelection = Literal["variable", "markers"]
Rows = NDArray[np.int64]
Statistics = NDArray[np.float64]  # (genes,)

DENSE_BYTES = 512 * 2**20
"""Largest input that is made dense as a whole."""

RANKING_CELLS = 20_000
"""Most cells of a batch from which genes are ranked."""

RANKING_BATCHES = 50
"""Most batches that rank genes."""

SHARING_CELLS = 4_096
"""Most cells from which the genes' shares of a cell's total are taken."""

WHOLE = 1e-3
"""Shares that differ by less from 1 are all of a cell's total, but for cells without counts and rounding."""

_SUMMED = 32_768  # cells whose counts are summed at a time

_BLOCK = 1024  # cells worked on at a time: what is needed beyond the input and the output


@dataclass(frozen=True)
class PreprocessSettings:
    """How cells become input.

    Parameters
    ----------
    n_top_genes
        Highly variable genes kept, all genes if there are no more; without a say where markers are selected.
    scaling
        `none`: log-normalised values. `standard`: mean 0 and variance 1 over the training cells. `standard-per-batch`:
        over each batch of the cells that are transformed, which is transductive.
    target_sum
        Total to which the counts of every cell are normalised.
    clip
        Standardised values are kept within plus and minus this.
    gene_selection
        `variable`: the genes that vary most within the batches (`highly_variable_genes`). `markers`: those that best
        tell a type from the others in its worst batch (`markers.marker_genes`); variable ones where no gene does.
    markers_per_type
        Markers kept of every type; they are united.
    """

    n_top_genes: int = 3000
    scaling: Scaling = "none"
    target_sum: float = 1e4
    clip: float = 10.0
    gene_selection: GeneSelection = "variable"
    markers_per_type: int = 50

    def __post_init__(self) -> None:
        if faults := _faults(asdict(self)):
            raise SettingsError(*faults)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], base: PreprocessSettings | None = None) -> PreprocessSettings:
        """Settings from a TOML table or the like; what is not given comes from `base`.

        Who gives `n_top_genes` and no way to select genes means the variable ones.

        Raises
        ------
        SettingsError
            With every unknown key, wrong type and value out of range.
        """
        implied = {"gene_selection": "variable"} if "n_top_genes" in values else {}
        merged, faults = merge(asdict(base or cls()), {**implied, **values})
        if faults := [*faults, *_faults(merged)]:
            raise SettingsError(*faults)
        return cls(**merged)  # type: ignore[arg-type]


def _faults(values: Mapping[str, object]) -> list[str]:
    ranges = {
        "n_top_genes": (1.0, None),
        "target_sum": (1e-6, None),
        "clip": (1e-6, None),
        "markers_per_type": (1.0, None),
    }
    return field_faults(kinds_of(PreprocessSettings), values, ranges)


INPUT_PRESETS: Mapping[str, PreprocessSettings] = {
    "default": PreprocessSettings(gene_selection="markers", markers_per_type=100),
    "reference": PreprocessSettings(),
}
"""How cells become input with the presets of `config.preset`, by their names."""


@dataclass(frozen=True)
class GeneMatch:
    """Where the genes of a model are in other data.

    Parameters
    ----------
    columns
        (genes,) column of each gene of the model, -1 where it is missing.
    missing
        Names of the genes that are missing.
    decorated
        How many are there under a name with a version or a genome's prefix more or less, as in `ENSG00000141510.18` and
        `GRCh38_TP53`.
    """

    columns: NDArray[np.int64]
    missing: tuple[str, ...]
    decorated: int = 0

    @property
    def found(self) -> int:
        """Number of genes found."""
        return len(self.columns) - len(self.missing)


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
        columns = _columns(self.genes, genes)
        decorated = int((genes[columns] != self.genes)[columns >= 0].sum()) if len(genes) else 0
        match = GeneMatch(columns, tuple(self.genes[columns < 0].tolist()), decorated)
        if match.found < _needed(len(self.genes)):
            raise DataError(
                f"{match.found} of the {len(self.genes)} genes of the model are in the data, "
                f"{_needed(len(self.genes))} are needed: {_why_unmatched(self.genes, genes)}"
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
            for members in _batches_of(dataset, rows):
                mean, std = self._own_statistics(len(members), _row_blocks(out, members))
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

        A large CSR matrix is not copied: cells are normalised and standardised when they are read.

        Parameters
        ----------
        dataset, rows
            The cells.
        units
            Hidden units of all models that will read the same mini-batches of these cells on a CPU, which gain from
            sparse input (`first_layer.sparse_pays`); 0 where dense input is as good.

        Raises
        ------
        DataError
            If too few genes match (`match`).
        """
        small = len(rows) * len(self.genes) * 4 <= DENSE_BYTES
        if not isinstance(dataset.x, sp.csr_matrix) or (small and (not units or self.settings.scaling != "none")):
            return torch.from_numpy(self.transform(dataset, rows))
        view = self._view(dataset, rows)
        if small:
            view = view.copy(view.device)
            return view if sparse_pays(view.density, units) else view.dense()
        return view

    def _view(self, dataset: Dataset, rows: Rows) -> Sparse:
        """The cells of a CSR matrix, of which nothing is copied unless genes are missing."""
        x = dataset.x
        assert isinstance(x, sp.csr_matrix)
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
            factors = _factors(x, total, panel)[rows]
        return Sparse(
            starts=torch.from_numpy(x.indptr[:-1][rows].astype(np.int64)),
            counts=torch.from_numpy(np.diff(x.indptr)[rows].astype(np.int64)),
            columns=viewed(x.indices),
            values=viewed(x.data),
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
            batches = _batches_of(dataset, rows)
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
        mean, std = _mean_and_std(blocks)
        return mean.astype(np.float32), std.astype(np.float32)

    def _totalled(self, genes: NDArray[np.str_]) -> tuple[NDArray[np.bool_], float]:
        """(genes,) which of them count in a cell's total, and what it is normalised to."""
        found = np.zeros(len(genes), dtype=bool)
        columns = _columns(self.panel, genes)
        there = columns >= 0
        found[columns[there]] = True
        share = 1.0 if self.shares is None else float(self.shares[there].sum(dtype=np.float64))
        return found, self.settings.target_sum * (1.0 if abs(share - 1) < WHOLE else share)

    def _filled_blocks(self, dataset: Dataset, rows: Rows) -> Iterator[NDArray[np.float32]]:
        """Log-normalised values of the selected genes, missing ones at their mean; (cells of a block, genes)."""
        columns = self.match(dataset.genes).columns
        there = columns >= 0
        panel, total = self._totalled(dataset.genes)
        for block in _log_blocks(dataset, rows, total, columns[there], panel):
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

    Parameters
    ----------
    dataset
        Counts or log-normalised values. Many fits on the same data are faster on `log_normalized(dataset, target_sum)`.
    rows
        Indices of the training cells.
    settings
        How cells become input.

    Raises
    ------
    SettingsError
        For settings out of range.
    DataError
        Without training cells.
    """
    if len(rows) == 0:
        raise DataError("there are no training cells: check --test-batch and --split")
    columns = _selected(dataset, rows, settings)
    mean, std = _mean_and_std(lambda: _log_blocks(dataset, rows, settings.target_sum, columns))
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
    for block in _log_blocks(dataset, some, target_sum, everything):
        if isinstance(block, sp.csr_matrix):
            block = sp.csr_matrix((np.expm1(block.data), block.indices, block.indptr), shape=block.shape)
        else:
            block = np.expm1(block)
        sums += _column_sums(block)
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
    asked = _batches_of(dataset, rows)
    if sum(len(members) > 1 for members in asked) > RANKING_BATCHES:
        asked = sorted(asked, key=len, reverse=True)[:RANKING_BATCHES]
    rows = rows[np.sort(np.concatenate([_some(members) for members in asked]))]
    x = sp.csr_matrix(log_normalize(dataset.x[rows], dataset.values, settings.target_sum))  # (rows, genes)
    batches = [_without_constant_genes(x[members]) for members in _batches_of(dataset, rows)]
    selected = _selected_by_scanpy(batches, n_top)
    if selected is None:
        ranked = [batch for batch in batches if _selected_by_scanpy([batch], n_top) is not None]
        selected = _selected_by_scanpy(ranked or [_without_constant_genes(x)], n_top)
    if selected is None:
        _, variance = _mean_and_variance(lambda: iter([x]))
        selected = np.argsort(-variance, kind="stable")[:n_top]
    return np.sort(selected)


def log_normalize(x: Matrix, values: Values, target_sum: float = 1e4, panel: NDArray[np.bool_] | None = None) -> Matrix:
    """Counts of each cell scaled to the same total, then log(1 + value); log-normalised values as they are.

    Parameters
    ----------
    x
        (cells, genes), dense or CSR, which the result stays; never written to.
    values
        What `x` holds.
    target_sum
        The total; a cell without counts stays without.
    panel
        (genes,) the genes over which a cell's total is taken; default all.
    """
    if values == "log":
        return x
    factors = _factors(x, target_sum, panel)
    if isinstance(x, sp.csr_matrix):
        logs = np.log1p(x.data * np.repeat(factors, np.diff(x.indptr)))
        return sp.csr_matrix((logs, x.indices, x.indptr), shape=x.shape)
    scaled = x * factors[:, None]
    return np.asarray(np.log1p(scaled, out=scaled))


def _factors(x: Matrix, target_sum: float, panel: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """By which each cell's counts are multiplied to reach the total, (cells,)."""
    counted = np.ones(x.shape[1]) if panel is None else panel.astype(np.float64)
    # A portion at a time: all values are made double for the product.
    totals = np.concatenate([x[at : at + _SUMMED] @ counted for at in range(0, max(x.shape[0], 1), _SUMMED)])
    factors = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.asarray(factors, dtype=np.float32)


def log_normalized(dataset: Dataset, target_sum: float = 1e4) -> Dataset:
    """The same cells with log-normalised values, for many fits and transforms with this target sum."""
    return replace(dataset, x=log_normalize(dataset.x, dataset.values, target_sum), values="log")


def _log_blocks(
    dataset: Dataset,
    rows: Rows,
    target_sum: float,
    columns: NDArray[np.int64],
    panel: NDArray[np.bool_] | None = None,
) -> Iterator[Matrix]:
    """Log-normalised values of `rows`, a block of cells at a time, of the genes in `columns`."""
    for start in range(0, len(rows), _BLOCK):
        yield log_normalize(dataset.x[rows[start : start + _BLOCK]], dataset.values, target_sum, panel)[:, columns]


def _row_blocks(x: NDArray[np.float32], rows: Rows) -> Callable[[], Iterator[Matrix]]:
    return lambda: (x[rows[start : start + _BLOCK]] for start in range(0, len(rows), _BLOCK))


def _batches_of(dataset: Dataset, rows: Rows) -> list[NDArray[np.int64]]:
    """Positions within `rows` of the cells of each batch."""
    batches = dataset.batches[rows]
    return [np.flatnonzero(batches == batch) for batch in np.unique(batches)]


def _some(members: NDArray[np.int64]) -> NDArray[np.int64]:
    """All of them, or a sample of `RANKING_CELLS`."""
    if len(members) <= RANKING_CELLS:
        return members
    return np.random.default_rng(0).choice(members, RANKING_CELLS, replace=False)


def _standardize(
    out: NDArray[np.float32],
    rows: Rows,
    mean: NDArray[np.floating[Any]],
    std: NDArray[np.floating[Any]],
    clip: float,
) -> None:
    """Standardise the `rows` of `out` in place, within plus and minus `clip`."""
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        out[block] = np.clip((out[block] - mean) / std, -clip, clip)


def _mean_and_std(blocks: Callable[[], Iterator[Matrix]]) -> tuple[Statistics, Statistics]:
    """Over all cells of the blocks; 1 is the deviation of constant genes."""
    mean, variance = _mean_and_variance(blocks)
    std = np.sqrt(variance)
    std[std <= 1e-6 * np.abs(mean)] = 1.0  # what float32 rounding leaves of a constant share of the counts
    return mean, std


def _mean_and_variance(blocks: Callable[[], Iterator[Matrix]]) -> tuple[Statistics, Statistics]:
    """Over all cells, in two passes for the accuracy of the second; the variance is the unbiased one, 0 of one cell."""
    cells = 0
    mean, variance = np.zeros(1), np.zeros(1)  # (genes,) once added to
    for block in blocks():
        cells += block.shape[0]
        mean = mean + _column_sums(block)
    mean /= cells
    for block in blocks():
        variance = variance + _squared_deviations(block, mean)
    return mean, variance / max(cells - 1, 1)


def _column_sums(block: Matrix) -> Statistics:
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


def _needed(n_genes: int) -> int:
    """Genes of the model that data must have: one in ten and at least five. With fewer, predictions are guesses."""
    return min(n_genes, max(5, math.ceil(n_genes / 10)))


_GENOME = re.compile(r"^(GRC[a-z]\d+|hg\d+|mm\d+)_+")
_VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")


def _columns(wanted: NDArray[np.str_], genes: NDArray[np.str_]) -> NDArray[np.int64]:
    """(wanted,) column of each gene among `genes`, by its name, else by its bare name; -1 where it is missing."""
    column_of = {name: column for column, name in enumerate(genes.tolist())}
    columns = np.array([column_of.get(name, -1) for name in wanted.tolist()], dtype=np.int64)
    if (missing := columns < 0).any():
        bare = _bare_names(genes)
        columns[missing] = [bare.get(_bare(name), -1) for name in wanted[missing].tolist()]
    return columns


def _bare(gene: str) -> str:
    """A gene's name without the prefix of a genome, as 10x writes it, and the version of an Ensembl identifier."""
    return _VERSION.sub(r"\1", _GENOME.sub("", gene))


def _bare_names(genes: NDArray[np.str_]) -> dict[str, int]:
    """Column of each bare name; of none that several genes share, as those of two genomes do."""
    columns: dict[str, int] = {}
    for column, name in enumerate(map(_bare, genes.tolist())):
        columns[name] = -1 if name in columns else column
    return columns


def _why_unmatched(model: NDArray[np.str_], data: NDArray[np.str_]) -> str:
    """The likely reason that names differ, and the remedy."""
    if _are_ensembl(model) != _are_ensembl(data):
        kinds = ("Ensembl identifiers", "symbols") if _are_ensembl(data) else ("symbols", "Ensembl identifiers")
        return (
            f"the data name their genes by {kinds[0]}, the model by {kinds[1]}; name the column of var with --gene-key"
        )
    alike = {name.casefold() for name in model.tolist()} & {name.casefold() for name in data.tolist()}
    if len(alike) >= _needed(len(model)):
        return (
            f"{len(alike)} would match but for upper and lower case, as between mouse and human; name the column of "
            "var that holds the names of the model's species with --gene-key"
        )
    return "check that the data are of the model's species, or name the column of var with the gene names by --gene-key"


def _are_ensembl(genes: NDArray[np.str_]) -> bool:
    """Whether most names look like ENSG00000141510 or ENSMUSG00000059552.10."""
    hits = sum(re.match(r"ENS[A-Z]*G\d{6,}", name) is not None for name in genes.tolist())
    return 2 * hits > len(genes)

"""Expression kept sparse: compressed rows, made dense or multiplied a mini-batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ENTRIES_AT_ONCE = 8_000_000  # stored values worked on when a whole matrix is gone through


def viewed(array: NDArray[Any]) -> Tensor:
    """An array as a tensor, without torch's warning of those that may not be written to: nothing writes to them."""
    with warnings.catch_warnings(action="ignore"):
        return torch.from_numpy(array)


class Scale(NamedTuple):
    """How values are standardised once they are dense: (value - mean) / std, within plus and minus `clip`.

    Attributes
    ----------
    mean, std
        (groups, genes)
    clip
        The limit.
    group
        (cells,) the row of `mean` and `std` that a cell takes; None where there is one for all.
    """

    mean: Tensor
    std: Tensor
    clip: float
    group: Tensor | None = None


class Rows(NamedTuple):
    """Some cells in compressed rows, on the CPU: the first entry of each cell (cells,), and of each entry the gene,
    ascending in a cell, and the value (entries,).
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    @property
    def counts(self) -> Tensor:
        """(cells,) entries of each cell."""
        return torch.diff(self.starts, append=torch.tensor([len(self.values)]))


@dataclass(frozen=True, eq=False)
class Sparse:
    """Cells in compressed rows: views of the stored values of a larger matrix, of which nothing is copied.

    Counts are normalised, genes selected and values standardised when cells are read, so that training holds one copy
    of the data however many folds and selections of genes look at it.

    Attributes
    ----------
    starts, counts
        (cells,) int64: where a cell's values begin among those stored, and how many there are.
    columns, values
        (stored,) int32 gene and value, without duplicates, on one device with the rest.
    genes
        Genes of the view.
    selected
        (stored genes,) int32: the column of each stored gene in the view, -1 where it has none; None if all are there.
    factors
        (cells,) by which counts are multiplied before the logarithm, log(1 + factor * count); None where the values are
        logarithms.
    scale
        How to standardise; None to leave the values.
    """

    starts: Tensor
    counts: Tensor
    columns: Tensor
    values: Tensor
    genes: int
    selected: Tensor | None = None
    factors: Tensor | None = None
    scale: Scale | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Tensor) -> Sparse:
        """The cells of `rows`, indices or a mask."""
        scale = self.scale
        if scale is not None and scale.group is not None:
            scale = scale._replace(group=scale.group[rows])
        factors = None if self.factors is None else self.factors[rows]
        return replace(self, starts=self.starts[rows], counts=self.counts[rows], factors=factors, scale=scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return len(self.starts), self.genes

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    @property
    def density(self) -> float:
        """Share of the entries that are stored; of all stored genes where some are not selected."""
        genes = self.genes if self.selected is None else len(self.selected)
        return float(self.counts.sum()) / max(1, len(self) * genes)

    @property
    def zeros_stay(self) -> bool:
        """Whether what is not stored is 0 in the view."""
        return self.scale is None

    def rows(self, rows: Tensor) -> Rows:
        """The cells of `rows` in compressed rows, values normalised but not standardised; on the CPU."""
        counts = self.counts[rows]
        cell, columns, values = self._read(rows, int(counts.sum()))
        if self.selected is not None:
            counts = torch.bincount(cell, minlength=len(rows))
        return Rows(counts.cumsum(0) - counts, columns, values)

    def fill(self, out: Tensor, rows: Tensor, entries: int) -> None:
        """Write the cells of `rows` into `out`, (cells, genes), of any floating type; the device is not waited for.

        Parameters
        ----------
        out
            On the device of the values.
        rows
            (cells,) on the same device.
        entries
            Number of stored values of these cells, which the device would have to be asked for.
        """
        out.zero_()
        cell, columns, values = self._read(rows, entries)
        out[cell, columns] = values.to(out.dtype)
        if self.scale is not None:
            mean, std, clip, group = self.scale
            of_cells = slice(0, 1) if group is None else group[rows]
            out.sub_(mean[of_cells]).div_(std[of_cells]).clamp_(-clip, clip)

    def dense(self) -> Tensor:
        """All cells, (cells, genes)."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        rows = torch.arange(len(self), device=self.device)
        self.fill(out, rows, int(self.counts.sum()))
        return out

    def to(self, device: torch.device) -> Sparse:
        """The same cells on a device: the view itself where it is there, else a copy."""
        there = self.device.type == device.type and device.index in (None, self.device.index)
        return self if there else self.copy(device)

    def copy(self, device: torch.device) -> Sparse:
        """The view by itself, on a device: nothing is left to select or to normalise."""
        parts = [(part.counts.to(device), part.columns.to(device), part.values.to(device)) for part in self.portions()]
        count, columns, values = (torch.cat(arrays) for arrays in zip(*parts, strict=True))
        scale = self.scale
        if scale is not None:
            group = None if scale.group is None else scale.group.to(device)
            scale = Scale(scale.mean.to(device), scale.std.to(device), scale.clip, group)
        return Sparse(count.cumsum(0) - count, count, columns, values, self.genes, scale=scale)

    def alone(self) -> Sparse:
        """The view by itself, where it is: not copied if it is that already."""
        unchanged = self.selected is None and self.factors is None
        return self if unchanged and len(self.values) == int(self.counts.sum()) else self.copy(self.device)

    def portions(self) -> Iterator[Rows]:
        """All cells as `rows` gives them, but genes as int32: about as many entries at a time, in their order."""
        portion = (self.counts.cumsum(0) - 1).clamp(min=0) // ENTRIES_AT_ONCE
        _, sizes = torch.unique_consecutive(portion, return_counts=True)
        for rows in torch.split(torch.arange(len(self)), sizes.tolist()):
            part = self.rows(rows)
            yield part._replace(columns=part.columns.int())

    def _read(self, rows: Tensor, entries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cell, column and normalised value of everything that is stored of `rows`, (entries,) or fewer."""
        counts = self.counts[rows]
        cell = torch.repeat_interleave(counts, output_size=entries)
        first = self.starts[rows] - counts.cumsum(0) + counts
        stored = first[cell] + torch.arange(entries, device=rows.device)
        columns, values = self.columns[stored], self.values[stored]
        if self.selected is not None:
            columns = self.selected[columns]
            kept = columns >= 0
            columns, values, cell = columns[kept], values[kept], cell[kept]
        if self.factors is not None:
            values = torch.log1p(values * self.factors[rows][cell])
        return cell, columns.long(), values


Expression = Tensor | Sparse


def join(parts: Sequence[Expression]) -> Expression:
    """The cells of several parts with the same genes, in their order; copied, and standardised as each part was."""
    dense = [part for part in parts if isinstance(part, Tensor)]
    if len(dense) == len(parts):
        return torch.cat(dense)
    own = [compressed(part) if isinstance(part, Tensor) else part.alone() for part in parts]
    counts = torch.cat([part.counts for part in own])
    before = np.cumsum([0, *(len(part.values) for part in own)]).tolist()
    starts = torch.cat([part.starts + first for part, first in zip(own, before, strict=False)])
    scales = [part.scale for part in own if part.scale is not None]
    scale = None
    if scales:
        groups = torch.cumsum(torch.tensor([0, *(len(each.mean) for each in scales)]), 0)
        members = [
            first + (torch.zeros(len(part), dtype=torch.int64) if each.group is None else each.group)
            for part, each, first in zip(own, scales, groups, strict=False)
        ]
        mean, std = (torch.cat(tables) for tables in zip(*(each[:2] for each in scales), strict=True))
        scale = Scale(mean, std, scales[0].clip, torch.cat(members))
    columns, values = (torch.cat([getattr(part, name) for part in own]) for name in ("columns", "values"))
    return Sparse(starts, counts, columns, values, own[0].genes, scale=scale)


def stored_bytes(x: Expression) -> int:
    """Memory of the values, as if a view had its own."""
    if isinstance(x, Tensor):
        return x.numel() * x.itemsize
    return int(x.counts.sum()) * (x.values.itemsize + x.columns.itemsize)


def compressed(x: Tensor) -> Sparse:
    """Dense cells in compressed rows, (cells, genes), on the CPU."""
    cell, columns = x.nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=len(x))
    return Sparse(counts.cumsum(0) - counts, counts, columns.int(), x[cell, columns], x.shape[1])


def dense_rows(x: Expression, rows: Tensor) -> Tensor:
    """Some cells, made dense: (rows, genes)."""
    chosen = x[rows.to(x.device)]
    return chosen.dense() if isinstance(chosen, Sparse) else chosen


def chunks(x: Expression, cells: int) -> Iterator[Tensor]:
    """Dense portions of at most so many cells, (cells, genes)."""
    if isinstance(x, Tensor):
        yield from torch.split(x, cells)
    else:
        for rows in torch.split(torch.arange(len(x)), cells):
            yield dense_rows(x, rows)


def transposed(rows: Rows, genes: int) -> Rows:
    """The same values by gene: for each gene the cells that have it, in ascending order."""
    columns = rows.columns.numpy()
    cell = np.repeat(np.arange(len(rows.starts)), rows.counts.numpy())
    # NumPy sorts 16 bits by radix, several times as fast as more of them.
    order = np.argsort(columns.astype(np.uint16) if genes <= np.iinfo(np.uint16).max else columns, kind="stable")
    by_gene = np.bincount(columns, minlength=genes)
    starts = np.cumsum(by_gene) - by_gene
    return Rows(torch.from_numpy(starts), torch.from_numpy(cell[order]), rows.values[torch.from_numpy(order)])

"""Which cells every step of an epoch visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scdgn.core.config import ClassWeights, Pairing
from scdgn.core.memory import upload
from scdgn.core.pack.members import Cells, Member
from scdgn.core.pairs import Pairs, Partners, legal_partners, unconditional_partners
from scdgn.core.randomness import Purpose, generator
from scdgn.core.shifts import Moves


@dataclass(frozen=True, eq=False)
class Stream:
    """The mini-batches that one or more members see.

    Attributes
    ----------
    cells
        With `x` on the device.
    seed
        Of the order of the cells and of their pairs.
    batch_size
        Labelled cells per step.
    balanced
        Whether every domain has an equal share of an epoch.
    pairing
        How pairs are drawn; None where no pair is drawn.
    shifts
        Probability, strength and relabelling of batch shifts; None where no cell is moved.
    """

    cells: Cells
    seed: int
    batch_size: int
    balanced: bool
    pairing: Pairing | None
    shifts: tuple[float, float, bool] | None = None

    @classmethod
    def of(cls, member: Member, cells: Cells) -> Stream:
        """The stream that a member sees."""
        settings = member.settings
        drawn = settings.pairing if settings.method == "scdgn" and settings.pairing != "batch" else None
        return cls(cells, member.order_seed, settings.batch_size, settings.balance_domains, drawn, settings.shifts)

    def order(self, epoch: int) -> Tensor:
        """The labelled cells in the order of an epoch, as places in `cells.labeled`."""
        draws = generator(self.seed, Purpose.ORDER, epoch)
        domains = self.cells.domains[self.cells.labeled]
        return balanced_order(domains, draws) if self.balanced else torch.randperm(len(domains), generator=draws)

    def pairs(self, epoch: int) -> Pairs | None:
        """Partners of the labelled cells, as places in `cells.labeled`."""
        if self.pairing is None:
            return None
        return self._draw(epoch) if self.pairing == "epoch" else self._drawn_once

    def moves(self, domains: Tensor, epoch: int) -> Moves:
        """Where the labelled cells of an epoch are moved, given their domains in the order of their visits."""
        assert self.shifts is not None
        return self.cells.shifts.draw(domains, *self.shifts, generator(self.seed, Purpose.SHIFTS, epoch))

    @cached_property
    def _drawn_once(self) -> Pairs:
        return self._draw(0)

    def _draw(self, epoch: int) -> Pairs:
        return self._partners.draw(generator(self.seed, Purpose.PAIRS, epoch))

    @cached_property
    def _partners(self) -> Partners:
        labeled = self.cells.labeled
        domains = self.cells.domains[labeled]
        if self.pairing == "unconditional":
            return unconditional_partners(domains)
        return legal_partners(self.cells.labels[labeled], domains)

    def unlabeled(self, epoch: int, steps: int) -> Tensor:
        """Unlabelled cells for every step, (steps, cells), as places in `cells.unlabeled`.

        As many as there are labelled ones if there are so many; they come round again when all have been visited.
        """
        count = len(self.cells.unlabeled)
        width = min(self.batch_size, count)
        draws = generator(self.seed, Purpose.UNLABELED_ORDER, epoch)
        return _rounds(torch.arange(count), steps * width, draws).view(steps, width)


def balanced_order(domains: Tensor, draws: torch.Generator) -> Tensor:
    """A random order of as many cells, in which every domain has an equal share.

    A small domain's cells come round again when all of them have been visited; of a large domain every epoch visits
    another part.

    Parameters
    ----------
    domains
        (cells,) int64 on the CPU.
    draws
        Source of randomness.

    Returns
    -------
    (cells,) int64
    """
    present = torch.unique(domains)
    share = -(-len(domains) // len(present))
    drawn = torch.cat([_rounds(torch.nonzero(domains == domain)[:, 0], share, draws) for domain in present])
    return drawn[torch.randperm(len(drawn), generator=draws)[: len(domains)]]


def _rounds(rows: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """The first `count` of one random order of the rows after another."""
    if not count:
        return rows[:0]
    rounds = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=draws)] for _ in range(rounds)])[:count]


@dataclass(frozen=True)
class EpochPlan:
    """Every step of an epoch, for streams side by side: each tensor is (streams, steps, cells of a step).

    A stream with fewer cells in a step than another one is filled up with its first cell, which does not count
    (`real` is 0); one with no cells left takes no part, so the streams come with the longest first.

    Attributes
    ----------
    widths, streams
        Labelled cells, and streams that take part, in each step.
    labeled, labels, domains, real
        Rows of the labelled cells, their types and domains, and 1 where a cell counts, else 0.
    partners, same, use
        Rows of their partners, and the kind of the pairs; None where no pair is drawn.
    unlabeled, unlabeled_place, unlabeled_domains, unlabeled_real
        Rows of unlabelled cells, their places in `Cells.unlabeled`, domains, and 1 where they count. May be empty.
    target, origin, factor
        How the labelled cells are moved (see `shifts.Moves`); None where no stream moves any. Domains are those that
        cells were moved to, where that is asked for.
    """

    widths: list[int]
    streams: list[int]
    labeled: Tensor
    labels: Tensor
    domains: Tensor
    real: Tensor
    partners: Tensor | None
    same: Tensor | None
    use: Tensor | None
    unlabeled: Tensor
    unlabeled_place: Tensor
    unlabeled_domains: Tensor
    unlabeled_real: Tensor
    target: Tensor | None = None
    origin: Tensor | None = None
    factor: Tensor | None = None

    def on(self, device: torch.device, place: EpochPlan | None = None) -> EpochPlan:
        """The same plan on a device, in the tensors of an earlier one where that is given."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: upload(tensor, device) for name, tensor in tensors.items()}
        return replace(self, **in_place(moved, {} if place is None else vars(place)))  # type: ignore[arg-type]


def in_place(tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, written into the places of the same names where there are such."""
    return {name: places[name].copy_(tensor) if name in places else tensor for name, tensor in tensors.items()}


def plan_epoch(streams: Sequence[Stream], epoch: int, with_unlabeled: bool) -> EpochPlan:
    """Draw an epoch (numbered from 0) of every stream, on the CPU.

    Parameters
    ----------
    streams
        With equal batch size and pairing, the longest first.
    epoch
        Its draws depend on each stream's seed and on this number alone.
    with_unlabeled
        Whether unlabelled cells are visited.
    """
    moving = any(stream.shifts is not None for stream in streams)
    columns = [_columns(stream, epoch, with_unlabeled, moving) for stream in streams]
    batch = streams[0].batch_size
    counts = [len(stream.cells.labeled) for stream in streams]
    starts = range(0, counts[0], batch)
    stacked = {
        name: _side_by_side([column[name] for column in columns]) if name in columns[0] else None
        for name in EpochPlan.__annotations__
        if name not in ("widths", "streams")
    }
    return EpochPlan(
        widths=[min(batch, max(counts) - start) for start in starts],
        streams=[sum(count > start for count in counts) for start in starts],
        **stacked,  # type: ignore[arg-type]
    )


def _columns(stream: Stream, epoch: int, with_unlabeled: bool, moving: bool) -> dict[str, Tensor]:
    """The tensors of an `EpochPlan` for one stream, each (steps, cells); with moves if any stream of it is `moving`."""
    cells, batch = stream.cells, stream.batch_size
    order = stream.order(epoch)
    steps = -(-len(order) // batch)
    real = (torch.arange(steps * batch) < len(order)).view(steps, batch)
    order = torch.cat([order, order[:1].expand(steps * batch - len(order))]).view(steps, batch)
    labeled = cells.labeled[order]
    columns = {
        "labeled": labeled,
        "labels": cells.labels[labeled],
        "domains": cells.domains[labeled],
        "real": real.to(cells.x.dtype),
    }
    pairs = stream.pairs(epoch)
    if pairs is not None:
        columns["partners"] = cells.labeled[pairs.partner[order]]
        columns["same"] = pairs.same[order].to(cells.x.dtype)
        columns["use"] = pairs.use[order].to(cells.x.dtype)
    if stream.shifts is not None:
        target, origin, factor, domains = stream.moves(columns["domains"].flatten(), epoch)
        columns |= {"target": target, "origin": origin, "factor": factor.to(cells.x.dtype), "domains": domains}
        columns |= {name: columns[name].view(steps, batch) for name in ("target", "origin", "factor", "domains")}
    elif moving:
        nowhere = torch.zeros_like(labeled)
        columns |= {"target": nowhere, "origin": nowhere, "factor": nowhere.to(cells.x.dtype)}
    place = stream.unlabeled(epoch, steps) if with_unlabeled else torch.empty(steps, 0, dtype=torch.int64)
    unlabeled = cells.unlabeled[place]
    columns["unlabeled"] = unlabeled
    columns["unlabeled_place"] = place
    columns["unlabeled_domains"] = cells.domains[unlabeled]
    columns["unlabeled_real"] = torch.ones(place.shape, dtype=cells.x.dtype)
    return columns


def _side_by_side(columns: Sequence[Tensor]) -> Tensor:
    """Stack (steps, cells) tensors, zero-padded, to (streams, steps, cells)."""
    steps, width = (max(column.shape[axis] for column in columns) for axis in (0, 1))
    stacked = columns[0].new_zeros(len(columns), steps, width)
    for place, column in zip(stacked, columns, strict=True):
        place[: column.shape[0], : column.shape[1]] = column
    return stacked


def class_weights(kind: ClassWeights, labels: Tensor, types: int) -> Tensor:
    """Weight of each type in the label loss, (types,), averaging 1 over the cells given; 0 for absent types.

    `balanced` is inversely proportional to a type's number of cells, `sqrt` to its square root, `none` is 1.
    """
    counts = torch.bincount(labels, minlength=types).double()
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return weights * counts.sum() / (weights * counts).sum()

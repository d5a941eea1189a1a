"""Batch shifts: cells are moved, in training, by how the same type differs between two training domains.

Where batch and type are confounded, a network learns a batch's signature as a type's. The mean of a type in one domain
minus its mean in another one is such a signature without the type; added to cells of any type, it makes cells of that
type as the other domain might show them, which the training set lacks. The idea of adding differences of batch means to
cells is scTab's (Fischer et al. 2024); here they are differences within a type, so that they hold no composition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scdgn.core.expression import Expression, dense_rows

LEAST_CELLS = 5
"""Fewest cells of a type in a domain whose mean is one of a shift."""

_CELLS_AT_ONCE = 1024


class Moves(NamedTuple):
    """How some cells are moved: by factor * (means[target] - means[origin]).

    Attributes
    ----------
    target, origin
        (cells,) int64 groups, type * domains + domain, whose `Shifts.means` are meant.
    factor
        (cells,) float64, 0 for a cell that stays.
    domains
        (cells,) int64, the domain that each cell is moved to, or stays in.
    """

    target: Tensor
    origin: Tensor
    factor: Tensor
    domains: Tensor


@dataclass(frozen=True, eq=False)
class Shifts:
    """The means of every type in every domain of some training cells, and the pairs of them that make a shift.

    A shift is that of a type between the cell's own domain and another one, both with `LEAST_CELLS` of it or more.

    Attributes
    ----------
    rows
        (groups that are held, genes) means of the network's input, on its device.
    places
        (types * domains,) int64 where that of each group lies among them, on the same device; 0 where it is not held.
    floor
        (genes,) lowest value of each gene among the cells: no moved cell goes below it.
    held
        (types, domains) bool, on the CPU: where there are enough cells.
    """

    rows: Tensor
    places: Tensor
    floor: Tensor
    held: Tensor

    @classmethod
    def of(cls, x: Expression, labels: Tensor, domains: Tensor, shape: tuple[int, int]) -> Shifts:
        """Those of labelled cells: their input, (cells, genes), and (cells,) codes on the CPU; `shape` has the numbers
        of types and domains.
        """
        group = labels * shape[1] + domains  # (cells,)
        counts = torch.bincount(group, minlength=shape[0] * shape[1])
        held = counts >= LEAST_CELLS
        # Of hundreds of types in hundreds of domains few groups are held: the others have no row.
        places = torch.where(held, held.cumsum(dim=0) - 1, 0)
        sums = torch.zeros(max(1, int(held.sum())), x.shape[1], dtype=torch.float64, device=x.device)
        floor = torch.full((x.shape[1],), torch.inf, dtype=x.dtype, device=x.device)
        for rows in torch.split(torch.arange(len(labels)), _CELLS_AT_ONCE):
            block = dense_rows(x, rows)
            present, own = torch.unique(group[rows], return_inverse=True)
            member = torch.nn.functional.one_hot(own, len(present)).double().T
            heard = held[present]
            # In one order, unlike index_add on a GPU.
            sums[places[present[heard]].to(x.device)] += member[heard].to(x.device) @ block.double()
            floor = torch.minimum(floor, block.amin(dim=0))
        if held.any():
            sums /= counts[held].double()[:, None].to(x.device)
        return cls(sums.to(x.dtype), places.to(x.device), floor, held.view(shape))

    def means(self, groups: Tensor) -> Tensor:
        """Means of groups that are held, and of others any: (groups, genes)."""
        return self.rows[self.places[groups]]

    def draw(
        self, domains: Tensor, probability: float, strength: float, relabel: bool, draws: torch.Generator
    ) -> Moves:
        """Move each cell, with a probability, by a shift drawn evenly among those from its own domain.

        Parameters
        ----------
        domains
            (cells,) codes.
        probability
            Of a cell to be moved; one of a domain that shares no type with another one stays.
        strength
            Largest factor: factors are drawn evenly up to it.
        relabel
            Whether a moved cell takes the domain that it was moved to. It is then moved by the whole strength.
        draws
            Source of randomness, on the CPU.
        """
        types, count = self.held.shape
        # Of each domain, by type: into how many other domains the type's shifts lead.
        others = torch.where(self.held, self.held.sum(dim=1, keepdim=True) - 1, 0).T  # (domains, types)
        ends = others.flatten().cumsum(dim=0)
        before = torch.cat([ends.new_zeros(1), ends[types - 1 :: types]])  # (domains + 1,)
        moving, which, how_far = torch.rand(3, len(domains), dtype=torch.float64, generator=draws)
        choices = before.diff()[domains]
        chosen = before[domains] + (which * choices).long()
        found = torch.searchsorted(ends, chosen, right=True).clamp(max=types * count - 1)
        place = chosen - (ends - others.flatten())[found]
        type_ = found % types
        # The domains that hold the type, in their order and without the cell's own.
        rank = self.held.cumsum(dim=1) - 1  # (types, domains)
        place = place + (place >= rank[type_, domains])
        holders = torch.argsort(self.held.int(), dim=1, descending=True, stable=True)
        target = holders[type_, place.clamp(min=0, max=count - 1)]
        moves = (moving < probability) & (choices > 0)
        target = torch.where(moves, target, domains)
        factor = strength * (torch.ones_like(how_far) if relabel else how_far)
        return Moves(
            type_ * count + target,
            type_ * count + domains,
            torch.where(moves, factor, 0.0),
            target if relabel else domains,
        )

"""Pairs of cells for the contrastive loss, drawn for whole data sets at once.

A positive pair shares its domain and differs in cell type, a negative one shares its type and differs in domain. The
published rule for a cell: on a fair coin a positive partner if one exists; otherwise a negative one if one exists;
otherwise the pair is illegal and unused (so a cell whose coin says negative and that has none is illegal even if it has
positives). `losses.pair_shares` holds the expectation of the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """One partner for every cell.

    Attributes
    ----------
    partner
        (cells,) int64, row of the partner; the cell itself where the pair is unused.
    same
        (cells,) bool, true where the pair is positive (same domain).
    use
        (cells,) bool, false where the pair is illegal.
    """

    partner: Tensor
    same: Tensor
    use: Tensor


@dataclass(frozen=True, eq=False)
class Partners:
    """Who may be whose partner: what every draw of pairs of the same cells has in common."""

    positives: _Candidates
    negatives: _Candidates

    def draw(self, draws: torch.Generator) -> Pairs:
        """One partner for every cell, from a source of randomness on the CPU."""
        (positive, has_positive), (negative, has_negative) = self.positives.draw(draws), self.negatives.draw(draws)
        same = (torch.rand(len(positive), generator=draws) < 0.5) & has_positive
        use = same | has_negative
        own = torch.arange(len(positive))
        return Pairs(torch.where(same, positive, torch.where(use, negative, own)), same, use)


def legal_partners(types: Tensor, domains: Tensor) -> Partners:
    """The published rule.

    Parameters
    ----------
    types, domains
        (cells,) int64 on the CPU.
    """
    return Partners(_Candidates.of(domains, types), _Candidates.of(types, domains))


def unconditional_partners(domains: Tensor) -> Partners:
    """By domain alone, whatever the types of the cells: the ablation of the paper.

    The rule is the published one with another cell of the same domain as positive, and any cell of another domain as
    negative partner.
    """
    own, everywhere = torch.arange(len(domains)), torch.zeros_like(domains)
    return Partners(_Candidates.of(domains, own), _Candidates.of(everywhere, domains))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """For every cell those that share one code with it and differ in another.

    With the cells sorted by both codes, the candidates of a cell are the block of its shared code less one run inside
    it, so a draw is one uniform number that skips the run.

    Attributes
    ----------
    order
        (cells,) the cells sorted by both codes.
    block_start, run_start, run_size
        (cells,) where the block and the run of each cell are in `order`, and how long the run is.
    count
        (cells,) candidates of each cell.
    """

    order: Tensor
    block_start: Tensor
    run_start: Tensor
    run_size: Tensor
    count: Tensor

    @classmethod
    def of(cls, shared: Tensor, differing: Tensor) -> _Candidates:
        """Cells equal in `shared` and unequal in `differing`, each (cells,) codes."""
        _, block = torch.unique(shared, return_inverse=True)
        _, value = torch.unique(differing, return_inverse=True)
        key = block * (int(value.max()) + 1) + value
        _, run, run_sizes = torch.unique(key, return_inverse=True, return_counts=True)
        block_sizes = torch.bincount(block)
        return cls(
            order=torch.argsort(key, stable=True),
            block_start=(torch.cumsum(block_sizes, 0) - block_sizes)[block],
            run_start=(torch.cumsum(run_sizes, 0) - run_sizes)[run],
            run_size=run_sizes[run],
            count=block_sizes[block] - run_sizes[run],
        )

    def draw(self, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """A uniform draw for every cell: rows, meaningless where there is no candidate, and whether there is one."""
        uniform = torch.rand(len(self.order), generator=draws, dtype=torch.float64)
        place = self.block_start + (uniform * self.count).long()
        place += torch.where(place >= self.run_start, self.run_size, 0)
        return self.order[place.clamp(max=len(self.order) - 1)], self.count > 0

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


def draw_pairs(types: Tensor, domains: Tensor, draws: torch.Generator) -> Pairs:
    """Draw a partner for every cell by the published rule.

    Parameters
    ----------
    types, domains
        (cells,) int64 on the CPU.
    draws
        Source of randomness.
    """
    return _toss(_partner_sharing(domains, types, draws), _partner_sharing(types, domains, draws), draws)


def draw_unconditional_pairs(domains: Tensor, draws: torch.Generator) -> Pairs:
    """Draw a partner for every cell by domain alone, whatever its type: the ablation of the paper.

    The rule is the published one with another cell of the same domain as positive, and any cell of another domain as
    negative partner.
    """
    own, everywhere = torch.arange(len(domains)), torch.zeros_like(domains)
    return _toss(_partner_sharing(domains, own, draws), _partner_sharing(everywhere, domains, draws), draws)


def _toss(positives: tuple[Tensor, Tensor], negatives: tuple[Tensor, Tensor], draws: torch.Generator) -> Pairs:
    positive, has_positive = positives
    negative, has_negative = negatives
    same = (torch.rand(len(positive), generator=draws) < 0.5) & has_positive
    use = same | has_negative
    own = torch.arange(len(positive))
    return Pairs(torch.where(same, positive, torch.where(use, negative, own)), same, use)


def _partner_sharing(shared: Tensor, differing: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every cell a uniform draw among the cells equal in `shared` and unequal in `differing`.

    With the cells sorted by both, the candidates of a cell are the block of its `shared` less one run inside it, so a
    draw is one uniform number that skips the run.

    Returns
    -------
    (cells,) rows, meaningless where there is no candidate; (cells,) bool, whether there is one.
    """
    _, block = torch.unique(shared, return_inverse=True)
    _, value = torch.unique(differing, return_inverse=True)
    key = block * (int(value.max()) + 1) + value
    order = torch.argsort(key, stable=True)
    _, run, run_sizes = torch.unique(key, return_inverse=True, return_counts=True)
    block_sizes = torch.bincount(block)
    run_start = (torch.cumsum(run_sizes, 0) - run_sizes)[run]
    block_start = (torch.cumsum(block_sizes, 0) - block_sizes)[block]
    candidates = block_sizes[block] - run_sizes[run]
    uniform = torch.rand(len(shared), generator=draws, dtype=torch.float64)
    place = block_start + (uniform * candidates).long()
    place = place + torch.where(place >= run_start, run_sizes[run], 0)
    return order[place.clamp(max=len(order) - 1)], candidates > 0

"""Every drawn pair is legal, and every legal pair is drawn as often as the published rule says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scdgn.core.pairs import Pairs, legal_partners, unconditional_partners

Kinds = list[tuple[int, int]]  # (type, domain) of every cell
Legal = Callable[[Kinds, int, int], bool]

# Codes need not be dense.
kinds = st.lists(st.tuples(st.sampled_from([0, 1, 7]), st.sampled_from([0, 2, 3])), min_size=1, max_size=12)
seeds = st.integers(0, 10_000)


def conditional(kinds: Kinds, seed: int) -> Pairs:
    types, domains = torch.tensor(kinds).T
    return legal_partners(types, domains).draw(torch.Generator().manual_seed(seed))


def unconditional(kinds: Kinds, seed: int) -> Pairs:
    return unconditional_partners(torch.tensor(kinds)[:, 1]).draw(torch.Generator().manual_seed(seed))


def positive(kinds: Kinds, i: int, j: int) -> bool:
    return kinds[i][1] == kinds[j][1] and kinds[i][0] != kinds[j][0]


def negative(kinds: Kinds, i: int, j: int) -> bool:
    return kinds[i][1] != kinds[j][1] and kinds[i][0] == kinds[j][0]


def positive_by_domain(kinds: Kinds, i: int, j: int) -> bool:
    return kinds[i][1] == kinds[j][1] and i != j


def negative_by_domain(kinds: Kinds, i: int, j: int) -> bool:
    return kinds[i][1] != kinds[j][1]


RULES = {
    "published": (conditional, positive, negative),
    "unconditional": (unconditional, positive_by_domain, negative_by_domain),
}


def partners(kinds: Kinds, legal: Legal, anchor: int) -> list[int]:
    return [other for other in range(len(kinds)) if legal(kinds, anchor, other)]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=80, deadline=None)
@given(kinds=kinds, seed=seeds)
def test_every_pair_is_legal_and_an_anchor_goes_unused_only_without_a_negative(
    rule: str, kinds: Kinds, seed: int
) -> None:
    draw, legal_positive, legal_negative = RULES[rule]
    pairs = draw(kinds, seed)
    assert (pairs.same <= pairs.use).all()
    for anchor, (partner, same, use) in enumerate(
        zip(pairs.partner.tolist(), pairs.same.tolist(), pairs.use.tolist(), strict=True)
    ):
        if not use:
            assert partner == anchor
            assert not partners(kinds, legal_negative, anchor)
        else:
            assert (legal_positive if same else legal_negative)(kinds, anchor, partner)


@pytest.mark.parametrize("kinds", [[(3, 1)], [(0, 0)] * 5], ids=["one cell", "one type in one domain"])
def test_where_no_pair_is_legal_none_is_used(kinds: Kinds) -> None:
    for seed in range(20):
        assert not conditional(kinds, seed).use.any()


def test_one_domain_has_positives_alone_and_tails_are_illegal() -> None:
    drawn = [conditional([(type_, 0) for type_ in (0, 0, 1, 2)], seed) for seed in range(200)]
    use, same = (torch.stack([getattr(pairs, name) for pairs in drawn]) for name in ("use", "same"))
    assert torch.equal(use, same)
    assert (use.double().mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(200)


def test_one_type_has_negatives_alone_and_uses_them_whatever_the_coin() -> None:
    for seed in range(50):
        pairs = conditional([(0, domain) for domain in (0, 0, 1, 2)], seed)
        assert pairs.use.all() and not pairs.same.any()


# Unequal blocks: uniform over the blocks, say, would not be uniform over the cells.
UNEVEN = list(zip([0, 0, 0, 1, 2, 2, 0, 1, 1, 2, 0, 0, 0, 4], [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 5], strict=True))


def frequencies(kinds: Kinds, draw: Callable[[Kinds, int], Pairs], repeats: int) -> tuple[Tensor, Tensor]:
    """How often each anchor met each partner as a positive and as a negative, (anchors, partners)."""
    counts = torch.zeros(2, len(kinds), len(kinds), dtype=torch.float64)
    anchors = torch.arange(len(kinds))
    for seed in range(repeats):
        pairs = draw(kinds, seed)
        counts[0, anchors, pairs.partner] += pairs.same.double()
        counts[1, anchors, pairs.partner] += (pairs.use & ~pairs.same).double()
    return counts[0] / repeats, counts[1] / repeats


@pytest.mark.parametrize("rule", RULES)
def test_the_coin_is_fair_and_a_partner_uniform_among_the_legal(rule: str) -> None:
    draw, legal_positive, legal_negative = RULES[rule]
    repeats = 1500
    positives, negatives = frequencies(UNEVEN, draw, repeats)
    for anchor in range(len(UNEVEN)):
        near, far = partners(UNEVEN, legal_positive, anchor), partners(UNEVEN, legal_negative, anchor)
        expected = torch.zeros(2, len(UNEVEN), dtype=torch.float64)
        expected[0, near] = 0.5 / max(1, len(near))
        expected[1, far] = (0.5 if near else 1.0) / max(1, len(far))
        error = (expected * (1 - expected) / repeats).sqrt()
        assert ((torch.stack([positives[anchor], negatives[anchor]]) - expected).abs() <= 4.5 * error).all()


def test_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (conditional(UNEVEN, seed) for seed in (1, 1, 2))
    assert torch.equal(first.partner, again.partner) and torch.equal(first.same, again.same)
    assert not torch.equal(first.partner, other.partner)

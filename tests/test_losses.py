"""The losses against their formulas, a plain double loop over pairs, and the average of many drawn pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor

from scdgn.core.losses import EPSILON, batch_pair_loss, contrastive, cross_entropy, pair_loss, pair_shares
from scdgn.core.pairs import legal_partners

CODE = 4

# Types and domains of a batch; small, so that cells without positives, negatives or both are common.
kinds = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=9)
seeds = st.integers(0, 1000)
margins = st.sampled_from([0.0, 0.5, 1.0, 3.0])


def codes(seed: int, cells: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.tanh(torch.randn(CODE, cells, generator=draws, dtype=torch.float64))


def pair_cost(one: Tensor, other: Tensor, same: bool, margin: float) -> float:
    """The contrastive loss of one pair, as the paper writes it."""
    squared = sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True)) + 0.001
    return 0.5 * squared if same else 0.5 * max(0.0, margin - math.sqrt(squared)) ** 2


def looped(code: Tensor, kinds: list[tuple[int, int]], margin: float) -> float:
    """The expected loss of the published draw, anchor by anchor."""
    total = 0.0
    for i, (type_, domain) in enumerate(kinds):
        positives, negatives = [], []
        for j, (other_type, other_domain) in enumerate(kinds):
            if domain == other_domain and type_ != other_type:
                positives.append(pair_cost(code[:, i], code[:, j], True, margin))
            elif domain != other_domain and type_ == other_type:
                negatives.append(pair_cost(code[:, i], code[:, j], False, margin))
        if positives:
            total += 0.5 * sum(positives) / len(positives)
        if negatives:
            total += (0.5 if positives else 1.0) * sum(negatives) / len(negatives)
    return total / len(kinds)


def batch_loss(code: Tensor, kinds: list[tuple[int, int]], margin: float, weight: Tensor | None = None) -> Tensor:
    types, domains = torch.tensor(kinds).T[:, None]
    weight = torch.ones(1, len(kinds), dtype=code.dtype) if weight is None else weight
    shares = pair_shares(types, domains, weight)
    return batch_pair_loss(code[None], shares, torch.tensor([margin], dtype=code.dtype))[0]


def test_a_positive_pair_costs_half_its_squared_distance_and_a_negative_what_it_lacks_to_the_margin() -> None:
    squared = torch.tensor([0.49, 0.49, 4.0])
    same = torch.tensor([1.0, 0.0, 0.0])
    # 0.49 / 2; (1.5 - 0.7)^2 / 2; beyond the margin.
    torch.testing.assert_close(contrastive(squared, same, torch.tensor(1.5)), torch.tensor([0.245, 0.32, 0.0]))


def test_drawn_pairs_are_averaged_over_the_batch_illegal_ones_included() -> None:
    anchor = torch.zeros(1, 2, 4)
    partner = torch.tensor([[0.3, 0.3, 0.3, 9.0], [0.4, 0.4, 0.4, 9.0]])[None]
    same = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    use = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    squared = 0.25 + EPSILON
    expected = (0.5 * squared + 0.5 * (2 - math.sqrt(squared)) ** 2 + 0) / 3
    loss = pair_loss(anchor, partner, same, use, weight, torch.tensor([2.0]))
    assert loss.tolist() == pytest.approx([expected], rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(kinds, seeds, margins)
def test_the_batch_loss_is_a_double_loop_over_its_pairs(kinds: list[tuple[int, int]], seed: int, margin: float) -> None:
    code = codes(seed, len(kinds))
    assert batch_loss(code, kinds, margin).item() == pytest.approx(looped(code, kinds, margin), abs=1e-12)


def test_the_batch_loss_keeps_models_apart() -> None:
    one = [(0, 0), (0, 1), (1, 1), (2, 0)]
    other = [(0, 0), (1, 0), (2, 1), (2, 2)]
    both = torch.tensor([one, other])
    code, margin = torch.stack([codes(0, 4), codes(1, 4)]), torch.tensor([0.5, 3.0]).double()
    losses = batch_pair_loss(code, pair_shares(both[..., 0], both[..., 1], torch.ones(2, 4).double()), margin)
    assert losses.tolist() == pytest.approx([looped(code[0], one, 0.5), looped(code[1], other, 3.0)])


def test_models_that_share_a_batch_share_its_kinds() -> None:
    kinds = [(0, 0), (0, 1), (1, 1), (2, 0)]
    types, domains = torch.tensor(kinds).T[:, None]
    code, margin, one = torch.stack([codes(0, 4), codes(1, 4)]), torch.tensor([0.5, 3.0]).double(), torch.ones(1, 4)
    losses = batch_pair_loss(code, pair_shares(types, domains, one.double()), margin)
    assert losses.tolist() == pytest.approx([looped(code[0], kinds, 0.5), looped(code[1], kinds, 3.0)])
    logits, target, weight = random_logits()
    shared = cross_entropy(logits, target[:1], weight[:1])
    torch.testing.assert_close(shared, cross_entropy(logits, target[:1].repeat(2, 1), weight[:1].repeat(2, 1)))


# One domain holds types 0, 1 and 2, another 0 and 1, a third type 0 alone: see the test for who lacks what.
MIXED = [(0, 0), (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (1, 1), (0, 2), (5, 3)]


def test_the_batch_loss_is_the_average_of_many_drawn_pairs() -> None:
    draws, repeats, margin = torch.Generator().manual_seed(0), 3000, 1.5
    types, domains = torch.tensor(MIXED).T
    drawn = [legal_partners(types, domains).draw(draws) for _ in range(repeats)]
    used, same = torch.stack([pairs.use for pairs in drawn]), torch.stack([pairs.same for pairs in drawn])
    assert not same[:, 7].any() and used[:, 7].all()  # no positives
    assert (used[:, 3] == same[:, 3]).all() and 0.4 < used[:, 3].double().mean() < 0.6  # no negatives
    assert not used[:, 8].any()  # neither
    assert used[:, :3].all() and same[:, :3].any(dim=0).all()  # both

    code = codes(3, len(MIXED))
    partner = torch.stack([code[:, pairs.partner] for pairs in drawn])
    ones, margins = torch.ones(repeats, len(MIXED)).double(), torch.full((repeats,), margin).double()
    losses = pair_loss(code.expand(repeats, -1, -1), partner, same.double(), used.double(), ones, margins)
    error = losses.std().item() / math.sqrt(repeats)
    expected = batch_loss(code, MIXED, margin).item()
    assert error < 0.01 * expected
    assert losses.mean().item() == pytest.approx(expected, abs=4 * error)


@settings(max_examples=60, deadline=None)
@given(kinds, kinds, seeds, margins)
def test_cells_of_weight_zero_are_not_there(
    kept: list[tuple[int, int]], taken_out: list[tuple[int, int]], seed: int, margin: float
) -> None:
    kinds = [*kept, *taken_out]
    code = codes(seed, len(kinds)).requires_grad_()
    weight = (torch.arange(len(kinds)) < len(kept)).double()[None]
    loss = batch_loss(code, kinds, margin, weight)
    assert loss.item() == pytest.approx(looped(code.detach()[:, : len(kept)], kept, margin), abs=1e-12)
    loss.backward()
    assert code.grad is not None
    assert not code.grad[:, len(kept) :].any()


@settings(max_examples=60, deadline=None)
@given(kinds, seeds, margins, st.data())
def test_a_cell_of_weight_two_is_a_cell_given_twice(
    kinds: list[tuple[int, int]], seed: int, margin: float, data: st.DataObject
) -> None:
    copies = torch.tensor(data.draw(st.lists(st.integers(1, 3), min_size=len(kinds), max_size=len(kinds))))
    code = codes(seed, len(kinds))
    rows = torch.repeat_interleave(copies)
    repeated = batch_loss(code[:, rows], [kinds[row] for row in rows], margin)
    assert batch_loss(code, kinds, margin, copies.double()[None]).item() == pytest.approx(repeated.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_all_codes_are_identical(dtype: torch.dtype) -> None:
    code = codes(0, 1).to(dtype).repeat(1, len(MIXED)).requires_grad_()
    batch_loss(code, MIXED, 1.0).backward()
    assert code.grad is not None and code.grad.isfinite().all()
    anchor, partner = (code.detach()[None].clone().requires_grad_() for _ in range(2))
    ones = torch.ones(1, len(MIXED), dtype=dtype)
    pair_loss(anchor, partner, 0 * ones, ones, ones, torch.ones(1, dtype=dtype)).sum().backward()
    assert anchor.grad is not None and anchor.grad.isfinite().all()


def test_single_precision_gives_the_loss_of_double_precision() -> None:
    kinds = [(i % 5, i % 3) for i in range(60)]
    code = 0.9 + 0.01 * codes(0, 60)  # close together: the differences cancel most digits
    loss = batch_loss(code, kinds, 1.0)
    assert batch_loss(code.float(), kinds, 1.0).item() == pytest.approx(loss.item(), rel=1e-4)


def test_rounding_never_makes_a_distance_negative() -> None:
    code = torch.full((20_000, 16), 0.999) * torch.linspace(0.5, 1, 20_000)[:, None]  # lengths near 12,000
    loss = batch_loss(code, [(0, domain) for domain in range(16)], 0.5)
    assert loss.item() == pytest.approx(0.5 * (0.5 - math.sqrt(EPSILON)) ** 2, rel=0.1)


def random_logits() -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, generator=draws, dtype=torch.float64)
    target = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 3, 1, 0, 2, 2]])
    return logits, target, torch.rand(2, 6, generator=draws, dtype=torch.float64) + 0.1


def test_cross_entropy_is_the_weighted_log_loss_of_every_model() -> None:
    logits, target, weight = random_logits()
    losses = cross_entropy(logits, target, weight)
    for model in range(2):
        probabilities = logits[model].softmax(dim=0).T.numpy()
        expected = log_loss(target[model], probabilities, sample_weight=weight[model], labels=range(4))
        assert losses[model].item() == pytest.approx(expected)


def test_cross_entropy_of_masked_classes_is_that_of_the_others() -> None:
    logits, _, weight = random_logits()
    target = torch.tensor([[0, 2, 0, 2, 0, 0], [2, 2, 0, 0, 2, 2]])
    masked = logits.clone()
    masked[:, [1, 3]] = -torch.inf
    masked.requires_grad_()
    losses = cross_entropy(masked, target, weight)
    torch.testing.assert_close(losses, cross_entropy(logits[:, [0, 2]], target // 2, weight))
    losses.sum().backward()
    assert masked.grad is not None and masked.grad.isfinite().all()


def test_cross_entropy_takes_out_cells_of_weight_zero_even_where_theirs_is_infinite() -> None:
    logits, target, weight = random_logits()
    changed, weight[:, -1] = logits.clone(), 0
    changed[:, 1, -1] = -torch.inf
    target[:, -1] = 1
    changed.requires_grad_()
    losses = cross_entropy(changed, target, weight)
    torch.testing.assert_close(losses, cross_entropy(logits[:, :, :5], target[:, :5], weight[:, :5]))
    losses.sum().backward()
    assert changed.grad is not None
    assert changed.grad[:, :, :5].isfinite().all() and not changed.grad[:, :, 5].any()

"""The losses, one value per model. Cells are last: codes are (models, code, cells).

`weight` is always (models, cells) and gives a cell's weight in the average: 0 takes it out (the padding of a short
batch, unlabelled cells), and averages divide by the sum of the weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to squared distances, as published: the square root of the contrastive loss has a gradient at zero.
EPSILON = 1e-3


class PairShares(NamedTuple):
    """Share of every pair of a mini-batch in the loss, each symmetric, (models or 1, cells, cells)."""

    positive: Tensor
    negative: Tensor


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the softmax cross-entropy: the label loss, and DANN's domain loss.

    Parameters
    ----------
    logits
        (models, classes, cells)
    target
        (models or 1, cells) int64
    weight
        (models or 1, cells)

    Returns
    -------
    (models,)
    """
    target = target.expand(len(logits), -1)
    return _mean(F.cross_entropy(logits, target, reduction="none"), weight)


def contrastive(squared: Tensor, same: Tensor, margin: Tensor) -> Tensor:
    """The contrastive loss of a pair (Ge et al. 2020, eq. 4; Hadsell et al. 2006).

    0.5 * (same * D + (1 - same) * relu(margin - sqrt(D))^2)

    Parameters
    ----------
    squared
        D, squared distance of the two domain codes plus `EPSILON`, of any shape.
    same
        1 where both cells come from one domain, else 0.
    margin
        Broadcasts against `squared`.
    """
    return 0.5 * (same * squared + (1 - same) * torch.relu(margin - squared.sqrt()).square())


def pair_loss(anchor: Tensor, partner: Tensor, same: Tensor, use: Tensor, weight: Tensor, margin: Tensor) -> Tensor:
    """Contrastive loss of drawn pairs, averaged over the batch, illegal pairs (use 0) included.

    Parameters
    ----------
    anchor, partner
        Domain codes, (models, code, cells).
    same, use
        (models, cells): same domain, and whether the pair is legal.
    weight
        (models, cells)
    margin
        (models,)

    Returns
    -------
    (models,)
    """
    squared = (anchor - partner).square().sum(dim=1) + EPSILON
    return _mean(use * contrastive(squared, same, margin[:, None]), weight)


def batch_pair_loss(code: Tensor, shares: PairShares, margin: Tensor) -> Tensor:
    """Contrastive loss of all the legal pairs of a mini-batch, weighted by their shares.

    Parameters
    ----------
    code
        Domain codes, (models, code, cells).
    shares
        From `pair_shares`; they sum to at most 1 over a batch.
    margin
        (models,)

    Returns
    -------
    (models,)
    """
    loss: Tensor = _AllPairs.apply(code, shares.positive, shares.negative, margin)  # type: ignore[no-untyped-call]
    return loss


class _AllPairs(torch.autograd.Function):
    """0.5 * sum of P * D + N * relu(margin - sqrt(D))^2 over all pairs.

    With layers of 64 units this costs as much as the networks do, so the gradient with respect to D is made at once, in
    place: autograd would keep six matrices of all pairs and go through each again.
    """

    @staticmethod
    def forward(ctx: Any, code: Tensor, positive: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
        lengths = code.square().sum(dim=1) + EPSILON / 2  # (models, cells)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 ab, which rounding may leave a little below zero.
        squared = torch.baddbmm(lengths[:, :, None] + lengths[:, None, :], code.transpose(1, 2), code, alpha=-2)
        squared.clamp_(min=EPSILON)
        distance = squared.sqrt()
        lacking = torch.relu_(margin[:, None, None] - distance)
        cost = lacking * negative
        loss = torch.linalg.vecdot(positive.flatten(1), squared.flatten(1))
        loss = loss + torch.linalg.vecdot(cost.flatten(1), lacking.flatten(1))
        ctx.save_for_backward(code, cost.div_(distance).neg_().add_(positive))
        halved: Tensor = 0.5 * loss
        return halved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        code, slope = ctx.saved_tensors  # the slope of D: P - N * relu(margin - sqrt(D)) / sqrt(D), twice the true one
        pulled = torch.baddbmm(code * slope.sum(dim=1, keepdim=True), code, slope, alpha=-1)
        return 2 * gradient[:, None, None] * pulled, None, None, None


def pair_shares(types: Tensor, domains: Tensor, weight: Tensor) -> PairShares:
    """The expectation of the published draw of pairs (see `pairs`), over all the legal pairs of a mini-batch.

    Per anchor half the mean over its positives (same domain, other type) plus half the mean over its negatives (other
    domain, same type); without positives the mean over its negatives; without negatives half the mean over its
    positives; then the average over the anchors. A pair counts from both of its ends; each gets half of the sum, so
    that the shares are symmetric, as distances are.

    Parameters
    ----------
    types, domains
        (models or 1, cells) int64
    weight
        (models or 1, cells): of a cell as an anchor, and among the partners of another one.
    """
    same_domain = domains[:, :, None] == domains[:, None, :]  # (models, anchors, partners)
    same_type = types[:, :, None] == types[:, None, :]
    positive = (same_domain > same_type).to(weight.dtype)  # the one and not the other
    negative = (same_type > same_domain).to(weight.dtype)
    positives, negatives = (torch.bmm(pairs, weight[:, :, None])[:, :, 0] for pairs in (positive, negative))
    anchor = weight / weight.sum(dim=1, keepdim=True)
    coin = torch.where(positives > 0, 0.5, 1.0)
    return PairShares(
        positive.mul_(_from_both_ends(_ratio(0.5 * anchor, positives), weight)),
        negative.mul_(_from_both_ends(_ratio(coin * anchor, negatives), weight)),
    )


def _from_both_ends(anchor: Tensor, partner: Tensor) -> Tensor:
    """Share of a pair as (anchor, partner) and as (partner, anchor), halved: (models, cells, cells)."""
    product = anchor[:, :, None] * (0.5 * partner[:, None, :])
    return product + product.transpose(1, 2)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient, and 0 where there is nothing to divide by."""
    tiny = torch.finfo(numerator.dtype).tiny
    return (numerator / denominator.clamp(min=tiny)).where(denominator > 0, 0.0)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    values = values.where(weight > 0, 0.0)  # what does not count may be infinite: a domain the model does not know
    return (values * weight).sum(dim=1) / weight.sum(dim=1)

"""The losses, one value per model. Cells are last: codes are (models, code, cells).

`weight` is always (models, cells) and gives a cell's weight in the average: 0 takes it out (the padding of a short
batch, unlabelled cells), and averages divide by the sum of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to squared distances, as published: the square root of the contrastive loss has a gradient at zero.
EPSILON = 1e-3


class PairShares(NamedTuple):
    """Share of every pair of a mini-batch in the loss, each (models or 1, cells, cells): anchors by partners."""

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
    lengths = code.square().sum(dim=1) + EPSILON / 2  # (models, cells)
    # |a - b|^2 = |a|^2 + |b|^2 - 2 ab, which rounding may leave a little below zero.
    squared = torch.baddbmm(lengths[:, :, None] + lengths[:, None, :], code.transpose(1, 2), code, alpha=-2)
    squared = squared.clamp(min=EPSILON).flatten(1)  # (models, anchors * partners)
    apart = torch.relu(margin[:, None] - squared.sqrt()).square()
    positive, negative = shares.positive.flatten(1), shares.negative.flatten(1)
    loss: Tensor = torch.linalg.vecdot(positive, squared) + torch.linalg.vecdot(negative, apart)
    return 0.5 * loss


def pair_shares(types: Tensor, domains: Tensor, weight: Tensor) -> PairShares:
    """The expectation of the published draw of pairs (see `pairs`), over all the legal pairs of a mini-batch.

    Per anchor half the mean over its positives (same domain, other type) plus half the mean over its negatives (other
    domain, same type); without positives the mean over its negatives; without negatives half the mean over its
    positives; then the average over the anchors.

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
    positives, negatives = (torch.bmm(pairs, weight[:, :, None]) for pairs in (positive, negative))
    anchor = (weight / weight.sum(dim=1, keepdim=True))[:, :, None]
    coin = torch.where(positives > 0, 0.5, 1.0)
    partner = weight[:, None, :]
    return PairShares(
        positive * _ratio(0.5 * anchor, positives) * partner,
        negative * _ratio(coin * anchor, negatives) * partner,
    )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient, and 0 where there is nothing to divide by."""
    tiny = torch.finfo(numerator.dtype).tiny
    return (numerator / denominator.clamp(min=tiny)).where(denominator > 0, 0.0)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    values = values.where(weight > 0, 0.0)  # what does not count may be infinite: a domain the model does not know
    return (values * weight).sum(dim=1) / weight.sum(dim=1)

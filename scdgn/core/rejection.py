"""Probabilities that mean what they say, and scores that tell cells of types never trained. Torch and numpy alone.

All scores are made so that higher is stranger, so that one threshold reads the same for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Score = Literal["max_probability", "energy", "latent_distance"]
SCORES: tuple[Score, ...] = get_args(Score)

KNOWN_KEPT = 0.95
"""Share of the known cells that a threshold keeps."""

COOLEST, HOTTEST = 0.2, 20.0
"""Temperatures looked at. Where every cell is predicted right, colder is always better: there has to be an end."""


class Anchors(NamedTuple):
    """Where the training cells of a model lie: the mean of the encoder's output by type, (types, latent), 0 for types
    without cells; and the root mean square distance of the cells from the centroids of their types.
    """

    centroids: Tensor
    spread: float


@dataclass(frozen=True)
class Certainty:
    """What cells that took no part in training taught about a model's certainty.

    Attributes
    ----------
    temperature
        By which the logarithms of the probabilities are divided (Guo et al. 2017).
    score
        That tells unknown cells.
    threshold
        A cell with a higher score is unknown; None where there is none.
    kept
        Share of the known cells that the threshold kept.
    auroc
        By score: how often an unknown cell scores higher than a known one of the same domain; empty where there were
        too few unknown ones.
    known, unknown
        Cells that all this comes from.
    source
        What cells these are, in words; empty where there are none.
    """

    temperature: float = 1.0
    score: Score = "max_probability"
    threshold: float | None = None
    kept: float = KNOWN_KEPT
    auroc: Mapping[str, float] = field(default_factory=dict)
    known: int = 0
    unknown: int = 0
    source: str = ""


@dataclass(frozen=True)
class Calibration(Certainty):
    """The same, with the anchors of each model where the score is the latent distance."""

    anchors: tuple[Anchors, ...] = ()

    def to_json(self) -> dict[str, object]:
        """All but the anchors."""
        content = {name: getattr(self, name) for name in Certainty.__dataclass_fields__}
        return {**content, "auroc": dict(self.auroc)}


def pooled(logits: Tensor) -> Tensor:
    """Logarithms of the mean probabilities of an ensemble: (models, cells, types) to (cells, types)."""
    return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature at which the true types, (cells,) codes, are most likely.

    An ensemble is pooled first and one temperature divides the logarithms of its mean probabilities, (cells, types),
    minus infinity for types not trained, because pooling already makes it less certain (Rahaman and Thiery 2021), and
    because no label changes: temperatures of the models before the mean could change which type is the most probable.
    The negative log-likelihood is convex in 1 / T, so that a golden section finds its minimum.
    """
    log_probabilities = log_probabilities.double()

    def loss(log_temperature: float) -> float:
        scaled = log_probabilities / math.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, labels))

    low, high = math.log(COOLEST), math.log(HOTTEST)
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return round(math.exp((low + high) / 2), 4)


def strangeness(
    score: Score, logits: Tensor, latents: Sequence[Tensor], temperature: float, anchors: Sequence[Anchors]
) -> Tensor:
    """A rejection score of every cell, (cells,): the higher, the less a cell is like those of the trained types.

    `max_probability`: 1 minus the probability of the most probable type (Hendrycks and Gimpel 2017). `energy`: minus
    the logarithm of the sum of the exponentials of the logits (Liu et al. 2020, at their temperature of 1).
    `latent_distance`: from the nearest centroid of a trained type, in units of the spread of the training cells. Energy
    and distance are means over the models.

    Parameters
    ----------
    logits
        (models, cells, types), minus infinity for types not trained.
    latents, anchors
        Of each model, (cells, latent); anchors are looked at by `latent_distance` alone.
    """
    match score:
        case "max_probability":
            return 1 - (pooled(logits) / temperature).softmax(dim=1).amax(dim=1)
        case "energy":
            return -logits.logsumexp(dim=2).mean(dim=0)
        case "latent_distance":
            trained = logits.isfinite().any(dim=1)  # (models, types)
            each = [distance(latent, one, known) for latent, one, known in zip(latents, anchors, trained, strict=True)]
            return torch.stack(each).mean(dim=0)


def find_anchors(latent: Tensor, labels: Tensor, types: int) -> Anchors:
    """Centroids of the types of some cells, (cells, latent) and (cells,), and the spread around them."""
    cells = torch.bincount(labels, minlength=types)  # (types,)
    centroids = torch.zeros(types, latent.shape[1], dtype=latent.dtype).index_add_(0, labels, latent)
    centroids /= cells.clamp(min=1)[:, None]
    spread = float((latent - centroids[labels]).square().sum(dim=1).mean().sqrt())
    return Anchors(centroids, max(spread, 1e-6))


def distance(latent: Tensor, anchors: Anchors, trained: Tensor) -> Tensor:
    """(cells,) distance from the nearest centroid of a trained type, in units of the spread."""
    centroids = anchors.centroids.to(latent.device)[trained]
    # Exactly, so that a cell's distance does not depend on which cells it is predicted with.
    distances = torch.cdist(latent, centroids, compute_mode="donot_use_mm_for_euclid_dist")  # (cells, trained types)
    return distances.amin(dim=1) / anchors.spread


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """Probability that one of the unknown (at least one) has a higher score than one of the known; ties count half."""
    order = np.sort(known)
    below, not_above = (np.searchsorted(order, unknown, side) for side in ("left", "right"))
    return float(np.mean(below + not_above) / (2 * len(known)))


def keeping(known: NDArray[np.floating], share: float) -> float:
    """The lowest score of a known cell such that at least this share of the known cells has no higher one."""
    return float(np.quantile(known, share, method="inverted_cdf"))

"""Temperature, scores, thresholds and AUROC, against independent implementations and cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from scdgn.core.rejection import (
    COOLEST,
    HOTTEST,
    SCORES,
    Anchors,
    auroc,
    find_anchors,
    fit_temperature,
    keeping,
    pooled,
    strangeness,
)

NOTHING = -torch.inf


def drawn(cells: int = 400, types: int = 4, models: int = 3, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    """Logits that are too certain by `scale`, and labels drawn by what they should be."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, cells, types, generator=generator) * 2
    labels = torch.multinomial(logits[0].softmax(dim=1), 1, generator=generator)[:, 0]
    return (logits + 0.3 * torch.randn(models, cells, types, generator=generator)) * scale, labels


# --- probabilities and temperature


def test_an_ensemble_is_pooled_by_its_mean_probabilities() -> None:
    logits, _ = drawn()
    logits[:, :, 1] = NOTHING
    assert torch.allclose(pooled(logits).exp(), logits.softmax(dim=2).mean(dim=0), atol=1e-6)
    assert torch.allclose(pooled(logits[:1]), logits[0].log_softmax(dim=1))


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_is_that_of_the_least_log_loss(scale: float) -> None:
    logits, labels = drawn(scale=scale)
    log_probabilities = pooled(logits.double())

    def loss(log_temperature: float) -> float:
        return float(log_loss(labels, (log_probabilities / math.exp(log_temperature)).softmax(dim=1)))

    best = minimize_scalar(loss, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded")
    assert fit_temperature(log_probabilities, labels) == pytest.approx(math.exp(best.x), rel=2e-3)


def test_a_single_model_too_certain_by_four_is_cooled_by_four() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20_000, 3, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    assert fit_temperature((logits * 4).log_softmax(dim=1), labels) == pytest.approx(4, rel=0.05)


def test_types_that_were_not_trained_are_left_out() -> None:
    logits, labels = drawn()
    without = pooled(logits)
    with_another = torch.cat([without, torch.full((len(without), 1), NOTHING)], dim=1)
    assert fit_temperature(with_another, labels) == fit_temperature(without, labels)


def test_the_temperature_ends_where_every_cell_or_none_is_right() -> None:
    labels = torch.tensor([0, 1, 1])
    right = torch.nn.functional.one_hot(labels, 3).float() * 5
    assert fit_temperature(right.log_softmax(dim=1), labels) == pytest.approx(COOLEST, rel=1e-3)
    assert fit_temperature(right.log_softmax(dim=1), (labels + 1) % 3) == pytest.approx(HOTTEST, rel=1e-3)


# --- scores


def test_scores_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0, NOTHING]], [[0.0, 0.0, NOTHING]]])  # two models, one cell, two types trained
    mean = (math.exp(2) / (math.exp(2) + 1) + 0.5) / 2
    latents = [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])]
    anchors = [
        # The nearest centroid is that of the type that was not trained.
        Anchors(torch.tensor([[0.0, 0.0], [9.0, 9.0], [3.0, 4.0]]), 2.0),
        Anchors(torch.tensor([[5.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), 0.5),
    ]
    found = {score: float(strangeness(score, logits, latents, 1.0, anchors)[0]) for score in SCORES}
    assert found["max_probability"] == pytest.approx(1 - mean)
    assert found["energy"] == pytest.approx(-(math.log(math.exp(2) + 1) + math.log(2)) / 2)
    assert found["latent_distance"] == pytest.approx((5 / 2 + 1 / 0.5) / 2)
    warmer = float(strangeness("max_probability", logits, latents, 2.0, anchors)[0])
    assert warmer == pytest.approx(1 - math.sqrt(mean) / (math.sqrt(mean) + math.sqrt(1 - mean)))


def test_anchors_by_hand() -> None:
    latent = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]])
    centroids, spread = find_anchors(latent, torch.tensor([0, 0, 2]), 3)
    assert centroids.tolist() == [[1.0, 0.0], [0.0, 0.0], [5.0, 5.0]]
    assert spread == pytest.approx(math.sqrt(2 / 3))


def test_cells_that_all_lie_on_their_centroids_have_a_spread() -> None:
    assert find_anchors(torch.ones(3, 2), torch.tensor([0, 0, 0]), 1).spread > 0


# --- AUROC and threshold

NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=20)


@given(known=NUMBERS, unknown=NUMBERS)
def test_auroc_is_scikit_learn_s(known: list[int], unknown: list[int]) -> None:
    truth = [0] * len(known) + [1] * len(unknown)
    found = auroc(np.array(known, dtype=float), np.array(unknown, dtype=float))
    assert found == pytest.approx(roc_auc_score(truth, known + unknown))


@given(known=NUMBERS, share=st.floats(0.01, 1.0))
def test_the_threshold_is_the_lowest_that_keeps_the_share(known: list[int], share: float) -> None:
    scores = np.array(known, dtype=float)
    threshold = keeping(scores, share)
    assert np.mean(scores <= threshold) >= share - 1e-12
    lower = scores[scores < threshold]
    assert not len(lower) or np.mean(scores <= lower.max()) < share


def test_the_threshold_of_a_hundred_cells_is_the_ninety_fifth() -> None:
    assert keeping(np.random.default_rng(0).permutation(100).astype(float), 0.95) == 94

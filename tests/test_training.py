"""What training does: it learns, it aligns domains, and it can be watched and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from scdgn.core import networks
from scdgn.core.config import LambdaEnters, Method, Schedule, Settings
from scdgn.core.metrics import recall_by_type
from scdgn.core.networks import Model, initial_parameters, layer_sizes
from scdgn.core.pack.lane import EpochLosses
from scdgn.core.pack.members import UNLABELED, Cells, Member
from scdgn.core.randomness import dropout_keys, dropout_scale
from scdgn.core.schedules import lambda_at
from scdgn.core.training import EarlyStopping, Report, Trained, train

TINY = Settings(hidden=6, latent=5, domain_code=4, epochs=4, batch_size=16)


def simulated(
    seed: int, cells: int = 120, *, signal: float = 4.0, shift: float = 0.0, confounded: float = 0.0, noise: int = 9
) -> Cells:
    """Three types and three domains, each with its own marker gene, and noise.

    The domain goes with the type in the fraction `confounded` of the cells, and is independent of it in the others.
    """
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (cells,), generator=draws)
    anywhere = torch.randint(3, (cells,), generator=draws)
    domains = torch.where(torch.rand(cells, generator=draws) < confounded, labels, anywhere)
    x = torch.randn(cells, 6 + noise, generator=draws)
    rows = torch.arange(cells)
    x[rows, labels] += signal
    x[rows, 3 + domains] += shift
    return Cells(x, labels, domains, types=3, domain_count=3)


CELLS = simulated(0, cells=70)


def trained(settings: Settings, cells: Cells = CELLS, seed: int = 0) -> Trained:
    return train([Member(settings, cells, seed)])[0]


def model_of(outcome: Trained) -> Model:
    assert outcome.model is not None, outcome.reason
    return outcome.model


def predicted(model: Model, cells: Cells) -> np.ndarray:
    return model.probabilities(cells.x).argmax(dim=1).numpy()


def accuracy(model: Model, cells: Cells) -> float:
    return float((predicted(model, cells) == cells.labels.numpy()).mean())


# What is learnt


@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_separable_types_are_learnt(method: Method, optimizer: str) -> None:
    rate = {"sgd": 0.05, "adamw": 0.01}[optimizer]
    chosen = replace(TINY, method=method, hidden=16, epochs=20, lr=rate, optimizer=optimizer)
    outcome = trained(chosen, simulated(0))
    assert outcome.state == "finished"
    assert outcome.history[-1].label_loss < 0.5 * outcome.history[0].label_loss
    assert accuracy(model_of(outcome), simulated(1)) > 0.9


def spread_over_domains(model: Model, cells: Cells) -> float:
    """Fraction of the variance of the latent inside a type that lies between the domains."""
    latent = model.latent(cells.x)
    between = total = 0.0
    for type_ in range(3):
        own = latent[cells.labels == type_]
        total += (own - own.mean(dim=0)).square().sum().item()
        for domain in range(3):
            part = latent[(cells.labels == type_) & (cells.domains == domain)]
            between += len(part) * (part.mean(dim=0) - own.mean(dim=0)).square().sum().item()
    return between / total


@cache
def confounded_results(method: Method, lambda_max: float) -> tuple[float, float]:
    """Spread over the domains and accuracy where domain and type are independent, after training where they are not."""
    chosen = Settings(
        method=method,
        hidden=16,
        latent=8,
        domain_code=8,
        epochs=40,
        batch_size=60,
        lr=5e-3,
        lambda_max=lambda_max,
        margin=2,
    )
    shape = {"signal": 1.5, "shift": 2.5}
    cells, test = simulated(0, 300, confounded=0.8, **shape), simulated(1, 600, **shape)
    models = [model_of(outcome) for outcome in train([Member(chosen, cells, seed) for seed in range(5)])]
    return (
        float(np.mean([spread_over_domains(model, test) for model in models])),
        float(np.mean([accuracy(model, test) for model in models])),
    )


@pytest.mark.parametrize(("method", "lambda_max"), [("dann", 1.0), ("scdgn", 3.0)])
def test_an_adversary_removes_domains_from_the_latent_and_resists_confounding(
    method: Method, lambda_max: float
) -> None:
    spread, right = confounded_results(method, lambda_max)
    plain_spread, plain_right = confounded_results("nn", 0.0)
    assert spread < 0.75 * plain_spread
    assert right > plain_right + 0.02


def test_balanced_class_weights_raise_the_recall_of_a_rare_type() -> None:
    cells = simulated(3, 400, signal=1.5)
    keep = (cells.labels != 2) | (torch.arange(400) < 40)
    rare = Cells(cells.x[keep], cells.labels[keep], cells.domains[keep], 3, 3)
    test = simulated(4, 600, signal=1.5)

    def recall(weights: str) -> float:
        chosen = replace(TINY, method="nn", epochs=15, lr=0.01, class_weights=weights)
        return float(recall_by_type(test.labels.numpy(), predicted(model_of(trained(chosen, rare)), test), 3)[2])

    none, sqrt, balanced = (recall(kind) for kind in ("none", "sqrt", "balanced"))
    assert none + 0.1 < balanced
    assert none < sqrt < balanced


# Lambda


@pytest.mark.parametrize("method", ["dann", "scdgn"])
@pytest.mark.parametrize("enters", ["loss", "reversal"])
def test_without_lambda_every_method_is_the_plain_network(method: Method, enters: LambdaEnters) -> None:
    chosen = replace(TINY, lambda_max=0.0, lambda_enters=enters)
    plain = model_of(trained(replace(chosen, method="nn"))).weights
    weights = model_of(trained(replace(chosen, method=method))).weights
    for name in plain:
        torch.testing.assert_close(weights[name], plain[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("enters", "learns"), [("loss", False), ("reversal", True)])
def test_lambda_as_reversal_strength_leaves_the_discriminator_its_own_loss(enters: LambdaEnters, learns: bool) -> None:
    chosen = replace(TINY, lambda_max=0.0, lambda_enters=enters, weight_decay=0.0)
    weights = model_of(trained(chosen)).weights
    start = initial_parameters(layer_sizes(chosen, CELLS.x.shape[1], 3, 3), "zero", 0, torch.float32)
    assert torch.equal(weights["domain.weight"], start["domain.weight"]) != learns


@pytest.mark.parametrize("schedule", ["constant", "sigmoid", "linear", "cosine"])
def test_the_history_tells_the_lambda_of_the_schedule(schedule: Schedule) -> None:
    chosen = replace(TINY, schedule=schedule, lambda_max=0.7, warmup=0.6)
    steps = -(-len(CELLS.labels) // chosen.batch_size)
    last_steps = (np.arange(1, chosen.epochs + 1) * steps - 1) / (chosen.epochs * steps)
    history = trained(chosen).history
    assert [losses.epoch for losses in history] == [1, 2, 3, 4]
    assert [losses.lam for losses in history] == pytest.approx(lambda_at(chosen, last_steps).tolist())


# Unlabelled cells


def test_unlabelled_cells_join_the_domain_loss_once_their_type_is_confident() -> None:
    query = simulated(1, 40)
    together = torch.cat([CELLS.x, query.x])
    cells = Cells(
        together,
        torch.cat([CELLS.labels, torch.full_like(query.labels, UNLABELED)]),
        torch.cat([CELLS.domains, torch.full_like(query.domains, 3)]),
        types=3,
        domain_count=4,
    )

    def domain_losses(method: Method, query_weight: float, confidence: float) -> list[float]:
        chosen = replace(TINY, method=method, query_weight=query_weight, pseudo_confidence=confidence)
        return [losses.domain_loss for losses in trained(chosen, cells).history]

    left_out = domain_losses("scdgn", 0.0, 0.0)
    assert domain_losses("scdgn", 1.0, 1.0) == pytest.approx(left_out, abs=1e-5)  # no model is that sure
    assert domain_losses("scdgn", 1.0, 0.0) != pytest.approx(left_out, abs=1e-3)
    assert domain_losses("dann", 1.0, 1.0) == domain_losses("dann", 1.0, 0.0)  # which needs no type
    assert domain_losses("dann", 1.0, 1.0) != pytest.approx(domain_losses("dann", 0.0, 1.0), abs=1e-3)


# Single steps


def test_clipping_bounds_the_norm_of_an_update() -> None:
    def moved(clip_norm: float) -> float:
        chosen = replace(
            TINY, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.5, epochs=1, batch_size=512, clip_norm=clip_norm
        )
        start = initial_parameters(layer_sizes(chosen, CELLS.x.shape[1], 3, 3), "zero", 0, torch.float32)
        weights = model_of(trained(chosen)).weights
        return float(sum((weights[name] - start[name]).square().sum() for name in start) ** 0.5)

    free = moved(0.0)
    assert moved(0.01) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert free > 0.1
    assert moved(100.0) == pytest.approx(free)


def test_dropout_changes_training_and_its_draws_are_the_models_own() -> None:
    member = Member(replace(TINY, dropout=0.4), CELLS, seed=0, order_seed=0)
    without = replace(member, settings=TINY)
    first, again, plain = (train([m])[0].history for m in (member, member, without))
    assert first == again
    assert first != plain


def test_dropout_factors_keep_the_mean_and_depend_on_seed_and_time_alone() -> None:
    def factors(seeds: list[int], epoch: int = 0, step: int = 0, units: int = 50, rate: float = 0.3) -> Tensor:
        keys = dropout_keys(seeds, epoch, step + 1)[step]
        number = torch.arange(units).repeat(len(seeds))
        factors = dropout_scale(
            keys.repeat_interleave(units), torch.full(number.shape, rate), number, torch.arange(200)
        )
        return factors.view(len(seeds), units, -1)

    alone = factors([5])[0]
    assert alone.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (alone == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert ((alone == 0).double().mean(dim=0) - 0.3).abs().max() < 0.35  # no cell, and no unit, is always dropped
    assert ((alone == 0).double().mean(dim=1) - 0.3).abs().max() < 0.2
    assert torch.equal(factors([1, 5])[1], alone)
    assert torch.equal(factors([5], units=80)[0, :50], alone)
    for other in (factors([6]), factors([5], epoch=1), factors([5], step=1)):
        agreement = ((other[0] == 0) == (alone == 0)).double().mean().item()
        assert agreement == pytest.approx(0.3**2 + 0.7**2, abs=0.03)  # of independent draws
    assert (factors([5], rate=0.0) == 1).all()


# Watching and stopping


def test_the_callback_sees_every_running_model_and_stops_those_it_names() -> None:
    members = [Member(replace(TINY, epochs=epochs), CELLS, seed=0) for epochs in (6, 2, 6)]
    seen: list[tuple[int, list[int]]] = []

    def on_epoch(report: Report) -> list[int]:
        seen.append((report.epoch, list(report.losses)))
        assert all(losses.epoch == report.epoch for losses in report.losses.values())
        return [0] if report.epoch == 3 else []

    first, second, third = train(members, on_epoch=on_epoch)
    assert [outcome.state for outcome in (first, second, third)] == ["stopped", "finished", "finished"]
    assert [len(outcome.history) for outcome in (first, second, third)] == [3, 2, 6]
    assert seen[0] == (1, [0, 1, 2])
    assert seen[2:5] == [(3, [0, 2]), (4, [2]), (5, [2])]
    # A stopped model is the model as it was: training for as long gives the same losses.
    assert first.history == third.history[:3]


def test_a_report_gives_the_present_model_and_a_copy() -> None:
    kept: dict[int, Model] = {}

    def on_epoch(report: Report) -> list[int]:
        kept[report.epoch] = report.model(0)
        return [0] if report.epoch == 2 else []

    (outcome,) = train([Member(TINY, CELLS, seed=0)], on_epoch=on_epoch)
    assert torch.equal(kept[2].weights["label.weight"], model_of(outcome).weights["label.weight"])
    assert not torch.equal(kept[1].weights["label.weight"], kept[2].weights["label.weight"])


@dataclass(frozen=True)
class Scripted(Model):
    """A model that is right, with confidence 0.6, on the first `right` of ten cells."""

    right: int = 0

    def probabilities(self, x: Tensor) -> Tensor:
        hit = torch.arange(len(x)) < self.right
        return torch.where(hit[:, None], torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.6]))


def watch(stopper: EarlyStopping, right: list[int]) -> list[int]:
    """Epochs at which it asks to stop, given the cells right in each."""
    asked = []
    for epoch, count in enumerate(right, start=1):
        model = Scripted({}, torch.ones(2, dtype=torch.bool), count)
        if stopper(Report(epoch, {0: EpochLosses(epoch, 0.0, 0.0, 0.0)}, lambda _, model=model: model)) == [0]:
            asked.append(epoch)
    return asked


def early_stopping(patience: int, **changes: object) -> EarlyStopping:
    member = Member(Settings.from_mapping({"method": "scdgn", "epochs": 10, **changes}), CELLS, seed=0)
    return EarlyStopping(member, 0, torch.zeros(10, 1), np.zeros(10, dtype=np.int64), patience)


def kept(stopper: EarlyStopping) -> int:
    assert isinstance(stopper.model, Scripted)
    return stopper.model.right


def test_early_stopping_keeps_the_best_and_stops_when_patience_is_out() -> None:
    stopper = early_stopping(3, schedule="constant")
    assert watch(stopper, [3, 5, 8, 7, 7]) == []
    assert (stopper.epoch, kept(stopper)) == (3, 8)
    assert len(stopper.scores) == 5
    stopper = early_stopping(3, schedule="constant")
    assert watch(stopper, [3, 5, 8, 7, 7, 7]) == [6]
    assert (stopper.epoch, kept(stopper)) == (3, 8)


def test_early_stopping_keeps_nothing_before_the_ramp_has_ended() -> None:
    # 0.95 of the way through a warm-up of 0.8 of ten epochs: 7.6.
    stopper = early_stopping(2, schedule="linear", warmup=0.8)
    assert watch(stopper, [9, 9, 9, 9, 9, 9, 9]) == []
    assert stopper.model is None
    stopper = early_stopping(2, schedule="linear", warmup=0.8)
    assert watch(stopper, [9, 9, 9, 9, 9, 9, 9, 5, 4, 4]) == [10]
    assert (stopper.epoch, kept(stopper)) == (8, 5)


def test_early_stopping_of_the_plain_network_waits_for_no_ramp() -> None:
    stopper = early_stopping(2, method="nn", schedule="linear", warmup=0.8)
    assert watch(stopper, [9, 5, 5]) == [3]
    assert (stopper.epoch, kept(stopper)) == (1, 9)


def test_early_stopping_ends_a_training_that_no_longer_gains() -> None:
    cells = simulated(0)
    member = Member(replace(TINY, method="nn", epochs=300, lr=0.05), cells, seed=0)
    validation = simulated(1, 60)
    stopper = EarlyStopping(member, 0, validation.x, validation.labels.numpy(), patience=5)
    (outcome,) = train([member], on_epoch=stopper)
    assert outcome.state == "stopped"
    assert len(outcome.history) == stopper.epoch + 5 < 300
    assert stopper.model is not None
    assert accuracy(stopper.model, validation) > 0.9


# The trained model


def test_probabilities_sum_to_one_and_are_zero_for_types_not_trained() -> None:
    cells = Cells(CELLS.x, CELLS.labels + 1, CELLS.domains, types=6, domain_count=3)  # types 0, 4 and 5 have no cell
    probabilities = model_of(trained(TINY, cells)).probabilities(cells.x)
    assert probabilities.shape == (len(cells.x), 6)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(cells.x)))
    assert not probabilities[:, [0, 4, 5]].any()
    assert (probabilities[:, 1:4] > 0).all()


@pytest.mark.parametrize("read", [Model.probabilities, Model.latent])
def test_predicting_in_parts_gives_what_predicting_at_once_gives(
    read: Callable[[Model, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(trained(TINY))
    at_once = read(model, CELLS.x)
    monkeypatch.setattr(networks, "PREDICTED_AT_ONCE", 7)
    torch.testing.assert_close(read(model, CELLS.x), at_once)


def test_permuting_cells_permutes_predictions() -> None:
    model = model_of(trained(TINY))
    order = torch.randperm(len(CELLS.x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.probabilities(CELLS.x[order]), model.probabilities(CELLS.x)[order])
    assert model.latent(CELLS.x).shape == (len(CELLS.x), TINY.latent)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_callback_sees_the_last_epoch_too(epochs: int) -> None:
    seen: list[int] = []

    def on_epoch(report: Report) -> list[int]:
        seen.append(report.epoch)
        report.model(0)
        return [0] if report.epoch == epochs else []  # stopping at the end is finishing

    (outcome,) = train([Member(replace(TINY, epochs=epochs), CELLS, seed=0)], on_epoch=on_epoch)
    assert seen == list(range(1, epochs + 1))
    assert outcome.state == "finished"


def test_early_stopping_keeps_a_model_when_the_ramp_ends_with_training() -> None:
    member = Member(replace(TINY, schedule="linear", warmup=1.0), CELLS, seed=0)
    stopper = EarlyStopping(member, 0, CELLS.x, CELLS.labels.numpy(), patience=2)
    train([member], on_epoch=stopper)
    assert stopper.epoch == TINY.epochs
    assert stopper.model is not None

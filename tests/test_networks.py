"""The stacked networks: forward passes by hand, gradient reversal, initial weights, and the zeros of the padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scdgn.core.config import Method, Optimizer, Settings
from scdgn.core.networks import (
    Parameters,
    domain_code,
    domain_logits,
    encode,
    hidden_sums,
    initial_parameters,
    label_logits,
    latent_units,
    layer_sizes,
    reverse_gradient,
    stack,
)
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Cells, Member

GENES, TYPES, DOMAINS = 6, 4, 3
SMALL = Settings(method="dann", hidden=3, latent=2, domain_code=2, bias_init="normal")
LARGE = replace(SMALL, hidden=7, latent=5, domain_code=4)


def model(settings: Settings, seed: int = 0) -> Parameters:
    sizes = layer_sizes(settings, GENES, TYPES, DOMAINS)
    return initial_parameters(sizes, settings.bias_init, seed, torch.float64)


def expression(*shape: int) -> Tensor:
    return torch.randn(*shape, GENES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def encoded_by_hand(parameters: Parameters, x: Tensor) -> np.ndarray:
    """(cells, latent)"""
    w = {name: weight.numpy() for name, weight in parameters.items()}
    hidden = np.tanh(x.numpy() @ w["hidden.weight"].T + w["hidden.bias"][:, 0])
    return np.tanh(hidden @ w["latent.weight"].T + w["latent.bias"][:, 0])


def test_models_that_share_cells_encode_them_as_each_would_alone() -> None:
    models, x = [model(SMALL, 0), model(LARGE, 1), model(SMALL, 2)], expression(1, 10)
    latent = encode(stack(models, "cpu"), x)
    assert latent.shape == (3, LARGE.latent, 10)
    for place, alone in enumerate(models):
        expected = encoded_by_hand(alone, x[0])
        np.testing.assert_allclose(latent[place, : expected.shape[1]].T, expected, atol=1e-12)
        assert not latent[place, expected.shape[1] :].any()


def test_each_stream_is_encoded_by_its_own_neighbouring_models() -> None:
    models, x = [model(LARGE, seed) for seed in range(4)], expression(2, 10)
    latent = encode(stack(models, "cpu"), x)
    for place, alone in enumerate(models):
        np.testing.assert_allclose(latent[place].T, encoded_by_hand(alone, x[place // 2]), atol=1e-12)


def test_dropout_factors_scale_the_hidden_units() -> None:
    parameters, x = stack([model(SMALL)], "cpu"), expression(1, 10)
    factors = torch.zeros(1, SMALL.hidden, 10, dtype=torch.float64)
    bias = parameters["latent.bias"]
    units = hidden_sums(parameters["hidden.weight"], parameters["hidden.bias"], x).tanh()
    torch.testing.assert_close(latent_units(parameters, units * factors), torch.tanh(bias).expand(1, SMALL.latent, 10))
    torch.testing.assert_close(latent_units(parameters, units * (factors + 1)), encode(parameters, x))


def test_types_and_domains_not_known_are_impossible_and_the_others_untouched() -> None:
    parameters = stack([model(SMALL, 0), model(SMALL, 1)], "cpu")
    latent = encode(parameters, expression(1, 10))
    types = torch.tensor([[True, False, True, True], [True, True, True, True]])
    logits = label_logits(parameters, latent, types)
    by_hand = parameters["label.weight"] @ latent + parameters["label.bias"]
    assert (logits[0, 1] == -torch.inf).all()
    torch.testing.assert_close(logits[types], by_hand[types])
    domains = torch.tensor([[True, True, True], [False, True, True]])
    by_domain = domain_logits(parameters, latent, torch.ones(2), domains)
    assert (by_domain[1, 0] == -torch.inf).all() and by_domain[domains].isfinite().all()


def test_gradient_reversal_changes_nothing_forward_and_each_model_by_its_own_strength_backward() -> None:
    latent = torch.randn(3, 2, 5, requires_grad=True)
    passed = reverse_gradient(latent, torch.tensor([0.0, 1.0, 2.5]))
    assert torch.equal(passed, latent)
    upstream = torch.randn(3, 2, 5)
    passed.backward(upstream)
    expected = torch.stack([0 * upstream[0], -upstream[1], -2.5 * upstream[2]])
    torch.testing.assert_close(latent.grad, expected)


def test_reversal_reaches_the_encoder_alone() -> None:
    def gradients(strength: float) -> tuple[Tensor, Tensor]:
        parameters = {name: p.requires_grad_() for name, p in stack([model(SMALL)], "cpu").items()}
        latent = encode(parameters, expression(1, 10))
        domain_code(parameters, latent, torch.tensor([strength]).double()).sum().backward()
        hidden, domain = parameters["hidden.weight"].grad, parameters["domain.weight"].grad
        assert hidden is not None and domain is not None
        return hidden, domain

    (plain, discriminator), (strong, same_discriminator) = gradients(-1.0), gradients(0.5)
    torch.testing.assert_close(strong, -0.5 * plain)
    torch.testing.assert_close(same_discriminator, discriminator)


def test_initial_weights_are_xavier_uniform() -> None:
    sizes = {"hidden": (300, 200), "latent": (50, 300)}
    parameters = initial_parameters(sizes, "zero", 0, torch.float32)
    for layer, (units, inputs) in sizes.items():
        weight, bound = parameters[f"{layer}.weight"], (6 / (units + inputs)) ** 0.5
        assert weight.shape == (units, inputs)
        assert 0.999 * bound < weight.abs().max() <= bound
        assert abs(weight.mean()) < 0.02 * bound
        assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
        assert parameters[f"{layer}.bias"].shape == (units, 1)
        assert not parameters[f"{layer}.bias"].any()


def test_initial_weights_of_a_smaller_layer_are_those_of_a_larger_one_but_for_their_bound() -> None:
    """So that the models of a seed, whatever their sizes, are drawn at once."""
    large, small = (initial_parameters({"hidden": size}, "zero", 3, torch.float64) for size in ((30, 50), (20, 11)))
    ratio = small["hidden.weight"] / large["hidden.weight"][:20, :11]
    torch.testing.assert_close(ratio, torch.full_like(ratio, (80 / 31) ** 0.5))


def test_initial_weights_are_independent_between_units_inputs_layers_and_seeds() -> None:
    """Correlations of independent draws have a standard deviation of 1 / sqrt(n)."""
    sizes = {"hidden": (400, 900), "latent": (400, 900)}
    one, other = (initial_parameters(sizes, "zero", seed, torch.float64) for seed in (0, 1))
    weight = one["hidden.weight"]

    def correlation(left: Tensor, right: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]) * left.numel() ** 0.5

    for pair in (
        (weight, one["latent.weight"]),
        (weight, other["hidden.weight"]),
        (weight[1:], weight[:-1]),
        (weight[:, 1:], weight[:, :-1]),
        (weight[1:, 1:], weight[:-1, :-1]),
        (weight.square(), weight.flip(1).square()),
    ):
        assert abs(correlation(*pair)) < 4
    for matrix in (weight, weight.T):
        each = torch.corrcoef(matrix).fill_diagonal_(0)
        assert each.abs().max() * matrix.shape[1] ** 0.5 < 6
    share = torch.histc(weight, bins=20) / weight.numel()
    assert (share - 0.05).abs().max() < 0.002  # five standard deviations


def test_normal_biases_are_standard_normal_and_leave_the_weights_alone() -> None:
    zero, normal = (initial_parameters({"hidden": (4000, 3)}, kind, 0, torch.float64) for kind in ("zero", "normal"))
    assert torch.equal(zero["hidden.weight"], normal["hidden.weight"])
    assert abs(normal["hidden.bias"].mean()) < 0.06
    assert normal["hidden.bias"].std().item() == pytest.approx(1, abs=0.05)


def test_one_seed_starts_all_methods_from_the_same_encoder_and_classifier() -> None:
    by_method = {method: model(replace(SMALL, method=method), seed=3) for method in ("nn", "dann", "scdgn")}
    for name in by_method["nn"]:
        assert torch.equal(by_method["nn"][name], by_method["scdgn"][name])
        assert torch.equal(by_method["nn"][name], by_method["dann"][name])
    assert not torch.equal(model(SMALL, seed=4)["hidden.weight"], by_method["dann"]["hidden.weight"])


@pytest.mark.parametrize(("method", "layers"), [("nn", 3), ("scdgn", 4), ("dann", 5)])
def test_a_method_has_the_layers_it_needs(method: Method, layers: int) -> None:
    sizes = layer_sizes(Settings(method=method, hidden=11, latent=7, domain_code=5), GENES, TYPES, DOMAINS)
    expected = {"hidden": (11, 6), "latent": (7, 11), "label": (4, 7), "domain": (5, 7), "domain_label": (3, 5)}
    assert sizes == dict(list(expected.items())[:layers])


@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_padding_stays_zero_through_training(method: Method, optimizer: Optimizer) -> None:
    draws = torch.Generator().manual_seed(0)

    def cells(count: int, genes: int, types: int, domains: int) -> Cells:
        rows = torch.arange(count)
        x = torch.randn(count, genes, generator=draws, dtype=torch.float64)
        return Cells(x, rows % types, rows // types % domains, types, domains)

    shared = {"method": method, "optimizer": optimizer, "batch_size": 16, "lr": 0.05, "dropout": 0.2, "clip_norm": 1.0}
    small, large = (replace(sizes, **shared) for sizes in (SMALL, LARGE))
    members = [Member(small, cells(40, 4, 2, 2), seed=0), Member(large, cells(40, 6, 4, 3), seed=1)]
    lane = Lane(members, [0, 1], torch.device("cpu"), {id(member.cells): member.cells for member in members})
    block = lane.block
    before = {name: parameter.detach().clone() for name, parameter in block.parameters.items()}
    for epoch in range(3):
        lane.run_epoch(epoch)
    place = block.indices.index(0)
    for name, (units, inputs) in _extent(layer_sizes(small, 4, 2, 2)).items():
        after = block.parameters[name].detach()[place]
        assert not torch.equal(after[:units, :inputs], before[name][place, :units, :inputs]), f"{name} did not train"
        assert not after[units:].any() and not after[:, inputs:].any(), f"the padding of {name} woke up"


def _extent(sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Rows and columns of every parameter that are not padding."""
    weights = {f"{layer}.weight": size for layer, size in sizes.items()}
    return {**weights, **{f"{layer}.bias": (units, 1) for layer, (units, _) in sizes.items()}}

"""The networks of a pack of models, as functions of stacked parameters.

A parameter is stacked over models: weights (models, out, in), biases (models, out, 1). Activations have their cells
last, (models, units, cells): then models that share a mini-batch share one matrix product in the widest layer,
(models * hidden, genes) by (genes, cells), and no activation is ever transposed.

Models of different sizes are padded with zeros. A padded tanh unit starts at zero, feeds on zero weights and is read by
zero weights, so its gradient is zero and it stays zero: the padded pack equals the models trained alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scdgn.core.config import BiasInit, Settings
from scdgn.core.expression import Expression, chunks
from scdgn.core.randomness import Purpose, generator, table

Parameters = dict[str, Tensor]

Sizes = Mapping[str, tuple[int, int]]
"""(out, in) of every layer, by name."""

PREDICTED_AT_ONCE = 8192
"""Cells; bounds the memory of a prediction."""


def layer_sizes(settings: Settings, genes: int, types: int, domains: int) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of one model, by name and in the order of their initial draws.

    `hidden` and `latent` make the encoder, `label` the classifier; `domain` maps a cell to its domain code, and
    `domain_label` (dann) a code to the domains.
    """
    sizes = {
        "hidden": (settings.hidden, genes),
        "latent": (settings.latent, settings.hidden),
        "label": (types, settings.latent),
    }
    if settings.method != "nn":
        sizes["domain"] = (settings.domain_code, settings.latent)
    if settings.method == "dann":
        sizes["domain_label"] = (domains, settings.domain_code)
    return sizes


def initial_draws(sizes: Sizes, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What initial weights are made of, (out, in) int32: those of smaller layers are a part of those of larger ones."""
    layers = enumerate(sizes.items())
    return {name: table(seed, Purpose.INIT, number, *size, device) for number, (name, size) in layers}


def initial_parameters(
    sizes: Sizes,
    bias_init: BiasInit,
    seed: int,
    dtype: torch.dtype,
    draws: Mapping[str, Tensor] | None = None,
) -> Parameters:
    """Parameters of one model, unpadded: Xavier uniform weights (out, in); biases (out, 1) zero or standard normal.

    Parameters
    ----------
    sizes, bias_init, seed, dtype
        Of the model.
    draws
        From `initial_draws` of this seed, for layers of these sizes or larger ones; they say on which device.
    """
    draws = initial_draws(sizes, seed) if draws is None else draws
    parameters: Parameters = {}
    for number, (name, (units, inputs)) in enumerate(sizes.items()):
        own = draws[name][:units, :inputs]  # from -2^31 to 2^31
        parameters[f"{name}.weight"] = own.to(dtype).mul_(2.0**-31 * (6 / (units + inputs)) ** 0.5)
        bias = torch.zeros(units, 1, dtype=torch.float64)
        if bias_init == "normal":
            bias.normal_(generator=generator(seed, Purpose.INIT, number))
        parameters[f"{name}.bias"] = bias.to(own.device, dtype)
    return parameters


def stack(models: Iterable[Mapping[str, Tensor]], device: torch.device | str) -> Parameters:
    """Stack the parameters of models, zero-padded to the largest: (out, in) each becomes (models, out, in)."""
    models = list(models)
    stacked: Parameters = {}
    for name in models[0]:
        rows = max(model[name].shape[0] for model in models)
        columns = max(model[name].shape[1] for model in models)
        padded = torch.zeros(len(models), rows, columns, dtype=models[0][name].dtype, device=device)
        for place, model in zip(padded, models, strict=True):
            place[: model[name].shape[0], : model[name].shape[1]] = model[name]
        stacked[name] = padded
    return stacked


def encode(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The encoder f: Linear, tanh, Linear, tanh.

    Parameters
    ----------
    parameters
        Stacked parameters.
    x
        (streams, cells, genes). Each stream of cells is read by models / streams neighbouring models.

    Returns
    -------
    (models, latent, cells)
    """
    return latent_units(parameters, torch.tanh(hidden_sums(parameters["hidden.weight"], parameters["hidden.bias"], x)))


def hidden_sums(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """The first layer before tanh: (models, hidden, genes) by (streams, cells, genes) to (models, hidden, cells)."""
    models, hidden, genes = weight.shape
    streams, cells = x.shape[:2]
    if streams == 1:  # a plain product: torch takes a slower path for a batch of one
        summed = torch.addmm(bias.reshape(models * hidden, 1), weight.reshape(models * hidden, genes), x[0].T)
    else:
        summed = torch.baddbmm(bias.reshape(streams, -1, 1), weight.reshape(streams, -1, genes), x.transpose(1, 2))
    return summed.view(models, hidden, cells)


def latent_units(parameters: Mapping[str, Tensor], units: Tensor) -> Tensor:
    """The encoder's second layer: (models, hidden, cells) to (models, latent, cells)."""
    return torch.tanh(linear(parameters, "latent", units))


def linear(parameters: Mapping[str, Tensor], layer: str, units: Tensor) -> Tensor:
    """A linear layer of every model: (models, in, cells) to (models, out, cells)."""
    return torch.baddbmm(parameters[f"{layer}.bias"], parameters[f"{layer}.weight"], units)


def label_logits(parameters: Mapping[str, Tensor], latent: Tensor, trained: Tensor) -> Tensor:
    """Logits of the cell types, minus infinity for types that a model does not know.

    Parameters
    ----------
    parameters
        Stacked parameters.
    latent
        (models, latent, cells)
    trained
        (models, types), true for the types among a model's training cells. Padded types are false.

    Returns
    -------
    (models, types, cells)
    """
    return linear(parameters, "label", latent).masked_fill(~trained[:, :, None], -torch.inf)


def domain_code(parameters: Mapping[str, Tensor], latent: Tensor, reversal: Tensor) -> Tensor:
    """The discriminator's code of each cell, (models, domain_code, cells), behind gradient reversal."""
    return torch.tanh(linear(parameters, "domain", reverse_gradient(latent, reversal)))


def domain_logits(parameters: Mapping[str, Tensor], latent: Tensor, reversal: Tensor, present: Tensor) -> Tensor:
    """DANN's logits of the domains, (models, domains, cells), behind gradient reversal; absent domains masked."""
    code = domain_code(parameters, latent, reversal)
    return linear(parameters, "domain_label", code).masked_fill(~present[:, :, None], -torch.inf)


def reverse_gradient(latent: Tensor, strength: Tensor) -> Tensor:
    """The identity forward, minus `strength` times the gradient backward (Ganin et al. 2016, section 4.2).

    Parameters
    ----------
    latent
        (models, latent, cells)
    strength
        (models,)
    """
    reversed_latent: Tensor = _GradientReversal.apply(latent, strength)  # type: ignore[no-untyped-call]
    return reversed_latent


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return latent.view_as(latent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength[:, None, None] * gradient, None


@dataclass(frozen=True)
class Model:
    """A trained network: parameters by name, (out, in) and (out, 1), and which types it predicts, (types,) bool."""

    weights: Parameters
    types: Tensor

    def on(self, device: torch.device | str) -> Model:
        """The same model with its weights on a device."""
        return Model({name: weight.to(device) for name, weight in self.weights.items()}, self.types)

    def copy(self) -> Model:
        """The same model with weights of its own."""
        # A clone alone would keep a memory order that the weights may have in a pack.
        own = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in self.weights.items()}
        return replace(self, weights=own)

    def probabilities(self, x: Expression) -> Tensor:
        """Probability of every cell type, (cells, genes) to (cells, types); 0 for types not trained."""
        return self.outputs(x)[1]

    def latent(self, x: Expression) -> Tensor:
        """The encoder's output, (cells, genes) to (cells, latent)."""
        return self.outputs(x)[0]

    def outputs(self, x: Expression) -> tuple[Tensor, Tensor]:
        """The encoder's output and the probabilities."""
        latent, logits = self.forward(x)
        return latent, logits.softmax(dim=1)

    @torch.no_grad()
    def forward(self, x: Expression) -> tuple[Tensor, Tensor]:
        """The encoder's output and the logits, (cells, types): minus infinity for types not trained."""
        latent, logits = zip(*self._forward(x), strict=True)
        return torch.cat(latent), torch.cat(logits)

    def _forward(self, x: Expression) -> Iterator[tuple[Tensor, Tensor]]:
        parameters = {name: weight.to(x.device)[None] for name, weight in self.weights.items()}
        types = self.types.to(x.device)[None]
        for chunk in chunks(x, PREDICTED_AT_ONCE):
            latent = encode(parameters, chunk[None])
            logits = label_logits(parameters, latent, types)
            yield latent[0].T, logits[0].T

"""Updates of a block: AdamW (Loshchilov and Hutter 2019) or SGD with Nesterov's momentum, with rates of each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from scdgn.core.config import Settings
from scdgn.core.networks import Parameters
from scdgn.core.pack import kernels
from scdgn.core.pack.graphs import side_by_side
from scdgn.core.pack.layout import FIRST, Gradients, Layout
from scdgn.core.pack.members import Member


class Optimizer(Protocol):
    """Updates the models of a block in place.

    Attributes
    ----------
    counters
        Steps done, as they lie on the device.
    """

    counters: list[Tensor]

    def step(self, gradients: Gradients, models: int, scale: Tensor | None) -> None:
        """Update the first models, from their gradients as parameters are stored, times (models,) factors."""

    def done(self, model: int) -> float:
        """Steps that a model has done."""


def optimizer(
    members: Sequence[Member], steps: Sequence[float], stored: Parameters, moments: Sequence[Parameters], layout: Layout
) -> Optimizer:
    """Of all members of a block, given the steps that each has done, and what is stored of them."""
    if kernels.THERE and stored["hidden.weight"].device.type == "cuda":
        return Whole(members, steps, stored, moments, layout)
    return Runs(members, steps, stored, moments, layout)


class Whole:
    """All models at once, by a kernel for every parameter (see `kernels`)."""

    def __init__(
        self,
        members: Sequence[Member],
        steps: Sequence[float],
        stored: Parameters,
        moments: Sequence[Parameters],
        layout: Layout,
    ) -> None:
        device, dtype = stored["hidden.weight"].device, stored["hidden.weight"].dtype

        def per_model(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        each = [member.settings for member in members]
        self._adam = each[0].optimizer == "adamw"
        self._kept = [(name, tensor, [moment[name] for moment in moments]) for name, tensor in stored.items()]
        bounds = {name: [*layout.bounds(name, tensor)] for name, tensor in stored.items()}
        self._chunks = {name: kernels.Chunks(each, device) for name, each in bounds.items()}
        self._rate = per_model([settings.lr for settings in each])
        decay = per_model([settings.weight_decay for settings in each])
        self._decay = (1 - self._rate * decay if self._adam else decay).to(dtype)
        self._share = per_model([settings.momentum for settings in each]).to(dtype)
        self._betas = per_model(kernels.BETAS)[:, None]
        self._whole = torch.ones(len(members), dtype=dtype, device=device)
        self.counters = [per_model(steps)]

    def step(self, gradients: Gradients, models: int, scale: Tensor | None) -> None:
        """As `Optimizer.step`."""
        (steps,) = self.counters
        steps[:models] += 1
        scale, dtype = self._whole if scale is None else scale, self._whole.dtype
        if self._adam:
            biases = 1 - self._betas**steps  # (2, models)
            rates = [(self._rate / biases[0]).to(dtype), biases[1].sqrt().to(dtype)]
        else:
            rates = [self._rate.to(dtype), self._share]
        kernel = kernels.adamw if self._adam else kernels.sgd
        for name, parameter, moments in self._kept:
            gradient = gradients[name]
            assert isinstance(gradient, Tensor)  # a list comes of a sparse first layer, on a CPU
            self._chunks[name].launch(
                kernel, models, parameter, gradient.contiguous(), *moments, scale, self._decay, *rates
            )

    def done(self, model: int) -> float:
        """As `Optimizer.done`."""
        return float(self.counters[0][model])


@dataclass(frozen=True)
class Run:
    """Neighbouring members of a block whose parameters one call of torch's optimizer updates."""

    start: int
    stop: int
    settings: Settings
    parameters: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]  # steps done, a tensor for every tensor that the optimizer is given


class Runs:
    """Neighbours with equal rates that have done, and will do, equal steps, by a call of torch's fused optimizers."""

    def __init__(
        self,
        members: Sequence[Member],
        steps: Sequence[float],
        stored: Parameters,
        moments: Sequence[Parameters],
        layout: Layout,
    ) -> None:
        self._layout = layout
        self._device = stored["hidden.weight"].device
        self._names = list(stored)
        self._runs, start = [], 0
        keys = [
            (m.settings.lr, m.settings.momentum, m.settings.weight_decay, m.steps_per_epoch, done)
            for m, done in zip(members, steps, strict=True)
        ]
        for key, group in groupby(keys):
            stop = start + len(list(group))
            parameters, *kept = (
                [piece for name in self._names for piece in layout.pieces(each[name], name, start, stop)]
                for each in (stored, *moments)
            )
            counters = [torch.tensor(key[-1], device=self._device) for _ in parameters]
            self._runs.append(Run(start, stop, members[start].settings, parameters, kept, counters))
            start = stop
        self.counters = [counter for run in self._runs for counter in run.steps]

    def step(self, gradients: Gradients, models: int, scale: Tensor | None) -> None:
        """As `Optimizer.step`."""
        if scale is not None:
            self._shorten(gradients, scale)
        # Members of a search differ in their rates, so there are about as many runs as members.
        active = [run for run in self._runs if run.start < models]
        side_by_side([partial(self._update, run, gradients) for run in active], self._device)

    def done(self, model: int) -> float:
        """As `Optimizer.done`."""
        return float(next(run for run in self._runs if run.start <= model < run.stop).steps[0])

    def _shorten(self, gradients: Gradients, scale: Tensor) -> None:
        for name, gradient in gradients.items():
            if isinstance(gradient, Tensor) and name not in FIRST:
                gradient.mul_(scale[:, None, None])
            else:
                for model, factor in enumerate(scale):
                    self._layout.pieces(gradient, name, model, model + 1)[0].mul_(factor)

    def _update(self, run: Run, gradients: Gradients) -> None:
        given = [
            piece for name in self._names for piece in self._layout.pieces(gradients[name], name, run.start, run.stop)
        ]
        if run.settings.optimizer == "sgd":
            sgd(
                run.parameters,
                given,
                list(run.moments[0]),
                weight_decay=run.settings.weight_decay,
                momentum=run.settings.momentum,
                lr=run.settings.lr,
                dampening=0.0,
                nesterov=run.settings.momentum > 0,
                maximize=False,
                fused=True,
            )
            torch._foreach_add_(run.steps, 1)
        else:
            adamw(
                run.parameters,
                given,
                run.moments[0],
                run.moments[1],
                [],
                run.steps,
                foreach=False,
                capturable=False,
                differentiable=False,
                fused=True,
                amsgrad=False,
                beta1=kernels.BETAS[0],
                beta2=kernels.BETAS[1],
                lr=run.settings.lr,
                weight_decay=run.settings.weight_decay,
                eps=kernels.EPSILON,
                maximize=False,
            )

"""A pack: many models trained as one batched tensor program.

What may differ between the models of a pack: seeds, training cells with their genes and scaling, every number among the
settings, schedules, and layer sizes. What must agree is in `program`: it decides which arithmetic a step does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from scdgn.config import UNLABELED, Settings
from scdgn.networks import Parameters, initial_parameters, layer_sizes, stack

# Widest hidden layer for which fusing models pays on a CPU (benchmarks/pack.py).
WIDEST_FUSED_ON_CPU = 256


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """The training cells of a model, preprocessed. Models that train on the same cells share one object.

    Attributes
    ----------
    x
        (cells, genes) float32 (or float64, and the model computes in it).
    labels
        (cells,) int64 codes of cell types, `UNLABELED` where not known.
    domains
        (cells,) int64 codes of domains.
    types, domain_count
        Size of the two codings; codes may be unused.
    """

    x: Tensor
    labels: Tensor
    domains: Tensor
    types: int
    domain_count: int

    def __repr__(self) -> str:
        return f"Cells({' x '.join(map(str, self.x.shape))}, {self.types} types, {self.domain_count} domains)"

    @cached_property
    def labeled(self) -> Tensor:
        """Rows of the cells whose type is known, (labelled cells,)."""
        return torch.nonzero(self.labels != UNLABELED)[:, 0]

    @cached_property
    def unlabeled(self) -> Tensor:
        """Rows of the others, (unlabelled cells,)."""
        return torch.nonzero(self.labels == UNLABELED)[:, 0]

    def on(self, device: torch.device) -> Cells:
        """The same cells with `x` on another device; labels and domains stay on the CPU, where draws are made."""
        return Cells(self.x.to(device), self.labels, self.domains, self.types, self.domain_count)


@dataclass(frozen=True, eq=False)
class Member:
    """One model to train.

    Attributes
    ----------
    settings, cells
        What to train, and on what.
    seed
        Of the initial weights and of dropout.
    order_seed
        Of the order of the cells and of the pairs; `seed` by default. Models with the same cells, order seed and
        balancing see the same mini-batches, and a pack then computes faster.
    """

    settings: Settings
    cells: Cells
    seed: int
    order_seed: int = -1

    def __post_init__(self) -> None:
        if self.order_seed < 0:
            object.__setattr__(self, "order_seed", self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch; the last one may be short."""
        return -(-len(self.cells.labeled) // self.settings.batch_size)

    @property
    def trained_types(self) -> Tensor:
        """(types,) bool: the types among the labelled training cells, the only ones the model predicts."""
        return torch.bincount(self.cells.labels[self.cells.labeled], minlength=self.cells.types) > 0

    @property
    def trained_domains(self) -> Tensor:
        """(domains,) bool: the domains that the domain loss sees."""
        rows = slice(None) if self.settings.uses_unlabeled else self.cells.labeled
        return torch.bincount(self.cells.domains[rows], minlength=self.cells.domain_count) > 0

    @property
    def stream(self) -> tuple[int, int, bool]:
        """Members with equal streams see the same mini-batches."""
        return id(self.cells), self.order_seed, self.settings.balance_domains

    @property
    def program(self) -> tuple[object, ...]:
        """What must agree between the models that one fused step updates."""
        settings = self.settings
        return settings.method, settings.batch_size, settings.pairing, settings.optimizer


def fused_groups(members: Sequence[Member], device: torch.device) -> list[list[int]]:
    """Which members are updated by one fused step; the others take their turns.

    On a GPU all members of one program. On a CPU those whose hidden layers are small, and alike enough that padding
    costs less than fusing gains: wide products keep the cores busy by themselves (benchmarks/pack.py).

    Returns
    -------
    Groups of indices into `members`.
    """

    def key(index: int) -> tuple[object, ...]:
        member = members[index]
        if device.type != "cpu":
            return member.program
        if member.settings.hidden > WIDEST_FUSED_ON_CPU:
            return ("alone", index)
        octave = (member.settings.hidden - 1).bit_length()
        return (*member.program, octave)

    groups: dict[tuple[object, ...], list[int]] = {}
    for index in range(len(members)):
        groups.setdefault(key(index), []).append(index)
    return list(groups.values())


@dataclass(frozen=True)
class Run:
    """Neighbouring members of a block whose parameters one call of the optimizer updates."""

    start: int
    stop: int
    settings: Settings
    steps: dict[str, Tensor]  # optimizer steps done, a tensor per parameter as torch wants it


class Block:
    """Members that train fused: their stacked parameters and what the optimizer remembers of them.

    Members stand in an order in which those with the most steps per epoch come first, so that the members still active
    at the end of an epoch are a prefix, and a view, of every tensor; members that share mini-batches are neighbours.

    Attributes
    ----------
    members, indices
        The members in the order of the block, and their places in the list that they came from.
    parameters
        Stacked parameters; leaves that require gradients.
    """

    def __init__(self, members: Sequence[Member], indices: Sequence[int], device: torch.device) -> None:
        self.device = device
        # Streams in the order in which they come: their own keys differ from process to process.
        first: dict[object, int] = {}
        for i in indices:
            first.setdefault(members[i].stream, i)
        self.indices = sorted(indices, key=lambda i: (-members[i].steps_per_epoch, first[members[i].stream], i))
        self.members = [members[i] for i in self.indices]
        models = [_initial(member) for member in self.members]
        self.parameters = self._leaves(models)
        zeros = [{name: torch.zeros_like(p) for name, p in model.items()} for model in models]
        # The momentum of SGD; the first and second moments of AdamW.
        self._moments = [stack(zeros, device) for _ in range(2 if self.settings.optimizer == "adamw" else 1)]
        self._runs = self._plan_runs([0.0] * len(models))

    def __len__(self) -> int:
        return len(self.members)

    @property
    def settings(self) -> Settings:
        """Settings that all members share where `Member.program` says so."""
        return self.members[0].settings

    @property
    def dtype(self) -> torch.dtype:
        """Of all arithmetic."""
        return self.parameters["hidden.weight"].dtype

    def weights(self, place: int) -> Parameters:
        """Parameters of the member at a place of the block, unpadded, on the CPU: (out, in) and (out, 1)."""
        return self._unpadded(self.parameters, place)

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave; the tensors shrink to what is left, in number and in padding."""
        steps = [self._steps_done(place) for place in places]
        kept = [self.weights(place) for place in places]
        moments = [[self._unpadded(moment, place) for place in places] for moment in self._moments]
        self.members = [self.members[place] for place in places]
        self.indices = [self.indices[place] for place in places]
        if places:
            self.parameters = self._leaves(kept)
            self._moments = [stack(moment, self.device) for moment in moments]
            self._runs = self._plan_runs(steps)

    def update(self, active: int) -> None:
        """One optimizer step of the first `active` members, from the gradients of `parameters`."""
        gradients = [_gradient(parameter)[:active] for parameter in self.parameters.values()]
        self._clip(gradients)
        for run in self._runs:
            if run.start < active:
                span = slice(run.start, run.stop)
                _step(
                    run.settings,
                    [parameter.detach()[span] for parameter in self.parameters.values()],
                    [gradient[span] for gradient in gradients],
                    [[tensor[span] for tensor in moment.values()] for moment in self._moments],
                    list(run.steps.values()),
                )

    def per_member(self, values: Sequence[float]) -> Tensor:
        """One number per member, (models,), on the device."""
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def pad(self, rows: Sequence[Tensor]) -> Tensor:
        """One vector per member, padded with zeros (or false) to (models, longest), on the device."""
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(self.device)

    def _leaves(self, models: Sequence[Parameters]) -> Parameters:
        return {name: tensor.requires_grad_() for name, tensor in stack(models, self.device).items()}

    def _plan_runs(self, steps: Sequence[float]) -> list[Run]:
        """Neighbours with equal rates that have done, and will do, equal steps."""
        keys = [
            (m.settings.lr, m.settings.momentum, m.settings.weight_decay, m.steps_per_epoch, done)
            for m, done in zip(self.members, steps, strict=True)
        ]
        runs, start = [], 0
        for key, group in groupby(keys):
            stop = start + len(list(group))
            counters = {name: torch.tensor(key[-1], device=self.device) for name in self.parameters}
            runs.append(Run(start, stop, self.members[start].settings, counters))
            start = stop
        return runs

    def _steps_done(self, place: int) -> float:
        run = next(run for run in self._runs if run.start <= place < run.stop)
        return float(run.steps["hidden.weight"])

    def _unpadded(self, stacked: Parameters, place: int) -> Parameters:
        sizes = _sizes(self.members[place])
        cut = {}
        for name, tensor in stacked.items():
            layer, kind = name.split(".")
            units, inputs = sizes[layer]
            cut[name] = tensor[place, :units, : inputs if kind == "weight" else 1].detach().cpu().clone()
        return cut

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        limits = [member.settings.clip_norm for member in self.members[: len(gradients[0])]]
        if not any(limits):
            return
        limit = self.per_member([limit or torch.inf for limit in limits])
        norm = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0).sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale[:, None, None])


def _step(
    settings: Settings,
    parameters: list[Tensor],
    gradients: list[Tensor],
    moments: list[list[Tensor]],
    steps: list[Tensor],
) -> None:
    """Update parameters in place, in one pass over the memory."""
    if settings.optimizer == "sgd":
        sgd(
            parameters,
            gradients,
            list(moments[0]),
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            lr=settings.lr,
            dampening=0.0,
            nesterov=settings.momentum > 0,
            maximize=False,
            fused=True,
        )
        torch._foreach_add_(steps, 1)
    else:
        adamw(
            parameters,
            gradients,
            moments[0],
            moments[1],
            [],
            steps,
            foreach=False,
            capturable=False,
            differentiable=False,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _gradient(parameter: Tensor) -> Tensor:
    """Of a parameter; zero where no loss reached it (an adversary that has nothing to compare)."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _sizes(member: Member) -> dict[str, tuple[int, int]]:
    return layer_sizes(member.settings, member.cells.x.shape[1], member.cells.types, member.cells.domain_count)


def _initial(member: Member) -> Parameters:
    return initial_parameters(_sizes(member), member.settings.bias_init, member.seed, member.cells.x.dtype)

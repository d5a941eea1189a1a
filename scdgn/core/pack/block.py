"""Models trained as one: parameters stacked over them and padded, with the optimizer's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from scdgn.core.config import Settings
from scdgn.core.networks import Parameters, initial_parameters, stack
from scdgn.core.pack.graphs import side_by_side
from scdgn.core.pack.members import Member, largest_sizes, sizes_of

Gradients = dict[str, Tensor | list[Tensor]]
"""By parameter: (models, ...), or a tensor for every model."""


@dataclass(frozen=True)
class Run:
    """Neighbouring members of a block whose parameters one call of the optimizer updates."""

    start: int
    stop: int
    settings: Settings
    steps: list[Tensor]  # optimizer steps done, a tensor for every tensor that the optimizer is given


@dataclass(frozen=True, eq=False)
class LaneState:
    """Members that train fused, between two epochs: what it takes to go on as if nothing had happened.

    Attributes
    ----------
    indices
        The members in the order of their block, as places in the list that they came from.
    sparse
        Whether the first layer reads sparse input by itself: decided when all members were there, and never again.
    steps
        Optimizer steps that each has done.
    tensors
        Parameters (`parameters.hidden.weight`) and what the optimizer remembers of them (`moment0.hidden.weight`), each
        (models, out, in) or (models, out, 1) on the CPU.
    """

    indices: tuple[int, ...]
    sparse: bool
    steps: tuple[float, ...]
    tensors: dict[str, Tensor]

    def keep(self, numbers: Mapping[int, int]) -> LaneState:
        """The members that have a new number, under it and in their present order."""
        places = [place for place, index in enumerate(self.indices) if index in numbers]
        everyone = len(places) == len(self.indices)
        return replace(
            self,
            indices=tuple(numbers[self.indices[place]] for place in places),
            steps=tuple(self.steps[place] for place in places),
            tensors=self.tensors if everyone else {name: tensor[places] for name, tensor in self.tensors.items()},
        )


class Block:
    """Members that train fused: their stacked parameters and what the optimizer remembers of them.

    Members stand in an order in which those with the most steps per epoch come first, so that the members still active
    at the end of an epoch are a prefix, and a view, of every tensor; members that share mini-batches are neighbours.

    Parameters
    ----------
    members, indices, device
        All members, those that train here, and where.
    sparse
        Whether the first layer reads sparse input by itself, for which the weights of a gene are kept side by side.
    state
        To go on from, in its order of the members; `indices` are then its own.

    Attributes
    ----------
    members, indices
        The members in the order of the block, and their places in the list that they came from.
    stored
        Stacked parameters as they lie in memory; the weights of the first layer (models, genes, hidden) if `sparse`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        indices: Sequence[int],
        device: torch.device,
        sparse: bool = False,
        state: LaneState | None = None,
    ) -> None:
        self.device = device
        self.sparse = sparse
        self.indices = _ordered(members, indices) if state is None else list(state.indices)
        self.members = [members[i] for i in self.indices]
        if state is None:
            self.stored = self._turned(stack(_drawn(self.members, device), device))
            self._moments = [
                {name: torch.zeros_like(tensor) for name, tensor in self.stored.items()}
                for _ in range(self._remembered)
            ]
            self._plan([0.0] * len(self.members))
        else:
            self.stored, *self._moments = self._restored(state)
            self._plan(state.steps)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def settings(self) -> Settings:
        """Settings that all members share where `Member.program` says so."""
        return self.members[0].settings

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.stored["hidden.weight"].dtype

    @property
    def parameters(self) -> Parameters:
        """Stacked parameters, (models, out, in) and (models, out, 1): views of what is stored."""
        return self._turned(self.stored, copy=False)

    def weights(self, place: int) -> Parameters:
        """Parameters of the member at a place of the block, unpadded, a copy: (out, in) and (out, 1)."""
        sizes = sizes_of(self.members[place])
        cut = {}
        for name, tensor in self.parameters.items():
            layer, kind = name.split(".")
            units, inputs = sizes[layer]
            # A copy of the whole would keep the memory order that the first layer of a sparse block has.
            own = tensor[place, :units, : inputs if kind == "weight" else 1]
            cut[name] = own.clone(memory_format=torch.contiguous_format)
        return cut

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave; the tensors shrink to what is left, in number and in padding."""
        steps = [self._steps_done(place) for place in places]
        self.members = [self.members[place] for place in places]
        self.indices = [self.indices[place] for place in places]
        if places:
            chosen = torch.tensor(places, device=self.device)
            self.stored = self._shrunk(self.stored, chosen)
            self._moments = [self._shrunk(moment, chosen) for moment in self._moments]
            self._plan(steps)

    def state(self) -> LaneState:
        """A copy of all that training changes."""
        kinds = {"parameters": self.stored, **{f"moment{i}": moment for i, moment in enumerate(self._moments)}}
        tensors = {
            f"{kind}.{name}": tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for kind, stacked in kinds.items()
            for name, tensor in self._turned(stacked, copy=False).items()
        }
        steps = tuple(self._steps_done(place) for place in range(len(self)))
        return LaneState(tuple(self.indices), self.sparse, steps, tensors)

    def update(self, gradients: Gradients, active: int) -> None:
        """One optimizer step of the first `active` members, from their gradients in the layout of `stored`."""
        self._clip(gradients, active)
        # Members of a search differ in their rates, so there are about as many runs as members.
        side_by_side([partial(self._update, run, gradients) for run in self._runs if run.start < active], self.device)

    def _update(self, run: Run, gradients: Gradients) -> None:
        span = slice(run.start, run.stop)
        given = [_pieces(gradients[name], span) for name in self.stored]
        alike = list(zip(self.stored, given, strict=True))
        _step(
            run.settings,
            _cut_alike(self.stored, alike, span),
            [piece for pieces in given for piece in pieces],
            [_cut_alike(moment, alike, span) for moment in self._moments],
            run.steps,
        )

    def per_member(self, values: Sequence[float]) -> Tensor:
        """One number per member, (models,), on the device."""
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def pad(self, rows: Sequence[Tensor]) -> Tensor:
        """One vector per member, padded with zeros (or false) to (models, longest), on the device."""
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(self.device)

    def _turned(self, parameters: Parameters, copy: bool = True) -> Parameters:
        """From (models, out, in) to the layout of `stored`, or back."""
        if not self.sparse:
            return parameters
        turned = parameters["hidden.weight"].transpose(1, 2)
        return {**parameters, "hidden.weight": turned.contiguous() if copy else turned}

    @property
    def _remembered(self) -> int:
        """Tensors that the optimizer keeps of each: the momentum of SGD; the first and second moments of AdamW."""
        return 2 if self.settings.optimizer == "adamw" else 1

    def _restored(self, state: LaneState) -> list[Parameters]:
        """Parameters and moments as they were. The largest of the members may be gone since."""
        everyone = torch.arange(len(self.members))
        # Clipping sums over the parameters in the order of their layers, which a state need not keep.
        names = [f"{layer}.{kind}" for layer in sizes_of(self.members[0]) for kind in ("weight", "bias")]
        restored = []
        for kind in ("parameters", *(f"moment{i}" for i in range(self._remembered))):
            cut = self._cut({name: state.tensors[f"{kind}.{name}"] for name in names}, everyone)
            restored.append(self._turned({name: tensor.to(self.device) for name, tensor in cut.items()}))
        return restored

    def _shrunk(self, stacked: Parameters, chosen: Tensor) -> Parameters:
        return self._turned(self._cut(self._turned(stacked, copy=False), chosen))

    def _cut(self, parameters: Parameters, chosen: Tensor) -> Parameters:
        """Copies of the chosen members, the present ones, as large as the largest of them."""
        sizes = largest_sizes([sizes_of(member) for member in self.members])
        cut = {}
        for name, tensor in parameters.items():
            layer, kind = name.split(".")
            units, inputs = sizes[layer]
            cut[name] = tensor[chosen, :units, : inputs if kind == "weight" else 1].contiguous()
        return cut

    def _plan(self, steps: Sequence[float]) -> None:
        """Make ready for updates: runs are neighbours with equal rates that have done, and will do, equal steps."""
        keys = [
            (m.settings.lr, m.settings.momentum, m.settings.weight_decay, m.steps_per_epoch, done)
            for m, done in zip(self.members, steps, strict=True)
        ]
        self._runs, start = [], 0
        for key, group in groupby(keys):
            stop = start + len(list(group))
            # One for every tensor that the optimizer is given: the first layer of a sparse block comes model by model.
            count = len(self.stored) + (stop - start - 1 if self.sparse else 0)
            counters = [torch.tensor(key[-1], device=self.device) for _ in range(count)]
            self._runs.append(Run(start, stop, self.members[start].settings, counters))
            start = stop
        limits = [member.settings.clip_norm for member in self.members]
        self._longest = self.per_member([limit or torch.inf for limit in limits]) if any(limits) else None

    def _steps_done(self, place: int) -> float:
        run = next(run for run in self._runs if run.start <= place < run.stop)
        return float(run.steps[0])

    def _clip(self, gradients: Gradients, active: int) -> None:
        if self._longest is None:
            return
        squares = [
            gradient.flatten(1).square().sum(dim=1)
            if isinstance(gradient, Tensor)
            else torch.stack([piece.square().sum() for piece in gradient])
            for gradient in gradients.values()
        ]
        norm = torch.stack(squares).sum(dim=0).sqrt()  # (models,)
        scale = (self._longest[:active] / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients.values():
            if isinstance(gradient, Tensor):
                gradient.mul_(scale[:, None, None])
            else:
                for piece, factor in zip(gradient, scale, strict=True):
                    piece.mul_(factor)


def _ordered(members: Sequence[Member], indices: Sequence[int]) -> list[int]:
    """The order of a block: most steps per epoch first, and the members of a stream side by side."""
    # Streams in the order in which they come: their own keys differ from process to process.
    first: dict[object, int] = {}
    for i in indices:
        first.setdefault(members[i].stream, i)
    return sorted(indices, key=lambda i: (-members[i].steps_per_epoch, first[members[i].stream], i))


def _pieces(gradient: Tensor | list[Tensor], span: slice) -> list[Tensor]:
    return gradient[span] if isinstance(gradient, list) else [gradient[span]]


def _cut_alike(tensors: Parameters, alike: Sequence[tuple[str, list[Tensor]]], span: slice) -> list[Tensor]:
    """Of each tensor the models of the span, in as many pieces as there are of its gradient."""
    cut: list[Tensor] = []
    for name, pieces in alike:
        own = tensors[name][span]
        cut += own.unbind() if pieces[0].ndim < own.ndim else [own]
    return cut


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


def _drawn(members: Sequence[Member], device: torch.device) -> list[Parameters]:
    """Initial parameters. Those of wide layers take as long to draw as epochs on a GPU: there several threads do it."""
    if device.type == "cpu":
        return [_initial(member) for member in members]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(_initial, members))


def _initial(member: Member) -> Parameters:
    return initial_parameters(sizes_of(member), member.settings.bias_init, member.seed, member.cells.x.dtype)

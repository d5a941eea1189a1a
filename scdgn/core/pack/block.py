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
from scdgn.core.pack.first_layer import Gradients
from scdgn.core.pack.graphs import side_by_side
from scdgn.core.pack.layout import Layout
from scdgn.core.pack.members import Member, largest_sizes, sizes_of

FIRST = ("hidden.weight", "hidden.bias")
"""Parameters of the first layer."""


@dataclass(frozen=True)
class Run:
    """Neighbouring members of a block whose parameters one call of the optimizer updates."""

    start: int
    stop: int
    settings: Settings
    parameters: list[Tensor]
    moments: list[list[Tensor]]
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
    layout
        Where their units are.
    stored
        Parameters as they lie in memory: those of the first layer model after model, unpadded, (weights,) and (units,),
        where weights are (hidden, genes) of each model, or (genes, hidden) if `sparse`; the others stacked and padded,
        (models, out, in) and (models, out, 1).
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
            self.stored = self._laid(_drawn(self.members, device))
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
        """A copy of all, stacked and padded: (models, out, in) and (models, out, 1)."""
        return self._stacked(self.stored)

    def weights(self, place: int) -> Parameters:
        """Parameters of the member at a place of the block, unpadded, a copy: (out, in) and (out, 1)."""
        # A clone alone would keep the memory order that the first layer of a sparse block has.
        own = self._own(self.stored, place)
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in own.items()}

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave; the tensors shrink to what is left, in number and in padding."""
        steps = [self._steps_done(place) for place in places]
        spans = [{name: self._span(name, place, place + 1) for name in self.stored} for place in places]
        self.members = [self.members[place] for place in places]
        self.indices = [self.indices[place] for place in places]
        if places:
            chosen = torch.tensor(places, device=self.device)
            self.stored, *self._moments = (self._shrunk(kept, chosen, spans) for kept in (self.stored, *self._moments))
            self._plan(steps)

    def state(self) -> LaneState:
        """A copy of all that training changes."""
        kinds = {"parameters": self.stored, **{f"moment{i}": moment for i, moment in enumerate(self._moments)}}
        tensors = {
            f"{kind}.{name}": tensor
            for kind, kept in kinds.items()
            for name, tensor in self._stacked({name: tensor.cpu() for name, tensor in kept.items()}).items()
        }
        steps = tuple(self._steps_done(place) for place in range(len(self)))
        return LaneState(tuple(self.indices), self.sparse, steps, tensors)

    def update(self, gradients: Gradients, active: int) -> None:
        """One optimizer step of the first `active` members, from their gradients in the layout of `stored`."""
        self._clip(gradients, active)
        # Members of a search differ in their rates, so there are about as many runs as members.
        side_by_side([partial(self._update, run, gradients) for run in self._runs if run.start < active], self.device)

    def _update(self, run: Run, gradients: Gradients) -> None:
        given = [piece for name in self.stored for piece in self._pieces(gradients[name], name, run.start, run.stop)]
        _step(run.settings, run.parameters, given, run.moments, run.steps)

    def per_member(self, values: Sequence[float]) -> Tensor:
        """One number per member, (models,), on the device."""
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def pad(self, rows: Sequence[Tensor]) -> Tensor:
        """One vector per member, padded with zeros (or false) to (models, longest), on the device."""
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(self.device)

    @property
    def _remembered(self) -> int:
        """Tensors that the optimizer keeps of each: the momentum of SGD; the first and second moments of AdamW."""
        return 2 if self.settings.optimizer == "adamw" else 1

    def _restored(self, state: LaneState) -> list[Parameters]:
        """Parameters and moments as they were. The largest of the members may be gone since."""
        kinds = ("parameters", *(f"moment{i}" for i in range(self._remembered)))
        return [
            self._laid([_cut_out(state, kind, i, member) for i, member in enumerate(self.members)]) for kind in kinds
        ]

    def _laid(self, models: Sequence[Parameters]) -> Parameters:
        """Parameters of the members, unpadded, as they are stored."""
        first = {
            name: torch.cat([(own[name].T if self.sparse else own[name]).flatten() for own in models]).to(self.device)
            for name in FIRST
        }
        others = ({name: tensor for name, tensor in own.items() if name not in FIRST} for own in models)
        return first | stack(others, self.device)

    def _own(self, stored: Parameters, place: int) -> Parameters:
        """Views of what a member has there, unpadded."""
        own = {}
        for layer, (units, inputs) in sizes_of(self.members[place]).items():
            for name, columns in ((f"{layer}.weight", inputs), (f"{layer}.bias", 1)):
                tensor = stored[name][self._span(name, place, place + 1)]
                if name not in FIRST:
                    own[name] = tensor[0, :units, :columns]
                else:
                    own[name] = tensor.view(columns, units).T if self.sparse else tensor.view(units, columns)
        return own

    def _stacked(self, stored: Parameters) -> Parameters:
        """The same stacked and padded, where it is."""
        return stack((self._own(stored, place) for place in range(len(self))), stored["hidden.weight"].device)

    def _shrunk(self, stored: Parameters, chosen: Tensor, spans: Sequence[Mapping[str, slice]]) -> Parameters:
        """Copies of what is chosen of former members, as large as the present ones."""
        shrunk = {name: torch.cat([stored[name][span[name]] for span in spans]) for name in FIRST}
        for layer, (units, inputs) in largest_sizes([sizes_of(member) for member in self.members]).items():
            for name, columns in ((f"{layer}.weight", inputs), (f"{layer}.bias", 1)):
                if name not in FIRST:
                    shrunk[name] = stored[name][chosen, :units, :columns].contiguous()
        return shrunk

    def _span(self, name: str, start: int, stop: int) -> slice:
        """Where what neighbouring members have lies in `stored`."""
        match name:
            case "hidden.weight":
                return slice(self.layout.weights[start], self.layout.weights[stop])
            case "hidden.bias":
                return slice(self.layout.units[start], self.layout.units[stop])
            case _:
                return slice(start, stop)

    def _pieces(self, tensor: Tensor | list[Tensor], name: str, start: int, stop: int) -> list[Tensor]:
        """What neighbouring members have in it: one tensor, but for the weights of a sparse first layer."""
        if isinstance(tensor, list):
            return tensor[start:stop]
        if self.sparse and name == "hidden.weight":  # since its gradients come model by model
            return [tensor[self._span(name, place, place + 1)] for place in range(start, stop)]
        return [tensor[self._span(name, start, stop)]]

    def _plan(self, steps: Sequence[float]) -> None:
        """Make ready for updates: runs are neighbours with equal rates that have done, and will do, equal steps."""
        self.layout = Layout(self.members, self.device)
        keys = [
            (m.settings.lr, m.settings.momentum, m.settings.weight_decay, m.steps_per_epoch, done)
            for m, done in zip(self.members, steps, strict=True)
        ]
        self._runs, start = [], 0
        for key, group in groupby(keys):
            stop = start + len(list(group))
            parameters, *moments = (
                [piece for name, tensor in kept.items() for piece in self._pieces(tensor, name, start, stop)]
                for kept in (self.stored, *self._moments)
            )
            counters = [torch.tensor(key[-1], device=self.device) for _ in parameters]
            self._runs.append(Run(start, stop, self.members[start].settings, parameters, moments, counters))
            start = stop
        limits = [member.settings.clip_norm for member in self.members]
        self._longest = self.per_member([limit or torch.inf for limit in limits]) if any(limits) else None

    def _steps_done(self, place: int) -> float:
        run = next(run for run in self._runs if run.start <= place < run.stop)
        return float(run.steps[0])

    def _clip(self, gradients: Gradients, active: int) -> None:
        if self._longest is None:
            return
        of_models = {
            name: [self._pieces(gradient, name, place, place + 1)[0] for place in range(active)]
            for name, gradient in gradients.items()
            if name in FIRST
        }
        rest = (gradient for name, gradient in gradients.items() if name not in FIRST)
        others = [gradient for gradient in rest if isinstance(gradient, Tensor)]
        norms = [torch.stack([torch.linalg.vector_norm(piece) for piece in pieces]) for pieces in of_models.values()]
        norms += [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in others]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # (models,)
        scale = (self._longest[:active] / (norm + 1e-6)).clamp(max=1)
        for pieces in of_models.values():
            for piece, factor in zip(pieces, scale, strict=True):
                piece.mul_(factor)
        for gradient in others:
            gradient.mul_(scale[:, None, None])


def _cut_out(state: LaneState, kind: str, place: int, member: Member) -> Parameters:
    """What the member at a place of a state has there, unpadded."""
    cut = {}
    for layer, (units, inputs) in sizes_of(member).items():
        for name, columns in ((f"{layer}.weight", inputs), (f"{layer}.bias", 1)):
            cut[name] = state.tensors[f"{kind}.{name}"][place, :units, :columns]
    return cut


def _ordered(members: Sequence[Member], indices: Sequence[int]) -> list[int]:
    """The order of a block: most steps per epoch first, the members of a stream side by side, and streams like it."""
    # Streams in the order in which they come: their own keys differ from process to process.
    first: dict[object, int] = {}
    units: dict[object, int] = {}
    for i in indices:
        stream = members[i].stream
        first.setdefault(stream, i)
        units[stream] = units.get(stream, 0) + members[i].settings.hidden

    def place(i: int) -> tuple[int, ...]:
        stream, genes = members[i].stream, members[i].cells.x.shape[1]
        return -members[i].steps_per_epoch, units[stream], genes, first[stream], i

    return sorted(indices, key=place)


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

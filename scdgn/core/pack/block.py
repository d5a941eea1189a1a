"""Models trained as one: parameters stacked over them and padded, with the optimizer's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scdgn.core.config import Settings
from scdgn.core.networks import Parameters, initial_draws, initial_parameters, stack
from scdgn.core.pack.layout import FIRST, Gradients, Layout
from scdgn.core.pack.members import Member, largest_sizes, sizes_of
from scdgn.core.pack.optimizer import optimizer


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

    def view(self, place: int) -> Parameters:
        """Parameters of the member at a place of the block, unpadded, (out, in) and (out, 1): what is stored itself."""
        return self._own(self.stored, place)

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave; the tensors shrink to what is left, in number and in padding."""
        steps = [self._optimizer.done(place) for place in places]
        spans = [{name: self.layout.span(name, place, place + 1) for name in self.stored} for place in places]
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
        steps = tuple(self._optimizer.done(place) for place in range(len(self)))
        return LaneState(tuple(self.indices), self.sparse, steps, tensors)

    def update(self, gradients: Gradients, active: int) -> None:
        """One optimizer step of the first `active` members, from their gradients in the layout of `stored`."""
        self._optimizer.step(gradients, active, self._scale(gradients, active))

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
                tensor = stored[name][self.layout.span(name, place, place + 1)]
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

    def _plan(self, steps: Sequence[float]) -> None:
        """Make ready for updates, given the steps that each member has done."""
        self.layout = Layout(self.members, self.device, self.sparse)
        self._optimizer = optimizer(self.members, steps, self.stored, self._moments, self.layout)
        limits = [member.settings.clip_norm for member in self.members]
        self._longest = self.per_member([limit or torch.inf for limit in limits]) if any(limits) else None

    def _scale(self, gradients: Gradients, active: int) -> Tensor | None:
        """What clipping leaves of the gradients of each model, (models,); None where no model clips."""
        if self._longest is None:
            return None
        norms = []
        for name, gradient in gradients.items():
            if name in FIRST or isinstance(gradient, list):
                each = [self.layout.pieces(gradient, name, place, place + 1)[0] for place in range(active)]
                norms.append(torch.stack([torch.linalg.vector_norm(piece) for piece in each]))
            else:
                norms.append(torch.linalg.vector_norm(gradient.flatten(1), dim=1))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        return (self._longest[:active] / (norm + 1e-6)).clamp(max=1)


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


def _drawn(members: Sequence[Member], device: torch.device) -> list[Parameters]:
    """Initial parameters; of a seed, which the models of a search share, the draws are made once, on the device."""
    by_seed: dict[int, list[Member]] = {}
    for member in members:
        by_seed.setdefault(member.seed, []).append(member)
    draws = {
        seed: initial_draws(largest_sizes([sizes_of(member) for member in own]), seed, device)
        for seed, own in by_seed.items()
    }
    return [_initial(member, draws[member.seed]) for member in members]


def _initial(member: Member, draws: Mapping[str, Tensor]) -> Parameters:
    settings = member.settings
    return initial_parameters(sizes_of(member), settings.bias_init, member.seed, member.cells.x.dtype, draws)

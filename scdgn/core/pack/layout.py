"""Where the hidden units of a block lie: those of all models end to end, so that nothing in the first layer is padding.

Nearly all weights of a model are in its first layer, and there models may differ the most, in units and in genes. The
layers behind it are small: their units are padded to those of the widest model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from scdgn.core.pack.members import Member

FIRST = ("hidden.weight", "hidden.bias")
"""Parameters of the first layer, of which nothing is padding."""

Gradients = dict[str, Tensor | list[Tensor]]
"""By parameter, as it is stored; those of the weights of a sparse first layer model by model."""


@dataclass(frozen=True)
class Slab:
    """Neighbouring streams whose models have, together, equally many units of equally many genes: one batched product.

    Attributes
    ----------
    first, streams
        Their place among the streams of the block, and their number.
    units, genes
        Of each stream.
    unit, weight
        Where their units, and the weights of these, begin.
    """

    first: int
    streams: int
    units: int
    genes: int
    unit: int
    weight: int

    def active(self, streams: int) -> int:
        """How many are among the first streams of the block."""
        return min(max(streams - self.first, 0), self.streams)

    def of_units(self, tensor: Tensor, streams: int) -> Tensor:
        """The part of its first streams in something that all units have, (units, ...): (streams, units, ...)."""
        part = tensor[self.unit : self.unit + streams * self.units]
        return part.view(streams, self.units, *tensor.shape[1:])

    def of_weights(self, weights: Tensor, streams: int) -> Tensor:
        """The part of its first streams in the weights of all units, (weights,): (streams, units, genes)."""
        part = weights[self.weight : self.weight + streams * self.units * self.genes]
        return part.view(streams, self.units, self.genes)


class Layout:
    """Where everything of the models of a block is.

    Parameters
    ----------
    members
        In the order of the block: those of a stream are neighbours.
    device
        Of the tensors.
    sparse
        Whether the first layer reads sparse input by itself.

    Attributes
    ----------
    models, units, weights
        Where the models of each stream, the units of each model, and the weights of these begin; and where all end.
    hidden
        Units of each model.
    slabs
        All streams, in their order.
    stream
        (models,) int64, the stream of each model.
    model, number
        (units,) int64, the model of each unit and its number there.
    widest
        Units of the widest model.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, sparse: bool) -> None:
        self._sparse = sparse
        self.hidden = hidden = [member.settings.hidden for member in members]
        genes = [member.cells.x.shape[1] for member in members]
        sharing = [len(list(group)) for _, group in groupby(member.stream for member in members)]
        self.models = [0, *accumulate(sharing)]
        self.units = [0, *accumulate(hidden)]
        self.weights = [0, *accumulate(units * inputs for units, inputs in zip(hidden, genes, strict=True))]
        self._of_first = dict(zip(FIRST, (self.weights, self.units), strict=True))
        self.widest = max(hidden)
        self.slabs = self._slabs(genes)
        self.stream = torch.arange(len(sharing)).repeat_interleave(torch.tensor(sharing)).to(device)
        model = torch.arange(len(members)).repeat_interleave(torch.tensor(hidden))
        number = torch.arange(len(model)) - torch.tensor(self.units)[model]
        self.model, self.number = model.to(device), number.to(device)
        self._padded = None if len(set(hidden)) == 1 else (model * self.widest + number).to(device)

    def _slabs(self, genes: Sequence[int]) -> list[Slab]:
        slabs, first = [], 0
        shapes = [
            (self.units[last] - self.units[start], genes[start])
            for start, last in zip(self.models[:-1], self.models[1:], strict=True)
        ]
        for (units, inputs), group in groupby(shapes):
            count, model = len(list(group)), self.models[first]
            slabs.append(Slab(first, count, units, inputs, self.units[model], self.weights[model]))
            first += count
        return slabs

    def bounds(self, name: str, tensor: Tensor) -> Sequence[int]:
        """Where the models begin in the memory of a parameter, and where all end."""
        return self._of_first.get(name) or range(0, tensor.numel() + 1, tensor[0].numel())

    def span(self, name: str, start: int, stop: int) -> slice:
        """Where what neighbouring models have of a parameter lies, along its first axis."""
        bounds = self._of_first.get(name)
        return slice(start, stop) if bounds is None else slice(bounds[start], bounds[stop])

    def pieces(self, tensor: Tensor | list[Tensor], name: str, start: int, stop: int) -> list[Tensor]:
        """What neighbouring models have of a parameter or its gradient: one tensor, or as many as the gradient has."""
        if isinstance(tensor, list):
            return tensor[start:stop]
        if self._sparse and name == "hidden.weight":
            return [tensor[self.span(name, model, model + 1)] for model in range(start, stop)]
        return [tensor[self.span(name, start, stop)]]

    def padded(self, units: Tensor, models: int) -> Tensor:
        """Of the units of the first models, (units, cells), to (models, widest, cells), zero where a model has none."""
        if self._padded is not None:
            empty = units.new_zeros(models * self.widest, units.shape[1])
            units = empty.index_copy(0, self._padded[: len(units)], units)
        return units.view(models, self.widest, -1)

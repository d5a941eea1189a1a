"""The encoder's first layer in training, its derivative written out.

Nearly all arithmetic of a step is here: genes outnumber every other size by far. So it writes its gradient, as large as
its weights, to a place that is kept, which saves a tenth of a step of the published sizes on a CPU; it can compute in
bfloat16; and on a CPU it reads sparse input without making it dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from scdgn.core.expression import Rows, transposed
from scdgn.core.pack.graphs import side_by_side
from scdgn.core.pack.layout import Layout, Slab

Gradients = dict[str, Tensor | list[Tensor]]
"""By parameter, as it is stored; of the first layer perhaps a tensor for every model."""

# Nanoseconds per dense multiplication and addition, per sparse one, and for gathering and turning a stored value for
# all models: their ratios decide, as measured with benchmarks/step.py on two cores (AMD EPYC, MKL and FBGEMM).
DENSE, SPARSE, GATHERED = 0.028, 0.11, 16.0


def sparse_pays(density: float, units: int) -> bool:
    """Whether `units` hidden units on a CPU, of all models that share mini-batches, gain from sparse products."""
    return density * (SPARSE + GATHERED / units) < DENSE


class Scratch:
    """Memory that blocks which take turns write their gradients to: the largest tensor of a step, and still warm."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def like(self, tensor: Tensor) -> Tensor:
        """A place of the same shape, which others may have too."""
        memory = self._memory
        if memory.dtype != tensor.dtype or memory.device != tensor.device or len(memory) < tensor.numel():
            self._memory = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        return self._memory[: tensor.numel()].view(tensor.shape)


class DenseLayer:
    """Models of a stream share one matrix product; a step calls forward and then backward.

    Parameters
    ----------
    layout
        Of the block.
    weight, bias
        (weights,) and (units,), updated in place by others.
    scratch
        Where the gradient of the weight goes.

    Attributes
    ----------
    x
        What is read: for each slab (streams, cells, genes).
    """

    def __init__(self, layout: Layout, weight: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self._layout = layout
        self._weight = weight
        self._bias = bias
        self._gradient = scratch.like(weight)
        self.x: Sequence[Tensor] = ()

    def forward(self, streams: int) -> Tensor:
        """The hidden units of the models of the first streams, (units, cells)."""
        units = self._layout.units[self._layout.models[streams]]
        sums = self._weight.new_empty(units, self.x[0].shape[1])
        side_by_side([partial(self._sum, sums, *each) for each in self._read(streams)], sums.device)
        return sums.add_(self._bias[:units, None]).tanh_()

    def backward(self, streams: int, units: Tensor, gradient: Tensor) -> Gradients:
        """Gradients of weight and bias, as they are stored, given that of the hidden units."""
        sums = torch.ops.aten.tanh_backward(gradient, units)  # (units, cells)
        side_by_side([partial(self._multiply, sums, *each) for each in self._read(streams)], sums.device)
        weights = self._layout.weights[self._layout.models[streams]]
        return {"hidden.weight": self._gradient[:weights], "hidden.bias": sums.sum(dim=1)}

    def _read(self, streams: int) -> list[tuple[Slab, Tensor]]:
        return [(slab, x) for slab, x in zip(self._layout.slabs, self.x, strict=True) if slab.active(streams)]

    def _sum(self, sums: Tensor, slab: Slab, x: Tensor) -> None:
        weight = slab.of_weights(self._weight, len(x)).to(x.dtype)
        _product(weight, x.transpose(1, 2), slab.of_units(sums, len(x)))

    def _multiply(self, sums: Tensor, slab: Slab, x: Tensor) -> None:
        _product(slab.of_units(sums, len(x)).to(x.dtype), x, slab.of_weights(self._gradient, len(x)))


class SparseLayer:
    """Every model multiplies the stored values alone, forward and backward; on the CPU.

    Parameters
    ----------
    layout
        Of the block.
    weight, bias
        (weights,), of each model a gene's weights side by side, and (units,).
    """

    def __init__(self, layout: Layout, weight: Tensor, bias: Tensor) -> None:
        self._layout = layout
        self._bias = bias
        self._tables = [weight[start:stop].view(-1, hidden) for start, stop, hidden in layout.of_models()]
        self._stream = layout.stream.tolist()
        self.rows: Sequence[Rows] = ()

    def forward(self, streams: int) -> Tensor:
        """As `DenseLayer.forward`; they read `rows`, one for every stream."""
        models = range(self._layout.models[streams])
        sums = torch.cat([_weighted_sums(self.rows[self._stream[i]], self._tables[i]) for i in models], dim=1)
        return sums.add_(self._bias[: sums.shape[1]]).tanh_().T

    def backward(self, streams: int, units: Tensor, gradient: Tensor) -> Gradients:
        """As `DenseLayer.backward`; the gradient of the weight model by model."""
        models = self._layout.models[streams]
        sums = torch.ops.aten.tanh_backward(gradient, units)  # (units, cells)
        by_cell = [part.T.contiguous() for part in sums.split(self._layout.hidden[:models])]
        by_gene = [
            transposed(rows, len(self._tables[self._layout.models[i]])) for i, rows in enumerate(self.rows[:streams])
        ]
        # Not joined, which would be one more pass over the largest tensor of a step.
        weight = [_weighted_sums(by_gene[self._stream[i]], by_cell[i]).view(-1) for i in range(models)]
        return {"hidden.weight": weight, "hidden.bias": sums.sum(dim=1)}


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """The batched product, into its place."""
    if left.dtype != out.dtype:
        out.copy_(torch.bmm(left, right))
    elif len(left) == 1:  # torch takes a slower path for a batch of one
        torch.mm(left[0], right[0], out=out[0])
    else:
        torch.bmm(left, right, out=out)


def _weighted_sums(rows: Rows, table: Tensor) -> Tensor:
    """The product of sparse rows with a dense matrix: (rows, columns) by (columns, units)."""
    return embedding_bag(rows.columns, table, rows.starts, mode="sum", per_sample_weights=rows.values)

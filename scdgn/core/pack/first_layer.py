"""The encoder's first layer in training, its derivative written out.

Nearly all arithmetic of a step is here: genes outnumber every other size by far. So it writes its gradient, as large as
its weights, to a place that is kept, which saves a tenth of a step of the published sizes on a CPU; it can compute in
bfloat16; and on a CPU it reads sparse input without making it dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from scdgn.core.expression import Rows, transposed
from scdgn.core.networks import hidden_sums

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
    """Models of a stream neighbour each other and share one matrix product; a step calls forward and then backward.

    Parameters
    ----------
    weight, bias
        (models, hidden, genes) and (models, hidden, 1), updated in place by others.
    streams
        Mini-batches side by side.
    scratch
        Where the gradient of the weight goes.
    """

    def __init__(self, weight: Tensor, bias: Tensor, streams: int, scratch: Scratch) -> None:
        self._weight = weight
        self._bias = bias
        self._shared = len(weight) // streams
        self._gradient = scratch.like(weight)
        self.x = torch.empty(0)

    def forward(self, models: int) -> Tensor:
        """The hidden units of the first models, (models, hidden, cells); they read `x`, (streams, cells, genes)."""
        weight, bias = self._weight[:models], self._bias[:models]
        if self.x.dtype != weight.dtype:
            sums = hidden_sums(weight.to(self.x.dtype), torch.zeros_like(bias, dtype=self.x.dtype), self.x)
            return torch.tanh_(sums.to(weight.dtype).add_(bias))
        return torch.tanh_(hidden_sums(weight, bias, self.x))

    def backward(self, units: Tensor, gradient: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Gradients of weight and bias, as they are stored, given that of the hidden units."""
        models, hidden, cells = units.shape
        sums = torch.ops.aten.tanh_backward(gradient, units)  # (models, hidden, cells)
        stacked = sums.reshape(models // self._shared, self._shared * hidden, cells)
        out = self._gradient[:models]
        place = out.view(len(stacked), self._shared * hidden, -1)
        x = self.x[: len(stacked)]
        if x.dtype != sums.dtype:
            place.copy_(torch.bmm(stacked.to(x.dtype), x))
        elif len(stacked) == 1:  # torch takes a slower path for a batch of one
            torch.mm(stacked[0], x[0], out=place[0])
        else:
            torch.bmm(stacked, x, out=place)
        return {"hidden.weight": out, "hidden.bias": sums.sum(dim=2, keepdim=True)}


class SparseLayer:
    """Every model multiplies the stored values alone, forward and backward; on the CPU.

    Parameters
    ----------
    weight, bias
        (models, genes, hidden), a gene's weights side by side, and (models, hidden, 1).
    streams
        Mini-batches side by side.
    """

    def __init__(self, weight: Tensor, bias: Tensor, streams: int) -> None:
        self._weight = weight
        self._bias = bias
        self._shared = len(weight) // streams
        self.rows: Sequence[Rows] = ()

    def forward(self, models: int) -> Tensor:
        """As `DenseLayer.forward`; they read `rows`, one for every stream."""
        sums = torch.stack(
            [_weighted_sums(self.rows[place // self._shared], self._weight[place]) for place in range(models)]
        )  # (models, cells, hidden)
        return sums.add_(self._bias[:models].transpose(1, 2)).tanh_().transpose(1, 2)

    def backward(self, units: Tensor, gradient: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """As `DenseLayer.backward`; the gradient of the weight model by model."""
        models = len(units)
        sums = torch.ops.aten.tanh_backward(gradient, units)  # (models, hidden, cells)
        by_cell = sums.transpose(1, 2).contiguous()
        genes = self._weight.shape[1]
        by_gene = [transposed(rows, genes) for rows in self.rows[: models // self._shared]]
        # Not stacked, which would be one more pass over the largest tensor of a step.
        weight = [_weighted_sums(by_gene[i // self._shared], by_cell[i]) for i in range(models)]
        return {"hidden.weight": weight, "hidden.bias": sums.sum(dim=2, keepdim=True)}


def _weighted_sums(rows: Rows, table: Tensor) -> Tensor:
    """The product of sparse rows with a dense matrix: (rows, columns) by (columns, units)."""
    return embedding_bag(rows.columns, table, rows.starts, mode="sum", per_sample_weights=rows.values)

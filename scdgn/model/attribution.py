"""Which genes speak for a cell type, by integrated gradients: here of the cells of a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdgn.core.networks import Model
from scdgn.model.bundle import Bundle

if TYPE_CHECKING:
    import pandas as pd

STEPS = 32
"""Of the quadrature along the path from the mean cell: with more the sum over the genes changes by less than 1 in
1000."""

CELLS_PER_LABEL = 200
"""Cells of a label among those that are predicted at once over which attributions are averaged; evenly spaced."""

TOP = 20
"""Genes of a label in the table."""


class Explanation:
    """The genes that speak most for the labels of cells, which are seen some at a time.

    Integrated gradients of the leading part's models, as `integrated_gradients` has them, from the mean training cell
    to cells of a label: what the model saw in these cells, where `scdgn.analysis.chapters.genes` tells what it saw in
    training. A label that the leading part does not know has no genes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._part, self._labels = bundle.parts[0], bundle.cell_types
        self._mean = torch.from_numpy(self._part.preprocessing.silent)  # (genes,) input of the mean training cell
        shape = (len(self._labels), len(self._mean))
        self._cells = np.zeros(len(self._labels), dtype=np.int64)
        self._attribution, self._shift = np.zeros(shape), np.zeros(shape)  # sums over cells

    def add(self, x: Tensor, codes: NDArray[np.int64]) -> None:
        """Look at some of the next cells: the leading part's input, (cells, genes), and codes of their labels,
        (cells,).
        """
        for code in np.unique(codes).tolist():
            models = [model for model in self._part.models if model.types[code]]
            if not models:
                continue
            own = np.flatnonzero(codes == code)
            some = x[own[np.unique(np.linspace(0, len(own) - 1, CELLS_PER_LABEL, dtype=np.int64))]]
            each = [integrated_gradients(model, some, self._mean, code) for model in models]
            self._cells[code] += len(own)
            self._attribution[code] += len(own) * np.mean(each, axis=0)
            self._shift[code] += len(own) * (some.mean(dim=0) - self._mean).numpy()

    def table(self) -> pd.DataFrame:
        """The genes that speak for each label, by label, then by rank: `TOP` of them at most.

        Returns
        -------
        `label`, `gene`, `rank` (1 speaks most), `attribution` (mean contribution to the label's logit against the mean
        of all logits) and `shift` (mean input of the label's cells minus that of the mean training cell; a gene with a
        negative one speaks by being low).
        """
        import pandas as pd

        genes, parts = self._part.preprocessing.genes, []
        for code in np.flatnonzero(self._cells):
            attribution, shift = (sums[code] / self._cells[code] for sums in (self._attribution, self._shift))
            best = np.argsort(-attribution, kind="stable")[:TOP]
            best = best[attribution[best] > 0]
            columns = {
                "label": self._labels[code],
                "gene": genes[best].astype(object),
                "rank": np.arange(1, len(best) + 1),
                "attribution": attribution[best],
                "shift": shift[best],
            }
            parts.append(pd.DataFrame(columns))
        empty = pd.DataFrame(columns=["label", "gene", "rank", "attribution", "shift"])
        return pd.concat(parts, ignore_index=True) if parts else empty


def integrated_gradients(
    model: Model, x: Tensor, baseline: Tensor, code: int, steps: int = STEPS
) -> NDArray[np.float32]:
    """Mean integrated gradient of a type's logit over cells, (cells, genes) to (genes,).

    Integrated gradients (Sundararajan et al. 2017) of a type's logit minus the mean of the logits of all types that the
    model knows: what is added to all logits changes no probability. Over all genes they sum to the difference between
    the cells and the baseline.

    Parameters
    ----------
    model
        One that knows the type.
    x
        (cells, genes) the network's input.
    baseline
        (genes,) where the path to each cell begins: the mean training cell, so that a gene speaks by how the cells
        differ from others; from an empty cell, genes that all cells express would come first.
    code
        The type.
    steps
        Of the quadrature.
    """
    from captum.attr import IntegratedGradients

    # The first layer is linear: the path of its sums is as straight as that of the input. The gradients are therefore
    # integrated with respect to the sums and taken to the genes once, not in every step.
    weight, bias = model.weights["hidden.weight"], model.weights["hidden.bias"][:, 0]  # (hidden, genes), (hidden,)
    sums = (x @ weight.T + bias).requires_grad_()
    slopes = IntegratedGradients(lambda at: _centred(type_logits(model, at), model.types), multiply_by_inputs=False)
    integrated = slopes.attribute(
        sums, baselines=(weight @ baseline + bias)[None], target=code, n_steps=steps, internal_batch_size=8192
    )
    each = (x - baseline) * (integrated.detach().float() @ weight)  # (cells, genes)
    return np.asarray(each.mean(dim=0).numpy())


def type_logits(model: Model, sums: Tensor) -> Tensor:
    """From the sums of the first layer to the logits of all types, (cells, hidden) to (cells, types)."""
    weights = model.weights
    latent = torch.tanh(torch.tanh(sums) @ weights["latent.weight"].T + weights["latent.bias"][:, 0])
    return latent @ weights["label.weight"].T + weights["label.bias"][:, 0]


def _centred(logits: Tensor, known: Tensor) -> Tensor:
    return logits - logits[:, known].mean(dim=1, keepdim=True)

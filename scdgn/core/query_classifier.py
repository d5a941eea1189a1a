"""A query's own classifier: linear, learned from those of its cells that models are sure of. Torch alone.

What tells types apart in a query is not quite what told them apart in the training batches. The cells that the models
are sure of say what it is there: a multinomial logistic regression learns it from the types predicted for them, every
type weighing the same, on the principal components of the training cells. Its probabilities are averaged with those of
the models (self-training, Yarowsky 1995, with pseudo-labels, Lee 2013). Nothing is trained again, and no training cell
is needed. docs/experiments.md has what was tried.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scdgn.core.config import UNLABELED
from scdgn.core.expression import Expression, dense_rows

COMPONENTS = 64
"""Principal components that it looks at."""

ANALYSED = 2_000
"""Most training cells from which the components are found."""

PASSES = 4
"""Of the iteration that finds them: how well each is told from the next hardly matters."""

SURE = 0.7
"""Probability from which a cell teaches its predicted type."""

SURE_TOGETHER = 0.6
"""The same where models of several settings are averaged, who are less sure together."""

LEAST_SURE = 100
"""Cells of a query that must be so: with fewer the folds gained nothing by it."""

OF_A_TYPE = 5
"""Of them with a type, for it to be learned; the others keep the probability that the models give them."""

MOST_ALIKE = 0.6
"""Share of the cells of a query that may be called the same type."""

WEIGHT = 0.7
"""Of its probabilities beside those of the models."""

STRENGTH = 4.0
"""By which the mean loss is multiplied beside half the squared length of the weights, for components of mean square 1.
"""

STEPS = 40
"""Most iterations of the optimizer."""


class QueryClassifier(NamedTuple):
    """What a query taught.

    Attributes
    ----------
    weights
        (genes, types).
    bias
        (types,) minus infinity for types that it does not know.
    """

    weights: Tensor
    bias: Tensor

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Of cells by their input, (cells, genes) to (cells, types)."""
        return torch.log_softmax(x @ self.weights.to(x) + self.bias.to(x), dim=1)


def principal_components(x: Expression, labels: Tensor) -> Tensor:
    """Directions in which training cells differ most, (components, genes), orthonormal.

    By block power iteration from directions that are always the same (Halko et al. 2011), of evenly spaced cells; fewer
    where there are fewer cells or genes.

    Parameters
    ----------
    x, labels
        (cells, genes) the network's input, and (cells,) codes: cells without a label do not count.
    """
    labeled = torch.nonzero(labels.cpu() != UNLABELED)[:, 0]
    chosen = labeled[:: max(1, math.ceil(len(labeled) / ANALYSED))]
    dense = dense_rows(x, chosen).cpu().float()
    dense = dense - dense.mean(dim=0)
    start = torch.randn(dense.shape[1], COMPONENTS, generator=torch.Generator().manual_seed(0))
    directions: Tensor = torch.linalg.qr(start).Q  # (genes, components)
    for _ in range(PASSES):
        directions = torch.linalg.qr(dense.T @ (dense @ directions)).Q
    return directions.T.contiguous()


def learn(z: Tensor, probabilities: Tensor, components: Tensor, sure_from: float = SURE) -> QueryClassifier | None:
    """The classifier of a query.

    Parameters
    ----------
    z
        (cells, components) some of its cells.
    probabilities
        (cells, types) what the models say of them.
    components
        (components, genes) what z are coordinates on.
    sure_from
        Probability from which a cell teaches.

    Returns
    -------
    None where the models are sure of too few cells, or of one type alone, or call most cells the same.
    """
    probability, predicted = probabilities.max(dim=1)
    sure = probability >= sure_from
    cells = torch.bincount(predicted[sure], minlength=probabilities.shape[1])
    known = cells >= OF_A_TYPE  # (types,)
    alike = torch.bincount(predicted).amax() / len(predicted)
    if int(sure.sum()) < LEAST_SURE or int(known.sum()) < 2 or alike > MOST_ALIKE:
        return None
    taught = sure & known[predicted]
    own = z[taught].double()
    center, size = own.mean(dim=0), (own - own.mean(dim=0)).square().mean().sqrt().clamp(min=1e-12)
    own = (own - center) / size
    codes = (known.cumsum(dim=0) - 1)[predicted[taught]]
    share = 1 / (known.sum() * cells[predicted[taught]]).double()  # every type weighs the same
    weights = torch.zeros(z.shape[1], int(known.sum()), dtype=torch.float64, device=z.device, requires_grad=True)
    bias = torch.zeros(int(known.sum()), dtype=torch.float64, device=z.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(own @ weights + bias, codes, reduction="none")
        found = STRENGTH * (share * losses).sum() + weights.square().sum() / 2
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights, bias = weights.detach() / size, bias.detach()
    found = QueryClassifier(torch.zeros(components.shape[1], len(known)), torch.full((len(known),), -torch.inf))
    found.weights[:, known.cpu()] = components.T @ weights.float().cpu()
    found.bias[known.cpu()] = (bias - center @ weights).float().cpu()
    return found


def averaged(logits: Tensor, own: Tensor) -> Tensor:
    """Logits of models whose probabilities are averaged with those of the query's own classifier.

    The types that the classifier knows share what the models give to them together. How large the logits of a cell are
    together (`logsumexp`) stays: that is what tells cells of no trained type.

    Parameters
    ----------
    logits
        (models, cells, types).
    own
        (cells, types) logarithms of its probabilities, minus infinity for types that it does not know.
    """
    size = logits.logsumexp(dim=2, keepdim=True)
    said, known = logits - size, own.isfinite()
    together = said.where(known, -torch.inf).logsumexp(dim=2, keepdim=True)
    learned = torch.where(known, own + together, said)
    return torch.logaddexp(said + math.log(1 - WEIGHT), learned + math.log(WEIGHT)) + size

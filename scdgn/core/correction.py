"""Prediction that knows its query: the shift that all types of a batch share is taken away. Torch and numpy alone.

At prediction the cells of a batch are known, without labels. With the probabilities p (cells, types) that the models
give them, the shift of type t is the mean of the batch's cells weighted by p(t), minus the mean input of the training
cells of the type. What the types have in common is the batch's own; averaging over types, not cells, keeps composition
out of it. A gene's shift s is shrunk to s³ / (s² + its variance over types / types), so that what types disagree on
stays. It is subtracted, and the cells are predicted again.

A batch is left as it is where that would be guessing: with few cells or types, where most cells look like one type (of
the others there may be none, but for doubts), or where it is no further from the training cells than a training domain
is, which the models have learned to bear. docs/experiments.md has what was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdgn.core.config import UNLABELED
from scdgn.core.expression import Expression, chunks
from scdgn.core.networks import PREDICTED_AT_ONCE, Model
from scdgn.errors import listed

LEAST_CELLS = 30
"""No batch with fewer cells is corrected."""

OF_A_TYPE = 5
"""Cells of a type, in a query by the sum of their probabilities, from which they say how their batch is shifted."""

LEAST_TYPES = 3
"""Types with so many cells from which a batch is corrected: what two have in common may be chance."""

MOST_ALIKE = 0.6
"""Share of the cells that may be called the same type."""

NO_CELLS = "no cells"
"""Why a batch is left as it is that only other cells of the data set have."""


class Reference(NamedTuple):
    """The training cells of a model, as far as a query is compared with them.

    Attributes
    ----------
    means
        (types, genes) mean input of each type: the mean over the domains that hold it. NaN for types without cells.
    floor
        (genes,) the least input of a cell, below which nothing is moved.
    spread
        Length of the shift of that training domain which lies furthest away.
    """

    means: Tensor
    floor: Tensor
    spread: float


class Query(NamedTuple):
    """Some cells of a query.

    Attributes
    ----------
    inputs
        Of each part of a bundle, (cells, genes).
    batches
        (cells,) codes.
    """

    inputs: Sequence[Tensor]
    batches: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Correction:
    """What is taken away from the cells of a query.

    Attributes
    ----------
    shifts
        Of each part, (batches, genes); 0 where a batch is left as it is.
    floors
        Of each part, (genes,).
    reasons
        By batch: why it is left as it is; empty where it is corrected.
    """

    shifts: tuple[Tensor, ...]
    floors: tuple[Tensor, ...]
    reasons: tuple[str, ...]

    def corrected(self, batches: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(cells,) whether the cells of these batches are corrected."""
        return np.array([not reason for reason in self.reasons], dtype=bool)[batches]

    def describe(self, names: Sequence[str]) -> str:
        """What was done to the batches of these names, in one line; nothing of those without cells."""
        each = [(name, reason) for name, reason in zip(names, self.reasons, strict=True) if reason != NO_CELLS]
        left: dict[str, list[str]] = {}
        for name, reason in each:
            if reason:
                left.setdefault(reason, []).append(name)
        done = f"{sum(not reason for _, reason in each)} of {len(each)} batches corrected"
        words = [f"{listed(own)} ({reason})" for reason, own in left.items()]
        return done + (f"; left as it is: {'; '.join(words)}" if words else "")

    def apply(self, query: Query) -> tuple[Tensor, ...]:
        """The input of each part without the shift of its batch; to the last bit the same where a batch has none."""
        batches = torch.from_numpy(query.batches)
        return tuple(
            x if not shifts.any() else _shifted(x, shifts[batches].to(x), floor.to(x))
            for x, shifts, floor in zip(query.inputs, self.shifts, self.floors, strict=True)
        )


def find_reference(x: Expression, labels: Tensor, domains: Tensor, types: int) -> Reference:
    """What a query of the models of these training cells is compared with.

    Parameters
    ----------
    x
        (cells, genes) the network's input, dense or sparse.
    labels, domains
        (cells,) codes; cells without a label are not looked at.
    types
        Number of types.
    """
    labels, domains = labels.cpu(), domains.cpu()
    groups = torch.where(labels == UNLABELED, -1, domains * types + labels)
    size = (int(domains.max()) + 1) * types
    totals = torch.zeros(size, x.shape[1], dtype=torch.float64)
    floor = torch.full((x.shape[1],), torch.inf)
    parts = zip(chunks(x, PREDICTED_AT_ONCE), torch.split(groups, PREDICTED_AT_ONCE), strict=True)
    for chunk, codes in parts:
        known = codes >= 0
        own, place = torch.unique(codes[known], return_inverse=True)
        cells = chunk[known.to(chunk.device)].cpu()
        member = torch.nn.functional.one_hot(place, len(own)).to(cells)
        totals[own] += (member.T @ cells).double()
        floor = torch.minimum(floor, cells.amin(dim=0)) if len(cells) else floor
    counts = torch.bincount(groups[groups >= 0], minlength=size).double()
    each = (totals / counts[:, None]).view(-1, types, x.shape[1])  # (domains, types, genes), NaN without cells
    means = each.nanmean(dim=0)
    spread = 0.0
    for shift, cells in zip(each - means, counts.view(-1, types), strict=True):
        if (cells >= OF_A_TYPE).any():
            spread = max(spread, float(shift[cells >= OF_A_TYPE].mean(dim=0).norm()))
    return Reference(means.float(), floor.float(), spread)


def find_correction(
    query: Callable[[], Iterable[Query]],
    models: Sequence[Sequence[Model]],
    references: Sequence[Reference],
    sizes: NDArray[np.int64],
) -> Correction:
    """Go through the cells of a query once, and find what to take away from them.

    Parameters
    ----------
    query
        All of its cells, some at a time.
    models, references
        Of each part; a part's shifts are found by the mean probabilities of its own models.
    sizes
        (batches,) number of cells.
    """
    enough = [code for code, cells in enumerate(sizes.tolist()) if cells >= LEAST_CELLS]
    sums = [{code: _Sums(reference) for code in enough} for reference in references]
    for inputs, batches in query() if enough else ():
        codes = torch.from_numpy(batches)
        for part, own, x in zip(sums, models, inputs, strict=True):
            p = torch.stack([model.probabilities(x) for model in own]).mean(dim=0)  # (cells, types)
            for code in np.unique(batches).tolist():
                if code in part:
                    chosen = (codes == code).to(x.device)
                    part[code].add(p[chosen], x[chosen])
    shifts = [torch.zeros(len(sizes), len(reference.floor)) for reference in references]
    reasons = [f"{cells} of at least {LEAST_CELLS} cells" if cells else NO_CELLS for cells in sizes.tolist()]
    for code in enough:
        found = [part[code].shift() for part in sums]
        for place, (shift, _) in zip(shifts, found, strict=True):
            place[code] = shift
        reasons[code] = "" if any(not reason for _, reason in found) else found[0][1]
    return Correction(tuple(shifts), tuple(reference.floor for reference in references), tuple(reasons))


def corrected_logits(
    models: Sequence[Model], x: Expression, reference: Reference, batches: NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of a whole query without and with correction, as a search compares them on a domain left out.

    Parameters
    ----------
    models
        Trained alike.
    x
        (cells, genes) all cells of the query, dense or sparse.
    reference
        Of their training cells.
    batches
        (cells,) codes from 0; one batch by default.

    Returns
    -------
    (models, cells, types) each; the second is the first where no batch is corrected.
    """
    codes = np.zeros(len(x), dtype=np.int64) if batches is None else batches

    def query() -> Iterable[Query]:
        start = 0
        for chunk in chunks(x, PREDICTED_AT_ONCE):
            yield Query([chunk], codes[start : start + len(chunk)])
            start += len(chunk)

    plain = torch.stack([model.forward(x)[1] for model in models])
    correction = find_correction(query, [models], [reference], np.bincount(codes))
    if all(correction.reasons):
        return plain, plain
    parts = [torch.stack([model.forward(correction.apply(part)[0])[1] for model in models]) for part in query()]
    return plain, torch.cat(parts, dim=1)


class _Sums:
    """Of the cells of a batch, by type: how many, by probability, and their input, weighted by it."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._called = torch.zeros(len(reference.means), dtype=torch.float64)  # (types,)
        self._mass = self._called.clone()  # (types,)
        self._totals = torch.zeros(reference.means.shape, dtype=torch.float64)  # (types, genes)

    def add(self, p: Tensor, x: Tensor) -> None:
        """Some cells: probabilities, (cells, types), and input, (cells, genes)."""
        self._called += torch.bincount(p.argmax(dim=1), minlength=p.shape[1]).cpu()
        self._mass += p.sum(dim=0).double().cpu()
        self._totals += (p.T @ x).double().cpu()

    def shift(self) -> tuple[Tensor, str]:
        """The shift, (genes,), 0 where there is a reason to leave the batch as it is; and the reason."""
        means = self._reference.means.double()
        nothing = torch.zeros(means.shape[1])
        alike = float(self._called.max() / self._called.sum())
        if alike > MOST_ALIKE:
            return nothing, f"{alike:.0%} of its cells look like one type"
        heard = (self._mass >= OF_A_TYPE) & means.isfinite().all(dim=1)
        types = int(heard.sum())
        if types < LEAST_TYPES:
            return nothing, f"{types} of at least {LEAST_TYPES} types have {OF_A_TYPE} cells"
        each = self._totals[heard] / self._mass[heard, None] - means[heard]  # (types, genes)
        shift, doubt = each.mean(dim=0), each.var(dim=0) / types
        shift = shift * (shift.square() / (shift.square() + doubt).clamp(min=1e-12))
        if shift.norm() <= self._reference.spread:
            return nothing, "no further from the training cells than a training batch is"
        return shift.float(), ""


def _shifted(x: Tensor, shifts: Tensor, floor: Tensor) -> Tensor:
    """No value below the floor that was not there before."""
    return torch.maximum(x - shifts, torch.minimum(x, floor))

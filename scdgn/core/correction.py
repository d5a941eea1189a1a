"""Prediction that knows its query: the shift that all types of a batch share is taken away. Torch and numpy alone.

At prediction the cells of a batch are known, without labels. With the probabilities p (cells, types) that the models
give them, the shift of type t is the mean of the batch's cells weighted by p(t), minus the mean input of the training
cells of the type. What the types have in common is the batch's own; averaging over types, not cells, keeps composition
out of it. A gene's shift s is shrunk to s³ / (s² + its variance over types / types), so that what types disagree on
stays. It is subtracted, and the cells are predicted again.

A batch is not moved where that would be guessing: with few cells or types, where most cells look like one type (of
the others there may be none, but for doubts), or where it is no further from the training cells than a training domain
is, which the models have learned to bear. Moved or not, the cells of the query then have a say of their own
(`query_classifier`). docs/experiments.md has what was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdgn.core.config import UNLABELED
from scdgn.core.expression import Expression, chunks, dense_rows
from scdgn.core.networks import PREDICTED_AT_ONCE, Model
from scdgn.core.query_classifier import (
    LEAST_SURE,
    MOST_ALIKE,
    SURE,
    SURE_TOGETHER,
    QueryClassifier,
    averaged,
    learn,
    principal_components,
)
from scdgn.errors import listed

LEAST_CELLS = 30
"""No batch with fewer cells is corrected."""

OF_A_TYPE = 5
"""Cells of a type, in a query by the sum of their probabilities, from which they say how their batch is shifted."""

LEAST_TYPES = 3
"""Types with so many cells from which a batch is corrected: what two have in common may be chance."""

MOST_TEACHING = 10_000
"""Cells of a query, evenly spaced, from which its classifier is learned."""

SUMS_AT_ONCE = 1_000_000_000
"""Bytes of the sums that are kept in one pass through a query."""

UNMOVED = "the model moves no batch"
"""Why a batch is left as it is where domains left out lost by being moved."""

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
    components
        (components, genes) on which a query learns a classifier; None in bundles of before there was one.
    """

    means: Tensor
    floor: Tensor
    spread: float
    components: Tensor | None = None


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
    """What is taken away from the cells of a query, and what they say of themselves.

    Attributes
    ----------
    shifts
        Of each part, (batches, genes); 0 where a batch is not moved.
    floors
        Of each part, (genes,).
    reasons
        By batch: why it is not moved; empty where it is.
    classifiers
        Of each part, learned from the whole query; None for a part without, and none at all where no part has one.
    """

    shifts: tuple[Tensor, ...]
    floors: tuple[Tensor, ...]
    reasons: tuple[str, ...]
    classifiers: tuple[QueryClassifier | None, ...] = ()

    @property
    def transductive(self) -> bool:
        """Whether anything is said of a cell that depends on the others."""
        return "" in self.reasons or bool(self.classifiers)

    def corrected(self, batches: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(cells,) whether the cells of these batches are moved."""
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
        learned = "; its cells taught it a classifier of its own" if self.classifiers else ""
        return done + (f"; left as it is: {'; '.join(words)}" if words else "") + learned

    def apply(self, query: Query) -> tuple[Tensor, ...]:
        """The input of each part without the shift of its batch; to the last bit the same where a batch has none."""
        batches = torch.from_numpy(query.batches)
        return tuple(
            x if not shifts.any() else _shifted(x, shifts[batches].to(x), floor.to(x))
            for x, shifts, floor in zip(query.inputs, self.shifts, self.floors, strict=True)
        )

    def own(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """What the query's own classifiers say of cells whose input `apply` has corrected.

        Returns
        -------
        For each part (cells, types) logarithms of probabilities; None for a part without a classifier.
        """
        if not self.classifiers:
            return (None,) * len(inputs)
        return tuple(
            None if classifier is None else classifier.log_probabilities(x)
            for classifier, x in zip(self.classifiers, inputs, strict=True)
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
    means = torch.zeros(types, x.shape[1], dtype=torch.float64)
    holders = torch.zeros(types, dtype=torch.float64)  # domains that hold each type
    floor = torch.full((x.shape[1],), torch.inf)
    told: list[tuple[Tensor, Tensor]] = []  # of each domain its types with cells enough, and their mean
    # A domain at a time: a table of all types in all of them would be too large where they are donors.
    for domain in torch.unique(domains[labels != UNLABELED]):
        own = torch.nonzero((domains == domain) & (labels != UNLABELED))[:, 0]
        totals = torch.zeros_like(means)
        for rows in torch.split(own, PREDICTED_AT_ONCE):
            cells = dense_rows(x, rows).cpu()
            held, place = torch.unique(labels[rows], return_inverse=True)
            totals[held] += (torch.nn.functional.one_hot(place, len(held)).to(cells).T @ cells).double()
            floor = torch.minimum(floor, cells.amin(dim=0))
        counts = torch.bincount(labels[own], minlength=types)
        held, enough = torch.nonzero(counts)[:, 0], counts >= OF_A_TYPE
        totals[held] /= counts[held, None]
        means += totals
        holders[held] += 1
        if enough.any():
            told.append((enough, totals[enough].mean(dim=0)))
    means /= holders[:, None]  # NaN without cells
    lengths = (float((mean - means[enough].mean(dim=0)).norm()) for enough, mean in told)
    components = principal_components(x, labels)
    return Reference(means.float(), floor.float(), max(lengths, default=0.0), components)


def find_correction(
    query: Callable[[], Iterable[Query]],
    models: Sequence[Sequence[Model]],
    references: Sequence[Reference],
    sizes: NDArray[np.int64],
    moves: bool = True,
) -> Correction:
    """Go through the cells of a query, and find what to take away from them; once more, for what they teach.

    Once for what to take away, unless the sums of all batches, types and genes would take more than `SUMS_AT_ONCE`.

    Parameters
    ----------
    query
        All of its cells, some at a time; asked once for each pass.
    models, references
        Of each part, all of which know the same types; what they say together finds the shifts and classifiers of each.
    sizes
        (batches,) number of cells.
    moves
        Whether anything is taken away; else the cells teach a classifier where they are.
    """
    enough = [code for code, cells in enumerate(sizes.tolist()) if cells >= LEAST_CELLS and moves]
    shifts = [torch.zeros(len(sizes), len(reference.floor)) for reference in references]
    small = "{} of at least {} cells" if moves else UNMOVED
    reasons = [small.format(cells, LEAST_CELLS) if cells else NO_CELLS for cells in sizes.tolist()]
    at_once = max(1, SUMS_AT_ONCE // sum(reference.means.numel() * 8 for reference in references))
    for start in range(0, len(enough), at_once):
        some = enough[start : start + at_once]
        sums = _sums_of(some, query, models, references)
        for code in some:
            found = [part[code].shift() for part in sums]
            for place, (shift, _) in zip(shifts, found, strict=True):
                place[code] = shift
            reasons[code] = "" if any(not reason for _, reason in found) else found[0][1]
    moved = Correction(tuple(shifts), tuple(reference.floor for reference in references), tuple(reasons))
    return replace(moved, classifiers=_classifiers(moved, query, models, references, int(sizes.sum())))


def _sums_of(
    some: Sequence[int],
    query: Callable[[], Iterable[Query]],
    models: Sequence[Sequence[Model]],
    references: Sequence[Reference],
) -> list[dict[int, _Sums]]:
    """Of each part, the sums over the cells of some batches, by their codes."""
    sums = [{code: _Sums(reference) for code in some} for reference in references]
    for inputs, batches in query():
        present = np.intersect1d(batches, some).tolist()
        if not present:
            continue
        codes = torch.from_numpy(batches)
        p = _mean_probabilities(models, inputs)
        for part, x in zip(sums, inputs, strict=True):
            for code in present:
                chosen = (codes == code).to(x.device)
                part[code].add(p[chosen], x[chosen])
    return sums


def _classifiers(
    moved: Correction,
    query: Callable[[], Iterable[Query]],
    models: Sequence[Sequence[Model]],
    references: Sequence[Reference],
    cells: int,
) -> tuple[QueryClassifier | None, ...]:
    """What the cells of a query teach once their input is corrected."""
    components = [reference.components for reference in references]
    if cells < LEAST_SURE or all(one is None for one in components):
        return ()
    every, first = -(-cells // MOST_TEACHING), 0
    said: list[Tensor] = []
    places: list[list[Tensor]] = [[] for _ in references]  # of each part the cells' coordinates on its components
    for inputs, batches in query():
        chosen = np.arange(-first % every, len(batches), every)
        first += len(batches)
        some = Query([x[torch.from_numpy(chosen).to(x.device)] for x in inputs], batches[chosen])
        corrected = moved.apply(some)
        said.append(_mean_probabilities(models, corrected))
        for place, x, directions in zip(places, corrected, components, strict=True):
            if directions is not None:
                place.append(x @ directions.to(x).T)
    p, sure = torch.cat(said), SURE if len(models) == 1 else SURE_TOGETHER
    found = tuple(
        None if directions is None else learn(torch.cat(place), p, directions, sure)
        for place, directions in zip(places, components, strict=True)
    )
    return found if any(one is not None for one in found) else ()


def _mean_probabilities(models: Sequence[Sequence[Model]], inputs: Sequence[Tensor]) -> Tensor:
    """Of all models of all parts, each by its own input, (cells, types)."""
    each = [model.probabilities(x) for own, x in zip(models, inputs, strict=True) for model in own]
    return torch.stack(each).mean(dim=0)


def corrected_logits(
    models: Sequence[Model],
    x: Expression,
    reference: Reference,
    batches: NDArray[np.int64] | None = None,
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
    query = _in_chunks(x, codes)
    plain = torch.stack([model.forward(x)[1] for model in models])
    correction = find_correction(query, [models], [reference], np.bincount(codes))
    return plain, _logits(models, query(), correction) if correction.transductive else plain


def corrected_both_ways(
    models: Sequence[Model], x: Expression, reference: Reference, batches: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Logits of a whole query with correction, and by what its cells teach where they are; see `corrected_logits`.

    Returns
    -------
    (models, cells, types) each; the second is the first where no batch is moved.
    """
    query, sizes = _in_chunks(x, batches), np.bincount(batches)
    correction = find_correction(query, [models], [reference], sizes)
    corrected = _logits(models, query(), correction)
    if "" not in correction.reasons:
        return corrected, corrected
    unmoved = find_correction(query, [models], [reference], sizes, moves=False)
    return corrected, _logits(models, query(), unmoved)


def _in_chunks(x: Expression, batches: NDArray[np.int64]) -> Callable[[], Iterator[Query]]:
    """The cells of a query of one part, some at a time."""

    def query() -> Iterator[Query]:
        start = 0
        for chunk in chunks(x, PREDICTED_AT_ONCE):
            yield Query([chunk], batches[start : start + len(chunk)])
            start += len(chunk)

    return query


def _logits(models: Sequence[Model], query: Iterable[Query], correction: Correction) -> Tensor:
    """Of a corrected query of one part, (models, cells, types)."""
    parts = []
    for some in query:
        (x,) = correction.apply(some)
        (own,) = correction.own([x])
        logits = torch.stack([model.forward(x)[1] for model in models])
        parts.append(logits if own is None else averaged(logits, own))
    return torch.cat(parts, dim=1)


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

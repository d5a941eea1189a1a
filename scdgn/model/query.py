"""Cells to predict: how they are read, and whether they look like anything that the model was trained on.

Training, search, prediction and the served model come here, so that one file is read in one way. What was declared of
the training cells names a column or a layer; what the values are was declared of that matrix alone, and is told from
the values of any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Annotated, Fields
from scdgn.cells.queries import query_fields
from scdgn.cells.splits import Split
from scdgn.errors import DataError, listed
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import evaluate
from scdgn.model.parts import Part

SAMPLED = 256
"""Cells of a portion that are compared with the training cells."""

SCALE = (0.4, 2.0)
"""How much lower and higher than the training cells the values may be on average, gene by gene.

Of the seven data sets of the tests each batch left out lies between 0.55 and 1.43, and the cells of each of its types
by themselves between 0.44 and 1.59; their correlations are at least 0.58 and 0.15.
"""

MOST_LOST = 2 / 3
"""Share of a model's weight without which labels are said to be less certain."""

LIKENESS = 0.1
"""Correlation over genes with the training cells below which they have nothing in common."""

LEAST_CELLS, LEAST_GENES = 10, 50
"""Cells of a batch, and genes, of which that is said."""

GENES_KEPT = (0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05)
"""Shares of the genes with which `fewer_genes` tries a model."""

MOST_TRIED = 10_000
"""Cells with which `fewer_genes` does."""

LEAST_LEFT = 0.5
"""Share of its macro-F1 that a model has to keep without the genes that are missing."""


def trained_fields(bundle: Bundle) -> Fields:
    """Where the training data of a bundle kept what prediction needs; nothing where that is not known."""
    known: Mapping[str, Any] = bundle.provenance.get("fields", {})
    names = ("batch_key", "layer", "gene_key", "duplicate_genes")
    return Fields(**{"labels_key": None, "batch_key": None, **{key: known[key] for key in names if key in known}})


def fields_for(bundle: Bundle, cells: Annotated, given: Fields | None = None, corrects: bool | None = None) -> Fields:
    """`query_fields` for the cells that a bundle is to predict; `corrects` as in `Bundle.correction`."""
    return query_fields(trained_fields(bundle), bundle.values, cells, given, bundle.by_batch(corrects))


class Agreement:
    """Whether cells look like the training cells of a model, gene by gene.

    Means over some cells of every batch, of the log-normalised values of the genes of the leading part, are compared
    with those of the training cells: how much higher they are on average (the slope through zero), and how they
    correlate. Other tissues and other technologies stay well within the bounds (docs/reliability.md); values on another
    scale, or of other genes, do not.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._preprocessing = bundle.preprocessing
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._cells: dict[str, int] = {}
        self._there: NDArray[np.bool_] | None = None  # (genes,) of those that all chunks have

    def add(self, dataset: Dataset) -> None:
        """Look at some of the next cells."""
        rows = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset)), dtype=np.int64))
        x = self._preprocessing.log_normalized(dataset, rows)
        if self._there is None:
            self._there = self._preprocessing.match(dataset.genes).columns >= 0
        for code in np.unique(dataset.batches[rows]).tolist():
            own, name = x[dataset.batches[rows] == code], dataset.batch_names[code]
            self._sums[name] = self._sums.get(name, 0) + own.sum(axis=0, dtype=np.float64)
            self._cells[name] = self._cells.get(name, 0) + len(own)

    def watching(self, chunks: Iterable[Dataset]) -> Iterator[Dataset]:
        """The same chunks, looked at as they pass."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def warnings(self) -> list[str]:
        """A sentence for every way in which batches do not look like the training cells."""
        if self._there is None:
            return []
        expected = self._preprocessing.mean[self._there].astype(np.float64)
        scale, unlike = list[tuple[str, float]](), list[str]()
        for name, sums in self._sums.items():
            found = sums[self._there] / self._cells[name]
            if self._cells[name] < LEAST_CELLS or not (found.any() and expected.any()):
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                slope = float(found @ expected / (expected @ expected))
                likeness = float(np.corrcoef(found, expected)[0, 1]) if len(found) >= LEAST_GENES else 1.0
            if likeness < LIKENESS:
                unlike.append(name)
            elif not SCALE[0] <= slope <= SCALE[1]:
                scale.append((name, slope))
        said = []
        if scale:
            shown = listed([f"{slope:.2g} times in {name}" for name, slope in scale])
            said.append(
                f"values are on another scale than those of the training cells ({shown}), so labels and confidence may "
                "be wrong: say what they are with --values, or give counts"
            )
        if unlike:
            said.append(
                f"the genes of {listed(unlike)} are not expressed as in the training cells: see that they are "
                "the same genes (--gene-key), of the same species, and not scaled or corrected (--layer)"
            )
        return said


def weight_left(bundle: Bundle, genes: NDArray[np.str_]) -> float:
    """The share of a model's weight on these genes: of a gene the length of its weights times its deviation.

    Raises
    ------
    DataError
        If they are too few (`Preprocessing.match`).
    """
    present, whole = 0.0, 0.0
    for part in bundle.parts:
        there, deviation = _there(part, genes), torch.from_numpy(part.preprocessing.deviation)
        for model in part.models:
            weight = torch.linalg.vector_norm(model.weights["hidden.weight"], dim=0).cpu() * deviation
            present, whole = present + float(weight[there].sum()), whole + float(weight.sum())
    return present / max(whole, 1e-12)


def types_lost(bundle: Bundle, genes: NDArray[np.str_]) -> tuple[str, ...]:
    """The types whose mean cell a model takes for what it is, and with these genes alone no longer does."""
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    for part in bundle.parts:
        if part.reference is not None:
            x = part.reference.means
            known = ~x.isnan().any(dim=1)
            x = torch.where(known[:, None], x, 0)
            cut = torch.where(_there(part, genes), x, torch.from_numpy(part.preprocessing.silent))
            for model in part.models:
                before.append(model.forward(x)[1].argmax(dim=1).masked_fill(~known, -1))
                after.append(model.forward(cut)[1].argmax(dim=1))
    if not before:
        return ()
    own = torch.arange(len(bundle.cell_types))
    most = len(before) / 2
    lost = (torch.stack(before) == own).sum(dim=0) > most
    lost &= (torch.stack(after) == own).sum(dim=0) < most
    return tuple(name for name, gone in zip(bundle.cell_types, lost.tolist(), strict=True) if gone)


def _there(part: Part, genes: NDArray[np.str_]) -> torch.Tensor:
    """(genes,) of a part, whether they are among these."""
    return torch.from_numpy(part.preprocessing.match(genes).columns >= 0)


def fewer_genes(bundle: Bundle, dataset: Dataset, split: Split, device: torch.device) -> list[tuple[float, float]]:
    """What a model loses with the genes that it reads, as a query that lacks them would have it, on the test cells of a
    split.

    Returns
    -------
    Shares of the model's weight that are left with all genes and with some drawn at random (`GENES_KEPT` of all), and
    the macro-F1 of the test cells with each; so few that the model refuses them are left out.
    """
    rng = np.random.default_rng(0)
    order, chosen = rng.permutation(len(dataset.genes)), split.test
    if len(chosen) > MOST_TRIED:
        chosen = np.sort(rng.choice(chosen, MOST_TRIED, replace=False))
    rows = np.arange(len(chosen))
    # No other cells: to cut a matrix of all of them would take as much memory as it does.
    test, split = dataset.take(chosen), Split(rows[:0], rows, rows[np.isin(chosen, split.scored)], rows[:0])
    x = test.matrix
    found = []
    for kept in (1.0, *GENES_KEPT):
        columns = np.sort(order[: round(kept * len(order))])
        cut = replace(test, x=x[:, columns], genes=test.genes[columns])
        try:
            share = weight_left(bundle, cut.genes)
        except DataError:
            break
        evaluation = evaluate(bundle, cut, split, device)
        if evaluation is not None:
            found.append((round(share, 4), round(evaluation.ensemble.macro_f1, 4)))
    return found


def missing_genes(bundle: Bundle, genes: NDArray[np.str_]) -> tuple[int, list[str]]:
    """How many of the model's genes are not among these, and what is to be said: nothing where all are by their names.

    Raises
    ------
    DataError
        If they are too many (`Bundle.missing`), or cost more than half of what the model is good for.
    """
    said = []
    if decorated := bundle.decorated(genes):
        said.append(f"{decorated} genes are matched without the version, or the genome's prefix, of their names")
    if missing := len(bundle.missing(genes)):
        share = weight_left(bundle, genes)
        sentence = (
            f"{missing} of the model's {len(bundle.genes)} genes are not in the data, {1 - share:.0%} of its weight"
        )
        if tried := bundle.provenance.get("fewer_genes"):
            shares, scores = np.array(sorted(tried)).T
            left, whole = np.interp([share, 1.0], shares, scores)
            cost = f"{whole - left:.2f} of macro-F1 {whole:.2f} on cells of the training batches that were set aside"
            if left < LEAST_LEFT * whole:
                raise DataError(
                    f"{sentence}, which cost {cost}: if they are there under other names, say so (--gene-key), else "
                    "train on the genes that both have (cells[:, cells.var_names.isin(query.var_names)])"
                )
            sentence += f", which cost {cost}"
        elif share < MOST_LOST:
            sentence += ", so labels are less certain"
        if lost := types_lost(bundle, genes):
            sentence += f"; without them it no longer tells {listed(lost, 5)}"
        said.append(sentence)
    return missing, said

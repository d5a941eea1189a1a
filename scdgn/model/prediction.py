"""`scdgn predict`: the cells of a file, labelled, as a copy of it or as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad, write_h5ad
from scdgn.cells.reading import read_cells
from scdgn.cells.values import Reading
from scdgn.core.correction import Correction
from scdgn.errors import DataError, nearest
from scdgn.files import check_file, new_file
from scdgn.model.annotate import LABEL, UNKNOWN, VOTED, annotate, vote
from scdgn.model.at_once import cells_at_once, portions
from scdgn.model.attribution import Explanation
from scdgn.model.bundle import Bundle
from scdgn.model.labels import TOP, holds_table, labels_table, write_table
from scdgn.model.query import Agreement, fields_for, missing_genes
from scdgn.model.stored import CheckedCells, Counts, annotate_file, open_stored

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True)
class Asked:
    """How cells are to be labelled.

    Attributes
    ----------
    fields
        What the user says of the file; the model knows the rest.
    correct
        Whether to correct their batches; by default as the model has it.
    votes, over_clustering
        Whether every cell gets the most frequent label of its cluster too, and the column of obs with these clusters;
        made where there is none.
    explain
        Whether to say which genes speak for the labels.
    top_k
        Probabilities of a cell to keep, of the most probable types; all by default, `labels.TOP` in a table.
    """

    fields: Fields
    correct: bool | None = None
    votes: bool = False
    over_clustering: str | None = None
    explain: bool = False
    top_k: int | None = None


@dataclass(frozen=True, eq=False)
class Query:
    """The cells of a file, in memory (`adata` too) or checked and left there, and what their values are."""

    read: Dataset | CheckedCells
    reading: Reading
    adata: AnnData | None

    @property
    def in_memory(self) -> tuple[AnnData, Dataset]:
        """All of them, where they had to be."""
        assert self.adata is not None and isinstance(self.read, Dataset)
        return self.adata, self.read

    def chunks(self, bundle: Bundle) -> Iterator[Dataset]:
        """The cells in their order, as many at a time as memory allows."""
        return (
            portions(self.read, bundle) if isinstance(self.read, Dataset) else self.read.chunks(cells_at_once(bundle))
        )


@dataclass(frozen=True, eq=False)
class Labelled:
    """What came of a query: the number of cells by label, the most frequent first, and how many the model may never
    have seen the type of (None without a threshold).

    Attributes
    ----------
    correction
        What was done to the batches; None where nothing was to be corrected.
    missing_genes
        Genes of the model that the file lacks.
    warnings
        Ways in which the cells do not look like the training cells.
    genes
        Table of the genes that speak for the labels, if they were asked for (`Explanation.table`).
    """

    query: Query
    labels: dict[str, int]
    unknown: int | None
    correction: Correction | None
    missing_genes: int
    warnings: list[str]
    genes: pd.DataFrame | None

    def top_genes(self, most: int = 5) -> dict[str, list[str]]:
        """The first genes of each label; nothing where they were not asked for."""
        if self.genes is None:
            return {}
        first = self.genes[self.genes["rank"] <= most]
        return {str(label): own["gene"].tolist() for label, own in first.groupby("label", sort=False)}

    def to_json(self, bundle: Bundle) -> dict[str, Any]:
        """As `scdgn predict --json` prints it."""
        done = self.correction
        corrected = None if done is None else dict(zip(self.query.read.batch_names, done.reasons, strict=True))
        told: dict[str, Any] = {
            "cells": sum(self.labels.values()),
            "missing_genes": self.missing_genes,
            "labels": self.labels,
            "unknown": self.unknown,
            "corrected": corrected and {name: corrected[name] or True for name in corrected},
            "own_classifier": done is not None and bool(done.classifiers),
            "warnings": self.warnings,
            "transductive": bundle.transductive or (done is not None and done.transductive),
        }
        return told if self.genes is None else {**told, "genes": self.top_genes()}


def predict_file(data: Path, output: Path, bundle: Bundle, asked: Asked, say: Callable[[str], object]) -> Labelled:
    """Label the cells of a file, some thousands at a time where that can be.

    The output is a copy with the labels, for .h5ad, else a table; it may be the file itself. `say` is told how the
    values are read, and what is missing.

    Raises
    ------
    DataError, SettingsError, OutputError
        For anything that the user can mend.
    """
    check_file(output)
    as_table = holds_table(output)
    query = _read(data, bundle, asked)
    missing, told = missing_genes(bundle, query.read.genes)
    for sentence in (query.reading.sentence, *told):
        say(sentence)
    agreement, explanation = Agreement(bundle), Explanation(bundle) if asked.explain else None
    with new_file(output) as place:
        if as_table:
            counts = _as_table(query, bundle, asked, agreement, place, output.suffix)
        elif isinstance(query.read, CheckedCells):
            counts = annotate_file(query.read, bundle, place, asked.correct, agreement, explanation, asked.top_k)
        else:
            counts = _in_memory(query, bundle, asked, agreement, explanation, place)
    by_type = zip(bundle.cell_types, counts.by_type.tolist(), strict=True)
    return Labelled(
        query,
        dict(sorted(((name, cells) for name, cells in by_type if cells), key=lambda entry: -entry[1])),
        None if bundle.calibration.threshold is None else counts.unknown,
        counts.correction,
        missing,
        agreement.warnings(),
        None if explanation is None else explanation.table(),
    )


def _read(data: Path, bundle: Bundle, asked: Asked) -> Query:
    """In memory only where it has to be."""
    stored = None if asked.votes or bundle.transductive else open_stored(data)
    cells: Any = read_h5ad(data) if stored is None else stored
    fields = fields_for(bundle, cells, asked.fields, asked.correct)
    key = asked.over_clustering
    if key is not None and key not in cells.obs:
        raise DataError(f"obs has no column {key!r}: {nearest(key, cells.obs)}")
    if stored is not None and (own := stored.of(fields.layer)).has_rows(fields.layer):
        checked = own.check(fields)
        return Query(checked, checked.reading, None)
    adata = cells if stored is None else read_h5ad(data)
    return Query(*read_cells(adata, fields), adata)


def _as_table(query: Query, bundle: Bundle, asked: Asked, agreement: Agreement, place: Path, suffix: str) -> Counts:
    import pandas as pd

    correction = bundle.correction(query.read, lambda: query.chunks(bundle), asked.correct)
    table = labels_table(agreement.watching(query.chunks(bundle)), bundle, correction, asked.top_k or TOP)
    if asked.votes:
        adata, dataset = query.in_memory
        adata.obs[LABEL] = pd.Categorical(table["label"], categories=list(bundle.cell_types))
        vote(adata, dataset, _clusters(adata, asked))
        table["majority_voting"] = adata.obs[VOTED].astype(str).to_numpy()
    write_table(table, place, suffix)
    by_type = table["label"].value_counts().reindex(list(bundle.cell_types), fill_value=0)
    return Counts(
        np.array(by_type, dtype=np.int64), int(table["unknown"].sum()) if "unknown" in table else 0, correction
    )


def _in_memory(
    query: Query, bundle: Bundle, asked: Asked, agreement: Agreement, explanation: Explanation | None, place: Path
) -> Counts:
    adata, dataset = query.in_memory
    correction = annotate(adata, dataset, bundle, asked.correct, agreement, explanation, asked.top_k)
    if asked.votes:
        vote(adata, dataset, _clusters(adata, asked))
    write_h5ad(adata, place)
    by_type = adata.obs[LABEL].value_counts(sort=False).to_numpy(dtype=np.int64)
    return Counts(by_type, int(adata.obs[UNKNOWN].sum()) if UNKNOWN in adata.obs else 0, correction)


def _clusters(adata: AnnData, asked: Asked) -> NDArray[np.object_] | None:
    key = asked.over_clustering
    return None if key is None else adata.obs[key].astype(str).to_numpy(dtype=object)

"""The cells of a study with what its model says of them: what pictures, confusion and alignment are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scdgn.analysis.studies.results import Results
from scdgn.cells.dataset import Dataset
from scdgn.cells.shelf import SHELF, Shelf
from scdgn.cells.sources import TrainingCells, read
from scdgn.cells.splits import set_aside
from scdgn.core.config import UNLABELED
from scdgn.core.correction import Correction
from scdgn.core.rejection import pooled
from scdgn.errors import DataError, listed
from scdgn.model.at_once import cells_at_once
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import with_types_of
from scdgn.model.parts import Inputs
from scdgn.search.left_out import read as read_left_out
from scdgn.search.left_out import together
from scdgn.search.trials.inputs import VALIDATED

TRAINING, VALIDATION, TEST = "training", "validation", "test"
"""Parts of the cells: training cells, a fifth of them as models say that were trained without their batch, test."""

MOST_LOOKED_AT = 20_000
"""Cells of a part that are looked at; of more, this many are drawn."""


@dataclass(frozen=True, eq=False)
class Described:
    """Cells, and what a model says of them.

    Attributes
    ----------
    dataset
        The labelled training cells and all test cells, values as the file has them.
    part
        (cells,) TRAINING, VALIDATION or TEST.
    bundle
        The model of the study.
    labels
        (cells,) true types as codes into `cell_types`; UNLABELED where the model does not know the type.
    probabilities
        (cells, types) float32; of the VALIDATION cells those of the models that the search trained without them.
    latent
        (cells, latent) float32, the encoder's output; of an ensemble's first model.
    correction
        What was taken away from the batches of the test cells, and what these say of themselves, as where they alone
        are predicted; None where the bundle corrects nothing. Training cells are no query.
    trained
        (types,) how many cells of each type the model was trained on; those of the part TRAINING where that is None.
    """

    dataset: Dataset
    part: NDArray[np.str_]
    bundle: Bundle
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    latent: NDArray[np.float32]
    correction: Correction | None = None
    trained: NDArray[np.int64] | None = None

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Types that the model knows."""
        return self.bundle.cell_types

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(cells,) codes of the most probable types."""
        codes: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return codes

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(cells,) probability of the predicted type."""
        best: NDArray[np.float32] = self.probabilities.max(axis=1)
        return best

    @property
    def type_names(self) -> NDArray[np.str_]:
        """(cells,) true types by name, of test cells too whose type the model does not know; empty without a label."""
        return np.array([*self.dataset.cell_types, ""])[self.dataset.labels]

    @property
    def batch_names(self) -> NDArray[np.str_]:
        """(cells,) batches by name."""
        return np.array(self.dataset.batch_names)[self.dataset.batches]

    def input(self, rows: NDArray[np.int64]) -> Inputs:
        """The networks' input of some cells, by their places: all of them test cells, or none."""
        is_test = self.part == TEST
        of_test = bool(is_test[rows].any())
        correction = self.correction if of_test else None
        if not self.bundle.transductive:
            return self.bundle.input(self.dataset.take(rows), correction)
        beside = np.flatnonzero(is_test == of_test)  # on which the input of a cell depends
        return self.bundle.input(self.dataset.take(beside), correction)[np.searchsorted(beside, rows)]

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Described:
        """Some of the cells, by mask or places."""
        return replace(
            self,
            dataset=self.dataset.take(chosen),
            part=self.part[chosen],
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            latent=self.latent[chosen],
        )


def source_of(results: Results, data: Path | None = None) -> TrainingCells:
    """The cells that a study worked on, read again: from the file that the study names, or from `data`, where it has
    moved.

    Raises
    ------
    DataError, SettingsError
        If they are not there, or not the same.
    """
    source = results.settings.source
    if data is not None:
        source = replace(source, data=data) if source.dataset is None else replace(source, path=data)
    folder = results.folder
    shelf = None if folder is None else Shelf(folder.studies(results.name) / SHELF)
    try:
        cells = read(source, shelf=shelf)
    finally:
        if shelf is not None:  # what is mapped stays readable; what a search has left there it will go on with
            shelf.clear(found=False)
    training = with_types_of(cells.dataset, cells.split.train).take(cells.split.train)
    test = cells.dataset.take(cells.split.test)
    if (training.fingerprint(), test.fingerprint()) != results.data:
        named = listed([str(file) for file in source.files]) or source.dataset
        raise DataError(
            f"{named} does not hold the cells that the study {results.name!r} worked on: give the file of then "
            "with --data"
        )
    return cells


def described(results: Results, source: TrainingCells, most: int = MOST_LOOKED_AT) -> Described:
    """What the model of a study says of the training and the test cells (`source_of`).

    Of a part with more than `most` cells so many are drawn; the same ones every time.

    Raises
    ------
    DataError, BundleError
        If the study has no model in a folder, or it does not go with the cells.
    """
    if results.folder is None or not results.is_search:
        raise DataError(f"the study {results.name!r} has no model here: give the folder of a search")
    bundle = Bundle.load(results.folder.model)
    dataset, split = source.dataset, source.split
    sealed = with_types_of(dataset, split.train).take(split.train)
    crossed = _by_others(results, bundle, len(sealed))  # (training cells, types), NaN where no model says anything
    _, validated = set_aside(sealed, np.arange(len(sealed)), VALIDATED, results.settings.seed)
    validated = validated[np.isfinite(crossed[validated, 0])]
    part = np.full(len(dataset), "", dtype=object)
    part[split.train], part[split.test] = TRAINING, TEST
    part[split.train[validated]] = VALIDATION
    generator = np.random.default_rng(0)
    rows = []
    for name in (TRAINING, VALIDATION, TEST):
        found = np.flatnonzero(part == name)
        rows.append(found if len(found) <= most else np.sort(generator.choice(found, most, replace=False)))
    chosen = np.concatenate(rows)
    cells, is_test = dataset.take(chosen).in_memory(), part[chosen] == TEST
    query = cells.take(np.flatnonzero(is_test))
    correction = bundle.correction(query, lambda: [query]) if len(query) else None
    at_once, outputs = cells_at_once(bundle), []
    for group, own in ((cells.take(np.flatnonzero(~is_test)), None), (query, correction)):
        if len(group):
            x = bundle.input(group, own)
            outputs += [bundle.outputs(x[start : start + at_once]) for start in range(0, len(group), at_once)]
    latent, probabilities = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
    place = np.full(len(dataset), -1)
    place[split.train] = np.arange(len(split.train))
    left_out = part[chosen] == VALIDATION
    probabilities[left_out] = crossed[place[chosen[left_out]]]
    labels = cells.types_among(bundle.cell_types)
    training = np.flatnonzero(dataset.labels != UNLABELED) if results.search.asked.refit_all else split.train
    of_all = np.bincount(dataset.labels[training], minlength=len(dataset.cell_types))
    trained = of_all[[dataset.cell_types.index(name) for name in bundle.cell_types]]
    return Described(cells, part[chosen].astype(str), bundle, labels, probabilities, latent, correction, trained)


def _by_others(results: Results, bundle: Bundle, cells: int) -> NDArray[np.float32]:
    """What the exported trials say of the training cells, by models that were trained without their batch.

    Where there are no folds, by models that were trained without these cells. The exported model has seen all of them.

    Returns
    -------
    (training cells, types), NaN for cells of which nothing was kept.
    """
    found = np.full((cells, len(bundle.cell_types)), np.nan, dtype=np.float32)
    assert results.folder is not None
    model = results.search.model
    models = {part.trial: part.models for part in model.parts}
    kept = {number: parts for number in models if (parts := read_left_out(results.folder.left_out(number)))}
    if kept.keys() == models.keys():
        for part in together(kept, models):
            logits = pooled(part.as_predicted(model.corrects, model.moves).logits) / bundle.calibration.temperature
            # Of a type that these models do not know they could only be wrong.
            found[part.rows.numpy()[part.known]] = logits.softmax(dim=1).numpy()[part.known]
    return found

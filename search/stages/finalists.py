"""Best of ten, said plainly: the winner trained again with several seeds, and what each way of picking one gives."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import Split, stratified_validation
from scdgn.core.config import Precision, Settings
from scdgn.core.training import Report
from scdgn.files import new_file
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import REPORTED, Evaluation, evaluate
from scdgn.model.fitting import find_device, fit
from scdgn.model.query import fewer_genes
from scdgn.search.study.settings import Metric
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.inputs import VALIDATED

FIRST_SEED = 100
"""Final seeds start this far from the study's, so that none of them has been searched with."""


@dataclass(frozen=True)
class Finalists:
    """The winner's settings trained with several seeds.

    Attributes
    ----------
    bundle
        All of them, as an ensemble, trained on all training cells.
    seeds
        Theirs.
    validation
        Scores of their twins, of the same seeds, on the cells that were set aside of the training of these alone.
    picked
        Place of the one whose twin is best there.
    fewer_genes
        What the twins lose there with their genes (`scdgn.model.query.fewer_genes`).
    """

    bundle: Bundle
    seeds: tuple[int, ...]
    validation: Evaluation
    picked: int
    fewer_genes: list[tuple[float, float]]


def train_finalists(
    cells: SearchCells,
    settings: Settings,
    preprocess: PreprocessSettings,
    metric: Metric,
    seed: int,
    count: int,
    device: str,
    on_epoch: Callable[[Report], object] | None = None,
    precision: Precision = "tf32",
    adapts: bool = False,
) -> Finalists:
    """Train the seeds as one pack on all training cells, and their twins on 80 % of them.

    The other 20 %, the same for all, score the twins, which picks a seed: a model that had been trained without these
    cells would be the worse for it, in all of its predictions (docs/experiments.md).

    Parameters
    ----------
    cells
        Sealed.
    settings, preprocess
        The winner's, its epochs and schedule included.
    metric
        By which a seed is picked.
    seed, count
        The study's seed, and how many final ones.
    device, precision
        Where to train, and how exactly.
    adapts
        Whether the seeds, but not their twins, adapt to the cells without a label (`scdgn.core.adaptation`).
    """
    dataset = cells.dataset
    train, validated = stratified_validation(dataset.labels, cells.rows, VALIDATED, seed, batches=dataset.batches)
    seeds = tuple(range(seed + FIRST_SEED, seed + FIRST_SEED + count))
    bundle, twins = (
        fit(dataset, rows, settings, preprocess, seeds, (), None, device, on_epoch, precision, query)
        for rows, query in ((cells.rows, cells.unlabeled if adapts else ()), (train, ()))
    )
    validated = validated[np.isin(dataset.labels[validated], np.unique(dataset.labels[train]))]
    held_out = Split(train, validated, validated, validated[:0])
    validation = evaluate(twins, dataset, held_out, find_device(device))
    assert validation is not None  # of every type with two cells one is set aside
    scores = [getattr(one, metric) for one in validation.models]
    lost = fewer_genes(twins, dataset, held_out, find_device(device))
    return Finalists(bundle, seeds, validation, int(np.argmax(scores)), lost)


def test_finalists(finalists: Finalists, cells: TrainingCells, device: str) -> Evaluation | None:
    """Open the labels of the test cells, once; None where no test cell can be scored."""
    return evaluate(finalists.bundle, cells.dataset, cells.split, find_device(device))


def test_export(bundle: Bundle, cells: TrainingCells, device: str) -> dict[str, dict[str, float]] | None:
    """What the exported model scores on the test cells, as one: `plain` and `corrected` for the batches that they are.

    None where no test cell can be scored. Which way it predicts was chosen before.
    """
    found = {}
    for name, corrects in (("plain", False), ("corrected", True)):
        evaluation = evaluate(replace(bundle, corrects=corrects), cells.dataset, cells.split, find_device(device))
        if evaluation is None:
            return None
        found[name] = {key: float(getattr(evaluation.ensemble, key)) for key in REPORTED}
    return found


def summarize(finalists: Finalists, test: Evaluation | None, metric: Metric) -> dict[str, Any]:
    """Mean, standard deviation, picked seed, ensemble and, as an oracle, best seed: on validation and on test cells."""
    summary: dict[str, Any] = {"seeds": list(finalists.seeds), "picked_seed": finalists.seeds[finalists.picked]}
    for name, evaluation in (("validation", finalists.validation), ("test", test)):
        if evaluation is None:
            continue
        part: dict[str, Any] = {
            "cells": evaluation.ensemble.cells,
            "unscored_cells": evaluation.unscored,
            "recall": evaluation.to_json()["recall"],
        }
        for key in REPORTED:
            values = [float(getattr(one, key)) for one in evaluation.models]
            part[key] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "picked": values[finalists.picked],
                "ensemble": float(getattr(evaluation.ensemble, key)),
                "by_seed": values,
            }
            if name == "test":
                best = min(values) if key == "calibration_error" else max(values)
                part[key]["best_oracle"] = best
        summary[name] = part
    return summary


def write_table(path: Path, finalists: Finalists, test: Evaluation | None) -> None:
    """A row per seed and one for every way of making one number of them; test columns only where there is a test."""
    parts = [("validation", finalists.validation), *([("test", test)] if test is not None else [])]
    header = ["model", *(f"{name}_{key}" for name, _ in parts for key in REPORTED), "note"]
    scores = {
        (name, key): np.array([float(getattr(one, key)) for one in evaluation.models])
        for name, evaluation in parts
        for key in REPORTED
    }
    columns = list(scores)
    rows: list[list[object]] = []
    for place, seed in enumerate(finalists.seeds):
        note = "picked by its twin's validation" if place == finalists.picked else ""
        rows.append([f"seed {seed}", *(_round(scores[column][place]) for column in columns), note])
    rows.append(["mean", *(_round(scores[column].mean()) for column in columns), ""])
    if len(finalists.seeds) > 1:
        rows.append(["standard deviation", *(_round(scores[column].std(ddof=1)) for column in columns), ""])
    ensemble = [getattr(evaluation.ensemble, key) for _, evaluation in parts for key in REPORTED]
    rows.append(["ensemble", *map(_round, ensemble), ""])
    if test is not None:
        best = [
            _round(values.min() if key == "calibration_error" else values.max()) if name == "test" else ""
            for (name, key), values in scores.items()
        ]
        rows.append([f"best of {len(finalists.seeds)}", *best, "oracle: chosen by the test labels"])
    write_csv(path, header, rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as a file, whole or not at all."""
    with new_file(path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _round(value: float) -> float:
    return round(float(value), 6)

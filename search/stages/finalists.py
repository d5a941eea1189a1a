"""Best of ten, said plainly: the winner trained again with several seeds, and what each way of picking one gives."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import Split, set_aside
from scdgn.core.config import Precision, Settings
from scdgn.core.training import Callback
from scdgn.files import new_file
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import REPORTED, Evaluation, evaluate
from scdgn.model.fitting import find_device, fit
from scdgn.model.query import fewer_genes
from scdgn.search.choices import Metric
from scdgn.search.summary import ExportedScores, Finals, FinalScores, ScoresByType, Spread
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.inputs import VALIDATED

FIRST_SEED = 100
"""Final seeds start this far from the study's, so that none of them has been searched with."""


@dataclass(frozen=True)
class Finalists:
    """The winner's settings trained with several seeds, as an ensemble, on all training cells.

    Attributes
    ----------
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
    on_epoch: Callback | None = None,
    precision: Precision = "tf32",
    adapts: bool = False,
) -> Finalists:
    """Train the winner's settings with `count` seeds as one pack on all training cells, and their twins on 80 % of
    them.

    The other 20 %, the same for all, score the twins, which picks a seed by the metric: a model that had been trained
    without these cells would be the worse for it, in all of its predictions (docs/experiments.md).

    Parameters
    ----------
    seed
        The study's.
    adapts
        Whether the seeds, but not their twins, adapt to the cells without a label (`scdgn.core.adaptation`).
    """
    dataset = cells.dataset
    train, validated = set_aside(dataset, cells.rows, VALIDATED, seed)
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


def test_export(bundle: Bundle, cells: TrainingCells, device: str) -> ExportedScores | None:
    """What the exported model scores on the test cells, as one, plain and corrected for the batches that they are.

    None where no test cell can be scored. Which way it predicts was chosen before.
    """
    found = []
    for corrects in (False, True):
        evaluation = evaluate(replace(bundle, corrects=corrects), cells.dataset, cells.split, find_device(device))
        if evaluation is None:
            return None
        scores = {key: float(getattr(evaluation.ensemble, key)) for key in REPORTED}
        found.append(ScoresByType(**scores, recall=evaluation.to_json()["recall"]))
    return ExportedScores(plain=found[0], corrected=found[1])


def summarize(finalists: Finalists, test: Evaluation | None) -> Finals:
    """Mean, standard deviation, picked seed, ensemble and, as an oracle, best seed: on validation and on test cells."""
    return Finals(
        seeds=finalists.seeds,
        picked_seed=finalists.seeds[finalists.picked],
        validation=_final_scores(finalists.validation, finalists.picked, oracle=False),
        test=None if test is None else _final_scores(test, finalists.picked, oracle=True),
    )


def _final_scores(evaluation: Evaluation, picked: int, oracle: bool) -> FinalScores:
    def spread(key: str) -> Spread:
        values = [float(getattr(one, key)) for one in evaluation.models]
        best = min(values) if key == "calibration_error" else max(values)
        return Spread(
            mean=float(np.mean(values)),
            std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            picked=values[picked],
            ensemble=float(getattr(evaluation.ensemble, key)),
            by_seed=tuple(values),
            best_oracle=best if oracle else None,
        )

    return FinalScores(
        cells=evaluation.ensemble.cells,
        unscored_cells=evaluation.unscored,
        recall=evaluation.to_json()["recall"],
        **{key: spread(key) for key in REPORTED},
    )


def write_table(path: Path, finals: Finals) -> None:
    """A row per seed and one for every way of making one number of them; test columns only where there is a test."""
    columns = {f"{name}_{key}": part.of(key) for name, part in finals.parts.items() for key in REPORTED}
    rows: list[list[object]] = []

    def add(model: str, values: Iterable[float | None], note: str = "") -> None:
        rows.append([model, *("" if value is None else round(value, 6) for value in values), note])

    for place, seed in enumerate(finals.seeds):
        note = "picked by its twin's validation" if seed == finals.picked_seed else ""
        add(f"seed {seed}", (column.by_seed[place] for column in columns.values()), note)
    add("mean", (column.mean for column in columns.values()))
    if len(finals.seeds) > 1:
        add("standard deviation", (column.std for column in columns.values()))
    add("ensemble", (column.ensemble for column in columns.values()))
    if finals.test is not None:
        best = (column.best_oracle for column in columns.values())
        add(f"best of {len(finals.seeds)}", best, "oracle: chosen by the test labels")
    write_csv(path, ["model", *columns, "note"], rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as a file, whole or not at all."""
    with new_file(path) as place, place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)

"""Cells of types never trained, and how far a model's certainty can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scdgn.analysis.page import style
from scdgn.analysis.page.sections import Item, Picture, Section, Table, Text
from scdgn.analysis.studies.cells import TEST, VALIDATION, Described
from scdgn.analysis.studies.results import Results
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import set_aside
from scdgn.core.rejection import SCORES, Score, auroc
from scdgn.model.at_once import cells_at_once
from scdgn.search.left_out import LeftOut
from scdgn.search.records import settings_of
from scdgn.search.stages.calibration import FOLDS, predict_left_out
from scdgn.search.stages.finalists import FIRST_SEED
from scdgn.search.summary import CalibrationReport, Rejection
from scdgn.search.trials.cells import FOLD_TRAINS_ON, SearchCells, seal
from scdgn.search.trials.inputs import VALIDATED, Unit

LEAST_CELLS = 10
"""Training cells of a type that is left out."""

MOST_TYPES = 12
"""Types that are left out in turn: those with the most cells."""

MOST_SEEN = 5_000
"""Training cells that these trainings see; of more, this many are drawn."""

POINTS = 200
"""Of a curve."""

NAMES: Mapping[Score, str] = {
    "max_probability": "maximum probability",
    "energy": "energy",
    "latent_distance": "latent distance",
}

BATCH, TYPE = "batch", "cell type"
"""What is left out of training."""


def compare(results: Results, source: TrainingCells) -> pd.DataFrame:
    """How well three scores tell cells of a type never trained from those of the trained ones.

    Two kinds of unknown cells: in a leave-one-domain-out fold the types of the batch left out that no other batch has,
    against the batch's other cells, as the study computed it; and every type in turn (of 10 training cells or more, 12
    types at most), taken out of training and compared with cells of the other types that were set aside. For the second
    the winner's settings are trained again, once per type, all as one pack: of all that a report shows, this alone
    trains, since no model of the search was left without a type. No test cell takes part.

    Returns
    -------
    A row for each, with the columns `left out` (batch or cell type), `name`, `known cells`, `unknown cells` and, by the
    names of the scores, the AUROC: the probability that an unknown cell is stranger than a known one.
    """
    calibration = results.search.calibration or CalibrationReport()
    rows = [_row(BATCH, part.name, part.known, part.unknown, part.auroc) for part in calibration.parts if part.auroc]
    sealed = seal(source, results.settings.max_folds, adapt=False)
    units = _units(sealed, results.method, results.settings.seed)
    settings, preprocess = settings_of(results.winner)
    precision = results.settings.precision
    left_out = predict_left_out(sealed, units, settings, preprocess, "auto", precision=precision) if units else []
    rows += [_type_row(part, calibration.temperature) for part in left_out]
    columns = ["left out", "name", "known cells", "unknown cells", *NAMES.values()]
    return pd.DataFrame(rows, columns=columns)


def coverage_accuracy(cells: Described) -> pd.DataFrame:
    """Accuracy of the cells that are kept, when the strangest ones by the model's own score are left without a label.

    Of the test cells, where some have a label, else of training cells left out of training. Cells of types that the
    model does not know count, and are wrong; cells without a label do not.

    Returns
    -------
    A row for each of at most 200 limits, from the strictest: `coverage` (share of cells kept), `accuracy` (of these)
    and `limit` (the highest score kept). Empty where there is no such cell. `attrs` has `part` and `cells`.
    """
    chosen, part = _labelled(cells)
    scores = _strangeness(cells, chosen)
    right = cells.labels[chosen] == cells.predicted[chosen]
    order = np.argsort(scores, kind="stable")
    scores, kept = scores[order], np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / kept
    ends = np.flatnonzero(np.diff(scores, append=np.inf) > 0)  # cells of the same score are kept together
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(POINTS, len(ends))).astype(np.int64))]
    frame = pd.DataFrame(
        {"coverage": kept[ends] / max(len(order), 1), "accuracy": accuracy[ends], "limit": scores[ends]}
    )
    frame.attrs.update(part=part, cells=len(order))
    return frame


def picture_of_auroc(comparison: pd.DataFrame) -> Figure:
    """A point for every score and everything left out."""
    groups = [(kind, comparison[comparison["left out"] == kind]) for kind in (BATCH, TYPE)]
    shown = [(kind, frame) for kind, frame in groups if len(frame)]
    looks = style.looks(list(NAMES.values()))
    with style.styled():
        figure, axes = style.canvas(
            7,
            1.1 + 0.26 * len(comparison),
            len(shown),
            1,
            sharex=True,
            height_ratios=[len(frame) for _, frame in shown],
        )
        for (kind, frame), drawing in zip(shown, axes[:, 0], strict=True):
            places = np.arange(len(frame))[::-1]
            drawing.axvline(0.5, color=style.GREY, linewidth=1, linestyle="--")
            for (name, look), shift in zip(looks.items(), (0.2, 0.0, -0.2), strict=True):
                drawing.plot(
                    frame[name], places + shift, linestyle="", marker=look.marker, color=look.colour, markersize=5
                )
            labels = [
                f"{style.short(name)} ({unknown:,})"
                for name, unknown in zip(frame["name"], frame["unknown cells"], strict=True)
            ]
            drawing.set_yticks(places, labels)
            drawing.set_ylim(-0.6, len(frame) - 0.4)
            drawing.set_xlim(-0.03, 1.03)
            drawing.grid(axis="y", color="#eeeeee")
            drawing.set_title(f"{kind} left out (unknown cells)", loc="left")
        axes[-1, 0].set_xlabel("AUROC of unknown against known cells")
        style.legend(figure, looks, "score")
    return figure


def picture_of_coverage(curve: pd.DataFrame, threshold: float | None) -> Figure:
    """Accuracy against coverage, with the place of the stored threshold."""
    with style.styled():
        figure, axes = style.canvas(5, 3)
        drawing = axes[0, 0]
        drawing.plot(
            curve["coverage"], curve["accuracy"], color=style.COLOURS[0], label="strangest cells left out first"
        )
        at_all = float(curve["accuracy"].iloc[-1])
        drawing.axhline(at_all, color=style.GREY, linewidth=1, linestyle="--", label="cells left out at random")
        if threshold is not None and (found := _at(curve, threshold)) is not None:
            coverage, accuracy = found
            drawing.plot([coverage], [accuracy], "o", color=style.COLOURS[5], label="the stored threshold", zorder=3)
        drawing.set_xlim(0, 1.02)
        drawing.set_ylim(min(0.95, float(curve["accuracy"].min()) - 0.05), 1.01)
        drawing.set_xlabel("share of cells that keep their label")
        drawing.set_ylabel("accuracy of these")
        drawing.legend(loc="best")
    return figure


def section(results: Results, cells: Described, comparison: pd.DataFrame | None) -> Section | None:
    """What is known of the model's certainty; `comparison` as `compare` makes it, None to leave it out."""
    if not results.is_search:
        return None
    return Section("Unknown cells and confidence", tuple(_items(results, cells, comparison)))


def _items(results: Results, cells: Described, comparison: pd.DataFrame | None) -> Iterator[Item]:
    calibration = results.search.calibration
    if calibration is None:
        yield Text(
            "The study was finished before models were calibrated: its probabilities are the networks' own, and no "
            "cell is told to be unknown. The search command, run again, makes up for it; the trials stay."
        )
    else:
        yield Text(_words(calibration))
        if calibration.threshold is not None:
            yield _kept(calibration)
    if comparison is not None and len(comparison):
        yield Table("unknown-scores", _CAPTION_OF_SCORES, _with_means(comparison))
        yield Picture(
            "unknown-scores",
            "How often a cell of a type left out of training is stranger than a known cell, by three scores: to the "
            "right is better. Numbers of unknown cells in brackets. No test cell takes part.",
            lambda: picture_of_auroc(comparison),
        )
    elif comparison is not None:
        yield Text("No type could be left out of training to compare scores: too few types have enough cells.")
    if results.settings.refit_all:
        yield Text(
            "The exported model was trained on all labelled cells: none is left to see what rejecting cells is worth."
        )
        return
    curve = coverage_accuracy(cells)
    if len(curve):
        yield Picture(
            "coverage-accuracy",
            _caption_of_coverage(curve, cells),
            lambda: picture_of_coverage(curve, cells.bundle.calibration.threshold),
        )


_CAPTION_OF_SCORES = (
    "AUROC of unknown against known cells, by three scores: 1 is perfect, 0.5 chance, and less is worse than chance. "
    "Of a batch left out of training, cells of types that no other batch has are unknown and its other cells known. Of "
    "a cell type left out (one training each with the winner's settings), the known cells are cells of the other types "
    "that were set aside. Means weigh every row alike. No test cell takes part."
)


def _words(calibration: CalibrationReport) -> str:
    """What is stored in the model."""
    if calibration.threshold is None or calibration.calibration_error is None:
        return (
            "There were too few cells to calibrate the model: its probabilities are the networks' own, and no cell is "
            "told to be unknown."
        )
    errors, test = calibration.calibration_error, calibration.test
    apart = ", each domain with the temperature of the others" if calibration.apart else ""
    words = (
        "Probabilities are calibrated: their logarithms are divided by a temperature of "
        f"{calibration.temperature:.2f} (above 1: less certain than the networks), fitted on "
        f"{calibration.known:,} cells of {calibration.source}. The expected calibration error (0 is best) of "
        f"these is {errors.before:.3f} without it and {errors.after:.3f} with it{apart}"
    )
    if test is not None:
        error = test.calibration_error
        words += f"; on {test.known:,} test cells, which took no part, {error.before:.3f} and {error.after:.3f}"
    why = (
        "the score with the highest AUROC there"
        if calibration.auroc
        else "as there were too few cells of unknown types to compare scores"
    )
    words += (
        f". A cell is told to be unknown by its {NAMES[calibration.score]} ({why}), beyond a threshold that keeps "
        f"{calibration.kept:.0%} of these known cells. "
    )
    return words + (
        "On another batch it may keep more or fewer, as the table shows."
        if calibration.source == FOLDS
        else "These cells are of the batches that trained the model, so on a new batch expect it to keep fewer."
    )


def _kept(calibration: CalibrationReport) -> Table:
    rows = [_kept_row(part.name, part) for part in calibration.parts]
    if calibration.test is not None:
        rows.append(_kept_row("the test cells", calibration.test))
    how = "a threshold from the other ones" if calibration.apart else "a threshold from these very cells"
    caption = (
        "What a threshold does: the share of known cells (of trained types) that it keeps, 0.95 by design, and of "
        f"unknown cells that it tells, more is better. Cells left out of training: {how}. Test cells, where there are "
        "any: the threshold stored in the model, to be told and never chosen by."
    )
    return Table("unknown-threshold", caption, pd.DataFrame(rows))


def _kept_row(name: str, part: Rejection) -> dict[str, Any]:
    return {
        "cells": name,
        "known": part.known,
        "of them kept": part.kept,
        "unknown": part.unknown,
        "of them told": part.told,
    }


def _with_means(comparison: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for kind in (BATCH, TYPE):
        frame = comparison[comparison["left out"] == kind]
        if not len(frame):
            continue
        parts.append(frame)
        if len(frame) > 1:
            cells = {name: int(frame[name].sum()) for name in ("known cells", "unknown cells")}
            means = {name: float(frame[name].mean()) for name in NAMES.values()}
            parts.append(pd.DataFrame([{"left out": kind, "name": "mean", **cells, **means}]))
    return pd.concat(parts, ignore_index=True)


def _caption_of_coverage(curve: pd.DataFrame, cells: Described) -> str:
    where = (
        "test cells" if curve.attrs["part"] == TEST else "training cells, as models say that were trained without them"
    )
    score = NAMES[cells.bundle.calibration.score]
    return (
        f"Accuracy of the cells that keep their label, on {curve.attrs['cells']:,} {where}, when the strangest by "
        f"{score} lose it. Higher is better; a curve that falls to the right shows that the score tells wrong labels. "
        "Cells of types that the model does not know count as wrong."
    )


def _at(curve: pd.DataFrame, threshold: float) -> tuple[float, float] | None:
    """Coverage and accuracy at a threshold; None where it keeps no cell."""
    kept = curve[curve["limit"] <= threshold]
    return None if not len(kept) else (float(kept["coverage"].iloc[-1]), float(kept["accuracy"].iloc[-1]))


def _labelled(cells: Described) -> tuple[NDArray[np.int64], str]:
    """(chosen,) the cells with a label of the first part that has any, and which part that is."""
    for part in (TEST, VALIDATION):
        chosen = np.flatnonzero((cells.part == part) & (cells.type_names != ""))
        if len(chosen):
            return chosen, part
    return np.empty(0, dtype=np.int64), VALIDATION


def _strangeness(cells: Described, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    if not len(chosen):
        return np.empty(0, np.float32)
    at_once, x = cells_at_once(cells.bundle), cells.input(chosen)
    parts = [slice(start, start + at_once) for start in range(0, len(chosen), at_once)]
    return np.concatenate([cells.bundle.all_outputs(x[part]).strangeness for part in parts])


def _units(sealed: SearchCells, method: str, seed: int) -> list[Unit]:
    """A training without each of the types that have enough cells."""
    dataset, rows = sealed.dataset, sealed.rows
    if len(rows) > MOST_SEEN:
        _, rows = set_aside(dataset, rows, MOST_SEEN / len(rows), seed)
    train, validated = set_aside(dataset, rows, VALIDATED, seed)
    counts = np.bincount(dataset.labels[rows])
    most = [int(code) for code in np.argsort(-counts, kind="stable")[:MOST_TYPES] if counts[code] >= LEAST_CELLS]
    units = []
    for code in sorted(most):
        kept = train[dataset.labels[train] != code]
        known = validated[np.isin(dataset.labels[validated], dataset.labels[kept])]
        left_out = np.union1d(known, rows[dataset.labels[rows] == code])
        domains = len(np.unique(dataset.batches[kept]))
        if len(np.unique(dataset.labels[kept])) < 2 or not len(known) or (method != "nn" and domains < FOLD_TRAINS_ON):
            continue
        units.append(Unit(dataset.cell_types[code], kept, left_out, left_out, (seed + FIRST_SEED,)))
    return units


def _type_row(part: LeftOut, temperature: float) -> dict[str, Any]:
    known = part.known
    scores = {score: part.score(score, temperature) for score in SCORES}
    values = {score: auroc(one[known], one[~known]) for score, one in scores.items()}
    return _row(TYPE, part.name, int(known.sum()), int((~known).sum()), values)


def _row(kind: str, name: str, known: int, unknown: int, values: Mapping[Score, float]) -> dict[str, Any]:
    scores = {title: values[score] for score, title in NAMES.items()}
    return {"left out": kind, "name": name, "known cells": known, "unknown cells": unknown, **scores}

"""What a search would do, told before it does anything; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import optuna
import torch

from scdgn.cells.sample import at_most
from scdgn.cells.shelf import SHELF
from scdgn.cells.sources import Source, TrainingCells, disk, read
from scdgn.errors import count
from scdgn.model.fitting import find_device
from scdgn.search.folder import StudyFolder
from scdgn.search.records import FINISHED, RUNGS, Outcome, Proposal
from scdgn.search.shown.overview import METRIC
from scdgn.search.shown.pace import duration
from scdgn.search.stages.best_of_ten import RUNS
from scdgn.search.stages.confirmation import confirming, default_pack
from scdgn.search.stages.identity import check_same, fingerprints
from scdgn.search.stages.pipeline import fold_notes, validate
from scdgn.search.studies import SAMPLE, check_place, expand
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.space import Space, describe
from scdgn.search.study.study import quiet, read_records
from scdgn.search.trials.amount import amount_of
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import OwnInputs
from scdgn.search.trials.objective import Objective

DRAWN, CALIBRATED = 100, 5
"""Trials drawn at random, and those of them, evenly spaced by what they cost, of which an epoch is timed."""

SCORING = 0.1
"""Of the time to train a cell once, what it takes to score one (benchmarks.atlas: 0.03 to 0.11)."""


def plan(settings: StudySettings, fresh: bool = False) -> list[list[str]]:
    """The plan of every study of the command, in lines; what the next ones have in common with the first is said once.

    Raises
    ------
    ScdgnError
        For what the search itself would refuse.
    """
    found, told = [], list[str]()
    read_once = lru_cache(maxsize=1)(read)
    for leaf in expand(settings):
        common, own = _plan(leaf, fresh, read_once)
        found.append(own if common == told else [*common, *own])
        told = common
    return found


def _plan(
    settings: StudySettings, fresh: bool, read: Callable[[Source, int], TrainingCells]
) -> tuple[list[str], list[str]]:
    """What a study does that its siblings do too, and what it does by itself."""
    folder = StudyFolder(settings.folder)
    goes_on = folder.exists and not fresh
    on_disk = disk(settings.source)
    # Whether the cells are those of a study that exists, all their values say.
    cells = read(settings.source, 0 if goes_on and not on_disk else SAMPLE)
    sealed = seal(cells, settings.max_folds, settings.source.adapt)
    check_place(settings)
    notes = validate(settings, sealed)
    if settings.protocol != "search":
        return [], [
            f"study {settings.name}: {settings.protocol}, {RUNS} trainings of {settings.method} with random margin and "
            f"lambda on {len(sealed.dataset):,} cells, the best chosen on {len(cells.split.test):,} test cells"
        ]
    # With Ray the device may be elsewhere.
    device = find_device("auto" if settings.engine == "ray" else settings.device)
    inputs = OwnInputs(sealed, settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells)
    space = settings.spaces()[0]
    lines = [f"study {settings.name}: {settings.method}, {count(settings.trials, 'trial')}, in {settings.folder}"]
    done = 0
    if folder.exists and fresh:
        lines.append("  it exists, and would be set aside")
    if goes_on:
        check_same(settings, folder, {} if on_disk else fingerprints(cells, sealed))
        done = sum(record.state in FINISHED for record in read_records(folder, settings))
        lines.append(f"  it exists: {count(done, 'trial')} done")
    domains = len(np.unique(sealed.dataset.batches))
    grouped = ""
    if cells.groups is not None:
        grouped = f" of {count(len(np.unique(np.array(cells.groups)[sealed.dataset.batches])), 'group')}"
    unlabeled = f"{sum(map(len, cells.unlabeled)):,} without a label{', which may adapt' if sealed.unlabeled else ''}"
    common = [
        f"cells: {len(sealed.dataset):,} for training in {domains} domains{grouped}, "
        f"{len(cells.split.test):,} sealed for the test, {unlabeled}",
        f"selected by {inputs.selection} {METRIC[settings.metric]}; {count(inputs.models, 'model')} per trial:",
    ]
    folds = {fold.name: fold for fold in sealed.folds}
    for unit in inputs.units:
        share = f", {folds[unit.name].coverage:.0%} of it" if unit.name in folds else ""
        if unit.weights is not None:
            share = f", which stand for {unit.weights.sum():,.0f}{share}"
        common.append(f"  {unit.name}: trains on {len(unit.train):,}, scored on {len(unit.scored):,} cells{share}")
    seen = len(sealed.dataset.filled)
    if 2 * seen < len(sealed.dataset):  # a part was read; cells that are empty in the file are few
        common.append(f"values: those of {seen:,} cells, for the estimates; the search looks at all of them")
    if on_disk:
        common.append(
            f"disk: at most {on_disk / 1e9:,.1f} GB in {settings.studies / SHELF}, until the studies are done, for the "
            "values, which do not fit in memory"
        )
    common += fold_notes(settings, sealed, inputs.selection)
    lines += [f"  {note}" for note in notes]
    lines.append("  space:")
    lines += [f"    {name}: {describe(dimension)}" for name, dimension in space.dimensions().items()]
    seconds, after, memory = _calibrate(inputs, device, space, settings)
    pack = settings.pack or default_pack(space, device.type)
    left = max(settings.trials - done, 0)
    lines.append(
        f"  {count(left, 'trial')} x {count(inputs.models, 'model')} and {count(settings.final_seeds, 'final seed')} "
        f"on {device}, {count(pack, 'trial')} per pack"
    )
    if settings.engine == "ray":
        lines.append("  by Ray, as many packs at once as fit; what follows is for one, with a device as here")
    lines.append(f"  memory: about {memory / 1e6:,.0f} MB for the cells as input, under one preprocessing")
    lines.append(
        f"  time: at most about {duration(left * seconds)} for the trials, without what pruning saves, and "
        f"{duration(after)} for scoring the best again and the final seeds"
    )
    return common, lines


class _Ignored:
    """An owner that forgets."""

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def finished(self, outcome: Outcome) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class _Clock:
    """When an objective last asked whether to stop, which it does after every epoch but the last."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def __call__(self) -> bool:
        self.last = time.perf_counter()
        return False


def _calibrate(
    inputs: OwnInputs, device: torch.device, space: Space, settings: StudySettings
) -> tuple[float, float, float]:
    """From an epoch of some trials on a few cells: seconds of a trial, and of what follows, and bytes of the input, on
    all cells.
    """
    few = OwnInputs(
        _some(inputs.cells), settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells
    )
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(settings.seed))
        draws = [space.settings(space.suggest(study.ask())) for _ in range(DRAWN)]
    draws.sort(key=lambda draw: draw[0].hidden * draw[0].epochs)
    each = DRAWN // CALIBRATED
    seconds, memory = [], 0
    for number, (model, preprocess) in enumerate(draws[each // 2 :: each]):
        begun = _Clock()
        Objective(few, settings.metric, device, stopping=begun)(
            [Proposal(number, replace(model, epochs=2), preprocess)], _Ignored()
        )
        # The second epoch: the first one has what is done once.
        per_cell = (time.perf_counter() - begun.last) / (few.trained + SCORING * few.scored)
        scored = min(model.epochs, RUNGS) * SCORING * inputs.scored
        seconds.append((model.epochs * inputs.trained + scored) * per_cell)
        memory = max(memory, few.bytes(preprocess, device))
    per_trial = float(np.mean(seconds))
    amount = amount_of(settings, inputs, confirming(settings, inputs.cells))
    held = (inputs.trained + inputs.scored) / (few.trained + few.scored)
    return per_trial, per_trial / amount.trial * amount.after, memory * held


def _some(cells: SearchCells) -> SearchCells:
    """About `SAMPLE` of the training cells whose values were read, and of the test cells."""
    dataset, read = cells.dataset, cells.dataset.filled
    rows = at_most(np.zeros_like(dataset.labels), dataset.batches, read, SAMPLE)
    return cells.among(rows, rows[:0] if cells.test is None else cells.test.filled[:SAMPLE])

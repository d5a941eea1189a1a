"""What the engine itself costs: sampling, storage and tracking, beside trials of a fixed length.

    python -m benchmarks.overhead [--trials 10] [--seconds 5] [--before 100] [--grow 50 100 250 1000]

The trials are not trained: they wait, report their rungs and end with the record of a real trial of four folds. All
that the process does meanwhile is the engine's: the study draws, prunes and stores, MLflow is written in its thread.

First `--before` trials without waiting fill the study, since samplers grow slower with it. Printed: seconds that the
engine kept a trial waiting and seconds of CPU that it took from the training, as shares of the trials' time.

Then trials without waiting, in a study that grows: milliseconds per trial that the study takes, in packs of one and of
`--pack`, and of CPU that MLflow's thread takes when it writes as many trials.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.simulate import Simulation, simulate
from scdgn.cells.sources import Source, read
from scdgn.search.engines.local import Local
from scdgn.search.folder import StudyFolder, owned
from scdgn.search.records import RUNGS, Outcome, Proposal, State, TrialRecord, UnitScores
from scdgn.search.shown.watching import Begun, Watchers
from scdgn.search.stages.identity import identify
from scdgn.search.stages.job import Job
from scdgn.search.stages.owners import Watched
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import Study
from scdgn.search.tracking.runs import Runs
from scdgn.search.tracking.store import configure
from scdgn.search.tracking.tracker import Tracker
from scdgn.search.trials.amount import Amount
from scdgn.search.trials.cells import seal
from scdgn.search.trials.objective import Owner, Place

AHEAD = 50
"""Trials over which the cost in a study of some size is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--before", type=int, default=100)
    parser.add_argument("--grow", type=int, nargs="*", default=[0, 100, 250, 1000])
    parser.add_argument("--pack", type=int, default=16)
    options = parser.parse_args()
    with small_study(name="waiting", pruner="NopPruner") as settings:
        if options.trials:
            trials = options.before + options.trials
            blocked, cpu = beside(replace(settings, trials=trials), options.before, options.seconds)
            busy = options.trials * options.seconds
            print(f"{options.trials} trials of {options.seconds:g} s after {options.before} others, with TPE, journal")
            print(f"and MLflow: the engine kept them waiting for {blocked:.2f} s, {blocked / busy:.1%} of their time,")
            print(f"and its threads took {cpu:.2f} s of CPU, {cpu / busy:.1%} of one core\n")
        if options.grow:
            columns = {
                f"{name}, pack {pack}": growing(
                    replace(settings, name=f"growing{place}", pruner=pruner), pack, options.grow
                )
                for place, (name, pruner, pack) in enumerate(
                    (
                        ("none pruned", "NopPruner", 1),
                        ("pruned", "MedianPruner", 1),
                        ("pruned", "MedianPruner", options.pack),
                    )
                )
            }
            print("| trials before | " + " | ".join(columns) + " |\n|---:|" + "---:|" * len(columns))
            for row, before in enumerate(options.grow):
                print(f"| {before} | " + " | ".join(f"{column[row]:.1f}" for column in columns.values()) + " |")
            print(f"\nmilliseconds per trial; MLflow's thread takes {tracking(settings):.1f} of CPU for each")


@contextmanager
def small_study(**settings: Any) -> Iterator[StudySettings]:
    """A study of few cells, tracked by a file, in a temporary folder; `settings` are of `StudySettings`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place / 'mlflow.db'}"
        cells = Simulation(cells=dict.fromkeys("abcde", 40), cell_types=("B", "NK", "T"), genes=40)
        write_h5ad(simulate(cells), place / "cells.h5ad")
        source = Source(data=place / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="e")
        yield StudySettings(source=source, studies=place, **settings)


@contextmanager
def opened(settings: StudySettings, tracker: Tracker | None) -> Iterator[tuple[Study, Watched]]:
    """A study that is begun."""
    folder = StudyFolder(settings.folder)
    cells = read(settings.source)
    sealed = seal(cells, settings.max_folds, adapt=False)
    watch = Watchers(*([] if tracker is None else [tracker]))
    with owned(folder) as lease:
        job = Job(settings, folder, cells, sealed, lease, watch, lambda: False, Local("cpu"))
        identify(job)
        study = Study(folder, settings, job.space)
        study.enqueue()
        watch.begun(Begun(folder, settings, sealed, 5, "leave-one-domain-out", study.records(), Amount(1, 5, 6, 30)))
        yield study, Watched(study, folder, lease, watch)


def beside(settings: StudySettings, before: int, seconds: float) -> tuple[float, float]:
    """Seconds that the trials after the first `before` waited for the engine, and CPU seconds that it took."""
    tracker = Tracker(print)
    with opened(settings, tracker) as (_, told):
        first = Waiting(0.0)
        first.run(told, 1, lambda: first.ended >= before)
        tracker.wait(600)  # until MLflow has them all
        wall, cpu = time.perf_counter(), time.process_time()
        waiting = Waiting(seconds)
        waiting.run(told, 1)
        blocked, cpu = time.perf_counter() - wall - waiting.waited, time.process_time() - cpu
        tracker.close()
    return blocked, cpu


def growing(settings: StudySettings, pack: int, sizes: Sequence[int]) -> list[float]:
    """Milliseconds per trial that a study takes which has some trials, for each of `sizes`."""
    found, ended = [], 0
    with opened(replace(settings, trials=max(sizes) + 2 * (AHEAD + pack)), None) as (_, told):

        def run(trials: int) -> int:
            waiting = Waiting(0.0)
            waiting.run(told, pack, lambda: waiting.ended >= trials)
            return waiting.ended

        for size in sorted(sizes):
            ended += run(size - ended)
            start = time.perf_counter()
            measured = run(AHEAD)
            found.append((time.perf_counter() - start) / measured * 1000)
            ended += measured
    return found


def tracking(settings: StudySettings) -> float:
    """Milliseconds of CPU that the store takes per trial."""
    with opened(replace(settings, name="tracked", trials=3 * AHEAD), None) as (study, told):
        Waiting(0.0).run(told, 1)
        records = study.records()
        runs = Runs(configure(settings.studies), StudyFolder(settings.folder.with_name("tracked")))
        runs.write(records[:AHEAD], None, "running")
        cpu = time.process_time()
        for end in range(AHEAD + 1, len(records) + 1):
            runs.write(records[:end], None, "running")
    return (time.process_time() - cpu) / (len(records) - AHEAD) * 1000


class Waiting:
    """An objective that waits instead of training; in a pack, rung by rung."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.waited = 0.0
        self.ended = 0

    def run(self, told: Watched, pack: int, enough: Callable[[], bool] = lambda: False) -> None:
        """Run trials until there is none left, or enough."""
        Local("cpu").run(told, self, pack, enough, lambda: False)

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Waiting:
        """Itself."""
        return self

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Waiting:
        """Itself."""
        return self

    def __call__(self, proposals: Sequence[Proposal], owner: Owner) -> None:
        """Wait through the rungs of the pack, and end the trials that are pruned on the way."""
        going = list(proposals)
        for step in range(1, RUNGS + 1):
            start = time.perf_counter()
            if self._seconds:
                time.sleep(self._seconds / RUNGS)
            self.waited += time.perf_counter() - start
            for proposal in list(going):
                score = np.random.default_rng((proposal.number, step)).uniform(0.5, 0.8)
                pruned = owner.report(proposal.number, step, float(score))
                if pruned or step == RUNGS:
                    owner.finished(self._outcome(proposal.number, "pruned" if pruned else "complete"))
                    going.remove(proposal)
                    self.ended += 1

    def _outcome(self, number: int, state: State) -> Outcome:
        one = UnitScores(0.7, 0.7, 0.7, 300, dict.fromkeys("ABCDEFGHIJKLM", 0.7))
        curve = np.linspace(1, 0, 50).tolist()
        curves = dict.fromkeys(("epoch", "label_loss", "domain_loss", "lambda"), curve)
        record = TrialRecord(
            number, state, epoch=50, folds=dict.fromkeys("abcd", one), training_domain=one, curves=curves,
            seconds=self._seconds,
        )  # fmt: skip
        return Outcome(record, np.zeros(1000, dtype=np.uint16))


if __name__ == "__main__":
    main()

"""What the engine itself costs: sampling, storage and tracking, beside trials of a fixed length.

    python -m benchmarks.overhead [--trials 10] [--seconds 5] [--before 100]

The trials are not trained: they wait, report their rungs and end with the record of a real trial of four folds. All
that the process does meanwhile is the engine's: the study draws, prunes and stores, MLflow is written in its thread.
First `--before` trials without waiting fill the study, since samplers grow slower with it. Printed: seconds that the
engine kept a trial waiting and seconds of CPU that it took from the training, as shares of the trials' time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scdgn.data import Fields, write_h5ad
from scdgn.simulate import Simulation, simulate
from scdgn.sources import Source, read
from search.cells import seal
from search.engines import local
from search.folder import StudyFolder, owned
from search.objective import RUNGS, Owner
from search.pipeline import Job, Told, identify
from search.records import Outcome, Proposal, TrialRecord, UnitScores
from search.settings import StudySettings
from search.study import Study
from search.tracking import Tracker
from search.watching import Begun, Watchers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--before", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place / 'mlflow.db'}"
        cells = Simulation(cells=dict.fromkeys("abcde", 40), cell_types=("B", "NK", "T"), genes=40)
        write_h5ad(simulate(cells), place / "cells.h5ad")
        source = Source(data=place / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="e")
        trials = options.before + options.trials
        settings = StudySettings(name="overhead", source=source, trials=trials, studies=place, pruner="NopPruner")
        blocked, cpu = measure(settings, options.before, options.seconds)
    busy = options.trials * options.seconds
    print(
        f"{options.trials} trials of {options.seconds:g} s after {options.before} others, with TPE, journal and MLflow"
    )
    print(f"the engine kept them waiting for {blocked:.2f} s, {blocked / busy:.1%} of their time")
    print(f"its threads took {cpu:.2f} s of CPU, {cpu / busy:.1%} of one core")


def measure(settings: StudySettings, before: int, seconds: float) -> tuple[float, float]:
    """Seconds that the trials after the first `before` waited for the engine, and CPU seconds that it took."""
    folder = StudyFolder(settings.folder)
    cells = read(settings.source)
    sealed = seal(cells, settings.max_folds, adapt=False)
    tracker = Tracker(print)
    with owned(folder) as lease:
        job = Job(settings, folder, cells, sealed, lease, tracker, lambda: False)
        identify(job)
        study = Study(folder, settings, job.space)
        study.enqueue()
        tracker.begun(Begun(folder, settings, sealed, 5, "leave-one-domain-out", study.records()))
        told = Told(study, Watchers(tracker))
        local.run(told, Waiting(0.0), 1, lambda: len(study.records()) >= before)
        tracker.wait(600)  # until MLflow has them all
        wall, cpu = time.perf_counter(), time.process_time()
        waiting = Waiting(seconds)
        local.run(told, waiting, 1, lambda: False)
        blocked, cpu = time.perf_counter() - wall - waiting.waited, time.process_time() - cpu
        tracker.close()
    return blocked, cpu


class Waiting:
    """An objective that waits instead of training."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.waited = 0.0

    def __call__(self, proposals: Sequence[Proposal], owner: Owner) -> None:
        """Wait through the rungs of each trial."""
        for proposal in proposals:
            scores = np.random.default_rng(proposal.number).uniform(0.5, 0.8, RUNGS)
            for step, score in enumerate(scores, start=1):
                start = time.perf_counter()
                time.sleep(self._seconds / RUNGS)
                self.waited += time.perf_counter() - start
                owner.report(proposal.number, step, float(score))
            one = UnitScores(0.7, 0.7, 0.7, 300, dict.fromkeys("ABCDEFGHIJKLM", 0.7))
            curve = np.linspace(1, 0, 50).tolist()
            curves = dict.fromkeys(("epoch", "label_loss", "domain_loss", "lambda"), curve)
            record = TrialRecord(
                proposal.number, "complete", epoch=50, folds=dict.fromkeys("abcd", one), training_domain=one,
                curves=curves, seconds=self._seconds,
            )  # fmt: skip
            owner.finished(Outcome(record, np.zeros(1000, dtype=np.uint16)))


if __name__ == "__main__":
    main()

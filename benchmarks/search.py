"""A whole search as a user runs it, from the start of the process to the registered model: where the time goes.

    python -m benchmarks.search [--trials 256] [--hidden 32 1136] [--profile]

Leave-one-domain-out with three folds on 2,490 cells x 3,000 genes, simulated in the shape of pancreas1; the default
space, sampler and pruner; the best trials scored again, the winner trained with ten seeds, exported, written to MLflow
(SQLite, in a temporary folder) and registered. Each number of trials is a study of its own in a process of its own. By
default 16, 64, 256 and 1024 trials on a GPU; on a CPU 16 and 32, and hidden layers of 32 to 128 units instead of 32 to
1136. Needs everything installed.

The parts add up to the wall time; each is without those that it called:

    start                  the process, its imports, reading the cells, opening the study
    training               in `train`: of the search; that of later stages is in theirs
    scoring                after each epoch of `train`: predictions and scores at the rungs
    preparing              the rest of an objective: preprocessing, members
    drawing                drawing trials (TPE)
    storing                reporting, pruning and ending trials, in Optuna's journal
    rest of the search     what is left between its parts
    confirmation           the best trials scored again with other seeds
    final seeds            the winner trained with ten seeds, its test
    calibration            the winner trained without each training domain, for its temperature and its threshold
    export                 the bundle and the summary
    waiting for MLflow     until its thread has written all
    registration           of the model in MLflow
    end                    the end of the run and of the process

"MLflow's thread" runs beside them: seconds in which it wrote, and of CPU that it took.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import pstats
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.best_of_ten import HELD_OUT, pancreas1
from benchmarks.timing import machine
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY
from scdgn.cells.sources import Source
from scdgn.search.folder import StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import Study
from scdgn.search.summary import AnySummary, Registration
from scdgn.search.tracking import tracker as tracking
from scdgn.search.trials import objective

START, TRAINING, SEARCH, CONFIRMATION, FINAL = "start", "training", "rest of the search", "confirmation", "final seeds"
CALIBRATION = "calibration"
EXPORT, WAITING, REGISTRATION, END = "export", "waiting for MLflow", "registration", "end"
SCORING, PREPARING, DRAWING, STORING = "scoring", "preparing", "drawing", "storing"
PARTS = (START, TRAINING, SCORING, PREPARING, DRAWING, STORING, SEARCH, CONFIRMATION, FINAL, CALIBRATION, EXPORT,
         WAITING, REGISTRATION, END)  # fmt: skip
BUSY, CPU = "MLflow's thread, writing", "MLflow's thread, CPU"

# How the text begins with which a study tells its stages (Watcher.stage).
STAGES = {"scoring": CONFIRMATION, "training": FINAL, "calibrating": CALIBRATION, "exporting": EXPORT,
          "registering": REGISTRATION}  # fmt: skip


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[16, 64, 256, 1024] if gpu else [16, 32])
    parser.add_argument("--hidden", type=int, nargs=2, default=[32, 1136] if gpu else [32, 128])
    parser.add_argument("--cells", type=int, default=2490)
    parser.add_argument("--profile", action="store_true", help="print what the Python of the last search spends")
    options = parser.parse_args()
    print(f"{machine()}; {options.cells} training cells, hidden layers of {options.hidden[0]} to {options.hidden[1]}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5ad"
        write_h5ad(pancreas1(options.cells), data)
        for trials in options.trials:
            profiled = options.profile and trials == options.trials[-1]
            found[trials] = in_new_process(data, Path(folder) / str(trials), trials, tuple(options.hidden), profiled)
            print(f"{trials} trials: {sum(found[trials][part] for part in PARTS):.1f} s", flush=True)
    report(found)


def report(found: Mapping[int, Mapping[str, float]]) -> None:
    wall = {trials: sum(parts[part] for part in PARTS) for trials, parts in found.items()}
    print(f"\n{'seconds':26}" + "".join(f"{trials:>9} trials" for trials in found))
    for part in (*PARTS, BUSY, CPU):
        print(f"{part:26}" + "".join(f"{parts[part]:16.2f}" for parts in found.values()))
    print(f"{'wall time':26}" + "".join(f"{seconds:16.2f}" for seconds in wall.values()))
    print(f"{'trials per hour':26}" + "".join(f"{3600 * trials / seconds:16.0f}" for trials, seconds in wall.items()))
    models = (TRAINING, CONFIRMATION, FINAL, CALIBRATION)
    above = [1 - sum(parts[part] for part in models) / wall[trials] for trials, parts in found.items()]
    print(f"{'share of the other parts':26}" + "".join(f"{share:16.1%}" for share in above))
    for fewer, more in pairwise(found):
        added = (wall[more] - wall[fewer]) / (more - fewer)
        print(f"from {fewer} to {more} trials: {added:.3f} s per trial added")


def in_new_process(data: Path, studies: Path, trials: int, hidden: tuple[int, int], profiled: bool) -> dict[str, float]:
    """Seconds of every part of a search."""
    start = time.time()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        parts, ended = pool.submit(search, data, studies, trials, hidden, profiled, start).result()
    return {**parts, END: parts[END] + time.time() - ended}


def search(
    data: Path, studies: Path, trials: int, hidden: tuple[int, int], profiled: bool, start: float
) -> tuple[dict[str, float], float]:
    """Run one, and tell the seconds of its parts, and the time at its end.

    Parameters
    ----------
    data, studies, trials, hidden
        The cells, the folder of the study and its store, the budget, and the widths searched.
    profiled
        Whether to print a profile.
    start
        When the process was asked for, in seconds since 1970.
    """
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{studies / 'mlflow.db'}"
    studies.mkdir()
    watch = Stopwatch(time.time() - start)
    watch.follow()
    low, high = hidden
    settings = StudySettings(
        name="benchmark",
        source=Source(data=data, fields=Fields(LABELS_KEY, BATCH_KEY), test_batch=HELD_OUT),
        trials=trials,
        space={"hidden": {"low": low, "high": high, "log": True}},
        studies=studies,
    )
    profile = cProfile.Profile()
    if profiled:
        profile.runcall(run, settings, watch)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    else:
        run(settings, watch)
    return watch.read(), time.time()


class Stopwatch(Watcher):
    """Which part of a study the time goes to.

    Parameters
    ----------
    started
        Seconds that the process took until now.
    """

    def __init__(self, started: float) -> None:
        self._seconds: dict[str, float] = defaultdict(float, {START: started})
        self._inside = [START]
        self._last = time.perf_counter()

    def follow(self) -> None:
        """Put a clock around what a study calls."""
        objective.train = self._around_training(objective.train)
        objective.Objective.__call__ = self._around(objective.Objective.__call__, PREPARING)
        for name, part in (("next_pack", DRAWING), ("report", STORING), ("finished", STORING)):
            setattr(Study, name, self._around(getattr(Study, name), part))
        tracking.Tracker._write = self._in_thread(tracking.Tracker._write)

    def read(self) -> dict[str, float]:
        """Seconds of every part."""
        self._turn()
        return {part: self._seconds[part] for part in (*PARTS, BUSY, CPU)}

    def begun(self, study: Begun) -> None:
        """The search begins."""
        self._enter(SEARCH)

    def stage(self, text: str, amount: float = 0.0) -> None:
        """What comes after it."""
        self._enter(STAGES[text.split()[0]])

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """MLflow's thread is waited for."""
        self._enter(WAITING)

    def registered(self, registration: Registration) -> None:
        """The last thing that is done."""
        self._enter(END)

    def note(self, text: str) -> None:
        """What went wrong would be told here."""
        if "MLflow" in text or "not registered" in text:
            print(text, flush=True)

    def ended(self, record: TrialRecord) -> None:
        """A trial that fails trains less than it should."""
        if record.state == "fail":
            print(f"trial {record.number} failed: {record.reason}", flush=True)

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._inside[-1]] += now - self._last
        self._last = now

    def _enter(self, stage: str) -> None:
        self._turn()
        self._inside[0] = stage

    @contextmanager
    def _part(self, part: str) -> Iterator[None]:
        """Time inside counts for a part of the search; stages after it are not divided."""
        self._turn()
        self._inside.append(part if self._inside[0] == SEARCH else self._inside[0])
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def _around(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **named)
            with self._part(part):
                return function(*arguments, **named)

        return timed

    def _around_training(self, train: Callable[..., Any]) -> Callable[..., Any]:
        def timed(members: Any, device: Any, on_epoch: Callable[..., Any], *others: Any, **named: Any) -> Any:
            return train(members, device, self._around(on_epoch, SCORING), *others, **named)

        return self._around(timed, TRAINING)

    def _in_thread(self, write: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(write)
        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return write(*arguments, **named)
            finally:
                self._seconds[BUSY] += time.perf_counter() - wall
                self._seconds[CPU] += time.thread_time() - cpu

        return timed


if __name__ == "__main__":
    main()

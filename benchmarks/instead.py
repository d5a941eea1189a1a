"""A search beside what people would use instead: the same cells, as many trials, one run.

    python -m benchmarks.instead CELLS.h5ad --labels-key celltype --batch-key tech --test-batch BATCH
        [--trials 16] [--limit 900] [--hidden 32 128] [--python autotune=PYTHON celltypist=PYTHON] [--only optuna ...]
        [--methods scdgn nn]

A row each: `scdgn search`, of scDGN and of the plain network, with its defaults, but for the second scoring and the
ten final seeds, of which the others have none (one seed, as they); a loop of Optuna's over a plain torch network,
whose trials train a model for every training batch left out, as scdgn's do; the same by Ray Tune, with a process per
trial; scANVI by scVI-tools' autotune; CellTypist's own training, which has no search. Each runs in a process of its
own, one after the other; those of --python in another Python.

    trials             that ended, within --limit seconds
    per hour           from the start of the process to the last trial's end
    to the best, s     until the trial ended that it would choose
    left-out batches   mean macro-F1 of that trial over the training batches left out; autotune chooses by random cells
                       of the batches that it trains on, of which nothing is said here
    test batch         macro-F1 on the batch that nothing chose by, of the winner trained on all training cells
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import machine
from scdgn.analysis.peers.comparing import Course
from scdgn.analysis.studies.cells import source_of
from scdgn.analysis.studies.results import read_all
from scdgn.core.config import UNLABELED
from scdgn.core.metrics import macro_f1
from scdgn.search.trials.inputs import ALL_DOMAINS

WORKER = Path(__file__).with_name("instead_worker.py")

TITLES = {
    "optuna": "Optuna, plain torch network",
    "ray": "Ray Tune, the same, a process per trial",
    "celltypist": "CellTypist's own training",
    "autotune": "scVI-tools' autotune of scANVI",
}


@dataclass
class Row:
    """What came of one of them."""

    title: str
    ended: list[tuple[float, float]] = field(default_factory=list)  # seconds since the start, and score
    test: float | None = None
    reason: str = ""
    folds: bool = True

    def __str__(self) -> str:
        if not self.ended:
            return f"| {self.title} | | | | | {self.reason} |"
        seconds, (best, score) = max(at for at, _ in self.ended), max(self.ended, key=lambda one: one[1])
        cells = (f"{len(self.ended)}", f"{3600 * len(self.ended) / seconds:.0f}", f"{best:.0f}",
                 f"{score:.3f}" if self.folds else "", "" if self.test is None else f"{self.test:.3f}")  # fmt: skip
        return f"| {self.title} | {' | '.join(cells)} |{f' {self.reason}' if self.reason else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--labels-key", required=True)
    parser.add_argument("--batch-key", required=True)
    parser.add_argument("--test-batch", required=True)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--limit", type=float, default=900.0)
    parser.add_argument("--hidden", type=int, nargs=2, default=[32, 128])
    parser.add_argument("--python", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", choices=TITLES, default=list(TITLES))
    parser.add_argument("--methods", nargs="+", default=["scdgn", "nn"])
    options = parser.parse_args()
    pythons = dict(each.split("=", 1) for each in options.python)
    print(f"{machine()}; {options.cells.stem}, {options.trials} trials")
    print("| | trials | per hour | to the best, s | left-out batches | test batch |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for method in options.methods:
            row, course = searched(method, options, folder)
            print(row, flush=True)
        arrays = cells_of(course)
        for what in options.only:
            (folder / what).mkdir()
            np.savez(folder / what / "cells.npz", **arrays)
            print(instead(what, pythons.get(what, sys.executable), folder / what, options, course), flush=True)


def searched(method: str, options: argparse.Namespace, folder: Path) -> tuple[Row, Course]:
    """`scdgn search`, as the command line runs it."""
    start = time.time()
    words = ["search", options.cells, "--labels-key", options.labels_key, "--batch-key", options.batch_key,
             "--test-batch", options.test_batch, "--trials", options.trials, "--name", method, "--method", method,
             "--no-track", "--studies", folder / "studies", "--confirm", 0, "--final-seeds", 1, "--quiet"]  # fmt: skip
    low, high = options.hidden
    words += ["--set", f"hidden={{low = {low}, high = {high}, log = true}}"]
    subprocess.run([sys.executable, "-m", "scdgn", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    (results,), _ = read_all(folder / "studies", [method])
    ended = [(record.ended - start, record.value or 0.0) for record in results.records]
    test = results.final_test
    row = Row(f"**scdgn search --method {method}**", ended, None if test is None else test.mean)
    return row, Course.of(results, source_of(results))


def cells_of(course: Course) -> dict[str, Any]:
    """What `instead_worker` reads: the folds first, each with the types of the training cells that it is scored on."""
    units, labels = course.inputs.units, course.sealed.dataset.labels
    assert units[-1].name == ALL_DOMAINS
    arrays = {**course.arrays, "folds": len(units) - 1, "last": len(units)}
    for place, unit in enumerate(units[:-1]):
        arrays[f"truth_{place}"] = np.where(np.isin(unit.held_out, unit.scored), labels[unit.held_out], UNLABELED)
    return arrays


def instead(what: str, python: str, folder: Path, options: argparse.Namespace, course: Course) -> Row:
    """One of the others, killed when its time is up."""
    row = Row(TITLES[what], folds=what != "autotune")
    start = time.time()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CELLTYPIST_FOLDER": str(folder)}
    with (folder / "stderr").open("w") as errors:
        words = [python, WORKER, what, folder, *map(str, (options.trials, *options.hidden))]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment, text=True,
                                 start_new_session=True)  # fmt: skip
    timer = threading.Timer(options.limit, os.killpg, (child.pid, signal.SIGKILL))
    timer.start()
    assert child.stdout is not None
    for line in child.stdout:
        said = json.loads(line)
        if "score" in said:
            row.ended.append((said["at"] - start, said["score"]))
    status = child.wait()
    timer.cancel()
    if status == -signal.SIGKILL:
        row.reason = f"cut off after {options.limit:g} s"
    elif status:
        row.reason = (folder / "stderr").read_text().strip().splitlines()[-1]
    else:
        scored = course.test_scored
        row.test = macro_f1(course.test_labels[scored], np.load(folder / "answer.npy")[scored])
    return row


if __name__ == "__main__":
    main()

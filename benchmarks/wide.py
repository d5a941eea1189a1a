"""Many types in many domains: what an epoch and the tables of training cells take, beside few of both.

    python -m benchmarks.wide [--cells 10000] [--genes 2000] [--rounds 3]

Of random cells with 10 types in 5 domains and with 200 in 300, each measured in a process of its own:

    nn, dann, scdgn   seconds of an epoch of the default preset, the best of the rounds
    shifted           the same of nn with batch shifts
    shifts            seconds to find the means that batch shifts need, and how much the peak of resident memory grew
    reference         the same of what a query is corrected by

And of 100 rare types, in three cells of two donors each of 300, how many no fold can score: where donors are put into
five folds by their size alone, and as they are.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.inputs import random_cells
from benchmarks.scale import apart, peak
from benchmarks.timing import machine
from scdgn.cells.splits import leave_one_domain_out, unscored_types
from scdgn.core.config import Settings, preset
from scdgn.core.correction import find_reference
from scdgn.core.expression import compressed
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Cells, Member

SHAPES = ((10, 5), (200, 300))
SUBJECTS = ("nn", "dann", "scdgn", "shifted", "shifts", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.cells:,} cells x {options.genes:,} genes, {machine()}")
    print(f"{'':>10}" + "".join(f"{f'{types} types, {domains} domains':>30}" for types, domains in SHAPES))
    for subject in SUBJECTS:
        each = [
            apart(measure, subject, options.cells, options.genes, types, domains, options.rounds)
            for types, domains in SHAPES
        ]
        told = (f"{seconds:>14.3f} s, +{grown / 1e6:>6,.0f} MB" for seconds, grown in each)
        print(f"{subject:>10}" + "".join(f"{words:>30}" for words in told), flush=True)
    by_size, present = lost_types()
    print(f"rare types without a score: {by_size} by size alone, {present} as folds are made")


def measure(subject: str, cells: int, genes: int, types: int, domains: int, rounds: int) -> tuple[float, float]:
    """Seconds, and bytes by which the peak grew."""
    dense = random_cells(cells, genes, types=types, domains=domains)
    given = replace(dense, x=compressed(dense.x))
    before = resident()
    if subject == "shifts":
        work: Callable[[], object] = lambda: given.shifts  # noqa: E731
        rounds = 1
    elif subject == "reference":
        work = lambda: find_reference(given.x, given.labels, given.domains, types)  # noqa: E731
    else:
        work = epoch(given, settings_of(subject))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), resident() - before


def lost_types() -> tuple[int, int]:
    """Rare types that no fold scores, by size alone and as folds are made."""
    draws, donors, rare = np.random.default_rng(0), 300, range(100, 200)
    batches = np.repeat(np.arange(donors), draws.integers(20, 120, donors))
    labels = draws.integers(0, 100, len(batches))
    for cell_type in rare:
        for donor in draws.choice(donors, 2, replace=False):
            labels[draws.choice(np.flatnonzero(batches == donor), 3, replace=False)] = cell_type
    rows, cells = np.arange(len(labels)), np.zeros(5, dtype=np.int64)
    folds = leave_one_domain_out(labels, batches, rows, [str(donor) for donor in range(donors)])
    place = np.empty(donors, dtype=np.int64)
    sizes = np.bincount(batches)
    for donor in np.argsort(-sizes, kind="stable"):  # the largest first, into the smallest fold
        place[donor] = cells.argmin()
        cells[place[donor]] += sizes[donor]
    together = sum(len(np.unique(place[batches[labels == cell_type]])) == 1 for cell_type in rare)
    return together, len(unscored_types(labels, rows, folds))


def settings_of(subject: str) -> Settings:
    if subject == "shifted":
        return replace(preset("default", "nn"), shift_probability=0.5)
    return replace(preset("default", subject), shift_probability=0.0)  # type: ignore[arg-type]


def epoch(cells: Cells, settings: Settings) -> Callable[[], object]:
    device = torch.device("cpu")
    lane = Lane([Member(settings, cells, seed=0)], [0], device, {id(cells): cells})

    def run() -> None:
        lane.run_epoch(0)
        lane.losses()

    return run


def resident() -> float:
    return peak(resource.getrusage(resource.RUSAGE_SELF))


if __name__ == "__main__":
    main()

"""An atlas on a small machine: seconds and memory of what a search does with it, by the number of cells.

    python -m benchmarks.atlas [--cells 12500 25000 50000] [--genes 20000] [--folder PLACE] [--only reading plan]

For each size a file of simulated counts is written, a chunk of cells at a time, and dropped again: 40 batches, 60
types, 12 % of the entries stored at 20,000 genes (1 GB for 50,000 cells). Every measurement is of a process of its own.
Memory is the most that was resident at once, libraries included, and what of it belongs to no file: pages of mapped
values are dropped by the system when it wants the memory.

    reading     all cells, with what a search checks of them; values that do not fit in memory are put on a shelf, where
                what follows finds them
    genes       all folds' genes and statistics, under markers and under variable genes, beyond reading and sealing
    inputs      what trials train on and are scored on, under both ways to choose genes and both scalings, in turn
    trial       one of scDGN under the default preset: six models of 30 epochs, with their inputs
    epoch       one of the same on all training cells, as a final seed has 30
    plan        `scdgn search FILE --dry-run`, the whole command
    search      a whole one: two trials of three epochs, the better one scored again, one final seed of its settings
    prediction  `scdgn predict FILE` with the model of that search

The exponent b of busy = a * cells^b, the seconds of processors, is fitted by least squares on the logarithms; 1 is
linear.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.scale import GB, Anonymous, Measured, apart, command, exponent, peak, write
from benchmarks.timing import machine
from scdgn.cells.fields import Fields
from scdgn.cells.preprocess import fit as fit_preprocessing
from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.cells.shelf import SHELF, Shelf
from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY, Simulation
from scdgn.cells.sources import Source, TrainingCells, read
from scdgn.core.config import preset
from scdgn.model.fitting import fit
from scdgn.search.records import Outcome, Proposal
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import OwnInputs
from scdgn.search.trials.objective import Objective

SIZES = (12_500, 25_000, 50_000)
BATCHES = tuple(f"donor{i + 1:02}" for i in range(40))
TYPES = tuple(f"type{i + 1:02}" for i in range(60))
RARER = 0.94  # how frequent a type is beside the one before it: the last one is a fortieth of the first
DEPTH = 4500.0
FOLDS = 5
KEYS = ("--labels-key", LABELS_KEY, "--batch-key", BATCH_KEY, "--test-batch", BATCHES[0])
SEARCHED = "atlas"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the files are written; the system's by default")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    options = parser.parse_args()
    print(f"{options.genes:,} genes, {machine()}")
    print(f"{'':>9} {'CSR':>6} | " + " | ".join(f"{name:^26}" for name in options.only))
    print(
        f"{'cells':>9} {'GB':>6} | " + " | ".join(f"{'s':>7} {'busy':>6} {'GB':>5} {'anon.':>5}" for _ in options.only)
    )
    found: dict[str, list[Measured]] = {name: [] for name in options.only}
    for cells in options.cells:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            file = Path(folder) / "atlas.h5ad"
            csr = apart(write, file, cells, of_an_atlas(options.genes))
            for name in options.only:
                found[name].append(apart(MEASURED[name], file))
        last = [found[name][-1] for name in options.only]
        told = (
            f"{one.seconds:>7.1f} {one.busy:>6.1f} {one.peak / GB:>5.2f} {one.anonymous / GB:>5.2f}" for one in last
        )
        print(f"{cells:>9,} {csr / GB:>6.2f} | " + " | ".join(told), flush=True)
    if len(options.cells) > 1:
        grown = (
            f"{name} {exponent(options.cells, [one.busy for one in measured]):.2f}" for name, measured in found.items()
        )
        print(f"exponent: {', '.join(grown)}")


def of_an_atlas(genes: int) -> Simulation:
    """What a cell is like."""
    frequencies = tuple(RARER**place for place in range(len(TYPES)))
    # A response would be drawn anew in each chunk.
    return Simulation(dict.fromkeys(BATCHES, 1), TYPES, frequencies, genes=genes, depth=DEPTH, response=0.0)


def reading(file: Path) -> Measured:
    """Read all cells."""
    return measured(lambda: cells_of(file))


def genes(file: Path) -> Measured:
    """Choose the genes of all folds, in both ways, and find their statistics."""
    sealed = seal(cells_of(file), FOLDS, adapt=False)
    units = searched(sealed, file).units

    def choose() -> None:
        for preprocess in (INPUT_PRESETS["default"], PreprocessSettings()):
            for unit in units:
                fit_preprocessing(sealed.dataset, unit.train, preprocess)

    return measured(choose)


def inputs(file: Path) -> Measured:
    """Prepare all cells of a search as its trials ask for them."""
    given = searched(seal(cells_of(file), FOLDS, adapt=False), file)

    def prepare() -> None:
        for preprocess in (INPUT_PRESETS["default"], PreprocessSettings()):
            for scaling in ("none", "standard"):
                given.prepared(replace(preprocess, scaling=scaling), torch.device("cpu"))

    return measured(prepare)


def trial(file: Path) -> Measured:
    """Train and score one trial."""
    given = searched(seal(cells_of(file), FOLDS, adapt=False), file)
    proposal = Proposal(0, preset("default", "scdgn"), INPUT_PRESETS["default"])
    return measured(lambda: Objective(given, "macro_f1", torch.device("cpu"))([proposal], _Nobody()))


def epoch(file: Path) -> Measured:
    """Train for one epoch; the seconds are those after the cells were prepared, of the second of two."""
    cells = cells_of(file)
    ends: list[tuple[float, float]] = []
    settings = replace(preset("default", "scdgn"), epochs=2)
    preprocess = INPUT_PRESETS["default"]
    whole = measured(
        lambda: fit(
            cells.dataset,
            cells.split.train,
            settings,
            preprocess,
            [0],
            on_epoch=lambda _: ends.append((time.perf_counter(), time.process_time())),
        )
    )
    return replace(whole, seconds=ends[1][0] - ends[0][0], busy=ends[1][1] - ends[0][1])


def planned(file: Path) -> Measured:
    """Plan a search of these cells by the command line."""
    return command("search", file, *KEYS, "--studies", studies(file), "--dry-run")


def searching(file: Path) -> Measured:
    """Search, from the file to the model."""
    small = ("--trials", 2, "--confirm", 1, "--final-seeds", 1, "--no-ensemble", "--set", "epochs=3", "--no-track")
    return command("search", file, *KEYS, "--studies", studies(file), "--name", SEARCHED, *small)


def prediction(file: Path) -> Measured:
    """Annotate all cells with what was found."""
    model, output = studies(file) / SEARCHED / "model", file.with_name("out.csv")
    return command("predict", file, "--model", model, "-o", output, "--quiet")


MEASURED: Mapping[str, Callable[[Path], Measured]] = {
    "reading": reading,
    "genes": genes,
    "inputs": inputs,
    "trial": trial,
    "epoch": epoch,
    "plan": planned,
    "search": searching,
    "prediction": prediction,
}


class _Nobody:
    """Owns trials, and does not look at them."""

    def report(self, number: int, step: int, value: float) -> bool:
        return False

    def finished(self, outcome: Outcome) -> None:
        if outcome.record.state != "complete":
            raise RuntimeError(outcome.record.reason)

    def note(self, text: str) -> None:
        print(text)


def searched(sealed: SearchCells, file: Path) -> OwnInputs:
    """What trials of a search by default see."""
    settings = StudySettings(name="atlas", source=source(file))
    return OwnInputs(sealed, settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells)


def source(file: Path) -> Source:
    return Source(data=file, fields=Fields(LABELS_KEY, BATCH_KEY), test_batch=BATCHES[0])


def cells_of(file: Path) -> TrainingCells:
    return read(source(file), shelf=Shelf(studies(file) / SHELF))


def studies(file: Path) -> Path:
    return file.parent / "studies"


def measured(work: Callable[[], object]) -> Measured:
    start, busy = time.perf_counter(), time.process_time()
    with Anonymous() as anonymous:
        work()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return Measured(seconds, peak(resource.getrusage(resource.RUSAGE_SELF)), anonymous.most, busy)


if __name__ == "__main__":
    main()

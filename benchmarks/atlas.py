"""An atlas on a small machine: seconds and memory of what a search does with it, by the number of cells.

    python -m benchmarks.atlas [--cells 12500 25000 50000] [--genes 20000] [--folder PLACE] [--only reading plan]

For each size a file of simulated counts is written, a chunk of cells at a time, and dropped again: 40 batches, 60
types, 12 % of the entries stored at 20,000 genes (1 GB for 50,000 cells). Every measurement is of a process of its own,
the peak is the most memory that was resident at once, libraries included:

    reading     all cells, with what a search checks of them
    genes       all folds' genes and statistics, under markers and under variable genes, beyond reading and sealing
    inputs      what trials train on and are scored on, under both ways to choose genes and both scalings, in turn
    epoch       one of scDGN under the default preset on all training cells
    plan        `scdgn search FILE --dry-run`, the whole command

The exponent b of seconds = a * cells^b is fitted by least squares on the logarithms; 1 is linear.
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

from benchmarks.scale import GB, Measured, apart, command, exponent, peak, write
from benchmarks.timing import machine
from scdgn.cells.fields import Fields
from scdgn.cells.preprocess import fit as fit_preprocessing
from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY, Simulation
from scdgn.cells.sources import Source, read
from scdgn.core.config import preset
from scdgn.model.fitting import fit
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import OwnInputs

SIZES = (12_500, 25_000, 50_000)
BATCHES = tuple(f"donor{i + 1:02}" for i in range(40))
TYPES = tuple(f"type{i + 1:02}" for i in range(60))
RARER = 0.94  # how frequent a type is beside the one before it: the last one is a fortieth of the first
DEPTH = 4500.0
FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="where the files are written; the system's by default")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED))
    options = parser.parse_args()
    print(f"{options.genes:,} genes, {machine()}")
    print(f"{'':>9} {'CSR':>6} | " + " | ".join(f"{name:^15}" for name in options.only))
    print(f"{'cells':>9} {'GB':>6} | " + " | ".join(f"{'s':>7} {'GB':>7}" for _ in options.only))
    found: dict[str, list[Measured]] = {name: [] for name in options.only}
    for cells in options.cells:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            file = Path(folder) / "atlas.h5ad"
            csr = apart(write, file, cells, of_an_atlas(options.genes))
            for name in options.only:
                found[name].append(apart(MEASURED[name], file))
        told = (f"{found[name][-1].seconds:>7.1f} {found[name][-1].peak / GB:>7.2f}" for name in options.only)
        print(f"{cells:>9,} {csr / GB:>6.2f} | " + " | ".join(told), flush=True)
    if len(options.cells) > 1:
        grown = (
            f"{name} {exponent(options.cells, [one.seconds for one in measured]):.2f}"
            for name, measured in found.items()
        )
        print(f"exponent: {', '.join(grown)}")


def of_an_atlas(genes: int) -> Simulation:
    """What a cell is like."""
    frequencies = tuple(RARER**place for place in range(len(TYPES)))
    # A response would be drawn anew in each chunk.
    return Simulation(dict.fromkeys(BATCHES, 1), TYPES, frequencies, genes=genes, depth=DEPTH, response=0.0)


def reading(file: Path) -> Measured:
    """Read all cells."""
    return measured(lambda: read(source(file)))


def genes(file: Path) -> Measured:
    """Choose the genes of all folds, in both ways, and find their statistics."""
    sealed = seal(read(source(file)), FOLDS, adapt=False)
    units = searched(sealed, file).units

    def choose() -> None:
        for preprocess in (INPUT_PRESETS["default"], PreprocessSettings()):
            for unit in units:
                fit_preprocessing(sealed.dataset, unit.train, preprocess)

    return measured(choose)


def inputs(file: Path) -> Measured:
    """Prepare all cells of a search as its trials ask for them."""
    given = searched(seal(read(source(file)), FOLDS, adapt=False), file)

    def prepare() -> None:
        for preprocess in (INPUT_PRESETS["default"], PreprocessSettings()):
            for scaling in ("none", "standard"):
                given.prepared(replace(preprocess, scaling=scaling), torch.device("cpu"))

    return measured(prepare)


def epoch(file: Path) -> Measured:
    """Train for one epoch; the seconds are those after the cells were prepared, of the second of two."""
    cells = read(source(file))
    ends: list[float] = []
    settings = replace(preset("default", "scdgn"), epochs=2)
    preprocess = INPUT_PRESETS["default"]
    fit(
        cells.dataset, cells.split.train, settings, preprocess, [0], on_epoch=lambda _: ends.append(time.perf_counter())
    )
    return Measured(ends[1] - ends[0], peak(resource.getrusage(resource.RUSAGE_SELF)))


def planned(file: Path) -> Measured:
    """Plan a search of these cells by the command line."""
    keys = ("--labels-key", LABELS_KEY, "--batch-key", BATCH_KEY, "--test-batch", BATCHES[0])
    return command("search", file, *keys, "--studies", file.parent / "studies", "--dry-run")


MEASURED: Mapping[str, Callable[[Path], Measured]] = {
    "reading": reading,
    "genes": genes,
    "inputs": inputs,
    "epoch": epoch,
    "plan": planned,
}


def searched(sealed: SearchCells, file: Path) -> OwnInputs:
    """What trials of a search by default see."""
    settings = StudySettings(name="atlas", source=source(file))
    return OwnInputs(sealed, settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells)


def source(file: Path) -> Source:
    return Source(data=file, fields=Fields(LABELS_KEY, BATCH_KEY), test_batch=BATCHES[0])


def measured(work: Callable[[], object]) -> Measured:
    start = time.perf_counter()
    work()
    return Measured(time.perf_counter() - start, peak(resource.getrusage(resource.RUSAGE_SELF)))


if __name__ == "__main__":
    main()

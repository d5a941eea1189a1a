"""How time and memory grow with the number of cells, in training and in prediction.

    python -m benchmarks.scale [--cells 10000 30000 100000 300000 1000000] [--genes 3000] [--types 10] [--folder PLACE]

For each size a file of simulated counts is written (CSR, about 8 % of the entries at 3,000 genes: 2 GB for a million
cells, and a copy when they are predicted) and dropped again. Every measurement is of a process of its own:

    training      scdgn of the default preset on all cells, from the file; seconds per epoch after the first, and the
                  most memory that was resident at once, with imports, reading and preprocessing
    prediction    `scdgn predict` with that model; seconds of the whole command, and the same of its memory

The exponent b of seconds = a * cells^b is fitted by least squares on the logarithms; 1 is linear. In prediction the
command's start is in it. The memory of training is to be compared with 1.5 times what the values take as CSR.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from benchmarks.timing import machine
from scdgn.cells.fields import Fields
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY, Simulation, simulate
from scdgn.cells.sources import Source, read
from scdgn.core.config import preset
from scdgn.model.fitting import fit

if TYPE_CHECKING:
    from anndata import AnnData

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
PLATFORMS = ("a", "b", "c", "d")
DEPTH = 300.0  # counts per cell, for the share of entries that are stored
SIMULATED_AT_ONCE = 10_000
EPOCHS = 3
GB = 1e9

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """Seconds; bytes resident at most, and those of them that belong to no file, which the system could not drop; and
    seconds of processors, which other work on the machine does not stretch."""

    seconds: float
    peak: float
    anonymous: float = float("nan")
    busy: float = float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--types", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the files are written; the system's by default")
    options = parser.parse_args()
    print(f"{options.genes:,} genes, {options.types} types, {machine()}")
    print(f"{'':>9} {'CSR':>7} {'stored':>7} | {'training':^31} | {'prediction':^16}")
    print(f"{'cells':>9} {'GB':>7} {'':>7} | {'s/epoch':>8} {'GB':>7} {'GB - 1.5 CSR':>14} | {'s':>8} {'GB':>7}")
    trainings, predictions = [], []
    for cells in options.cells:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            file, model = Path(folder) / "cells.h5ad", Path(folder) / "model"
            csr = apart(write, file, cells, of_platforms(options.genes, options.types))
            training = apart(train, file, model)
            prediction = predict(file, model)
        trainings.append(training.seconds)
        predictions.append(prediction.seconds)
        stored = csr / 8 / cells / options.genes
        print(
            f"{cells:>9,} {csr / GB:>7.3f} {stored:>7.1%} | {training.seconds:>8.2f} {training.peak / GB:>7.2f} "
            f"{(training.peak - 1.5 * csr) / GB:>14.2f} | {prediction.seconds:>8.1f} {prediction.peak / GB:>7.2f}",
            flush=True,
        )
    if len(options.cells) > 1:
        found = (exponent(options.cells, seconds) for seconds in (trainings, predictions))
        print("exponent: training {:.3f}, prediction {:.3f}".format(*found))


def apart(measure: Callable[..., Result], *given: object) -> Result:
    """Call in a process of its own, whose memory starts from nothing."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *given).result()


def of_platforms(genes: int, types: int) -> Simulation:
    """What a cell is like, of four platforms."""
    # A response would be drawn anew in each chunk.
    names = tuple(f"type{i + 1}" for i in range(types))
    return Simulation(dict.fromkeys(PLATFORMS, 1), names, genes=genes, depth=DEPTH, response=0.0)


def write(file: Path, cells: int, like: Simulation) -> int:
    """Write simulated cells, a chunk at a time; the bytes of their values as CSR in memory."""
    import h5py
    import pandas as pd
    from anndata.io import sparse_dataset, write_elem

    tables = []
    with h5py.File(file, "w") as stored:
        stored.attrs["encoding-type"], stored.attrs["encoding-version"] = "anndata", "0.1.0"
        for chunk in simulated(cells, like):
            if "X" in stored:
                sparse_dataset(stored["X"]).append(chunk.X)
            else:
                write_elem(stored, "X", chunk.X, dataset_kwargs={"indptr_dtype": np.int64})
                write_elem(stored, "var", chunk.var)
            tables.append(chunk.obs)
        obs = pd.concat(tables, ignore_index=True)
        write_elem(stored, "obs", obs.set_index(pd.Index([f"cell{i}" for i in range(cells)])))
        return int(stored["X/data"].shape[0]) * 8 + 8 * (cells + 1)


def simulated(cells: int, like: Simulation) -> Iterator[AnnData]:
    """Chunks of cells of the same types on the same platforms, which both come from the seed.

    All draws of a chunk depend on its size, so the chunks are of different sizes.
    """
    left, size = cells, SIMULATED_AT_ONCE
    while left:
        now = left if left < 2 * size else size
        each = {name: (now + place) // len(like.cells) for place, name in enumerate(like.cells)}
        yield simulate(replace(like, cells=each))
        left, size = left - now, size + len(like.cells)


def train(file: Path, model: Path) -> Measured:
    """Train on all cells of a file, and keep the model."""
    cells = read(Source(data=file, fields=Fields(LABELS_KEY, BATCH_KEY)))
    settings = replace(preset("default", "scdgn"), epochs=EPOCHS)
    ends: list[float] = []
    bundle = fit(
        cells.dataset,
        cells.split.train,
        settings,
        PreprocessSettings(),
        [0],
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )
    bundle.save(model)
    return Measured(float(np.diff(ends).mean()), peak(resource.getrusage(resource.RUSAGE_SELF)))


def predict(file: Path, model: Path) -> Measured:
    """Annotate a file by the command line."""
    return command("predict", file, "--model", model, "-o", file.with_name("out.h5ad"), "--quiet")


def command(*words: str | int | Path) -> Measured:
    """A whole command of `scdgn`, whatever it prints."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "scdgn.cli", *map(str, words)], stdout=subprocess.DEVNULL)
    with Anonymous(process.pid) as anonymous:
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"scdgn {words[0]} ended with status {os.waitstatus_to_exitcode(status)}")
    return Measured(time.perf_counter() - start, peak(usage), anonymous.most, usage.ru_utime + usage.ru_stime)


class Anonymous:
    """Looks now and then how much memory of a process, by default this one, belongs to no file; on Linux."""

    def __init__(self, pid: int | None = None) -> None:
        self._status = Path(f"/proc/{os.getpid() if pid is None else pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = float("nan")

    def __enter__(self) -> Anonymous:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            with contextlib.suppress(OSError, StopIteration):  # not Linux, or gone
                lines = self._status.read_text().splitlines()
                kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
                self.most = float(np.nanmax([self.most, kilobytes * 1024]))


def peak(usage: resource.struct_rusage) -> float:
    """Bytes resident at most."""
    return usage.ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def exponent(cells: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(cells), np.log(seconds), 1)[0])


if __name__ == "__main__":
    main()

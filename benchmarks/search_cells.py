"""Is a search of some of the cells as good? The same trials on all training cells of the folds, and on fewer.

    python -m benchmarks.search_cells DATA.h5ad [DATA.h5ad ...] --out FOLDER [--most 500 1000 | --shares 0.2 0.5]
        [--trials 16] [--simulated CELLS] [--epochs MOST]

The largest batch is held out and not looked at. Trials drawn at random from the space of a search (hidden layers of at
most 128 units), the preset among them, are scored by leave-one-domain-out on all training cells, again with other
seeds, and on at most so many cells as `--search-cells` draws them, by number or as shares of the training cells.
Printed, each against the first scores: the rank correlation (Spearman), what is lost by choosing with these scores (the
best score less that of the trial chosen), the processor seconds, and their share of those of all cells. The other seeds
are the ceiling: no fewer cells can be asked to rank trials better than the same ones do. Simulated cells are of 500
genes, ten types and six batches. One thread.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from benchmarks.scale import write
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.simulate import Simulation
from scdgn.cells.sources import Source
from scdgn.search.folder import StudyFolder
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import read_records

HIDDEN = {"low": 32, "high": 128, "log": True}

# Weak markers, so that settings differ.
SIMULATED = Simulation(
    dict.fromkeys("abcdef", 1),
    tuple(f"type{number}" for number in range(10)),
    genes=500,
    depth=400.0,
    marker_strength=0.5,
    response=0.0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--simulated", type=int, help="cells of a set that is simulated, beside the others")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels-key", default="celltype")
    parser.add_argument("--batch-key", default="tech")
    parser.add_argument("--most", type=int, nargs="+", default=[])
    parser.add_argument("--shares", type=float, nargs="+", default=[])
    parser.add_argument("--epochs", type=int, help="the most that a trial may draw")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--method", default="nn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        print(f"{'set':28}{'cells':>8}{'scored with':>16}{'correlation':>13}{'lost':>8}{'seconds':>9}{'of all':>8}")
        for path in options.data:
            compare(path, options)
        if options.simulated:
            options.out.mkdir(parents=True, exist_ok=True)
            file = options.out / f"simulated_{options.simulated}.h5ad"
            write(file, options.simulated, SIMULATED)
            compare(file, options)


def compare(path: Path, options: argparse.Namespace) -> None:
    fields = Fields(options.labels_key, options.batch_key)
    dataset = from_anndata(read_h5ad(path), fields)
    largest = dataset.batch_names[int(np.bincount(dataset.batches).argmax())]
    settings = StudySettings(
        name=f"{path.stem}/all",
        source=Source(data=path, fields=fields, test_batch=largest),
        method=options.method,
        trials=options.trials,
        space={"hidden": HIDDEN} | ({} if options.epochs is None else {"epochs": {"low": 2, "high": options.epochs}}),
        sampler="RandomSampler",
        pruner="NopPruner",
        portfolio=False,
        confirm=0,
        final_seeds=1,
        ensemble=False,
        correct="never",
        search_cells=0,
        studies=options.out,
    )
    expected, seconds = scores(settings)
    searched = settings.spaces()[0].dimensions()
    given = [record.settings for record in read_records(StudyFolder(settings.folder), settings)][1:]
    again = replace(settings, enqueue=tuple({key: one[key] for key in searched if key in one} for one in given))
    cells = int((dataset.batches != dataset.batch_names.index(largest)).sum())
    print(f"{path.stem:28}{cells:8,}{'all of them':>16}{'':13}{'':8}{seconds:9.0f}", flush=True)
    most = [*options.most, *(round(share * cells) for share in options.shares)]
    for label, changes in {
        "other seeds": {"seed": 1},
        **{f"at most {some}": {"search_cells": some} for some in most},
    }.items():
        found, own = scores(replace(again, name=f"{path.stem}/{label}", **changes))
        lost = expected.max() - expected[found.argmax()]
        correlation = spearmanr(expected, found).statistic
        print(f"{'':36}{label:>16}{correlation:13.2f}{lost:8.3f}{own:9.0f}{own / seconds:8.2f}", flush=True)


def scores(settings: StudySettings) -> tuple[NDArray[np.float64], float]:
    """(trials,) scores by number, and the processor seconds of the trials."""
    start = time.process_time()
    run(settings, track=False)
    records = sorted(read_records(StudyFolder(settings.folder), settings), key=lambda record: record.number)
    return np.array([record.value for record in records], dtype=float), time.process_time() - start


if __name__ == "__main__":
    main()

"""Accuracy of NN, DANN and scDGN on real held-out batches: the table of the README.

    python -m benchmarks.accuracy PANCREAS.h5ad PBMC.h5ad SPLITS.json [--preset default] [--seeds 10]

Ten seeds train as one pack per method; mean and standard deviation over the seeds, their ensemble, the ensemble with
its input corrected for the test batch, and the same seeds adapted to it (both transductive). It opens the test batches,
so its results choose nothing: each run is entered in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.timing import machine
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import INPUT_PRESETS
from scdgn.cells.splits import Split, block_split, hold_out, read_blocks
from scdgn.core.config import Method, preset
from scdgn.model.evaluate import evaluate
from scdgn.model.fitting import find_device, fit


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("pancreas", type=Path)
    arguments.add_argument("pbmc", type=Path)
    arguments.add_argument("splits", type=Path)
    arguments.add_argument("--names", nargs="+", help="splits of the file; all by default")
    arguments.add_argument("--preset", default="default")
    arguments.add_argument("--seeds", type=int, default=10)
    options = arguments.parse_args()
    device = find_device("auto")
    print(f"{machine()}; preset {options.preset}, {options.seeds} seeds, mean ± standard deviation")
    heads = f"{'accuracy':>16}{'macro-F1':>16}{'ensemble F1':>13}{'corrected':>11}{'adapted':>9}"
    print(f"{'training cells':38}{'method':8}{heads}")
    on_splits: dict[str, list[tuple[float, ...]]] = {method: [] for method in get_args(Method)}
    for title, dataset, split in tasks(options):
        for method in get_args(Method):
            settings = preset(options.preset, method)
            prepare, seeds = INPUT_PRESETS[options.preset], range(options.seeds)
            bundle = fit(dataset, split.train, settings, prepare, seeds)
            adapted = fit(dataset, split.train, settings, prepare, seeds, query=[dataset.take(split.test)])
            result, *others = (
                evaluate(each, dataset, split, device) for each in (bundle, replace(bundle, corrects=True), adapted)
            )
            assert result is not None
            ensembles = [one.ensemble.macro_f1 for one in (result, *others) if one is not None]
            f1 = [scores.macro_f1 for scores in result.models]
            if title.startswith("PBMC"):
                on_splits[method].append((float(np.mean(f1)), *ensembles))
            columns = [
                f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
                for values in ([scores.accuracy for scores in result.models], f1)
            ]
            words = f"{columns[0]:>16}{columns[1]:>16}{ensembles[0]:13.3f}{ensembles[1]:11.3f}{ensembles[2]:9.3f}"
            print(f"{title:38}{method:8}{words}", flush=True)
    for method, means in on_splits.items():
        names = ("one seed", "ensemble", "corrected", "adapted")
        told = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(names, np.mean(means, axis=0), strict=True))
        print(f"mean macro-F1 over {len(means)} PBMC splits, {method}: {told}")


def tasks(options: argparse.Namespace) -> Iterator[tuple[str, Dataset, Split]]:
    pancreas = from_anndata(read_h5ad(options.pancreas), Fields("celltype", "tech"))
    split = hold_out(pancreas, "fluidigmc1")
    yield f"pancreas, fluidigmc1 out ({len(split.scored)})", pancreas, split
    adata = read_h5ad(options.pbmc)
    for name in options.names or json.loads(options.splits.read_text())["splits"]:
        blocks = read_blocks(f"{options.splits}:{name}")
        pbmc = from_anndata(adata, Fields(blocks.labels_key, blocks.batch_key))
        split = block_split(pbmc, blocks)
        yield f"PBMC {name}, {blocks.test_domain} ({len(split.scored)})", pbmc, split


if __name__ == "__main__":
    main()

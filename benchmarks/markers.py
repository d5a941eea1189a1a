"""Variable genes against genes that mark types, in folds: by data set and number of markers.

    python -m benchmarks.markers DATA.h5ad ... [--splits PBMC.h5ad SPLITS.json] [--markers 10 25 50 100 200]

Of every file (obs `celltype` and `tech`) up to three batches are left out in turn, those with most cells to score; of
the splits every training domain, inside the training domains: their test domain is never looked at. The plain network
(default preset, without a search) is trained on the others, with so many seeds, and scored on the batch left out.
Printed: the number of genes and macro-F1, means over folds and seeds, and the standard error over folds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import machine
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.normalize import log_normalized
from scdgn.cells.preprocess import fit
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.splits import Fold, block_split, leave_one_domain_out, read_blocks
from scdgn.core.config import preset
from scdgn.core.metrics import macro_f1
from scdgn.core.pack.members import Member
from scdgn.core.training import train
from scdgn.model.fitting import find_device, training_cells

Folds = list[tuple[Dataset, Fold]]

MOST_FOLDS = 3
"""Batches of a file that are left out."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path, nargs="*")
    arguments.add_argument("--splits", type=Path, nargs=2, metavar=("DATA.h5ad", "SPLITS.json"))
    arguments.add_argument("--markers", type=int, nargs="*", default=[10, 25, 50, 100, 200])
    arguments.add_argument("--seeds", type=int, default=3)
    options = arguments.parse_args()
    named = {path.stem: folds_of_batches(path) for path in options.data}
    if options.splits:
        named[options.splits[0].stem] = folds_of_splits(*options.splits)
    ways = {"variable": PreprocessSettings()}
    ways |= {f"{n} markers": PreprocessSettings(gene_selection="markers", markers_per_type=n) for n in options.markers}
    print(f"{machine()}; {options.seeds} seeds")
    print(f"{'data':26}{'folds':>6}  {'genes':14}{'number':>7}{'macro-F1':>10}{'error':>8}")
    for name, folds in named.items():
        for way, preprocess in ways.items():
            genes, scores = scored(folds, preprocess, options.seeds)
            error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
            print(f"{name:26}{len(folds):6}  {way:14}{genes:7.0f}{scores.mean():10.3f}{error:8.3f}", flush=True)


def folds_of_batches(path: Path) -> Folds:
    dataset = log_normalized(from_anndata(read_h5ad(path), Fields("celltype", "tech")))
    folds = leave_one_domain_out(dataset.labels, dataset.batches, np.arange(len(dataset)), dataset.batch_names)
    return [(dataset, fold) for fold in sorted(folds, key=lambda fold: -len(fold.scored))[:MOST_FOLDS]]


def folds_of_splits(data: Path, splits: Path) -> Folds:
    adata, found = read_h5ad(data), []
    for name in json.loads(splits.read_text())["splits"]:
        blocks = read_blocks(f"{splits}:{name}")
        dataset = log_normalized(from_anndata(adata, Fields(blocks.labels_key, blocks.batch_key)))
        rows = block_split(dataset, blocks).train
        folds = leave_one_domain_out(dataset.labels, dataset.batches, rows, dataset.batch_names)
        found += [(dataset, fold) for fold in folds]
    return found


def scored(folds: Folds, preprocess: PreprocessSettings, seeds: int) -> tuple[float, np.ndarray]:
    """Mean number of genes, and macro-F1 of every fold, (folds,); a model that diverged is worth nothing."""
    device, settings = find_device("auto"), preset("default", "nn")
    members, held_out, genes = [], [], []
    for dataset, fold in folds:
        preprocessing = fit(dataset, fold.train, preprocess)
        genes.append(len(preprocessing.genes))
        cells, _ = training_cells(preprocessing, dataset, fold.train, (), device, settings.hidden)
        members += [Member(settings, cells, seed) for seed in range(seeds)]
        x = torch.from_numpy(preprocessing.transform(dataset, fold.scored))
        held_out += [(x, dataset.labels[fold.scored])] * seeds
    scores = [
        0.0 if outcome.model is None else macro_f1(labels, outcome.model.probabilities(x).argmax(dim=1).numpy())
        for outcome, (x, labels) in zip(train(members, device), held_out, strict=True)
    ]
    return float(np.mean(genes)), np.reshape(scores, (len(folds), seeds)).mean(axis=1)


if __name__ == "__main__":
    main()

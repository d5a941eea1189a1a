"""How the `default` preset was found: random search, scored by leave-one-domain-out inside the training domains.

    python -m benchmarks.presets DATA.h5ad SPLITS.json --out RECORDS.jsonl [--configurations 60] [--again 6]

For every split of the file and every fold inside its training domains a model is trained and scored on the domain left
out (macro-F1); the test domain is never looked at. A configuration's score is the mean over all folds of all splits.
Every method draws the same number of configurations; the best `--again` of each are scored anew with two other seeds,
and the printed order is by those alone. Records are appended as they come, and a configuration on record is not run
again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch

from scdgn.config import Settings
from scdgn.data import Dataset, Fields, from_anndata, read_h5ad
from scdgn.fitting import training_cells
from scdgn.metrics import macro_f1
from scdgn.pack import Cells, Member
from scdgn.preprocess import PreprocessSettings, fit, log_normalized
from scdgn.splits import Fold, block_split, leave_one_domain_out, read_blocks
from scdgn.training import train

METHODS = ("nn", "dann", "scdgn")
FIRST_SEED, OTHER_SEEDS = 0, (1, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("splits", type=Path)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--configurations", type=int, default=40)
    arguments.add_argument("--again", type=int, default=5)
    arguments.add_argument("--methods", nargs="+", default=METHODS)
    options = arguments.parse_args()
    task = Task(options.data, options.splits)
    records = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for number in range(options.configurations):
        for method in options.methods:
            score(task, draw(method, number), method, number, FIRST_SEED, records, options.out)
    for method in options.methods:
        first = [r for r in records if r["method"] == method and r["seed"] == FIRST_SEED]
        best = sorted(first, key=lambda record: -record["score"])[: options.again]
        for record in best:
            for seed in OTHER_SEEDS:
                score(task, draw(method, record["number"]), method, record["number"], seed, records, options.out)
        print(f"\n{method}: mean over the folds with new seeds (and with the first), configuration")
        for mean, record in sorted(
            ((mean_again(records, record), record) for record in best), key=lambda pair: -pair[0]
        ):
            print(f"  {mean:.3f} ({record['score']:.3f}) {json.dumps(record['configuration'])}")


def mean_again(records: list[dict], record: dict) -> float:
    key = (record["method"], record["number"])
    return float(
        np.mean([r["score"] for r in records if (r["method"], r["number"]) == key and r["seed"] != FIRST_SEED])
    )


def draw(method: str, number: int) -> tuple[Settings, str]:
    """Configuration `number`; what methods have in common is drawn alike for all of them."""
    draws = np.random.default_rng(number)

    def one_of(*choices: object) -> object:
        return choices[draws.integers(len(choices))]

    sizes = one_of((64, 32, 16), (128, 64, 32), (256, 64, 32))
    common = {
        "hidden": sizes[0],
        "latent": sizes[1],
        "domain_code": sizes[2],
        "lr": one_of(3e-4, 1e-3, 3e-3),
        "weight_decay": one_of(1e-4, 1e-2, 1e-1, 1.0),
        "dropout": one_of(0.0, 0.2, 0.5),
        "epochs": one_of(15, 30),
        "batch_size": one_of(128, 256),
        "balance_domains": one_of(True, False),
        "class_weights": one_of("none", "sqrt", "balanced"),
    }
    scaling = one_of("none", "standard")
    adversary = {
        "lambda_max": one_of(0.03, 0.1, 0.3, 1.0, 3.0),
        "schedule": one_of("constant", "sigmoid", "linear", "cosine"),
        "lambda_enters": one_of("loss", "reversal"),
    }
    pairs = {"margin": one_of(0.3, 1.0, 3.0), "pairing": one_of("batch", "epoch")}
    mine = {"nn": {}, "dann": adversary, "scdgn": {**adversary, **pairs}}[method]
    return Settings(method=method, **common, **mine), str(scaling)


def score(
    task: Task, configuration: tuple[Settings, str], method: str, number: int, seed: int, records: list[dict], out: Path
) -> None:
    """Train a configuration on every fold as one pack, and put its score on record."""
    if any((r["method"], r["number"], r["seed"]) == (method, number, seed) for r in records):
        return
    settings, scaling = configuration
    start = time.perf_counter()
    folds = task.folds(scaling)
    outcomes = train([Member(settings, cells, seed) for cells, _, _ in folds])
    scores = []
    for outcome, (_, held_out, labels) in zip(outcomes, folds, strict=True):
        # A model that diverged is worth nothing.
        predicted = outcome.model and outcome.model.probabilities(held_out).argmax(dim=1).numpy()
        scores.append(0.0 if predicted is None else macro_f1(labels, predicted))
    record = {
        "method": method,
        "number": number,
        "seed": seed,
        "score": float(np.mean(scores)),
        "folds": scores,
        "seconds": round(time.perf_counter() - start, 1),
        "configuration": {**asdict(settings), "scaling": scaling},
    }
    records.append(record)
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{method:6} {number:3} seed {seed}: {record['score']:.3f}, {record['seconds']} s", flush=True)


class Task:
    """All folds of all splits."""

    def __init__(self, data: Path, splits: Path) -> None:
        adata = read_h5ad(data)
        names = json.loads(splits.read_text())["splits"]
        self._folds: list[tuple[Dataset, Fold]] = []
        for name in names:
            blocks = read_blocks(f"{splits}:{name}")
            dataset = log_normalized(from_anndata(adata, Fields(blocks.labels_key, blocks.batch_key)))
            rows = block_split(dataset, blocks).train
            folds = leave_one_domain_out(dataset.labels, dataset.batches, rows, dataset.batch_names)
            self._folds += [(dataset, fold) for fold in folds]

    @cache  # noqa: B019  (one task lives as long as the script)
    def folds(self, scaling: str) -> list[tuple[Cells, torch.Tensor, np.ndarray]]:
        """Training cells, and the cells that are scored with their types, of every fold."""
        prepared = []
        for dataset, fold in self._folds:
            preprocessing = fit(dataset, fold.train, PreprocessSettings(scaling=scaling))
            cells, _ = training_cells(preprocessing, dataset, fold.train)
            held_out = torch.from_numpy(preprocessing.transform(dataset, fold.scored))
            prepared.append((cells, held_out, dataset.labels[fold.scored]))
        return prepared


if __name__ == "__main__":
    main()

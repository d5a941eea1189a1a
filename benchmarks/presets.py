"""How the `default` preset was found: random search, scored by leave-one-domain-out inside the training domains.

    python -m benchmarks.presets DATA.h5ad SPLITS.json --out RECORDS.jsonl [--configurations 30] [--again 4]

For every split of the file and every fold inside its training domains a model is trained and scored on the domain left
out (macro-F1); the test domain is never looked at. A configuration's score is the mean over all folds of all splits.

First the settings that all methods share are drawn and scored with the plain network; the adversary's are then drawn on
top of the best of them, as many for dann as for scdgn. At both stages the best `--again` are scored anew with two other
seeds, and chosen by those alone. Records are appended as they come, and what is on record is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdgn.config import Precision, Settings
from scdgn.data import Dataset, Fields, from_anndata, read_h5ad
from scdgn.fitting import training_cells
from scdgn.metrics import macro_f1
from scdgn.pack import Cells, Member
from scdgn.preprocess import PreprocessSettings, fit, log_normalized
from scdgn.splits import Fold, block_split, leave_one_domain_out, read_blocks
from scdgn.training import train

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIRST_SEED, OTHER_SEEDS = 0, (1, 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("splits", type=Path)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--configurations", type=int, default=30)
    arguments.add_argument("--again", type=int, default=4)
    arguments.add_argument("--methods", nargs="*", default=["dann", "scdgn"])
    options = arguments.parse_args()
    records = Records(options.out, Task(options.data, options.splits))
    shared = best_of(records, [draw_shared(number) for number in range(options.configurations)], options.again)
    for method in options.methods:
        drawn = [{**shared, **draw_adversary(method, number)} for number in range(options.configurations)]
        best_of(records, drawn, options.again)


def best_of(records: Records, configurations: list[dict], again: int) -> dict:
    """The best configuration; prints the best few."""
    configurations = [drawn for i, drawn in enumerate(configurations) if drawn not in configurations[:i]]
    first = {i: records.score(configuration, FIRST_SEED) for i, configuration in enumerate(configurations)}
    best = sorted(first, key=lambda i: -first[i])[:again]
    anew = {i: float(np.mean([records.score(configurations[i], seed) for seed in OTHER_SEEDS])) for i in best}
    print("\nnew seeds  first seed  configuration")
    for i in sorted(best, key=lambda i: -anew[i]):
        print(f"{anew[i]:9.3f}  {first[i]:10.3f}  {json.dumps(configurations[i])}", flush=True)
    return configurations[max(best, key=lambda i: anew[i])]


def draw_shared(number: int) -> dict:
    """What all methods share."""
    one_of = choices(number)
    hidden, latent, domain_code = one_of((64, 32, 16), (128, 64, 32), (256, 64, 32))
    return {
        "method": "nn",
        "hidden": hidden,
        "latent": latent,
        "domain_code": domain_code,
        "lr": one_of(3e-4, 1e-3, 3e-3),
        "weight_decay": one_of(1e-2, 1e-1, 1.0, 3.0),
        "dropout": one_of(0.0, 0.2, 0.5, 0.7),
        "epochs": one_of(15, 30),
        "batch_size": one_of(64, 128, 256),
        "balance_domains": one_of(True, False),
        "class_weights": one_of("none", "sqrt", "balanced"),
        "scaling": one_of("none", "standard"),
    }


def draw_adversary(method: str, number: int) -> dict:
    """What the adversary adds; what dann and scdgn have in common is drawn alike."""
    one_of = choices(number)
    adversary = {
        "method": method,
        "lambda_max": one_of(0.01, 0.03, 0.1, 0.3, 1.0),
        "schedule": one_of("constant", "sigmoid", "linear", "cosine"),
        "lambda_enters": one_of("loss", "reversal"),
    }
    if method == "dann":
        return adversary
    return {**adversary, "margin": one_of(0.3, 1.0, 3.0), "pairing": one_of("batch", "epoch")}


def choices(number: int) -> Callable[..., Any]:
    draws = np.random.default_rng(number)
    return lambda *values: values[draws.integers(len(values))]


class Records:
    """Scores by configuration and seed, kept in a file."""

    def __init__(self, path: Path, task: Task) -> None:
        self._path = path
        self._task = task
        lines = path.read_text().splitlines() if path.exists() else []
        self._scores = {self._key(r["configuration"], r["seed"]): r["score"] for r in map(json.loads, lines)}

    def score(self, configuration: dict, seed: int) -> float:
        """Mean macro-F1 over all folds; trained, as one pack, if it is not on record."""
        key = self._key(configuration, seed)
        if key not in self._scores:
            start = time.perf_counter()
            scores = self._task.scores(configuration, seed)
            self._scores[key] = float(np.mean(scores))
            record = {
                "score": self._scores[key],
                "seed": seed,
                "seconds": round(time.perf_counter() - start, 1),
                "configuration": configuration,
                "folds": [round(score, 4) for score in scores],
            }
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return self._scores[key]

    @staticmethod
    def _key(configuration: dict, seed: int) -> tuple[str, int]:
        return json.dumps(configuration, sort_keys=True), seed


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

    def scores(self, configuration: dict, seed: int, precision: Precision = "tf32") -> list[float]:
        """Macro-F1 of every fold; a model that diverged is worth nothing."""
        chosen = dict(configuration)
        folds = self._prepared(chosen.pop("scaling"))
        settings = Settings.from_mapping(chosen)
        outcomes = train([Member(settings, cells, seed) for cells, _, _ in folds], DEVICE, precision=precision)
        scores = []
        for outcome, (_, held_out, labels) in zip(outcomes, folds, strict=True):
            if outcome.model is None:
                scores.append(0.0)
            else:
                scores.append(macro_f1(labels, outcome.model.probabilities(held_out).argmax(dim=1).numpy()))
        return scores

    @cache  # noqa: B019  (one task lives as long as the script)
    def _prepared(self, scaling: str) -> list[tuple[Cells, torch.Tensor, np.ndarray]]:
        """Training cells, and the cells that are scored with their types, of every fold."""
        prepared = []
        for dataset, fold in self._folds:
            preprocessing = fit(dataset, fold.train, PreprocessSettings(scaling=scaling))
            cells, _ = training_cells(preprocessing, dataset, fold.train, (), DEVICE, units=128)
            held_out = torch.from_numpy(preprocessing.transform(dataset, fold.scored))
            prepared.append((cells, held_out, dataset.labels[fold.scored]))
        return prepared


if __name__ == "__main__":
    main()

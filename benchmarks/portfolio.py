"""Settings to begin a search with: found on several data sets, judged on one that took no part.

    python -m benchmarks.portfolio DATA_DIR --splits SPLITS.json --out RECORDS.jsonl [--configurations 60] [--size 6]

Configurations are drawn for the plain network, then adversaries on top of the best of them, as many for dann as for
scdgn. Each is scored by macro-F1 on leave-one-domain-out folds (at most three a set, domains in groups): of the
training domains of two confounded PBMC splits, and of all batches of every other file of DATA_DIR (obs `celltype` and
`tech`).
Records are appended as they come, and what is on record is not run again; `--choose` runs nothing.

A portfolio is chosen greedily: each entry is the configuration that most raises the mean over the sets of the best
score in the portfolio, as a search that tries all of it would find; scores are taken relative to the best of their set.
Printed: the portfolio of each method, and, leaving one set out in turn, what the portfolio of the other sets reaches on
it, against the default preset and as many random configurations. An hour and a half of one CPU thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.normalize import log_normalized
from scdgn.cells.preprocess import fit
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.cells.splits import Fold, block_split, leave_one_domain_out, read_blocks
from scdgn.core.config import Precision, Settings, preset
from scdgn.core.metrics import macro_f1
from scdgn.core.pack.members import Cells, Member
from scdgn.core.training import train
from scdgn.model.fitting import training_cells

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFOUNDED = ("split1", "split5")
FOLDS = 3
TOP = 8
"""Configurations of the plain network that adversaries are drawn on top of."""

PREPARES = {field.name for field in fields(PreprocessSettings)}
METHODS = ("nn", "dann", "scdgn")

Configuration = dict[str, Any]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--configurations", type=int, default=60)
    parser.add_argument("--size", type=int, default=6)
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(options.out, Task.of(options))
    for method in METHODS:
        if not options.choose:
            records.run(method, [{}, *(draw(method, number, records) for number in range(options.configurations))])
        report(method, records.of(method), options.size)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Of the scripts on these folds: where the data are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--confounded", default="pbmc_5batch", help="the file that the splits are of")
    return parser


def draw(method: str, number: int, records: Records) -> Configuration:
    """What a configuration changes of the preset: of the plain network all, of the others the adversary."""
    draws = np.random.default_rng([METHODS.index(method), number])

    def one(*values: Any) -> Any:
        return values[draws.integers(len(values))]

    def between(low: float, high: float) -> float:
        return float(f"{np.exp(draws.uniform(np.log(low), np.log(high))):.2g}")

    if method == "nn":
        genes = one(None, None, 50, 100, 200)
        return {
            "hidden": one(64, 128),
            "latent": one(32, 64),
            "lr": between(3e-4, 5e-3),
            "weight_decay": between(3e-3, 5),
            "dropout": one(0.0, 0.2, 0.4, 0.6, 0.7),
            "epochs": int(between(12, 100)),
            "class_weights": one("none", "sqrt", "balanced"),
            "balance_domains": one(False, False, True),
            "scaling": one("none", "none", "standard"),
            **({"gene_selection": "markers", "markers_per_type": genes} if genes else {"gene_selection": "variable"}),
            "shift_probability": one(0.0, 0.5, 0.9),
        }
    plain = records.best("nn", TOP)
    shared = plain[number % len(plain)]
    adversary = {
        "shift_relabel": bool(shared.get("shift_probability")) and one(True, True, False),
        "lambda_max": between(0.02, 3),
        "lambda_enters": one("loss", "reversal"),
        "schedule": one("constant", "sigmoid", "linear", "cosine"),
        "warmup": one(0.3, 0.6, 0.9),
    }
    return {**shared, **adversary, **({"margin": between(0.2, 10)} if method == "scdgn" else {})}


class Records:
    """Scores of configurations by set, kept in a file."""

    def __init__(self, path: Path, task: Task) -> None:
        self._path = path
        self._task = task
        lines = path.read_text().splitlines() if path.exists() else []
        self._records = [json.loads(line) for line in lines]

    def of(self, method: str) -> list[dict[str, Any]]:
        """Of a method, the preset's first."""
        return [record for record in self._records if record["method"] == method]

    def best(self, method: str, count: int) -> list[Configuration]:
        """The configurations with the best mean score over the sets."""
        ranked = sorted(self.of(method), key=lambda record: -np.mean([np.mean(s) for s in record["scores"].values()]))
        return [record["configuration"] for record in ranked[:count]]

    def run(self, method: str, configurations: Sequence[Configuration]) -> None:
        """Score those that are not on record."""
        known = [record["configuration"] for record in self.of(method)]
        for configuration in configurations:
            if configuration in known:
                continue
            start = time.perf_counter()
            scores = {name: self._task.scores(name, method, configuration) for name in self._task.names}
            seconds = round(time.perf_counter() - start, 1)
            record = {"method": method, "configuration": configuration, "scores": scores, "seconds": seconds}
            self._records.append(record)
            known.append(configuration)
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")


class Task:
    """The folds of all sets."""

    def __init__(self, data: Path, splits: Path, confounded: str) -> None:
        self._data, self._splits, self._confounded = data, splits, confounded
        self.names = [confounded, *(path.stem for path in sorted(data.glob("*.h5ad")) if path.stem != confounded)]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Task:
        """Of `arguments`."""
        return cls(options.data, options.splits, options.confounded)

    def scores(
        self, name: str, method: str, configuration: Configuration, seed: int = 0, precision: Precision = "tf32"
    ) -> list[float]:
        """Macro-F1 of every fold; a model that diverged is worth nothing."""
        prepare = {key: value for key, value in configuration.items() if key in PREPARES}
        changes = {key: value for key, value in configuration.items() if key not in PREPARES}
        settings = Settings.from_mapping(changes, preset("default", method))  # type: ignore[arg-type]
        units = self._prepared(name, replace(INPUT_PRESETS["default"], **prepare))
        outcomes = train([Member(settings, cells, seed) for cells, _, _ in units], DEVICE, precision=precision)
        found = []
        for outcome, (_, x, labels) in zip(outcomes, units, strict=True):
            predicted = None if outcome.model is None else outcome.model.probabilities(x).argmax(dim=1).numpy()
            found.append(0.0 if predicted is None else round(macro_f1(labels, predicted), 4))
        return found

    @cache  # noqa: B019  (one task lives as long as the script)
    def folds(self, name: str) -> list[tuple[Dataset, Fold]]:
        """Of a set: the cells, log-normalised, and which of them train and are scored."""
        adata, found = read_h5ad(self._data / f"{name}.h5ad"), []
        if name != self._confounded:
            dataset = log_normalized(from_anndata(adata, Fields("celltype", "tech")))
            parts = [(dataset, np.arange(len(dataset)))]
        else:
            blocks = [read_blocks(f"{self._splits}:{split}") for split in CONFOUNDED]
            datasets = [log_normalized(from_anndata(adata, Fields(one.labels_key, one.batch_key))) for one in blocks]
            parts = [(each, block_split(each, one).train) for each, one in zip(datasets, blocks, strict=True)]
        for dataset, rows in parts:
            most = 5 if name == self._confounded else FOLDS
            folds = leave_one_domain_out(dataset.labels, dataset.batches, rows, dataset.batch_names, most, 2)
            found += [(dataset, fold) for fold in folds]
        return found

    @cache  # noqa: B019
    def _prepared(self, name: str, prepare: PreprocessSettings) -> list[tuple[Cells, torch.Tensor, NDArray[np.int64]]]:
        found = []
        for dataset, fold in self.folds(name):
            preprocessing = fit(dataset, fold.train, prepare)
            cells, _ = training_cells(preprocessing, dataset, fold.train, (), DEVICE, units=0)
            x = torch.from_numpy(preprocessing.transform(dataset, fold.scored))
            found.append((cells, x, dataset.labels[fold.scored]))
        return found


def chosen(scores: NDArray[np.float64], size: int) -> list[int]:
    """A greedy portfolio: rows of (configurations, sets)."""
    relative = scores - scores.max(axis=0)
    taken: list[int] = []
    best = np.full(scores.shape[1], -np.inf)
    for _ in range(min(size, len(scores))):
        gains = np.maximum(relative, best).mean(axis=1)
        # Where none gains any more, the best by itself goes on.
        order = np.lexsort((-relative.mean(axis=1), -gains.round(4)))
        row = next(int(row) for row in order if row not in taken)
        taken.append(row)
        best = np.maximum(best, relative[row])
    return taken


def report(method: str, records: Sequence[Mapping[str, Any]], size: int) -> None:
    names = list(records[0]["scores"])
    scores = np.array([[np.mean(record["scores"][name]) for name in names] for record in records])
    print(f"\n{method}: {len(records)} configurations\n{'':12}" + "".join(f"{name[:12]:>14}" for name in names))
    base = next(row for row, record in enumerate(records) if not record["configuration"])

    def line(title: str, values: Sequence[float]) -> None:
        print(f"{title:12}" + "".join(f"{value:14.3f}" for value in values) + f"{np.mean(values):10.3f}", flush=True)

    line("preset", scores[base])
    line("best of all", scores.max(axis=0))
    apart: Callable[[int, int], float] = lambda place, count: max(  # noqa: E731
        scores[row, place] for row in chosen(np.delete(scores, place, axis=1), count)
    )
    random = np.random.default_rng(0)
    draws = [random.permutation(len(records)) for _ in range(200)]
    for count in (1, 3, size):
        line(f"apart {count}", [apart(place, count) for place in range(len(names))])
        line(f"random {count}", np.mean([scores[order[:count]].max(axis=0) for order in draws], axis=0).tolist())
    for row in chosen(scores, size):
        print(f"  {scores[row].mean():.3f}  {json.dumps(records[row]['configuration'])}")


if __name__ == "__main__":
    main()

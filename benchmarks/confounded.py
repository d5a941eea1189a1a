"""Tuned nn, dann and scdgn against each other where batch and cell type are confounded.

    python -m benchmarks.confounded DATA.h5ad SPLITS.json --out STUDIES [--trials 30] [--adapt] [--only SPLIT ...]

The space is the default one but for hidden layers of at most 256 units: wide ones gain nothing on these few cells, and
take most of the time on a CPU.

For every split of the file and every method one study with the same budget: trials scored by leave-one-domain-out
inside the training domains, the winner trained again with ten seeds, and scored once on the test domain. Every study is
a folder under STUDIES and is not run again when it is done; a run that was cut off goes on. Two processes may share the
work by `--only`. Printed: accuracy and macro-F1 on the test domain (mean and standard deviation over the seeds), the
score by which the winner was selected, and the difference to nn per split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from scdgn.sources import Source
from search.settings import StudySettings
from search.studies import run
from search.watching import Watcher

METHODS = ("nn", "dann", "scdgn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--final-seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--adapt", action="store_true", help="dann and scdgn only; compare with a run without it")
    parser.add_argument("--only", nargs="*", help="these splits alone")
    options = parser.parse_args()
    names = options.only or list(json.loads(options.splits.read_text())["splits"])
    methods = [method for method in options.methods if not (options.adapt and method == "nn")]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        for method in methods:
            source = Source(data=options.data, split=f"{options.splits}:{name}", adapt=options.adapt)
            settings = StudySettings(
                name=f"{name}/{method}{'-adapt' if options.adapt else ''}",
                source=source,
                method=method,
                trials=options.trials,
                final_seeds=options.final_seeds,
                space={"hidden": {"low": 32, "high": 256, "log": True}},
                studies=options.out,
            )
            (results.setdefault(name, {})[method],) = run(settings, Progress(settings.name), track=False)
        report(results, methods)


class Progress(Watcher):
    """A line per study."""

    def __init__(self, name: str) -> None:
        self._name = name

    def stage(self, text: str) -> None:
        """What is done now."""
        print(f"{self._name}: {text}", flush=True)


def report(results: dict[str, dict[str, Any]], methods: list[str]) -> None:
    print(
        f"\n{'split':8} {'method':6} {'selected at':>11} {'accuracy':>15} {'macro-F1':>15} {'ensemble':>8} {'to nn':>7}"
    )
    rows: dict[str, list[tuple[float, ...]]] = {method: [] for method in methods}
    for name, summaries in results.items():
        for method, summary in summaries.items():
            test = summary["final"]["test"]
            accuracy, f1 = test["accuracy"], test["macro_f1"]
            baseline = summaries.get("nn")
            gain = f1["mean"] - baseline["final"]["test"]["macro_f1"]["mean"] if baseline else np.nan
            selected = summary["winner"]["score"]
            rows[method].append((selected, accuracy["mean"], f1["mean"], f1["ensemble"], gain))
            print(
                f"{name:8} {method:6} {selected:11.3f} {accuracy['mean']:7.3f} ± {accuracy['std']:.3f} "
                f"{f1['mean']:7.3f} ± {f1['std']:.3f} {f1['ensemble']:8.3f} {gain:+7.3f}"
            )
    for method, values in rows.items():
        selected, accuracy, f1, ensemble, gain = np.mean(values, axis=0)
        means = f"{accuracy:7.3f}{'':8} {f1:7.3f}{'':8} {ensemble:8.3f} {gain:+7.3f}"
        print(f"{'mean':8} {method:6} {selected:11.3f} {means}", flush=True)
    adapting = [one["adapted"] for summaries in results.values() for one in summaries.values() if one["adapt"]]
    if adapting:
        print(f"{adapting.count(False)} of {len(adapting)} searches chose not to adapt", flush=True)


if __name__ == "__main__":
    main()

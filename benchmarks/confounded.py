"""Tuned nn, dann and scdgn against each other where batch and cell type are confounded.

    python -m benchmarks.confounded DATA.h5ad SPLITS.json --out STUDIES [--trials 30] [--adapt] [--only SPLIT ...]

The space is the default one but for hidden layers of at most 256 units: wide ones gain nothing on these few cells, and
take most of the time on a CPU.

For every split of the file and every method one study with the same budget: trials scored by leave-one-domain-out
inside the training domains, the winner trained again with ten seeds, and scored once on the test domain
(`scdgn.analysis.reproduction`). Every study is a folder under STUDIES/confounded (confounded-adapt with --adapt, which
nn has no use for) and is not run again when it is done; a run that was cut off goes on. Two processes may share the
work by `--only`. Printed: the score by which each winner was selected; macro-F1 and accuracy on the test domain, mean
and standard deviation over the seeds, and the ensemble's; and the difference to nn in macro-F1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scdgn.analysis.chapters.tables import table2
from scdgn.analysis.reproduction import reproduce, split_sources
from scdgn.analysis.studies.results import Results, grouped, read_all
from scdgn.cells.sources import Source
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.study.settings import StudySettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--final-seeds", type=int, default=10)
    parser.add_argument("--adapt", action="store_true", help="dann and scdgn only; compare with a run without it")
    parser.add_argument("--only", nargs="*", help="these splits alone")
    options = parser.parse_args()
    sources = split_sources(options.data, options.splits)
    settings = StudySettings(
        name="confounded-adapt" if options.adapt else "confounded",
        source=Source(adapt=options.adapt),
        trials=options.trials,
        final_seeds=options.final_seeds,
        space={"hidden": {"low": 32, "high": 256, "log": True}},
        studies=options.out,
    )
    names = reproduce(settings, {name: sources[name] for name in options.only or sources}, Progress(), track=False)
    report(read_all(options.out, names)[0])


class Progress(Watcher):
    """A line per stage of a study."""

    def __init__(self) -> None:
        self._name = ""

    def begun(self, study: Begun) -> None:
        """Which study it is."""
        self._name = study.settings.name
        print(f"{self._name}: searching", flush=True)

    def stage(self, text: str, amount: float = 0.0) -> None:
        """What is done now."""
        print(f"{self._name}: {text}", flush=True)


def report(results: Sequence[Results]) -> None:
    table = table2(grouped(results))
    table["selected"] = table["study"].map({one.name: one.search.winner.score for one in results})
    scores = table.pivot(index=["data_set", "method"], columns="metric", values=["mean", "std", "ensemble"])
    rows = pd.DataFrame({"selected at": table.groupby(["data_set", "method"], sort=False)["selected"].first()})
    for metric in ("macro_f1", "accuracy"):
        for number in ("mean", "std", "ensemble"):
            rows[f"{metric} {number}"] = scores[number, metric]
    rows["to nn"] = rows["macro_f1 mean"] - rows["macro_f1 mean"].xs("nn", level="method").reindex(rows.index, level=0)
    print(rows.to_string(float_format="{:.3f}".format))
    means = rows.groupby("method", sort=False).mean().drop(columns=["macro_f1 std", "accuracy std"])
    print(f"\nmeans\n{means.to_string(float_format='{:.3f}'.format)}", flush=True)
    adapting = [one.search.adapted for one in results if one.search.adapt]
    if adapting:
        print(f"{adapting.count(False)} of {len(adapting)} searches chose not to adapt", flush=True)


if __name__ == "__main__":
    main()

"""Peers beside NN, DANN and scDGN: one table, one figure, one section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scdgn.analysis.page.sections import Item, Picture, Section, Table, Text
from scdgn.analysis.page.style import GREY, METHOD_COLOURS, canvas, plain, styled
from scdgn.analysis.peers.catalogue import PEERS
from scdgn.analysis.peers.comparing import read
from scdgn.analysis.studies import published
from scdgn.analysis.studies.results import TITLES, Group, Results
from scdgn.search.shown.overview import METRIC
from scdgn.search.summary import FinalScores

OURS, PEER, PUBLISHED = "ours", "peer", "published"
"""Kinds of rows."""

QUOTED = ("MNN", "Seurat", "CaSTLe", "scVI")
"""Methods of the paper's table that are not ours."""

MOST_COLUMNS = 8
"""Data sets that have a column each; of more, the mean stands for all."""

_SHOWN = ("macro_f1", "accuracy")


def table(groups: Sequence[Group]) -> pd.DataFrame:
    """Ours, the peers that ran, and what the paper says of others, on the same test cells.

    Returns
    -------
    A row per data set and method: `data_set`, `cells` (test cells scored, of ours), `kind` (`ours`, `peer`,
    `published`), `method` (as it is written), `settings` (`tuned` with as many trials as ours, `fewer trials`,
    `defaults`, `published`), `trials`, `sees_test` (whether the unlabelled test cells took part in training), `seeds`
    of the winner, `macro_f1` and `accuracy` on the test cells (means over the seeds, NaN where there is none) with
    `macro_f1_std` and `accuracy_std`, `seconds` of the search (wall time), and `reason`, where a peer came to nothing.
    """
    rows = [row for group in groups for row in _rows(group)]
    columns = [
        "data_set", "cells", "kind", "method", "settings", "trials", "sees_test", "seeds", "macro_f1", "macro_f1_std",
        "accuracy", "accuracy_std", "seconds", "reason",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def draw(compared: pd.DataFrame, metric: str = "macro_f1") -> Figure:
    """A line per method of `table`: its score on every data set, and the mean where it has all of them."""
    found = compared[compared[metric].notna()]
    methods = _in_order(compared, metric)
    sets = found["data_set"].nunique()
    with styled():
        figure, axes = canvas(8, 1.1 + 0.3 * max(len(methods), 1), least=6)
        panel: Axes = axes[0, 0]
        for place, label in enumerate(methods):
            rows = found[found["method"] == label]
            colour = _COLOURS.get(label, GREY)
            tuned = rows["settings"] == "tuned"
            for part, filling in ((rows[tuned], colour), (rows[~tuned], "white")):
                spread = part[f"{metric}_std"].fillna(0) if sets == 1 else None
                panel.errorbar(
                    part[metric], np.full(len(part), place), xerr=spread, fmt="o", color=colour, mfc=filling,
                    markersize=5, elinewidth=1, capsize=2,
                )  # fmt: skip
            if sets > 1 and len(rows) == sets:
                panel.plot([rows[metric].mean()] * 2, [place - 0.35, place + 0.35], color="black", lw=2)
        panel.set_yticks(range(len(methods)), [plain(label) + _star(found, label) for label in methods])
        panel.set_ylim(len(methods) - 0.4, -0.6)
        panel.set_xlabel(f"{METRIC[metric]} on the test batch")
        panel.grid(axis="x", alpha=0.3)
        handles = [
            Line2D([], [], linestyle="", marker="o", color=GREY, label="as many trials as ours"),
            Line2D([], [], linestyle="", marker="o", color=GREY, mfc="white", label="defaults, or fewer trials"),
        ]
        if sets > 1:
            handles.append(Line2D([], [], color="black", lw=2, label=f"mean of {sets} data sets"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def section(groups: Sequence[Group]) -> Section | None:
    """Other methods on the same cells; None where none ran and the paper has none."""
    compared = table(groups)
    if not (compared["kind"] != OURS).any():
        return None
    return Section("Other methods on the same cells", tuple(_items(compared)))


def _items(compared: pd.DataFrame) -> Iterator[Item]:
    sets = compared["data_set"].nunique()
    scored = compared[(compared["kind"] == PEER) & compared["macro_f1"].notna()]
    if len(scored):
        yield Text(_in_words(compared))
        yield Picture(
            "peers",
            f"On the test batch ({_cells(compared)}): {METRIC['macro_f1']}, higher is better"
            + (f"; a dot for each of {sets} data sets. " if sets > 1 else ", with the standard deviation over seeds. ")
            + "Filled: settings chosen on the folds of the training batches, with as many trials as ours. Hollow: the "
            "method's defaults, or fewer trials; not for claims. A star: the test cells took part in its training, "
            "without their types.",
            lambda: draw(compared),
        )
        yield from (_one_set(compared),) if sets == 1 else _many_sets(compared)
    quoted = compared[compared["kind"] == PUBLISHED]
    if len(quoted):
        yield Table(
            "peers-published",
            "Accuracy of other methods as table 2 of Ge et al. 2020 prints it. Cells, split and preprocessing are the "
            "paper's: for orientation, not for claims.",
            quoted[["data_set", "method", "accuracy"]].set_axis(["Data set", "Method", "Accuracy"], axis=1),
        )
    failed = compared[compared["reason"] != ""]
    for (method, reason), rows in failed.groupby(["method", "reason"], sort=False):
        yield Text(f"{method} has no numbers on {', '.join(rows['data_set'])}: {reason}.")


def _in_words(compared: pd.DataFrame) -> str:
    """Who is ahead among those that compare: tuned alike, on the same data sets, without a look at the test cells."""
    fair = compared[(compared["settings"] == "tuned") & ~compared["sees_test"].astype(bool)]
    scores = fair.pivot_table("macro_f1", "data_set", "method").dropna(axis=1)
    means = scores.mean().sort_values(ascending=False)
    if len(means) < 2:
        return "No other method was tuned with as many trials as ours without looking at the test cells: no claims."
    first, second = means.index[:2]
    sets = len(scores)
    if sets == 1:
        return (
            f"Of {len(means)} methods tuned with as many trials on the same folds, none of which looked at the test "
            f"cells, {first} has the highest {METRIC['macro_f1']} on the test batch ({means[first]:.3f}), before "
            f"{second} ({means[second]:.3f})."
        )
    ahead = int((scores[first] > scores[second]).sum())
    return (
        f"Of {len(means)} methods tuned with as many trials on the same folds, none of which looked at the test cells, "
        f"{first} has the highest mean {METRIC['macro_f1']} over {sets} data sets ({means[first]:.3f}), before "
        f"{second} ({means[second]:.3f}); it is ahead of it on {ahead} of them."
    )


def _one_set(compared: pd.DataFrame) -> Table:
    shown = compared[compared["macro_f1"].notna()].set_index("method").loc[_in_order(compared, "macro_f1")]
    frame = pd.DataFrame(
        {
            "Method": shown.index,
            **_conditions(shown),
            "Seeds": shown["seeds"].astype(int).to_numpy(),
            "Macro-F1": shown["macro_f1"].to_numpy(),
            "sd": shown["macro_f1_std"].to_numpy(),
            "Accuracy": shown["accuracy"].to_numpy(),
            "sd of accuracy": shown["accuracy_std"].to_numpy(),
            "Seconds": shown["seconds"].round().astype(int).to_numpy(),
        }
    )
    return Table(
        "peers",
        f"On the test batch ({_cells(compared)}). {_HOW} Seconds: wall time of the trials, wherever they ran.",
        frame,
    )


def _many_sets(compared: pd.DataFrame) -> Iterator[Table]:
    for metric in _SHOWN:
        shown = compared[compared[metric].notna() & (compared["kind"] != PUBLISHED)]
        order = _in_order(shown, metric)
        scores = shown.pivot_table(metric, "method", "data_set")
        scores = scores.reindex(index=order, columns=list(dict.fromkeys(shown["data_set"])))
        methods = shown.groupby("method", sort=False)
        first = methods.agg({"settings": _together, "sees_test": "any"})
        mean = scores.mean(axis=1).where(scores.notna().all(axis=1))
        told = pd.DataFrame({"Method": order, **_conditions(first.loc[order])}, index=order)
        columns = scores if scores.shape[1] <= MOST_COLUMNS else scores.iloc[:, :0]
        frame = pd.concat([told, columns, mean.rename("Mean")], axis=1)
        yield Table(
            f"peers-{metric.replace('_', '-')}",
            f"On the test batch of {scores.shape[1]} data sets ({_cells(compared)}): {METRIC[metric]}. {_HOW} Mean: of "
            "methods that have a number on all.",
            frame.reset_index(drop=True),
        )


_HOW = (
    "Higher is better; means over the final seeds, one where nothing is drawn. Tuned: as many trials as ours, scored "
    "on the same folds of the training batches; the winner was trained on the same cells as ours and scored once on "
    "the test batch."
)

_COLOURS = {TITLES[method]: colour for method, colour in METHOD_COLOURS.items()}


def _cells(compared: pd.DataFrame) -> str:
    counts = sorted(set(compared["cells"]))
    return f"{counts[0]:,} scored cells" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} scored cells"


def _together(words: pd.Series[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _conditions(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "Settings": rows["settings"].to_numpy(),
        "Sees test cells": np.where(rows["sees_test"].astype(bool), "yes", "no"),
    }


def _in_order(compared: pd.DataFrame, metric: str) -> list[str]:
    """Methods that have numbers: ours, then the others from the highest mean to the lowest."""
    found = compared[compared[metric].notna()]
    others = found[found["kind"] != OURS].groupby("method")[metric].mean().sort_values(ascending=False)
    return [*dict.fromkeys(found.loc[found["kind"] == OURS, "method"]), *map(str, others.index)]


def _star(found: pd.DataFrame, label: str) -> str:
    return " *" if found.loc[found["method"] == label, "sees_test"].any() else ""


def _rows(group: Group) -> Iterator[dict[str, Any]]:
    tests = {one.name: test for one in group.results if one.is_search and (test := one.search.final.test) is not None}
    where = {"data_set": group.name, "cells": next((test.cells for test in tests.values()), 0)}
    for method, title in TITLES.items():
        one = group.of(method)
        if one is not None and one.name in tests:
            yield {**where, "kind": OURS, "method": title, **_ours(one, tests[one.name])}
    found = _peers(group)
    for row in [] if found is None else found.rename(columns={"title": "method"}).to_dict("records"):
        yield {**where, "kind": PEER, **{str(key): value for key, value in row.items()}}
    name = group.results[0].settings.source.dataset or ""
    for method in QUOTED:
        accuracy = published.accuracy(name, method)
        if accuracy is not None:
            yield {
                **where, "kind": PUBLISHED, "method": f"{method} (published)", "settings": "published",
                "accuracy": accuracy, "sees_test": False, "reason": "",
            }  # fmt: skip


def _ours(one: Results, test: FinalScores) -> dict[str, Any]:
    numbers: dict[str, float] = {}
    for metric in _SHOWN:
        score = test.of(metric)
        numbers |= {metric: score.mean, f"{metric}_std": np.nan if score.std is None else score.std}
    return {
        "settings": "tuned",
        "trials": sum(one.search.trials.values()),
        "sees_test": one.summary.transductive,
        "seeds": len(one.search.final.seeds),
        **numbers,
        "seconds": _wall_time([(record.started, record.ended) for record in one.records]),
        "reason": "",
    }


def _wall_time(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one trial ran: trials of a pack run together."""
    total, until = 0.0, 0.0
    for start, end in sorted(span for span in spans if span[0] > 0):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _peers(group: Group) -> pd.DataFrame | None:
    """Of every peer what is best known: in the folder of one study of a group or another."""
    frames = [frame for one in group.results if (frame := read(one)) is not None]
    if not frames:
        return None
    together = pd.concat(frames, ignore_index=True)
    together["rank"] = together["peer"].map(list(PEERS).index)
    # With numbers before those without, and the most trials first.
    together = together.sort_values(["rank", "reason", "trials"], ascending=[True, True, False], kind="stable")
    return together.drop_duplicates("peer").drop(columns="rank").reset_index(drop=True)

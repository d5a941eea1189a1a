"""How strongly type and batch are confounded, and whether accuracy goes with it: two readings of the paper, tested."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from scdgn.analysis.page.style import GREY, MARKERS, METHOD_COLOURS, PHONE, canvas, legend_above, plain, short, styled
from scdgn.analysis.studies import published
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, source_of
from scdgn.analysis.studies.results import METHODS, TITLES, Results
from scdgn.cells.datasets import DATASETS
from scdgn.cells.sources import TrainingCells
from scdgn.core.metrics import entropy, mutual_information
from scdgn.errors import ScdgnError
from scdgn.search.shown.overview import METRIC

AGAINST = {"mutual_information": "mutual information (bits)", "training_cells": "training cells"}
"""What accuracy is held against, and how it is written."""

DIFFERENCE = "scdgn-nn"
"""In the place of a method: what scDGN has more than NN."""

CELLS = "training_cells"
"""In the place of a method: the other quantity itself, since sets with more cells may have less mutual information."""

SIGNIFICANT = 0.05
"""A correlation is told apart from none below this probability."""

FEWEST = 3
"""Points that have a rank correlation worth the name."""

NAMED, LONGEST = 15, 20
"""Data sets whose names fit above a figure, and how much of each."""

_PUBLISHED = {title: method for method, title in TITLES.items()}
_COLUMNS = ("part", "cells", "cell_types", "domains", "genes", "mutual_information", "label_entropy")


def statistics(source: TrainingCells) -> pd.DataFrame:
    """The statistics of a data set as in table 1 of the paper, for any cells.

    Returns
    -------
    A row per part of the cells (training, validation where it was published, test where there is one): `cells`,
    `cell_types`, `domains` (batches), `genes`, and of the cells with a label `mutual_information` of type and batch and
    `label_entropy`, both in bits. The entropy is the most that the mutual information could be: then the batch would
    give the type away.
    """
    dataset, split = source.dataset, source.split
    rows = []
    for part, chosen in ((TRAINING, split.train), (VALIDATION, split.validation), (TEST, split.test)):
        if not len(chosen):
            continue
        labelled = chosen[dataset.labels[chosen] >= 0]
        labels, batches = dataset.labels[labelled], dataset.batches[labelled]
        rows.append(
            {
                "part": part,
                "cells": len(chosen),
                "cell_types": len(np.unique(labels)),
                "domains": len(np.unique(dataset.batches[chosen])),
                "genes": len(dataset.genes),
                "mutual_information": mutual_information(labels, batches) if len(labelled) else None,
                "label_entropy": entropy(labels) if len(labelled) else None,
            }
        )
    return _typed(rows)


def statistics_of(results: Results) -> pd.DataFrame:
    """The same of the cells of a study: from its summary, else from the cells, if they are here.

    What neither tells is missing. Nothing is downloaded.
    """
    data, by_type = results.summary.data, results.summary.data.cells_by_type
    if data.mutual_information_bits is None and (source := _cells_at_hand(results)) is not None:
        return statistics(source)
    training = {
        "part": TRAINING,
        "cells": data.training_cells,
        "cell_types": len(by_type) or None,
        "domains": len(data.training_domains),
        "genes": data.genes,
        "mutual_information": data.mutual_information_bits,
        "label_entropy": float(stats.entropy(list(by_type.values()), base=2)) if by_type else None,
    }
    test = {
        "part": TEST,
        "cells": data.test_cells,
        "domains": len(data.test_batches),
        "genes": data.genes,
    }
    return _typed([training, *([test] if data.test_cells else [])])


def published_statistics() -> pd.DataFrame:
    """Table 1 as printed, in the form of `statistics`, with the `data_set` first and no entropies.

    The mutual information is of table 2; `pancreas` has none, since the table has its six sets.
    """
    rows = []
    for name, printed in published.TABLE1.items():
        row = published.TABLE2.get(name)
        for part, cells in ((TRAINING, printed.train), (VALIDATION, printed.validation), (TEST, printed.test)):
            if cells is not None:
                known = row.mutual_information if part == TRAINING and row is not None else None
                rows.append(
                    {
                        "data_set": name, "part": part, **vars(cells), "genes": printed.genes,
                        "mutual_information": known,
                    }
                )  # fmt: skip
    names = [row.pop("data_set") for row in rows]
    frame = _typed(rows)
    frame.insert(0, "data_set", names)
    return frame


class Correlation(NamedTuple):
    """A rank correlation and how far it may be trusted.

    Attributes
    ----------
    rho
        Spearman's coefficient; NaN where one of the two is constant, or there are fewer than three points.
    low, high
        Its 95 % confidence interval.
    p
        Probability of a coefficient as far from 0 if there were no relation, two-sided.
    n
        Points.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Spearman's rank correlation with a confidence interval, for as few points as the paper has data sets.

    Of pairs of numbers, (points,) each; those with a missing one are left out. The interval is Fisher's z with the
    variance of Bonett and Wright (2000, Psychometrika 65:23-28), (1 + rho^2 / 2) / (n - 3); resampling six points would
    repeat some and break the ranks. Below four points it is -1 to 1. Where all ranks agree, z is infinite: the interval
    is then that of the next lower coefficient that n points can have, up to 1 itself. The probability counts all orders
    of up to eight points, and draws 20,000 of more.
    """
    pairs = np.asarray([x, y], dtype=np.float64)  # (2, points)
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    n = pairs.shape[1]
    if n < FEWEST or (pairs == pairs[:, :1]).all(axis=1).any():
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    first, second = stats.rankdata(pairs, axis=1)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))

    def coefficient(order: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (order * second).sum(axis=axis) / scale
        return found

    rho = float(np.clip(coefficient(first), -1, 1))
    test = stats.permutation_test(
        (first,), coefficient, permutation_type="pairings", vectorized=True, rng=np.random.default_rng(0),
        n_resamples=math.factorial(8) if n <= 8 else 20_000, batch=5_000,
    )  # fmt: skip
    return Correlation(rho, *_interval(rho, n), float(test.pvalue), n)


def readings(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's two readings, on a table of ours (`scdgn.analysis.chapters.tables.table2`) and on the published one.

    The first: with the mutual information NN falls and scDGN does not. The second: small training sets hurt scDGN, so
    that it should rise with their size. Only data sets that share their test cells are held against each other, since
    the test cells of others may be easier or harder. Of every data set and method the first row of a search counts.

    Returns
    -------
    A row per numbers (`source`: ours or published), `test` cells, `metric`, quantity (`against`) and `method` (nn,
    dann, scdgn; scdgn-nn is what scDGN has more than NN), with `rho`, `low`, `high`, `p`, `n` as `rank_correlation`
    gives them and `found`: falls, rises, or open where p is 0.05 or more. Only where there are three data sets. In the
    row with `training_cells` for a method, and no metric, the two quantities are held against each other: where they go
    together, the data sets cannot tell which of them it is.
    """
    rows = [
        row for source, points in (("ours", _ours(table)), ("published", _printed())) for row in _read(source, points)
    ]
    columns = ["source", "test", "metric", "against", "method", *Correlation._fields, "found"]
    return pd.DataFrame(rows, columns=columns)


def against_information(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Scores of `table2` against mutual information and against the number of training cells, with the published ones,
    which are accuracies alone.
    """
    ours = _ours(table)
    ours = ours[ours["metric"] == metric]
    printed = _printed() if metric == "accuracy" else _printed().iloc[:0]
    tests = list(dict.fromkeys(ours["test"]))
    told_apart = 1 < len(tests) <= len(MARKERS)
    methods = [method for method in METHODS if method in {*ours["method"], *printed["method"]}]
    with styled():
        figure, axes = canvas(8, 3.6, 1, 2, sharey=True)
        for place, (against, label) in enumerate(AGAINST.items()):
            panel: Axes = axes[0, place]
            for method in methods:
                colour = METHOD_COLOURS[method]
                for number, test in enumerate(tests):
                    points = ours[(ours["method"] == method) & (ours["test"] == test)]
                    panel.errorbar(
                        points[against], points["mean"], yerr=points["std"].fillna(0), color=colour, markersize=5,
                        fmt=MARKERS[number if told_apart else 0], elinewidth=0.8, capsize=0,
                    )  # fmt: skip
                points = printed[printed["method"] == method]
                panel.plot(points[against], points["mean"], "o", mfc="none", mec=colour, markersize=6, mew=1.2)
            if against == "training_cells":
                _wide_range(panel, pd.concat([ours[against], printed[against]]))
            panel.set_xlabel(label)
        axes[0, 0].set_ylabel(f"{METRIC[metric]} on the test cells")
        handles = [_handle(METHOD_COLOURS[method], "o", TITLES[method]) for method in methods]
        if told_apart:
            handles += [_handle(GREY, MARKERS[number], plain(f"tested on {test}")) for number, test in enumerate(tests)]
        if len(printed):
            handles.append(Line2D([], [], ls="", marker="o", mfc="none", mec=GREY, label="published, pancreas1 to 6"))
        legend_above(figure, handles)
    return figure


def versus_information(table: pd.DataFrame, peers: pd.DataFrame | None = None, metric: str = "macro_f1") -> Figure:
    """Scores of tuned NN, DANN and scDGN (`table2`) against mutual information, and those of other classifiers beside
    them.

    Parameters
    ----------
    peers
        `data_set` (as in the table), `method` (as it is to be written) and a column named as the metric: scores on the
        same test cells. They share the mutual information of their data set, and are drawn in grey. Rows without a
        score are left out.
    """
    ours = _ours(table)
    ours = ours[(ours["metric"] == metric) & ours["mutual_information"].notna()].sort_values("mutual_information")
    with styled():
        figure, axes = canvas(8, 4)
        panel: Axes = axes[0, 0]
        handles = []
        where = ours.drop_duplicates("data_set").set_index("data_set")["mutual_information"]
        methods = [method for method in METHODS if method in set(ours["method"])]
        for place, method in enumerate(methods):
            # Side by side, so that bars do not hide each other.
            aside = (place - (len(methods) - 1) / 2) * 0.006 * (where.max() - where.min())
            for test in dict.fromkeys(ours["test"]):
                points = ours[(ours["method"] == method) & (ours["test"] == test)]
                panel.errorbar(
                    points["mutual_information"] + aside, points["mean"], yerr=points["std"].fillna(0), fmt="-o",
                    zorder=3, color=METHOD_COLOURS[method], markersize=6, elinewidth=1, capsize=2,
                )  # fmt: skip
            handles.append(Line2D([], [], marker="o", color=METHOD_COLOURS[method], label=TITLES[method]))
        scored = None if peers is None else peers[peers["data_set"].isin(where.index) & peers[metric].notna()]
        for number, (name, points) in enumerate([] if scored is None else scored.groupby("method", sort=False)):
            x = points["data_set"].map(where)
            order = np.argsort(x.to_numpy())
            # One grey for all: what tells peers apart is the marker, and what is ours stands out.
            marker = MARKERS[1:][number % (len(MARKERS) - 1)]
            filling = GREY if number < len(MARKERS) - 1 else "none"
            panel.plot(
                x.iloc[order], points[metric].iloc[order], "-", marker=marker, color=GREY, mfc=filling, lw=0.6, ms=4.5
            )
            handles.append(_handle(GREY, marker, plain(str(name)), filling))
        panel.set_xlabel(f"{AGAINST['mutual_information']} of type and batch among the training cells")
        panel.set_ylabel(f"{METRIC[metric]} on the test batch")
        if len(where) <= NAMED:
            above = panel.secondary_xaxis("top")
            names = [short(name.rpartition("/")[2], LONGEST) for name in where.index]
            above.set_xticks(where.to_list(), names, rotation=90)
            above.spines["top"].set_visible(False)
            above.tick_params(length=0)
        if figure.get_figwidth() > PHONE:
            figure.legend(handles=handles, loc="outside right upper")
        else:
            legend_above(figure, handles)
    return figure


def _cells_at_hand(results: Results) -> TrainingCells | None:
    """The cells of a study, where they can be read without a download."""
    source = results.settings.source
    entry = DATASETS.get(source.dataset or "")
    if source.data is None and source.path is None and (entry is None or entry.shape is None):
        return None
    try:
        return source_of(results)
    except ScdgnError:
        return None


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Counts as whole numbers and the rest as fractions, whatever is missing."""
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    counts = dict.fromkeys(("cells", "cell_types", "domains", "genes"), "Int64")
    return frame.astype({**counts, "mutual_information": "float64", "label_entropy": "float64"})


def _interval(rho: float, n: int) -> tuple[float, float]:
    if n < 4:
        return -1.0, 1.0
    # One exchange of neighbours makes the sum of squared differences 2.
    inner = math.copysign(min(abs(rho), 1 - 12 / (n * (n * n - 1))), rho)
    width = float(stats.norm.ppf(0.975)) * math.sqrt((1 + inner * inner / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inner) - width), math.tanh(math.atanh(inner) + width)
    return (low if rho > -1 else -1.0), (high if rho < 1 else 1.0)


def _ours(table: pd.DataFrame) -> pd.DataFrame:
    """Of every data set and method the first search that has test scores."""
    return table[table["mean"].notna()].drop_duplicates(["data_set", "method", "metric"])


def _printed() -> pd.DataFrame:
    """The six pancreas sets of the published table as a table of ours."""
    table = published.table2()
    table = table[table["data_set"].isin(published.PANCREAS) & table["method"].isin(list(_PUBLISHED))]
    return table.assign(
        method=table["method"].map(_PUBLISHED), metric="accuracy", mean=table["accuracy"], std=np.nan,
        test=f"fluidigmc1, {published.TABLE1['pancreas'].test.cells} cells",
    )  # fmt: skip


def _read(source: str, points: pd.DataFrame) -> Iterator[dict[str, Any]]:
    def row(test: str, metric: str, against: str, method: str, found: Correlation) -> dict[str, Any]:
        words = "open" if not found.p < SIGNIFICANT else "falls" if found.rho < 0 else "rises"
        return {
            "source": source, "test": test, "metric": metric, "against": against, "method": method,
            **found._asdict(), "found": words,
        }  # fmt: skip

    for test in points["test"].unique():
        same = points[points["test"] == test].drop_duplicates("data_set")
        between = rank_correlation(*(same[against].astype(float).to_numpy() for against in AGAINST))
        if between.n >= FEWEST:
            yield row(test, "", "mutual_information", CELLS, between)
    for test, metric in points[["test", "metric"]].drop_duplicates().itertuples(index=False, name=None):
        same = points[(points["test"] == test) & (points["metric"] == metric)]
        scores = same.pivot(index="data_set", columns="method", values="mean")
        if {"nn", "scdgn"} <= set(scores):
            scores[DIFFERENCE] = scores["scdgn"] - scores["nn"]
        for against in AGAINST:
            quantity = same.drop_duplicates("data_set").set_index("data_set")[against].astype(float)
            for method in (*METHODS, DIFFERENCE):
                if method not in scores:
                    continue
                found = rank_correlation(quantity.loc[scores.index].to_numpy(), scores[method].to_numpy())
                if found.n >= FEWEST:
                    yield row(test, metric, against, method, found)


def _handle(colour: str, marker: str, label: str, filling: str | None = None) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour, mfc=filling or colour, markersize=5, label=label)


def _wide_range(panel: Axes, cells: pd.Series) -> None:
    """A logarithmic axis where training sets differ more than tenfold."""
    if len(cells) and cells.max() > 10 * cells.min():
        panel.set_xscale("log")

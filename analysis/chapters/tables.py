"""Table 2 of the paper for any data sets and methods, from the summaries of studies; and tables as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdgn.analysis.chapters.information import (
    AGAINST,
    CELLS,
    DIFFERENCE,
    against_information,
    published_statistics,
    readings,
    statistics_of,
    versus_information,
)
from scdgn.analysis.page.sections import Item, Picture, Section, Table, Text
from scdgn.analysis.studies import published
from scdgn.analysis.studies.results import METHODS, TITLES, Group
from scdgn.errors import listed
from scdgn.search.shown.overview import METRIC

NUMBERS = {
    "mean": "mean",
    "std": "standard deviation",
    "picked": "picked by validation",
    "ensemble": "ensemble",
    "best_oracle": "best seed (oracle)",
    "best_of_ten": "best of 10 draws (oracle)",
}
"""What is made of several trainings, and how it is written."""

_COLUMNS = (
    "data_set", "test", "mutual_information", "training_cells", "method", "study", "transductive", "metric", "seeds",
    *NUMBERS, "published",
)  # fmt: skip

_READ = {
    "data_set": "data set",
    "test": "test cells",
    "mutual_information": "mutual information (bits)",
    "training_cells": "training cells",
    "cell_types": "cell types",
    "label_entropy": "entropy of types (bits)",
    "source": "numbers",
    "p": "p",
    "low": "95 % from",
    "high": "to",
    "rho": "rank correlation",
    **NUMBERS,
}

_METRICS = ("accuracy", "macro_f1", "balanced_accuracy")

_SHOWN = _METRICS[:2]

_QUANTITY = {"mutual_information": "mutual information", "training_cells": "number of training cells"}


def table2(groups: Sequence[Group]) -> pd.DataFrame:
    """The scores on the test cells of all studies, made of their summaries alone, so that MLflow suffices.

    Returns
    -------
    A row per study and score, those of one data set together, with

    - `data_set`, the `test` cells (the same text for the same cells), `mutual_information` of type and batch among the
      training cells in bits (missing where neither the summary nor a file tells it) and `training_cells`;
    - `method`, `study`, `transductive` (whether cells without labels took part) and `metric` (accuracy,
      macro_f1, balanced_accuracy);
    - of the final `seeds` of the winner `mean`, `std`, the one `picked` by validation, their `ensemble`, and
      `best_oracle`, the best of them by the test labels;
    - `best_of_ten`: what a write-up of the method called best of ten, the best by test accuracy of ten trainings with
      random margin and lambda, where the group has a study of that protocol (seed-best-of-10). NN has neither margin
      nor lambda: its best final seed stands there. Both are an oracle's numbers;
    - `published`: accuracy in the paper, where the data set is one of its own and the method is in its table.

    No row where no test cell can be scored.
    """
    tests = _tests(groups)
    rows = [row for group in groups for row in _rows(group, tests)]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(
        {
            "training_cells": "Int64",
            "seeds": "Int64",
            **dict.fromkeys(("mutual_information", *NUMBERS, "published"), "float64"),
        }
    )


def table2_wide(table: pd.DataFrame, metric: str = "accuracy", number: str = "mean") -> pd.DataFrame:
    """`table2` as the paper prints it: a row per data set, a column per method; of each its first search is taken.

    Parameters
    ----------
    number
        A key of `NUMBERS`; `mean` has the standard deviation beside it.

    Returns
    -------
    Columns as they are to be read, the methods among them named in `attrs["best"]`. Where several data sets share their
    test cells, a row with their mean follows; without the values of a method that lacks one of them.
    """
    rows = table[table["metric"] == metric]
    rows = rows[rows[number].notna() | rows["published"].notna()]
    first = rows.sort_values("transductive", kind="stable").drop_duplicates(["data_set", "method"])
    methods = [method for method in METHODS if method in set(first["method"])]
    columns: dict[str, tuple[str, str]] = {}
    for method in methods:
        columns[TITLES[method]] = (method, number)
        if number == "mean":
            columns[f"{TITLES[method]} (sd)"] = (method, "std")
    for method in methods:
        if first.loc[first["method"] == method, "published"].notna().any():
            columns[f"{TITLES[method]}, published"] = (method, "published")
    blocks = []
    for _, same in first.groupby("test", sort=False):
        facts = same.drop_duplicates("data_set").set_index("data_set")[list(AGAINST)]
        values = pd.DataFrame(
            {
                title: same[same["method"] == method].set_index("data_set")[what]
                for title, (method, what) in columns.items()
            },
            index=facts.index,
        )
        if len(facts) > 1:
            means = values.mean(skipna=False)
            means[[title for title, (_, what) in columns.items() if what == "std"]] = np.nan
            values.loc[f"mean of {len(facts)}"] = means
        blocks.append(pd.concat([facts.reindex(values.index), values], axis=1).reset_index(names="data_set"))
    wide = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=["data_set", *AGAINST, *columns])
    wide = wide.rename(columns=_READ)
    wide.attrs["best"] = [TITLES[method] for method in methods]
    return wide


def section(groups: Sequence[Group]) -> Section | None:
    """The paper's results on these data sets; None where no test cell is scored."""
    table = table2(groups)
    if table.empty:
        return None
    return Section("The methods side by side", tuple(_items(groups, table)))


def _tests(groups: Sequence[Group]) -> dict[str, str]:
    """The test cells in words by fingerprint, no two the same."""
    words: dict[str, str] = {}
    for group in groups:
        data = group.results[0].summary.data
        name = f"{listed(data.test_batches)}, {data.test_cells} cells"
        found = words.setdefault(data.test_fingerprint, name)
        if list(words.values()).count(found) > 1:
            words[data.test_fingerprint] = f"{name} ({data.test_fingerprint[:6]})"
    return words


def _rows(group: Group, tests: dict[str, str]) -> Iterator[dict[str, Any]]:
    searches = [one for one in group.results if one.final_test is not None]
    draws = {one.method: one for one in reversed(group.results) if not one.is_search}
    methods = {one.method for one in searches}
    alone = [one for method, one in draws.items() if method not in methods]
    if not searches and not alone:
        return
    facts = statistics_of(group.results[0]).iloc[0]
    paper = _name_in_paper(group)
    for one in (*searches, *alone):
        for metric in _METRICS:
            test = one.search.final.test if one.is_search else None
            score = None if test is None else test.of(metric)
            best_of_ten = draws[one.method].oracle.best_oracle.of(metric) if one.method in draws else None
            if one.method == "nn" and draws:
                best_of_ten = None if score is None else score.best_oracle
            yield {
                "data_set": group.name,
                "test": tests[one.data[1]],
                "mutual_information": facts["mutual_information"],
                "training_cells": facts["cells"],
                "method": one.method,
                "study": one.name,
                "transductive": one.summary.transductive,
                "metric": metric,
                "seeds": len(one.search.final.seeds) if one.is_search else None,
                **{number: getattr(score, number, None) for number in NUMBERS if number != "best_of_ten"},
                "best_of_ten": best_of_ten,
                "published": published.accuracy(paper, TITLES[one.method]) if metric == "accuracy" else None,
            }


def _name_in_paper(group: Group) -> str:
    return group.results[0].settings.source.dataset or ""


def _items(groups: Sequence[Group], table: pd.DataFrame) -> Iterator[Item]:
    scored = "" if table["seeds"].nunique() != 1 else f"{table['seeds'].iloc[0]} "
    printed = bool(table["published"].notna().any())
    oracle = (
        "Best seed and best of 10 draws are chosen by the test labels: an oracle's numbers, not to be compared with "
        "the others."
    )
    if table["mean"].notna().any():
        yield Table(
            "accuracy-by-method",
            f"Accuracy on the test batch, higher is better: mean over the {scored}final seeds of each method's winner, "
            "and their standard deviation (sd). The winner was chosen without the test labels. The mutual "
            "information of type and batch among the training cells says how strongly they are confounded."
            + (" Published: table 2 of Ge et al. 2020, which has no DANN." if printed else ""),
            table2_wide(table),
        )
    for metric in _SHOWN:
        yield Table(
            f"table2-{metric.replace('_', '-')}",
            f"{METRIC[metric].capitalize() if metric == 'accuracy' else METRIC[metric]} on the test batch by every way "
            f"of making one number of several trainings. {oracle}"
            + (" Best of 10 draws: ten trainings with random margin and lambda; NN has neither, and its best seed is "
               "there." if table["best_of_ten"].notna().any() else ""),
            _long(table, metric),
        )  # fmt: skip
    yield _statistics_table(groups)
    several = table.loc[table["mean"].notna(), "data_set"].nunique()
    if several < 2:
        return
    if table["mutual_information"].notna().any():
        yield Picture(
            "macro-f1-against-information",
            "Macro-F1 on the test batch of each method's winner against the mutual information of type and batch among "
            f"the training cells: mean and standard deviation over the {scored}final seeds, a point per data set and "
            "method. Higher is better; further right, type and batch are harder to tell apart.",
            lambda: versus_information(table),
        )
    yield Picture(
        "accuracy-against-information",
        "Accuracy on the test batch against mutual information (left) and number of training cells (right), higher is "
        "better. Filled: these studies, mean and standard deviation over the final seeds. Hollow: the six pancreas "
        "sets as published, on 638 test cells of their own, so that levels of filled and hollow points do not compare.",
        lambda: against_information(table),
    )
    found = readings(table[table["metric"].isin(_SHOWN)])
    if not (found["source"] == "ours").any():
        yield Text(
            "Whether scores fall with the mutual information is not said here: it takes three data sets with the same "
            "test cells."
        )
        return
    for words in _in_words(found):
        yield Text(words)
    yield Table(
        "readings",
        "Two readings of the published table, on these studies and on the table itself: Spearman's rank correlation of "
        "the score on the test batch with mutual information, and with the number of training cells; 95 % interval "
        "after Bonett and Wright (2000), exact two-sided p, n data sets of the same test cells. Found: open where p is "
        "0.05 or more. scDGN - NN is the difference of the two.",
        _readable_readings(found),
    )


def _long(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a score as they are to be read, without columns that are empty or all the same."""
    rows = table[table["metric"] == metric]
    methods = zip(rows["method"], rows["transductive"], strict=True)
    rows = rows.assign(method=[TITLES[name] + (" (transductive)" if saw else "") for name, saw in methods])
    twice = rows.duplicated(["data_set", "method"], keep=False).any()
    columns = [
        "data_set",
        "mutual_information",
        "training_cells",
        "method",
        *(["study"] if twice else []),
        *NUMBERS,
        "published",
    ]
    kept = [name for name in columns if name in ("mutual_information", "mean") or rows[name].notna().any()]
    return rows[kept].rename(columns=_READ).reset_index(drop=True)


def _statistics_table(groups: Sequence[Group]) -> Table:
    frames = []
    for group in groups:
        frame = statistics_of(group.results[0])
        paper = _name_in_paper(group)
        if paper in published.TABLE2:
            training = frame["part"] == "training"
            frame["published cells"] = pd.array([pd.NA] * len(frame), dtype="Int64")
            frame.loc[training, "published cells"] = published.training_cells(paper)
            frame["published mutual information"] = np.where(
                training, published.TABLE2[paper].mutual_information, np.nan
            )
        frame.insert(0, "data_set", group.name)
        frames.append(frame)
    names: set[str] = set(map(_name_in_paper, groups))
    caption = (
        "The cells of each data set, as in table 1 of Ge et al. 2020. The mutual information of type and batch is at "
        "most the entropy of the types: then the batch gives the type away."
    )
    if names & set(published.TABLE2):
        printed = published_statistics()
        wanted = {"pancreas" if name.startswith("pancreas") else name for name in names}
        printed = printed[printed["data_set"].isin(wanted)]
        frames.append(printed.assign(data_set=printed["data_set"] + " (as published)"))
        if "pancreas" in wanted:
            caption += f" What is known of those published: {' '.join(published.MISPRINTS[1:])}"
    # Columns that are missing in one frame are missing values, and not of another type.
    whole = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    order = [name for name in frames[0].columns if name in whole]
    return Table(
        "statistics", caption, whole[[*order, *whole.columns.difference(order, sort=False)]].rename(columns=_READ)
    )


def _readable_readings(found: pd.DataFrame) -> pd.DataFrame:
    names = {**TITLES, DIFFERENCE: "scDGN - NN", CELLS: "(training cells themselves)"}
    frame = found.assign(
        method=found["method"].map(names),
        metric=found["metric"].map({**METRIC, "": ""}),
        against=found["against"].map(AGAINST),
    )
    return frame.rename(columns=_READ)


def _in_words(found: pd.DataFrame) -> Iterator[str]:
    """What the readings come to, a paragraph each."""
    readings_of = {
        "mutual_information": "that NN falls with the mutual information of type and batch, and scDGN does not",
        "training_cells": "that small training sets hurt scDGN",
    }
    for against, reading in readings_of.items():
        told = []
        for source, where in (("ours", "Here"), ("published", "In the published table")):
            rows = found[(found["against"] == against) & (found["metric"] == "accuracy") & (found["source"] == source)]
            for test in rows["test"].unique():
                same = rows[(rows["test"] == test) & rows["method"].isin(METHODS)]
                each = ", ".join(
                    f"{TITLES[row.method]} {row.rho:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
                    for row in same.itertuples()
                )
                told.append(f"{where}, over {same['n'].max()} data sets tested on {test}: {each}.")
        yield (
            f"A reading of the published table is {reading}. Rank correlations of the accuracy with the "
            f"{_QUANTITY[against]}, and their 95 % intervals. {' '.join(told)}"
        )
    places = {"ours": "here", "published": "in the published table"}
    between = found[found["method"] == CELLS]
    each = " and ".join(
        f"{rho:+.2f} {places[source]}" for source, rho in zip(between["source"], between["rho"], strict=True)
    )
    if each:
        yield (
            f"The rank correlation of mutual information and number of training cells with each other is {each}. Where "
            "it is near -1, the data sets cannot tell which of the two matters."
        )

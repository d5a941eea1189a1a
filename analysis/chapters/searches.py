"""The searches of all methods on one page: every trial, how they went, and which settings mattered to which method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scdgn.analysis.page.sections import Item, Picture, Section, Table, pictures
from scdgn.analysis.page.style import METHOD_COLOURS, canvas, styled
from scdgn.analysis.studies.results import METHODS, TITLES, Group, Results
from scdgn.analysis.studies.trials import importances, of_the_space, trials
from scdgn.search.shown.overview import METRIC

MOST_BARS = 12
"""Settings drawn of each method, the most important."""


def section(group: Group) -> Section | None:
    """The trials of all methods beside each other; None where fewer than two methods have any."""
    searches = [one for method in METHODS if (one := group.of(method)) is not None and len(trials(one))]
    if len(searches) < 2:
        return None
    return Section("The searches of all methods", tuple(_items(searches)))


def all_trials(searches: Sequence[Results]) -> pd.DataFrame:
    """Every trial of several methods: `method`, then as `trials` has it; settings of other methods are missing."""
    frames = [trials(one).assign(method=TITLES[one.method]) for one in searches]
    whole = pd.concat([frame.dropna(axis=1, how="all") for frame in frames], ignore_index=True)
    return whole[["method", *whole.columns.drop("method")]]


def all_importances(searches: Sequence[Results]) -> tuple[pd.DataFrame, list[str]]:
    """The importance of every setting to every method, `scdgn.analysis.studies.trials.importances` side by side.

    Returns
    -------
    frame, words
        `setting` and a column per method that has importances, NaN where it does not draw the setting, the greatest
        mean first; and for every method what its column rests on, or why there is none.
    """
    columns, words = {}, []
    for one in searches:
        found, why = importances(one)
        words.append(f"{TITLES[one.method]}: {why}")
        if len(found):
            columns[TITLES[one.method]] = found.set_index("setting")["importance"]
    if not columns:
        return pd.DataFrame({"setting": pd.Series(dtype=str)}), words
    frame = pd.DataFrame(columns)
    order = frame.mean(axis=1).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(names="setting"), words


def draw_trials(searches: Sequence[Results]) -> Figure:
    """The selection score of every trial, a panel for each method on one scale, with the best so far and the winner."""
    frames = {one.method: of_the_space(trials(one)) for one in searches}
    scores = pd.concat([frame["score"] for frame in frames.values()]).dropna()
    with styled():
        figure, grid = canvas(8.0, 2.6, 1, len(frames), sharey=True)
        for ax, (method, frame) in zip(grid[0], frames.items(), strict=True):
            colour = METHOD_COLOURS[method]
            complete = frame["state"] == "complete"
            ax.scatter(frame["trial"][complete], frame["score"][complete], s=16, color=colour)
            ax.scatter(frame["trial"][~complete], frame["score"][~complete], s=12, marker="x", color=colour, alpha=0.5)
            ax.step(frame["trial"], frame["best so far"], where="post", color=colour, linewidth=1.2)
            won = frame[frame["winner"]]
            ax.scatter(
                won["trial"], won["scored again"].fillna(won["score"]), s=120, marker="*", color=colour,
                edgecolor="black", linewidth=0.8, zorder=3,
            )  # fmt: skip
            ax.set(title=TITLES[method], xlabel="trial")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        grid[0, 0].set_ylabel(METRIC[searches[0].metric])
        if len(scores):  # the few worst trials would squeeze the good ones into a line
            low, high = float(scores.quantile(0.1)), float(scores.max())
            grid[0, 0].set_ylim(max(float(scores.min()), low - (high - low)) - 0.02, high + 0.03)
    return figure


def draw_importances(frame: pd.DataFrame) -> Figure | None:
    """`all_importances` as bars, a panel for each method, the settings in one order; None where there are none."""
    methods = [title for title in TITLES.values() if title in frame]
    if not methods:
        return None
    shown = frame.head(MOST_BARS)
    colours = {TITLES[method]: colour for method, colour in METHOD_COLOURS.items()}
    with styled():
        figure, grid = canvas(8.0, 0.8 + 0.2 * len(shown), 1, len(methods), sharey=True, sharex=True)
        for ax, title in zip(grid[0], methods, strict=True):
            ax.barh(np.arange(len(shown)), shown[title], color=colours[title], height=0.7)
            ax.set_yticks(np.arange(len(shown)), shown["setting"])
            ax.set(title=title, xlabel="share of variance")
        grid[0, 0].invert_yaxis()
    return figure


def _items(searches: Sequence[Results]) -> list[Item]:
    names = ", ".join(TITLES[one.method] for one in searches)
    frame, words = all_importances(searches)
    of = f"share of the variance of the score that a setting explains by itself (functional ANOVA). {'; '.join(words)}"
    found: list[Item] = [
        Picture(
            "all-trials",
            f"The selection score of every trial of {names} ({METRIC[searches[0].metric]}, higher is better), on one "
            "scale; crosses were pruned or failed, at the rung where they were stopped. The line is the best so far, "
            "the star the winner, at its score with new seeds where it has one.",
            lambda: draw_trials(searches),
        ),
        *pictures("all-importances", f"Which settings matter to which method: {of}.", lambda: draw_importances(frame)),
    ]
    if len(frame):
        found.append(
            Table("all-importances", "The same numbers; empty where a method does not draw the setting.", frame)
        )
    found.append(
        Table(
            "all-trials",
            "Every trial of every method, with its settings; empty where a method or a trial does not draw one.",
            all_trials(searches),
        )
    )
    return found

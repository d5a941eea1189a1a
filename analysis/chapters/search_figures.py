"""Figures of a search: what it tried, how trials learned and fell out, which settings mattered, what was selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from scdgn.analysis.chapters import protocols
from scdgn.analysis.page.sections import Item, Picture, Section, Table, Text, pictures
from scdgn.analysis.page.style import COLOURS, GREY, SEQUENTIAL, canvas, leave_empty, legend_above, over_column, styled
from scdgn.analysis.studies.results import TITLES, Results
from scdgn.analysis.studies.trials import Axis, axes, curves, importances, of_the_space, rungs, survival, trials
from scdgn.search.records import RUNGS
from scdgn.search.shown.overview import METRIC
from scdgn.search.shown.pace import duration
from scdgn.search.study.space import Choice, unused

COMPLETE, PRUNED, FAILED, WINNER = COLOURS[0], GREY, "#000000", COLOURS[5]
STATES = {"complete": COMPLETE, "pruned": PRUNED, "fail": FAILED}
NAMES = {"complete": "complete", "pruned": "pruned", "fail": "failed"}

MANY = 100
"""Trials above which lines are drawn as pixels: thousands of paths would make files of megabytes."""

SLICES = 4
"""Settings drawn one by one beside their importances."""

MOST_AXES, MOST_COLOURED = 10, 40
"""Settings and coloured lines of parallel coordinates: more cannot be read."""

GIVEN = ("published", "preset", "reference")
"""Origins of trials that every search may begin with."""


def section(results: Results) -> Section | None:
    """The search of one study; None where nothing is known of its trials or their selection."""
    if not results.is_search:
        return protocols.best_of_ten(results)
    return Section(f"The search: {TITLES[results.method]}", (*_of_trials(results), *protocols.items(results)))


def draw_history(results: Results) -> Figure:
    """The selection score of every trial with the best so far, and below it the time that each took."""
    frame = trials(results)
    with styled():
        figure, grid = canvas(8.0, 4.4, 2, 1, sharex=True, height_ratios=[2, 1])
        scores, times = grid[:, 0]
        _points(scores, frame["trial"], frame)
        scores.step(frame["trial"], frame["best so far"], where="post", color=COMPLETE, linewidth=1.2)
        again = frame.dropna(subset="scored again")
        scores.vlines(again["trial"], again["score"], again["scored again"], color=COLOURS[2], linewidth=0.8)
        scores.scatter(
            again["trial"], again["scored again"], s=26, marker="D", facecolor="white", edgecolor=COLOURS[2], zorder=3
        )
        given = frame.loc[frame["origin"].isin(GIVEN), ["trial", "origin"]].itertuples(index=False)
        for place, (number, origin) in enumerate(given):  # one above the other: they are neighbours
            height = 0.04 + 0.07 * place
            scores.text(number, height, f" {origin}", transform=scores.get_xaxis_transform(), fontsize=7, va="center")
            scores.axvline(number, ymax=height, color="black", linewidth=0.6)
        scores.set_ylabel(f"{METRIC[results.metric]}\n({_cells(results)})")
        times.bar(frame["trial"], frame["seconds"], width=0.8, color=[STATES[state] for state in frame["state"]])
        times.set(ylabel="seconds", xlabel="trial")
        times.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        there = [one for one in STATES if one in set(frame["state"])]
        handles: list[Any] = [Patch(color=STATES[one], label=NAMES[one]) for one in there]
        handles.append(Line2D([], [], color=COMPLETE, label="best so far"))
        if len(again):
            handles.append(_dot("D", "white", COLOURS[2], "scored again"))
        if frame["winner"].any():
            handles.append(_dot("*", WINNER, WINNER, "winner", 9))
        legend_above(figure, handles)
    return figure


def draw_learning(results: Results) -> Figure:
    """Losses and lambda by epoch and the selection score by rung, a line per trial; and how many trials were left."""
    by_epoch, by_rung, left = curves(results), rungs(results), survival(results)
    frame = trials(results)
    winner = set(frame.loc[frame["winner"], "trial"])
    columns = [name for name in by_epoch.columns if name not in ("trial", "state", "epoch")]
    panels = [(by_epoch, "epoch", name) for name in columns]
    panels += [(by_rung, "rung", "score")]
    wide = len(panels) + 1 if len(panels) < 3 else 3
    high = -(-(len(panels) + 1) // wide)
    with styled():
        figure, grid = canvas(8.0, 2.5 * high + 0.3, high, wide)
        spots = grid.ravel()
        for ax, (lines, x, y) in zip(spots, panels, strict=False):
            _lines(ax, lines, x, y, winner, len(frame))
            ax.set(xlabel=x, title=y if y != "score" else METRIC[results.metric])
            if "loss" in y and (lines[y] > 0).all():
                ax.set_yscale("log")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _survival(spots[len(panels)], left)
        handles = [Line2D([], [], color=STATES[one], label=NAMES[one]) for one in STATES if one in set(frame["state"])]
        if winner:
            handles.append(Line2D([], [], color=WINNER, linewidth=2.2, label="winner"))
        if len(spots) > len(panels) + 1:
            spots[-1].set_axis_off()
            spots[-1].legend(handles=handles, loc="center")
        else:
            legend_above(figure, handles)
    return figure


def draw_settings(results: Results, found: pd.DataFrame) -> Figure | None:
    """Importances (`scdgn.analysis.studies.trials.importances`), and the score against the settings that matter most.

    Where there are no importances, against the first that the space names. None where no setting was searched, or one
    trial alone was run.
    """
    frame = of_the_space(trials(results))
    searched = {axis.name: axis for axis in axes(results)}
    names = found["setting"].tolist() or list(searched)
    if len(frame) < 2 or not names:
        return None
    shown = names[: SLICES if len(found) else SLICES + 2]
    with styled():
        figure, grid = canvas(8.0, 4.2, 2, 3, width_ratios=[1.25, 1, 1] if len(found) else None)
        spots = list(grid.ravel())
        if len(found):
            _bars(over_column(grid[:, 0]), found)
            spots = [*grid[0, 1:], *grid[1, 1:]]
        for ax, name in zip(spots, shown, strict=False):
            _slice(ax, searched[name], frame)
        leave_empty(spots[len(shown) :])
        figure.supylabel("" if len(found) else METRIC[results.metric], fontsize=9)
        if len(found):
            for ax in (spots[0], *spots[2:3]):
                ax.set_ylabel(METRIC[results.metric])
    return figure


def draw_margin_lambda(results: Results) -> Figure | None:
    """The score against lambda, and for scDGN against the margin and both at once; None where neither was searched."""
    frame = of_the_space(trials(results))
    searched = [axis for axis in axes(results) if axis.name in ("margin", "lambda_max")]
    searched.sort(key=lambda axis: axis.name)  # lambda first: dann has it too
    if len(frame) < 2 or not searched:
        return None
    with styled():
        both = len(searched) == 2
        figure, grid = canvas(
            8.0 if both else 3.6, 2.9, 1, len(searched) + both, width_ratios=[1, 1, 1.5] if both else None
        )
        for ax, axis in zip(grid[0], searched, strict=False):
            _slice(ax, axis, frame)
        grid[0, 0].set_ylabel(METRIC[results.metric])
        if both:
            _contour(figure, grid[0, 2], searched[1], searched[0], frame, METRIC[results.metric])
    return figure


def draw_parallel(results: Results, found: pd.DataFrame) -> Figure | None:
    """A line per trial through its settings to its score; None where none was searched or fewer than two completed.

    The settings that the plain network lacks come first, then the most important
    (`scdgn.analysis.studies.trials.importances`), or the first in the space; none that only some trials draw.
    """
    frame = of_the_space(trials(results))
    frame = frame[frame["state"].isin(["complete", "pruned"])].dropna(subset="score") if len(frame) else frame
    searched = [axis for axis in axes(results) if len(frame) and frame[axis.name].notna().all()]
    rank = {name: number for number, name in enumerate(found["setting"])}
    searched.sort(key=lambda axis: (axis.name not in unused("nn"), rank.get(axis.name, len(rank))))
    searched = searched[:MOST_AXES]
    score = frame.loc[frame["state"] == "complete", "score"].sort_values(kind="stable") if len(frame) else pd.Series()
    if not searched or len(score) < 2:
        return None
    best = score.iloc[-min(MOST_COLOURED, -(-len(score) // 2)) :]
    low, high = max(_range(frame)[0], score.iloc[0]), score.iloc[-1]
    height = (frame["score"] - low) / (high - low) if high > low else pd.Series(0.5, frame.index)
    columns = [*(axis.places(frame[axis.name].tolist()) for axis in searched), height.clip(-0.08, 1.0)]
    lines = pd.Series([list(enumerate(line)) for line in zip(*columns, strict=True)], index=frame.index)
    norm = Normalize(best.iloc[0] if best.iloc[0] < high else high - 1e-3, high)
    with styled():
        figure, grid = canvas(8.0, 3.6, least=8.0)
        ax = grid[0, 0]
        faded: dict[str, Any] = {"colors": GREY, "linewidths": 0.5, "rasterized": len(frame) > MANY}
        faded["alpha"] = float(np.clip(30 / len(frame), 0.15, 0.5))
        ax.add_collection(LineCollection(lines.drop(best.index).tolist(), **faded))
        coloured = LineCollection(lines[best.index].tolist(), cmap=SEQUENTIAL, norm=norm, linewidths=1.0)
        coloured.set_array(best.to_numpy())
        ax.add_collection(coloured)
        ax.add_collection(LineCollection(lines[frame["winner"]].tolist(), colors=WINNER, linewidths=2.4))
        for place, axis in enumerate(searched):
            ax.axvline(place, color="black", linewidth=0.6)
            for tick, words in zip(*axis.ticks(), strict=True):
                ax.text(place + 0.05, tick, words, fontsize=6.5, va="center", bbox=_BEHIND)
        ax.axvline(len(searched), color="black", linewidth=0.6)
        for tick, words in ((0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")):
            ax.text(len(searched) + 0.07, tick, words, fontsize=7, va="center")
        ax.set_xticks(
            range(len(columns)), [*(axis.name for axis in searched), METRIC[results.metric]], rotation=35, ha="right"
        )
        ax.set(yticks=[], xlim=(-0.1, len(searched) + 0.5), ylim=(-0.1, 1.06))
        ax.spines[["left", "bottom"]].set_visible(False)
        figure.colorbar(coloured, ax=ax, label=METRIC[results.metric], pad=0.01, aspect=30)
    return figure


GOLDEN = 0.618034
"""Multiples of it, less the whole, are spread evenly: for points side by side without chance."""

_BEHIND: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.4}


def _of_trials(results: Results) -> list[Item]:
    """Pictures of the trials, each with the numbers behind it."""
    frame = trials(results)
    if frame.empty:
        return [Text("The trials of this search are not here, only what came out of it.")]
    metric, where = METRIC[results.metric], _cells(results)
    states = frame["state"].value_counts()
    counts = ", ".join(f"{states[state]} {NAMES[state]}" for state in STATES if state in states)
    again = (
        f" Diamonds: scored again with {results.search.asked.confirm[1]} new seeds, and those scores alone chose the "
        "winner (star)."
        if frame["scored again"].notna().any()
        else " The star is the winner."
    )
    found: list[Item] = [
        Picture(
            "search-history",
            f"Optimisation history of {len(frame)} trials ({counts}). Above: the selection score of each ({metric}, "
            f"{where}; higher is better), that of a pruned one at the rung where it was stopped; the line is the best "
            f"so far; triangles at the lower edge lie below it.{again} Below: the time that each took; trials trained "
            f"as one pack share theirs. From the first start to the last end: {_duration(results)}.",
            lambda: draw_history(results),
        ),
        Table(
            "trials",
            f"Every trial. Score: {metric} at its last rung ({where}); no test cell took part in it.",
            frame.assign(state=frame["state"].map(NAMES)),
        ),
    ]
    left = survival(results)
    if left["reached"].any() or len(curves(results)):
        found += [
            Picture(
                "search-learning",
                f"Learning curves, a line per trial: losses{' and lambda' if results.method != 'nn' else ''} on the "
                f"training cells by epoch (means over the folds' models), and {metric} by rung ({where}; higher "
                f"is better; a rung is 1/{RUNGS} of a trial's epochs). Last: how many trials reached each rung; grey "
                "ones were pruned there.",
                lambda: draw_learning(results),
            ),
            Table("rungs", "Rung survival: trials that were scored at each rung, and those that ended there.", left),
            Table("search-curves", "The learning curves.", curves(results)),
        ]
    importance, words = importances(results)
    caption = _settings_caption(results, importance, words)
    found += pictures("search-settings", caption, lambda: draw_settings(results, importance))
    if len(importance):
        found.append(Table("importances", f"Importances (fANOVA), {words}.", importance))
    found += pictures("search-lambda", _lambda_caption(results), lambda: draw_margin_lambda(results))
    own = "" if results.method == "nn" else "those that NN lacks, then "
    which = f"{own}{'the most important ones' if len(importance) else 'the first'}"
    return [
        *found,
        *pictures(
            "search-parallel",
            f"Every trial as a line through its settings, each on the scale on which it is drawn, to its {metric} "
            f"({where}; higher is better). Coloured: the better half of the complete trials, {MOST_COLOURED} at most; "
            f"grey: the others, and those pruned; the thick line is the winner. At most {MOST_AXES} settings are "
            f"shown: {which}, and none that only some trials draw.",
            lambda: draw_parallel(results, importance),
        ),
    ]


def _lines(ax: Axes, frame: pd.DataFrame, x: str, y: str, winner: set[int], count: int) -> None:
    """A line per trial, pruned and failed ones faded, the winner on top."""
    many = count > MANY
    strong = float(np.clip(25 / count, 0.12, 0.7))
    for state, colour in STATES.items():
        part = frame[frame["state"] == state]
        paths = [path[[x, y]].to_numpy(dtype=float) for number, path in part.groupby("trial") if number not in winner]
        alpha = strong if state == "complete" else strong * 0.8
        order = 2 if state == "complete" else 1
        ax.add_collection(
            LineCollection(paths, colors=colour, linewidths=0.7, alpha=alpha, zorder=order, rasterized=many)
        )
        ends = np.array([path[-1] for path in paths if state != "complete"]).reshape(-1, 2)
        ax.scatter(ends[:, 0], ends[:, 1], s=5, color=colour, alpha=alpha, linewidth=0, zorder=order)
    for _, path in frame[frame["trial"].isin(winner)].groupby("trial"):
        ax.plot(path[x], path[y], color=WINNER, linewidth=2.2, zorder=3)
    ax.autoscale_view()


def _survival(ax: Axes, left: pd.DataFrame) -> None:
    """Trials that reached each rung; those stopped there on top."""
    went_on = left["reached"] - left["pruned"]
    ax.bar(left["rung"], went_on, color=COMPLETE, width=0.8)
    ax.bar(left["rung"], left["pruned"], bottom=went_on, color=PRUNED, width=0.8)
    ax.bar(left["rung"], left["failed"], bottom=left["reached"], color=FAILED, width=0.8)
    for rung, reached, failed in left[["rung", "reached", "failed"]].itertuples(index=False):
        ax.text(rung, reached + failed, f"{reached}", ha="center", va="bottom", fontsize=7)
    ax.set(xlabel="rung", title="trials that reached it", xticks=range(1, RUNGS + 1))
    ax.set_ylim(0, 1.1 * max(1, (left["reached"] + left["failed"]).max()))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _bars(ax: Axes, found: pd.DataFrame) -> None:
    """Importances as bars, the greatest on top."""
    ax.barh(found["setting"], found["importance"], color=COMPLETE, height=0.7)
    ax.invert_yaxis()
    ax.set_xlabel("share of variance explained alone")
    ax.margins(y=0.02)


def _points(ax: Axes, x: pd.Series, frame: pd.DataFrame) -> None:
    """The score of every trial at its place, the winner as a star; those below the picture as triangles at its edge."""
    size = float(np.clip(2_000 / max(len(frame), 1), 5, 24))
    floor, top = _range(frame)
    below = frame["score"] < floor
    for state, alpha in (("pruned", 0.4), ("complete", 0.85)):
        for part, marker in (((frame["state"] == state) & ~below, "o"), ((frame["state"] == state) & below, "v")):
            y = frame.loc[part, "score"].clip(lower=floor + 0.02 * (top - floor))
            ax.scatter(x[part], y, s=size, marker=marker, color=STATES[state], alpha=alpha, linewidth=0)
    winner = frame[frame["winner"]]
    y = winner["scored again"].fillna(winner["score"])
    ax.scatter(x[winner.index], y, s=110, marker="*", color=WINNER, edgecolor="white", linewidth=0.6, zorder=4)
    ax.set_ylim(floor, top + 0.06 * (top - floor))


def _range(frame: pd.DataFrame) -> tuple[float, float]:
    """Scores that a picture shows: the few worst trials would squeeze the good ones into a line."""
    complete = frame.loc[frame["state"] == "complete", "score"].dropna()
    if complete.empty:
        complete = frame["score"].dropna()
    if complete.empty:
        return 0.0, 1.0
    top = float(max(complete.max(), frame["scored again"].max() if frame["scored again"].notna().any() else -np.inf))
    middle = float(complete.median())
    floor = max(float(frame["score"].min()), middle - 3.0 * (top - middle))
    return (floor - 0.04 * (top - floor), top) if top > floor else (top - 0.05, top + 0.05)


def _slice(ax: Axes, axis: Axis, frame: pd.DataFrame) -> None:
    """The score of every trial against one setting."""
    drawn = frame[frame[axis.name].notna() & frame["score"].notna()]
    x = pd.Series(axis.places(drawn[axis.name].tolist()), index=drawn.index)
    if isinstance(axis.dimension, Choice):  # side by side, the same way every time
        x += (drawn["trial"] * GOLDEN % 1.0 - 0.5) * 0.3 / len(axis.dimension.values)
    _points(ax, x, drawn)
    places, words = axis.ticks()
    ax.set_xticks(places, words)
    ax.set(xlabel=axis.name, xlim=(-0.07, 1.07))


def _contour(figure: Figure, ax: Axes, across: Axis, up: Axis, frame: pd.DataFrame, label: str) -> None:
    """Complete trials at their two settings, joined by a surface where there are enough of them."""
    complete = frame[frame["state"] == "complete"].dropna(subset=["score", across.name, up.name])
    x, y = (axis.places(complete[axis.name].tolist()) for axis in (across, up))
    score = complete["score"].to_numpy(dtype=float)
    points = pd.DataFrame({"x": x, "y": y, "score": score}).groupby(["x", "y"], as_index=False).mean()
    low, high = (float(np.quantile(score, 0.1)), float(score.max())) if len(score) else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1e-3)
    surface = _triangles(points["x"].to_numpy(), points["y"].to_numpy())
    if surface is not None and high > low:
        levels = np.linspace(low, high, 8)
        ax.tricontourf(surface, points["score"], levels=levels, cmap=SEQUENTIAL, norm=norm, extend="min")
    size = float(np.clip(1_500 / max(len(frame), 1), 5, 24))
    shown = ax.scatter(
        x, y, c=score, cmap=SEQUENTIAL, norm=norm, s=size, edgecolor="white", linewidth=size / 40, zorder=3
    )
    pruned = frame[frame["state"] == "pruned"].dropna(subset=[across.name, up.name])
    ax.scatter(
        across.places(pruned[across.name].tolist()),
        up.places(pruned[up.name].tolist()),
        s=size / 2,
        marker="x",
        color=FAILED,
        alpha=0.35,
        linewidth=0.7,
        zorder=2,
    )
    winner = complete["winner"].to_numpy()
    ax.scatter(x[winner], y[winner], s=130, marker="*", color=WINNER, edgecolor="white", zorder=4)
    ax.set_xticks(*across.ticks())
    ax.set_yticks(*up.ticks())
    ax.set(xlabel=across.name, ylabel=up.name, xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    figure.colorbar(shown, ax=ax, label=label, extend="min")


def _triangles(x: NDArray[np.float64], y: NDArray[np.float64]) -> Triangulation | None:
    """A triangulation; None where the points do not span an area."""
    if len(x) < 4 or np.linalg.matrix_rank(np.column_stack([x - x[0], y - y[0]]), tol=1e-9) < 2:
        return None
    return Triangulation(x, y)


def _cells(results: Results) -> str:
    """Whose score the selection score is."""
    left_out = results.search.selection == "leave-one-domain-out"
    return "training batches left out in turn" if left_out else "training cells set aside"


def _settings_caption(results: Results, found: pd.DataFrame, words: str) -> str:
    metric = METRIC[results.metric]
    against = (
        f"Points: {metric} of each trial ({_cells(results)}; higher is better) against a setting, over its range; "
        "grey ones were pruned, at the rung where they were stopped; triangles lie below the picture; the star is the "
        "winner, at its score with new seeds where it has one"
    )
    if found.empty:
        return f"The first settings of the search space. {against}. No importances: {words}."
    return (
        f"Left: how much of the variance of {metric} over the search space a setting explains by itself (functional "
        f"ANOVA), {words}. Right: the {min(SLICES, len(found))} most important. {against}."
    )


def _lambda_caption(results: Results) -> str:
    metric = METRIC[results.metric]
    both = {axis.name for axis in axes(results)} >= {"margin", "lambda_max"}
    what = "lambda and the margin" if both else "the setting of the adversary that was searched"
    words = (
        f"{metric[0].upper()}{metric[1:]} ({_cells(results)}; higher is better) against {what}: complete trials in "
        "blue, pruned ones in grey at the rung where they were stopped, the winner as a star (at its score with new "
        "seeds where it has one)."
    )
    if both:
        words += (
            " Right: both at once; crosses were pruned. The surface joins complete trials, which differ in all their "
            "other settings too: read its large slopes, not its wrinkles."
        )
    return words


def _duration(results: Results) -> str:
    """From the start of the first trial to the end of the last."""
    records = [one for one in results.records if one.started and one.ended]
    first, last = min((one.started for one in records), default=0.0), max((one.ended for one in records), default=0.0)
    return duration(last - first)


def _dot(marker: str, face: str, edge: str, label: str, size: float = 5) -> Line2D:
    return Line2D([], [], ls="", marker=marker, mfc=face, mec=edge, ms=size, label=label)

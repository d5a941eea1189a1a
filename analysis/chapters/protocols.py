"""What each way of selecting a model would have got on the test cells, and how far that is from the oracle's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from scdgn.analysis.page.sections import Picture, Section, Table, pictures
from scdgn.analysis.page.style import COLOURS, GREY, METHOD_COLOURS, SEQUENTIAL, canvas, plain, styled
from scdgn.analysis.studies.results import METHODS, TITLES, Results
from scdgn.errors import listed, shortened
from scdgn.model.evaluate import REPORTED
from scdgn.search.shown.overview import METRIC

ORACLE = "test-domain oracle"
SELECTIONS = ("leave-one-domain-out", "training-domain")


def protocols(results: Results) -> pd.DataFrame:
    """The trials that the three protocols select, and the winner's final seeds, with their score on the test cells.

    Returns
    -------
    `model`, `trial`, `used` (whether the study went by it), `oracle` (whether test labels chose it), `selection score`
    (NaN for the oracle: it has none), `test score`, `standard deviation` (of the final seeds) and `regret`: the
    oracle's test score less this one. The oracle takes the best of all complete trials, so that a part of every regret
    is the luck of one seed among many; final seeds and ensembles are not among those that it chose from, and their
    regret may be negative. NaN where no test cell was scored. Empty for a study that is no search.
    """
    if not results.is_search:
        return pd.DataFrame()
    summary, test = results.search, results.final_test
    rows = [
        {
            "model": one.protocol,
            "trial": one.trial,
            "used": one.protocol == summary.selection,
            "oracle": one.protocol == ORACLE,
            "selection score": np.nan if one.protocol == ORACLE else one.score,
            "test score": np.nan if one.test is None else one.test,
            "standard deviation": np.nan,
        }
        for one in summary.protocols
    ]
    if test is not None:
        count = len(summary.final.seeds)
        for name, key in (
            (f"mean of {count} final seeds", "mean"),
            ("final seed picked by validation", "picked"),
            (f"ensemble of {count} final seeds", "ensemble"),
            (f"best of {count} final seeds", "best_oracle"),
        ):
            rows.append(
                {
                    "model": name,
                    "trial": summary.winner.number,
                    "used": key == ("picked" if summary.model.kind == "single" else "ensemble"),
                    "oracle": key == "best_oracle",
                    "selection score": np.nan,
                    "test score": getattr(test, key),
                    "standard deviation": test.std if key == "mean" and test.std is not None else np.nan,
                }
            )
    frame = pd.DataFrame(rows)
    best = frame.loc[frame["model"] == ORACLE, "test score"]
    frame["regret"] = (best.iloc[0] if len(best) else np.nan) - frame["test score"]
    return frame


def draw(results: Results) -> Figure | None:
    """The test score of each row of `protocols`, oracles hollow; None where no test cell was scored."""
    frame = protocols(results)
    frame = frame[frame["test score"].notna()] if len(frame) else frame
    if frame.empty:
        return None
    with styled():
        figure, grid = canvas(8.0, 0.9 + 0.28 * len(frame), least=6.5)
        ax = grid[0, 0]
        colour = METHOD_COLOURS[results.method]
        rows = np.arange(len(frame))
        oracle = frame.loc[frame["model"] == ORACLE, "test score"]
        if len(oracle):
            ax.axvline(oracle.iloc[0], color=GREY, linestyle=":", linewidth=1.0)
            ax.hlines(rows, frame["test score"], oracle.iloc[0], color=GREY, linewidth=1.0)
        ax.errorbar(
            frame["test score"], rows, xerr=frame["standard deviation"], fmt="none", ecolor=colour, elinewidth=2.5
        )
        for hollow, part in frame.assign(row=rows).groupby("oracle"):
            face = "white" if hollow else colour
            ax.scatter(part["test score"], part["row"], s=45, facecolor=face, edgecolor=colour, linewidth=1.5, zorder=3)
        for row, (score, regret) in enumerate(zip(frame["test score"], frame["regret"], strict=True)):
            itself = frame["model"].iloc[row] == ORACLE
            words = f"{score:.3f}" + ("" if itself or np.isnan(regret) else f"   regret {regret:+.3f}")
            ax.text(1.01, row, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_yticks(rows, [_label(*row) for row in frame[["model", "trial", "oracle"]].itertuples(index=False)])
        for label, used in zip(ax.get_yticklabels(), frame["used"], strict=True):
            label.set_fontweight("bold" if used else "normal")
        ax.invert_yaxis()
        held_out = listed(results.summary.data.test_batches)
        ax.set_xlabel(plain(f"{METRIC[results.metric]} on the test cells ({shortened(held_out, 60)})"))
        ax.margins(x=0.08, y=0.1)
    return figure


def regrets(results: Sequence[Results]) -> pd.DataFrame:
    """The regret of both honest protocols in every search that has test cells.

    Returns
    -------
    `study`, `method`, `selected by`, `test score`, `regret`; a row per search and protocol.
    """
    parts = []
    for one in results:
        frame = protocols(one)
        if frame.empty or frame["regret"].isna().all():
            continue
        chosen = frame[frame["model"].isin(SELECTIONS)]
        parts.append(
            pd.DataFrame(
                {
                    "study": one.name,
                    "method": one.method,
                    "selected by": chosen["model"],
                    "test score": chosen["test score"],
                    "regret": chosen["regret"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def draw_regrets(results: Sequence[Results]) -> Figure | None:
    """The regret of each protocol, a point per study and a bar for the mean, by method; None where there is none."""
    frame = regrets(results)
    if frame.empty:
        return None
    methods = [method for method in METHODS if method in set(frame["method"])]
    with styled():
        figure, grid = canvas(8.0, 2.8, 1, len(methods), sharey=True)
        for ax, method in zip(grid[0], methods, strict=True):
            part = frame[frame["method"] == method].pivot(index="study", columns="selected by", values="regret")
            names = [name for name in SELECTIONS if name in part]
            places = np.arange(len(names))
            ax.plot(places, part[names].T, color=GREY, linewidth=0.6, alpha=0.7)
            for place, name in zip(places, names, strict=True):
                known = part[name].dropna()
                ax.scatter(np.full(len(known), place), known, s=20, color=METHOD_COLOURS[method], zorder=3)
                ax.hlines(known.mean(), place - 0.25, place + 0.25, color="black", linewidth=2.0, zorder=4)
                ax.annotate(f"{known.mean():.3f}", (place + 0.27, known.mean()), va="center", fontsize=8)
            ax.set_xticks(places, [name.replace("-domain", "\ndomain") for name in names])
            ax.set_xlim(-0.5, len(names) - 0.2)
            ax.set_title(f"{TITLES[method]} (n = {len(part)})")
        grid[0, 0].set_ylabel("regret against the oracle")
        grid[0, 0].set_ylim(bottom=min(0.0, frame["regret"].min()))
    return figure


def section(results: Sequence[Results]) -> Section | None:
    """How the protocols compare over several searches; None below two of them with test cells."""
    searches = [one for one in results if one.is_search and not protocols(one)["regret"].isna().all()]
    if len(searches) < 2:
        return None
    metrics = " or ".join(sorted({METRIC[one.metric] for one in searches}))
    caption = (
        f"Regret: the {metrics} on the test cells of the best trial of a search (the oracle's, chosen by the test "
        "labels) less that of the trial that a protocol selected without them. Lower is better; 0 would be a perfect "
        f"choice. A point per search ({len(searches)} in all; a line joins the two protocols of one); the bar is their "
        "mean. The oracle takes the best of many single trainings, so that a part of every regret is luck that no "
        "protocol could have found."
    )
    frame = regrets(searches).assign(method=lambda frame: frame["method"].map(TITLES))
    return Section(
        "How trials were selected",
        (
            *pictures("regrets", caption, lambda: draw_regrets(searches)),
            Table("regrets", "The same numbers, search by search.", frame),
        ),
    )


def items(results: Results) -> tuple[Picture | Table, ...]:
    """The protocols of one search, drawn where there are test cells, and as a table."""
    frame = protocols(results)
    metric, test = METRIC[results.metric], results.search.final.test
    selection = (
        "The three selection protocols. Leave-one-domain-out takes the trial with the best mean "
        f"{metric} over the training batches left out in turn, training-domain the one that is best on cells set aside "
        "of all training batches; neither saw a test label. The test-domain oracle takes the trial that is best on the "
        "test cells themselves: shown, never used."
    )
    words = f"{selection} There are no test cells with a label of a trained type: no oracle, and no regret to tell."
    found: list[Picture | Table] = []
    if test is not None:
        caption = (
            f"{selection} Bold: what the study went by. Filled: chosen without test labels; hollow: an oracle's. "
            f"{metric[0].upper()}{metric[1:]} on {test.cells:,} test cells of "
            f"{listed(results.summary.data.test_batches)}; further "
            "right is better. Regret is what was lost against the oracle (dotted line). The first rows are single "
            "trainings of the search, the others the winner's settings trained again (the bar is the standard "
            "deviation over the seeds)."
        )
        found += pictures("protocols", caption, lambda: draw(results))
        words = "The numbers of the picture above. Regret: the oracle's test score less this one; lower is better."
    found.append(Table("protocols", words, frame))
    return tuple(found)


def best_of_ten(results: Results) -> Section:
    """A study of the protocol seed-best-of-10: its trainings, the best of which the test labels chose."""
    frame, best = _runs(results), results.oracle.best_oracle
    frame["best (oracle)"] = frame["seed"] == best.seed
    test = listed(results.summary.data.test_batches)
    caption = (
        f"{len(frame)} trainings of {TITLES[results.method]} with random margin and lambda, and their accuracy on the "
        f"test cells of {test}. The best of them (ringed) was chosen by the test labels: an oracle's number, "
        f"{best.accuracy:.3f}; the mean is {frame['accuracy'].mean():.3f}. No setting was selected by validation."
    )
    return Section(
        f"Ten trainings with random margin and lambda: {TITLES[results.method]}",
        (
            Picture("best-of-ten", caption, lambda: draw_best_of_ten(results)),
            Table("best-of-ten", "The same trainings; scores on the test cells.", frame),
        ),
    )


def draw_best_of_ten(results: Results) -> Figure:
    """Margin against lambda, coloured by test accuracy; dann has lambda alone, nn only seeds, against accuracy."""
    frame = _runs(results)
    best = frame[frame["seed"] == results.oracle.best_oracle.seed]
    with styled():
        figure, grid = canvas(5.0, 3.4)
        ax = grid[0, 0]
        if results.method == "scdgn":
            x, y = "margin", "lambda_max"
            points = ax.scatter(frame[x], frame[y], c=frame["accuracy"], cmap=SEQUENTIAL, s=60, zorder=3)
            figure.colorbar(points, ax=ax, label="accuracy on the test cells")
            ax.set(xlabel="margin", ylabel="lambda")
            _log(ax.set_xscale, ax.xaxis, frame[x])
            _log(ax.set_yscale, ax.yaxis, frame[y])
        else:
            x, y = "lambda_max" if results.method == "dann" else "seed", "accuracy"
            ax.scatter(frame[x], frame[y], color=METHOD_COLOURS[results.method], s=40, zorder=3)
            ax.set_ylabel("accuracy on the test cells")
            ax.set_xlabel("lambda" if results.method == "dann" else "seed")
            if results.method == "dann":
                _log(ax.set_xscale, ax.xaxis, frame[x])
        ax.scatter(best[x], best[y], s=190, facecolor="none", edgecolor=COLOURS[5], linewidth=1.5, zorder=4)
    return figure


def _runs(results: Results) -> pd.DataFrame:
    return pd.DataFrame(map(vars, results.oracle.runs))[["seed", "margin", "lambda_max", *REPORTED]]


def _label(model: str, trial: int, oracle: bool) -> str:
    if model in (*SELECTIONS, ORACLE):
        return f"{model}, trial {trial}"
    return f"{model} (oracle)" if oracle else model


def _log(set_scale: Callable[[str], None], axis: Axis, values: pd.Series) -> None:
    """A logarithmic scale with few plain numbers; where a value is 0 it stays as it is."""
    if values.min() > 0:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())

"""What a model takes for what: confusion, recall by type, and whether its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from scdgn.analysis.page import style
from scdgn.analysis.page.sections import Item, Picture, Section, Table, Text
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, Described
from scdgn.errors import listed

MOST_COUNTS = 15
"""Types up to which the counts are written into a confusion matrix."""

MOST_LABELS = 20
"""Types up to which all are named beside their recall; of more, those that are found least."""

MOST_LISTED = 8  # types in a caption

MOST_SHOWN = 50
"""Types up to which each has a row in the picture of a confusion matrix; of more, those that are confused most."""

KNOWN_RIGHT, KNOWN_WRONG, UNSEEN = "known type, predicted right", "known type, predicted wrong", "type not in training"
"""Groups of cells whose confidence is compared."""

NORMAL_95 = 1.959964  # standard deviations either side of the mean that hold 95 %


def confusion(cells: Described, part: str) -> pd.DataFrame:
    """How many cells of each type are predicted as which, in a part (TRAINING, VALIDATION or TEST).

    Returns
    -------
    Counts. Rows: all types that the model knows, then, sorted, the others that occur; columns: those that it knows.
    """
    names, known = cells.type_names, list(cells.cell_types)
    chosen = (cells.part == part) & (names != "")
    rows = known + sorted(set(names[chosen]) - set(known))
    place = {name: row for row, name in enumerate(rows)}
    counts = np.zeros((len(rows), len(known)), dtype=np.int64)
    np.add.at(counts, ([place[name] for name in names[chosen]], cells.predicted[chosen]), 1)
    return pd.DataFrame(counts, index=pd.Index(rows, name="true type"), columns=pd.Index(known, name="predicted"))


def most_confused(counts: pd.DataFrame, most: int = MOST_SHOWN) -> pd.DataFrame:
    """A confusion matrix of the types that are confused most, the others summed up as one.

    Parameters
    ----------
    counts
        As `confusion` has them.
    most
        Types of the rows to keep: those with the most cells that are taken for others, or of others that are taken for
        them. Fewer are left as they are.
    """
    if len(counts) <= most:
        return counts
    known = len(counts.columns)
    matrix = np.zeros((len(counts), len(counts)), dtype=np.int64)
    matrix[:, :known] = counts
    np.fill_diagonal(matrix, 0)
    kept = np.zeros(len(counts), dtype=bool)
    kept[np.argsort(-(matrix.sum(axis=0) + matrix.sum(axis=1)), kind="stable")[:most]] = True
    others = f"{len(counts) - most} other types"
    row_names, column_names = (np.where(kept[: len(names)], names, others) for names in (counts.index, counts.columns))
    joined = counts.groupby(row_names).sum().T.groupby(column_names).sum().T
    columns = [*counts.columns[kept[:known]], others]
    rows = [*columns, *counts.index[known:][kept[known:]]]  # types that are not in training stay the last
    joined = joined.reindex(index=rows, columns=columns, fill_value=0)
    joined.index.name, joined.columns.name = counts.index.name, counts.columns.name
    return joined


def confusions(counts: pd.DataFrame) -> pd.DataFrame:
    """Which type is taken for which other one, as `confusion` counts it.

    Returns
    -------
    `true type`, `predicted`, `cells` and `share` of the true type's cells, by cells, most first.
    """
    matrix = counts.to_numpy()
    rows, columns = np.nonzero(matrix * (counts.index.to_numpy()[:, None] != counts.columns.to_numpy()))
    cells = matrix[rows, columns]
    frame = pd.DataFrame(
        {
            "true type": counts.index[rows],
            "predicted": counts.columns[columns],
            "cells": cells,
            "share": _ratio(cells, matrix.sum(axis=1)[rows]),
        }
    )
    return frame.sort_values("cells", ascending=False, kind="stable", ignore_index=True)


def by_type(cells: Described, part: str) -> pd.DataFrame:
    """Scores of every type that the model knows, on the cells of these types: the mean of `F1` is the macro-F1.

    Returns
    -------
    `type`, `training cells`, `cells` (of the part), `predicted` (how many are taken for it), `precision`, `recall` and
    `F1`, by training cells, most first. NaN where nothing is predicted as the type, or there is no cell of it.
    """
    chosen = _scored(cells, part)
    types = len(cells.cell_types)
    labels, predicted = cells.labels[chosen], cells.predicted[chosen]
    present, claimed = np.bincount(labels, minlength=types), np.bincount(predicted, minlength=types)
    right = np.bincount(labels[labels == predicted], minlength=types)
    recall = _ratio(right, present)
    frame = pd.DataFrame(
        {
            "type": list(cells.cell_types),
            "training cells": _training_cells(cells),
            "cells": present,
            "predicted": claimed,
            "precision": _ratio(right, claimed),
            "recall": recall,
            "F1": np.where(present > 0, _ratio(2 * right, present + claimed), np.nan),
        }
    )
    return frame.sort_values("training cells", ascending=False, kind="stable", ignore_index=True)


def recall_by_training_cells(cells: Described, part: str) -> pd.DataFrame:
    """Recall of every type that occurs in a part, and in how many cells of it the model was trained.

    Returns
    -------
    `type`, `training cells`, `cells`, `recall`, and with `low` and `high` its 95 % interval after Wilson (1927), by
    training cells, most first.
    """
    frame = by_type(cells, part)
    frame = frame.loc[frame["cells"] > 0, ["type", "training cells", "cells", "recall"]].reset_index(drop=True)
    frame["low"], frame["high"] = wilson(frame["recall"].to_numpy(), frame["cells"].to_numpy())
    return frame


def wilson(share: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval that holds a share, seen in n > 0 draws, with 95 % probability (Wilson 1927, without continuity
    correction); (shares,) each.
    """
    z2 = NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)


def reliability(cells: Described, part: str, bins: int = 15) -> pd.DataFrame:
    """How often predictions of a confidence are right, over cells of known types in bins of equal width.

    Returns
    -------
    `low`, `high` (of the bin; low itself is not in it), `cells`, `confidence` (mean) and `accuracy`; NaN for bins
    without cells. The mean of |accuracy - confidence|, weighted by the cells, is
    `scdgn.core.metrics.calibration_error`.
    """
    chosen = _scored(cells, part)
    confidence = cells.confidence[chosen].astype(np.float64)
    right = (cells.predicted == cells.labels)[chosen]
    place = np.clip(np.ceil(cells.confidence[chosen] * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(place, minlength=bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "cells": n,
            "confidence": _ratio(np.bincount(place, confidence, bins), n),
            "accuracy": _ratio(np.bincount(place, right, bins), n),
        }
    )


def confidences(cells: Described, part: str) -> pd.DataFrame:
    """The confidence of every cell with a type, and whether the model could know better.

    Returns
    -------
    `cell`, `type`, `group` (KNOWN_RIGHT, KNOWN_WRONG or UNSEEN) and `confidence`.
    """
    chosen = (cells.part == part) & (cells.type_names != "")
    group = np.where(cells.labels < 0, UNSEEN, np.where(cells.labels == cells.predicted, KNOWN_RIGHT, KNOWN_WRONG))
    return pd.DataFrame(
        {
            "cell": cells.dataset.cells[chosen],
            "type": cells.type_names[chosen],
            "group": group[chosen],
            "confidence": cells.confidence[chosen],
        }
    )


def confusion_figure(counts: pd.DataFrame) -> Figure:
    """The matrix of `confusion`: colour is the share of the row, numbers are cells."""
    rows, columns = counts.shape
    matrix, total = counts.to_numpy(), counts.to_numpy().sum(axis=1)
    share = _ratio(matrix, total[:, None])
    size = max(counts.shape)
    type_size = 8.0 if size <= MOST_COUNTS else float(np.clip(250 / size, 3.0, 7.0))
    with style.styled():
        width = float(np.clip(2.6 + 0.42 * columns, 4.5, 8.0))
        figure, ((axes,),) = style.canvas(width, float(np.clip(1.4 + 0.36 * rows, 2.6, 8.5)), least=width)
        image = axes.imshow(np.ma.masked_invalid(share), cmap=style.SHARES, vmin=0, vmax=1, aspect="auto")
        names = [f"{style.short(name)}  ({n:,})" for name, n in zip(counts.index, total, strict=True)]
        axes.set_yticks(range(rows), names, fontsize=type_size)
        axes.set_xticks(range(columns), [style.short(name) for name in counts.columns], fontsize=type_size)
        axes.tick_params("x", rotation=90 if columns > 10 else 45)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("center" if columns > 10 else "right")
            label.set_rotation_mode("default" if columns > 10 else "anchor")
        axes.set_xlabel("predicted type")
        axes.set_ylabel("true type (cells)")
        if rows > columns:
            axes.axhline(columns - 0.5, color="black", linewidth=1.0)
        if size <= MOST_COUNTS:
            for row, column in np.argwhere(matrix > 0):
                colour = "white" if share[row, column] > 0.55 else "black"
                axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=7, color=colour)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="share of the true type", shrink=min(1.0, 3 / figure.get_figheight()))
    return figure


def recall_figure(frame: pd.DataFrame) -> Figure:
    """Recall against training cells, as `recall_by_training_cells` has them."""
    with style.styled():
        figure, ((axes,),) = style.canvas(7.0, 4.2)
        n, recall = frame["training cells"].to_numpy(dtype=float), frame["recall"].to_numpy(dtype=float)
        spread = np.abs(np.stack([recall - frame["low"], frame["high"] - recall]))
        axes.errorbar(n, recall, spread, fmt="none", ecolor=style.GREY, elinewidth=1.0, zorder=1)
        axes.scatter(n, recall, s=28, color=style.COLOURS[0], zorder=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlim(n.min() / 1.6, n.max() * 1.8)
        axes.set_ylim(-0.06, 1.1)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_xlabel("training cells of the type")
        axes.set_ylabel("recall")
        named = set(np.argsort(recall, kind="stable")[:MOST_LABELS].tolist())
        names = [name if place in named else "" for place, name in enumerate(frame["type"])]
        style.label_points(axes, names, n, recall)
    return figure


def reliability_figure(frame: pd.DataFrame) -> Figure:
    """Accuracy against confidence, and below it how many cells each bin has, as `reliability` has them."""
    shown = frame[frame["cells"] > 0]
    confidence, accuracy = (shown[name].to_numpy(dtype=float) for name in ("confidence", "accuracy"))
    low, high = wilson(accuracy, shown["cells"].to_numpy())
    with style.styled():
        figure, ((upper,), (lower,)) = style.canvas(
            4.6, 5.0, rows=2, sharex=True, gridspec_kw={"height_ratios": (3, 1)}
        )
        upper.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=1.0, label="confidence = accuracy")
        upper.errorbar(
            confidence,
            accuracy,
            np.abs(np.stack([accuracy - low, high - accuracy])),
            fmt="o-",
            color=style.COLOURS[0],
            markersize=4,
            elinewidth=0.8,
            label="cells of a bin, 95 % interval",
        )
        upper.set_xlim(0, 1)
        upper.set_ylim(-0.02, 1.04)
        upper.set_ylabel("accuracy")
        upper.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))  # above, where no point can be
        widths = frame["high"] - frame["low"]
        lower.bar(frame["low"], frame["cells"], widths, align="edge", color=style.COLOURS[4], edgecolor="white")
        lower.set_xlabel("confidence (probability of the predicted type)")
        lower.set_ylabel("cells")
    return figure


def confidence_figure(frame: pd.DataFrame) -> Figure:
    """Histograms of the confidence of each group, as `confidences` has them."""
    colours = {KNOWN_RIGHT: style.COLOURS[0], KNOWN_WRONG: style.COLOURS[5], UNSEEN: style.COLOURS[1]}
    groups = [name for name in colours if (frame["group"] == name).any()]
    with style.styled():
        figure, axes = style.canvas(6.0, 0.7 + 1.3 * len(groups), rows=len(groups), sharex=True, sharey=True)
        for panel, name in zip(axes[:, 0], groups, strict=True):
            of = frame.loc[frame["group"] == name, "confidence"].to_numpy(dtype=float)
            panel.hist(of, np.linspace(0, 1, 31), weights=np.full(len(of), 1 / len(of)), color=colours[name])
            panel.axvline(float(np.median(of)), color="black", linewidth=1.0, linestyle="--")
            panel.set_title(f"{name}: {len(of):,} cells, median {np.median(of):.2f}", loc="left", fontsize=8)
            panel.set_ylabel("share")
            panel.set_xlim(0, 1)
        axes[-1, 0].set_xlabel("confidence (probability of the predicted type)")
    return figure


def judged(cells: Described) -> str | None:
    """The part by which a model is judged: TEST where it has labels of types that the model knows, else VALIDATION."""
    return next((name for name in (TEST, VALIDATION) if _scored(cells, name).any()), None)


def section(cells: Described) -> Section:
    """What a model takes for what, on the test cells where they have labels, else on training cells left out."""
    if (part := judged(cells)) is None:
        words = (
            "No cell outside training has a label of a type that the model knows, so there is nothing to judge its "
            "predictions by."
        )
        return Section("Classification", (Text(words),))
    counts, scored = confusion(cells, part), int(_scored(cells, part).sum())
    batches = sorted(set(cells.batch_names[_scored(cells, part)]))
    where = f"batch {batches[0]}" if len(batches) == 1 else f"{len(batches)} batches"
    of = {
        TEST: f"{scored:,} test cells ({where})",
        VALIDATION: f"{scored:,} cells of the training batches, as models say that were trained without them",
    }[part]
    items = [
        *_confused(counts, of),
        Table(
            "by-type",
            f"Scores by type: {of}. Precision is the share of right ones among the cells predicted as the type, recall "
            "among the cells of the type, F1 their harmonic mean (the mean of the column is the macro-F1); higher is "
            f"better, and empty where there is nothing to divide by. {_of_training(cells)}",
            by_type(cells, part).rename(columns={"cells": f"{part} cells"}),
        ),
        Picture(
            "recall-by-training-cells",
            f"Share of each type's cells that is found, against the number of training cells of the type: {of}. Lines "
            "are 95 % intervals (Wilson), wide where a type has few cells to be judged by. "
            + (f"Named are the {MOST_LABELS} types that are found least. " if len(counts) > MOST_LABELS else "")
            + _of_training(cells),
            lambda: recall_figure(recall_by_training_cells(cells, part)),
        ),
        *_believed(cells, part, of),
    ]
    return Section("Classification", tuple(items))


def _confused(counts: pd.DataFrame, of: str) -> Iterator[Item]:
    """The confusion matrix, and a table where it is cut."""
    unseen, shown = counts.index[len(counts.columns) :], most_confused(counts)
    left_out = cut = ""
    if len(unseen):
        left_out = (
            f" {int(counts.loc[unseen].to_numpy().sum()):,} more cells are of {len(unseen)} "
            f"{'type' if len(unseen) == 1 else 'types'} that it was not trained on "
            f"({listed(list(unseen), MOST_LISTED)}), which it can only take for others; no score here counts them."
        )
    if len(counts) > MOST_SHOWN:
        cut = (
            f" Of {len(counts)} types the {MOST_SHOWN} are shown that are confused most; the others are summed up, "
            "what is confused within them with what is right."
        )
    yield Picture(
        "confusion",
        f"What the model takes cells of each type for: {of}.{left_out} Rows are true types with their numbers of "
        "cells, columns predictions; the stronger the colour, the larger the share of the row"
        + (", and numbers are cells" if max(counts.shape) <= MOST_COUNTS else "")
        + ". A perfect model has all cells on the diagonal."
        + (" Types below the line are not in training." if len(unseen) else "")
        + cut,
        lambda: confusion_figure(shown),
    )
    if cut:
        caption = f"Which type is taken for which: {of}. Share is that of the true type's cells."
        yield Table("confusions", caption, confusions(counts))


def _believed(cells: Described, part: str, of: str) -> Iterator[Item]:
    """How far the model's confidence can be believed."""
    bins, groups = reliability(cells, part), confidences(cells, part)
    gap = float((bins["cells"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["cells"].sum())
    yield Picture(
        "reliability",
        f"How far the model's confidence can be believed: {of}. Points below the dashed line are predictions that are "
        "right less often than the model says, points above it more often; bars show how many cells there are. The "
        f"mean distance from the line, weighted by cells (expected calibration error), is {gap:.3f}; 0 is best.",
        lambda: reliability_figure(bins),
    )
    yield Picture(
        "confidence",
        "Confidence where the model is right, where it is wrong"
        + (", and on types that it was not trained on" if (groups["group"] == UNSEEN).any() else "")
        + f": {of}. Shares of each group; dashed lines are medians. The farther apart the groups, the better "
        "confidence tells which predictions to check.",
        lambda: confidence_figure(groups),
    )


def _scored(cells: Described, part: str) -> NDArray[np.bool_]:
    """(cells,) those of a part whose type the model knows."""
    chosen: NDArray[np.bool_] = (cells.part == part) & (cells.labels >= 0)
    return chosen


def _training_cells(cells: Described) -> NDArray[np.int64]:
    """(types,) cells that the model was trained on."""
    if cells.trained is not None:
        return cells.trained
    counts: NDArray[np.int64] = np.bincount(cells.labels[_scored(cells, TRAINING)], minlength=len(cells.cell_types))
    return counts


def _of_training(cells: Described) -> str:
    return f"The model was trained on {int(_training_cells(cells).sum()):,} cells."


def _ratio(part: NDArray[np.float64] | NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where there is nothing to divide by."""
    whole = np.broadcast_to(whole, part.shape)
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio

"""Alignment in numbers: how well the encoder's output keeps cell types apart, and how far it mixes batches.

The scores are those of scIB (Luecken et al. 2022), by their definitions and on exact neighbours, but that k-means with
as many clusters as there are types stands for its search of resolutions of Louvain clustering. The tests hold them to
the package scib-metrics, whose graph connectivity alone differs: it wants every two cells of a type to reach each other
along directed edges, which is never more and often far less than the paper's undirected graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scdgn.analysis.chapters.integration_metrics import (
    ALL,
    BATCH,
    BIOLOGY,
    BIOLOGY_WEIGHT,
    EXPRESSION,
    MOST_SCORED,
    UNTRAINED,
    Array,
    Codes,
    counts_of,
    draw_points,
    expression,
    overall_scores,
    score_points,
    sets_of_cells,
)
from scdgn.analysis.page.sections import Picture, Section, Table, Text
from scdgn.analysis.page.style import (
    GREY,
    MARKERS,
    METHOD_COLOURS,
    SEQUENTIAL,
    Look,
    canvas,
    legend,
    plain,
    short,
    styled,
)
from scdgn.analysis.studies.cells import TEST, Described
from scdgn.analysis.studies.results import TITLES

MOST_BATCHES = 8
"""Batches between which distances are taken: the test batches, then the largest."""

FEWEST, MOST_DRAWN = 10, 300
"""Cells of a batch (or of a type in it) between which a distance is taken."""


def alignment(cells: Described, most: int = MOST_SCORED) -> pd.DataFrame:
    """The scores of scIB for the encoder's output, of the cells with a label that the model knows, of types with two
    cells.

    Of more than `most` cells so many are drawn; the same ones every time.

    Returns
    -------
    One row for all labelled cells, and one for those that the model was not trained on (validation and test), where
    there are both: a classifier keeps the types of its own training cells apart whatever it learned. Columns `Cells`
    (which), then the overall score and the two means that it is made of, then the scores of BIOLOGY and BATCH, from 0
    to 1, best at 1, NaN where there are not two types or not two batches; then `n`, `Types` and `Batches`.
    """
    rows = []
    for which, chosen in sets_of_cells(cells):
        one = draw_points(chosen, most)
        if len(one.types):
            scores = score_points(one)
            rows.append({"Cells": which, **counts_of(one), **scores, **overall_scores(scores)})
    return pd.DataFrame(rows, columns=_columns())


def a_distance(cells: Described) -> pd.DataFrame:
    """Proxy A-distance between batches, 2 (1 - 2 e): e is the error of a linear classifier that tells them apart.

    As Ben-David et al. (2007) define it and Ganin et al. (2016, section 5.1) use it: 0 where two batches cannot be told
    apart, 2 where they always can. The classifier is a logistic regression on the encoder's output, its error taken by
    cross-validation in five parts on as many cells of the one batch as of the other.

    Two batches of different composition can be told apart by their types alone, in a representation without any trace
    of the batch. The distance is therefore also taken within each type that both have, and averaged over these types.

    Returns
    -------
    One row for each two batches (of more than MOST_BATCHES, those of the test cells and the largest), of their labelled
    cells: `Batch`, `Other batch`, `n` (cells of each), `All types`, `Within types`, `Types` (that both have). NaN where
    a batch, or a type in it, has fewer than FEWEST cells.
    """
    known = cells.take(cells.labels >= 0)
    latent, types, batches = known.latent, known.labels, known.dataset.batches
    rows = []
    for first, second in combinations(_batches_shown(known), 2):
        pair = [np.flatnonzero(batches == code) for code in (first, second)]
        overall, n = _distance(latent, *pair)
        within = [
            _distance(latent, *(rows_of[types[rows_of] == code] for rows_of in pair))[0] for code in np.unique(types)
        ]
        there = [value for value in within if not np.isnan(value)]
        rows.append(
            {
                "Batch": known.dataset.batch_names[first],
                "Other batch": known.dataset.batch_names[second],
                "n": n,
                # Chance alone makes an error of more than a half; in the mean it makes up for the other chances.
                "All types": max(overall, 0.0) if n else np.nan,
                "Within types": max(float(np.mean(there)), 0.0) if there else np.nan,
                "Types": len(there),
            }
        )
    return pd.DataFrame(rows, columns=["Batch", "Other batch", "n", "All types", "Within types", "Types"])


def tradeoff(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Biology kept against batch removed as `alignment` has them, a point for each method and for EXPRESSION."""
    sets = [which for which in (ALL, UNTRAINED) if any((frame["Cells"] == which).any() for frame in frames.values())]
    markers = dict(zip((EXPRESSION, *TITLES), ("X", *MARKERS), strict=False))
    shown = {name: Look(METHOD_COLOURS.get(name, GREY), markers.get(name, "*")) for name in frames}
    with styled():
        figure, axes = canvas(8.0 if len(sets) > 1 else 5.0, 3.4, 1, max(len(sets), 1))
        for ax, which in zip(axes[0], sets, strict=True):
            points = {
                name: frame[frame["Cells"] == which].iloc[0]
                for name, frame in frames.items()
                if (frame["Cells"] == which).any()
            }
            x = np.array([row["Batch removed"] for row in points.values()], dtype=float)
            y = np.array([row["Biology kept"] for row in points.values()], dtype=float)
            _same_overall(ax, x, y)
            for name, horizontal, vertical in zip(points, x, y, strict=True):
                look = shown[name]
                ax.scatter(horizontal, vertical, s=60, color=look.colour, marker=look.marker, zorder=3)
            ax.set_xlabel("batch removed")
            ax.set_ylabel("biology kept")
            ax.set_title(f"{which} ({int(next(iter(points.values()))['n'])} cells)")
        legend(figure, {_title(name): look for name, look in shown.items()})
    return figure


def distance_map(frames: Mapping[str, pd.DataFrame], held_out: Collection[str] = ()) -> Figure:
    """The distance between each two batches as `a_distance` has it, a column of maps for each method; test batches are
    marked.
    """
    kinds = ("All types", "Within types")
    names = list(dict.fromkeys(name for frame in frames.values() for name in (*frame["Batch"], *frame["Other batch"])))
    labels = [short(name, 18) + (" *" if name in held_out else "") for name in names]
    with styled():
        figure, axes = canvas(1.4 + 1.75 * len(frames), 5.0, 2, len(frames), sharex=True, sharey=True)
        for row, kind in zip(axes, kinds, strict=True):
            for ax, (method, frame) in zip(row, frames.items(), strict=True):
                square = np.full((len(names), len(names)), np.nan)
                for first, second, value in zip(frame["Batch"], frame["Other batch"], frame[kind], strict=True):
                    places = names.index(first), names.index(second)
                    square[places] = square[places[::-1]] = value
                image = ax.imshow(square, cmap=SEQUENTIAL, vmin=0, vmax=2)
                if len(names) <= 6:
                    for place in zip(*np.nonzero(~np.isnan(square)), strict=True):
                        shade = "white" if square[place] > 0.7 else "black"
                        ax.text(
                            place[1], place[0], f"{square[place]:.1f}", ha="center", va="center", color=shade, size=6.5
                        )
                ax.set_xticks(range(len(names)), labels, rotation=90)
                ax.set_yticks(range(len(names)), labels)
                ax.spines[:].set_visible(False)
                ax.tick_params(length=0)
                ax.set_title(f"{plain(_title(method))}, {kind.lower()}", fontsize=8.5)
        figure.colorbar(image, ax=axes.ravel().tolist(), label="proxy A-distance", shrink=0.6)
    return figure


def section(cells_by_method: Mapping[str, Described]) -> Section | None:
    """The part of the report on alignment, of the same cells with the model of each method, the selected one first."""
    if not cells_by_method:
        return None
    first = next(iter(cells_by_method.values()))
    if not (first.labels >= 0).any():
        return None
    shown = {EXPRESSION: expression(first), **cells_by_method}
    frames = {name: alignment(cells) for name, cells in shown.items()}
    if all(frame.empty for frame in frames.values()):
        return None
    items: list[Text | Table | Picture] = [Text(_READING + _ceiling(first))]
    table = _table(frames)
    items.append(Table("alignment", _TABLE_CAPTION, table))
    if table["Batch removed"].notna().any() and table["Biology kept"].notna().any():
        items.append(Picture("alignment-tradeoff", _TRADEOFF_CAPTION, lambda: tradeoff(frames)))
    distances = {name: a_distance(cells) for name, cells in shown.items()}
    if any(frame["All types"].notna().any() for frame in distances.values()):
        held_out = set(first.batch_names[first.part == TEST].tolist())
        count = len(np.unique(first.dataset.batches[first.labels >= 0]))
        left_out = f" Of {count} batches, the {MOST_BATCHES} shown: test batches, then the largest." * (
            count > MOST_BATCHES
        )
        items.append(Table("a-distance", _DISTANCE_TABLE_CAPTION, _distance_table(distances, held_out)))
        caption = _DISTANCE_CAPTION + left_out
        items.append(Picture("a-distance-map", caption, lambda: distance_map(distances, held_out)))
    else:
        items.append(Text("No distance between batches: there are no two of ten labelled cells each."))
    return Section("Alignment in numbers", tuple(items))


def _columns() -> list[str]:
    return ["Cells", "Overall", "Biology kept", "Batch removed", *BIOLOGY, *BATCH, "n", "Types", "Batches"]


def _batches_shown(cells: Described) -> list[int]:
    codes, counts = np.unique(cells.dataset.batches, return_counts=True)
    tested = set(cells.dataset.batches[cells.part == TEST].tolist())
    order = sorted(zip(codes.tolist(), counts.tolist(), strict=True), key=lambda one: (one[0] not in tested, -one[1]))
    return sorted(code for code, _ in order[:MOST_BATCHES])


def _distance(latent: Array, first: Codes, second: Codes) -> tuple[float, int]:
    """2 (1 - 2 e) between two sets of rows, and cells of each that were used; NaN and 0 where they are too few."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(len(first), len(second), MOST_DRAWN)
    if count < FEWEST:
        return np.nan, 0
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.choice(side, count, replace=False) for side in (first, second)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    right = cross_val_score(classifier, latent[rows], np.repeat([0, 1], count), cv=folds)
    return 2 * (1 - 2 * (1 - float(right.mean()))), count


def _table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [frame.assign(Method=_title(name)) for name, frame in frames.items() if len(frame)]
    table = pd.concat(parts, ignore_index=True).sort_values("Cells", kind="stable", ignore_index=True)
    return table[["Method", *_columns()]]


def _distance_table(frames: Mapping[str, pd.DataFrame], held_out: Collection[str]) -> pd.DataFrame:
    rows = []
    for name, frame in frames.items():
        tested = frame["Batch"].isin(list(held_out)) | frame["Other batch"].isin(list(held_out))
        for which, chosen in (("training and training", ~tested), ("training and test", tested)):
            part = frame[chosen & frame["All types"].notna()]
            if len(part):
                within = part["Within types"]
                rows.append(
                    {
                        "Method": _title(name),
                        "Between batches": which,
                        "Pairs": len(part),
                        "All types": part["All types"].mean(),
                        "Within types": within.mean(),
                        "Pairs with a type in common": int(within.notna().sum()),
                    }
                )
    return pd.DataFrame(rows)


def _title(name: str) -> str:
    return "Expression" if name == EXPRESSION else TITLES.get(name, name)


def _same_overall(ax: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Lines along which the overall score is the same, and limits with room for the points."""
    x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    if not (len(x) and len(y)):
        return
    reach = max(np.ptp(x), np.ptp(y), 0.1)
    centres = (x.max() + x.min()) / 2, (y.max() + y.min()) / 2
    ax.set_xlim(centres[0] - 0.75 * reach, centres[0] + 0.75 * reach)
    ax.set_ylim(centres[1] - 0.75 * reach, centres[1] + 0.75 * reach)
    across = np.array(ax.get_xlim())
    for overall in np.arange(0.05, 1.0, 0.05):
        ax.plot(across, (overall - (1 - BIOLOGY_WEIGHT) * across) / BIOLOGY_WEIGHT, color="#dddddd", lw=0.8, zorder=1)


def _ceiling(cells: Described) -> str:
    """What iLISI would be if batches were mixed perfectly: unequal batches keep it below 1."""
    counts = np.bincount(cells.dataset.batches[cells.labels >= 0])
    counts = counts[counts > 0]
    if len(counts) < 2:
        return " There is one batch: nothing can be said of batches."
    shares = counts / counts.sum()
    ceiling = (1 / np.square(shares).sum() - 1) / (len(counts) - 1)
    return f" Since the batches are of different size, iLISI would be {ceiling:.2f} if all cells were mixed perfectly."


_READING = (
    "A classifier that is to work on batches that it has never seen should keep the cell types apart (biology kept) "
    "and give cells of a type the same representation whatever batch they come from (batch removed). Where batches "
    "differ in their types, mixing all cells is no aim: it would merge types."
)

_TABLE_CAPTION = (
    "The scores of scIB (Luecken et al. 2022) for the encoder's output, from 0 to 1, best at 1. Biology kept is the "
    "mean of NMI and ARI of a k-means clustering with the types, of the silhouette of the types and of cLISI; batch "
    "removed that of the silhouette of the batches within types, of iLISI, of graph connectivity and of PCR "
    "comparison; overall is 0.6 of the former and 0.4 of the latter. Cells: all that are labelled (training, "
    "validation and test), then those that the model was not trained on (validation and test), whose types no model "
    "has seen. Expression: 50 principal components of the log-normalised genes, before any network. The labels of "
    "test cells are used here to describe, never to choose."
)

_TRADEOFF_CAPTION = (
    "Biology kept against batch removed, the means of the table: up and to the right is better. Along a grey line the"
    " overall score is the same, and the next one is 0.05 away. The axes do not begin at 0."
)

_DISTANCE_TABLE_CAPTION = (
    "Proxy A-distance between batches, means over pairs of batches: 0 where a linear classifier cannot tell two "
    "batches apart by the encoder's output, 2 where it always can (Ben-David et al. 2007); lower is better aligned. "
    "All types: with the batches as they are, whose different composition alone tells them apart. Within types: mean "
    "over the types of which both have ten labelled cells, which compares like with like. Training cells lie tighter "
    "than cells that a network never saw, which adds to the distances to the test batch."
)

_DISTANCE_CAPTION = (
    "Proxy A-distance between each two batches, from 0 (not to be told apart) to 2, by method; above with all types "
    "together, below within the types that both batches have. Blank: a batch against itself, too few cells, or no "
    "type in common. A star marks a test batch."
)

"""How figures look: one size of type, colours that the colour-blind tell apart, no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Of Okabe and Ito (2008): told apart with every common colour vision."""

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")

GREY = "#999999"
"""Of what is there for comparison."""

METHOD_COLOURS = {"nn": "#56b4e9", "dann": "#e69f00", "scdgn": "#009e73"}

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
"""Colour maps for amounts, and for differences from 0."""

_LOOK: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "scdgn",
}


@dataclass(frozen=True)
class Look:
    """How one category is drawn: after eight of them colours come again, with another marker."""

    colour: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name, in their order: types, batches. Sort the names, so that figures agree."""
    return {
        name: Look(COLOURS[place % len(COLOURS)], MARKERS[(place // len(COLOURS) + place) % len(MARKERS)])
        for place, name in enumerate(names)
    }


@contextmanager
def styled() -> Iterator[None]:
    """The look of all figures, while they are drawn and saved."""
    with rc_context(_LOOK):
        yield


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its axes, an array (rows, columns); to be called and drawn on inside `styled`.

    Parameters
    ----------
    width, height
        In inches; a page of the report is 8 wide.
    options
        Of `Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def plain(name: str) -> str:
    """A name of the user's as it stands in a figure: matplotlib takes what is between two dollar signs for formulas."""
    return name.replace("$", r"\$")


def point_size(points: int) -> float:
    """Area of a scatter's points, in points squared: many cells get small ones."""
    return float(np.clip(6_000 / max(points, 1), 1.5, 30.0))


def legend(figure: Figure, entries: Mapping[str, Look], title: str = "") -> None:
    """A legend beside the axes: an entry below the other, so that any number of types fits a figure 3 inches high."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=look.marker, color=look.colour, markersize=5, label=plain(name))
        for name, look in entries.items()
    ]
    figure.legend(handles=handles, title=title, loc="outside right upper")


def empty(axes: Axes, words: str) -> None:
    """Say in the place of a drawing why there is none."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", wrap=True, transform=axes.transAxes)

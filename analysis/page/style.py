"""How figures look: one size of type, colours that the colour-blind tell apart, no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from scdgn.errors import shortened

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000",
    "#8800ff", "#663311", "#112288", "#aacc77", "#bb55ff",
)  # fmt: skip
"""The eight of Okabe and Ito (2008), and five that lie farthest from them and each other in CIELAB with normal colour
vision, without red, green or blue cones (as Machado et al. 2009 simulate it): no two are closer than 16, the closest of
the eight, with any of them.
"""

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")

GREY = "#999999"
"""Of what is there for comparison."""

METHOD_COLOURS = {"nn": "#56b4e9", "dann": "#e69f00", "scdgn": "#009e73"}

SHEET, PHONE = 8.0, 3.75
"""Inches across the report: on a screen or on paper, and on a phone."""

SEQUENTIAL, DIVERGING, SHARES = "viridis_r", "RdBu_r", "Blues"
"""Colour maps for amounts, for differences from 0, and for shares with numbers written on them. What is large stands
out from the page: dark where it is white, and light where the page turns it over.
"""

EDGE = 0.07
"""Inches at the edges of a figure: type is a little wider at coarse resolutions than where the layout was made."""

ENTRY = 1.25
"""Inches that an entry takes in a legend above the axes."""

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
    """How one category is drawn: after thirteen of them colours come again, with another marker."""

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


_across: ContextVar[float] = ContextVar("across", default=SHEET)


@contextmanager
def page_width(inches: float) -> Iterator[None]:
    """Draw figures for a page so wide."""
    token = _across.set(inches)
    try:
        yield
    finally:
        _across.reset(token)


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, least: float = 0.0, **options: Any
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its axes, an array (rows, columns); to be called and drawn on inside `styled`.

    On a page that is narrower (`page_width`) the figure is as wide as the page, and panels that stood side by side
    stand one below the other, row by row, each as high as before.

    Parameters
    ----------
    width, height
        In inches, on a page that is SHEET wide.
    least
        Width below which it cannot be read: it is moved sideways instead.
    options
        Of `Figure.subplots`.
    """
    width = min(width, SHEET)
    across = min(width, max(_across.get(), least))
    if columns > 1 and across < width:
        figure = Figure(figsize=(across, height * columns), layout="constrained")
        shared = {name: options[name] for name in ("sharex", "sharey") if name in options}
        stack: NDArray[np.object_] = figure.subplots(rows * columns, 1, squeeze=False, **shared)
        return figure, stack.reshape(rows, columns)
    figure = Figure(figsize=(across, height), layout="constrained")
    axes: NDArray[np.object_] = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def settled(figure: Figure) -> Figure:
    """The figure, its layout made once and for all: it takes as long as a drawing, and would be made for each file."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=EDGE)
    with styled():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def over_column(axes: NDArray[np.object_]) -> Axes:
    """One axes in the place of a column of them, (rows,); where panels are stacked, the first of them."""
    figure, first, last = axes[0].figure, axes[0].get_subplotspec(), axes[-1].get_subplotspec()
    grid = first.get_gridspec()
    if grid.ncols == 1:
        leave_empty(axes[1:])
        whole: Axes = axes[0]
    else:
        for ax in axes:
            ax.remove()
        whole = figure.add_subplot(grid[first.rowspan.start : last.rowspan.stop, first.colspan.start])
    return whole


def leave_empty(axes: Iterable[Axes]) -> None:
    """Take away panels in which nothing is drawn; where panels are stacked, the others get their room."""
    for ax in axes:
        spec = ax.get_subplotspec()
        assert spec is not None
        grid = spec.get_gridspec()
        if grid.ncols == 1:
            heights = np.asarray(grid.get_height_ratios(), dtype=float)
            heights[spec.rowspan.start] = 0.01
            grid.set_height_ratios(heights)
        ax.remove()


def plain(name: str) -> str:
    """A name of the user's as it stands in a figure.

    Matplotlib takes what is between two dollar signs for a formula, and leaves what begins with an underscore out of
    legends.
    """
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def point_size(points: int) -> float:
    """Area of a scatter's points, in points squared: many cells get small ones."""
    return float(np.clip(6_000 / max(points, 1), 1.5, 30.0))


def short(name: str, most: int = 24) -> str:
    """A name as `plain` has it, cut where it would take the room of the drawing."""
    return plain(shortened(name, most))


def legend(figure: Figure, entries: Mapping[str, Look], title: str = "") -> None:
    """A legend beside all axes: one entry below the other, so that 13 types fit a figure 3 inches high.

    On a narrow page it stands above them.
    """
    if figure.get_figwidth() <= PHONE:
        figure.legend(handles=_handles(entries), title=title, loc="outside upper left", ncols=2)
    else:
        figure.legend(handles=_handles(entries), title=title, loc="outside right upper")


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend above all axes, as many entries in a row as the figure has room for."""
    most = max(1, int(figure.get_figwidth() / ENTRY))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), most))


def legend_beside(axes: Axes, entries: Mapping[str, Look], title: str = "") -> None:
    """A legend to the right of one of several axes, for which the layout makes room: 17 entries in 2.6 inches."""
    axes.legend(
        handles=_handles(entries),
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.02),
        borderaxespad=0.2,
        labelspacing=0.25,
        fontsize=8 if len(entries) <= 13 else 6.5,
    )


def label_points(
    axes: Axes, names: Sequence[str], x: NDArray[np.float64], y: NDArray[np.float64], size: float = 8
) -> None:
    """Write a name beside each point, where no other name and as few points as possible are.

    Limits, scales and everything else that takes room has to be there before. A name that ends up far from its point
    gets a line to it.

    Parameters
    ----------
    names
        (points,); a point without a name (empty) is only kept clear of the others' names.
    x, y
        (points,) in the data's units.
    size
        Of the type, in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout
    points = axes.transData.transform(np.column_stack([x, y]))  # (points, 2) in pixels
    frame, pixels = axes.get_window_extent(), figure.dpi / 72
    taken: list[Bbox] = []
    for place in np.argsort(-points[:, 1], kind="stable"):
        if not names[place]:
            continue
        text = axes.annotate(
            short(names[place]),
            (x[place], y[place]),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
        text.set_in_layout(False)
        extent = Text.get_window_extent(text)  # with the line to its point it would be larger
        half = np.array([extent.width, extent.height]) / 2
        offsets = list(_around(*half / pixels))
        middles = [points[place] + np.multiply(offset, pixels) for offset in offsets]
        boxes = [Bbox([middle - half, middle + half]) for middle in middles]
        costs = [
            1_000 * (1 - frame.count_contains(box.get_points()) // 2)
            + 100 * box.count_overlaps(taken)
            + 10 * box.count_contains(points)
            + step
            for step, box in enumerate(boxes)
        ]
        best = int(np.argmin(costs))
        text.set_position(offsets[best])
        taken.append(boxes[best])


def _around(half_width: float, half_height: float) -> Iterator[tuple[float, float]]:
    """Where the middle of a name may be, seen from its point: near ones first, in points."""
    for gap in (4.0, 12.0, 22.0, 34.0, 48.0, 64.0):
        across, up = half_width + gap, half_height + gap
        yield from [(across, 0), (-across, 0), (0, up), (0, -up)]
        yield from [(across, up), (across, -up), (-across, up), (-across, -up)]


def _handles(entries: Mapping[str, Look]) -> list[Line2D]:
    return [
        Line2D([], [], linestyle="", marker=look.marker, color=look.colour, markersize=5, label=short(name))
        for name, look in entries.items()
    ]


def empty(axes: Axes, words: str) -> None:
    """Say in the place of a drawing why there is none."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", wrap=True, transform=axes.transAxes)

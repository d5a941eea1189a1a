"""What a report is made of: sections of paragraphs, commands, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from scdgn.analysis.page.style import PHONE, page_width, settled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, as it stands: no markup in it."""

    words: str


@dataclass(frozen=True)
class Command:
    """A line to type."""

    words: str


@dataclass(frozen=True, eq=False)
class Table:
    """A table.

    Attributes
    ----------
    key
        Of its files: letters, digits and hyphens.
    caption
        What it shows, a sentence or two.
    frame
        Columns as they are to be read, rows in their order; the index is not shown. Numbers as numbers.
    decimals
        Of numbers that are not whole, in the report; the files have all.
    """

    key: str
    caption: str
    frame: pd.DataFrame
    decimals: int = 3


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure.

    Attributes
    ----------
    key
        Of its files: letters, digits and hyphens.
    caption
        What is to be seen, a sentence or two.
    draw
        Makes the figure, on a canvas of `scdgn.analysis.page.style`, which is as wide as the page.
    """

    key: str
    caption: str
    draw: Callable[[], Figure]

    @cached_property
    def figure(self) -> Figure:
        """As it is on a screen and on paper."""
        return settled(self.draw())

    @cached_property
    def narrow(self) -> Figure:
        """As it is on a phone."""
        with page_width(PHONE):
            return settled(self.draw())


Item = Text | Command | Table | Picture


def pictures(key: str, caption: str, draw: Callable[[], Figure | None]) -> tuple[Picture, ...]:
    """One picture; none where there is nothing to draw."""
    return () if draw() is None else (Picture(key, caption, cast("Callable[[], Figure]", draw)),)


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a report.

    Attributes
    ----------
    title
        In sentence case.
    items
        In the order in which they are read.
    """

    title: str
    items: tuple[Item, ...]

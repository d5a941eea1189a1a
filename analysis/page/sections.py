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
    """A table: columns as they are to be read, rows in their order, without the index; numbers as numbers.

    Its key names its files (letters, digits and hyphens), the caption says what it shows in a sentence or two. Numbers
    that are not whole have so many decimals in the report; the files have all.
    """

    key: str
    caption: str
    frame: pd.DataFrame
    decimals: int = 3


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure that `draw` makes, on a canvas of `scdgn.analysis.page.style`, which is as wide as the page.

    Its key names its files (letters, digits and hyphens), the caption says what is to be seen in a sentence or two.
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
    """A part of a report: a title in sentence case, and items in the order in which they are read."""

    title: str
    items: tuple[Item, ...]

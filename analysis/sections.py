"""What a report is made of: sections of paragraphs, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, as it stands: no markup in it."""

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
    figure
        Drawn with `analysis.style`.
    """

    key: str
    caption: str
    figure: Figure


Item = Text | Table | Picture


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

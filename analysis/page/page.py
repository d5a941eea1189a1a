"""A report as files: one HTML page that needs nothing beside it, and every table and figure by itself."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from scdgn.analysis.page.sections import Item, Picture, Section, Table
from scdgn.analysis.page.style import PHONE, styled
from scdgn.analysis.page.tables import write as write_table
from scdgn.errors import OutputError, listed
from scdgn.files import new_file

MOST_BYTES = 4_800_000
"""Of the page: it is to be sent by mail."""

RESOLUTIONS = (140, 110, 85, 65, 50)
"""Pixels per inch of the pictures in the page; the first at which it is small enough."""

FILE_RESOLUTION = 200
"""Pixels per inch of the .png files."""

ROWS_SHOWN, ROWS_KEPT = 20, 200
"""Rows of a table from which it is folded, and which the page holds at most; the files have all."""

ACROSS, WIDEST, GAP = 112, 28, 2
"""Characters across a sheet of paper, of a column before its text is broken, and between two columns."""

SMALLEST = 0.0005
"""Numbers below it are written with an exponent."""


@dataclass(frozen=True)
class Link:
    """A run in MLflow."""

    name: str
    url: str


@dataclass(frozen=True, eq=False)
class Chapter:
    """What is shown of one data set, by the name of its studies: sections in the order in which they are read."""

    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, eq=False)
class Document:
    """All that a report says: what came out first, sections about all data sets together, and a chapter for each.

    Its links go to the runs in MLflow; the footer says where the report comes from.
    """

    title: str
    lead: tuple[Item, ...]
    overview: tuple[Section, ...]
    chapters: tuple[Chapter, ...]
    links: tuple[Link, ...] = ()
    footer: tuple[str, ...] = ()


def write(report: Document, folder: Path, say: Callable[[str], object] = lambda text: None) -> Path:
    """Write a report, replacing an earlier one: report.html, tables/ (.csv, .md, .tex) and figures/ (.png, .svg); the
    page.

    `say` is told where a page does not fit its limit.

    Raises
    ------
    OutputError
        If the folder, which is made if it is not there, cannot be written to.
    """
    try:
        for place in (folder / "tables", folder / "figures"):
            place.mkdir(parents=True, exist_ok=True)
        for chapter, item in _items(report):
            if isinstance(item, Table):
                write_table(item.frame, folder / "tables" / _stem(chapter, item.key))
            elif isinstance(item, Picture):
                _write_figure(item.figure, folder / "figures" / _stem(chapter, item.key))
        page = ""
        for resolution in RESOLUTIONS:
            page = rendered(report, resolution)
            if len(page.encode()) <= MOST_BYTES:
                break
        else:
            say(
                f"the page takes {len(page.encode()) / 1e6:.1f} MB: give fewer studies for one that can be sent by mail"
            )
        with new_file(folder / "report.html") as place:
            place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror or error}): choose another -o") from error
    return folder / "report.html"


def rendered(report: Document, resolution: int) -> str:
    """The page, its pictures with so many pixels per inch; what comes from the user's data is escaped in it."""
    environment = Environment(
        loader=PackageLoader("scdgn.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        kind=lambda item: type(item).__name__.lower(),
        anchor=_anchor,
        stem=_stem,
        views=lambda item: _views(item, resolution),
        sheets=_sheets,
        header=_header,
        rows=_rows,
        numeric=_numeric,
        count=lambda item: len(item.frame),
        rows_shown=ROWS_SHOWN,
        rows_kept=ROWS_KEPT,
    )
    return environment.get_template("report.html").render(report=report)


def _items(report: Document) -> Iterator[tuple[str, Item]]:
    yield from (("", item) for item in report.lead)
    for section in report.overview:
        yield from (("", item) for item in section.items)
    for chapter in report.chapters:
        title = chapter.title if len(report.chapters) > 1 else ""
        yield from ((title, item) for section in chapter.sections for item in section.items)


def _stem(chapter: str, key: str) -> str:
    """The name of a file: of its chapter, where there are several, and of the item."""
    return "-".join(filter(None, [_anchor(chapter), key]))


def _anchor(*titles: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(titles).lower()).strip("-")


def _write_figure(figure: Figure, stem: Path) -> None:
    with styled():
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=FILE_RESOLUTION)
        figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})


@dataclass(frozen=True)
class View:
    """A figure in the page: its data as an address, and its size in the page's pixels.

    It is shown `on` a `sheet`, a `phone` or both; and `wide` where it is moved sideways on a phone.
    """

    on: str
    source: str
    width: int
    height: int


def _views(picture: Picture, resolution: int) -> list[View]:
    """A picture as it is shown on a sheet and on a phone; once, where it is the same."""
    sheet, phone = picture.figure, picture.narrow
    wide = " wide" if phone.get_figwidth() > PHONE else ""
    same = phone.get_figwidth() == sheet.get_figwidth()
    figures = {f"sheet phone{wide}": sheet} if same else {"sheet": sheet, f"phone{wide}": phone}
    return [
        View(on, _embedded(figure, resolution), *(int(side * 96) for side in figure.get_size_inches()))
        for on, figure in figures.items()
    ]


def _embedded(figure: Figure, resolution: int) -> str:
    """A figure as the address of a picture that holds its data: 256 colours are plenty, and take a third."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    with styled():
        figure.savefig(drawn, format="png", dpi=resolution)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256).save(packed, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _sheets(table: Table) -> list[Table]:
    """A table in parts that fit across a sheet of paper, each beginning with what tells rows apart: a column or two."""
    rows = [_header(table), *_rows(table)]
    keys = [0] if not table.frame.iloc[:, 0].duplicated().any() else [0, 1][: table.frame.shape[1]]
    # Headings break between words, cells where they have to.
    widths = [min(max(map(len, (*name.split(), *cells))), WIDEST) + GAP for name, *cells in zip(*rows, strict=True)]
    whole = ACROSS - sum(widths[place] for place in keys)
    parts, room = [list(keys)], whole
    for place, width in list(enumerate(widths))[len(keys) :]:
        if width > room and len(parts[-1]) > len(keys):
            parts.append(list(keys))
            room = whole
        parts[-1].append(place)
        room -= width
    return [replace(table, frame=table.frame.iloc[:, part]) for part in parts]


def _header(table: Table) -> list[str]:
    return [str(name) for name in table.frame.columns]


def _numeric(table: Table) -> list[bool]:
    kinds = [table.frame.iloc[:, place] for place in range(table.frame.shape[1])]
    return [pd.api.types.is_numeric_dtype(column) and column.dtype != bool for column in kinds]


def _rows(table: Table) -> Iterator[list[str]]:
    for row in table.frame.head(ROWS_KEPT).itertuples(index=False, name=None):
        yield [written(value, table.decimals) for value in row]


def written(value: object, decimals: int) -> str:
    """A value as a reader wants it: numbers rounded, nothing for what is missing."""
    if value is None or value is pd.NA:
        return ""
    match value.item() if isinstance(value, np.generic) else value:
        case bool(truth):
            return "yes" if truth else "no"
        case int(number):
            return f"{number:,}"
        case float(number) if math.isnan(number):
            return ""
        case float(number):
            return f"{number:.1e}" if 0 < abs(number) < SMALLEST else f"{number:,.{decimals}f}"
        case other:
            return str(other)


def joined(names: Sequence[str], most: int = 12) -> str:
    """Names in a sentence, the first ones where there are many."""
    if len(names) > most:
        return listed(names, most)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

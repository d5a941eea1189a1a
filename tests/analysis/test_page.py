"""The page of a report: whole, safe and small, whatever is in it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis import page
from analysis.page import Chapter, Fact, Link, Report
from analysis.sections import Picture, Section, Table, Text
from analysis.style import canvas, styled
from scdgn.errors import OutputError

SCRIPT = "<script>alert('beta & co')</script>"


def picture(key: str = "cloud", points: int = 50, inches: float = 3.0) -> Picture:
    with styled():
        figure, axes = canvas(inches, inches)
        generator = np.random.default_rng(0)
        axes[0, 0].scatter(*generator.normal(size=(2, points)), c=generator.random(points), rasterized=True)
    return Picture(key, f"A cloud of {points} points.", figure)


def table(rows: int = 3) -> Table:
    frame = pd.DataFrame(
        {
            "type": [f"type {number}" for number in range(rows)],
            "cells": np.arange(rows) * 1000,
            "recall": np.linspace(0, 1, rows),
            "seen": [True] * rows,
        }
    )
    return Table("recall", "Recall by type.", frame)


def report(*chapters: Chapter, overview: tuple[Section, ...] = ()) -> Report:
    return Report("Islets", ("What came out.",), (Fact("0.91", "accuracy", "of 42 cells"),), overview, chapters)


def section(*items: Text | Table | Picture, title: str = "Evidence") -> Section:
    return Section(title, items)


class Parser(HTMLParser):
    """What the tests look for in a page: its elements, its text, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_files_and_page_hold_every_table_and_figure(tmp_path: Path) -> None:
    made = page.write(report(Chapter("islets", (section(Text("Look."), table(), picture()),))), tmp_path / "out")
    assert sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    ) == [
        "figures/cloud.png",
        "figures/cloud.svg",
        "report.html",
        "tables/recall.csv",
        "tables/recall.md",
        "tables/recall.tex",
    ]
    parsed = Parser(made.read_text(encoding="utf-8"))
    for words in ("Islets", "What came out.", "0.91", "Look.", "Recall by type.", "A cloud of 50 points.", "2,000"):
        assert words in parsed.text
    (image,) = parsed.all("img")
    assert image["alt"] == "A cloud of 50 points."
    assert image["src"] is not None and image["src"].startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as drawn:
        assert drawn.size == (420, 420)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out/tables/recall.csv"), table().frame)


def test_nothing_is_loaded_from_anywhere() -> None:
    text = page.rendered(report(Chapter("islets", (section(table(), picture()),))), 50)
    parsed = Parser(text)
    assert not parsed.all("link") and not parsed.all("iframe")
    assert all("src" not in script for script in parsed.all("script"))
    assert "url(" not in text and "@import" not in text
    assert all(str(image["src"]).startswith("data:") for image in parsed.all("img"))
    links = {str(link["href"]) for link in parsed.all("a")}
    anchors = {f"#{attributes['id']}" for _, attributes in parsed.elements if "id" in attributes}
    assert links and links <= anchors


def test_names_are_text_wherever_they_stand() -> None:
    frame = pd.DataFrame({SCRIPT: [SCRIPT], "n": [1]})
    items = (Text(SCRIPT), Table("names", SCRIPT, frame), Picture("cloud", SCRIPT, picture().figure))
    chapters = [Chapter(f"{SCRIPT}{number}", (Section(SCRIPT, items),)) for number in range(2)]
    whole = Report(
        SCRIPT,
        (SCRIPT,),
        (Fact(SCRIPT, SCRIPT, SCRIPT),),
        (),
        tuple(chapters),
        (Link(SCRIPT, "http://h/#/x"),),
        (SCRIPT,),
    )
    parsed = Parser(page.rendered(whole, 50))
    assert len(parsed.all("script")) == 1
    assert parsed.text.count("alert('beta & co')") >= 12


def test_several_data_sets_have_chapters_that_fold_and_files_of_their_own(tmp_path: Path) -> None:
    chapters = [
        Chapter(f"pbmc/split{number}", (section(table()), section(picture(), title="More"))) for number in (1, 2)
    ]
    made = page.write(report(*chapters, overview=(section(table(), title="All"),)), tmp_path)
    assert sorted(path.name for path in (tmp_path / "tables").glob("*.csv")) == [
        "pbmc-split1-recall.csv",
        "pbmc-split2-recall.csv",
        "recall.csv",
    ]
    parsed = Parser(made.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert [entry.get("id") for entry in parsed.all("details") if entry.get("class") == "chapter"] == [
        "pbmc-split1",
        "pbmc-split2",
    ]


def test_long_tables_fold_and_end() -> None:
    text = page.rendered(report(Chapter("islets", (section(table(300)),))), 50)
    parsed = Parser(text)
    assert len(parsed.all("tr")) == page.ROWS_KEPT + 1
    assert "The first 200 rows; all are in" in " ".join(parsed.text.split())
    assert len([entry for entry in parsed.all("details") if entry.get("class") == "table"]) == 1
    assert not [entry for entry in Parser(page.rendered(report(), 50)).all("details") if entry.get("class") == "table"]


def test_a_page_that_would_be_too_large_has_coarser_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = report(Chapter("islets", (section(picture(points=3000, inches=6.0)),)))
    fine, coarse = (len(page.rendered(one, resolution)) for resolution in (page.RESOLUTIONS[0], page.RESOLUTIONS[2]))
    monkeypatch.setattr(page, "MOST_BYTES", coarse)
    made = page.write(one, tmp_path)
    assert made.stat().st_size <= coarse < fine
    said: list[str] = []
    monkeypatch.setattr(page, "MOST_BYTES", 10)
    page.write(one, tmp_path, said.append)
    assert len(said) == 1 and "give fewer studies" in said[0]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another -o"):
        page.write(report(), tmp_path / "file" / "out")


def test_values_are_written_as_they_are_read() -> None:
    given = [
        None,
        float("nan"),
        pd.NA,
        True,
        np.False_,
        1234567,
        np.int64(12),
        0.12345,
        np.float32(0.5),
        1e-5,
        0.0,
        "a_b",
    ]
    assert [page.written(value, 3) for value in given] == [
        "", "", "", "yes", "no", "1,234,567", "12", "0.123", "0.500", "1.0e-05", "0.000", "a_b",
    ]  # fmt: skip


def test_figures_come_out_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        page.write(report(Chapter("islets", (section(picture()),))), tmp_path / name)
    for file in ("report.html", "figures/cloud.svg", "figures/cloud.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_template_is_shipped() -> None:
    assert re.search(r"prefers-color-scheme", page.rendered(report(), 50))

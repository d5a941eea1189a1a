"""The page of a report: whole, safe and small, whatever is in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scdgn.analysis.page import page
from scdgn.analysis.page.page import Chapter, Document, Link, joined
from scdgn.analysis.page.sections import Command, Picture, Section, Table, Text
from scdgn.analysis.page.style import PHONE, canvas, styled
from scdgn.errors import OutputError

SCRIPT = "<script>alert('beta & co')</script>"


def picture(key: str = "cloud", points: int = 50, inches: float = 3.0) -> Picture:
    with styled():
        figure, axes = canvas(inches, inches)
        generator = np.random.default_rng(0)
        axes[0, 0].scatter(*generator.normal(size=(2, points)), c=generator.random(points), rasterized=True)
    return Picture(key, f"A cloud of {points} points.", lambda: figure)


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


def report(*chapters: Chapter, overview: tuple[Section, ...] = ()) -> Document:
    return Document("Islets", (Text("What came out."), Command("scdgn predict CELLS.h5ad")), overview, chapters)


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
    first = ("Islets", "What came out.", "scdgn predict CELLS.h5ad")
    for words in (*first, "Look.", "Recall by type.", "A cloud of 50 points.", "2,000"):
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


def test_hundreds_of_names_stay_a_sentence() -> None:
    names = [f"donor_{number}" for number in range(299)]
    assert joined(names).endswith("donor_11 and 287 more") and joined(names[:3]) == "donor_0, donor_1 and donor_2"


def test_names_are_text_wherever_they_stand() -> None:
    frame = pd.DataFrame({SCRIPT: [SCRIPT], "n": [1]})
    items = (Text(SCRIPT), Table("names", SCRIPT, frame), Picture("cloud", SCRIPT, picture().draw))
    chapters = [Chapter(f"{SCRIPT}{number}", (Section(SCRIPT, items),)) for number in range(2)]
    whole = Document(
        SCRIPT,
        (Text(SCRIPT), Command(SCRIPT)),
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


def test_panels_stand_side_by_side_on_a_sheet_and_below_each_other_on_a_phone() -> None:
    def draw() -> Figure:
        with styled():
            return canvas(8.0, 3.0, 2, 2)[0]

    parsed = Parser(page.rendered(report(Chapter("islets", (section(Picture("grid", "Panels.", draw)),))), 50))
    sheet, phone = parsed.all("img")
    assert (sheet["width"], sheet["height"]) == ("768", "288")
    assert (phone["width"], phone["height"]) == (str(int(PHONE * 96)), "576")
    where = [attributes["class"] for attributes in parsed.all("div") if "scroll" in str(attributes.get("class"))]
    assert where == ["scroll sheet", "scroll phone"]


def test_what_cannot_be_narrowed_is_moved_sideways() -> None:
    def draw() -> Figure:
        with styled():
            return canvas(8.0, 3.0, least=8.0)[0]

    parsed = Parser(page.rendered(report(Chapter("islets", (section(Picture("wide", "Wide.", draw)),))), 50))
    assert len(parsed.all("img")) == 1
    assert "scroll sheet phone wide" in [attributes.get("class") for attributes in parsed.all("div")]


def test_a_table_wider_than_paper_is_printed_in_parts_that_begin_with_what_tells_rows_apart() -> None:
    frame = pd.DataFrame({"method": ["NN", "NN"], "trial": [1, 2], **{f"setting {n}": [0.125] * 2 for n in range(40)}})
    text = page.rendered(report(Chapter("islets", (section(Table("wide", "Wide.", frame)),))), 50)
    on_screen, on_paper = text.split('<div class="paper">')
    assert on_screen.count("<table>") == 1 and on_paper.count("<table>") > 2
    heads = [re.findall(r"<th[^>]*>([^<]*)</th>", part) for part in on_paper.split("<table>")[1:]]
    assert all(head[:2] == ["method", "trial"] for head in heads)
    assert [name for head in heads for name in head[2:]] == list(frame.columns[2:])
    assert all(sum(len(name) for name in head) <= page.ACROSS for head in heads)
    narrow = page.rendered(report(Chapter("islets", (section(table()),))), 50)
    assert '<div class="paper">' not in narrow


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_figure_is_dark_where_the_page_is_dark(tmp_path: Path) -> None:
    made = page.write(report(Chapter("islets", (section(picture(inches=6.0)),))), tmp_path / "out")
    shares = {}
    for scheme, number in (("light", 1), ("dark", 0)):  # as Chromium numbers what its user prefers
        shot = tmp_path / f"{scheme}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=800,1400"]
        options += ["--disable-background-networking", f"--user-data-dir={tmp_path / scheme}"]
        options += [f"--blink-settings=preferredColorScheme={number}", f"--screenshot={shot}", made.as_uri()]
        subprocess.run([str(BROWSER), *options], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as drawn:
            shares[scheme] = float((np.asarray(drawn.convert("L")) > 200).mean())
    assert shares["light"] > 0.8 and shares["dark"] < 0.1

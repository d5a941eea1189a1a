"""Names of types, batches and studies are text wherever they are shown, and no paths where files are written."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from scdgn.analysis.page import page, tables
from scdgn.analysis.page.page import Chapter, Document
from scdgn.analysis.page.sections import Picture, Section, Table, Text
from scdgn.analysis.page.style import canvas, plain, styled
from scdgn.cells.h5ad import write_h5ad
from scdgn.errors import ScdgnError
from scdgn.files import clear, new_folder
from scdgn.search.folder import StudyFolder
from scdgn.search.study.settings import StudySettings, leaves
from tests.faults import done, run, tiny, tree
from tests.security.test_credentials import SEARCH

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x onerror=alert(2)>',
    "$x^2$ $\\frac{$",
    "{{7*7}}{% include 'x' %}",
    "../../up",
    "=cmd|' /C calc'!A0",
    "a|b_c[d](javascript:alert(3))",
    "\\input{/etc/passwd}&%#~^",
)
BATCHES = ("<svg onload=alert(4)>", "../../out", "\" onmouseover='alert(5)'", "{{config}}")
ELEMENTS = {"iframe", "object", "embed", "link", "svg", "form", "base", "frame", "video", "audio"}


class Page(HTMLParser):
    """What in a page would run, or be fetched; and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = 0
        self.wrong: list[tuple[str, object]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ELEMENTS:
            self.wrong.append((tag, attrs))
        for name, value in attrs:
            address = (value or "").strip().lower()
            fetched = name in ("src", "srcset", "href", "action", "data", "poster", "style")
            fine = address.startswith(("#", "data:image/png;", "http://127.0.0.1:5000/#/")) or name == "style"
            if name.startswith("on") or (fetched and (not fine or "url(" in address)):
                self.wrong.append((tag, (name, value)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_that_is_attacked_is_told_from_one_that_is_not() -> None:
    for name in (*HOSTILE[:2], BATCHES[0], "<a href='javascript:alert(1)'>", "<p style='background:url(//x)'>"):
        found = Page(f"<p>{name}</p>")
        assert found.wrong or found.scripts


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, two levels down, with a study of such cells, its runs in MLflow, and its report."""
    place = tmp_path_factory.mktemp("names") / "in" / "here"
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cells = tiny(cells=dict.fromkeys(BATCHES, 80), cell_types=HOSTILE)
        write_h5ad(cells, Path("cells.h5ad"))
        done(*SEARCH[:-2], "--test-batch", BATCHES[1], "--device", "cpu")
        done("report", "x", "--no-cells")
        done("sync", "x")
        done("report", "x", "--from-mlflow", "-o", "tracked")
        done("predict", "cells.h5ad", "--model", "studies/x/model", "-o", "out.h5ad", "-q")
    return place


def test_the_report_shows_names_as_text(reported: Path) -> None:
    own = Page(page.rendered(Document("", (), (), (), ()), 50)).scripts
    for path in (reported / "studies/x/report.html", reported / "tracked/report.html"):
        found = Page(path.read_text(encoding="utf-8"))
        assert found.wrong == [] and found.scripts == own
        assert BATCHES[0] in found.text


def test_nothing_is_written_outside_the_folder(reported: Path) -> None:
    """Neither for MLflow's artifacts nor for tables and figures."""
    assert {path.name for path in reported.iterdir()} == {"cells.h5ad", "out.h5ad", "studies", "tracked"}
    assert [path.name for path in reported.parent.iterdir()] == ["here"]
    assert [path.name for path in reported.parent.parent.iterdir()] == ["in"]
    names = re.compile(r"[\w.+-]+")
    wrong = [path for path in reported.rglob("*") if not names.fullmatch(path.name)]
    assert wrong == []


def test_svg_holds_names_as_text(reported: Path, tmp_path: Path) -> None:
    with styled():
        figure, axes = canvas(4, 3)
        axes[0, 0].barh([plain(name) for name in HOSTILE], np.arange(len(HOSTILE)))
        axes[0, 0].set_title(plain("".join(BATCHES)))
    chapter = Chapter("../../up", (Section("x", (Picture("cloud", "x", lambda: figure),)),))
    page.write(Document("x", (), (), (chapter, Chapter("<b>", ()))), tmp_path / "out")
    written = list((tmp_path / "out/figures").glob("*.svg"))
    assert [path.name for path in written] == ["up-cloud.svg"]
    for path in [*written, *reported.rglob("*.svg")]:
        root = ElementTree.parse(path).getroot()
        assert "script" not in {element.tag.rpartition("}")[2] for element in root.iter()}
        for element in root.iter():
            for name, value in element.attrib.items():
                assert not name.lower().startswith("on")
                assert not name.endswith("href") or value.startswith(("#", "data:image/png;"))


def test_tables_hold_names_as_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"type": HOSTILE, "<script>": np.arange(len(HOSTILE)) / 7})
    csv, markdown, latex = tables.write(frame, tmp_path / "x")
    # For programs: names stay as they are, since others join by them (SECURITY.md).
    assert tuple(pd.read_csv(csv)["type"]) == HOSTILE
    assert csv.read_text().count("\n") == len(HOSTILE) + 1
    lines = markdown.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(HOSTILE) + 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3 and "<" not in line
        assert not re.search(r"(?<!\\)\]\(", line)
    text = latex.read_text(encoding="utf-8")
    body = text[text.index("\\midrule") :]
    assert "\\input" not in body and "\\textbackslash" in body and "\\textasciicircum" in body
    for sign in "&%$#_":
        rows = [line.partition(" & ")[0] for line in body.splitlines() if " & " in line]
        assert not any(re.search(rf"(?<!\\){re.escape(sign)}", row) for row in rows)


def test_the_page_of_a_table_holds_names_as_text() -> None:
    frame = pd.DataFrame({name: [name] for name in (*HOSTILE, *BATCHES)})
    section = Section(HOSTILE[0], (Table("x", HOSTILE[1], frame),))
    whole = Document(HOSTILE[0], tuple(map(Text, HOSTILE)), (section,), (Chapter(HOSTILE[3], (section,)),) * 2)
    found = Page(page.rendered(whole, 50))
    assert found.wrong == []
    for name in (*HOSTILE, *BATCHES):
        assert name in found.text


# --- paths

NAMES = (
    "..",
    "../x",
    "a/../b",
    "/etc/x",
    "a//b",
    ".",
    "",
    "a/",
    "/",
    "~",
    "-x",
    ".hidden",
    "a\\b",
    "a\0b",
    "a\nb",
    "con:",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_cannot_be_called_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_h5ad(tiny(), Path("cells.h5ad"))
    before = tree(tmp_path)
    with pytest.raises(ScdgnError, match="no name for a folder"):
        StudySettings(name)
    assert run(*SEARCH, "--no-track", f"--name={name}").status == 2
    assert tree(tmp_path) == before


def test_batches_make_names_of_studies_inside_the_folder() -> None:
    settings = StudySettings("x", studies=Path("studies"))
    settings = StudySettings("x", source=type(settings.source)(test_batch="each"), studies=Path("studies"))
    hostile = (*BATCHES, *HOSTILE, "..", ".", "", "/", "\0", "é")
    folders = [leaf.folder for leaf in leaves(settings, hostile)]
    assert len(set(folders)) == len(hostile)
    for folder in folders:
        assert folder.parent == Path("studies/x") and ".." not in folder.parts and "\0" not in folder.name


def elsewhere(tmp_path: Path) -> Path:
    """A folder that nothing is to happen to."""
    place = tmp_path / "elsewhere"
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "kept").write_text("kept")
    (place / "model.json").write_text("kept")
    return place


def test_what_links_lead_to_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that is replaced, of one that is cleared, and of a model that is a link itself."""
    outside = elsewhere(tmp_path)
    before = tree(outside)
    for replaced in (True, False):  # by one exchange of names, and by two
        if not replaced:
            monkeypatch.setattr("scdgn.files._exchanged", lambda *_: False)
        linked = tmp_path / f"linked{replaced}"
        linked.symlink_to(outside)
        with pytest.raises(ScdgnError, match="holds other things"), new_folder(linked, True, ("model.json",)):
            pass
        held = tmp_path / f"model{replaced}"
        held.mkdir()
        (held / "model.json").symlink_to(outside / "model.json")
        (held / "weights").symlink_to(outside / "deep")
        with new_folder(held, True, ("model.json", "weights")) as place:
            (place / "model.json").write_text("new")
        assert (held / "model.json").read_text() == "new" and not (held / "model.json").is_symlink()
        assert tree(outside) == before
    study = tmp_path / "study"
    study.mkdir()
    (study / ".model.abcdefgh").symlink_to(outside)
    (study / ".model.hgfedcba").mkdir()
    (study / ".model.hgfedcba" / "x").symlink_to(outside / "deep")
    clear(study)
    assert not (study / ".model.hgfedcba").exists()
    assert tree(outside) == before


def test_a_study_that_is_a_link_is_set_aside_and_not_removed(
    tmp_path: Path, reported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(reported / "cells.h5ad", tmp_path)
    monkeypatch.chdir(tmp_path)
    outside = elsewhere(tmp_path)
    shutil.copytree(reported / "studies/x", outside / "x")
    before = tree(outside)
    Path("studies").mkdir()
    Path("studies/x").symlink_to(outside / "x")
    done(*SEARCH, "--no-track", "--fresh", "--trials", "1")
    after = {name: content for name, content in tree(outside).items() if not name.startswith("x/.lease")}
    assert after == {name: content for name, content in before.items() if not name.startswith("x/.lease")}
    assert StudyFolder(Path("studies/x")).read_summary() is not None

"""What the pages in docs/ have somebody type works, in their order, and the site is whole and needs no other host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.guides import DOCS, check_command, commands, commands_of, fences
from tests.servers import free_port, without_mlflow

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md"))]
TUTORIAL = DOCS / "tutorial.md"
PORT = "5417"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- What is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_exists(page: Path) -> None:
    named = re.findall(r"(?:`|^)scdgn ([a-z]+)", page.read_text(), flags=re.MULTILINE)
    assert set(named) <= set(commands())
    for words in commands_of(page):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_none_out_of_the_docs(page: Path) -> None:
    """So that a link works where the pages are read as files as it does on the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            continue
        there = (page.parent / unquote(parts.path)).resolve()
        assert there.is_file(), link
        assert page.parent == ROOT or there.is_relative_to(DOCS), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_shell_and_python_are_well_formed(page: Path) -> None:
    for fragment in fences(page):
        if fragment.language in ("bash", "sh"):
            checked = subprocess.run(["bash", "-n"], input=fragment.text, text=True, capture_output=True)
            assert not checked.stderr, checked.stderr
        elif fragment.language == "python":
            compile(fragment.text, name(page), "exec")


# --- What runs ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """All of it in one shell, as somebody would give it who reads on; what it shows is what comes."""
    port = str(free_port())
    script = ["set -euo pipefail"]
    for place, fragment in enumerate(fences(TUTORIAL)):
        if fragment.language == "bash":
            script.append(f"echo '## {place}'\n{fragment.text}")
        elif fragment.language == "python":
            script.append(f"echo '## {place}'\npython - <<'END_OF_PYTHON'\n{fragment.text}END_OF_PYTHON\n")
    environment = {
        **without_mlflow(os.environ),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(script).replace(PORT, port)], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=1500)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the server too, if it was not ended
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    for fragment in fences(TUTORIAL):
        if not fragment.language:
            missing = [line for line in fragment.text.splitlines() if not _said(line, told)]
            assert not missing, "\n".join([*missing, told])
    assert (tmp_path / "studies" / "blood" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "annotated.h5ad").exists()
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert len(answer["predictions"]) == 3


def _said(line: str, told: str) -> bool:
    """Whether a line was printed, whatever its numbers: they differ between machines."""
    pattern = re.sub(r"\\?[\d.]+", r"[\\d.]+", re.escape(" ".join(line.split())))
    return line.strip(" ─.") == "" or re.search(pattern, " ".join(told.split())) is not None


# --- The site -------------------------------------------------------------------------------------------------------


class Loads(HTMLParser):
    """What a page has its reader's browser fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag != "a" and not (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            self.found += [value for key in ("src", "href", "data", "srcset") if (value := given.get(key))]


@pytest.mark.long
def test_the_site_is_whole_and_needs_no_other_host(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip('needs the extra "docs" (pip install -c constraints.txt ".[docs]"), which development leaves out')
    words = ["-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "site" / "mkdocs.yml"), "-d", str(tmp_path)]
    built = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html")}
    assert {path.relative_to(tmp_path).parts[0] for path in pages} >= {"index.html", "tutorial", "api"}
    for path, text in pages.items():
        loads = Loads(text).found
        assert loads
        assert not [address for address in loads if urlsplit(address).netloc], path
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?https?:", style.read_text()), style
    for page in (path for path in PAGES if path.is_relative_to(DOCS)):
        assert (tmp_path / page.relative_to(DOCS).with_suffix("") / "index.html").exists() or page.stem == "index"
    for file in (DOCS / "deploy").iterdir():
        assert (tmp_path / "deploy" / file.name).exists()
    found = json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]
    assert any("get_latent_representation" in entry["text"] + entry["title"] for entry in found)

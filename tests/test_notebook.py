"""The example notebook runs in a kernel as it stands, its pictures come out, and a search shows its progress there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import LONGEST

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


class Seen(NotebookClient):
    """A client that keeps what is shown and replaced."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.replaced: list[str] = []

    def process_message(self, message: dict[str, Any], cell: Any, place: int) -> Any:
        if message["msg_type"] == "update_display_data":
            self.replaced.append(message["content"]["data"]["text/plain"])
        return super().process_message(message, cell, place)


@pytest.fixture
def kernel_of_this_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that notebooks run in."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def run(notebook: Any, folder: Path) -> Seen:
    client = Seen(notebook, timeout=LONGEST, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises what a cell raises
    return client


def shown(notebook: Any) -> list[set[str]]:
    """What each cell that shows anything ends on: text, a table, a picture. Remarks and progress do not count."""
    kinds = []
    for cell in notebook.cells:
        found = [one for one in cell.get("outputs", []) if one.output_type != "stream"]
        kinds.append(set(found[-1].data) if found else set())
    return kinds


def test_the_example_runs_and_shows_what_it_is_kept_with(kernel_of_this_checkout: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = run(notebook, kernel_of_this_checkout)
    assert shown(notebook) == shown(kept)
    assert sum("image/png" in kinds for kinds in shown(notebook)) == 5
    assert "error" not in {one.output_type for cell in kept.cells for one in cell.get("outputs", [])}
    assert any("trials" in text for text in client.replaced)
    assert not any("ipywidgets" in str(one.get("data")) for cell in notebook.cells for one in cell.get("outputs", []))


def test_the_example_tells_nothing_of_the_machine_that_ran_it() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/site-packages/" not in text and str(Path.home()) not in text and "stderr" not in text

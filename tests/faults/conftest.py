"""The search that campaigns disturb, and what they came to, in figures, when they are over."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pytest import TerminalReporter

from scdgn.cells.h5ad import write_h5ad
from tests.faults import tally, tiny
from tests.faults.disturbed import Campaign


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    path = tmp_path_factory.mktemp("campaign")
    write_h5ad(tiny(cells={"a": 150, "b": 150, "c": 150, "d": 40}, genes=60), path / "cells.h5ad")
    start = time.monotonic()
    untouched = Campaign(path, {}, 0.0)
    assert untouched.start("untouched", count=str(path / "writes.json")).wait(timeout=300) == 0, untouched.log(
        "untouched"
    )
    return Campaign(path, json.loads((path / "writes.json").read_text()), time.monotonic() - start)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the tally of a worker of pytest-xdist to the process that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = dict(tally)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the tally of a worker that has ended; one that crashed has none."""
    tally.update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the tally."""
    if tally:
        terminalreporter.section("campaign")
        for what, number in sorted(tally.items()):
            terminalreporter.write_line(f"{number:5}  {what}")

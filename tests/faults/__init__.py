"""What users get wrong and what machines do to files; and the small data and the command line that these tests run."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from anndata import AnnData

from scdgn.cells.simulate import Simulation, simulate
from scdgn.cli import main
from scdgn.commands.terminal import STOPS

TYPES = ("B", "NK", "T")
SETTINGS: dict[str, object] = {"hidden": 8, "latent": 4, "domain_code": 4, "epochs": 2, "dropout": 0.0}
FAST = tuple(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))
KEYS = ("--labels-key", "celltype", "--batch-key", "tech")

tally: Counter[str] = Counter()
"""What was tried, and survived; printed when the tests end."""


def tiny(**changes: Any) -> AnnData:
    """140 cells of three batches and three types, 40 genes, counts."""
    cells = {"a": 50, "b": 50, "c": 40}
    return simulate(Simulation(**{"cells": cells, "cell_types": TYPES, "genes": 40, "depth": 500.0, **changes}))


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The one JSON object that is all of the standard output."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@contextmanager
def own_signals() -> Iterator[None]:
    """What signals do to this process afterwards is what they did before."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(*words: str | Path) -> Ran:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["scdgn", *map(str, words)])
    with own_signals(), argv, redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            return Ran(end.code, out.getvalue(), err.getvalue())


def done(*words: str | Path) -> Ran:
    """Run a command that has to succeed."""
    ran = run(*words)
    assert ran.status == 0, ran.err
    return ran


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder and below, hidden files too: content by name, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}

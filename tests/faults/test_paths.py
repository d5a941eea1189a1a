"""Folders whose names mean something in an address, and commands given from another folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import KEYS, done, tiny
from tests.servers import without_mlflow

SEARCH = ("--method", "nn", "--trials", "2", "--final-seeds", "2", "--set", "hidden=8", "--set", "epochs=2", "-q")


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user who has set nothing of MLflow's."""
    for name in set(os.environ) - set(without_mlflow(os.environ)):
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["GSE1%20data", "q?x", "a b#c"])
def test_a_folder_may_be_called_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(cells={"a": 30, "b": 30, "c": 30, "d": 30}).write_h5ad("cells.h5ad")
    ran = done("search", "cells.h5ad", *KEYS, "--test-batch", "d", "--name", "one", "--studies", f"{name}/s", *SEARCH)
    assert "could not" not in ran.err and "cannot" not in ran.err
    assert sorted(os.listdir()) == sorted(["cells.h5ad", name])  # noqa: PTH208
    assert (tmp_path / name / "s" / "mlflow.db").exists()
    exported = done("export", "one", "--studies", f"{name}/s", "--json").record
    assert exported["version"] == "1" and exported["alias"] == "champion"


def test_a_report_from_another_folder_finds_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(cells={"a": 30, "b": 30, "c": 30, "d": 30}).write_h5ad("cells.h5ad")
    done("search", "cells.h5ad", *KEYS, "--test-batch", "d", "--name", "one", "--no-track", *SEARCH)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    told = done("peers", "one", "--studies", "../studies", "--peer", "logistic", "--trials", "1").out
    assert "Logistic regression" in told or "logistic" in told

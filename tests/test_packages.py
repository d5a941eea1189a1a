"""What is installed is all that there is: an editable install would not miss a package that is not listed."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("scdgn", "search", "analysis")
        for path in (ROOT / top).rglob("*.py")
    }
    assert set(listed) == there


def test_the_packaged_mlflow_env_is_the_one_at_the_top() -> None:
    assert (ROOT / "search" / "mlflow.env").read_text() == (ROOT / "mlflow.env").read_text()

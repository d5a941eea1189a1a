"""What is installed is scdgn alone, all of it, and no file of the user's stands in its way."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import optuna
import pytest

from tests.faults import KEYS, tiny

ROOT = Path(__file__).resolve().parents[1]

DECOY = "raise ImportError('a file of the user stands in the way')\n"


def test_what_is_installed_is_scdgn_alone_and_all_of_it(tmp_path: Path) -> None:
    """An editable installation would not miss what a wheel lacks."""
    source = tmp_path / "source"
    for folder in ("scdgn", "search", "analysis"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "mlflow.env"):
        shutil.copy(ROOT / name, source)
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(words, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        installed = {name for name in content.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "scdgn", "search", "analysis"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    own = {name if name.startswith("scdgn/") else f"scdgn/{name}" for name in tracked}
    assert installed == own - {"scdgn/search", "scdgn/analysis"}


def test_what_is_imported_is_declared() -> None:
    """Or it is there by luck, and gone with the next version of whatever brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {re.split(r"[\[<>=]", one)[0] for one in (*project["dependencies"], *extras["peers"])}
    by_import = packages_distributions()
    known = {*sys.stdlib_module_names, "scdgn", "IPython", "triton"}  # which a notebook has, and torch for CUDA
    for path in (path for name in ("scdgn", "search", "analysis") for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.partition(".")[0] for name in names} - known:
                assert {one.lower().replace("_", "-") for one in by_import.get(top, [top])} & declared, (
                    f"{top}, in {path}"
                )


PRIVATE = {
    "torch": "_foreach_add_",  # one kernel for all step counters; the public way is a call each
    "mlflow.data.meta_dataset.MetaDataset": "_to_mlflow_entity",  # what log_input does, for another client
    "optuna.samplers._tpe._truncnorm": "_log_ndtr",  # replaced by one that is equal and ten times as fast
}
"""Names that are their libraries' own business, and what each buys; Optuna's attributes below are two more. They have
upper bounds in pyproject.toml."""


@pytest.mark.parametrize("place", PRIVATE)
def test_private_names_are_still_there(place: str) -> None:
    assert hasattr(pkgutil.resolve_name(place), PRIVATE[place])


def test_private_attributes_of_optuna_are_still_there() -> None:
    """A trial is read without a copy of all of them, and one that was cut off is taken up again."""
    study = optuna.create_study()
    trial = study.ask()
    assert study._storage.get_trial(trial._trial_id)._trial_id == study.trials[0]._trial_id


def test_nothing_is_imported_by_the_names_of_the_folders() -> None:
    """They can be, from the project's root, and would be other modules than the package's own."""
    bare = re.compile(r"^\s*(?:from|import) (?:search|analysis)\b", re.MULTILINE)
    folders = ("scdgn", "search", "analysis", "tests", "benchmarks")
    assert not [path for name in folders for path in (ROOT / name).rglob("*.py") if bare.search(path.read_text())]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_files_of_the_user_with_our_names_do_no_harm(engine: str, tmp_path: Path) -> None:
    for name in ("search.py", "analysis/__init__.py", "core.py", "study.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DECOY)
    tiny().write_h5ad(tmp_path / "cells.h5ad")
    search = ("search", "cells.h5ad", *KEYS, "--method", "nn", "--trials", "1", "--final-seeds", "1", "--confirm", "0",
              "--set", "hidden=8", "--set", "epochs=2", "--no-track", "--engine", engine, "-q")  # fmt: skip
    for words in (search, ("status", "cells"), ("report", "cells", "--no-cells", "-q")):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, "-m", "scdgn", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr


def test_the_packaged_mlflow_env_is_the_one_at_the_top() -> None:
    assert (ROOT / "search" / "mlflow.env").read_text() == (ROOT / "mlflow.env").read_text()

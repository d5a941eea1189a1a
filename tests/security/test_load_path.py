"""Bundles, studies and environment files are data: nothing that is loaded can run."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdgn.cells.h5ad import write_h5ad
from scdgn.errors import ScdgnError
from scdgn.model.bundle import Bundle
from scdgn.search.tracking.store import configure
from tests.faults import done, run, tiny
from tests.security.test_credentials import SEARCH

ROOT = Path(__file__).parents[2]
PACKAGES = ("scdgn", "search", "analysis")

# Modules whose very import is to be explained, and functions whose call is: each can run what a file says.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "ray.cloudpickle", "joblib", "shelve", "marshal",
    "jsonpickle", "pickletools", "code", "codeop", "runpy", "yaml", "torch.package", "torch.jit", "subprocess",
    "importlib",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint", "os.system", "os.popen", "torch.load", "torch.hub.load",
    "torch.serialization.load", "pandas.read_pickle", "pandas.eval", "shutil.unpack_archive", "ctypes.CDLL",
    "ctypes.PyDLL",
}  # fmt: skip
METHODS = {
    "read_pickle", "to_pickle", "get_pickled_error", "eval", "query", "extractall", "from_string", "exec_module",
    "load_module", "unsafe_load", "full_load",
}  # fmt: skip

CROSSING = "what Ray carries between the driver's own processes, never read from a file"
FIXED = "names that stand in the code"
EXPLAINED = {
    ("scdgn/__init__.py", "importlib"): FIXED,
    ("search/__init__.py", "importlib"): FIXED,
    ("scdgn/cli.py", "importlib"): "versions of packages",
    ("scdgn/cells/h5ad.py", "importlib"): FIXED,
    ("search/tracking/served.py", "importlib"): "versions of packages",
    ("search/stages/identity.py", "importlib"): "versions of packages",
    ("analysis/peers/worker.py", "importlib"): FIXED,
    ("search/engines/desk.py", "pickle"): CROSSING,
    ("search/engines/desk.py", "ray.cloudpickle"): CROSSING,
    ("search/engines/placement.py", "pickle"): CROSSING,
    ("search/engines/tuning.py", "get_pickled_error"): CROSSING,
    ("search/stages/identity.py", "subprocess"): "git, by a list of words that stand in the code",
    ("search/tracking/ui.py", "subprocess"): "MLflow's server, by a list of words",
    ("search/tracking/beside.py", "subprocess"): "this Python, by a program that stands in the code",
    ("analysis/peers/process.py", "subprocess"): "the Python that the user names, by a list of words",
    ("scdgn/files.py", "ctypes.CDLL"): "the C library that is loaded already, for renameat2",
}


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 80
    return found


def suspects(source: str) -> Iterator[str]:
    """What in a module can run what a file says, by the names of `MODULES`, `CALLS` and `METHODS`."""
    tree = ast.parse(source)
    known: dict[str, str] = {}  # what a name of the module stands for
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            known |= {alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else
                      alias.name.partition(".")[0] for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        yield from {module for name in names for module in MODULES if f"{name}.".startswith(f"{module}.")}
    for node in ast.walk(tree):
        # A function that is handed on is as good as one that is called.
        if isinstance(node, ast.Name | ast.Attribute) and (name := _dotted(node, known)) in CALLS:
            yield name
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.func.attr
            options = {word.arg: word.value for word in node.keywords}
            function = _dotted(node.func, known)
            if function.startswith("subprocess.") and ("shell" in options or None in options):
                yield f"{function} with shell"
            allowed = options.get("allow_pickle")
            if function == "numpy.load" and not (isinstance(allowed, ast.Constant) and allowed.value is False):
                yield "numpy.load without allow_pickle=False"


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """The full name of what an expression means; empty if it is no name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{start}.{node.attr}" if (start := _dotted(node.value, known)) else ""
    return ""


def test_nothing_in_the_packages_runs_what_it_reads() -> None:
    found = {
        (str(path.relative_to(ROOT)), suspect) for path in sources() for suspect in suspects(path.read_text("utf-8"))
    }
    assert found - EXPLAINED.keys() == set(), "explain it in EXPLAINED, or do without"
    assert EXPLAINED.keys() - found == set(), "explained, and not there any more"


def test_modules_are_imported_by_names_that_stand_in_the_code() -> None:
    """The argument of import_module is a constant, or comes from a table of the module, or a loop over constants."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _dotted(node.func, {}).endswith("import_module"):
                [name] = node.args
                table = isinstance(name, ast.Subscript) and isinstance(name.value, ast.Name)
                assert isinstance(name, ast.Constant) or table or isinstance(name, ast.Name), ast.unparse(node)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import ray.cloudpickle as safe",
        "from ray import cloudpickle",
        "import torch\ntorch.load(path, weights_only=True)",
        "from torch import load as read\nread(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "from numpy import load\nload(path, allow_pickle=wanted)",
        "eval(text)",
        "list(map(eval, texts))",
        "import builtins\nbuiltins.eval(text)",
        "import yaml",
        "import os\nos.system(text)",
        "import subprocess as s\ns.run(text, shell=True)",
        "import pandas as pd\npd.read_pickle(path)",
        "frame.query(text)",
        "archive.extractall(place)",
    ],
)
def test_the_walk_sees(line: str) -> None:
    assert set(suspects(line)) - {"subprocess"}


# --- while it happens

STUDY = Path("studies/x")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, a study of two trials and MLflow's database."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_h5ad(tiny(), Path("cells.h5ad"))
        done(*SEARCH)
    return folder


class Ran(AssertionError):
    """Something ran that must not."""


def _refuse(*_: object, **__: object) -> Any:
    raise Ran("this can run what a file says")


@pytest.fixture
def without_pickles(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study as working directory, in a process in which nothing is unpickled.

    Modules are compiled and run when they are imported, so eval and exec are left to the walk; joblib unpickles in
    processes of its own alone. What the commands start by themselves (git) is left, too.
    """
    folder = tmp_path / "work"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    import torch

    # Imported before: some packages make classes by pickling when they are.
    for name in (
        "mlflow",
        "mlflow.store.tracking.sqlalchemy_store",
        "search",
        "scdgn.analysis.report",
        "scanpy",
        "sklearn",
    ):
        importlib.import_module(name)
    for module, names in (
        (pickle, ("load", "loads", "Unpickler")), (torch, ("load",)), (os, ("system", "popen"))
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, _refuse)
    return folder


@pytest.mark.usefixtures("without_pickles")
def test_no_command_unpickles_anything() -> None:
    done("predict", "cells.h5ad", "--model", STUDY / "model", "-o", "out.h5ad", "-q")
    done("status", "x", "--json")
    done("compare", "x")
    done("sync", "x")
    done("export", "x", "-o", "copy")
    done("report", "x", "--no-cells")
    done("report", "x", "--from-mlflow", "-o", "tracked")
    done(*SEARCH, "--trials", "3", "--json")
    assert Bundle.load("copy").cell_types == ("B", "NK", "T")
    with pytest.raises(Ran):
        pickle.loads(b"")


# --- files that would run something, were they anything but data


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("ran",))


BOMB = pickle.dumps(_Bomb(), protocol=2)


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(BOMB)
    assert Path("ran").is_dir()


@pytest.mark.parametrize(
    ("place", "how"),
    [
        ("model/model.json", "bytes"),
        ("model/weights.safetensors", "bytes"),
        ("model/weights.safetensors", "torch"),
        ("study.toml", "bytes"),
        ("summary.json", "bytes"),
        ("study.journal", "bytes"),
        ("predictions/00000.npz", "bytes"),
        ("predictions/00000.npz", "array"),
        ("checkpoints/trial-00000-0.safetensors", "torch"),
    ],
)
def test_a_pickle_in_the_place_of_a_file_does_not_run(
    place: str, how: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / STUDY, tmp_path / STUDY)
    shutil.copy(finished / "cells.h5ad", tmp_path)
    monkeypatch.chdir(tmp_path)
    file = STUDY / place
    file.parent.mkdir(exist_ok=True)
    match how:
        case "bytes":
            file.write_bytes(BOMB)
        case "array":
            with file.open("wb") as opened:
                np.savez(opened, predicted=np.array([_Bomb()], dtype=object))
        case _:
            import torch

            torch.save(_Bomb(), file)
    for words in (
        ("predict", "cells.h5ad", "--model", STUDY / "model", "-o", "out.h5ad", "-q"),
        ("status", "x"),
        ("compare", "x"),
        ("export", "x"),
        *([(*SEARCH, "--trials", "3", "--no-track")] if place.startswith(("study.j", "pred", "check")) else []),
    ):
        assert run(*words).status in (0, 2)
    assert not Path("ran").exists()


def test_an_environment_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scdgn.search.tracking.store._applied", {})
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    Path("mlflow.env").write_text("MLFLOW_EXPERIMENT_NAME=$(mkdir ran)`mkdir ran`;mkdir ran\n")
    try:
        name = configure(Path("studies")).experiment
    except ScdgnError:
        name = "$(mkdir ran)"
    assert "mkdir" in name and not Path("ran").exists()


def test_the_exported_model_holds_no_pickle(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is ours, in files that can be read; what is the study's is JSON, safetensors and text."""
    from scdgn.search.tracking.served import save_pyfunc

    monkeypatch.chdir(tmp_path)
    save_pyfunc(finished / STUDY / "model", tmp_path / "served")
    kinds = {path.suffix or path.name for path in Path("served").rglob("*") if path.is_file()}
    assert kinds <= {".py", ".json", ".safetensors", ".txt", ".yaml", ".env", "MLmodel", ".typed", ".pyc"}, kinds
    folders = ("scdgn", *(f"scdgn/{name}" for name in ("core", "core/pack", "cells", "model")))
    ours = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).glob("*.py")}
    (code,) = Path("served").rglob("scdgn")
    assert {path.relative_to(code.parent) for path in code.rglob("*.py")} <= ours
    assert "python_model" not in Path("served", "MLmodel").read_text()


def test_builtins_are_as_they_were() -> None:
    """The fixture above leaves nothing behind."""
    assert pickle.loads(pickle.dumps(1)) == 1 and builtins.eval("1") == 1
    assert subprocess.run(["true"]).returncode == 0

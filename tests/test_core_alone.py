"""The numerical core runs where only torch and numpy are installed, and `import scdgn` costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

REFUSE = """
import sys
from importlib.abc import MetaPathFinder

ABSENT = {"pandas", "anndata", "scanpy", "scipy", "sklearn", "pydantic", "optuna", "ray", "mlflow", "rich", "typer"}

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
"""

TRAIN = """
import importlib
import pkgutil

import scdgn.core

for module in pkgutil.walk_packages(scdgn.core.__path__, "scdgn.core."):
    importlib.import_module(module.name)

import torch
from scdgn.core.config import Settings
from scdgn.core.metrics import score
from scdgn.core.pack.members import Cells, Member
from scdgn.core.training import train

labels = torch.arange(24) % 3
cells = Cells(torch.randn(24, 5) + labels[:, None], labels, torch.arange(24) // 12, types=3, domain_count=2)
members = [Member(Settings(hidden=hidden, latent=4, domain_code=3, epochs=2), cells, seed=0) for hidden in (4, 8)]
for outcome in train(members, groups=[[0, 1]]):
    print(outcome.state, score(labels.numpy(), outcome.model.probabilities(cells.x).numpy()).cells)
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_imports_and_trains_with_torch_and_numpy_alone() -> None:
    assert run(REFUSE + TRAIN).split("\n") == ["finished 24", "finished 24", ""]


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'anndata', 'sklearn'} & set(sys.modules)"
    assert run(f"import sys, scdgn; print(scdgn.__version__, sorted({heavy}))").endswith(" []\n")

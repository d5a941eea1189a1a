"""What the tests share: the real data and reference numbers, where this checkout has them."""

from __future__ import annotations

import os
from pathlib import Path

# Two pools of threads on the same cores cost more than they give. Of several processes each has one thread: with two
# on two cores a test of seconds takes minutes, since every pool spins while it waits for a thread that is displaced.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_file(*parts: str) -> Path:
    """A file of the shared folder; skips the test where there is none."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('shared', *parts))} beside the checkout: the project does not carry it")
    return path


@pytest.fixture(scope="session")
def pancreas_file() -> Path:
    return shared_file("data", "pancreas_panc8_subset.h5ad")


@pytest.fixture(scope="session")
def pbmc_file() -> Path:
    return shared_file("data", "pbmc_5batch.h5ad")


@pytest.fixture(scope="session")
def splits_file() -> Path:
    return shared_file("reference", "pbmc_confounded_splits.json")

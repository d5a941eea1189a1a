"""What the tests share: the real data and reference numbers, where this checkout has them."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two pools of threads on the same cores cost more than they give. Of several processes each has one thread: with two
# on two cores a test of seconds takes minutes, since every pool spins while it waits for a thread that is displaced.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# What libraries keep goes into a folder of this run: the home folder, Ray's and that of TMPDIR may hold what earlier
# runs left, or not be there. Its name is short, since paths of sockets in it may not exceed 107 characters.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # the folders of tests stay for a look at them
FOLDER = tempfile.TemporaryDirectory(prefix="scdgn-", dir="/tmp", ignore_cleanup_errors=True)
for _name in list(os.environ):
    if _name.startswith(("MLFLOW_", "MPL", "RAY_", "XDG_")) or _name in ("NUMBA_CACHE_DIR", "SCDGN_CACHE"):
        del os.environ[_name]
os.environ |= dict.fromkeys(("HOME", "RAY_TMPDIR", "TMPDIR"), FOLDER.name)
# By default 15: beside a few busy processes workers would hardly run.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
tempfile.tempdir = None  # which it had read from TMPDIR

# How long an example takes is no property of it.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files into the order of SCDGN_TEST_SEED, which is random; the tests of each keep theirs."""
    if seed := os.environ.get("SCDGN_TEST_SEED"):
        files = sorted({item.path for item in items})
        random.Random(seed).shuffle(files)
        place = {file: number for number, file in enumerate(files)}
        items.sort(key=lambda item: place[item.path])


def pytest_unconfigure() -> None:
    """Leave nothing of this run."""
    FOLDER.cleanup()

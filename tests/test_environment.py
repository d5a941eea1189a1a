"""What libraries find in the environment, and that the user's own words stay."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scdgn import environment

LOOK = "from scdgn import environment; environment.prepare(); import os; print(os.environ.get({name!r}))"


def prepared(name: str, **variables: str) -> str:
    """A variable in a process of its own that was prepared, with no more of these than are given."""
    mine = {
        key: value
        for key, value in os.environ.items()
        if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "NUMBA_CACHE_DIR")
    }
    found = subprocess.run(
        [sys.executable, "-c", LOOK.format(name=name)], env={**mine, **variables}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_threads_that_wait_do_not_spin_for_long_unless_the_user_wants_it() -> None:
    assert prepared("GOMP_SPINCOUNT") == environment.SPINS
    assert prepared("GOMP_SPINCOUNT", OMP_WAIT_POLICY="ACTIVE") == "None"
    assert prepared("GOMP_SPINCOUNT", GOMP_SPINCOUNT="1000") == "1000"


def test_numba_has_a_folder_where_it_can_write_to_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a read-only installation, under a user without a home."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for folders, needed in (([file / "a", file / "b"], True), ([file / "a", tmp_path / "cache" / "numba"], False)):
        monkeypatch.setattr(environment, "_numba_folders", lambda folders=folders: folders)
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        environment.prepare()
        assert ("NUMBA_CACHE_DIR" in os.environ) == needed
        if needed:
            place = Path(os.environ["NUMBA_CACHE_DIR"])
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
            environment._remove(str(place), os.getpid() + 1)  # not this process's
            assert place.exists()
            environment._remove(str(place), os.getpid())
            assert not place.exists()


def test_a_folder_of_the_user_s_choice_is_left_alone(tmp_path: Path) -> None:
    assert prepared("NUMBA_CACHE_DIR", NUMBA_CACHE_DIR=str(tmp_path)) == str(tmp_path)
    assert prepared("NUMBA_CACHE_DIR", HOME=str(tmp_path)) == "None"

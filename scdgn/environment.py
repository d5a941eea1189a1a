"""What libraries read in the environment when they are loaded: set before that, and never against the user's words."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path

SPINS = "20000"
"""Turns of a waiting thread before it sleeps."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""How threads of OpenMP wait for each other: the standard's variable, and GNU's."""


def prepare() -> None:
    """Prepare this process, and those that it starts, for the libraries that they will load. Nothing of them is loaded.

    - Threads of OpenMP that wait for each other spin for some microseconds and then sleep. Beside other busy processes,
      as on any laptop, each would spin for milliseconds while the thread that it waits for is displaced; and if they
      slept at once, small layers would take twice as long on quiet cores (benchmarks/contention.py).
    - numba, which scanpy uses, refuses to work where it can cache nothing: neither beside its callers nor in the user's
      cache folder. It then gets a folder that only this user can read, and that goes with this process.
    - What a terminal cannot show, as ± in ASCII, it shows as a question mark; it is no reason to end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    policy, spins = WAITING
    if policy not in os.environ:
        os.environ.setdefault(spins, SPINS)
    if "NUMBA_CACHE_DIR" not in os.environ and not any(map(_writable, _numba_folders())):
        with suppress(OSError):  # where nothing at all can be written, what wants to write says so
            place = tempfile.mkdtemp(prefix="scdgn-numba-")
            os.environ["NUMBA_CACHE_DIR"] = place
            atexit.register(_remove, place, os.getpid())


def inherited() -> dict[str, str]:
    """What processes that others start on our behalf, on other machines, should find as well, by name."""
    return {name: os.environ[name] for name in WAITING if name in os.environ}


def _numba_folders() -> list[Path]:
    """Where numba caches: in the installation, or in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111, which raises without one
    return [Path(sysconfig.get_paths()["purelib"]), Path(home, "numba")]


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder; permissions alone do not tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return folder.is_absolute()


def _remove(place: str, pid: int) -> None:
    if os.getpid() == pid:  # not a process forked from this one
        shutil.rmtree(place, ignore_errors=True)

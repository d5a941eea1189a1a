"""The process that a peer works in: started in its own Python, asked in lines of JSON, killed when its time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdgn.errors import shortened

WORKER = Path(__file__).with_name("worker.py")

SHOWN = 200
"""Characters of an error that are kept."""


class PeerError(Exception):
    """A peer came to nothing; the message is what its row of the table says."""


class Lacking(PeerError):
    """The peer's package is not there."""


class FitError(Exception):
    """One fit failed; the peer is there to be asked again."""


class Process:
    """A peer at work, and the versions of the packages that it runs on."""

    def __init__(self, child: subprocess.Popen[str], folder: Path, limit: float) -> None:
        self._child = child
        self._folder = folder
        self._limit = limit
        self._expired = threading.Event()
        self._timer = threading.Timer(limit, self._expire)
        self._timer.daemon = True
        self._timer.start()
        self.versions: Mapping[str, str] = {}

    def greet(self) -> None:
        """Wait until it is ready; `Lacking` if its package is not installed, `PeerError` if it does not come to be
        ready.
        """
        ready = self._listen()
        if "missing" in ready:
            raise Lacking(str(ready["missing"]))
        self.versions = ready["versions"]

    def fit(
        self, unit: int, settings: Mapping[str, Any], seed: int, device: str
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
        """Train on a unit's training cells and predict its query.

        Returns
        -------
        probabilities, types, seconds
            (query cells, types), (types,) codes of the columns, and the time that it took.

        Raises
        ------
        FitError
            If these settings do not go with these cells.
        PeerError
            If the peer died, or its time is up.
        """
        assert self._child.stdin is not None
        job = {"unit": unit, "settings": dict(settings), "seed": seed, "device": device}
        with suppress(OSError):  # it died; what it said last is read below
            print(json.dumps(job), file=self._child.stdin, flush=True)
        answer = self._listen()
        if "error" in answer:
            raise FitError(shortened(answer["error"], SHOWN))
        with np.load(self._folder / "answer.npz", allow_pickle=False) as arrays:
            return arrays["probabilities"], arrays["types"], float(answer["seconds"])

    def _listen(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if self._expired.is_set():
            raise PeerError(f"out of time after {self._limit:g} s")
        if not line:
            status = self._child.wait()
            said = (self._folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise PeerError(shortened(": ".join([f"its process {how}", *said[-1:]]), SHOWN))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _expire(self) -> None:
        self._expired.set()
        _kill(self._child)

    def close(self) -> None:
        """End it, whatever it does."""
        self._timer.cancel()
        _kill(self._child)
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with suppress(OSError):  # of a pipe that nobody reads any more
                    stream.close()


@contextmanager
def started(python: str, peer: str, arrays: Mapping[str, Any], limit: float) -> Iterator[Process]:
    """A peer's process, in that Python, while the block runs; nothing of it is left afterwards.

    Parameters
    ----------
    arrays
        Of cells.npz, as `scdgn.analysis.peers.worker` has it.
    limit
        Seconds after which it is killed.

    Raises
    ------
    PeerError
        If it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="scdgn-peer-") as place:
        folder = Path(place)
        np.savez(folder / "cells.npz", **arrays)
        # Libraries that keep things in the home or the working directory keep them here.
        environment = {**os.environ, "CELLTYPIST_FOLDER": place, "PYTHONUNBUFFERED": "1"}
        with (folder / "stderr").open("wb") as errors:
            try:
                child = subprocess.Popen(
                    [python, str(WORKER), peer, place],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=place,
                    env=environment,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # so that what it starts itself dies with it
                )
            except OSError as error:
                raise PeerError(f"{python} cannot be run ({error.strerror})") from error
        process = Process(child, folder, limit)
        try:
            process.greet()
            yield process
        finally:
            process.close()


def _kill(child: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)

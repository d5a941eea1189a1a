"""The file in which Optuna keeps a study, as the one process that owns the study writes it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from scdgn.errors import OutputError

REST = 1.0
"""Seconds from one sync to disk to the next, which takes as long as all other bookkeeping of a trial; and seconds for
which what is not urgent may wait."""


class Journal(BaseJournalBackend):
    """Optuna's journal, without a lock, a sync to disk and a reading back for every setting and every rung.

    What counts reaches the system before the owner goes on, so that a process which is killed loses nothing that had
    ended. A machine that fails loses what was not on disk, the last second or so. What is lost is always the end of the
    file, and is drawn, trained and reported again as it was. The file is Optuna's own: others may read it, and add to
    it, at any time.

    Parameters
    ----------
    path
        The file. What an owner left there that was killed is mended: nobody else may own the study.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path))
        self._end = 0  # bytes of the file that were read or written
        self._unread: deque[dict[str, Any]] = deque()  # records that the storage has not asked for
        self._held: list[bytes] = []
        self._holding = False
        self._written = self._synced = -REST
        with self._explained():
            _mend(path)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records that the storage has not seen; it asks for each of them once."""
        self._read()
        while self._unread:
            yield self._unread.popleft()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, or hold them back in a block."""
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        if self._holding:
            self._held += lines
        else:
            self._write(lines)
        self._unread += map(json.loads, lines)  # as all others will read them

    @contextmanager
    def together(self, urgent: bool = True, sync: bool = False) -> Iterator[None]:
        """Write what is appended in the block at its end, at once. No trial is to be created in it.

        Trials are counted in the order of the file, to which others may add before the block ends. What is not urgent
        may wait for what is written next, if something was written just before (`REST`); a sync is to the disk itself,
        likewise.
        """
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
            if not outer and (urgent or time.monotonic() >= self._written + REST):
                self._write([], sync)

    def _write(self, lines: list[bytes], sync: bool = False) -> None:
        with self._explained():
            self._lock.acquire()
            try:
                self._read()
                self._append(b"".join(self._held + lines), sync)
            finally:
                self._lock.release()
        self._held.clear()
        self._written = time.monotonic()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path} ({error.strerror or error}): free some space there, or make it writable; "
                "the same command then goes on"
            ) from error

    def _append(self, content: bytes, sync: bool) -> None:
        """Write all of it, or nothing: behind half a line nobody could read on."""
        with self._path.open("ab", buffering=0) as file:
            written = 0
            try:
                while written < len(content):
                    written += file.write(content[written:])
            except OSError:
                file.truncate(self._end)
                raise
            if sync and time.monotonic() >= self._synced + REST:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        self._end += written

    def _read(self) -> None:
        """Take in what others have added."""
        if self._path.stat().st_size == self._end:
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._unread.append(json.loads(line))
                self._end += len(line)


def _mend(path: Path) -> None:
    """Remove what an owner left that was killed: half a line at the journal's end, and Optuna's lock.

    Optuna reads past half a line at the end, but would write the next one behind it. Where a machine failed, some file
    systems end with zeros instead, in the place of what had not reached the disk.
    """
    with contextlib.suppress(FileNotFoundError):
        Path(f"{path}.lock").unlink()
    path.touch()
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)

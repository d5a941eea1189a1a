"""Values that do not fit in memory, written once in rows that can be mapped, for all processes of a machine.

An entry of a shelf is a folder: the files of `MappedRows`, and a document of what was found out of the values, which is
called READ when writing begins, and WHOLE once all is there. What a process that was killed has written is not written
again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import scipy.sparse as sp

from scdgn.cells.mapped import COUNTS, GENES, VALUES, MappedRows
from scdgn.errors import OutputError
from scdgn.files import clear, new_file, scratch

SHELF = ".cells"
"""Its name among the studies."""

READ, WHOLE = "read.json", "whole.json"

STORED = "stored"
"""In what is found out of values: how many will be written."""

PER_VALUE = 8
"""Bytes of a stored value with its gene."""

_FORMAT = 1

Found = Mapping[str, Any]


class Shelf:
    """A folder of such entries. Whoever uses one holds a lock on it, which the system takes back from the dead.

    In a `with` it is cleared at the end; what was found or written stays where that is an exception.

    Parameters
    ----------
    folder
        Made when it is needed.
    say
        Told what is written.
    check
        Called between two portions; what it raises ends the writing, with which the next process goes on.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], object] = lambda text: None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder = folder
        self._say = say
        self.check = check
        self._used: dict[Path, IO[str]] = {}
        self._written: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.clear()
        self.close()

    def rows(
        self,
        told: Mapping[str, Any],
        columns: int,
        survey: Callable[[Path], Found],
        portions: Callable[[Found, int, Path], Iterable[sp.csr_matrix]],
    ) -> tuple[MappedRows, Found]:
        """The rows of an entry, and what was found out of them; written first where they are not there.

        Parameters
        ----------
        told
            All that decides what they are, JSON-safe.
        columns
            Number of genes.
        survey
            Finds out what is to be known, JSON-safe, `STORED` among it; it is given an empty folder to work in.
        portions
            Given what was found, a place and such a folder: the rows from there on.

        Raises
        ------
        OutputError
            If they cannot be written, or there is no space for them: some may be there, and the next call goes on.
        """
        key = json.dumps({"format": _FORMAT, **told}, sort_keys=True)
        place = self.folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        lock = place.with_suffix(".lock")
        try:
            while True:
                held = self._used.pop(place, None) or _locked(lock, fcntl.LOCK_SH)
                if (found := _whole(place)) is not None:
                    self._used[place] = held
                    return MappedRows.open(place, columns), found
                held.close()
                with _locked(lock, fcntl.LOCK_EX):  # whoever writes now is waited for
                    if _whole(place) is None:
                        self._write(place, survey, portions)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(
                f"cannot write {place} ({reason}): free some space there, or choose other --studies; the same command "
                "goes on"
            ) from error

    def clear(self, found: bool = True) -> None:
        """Let go of what was used, and remove what nobody else uses; what was `found` written only if that is said.

        Rows that are mapped stay readable as long as they are (but on Windows).
        """
        for place, held in self._used.items():
            with held, suppress(OSError):
                if found or place in self._written:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(place)
                    Path(held.name).unlink()
        self._used.clear()
        with suppress(OSError):  # others may be there
            self.folder.rmdir()

    def close(self) -> None:
        """Let go of what was used, which stays."""
        for held in self._used.values():
            held.close()
        self._used.clear()

    def _write(
        self,
        place: Path,
        survey: Callable[[Path], Found],
        portions: Callable[[Found, int, Path], Iterable[sp.csr_matrix]],
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        clear(place)
        known = _document(place / READ) or _document(place / WHOLE)
        with scratch(place) as folder:
            found: Found = survey(folder) if known is None else known
        with new_file(place / READ) as new:
            new.write_text(json.dumps(found), encoding="utf-8")
        with ExitStack() as opened:
            values, genes, counts = (
                opened.enter_context((place / name).open("a+b")) for name in (VALUES, GENES, COUNTS)
            )
            done, stored = _agreed(values, genes, counts)
            self._has_room(found[STORED] - stored)
            for x in portions(found, done, opened.enter_context(scratch(place))):
                self.check()
                for file, array in (
                    (values, x.data.astype(np.float32, copy=False)),
                    (genes, x.indices.astype(np.int32)),
                ):
                    file.write(array.data)
                    file.flush()
                    os.fdatasync(file.fileno())  # what `counts` tells of is there, even if the machine stops
                counts.write(np.diff(x.indptr).astype(np.int64).data)
                counts.flush()
            os.fsync(counts.fileno())
        (place / READ).replace(place / WHOLE)
        self._written.add(place)

    def _has_room(self, stored: int) -> None:
        needed, free = stored * PER_VALUE, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"the values of the cells do not fit in memory and take {needed / 1e9:.1f} GB in {self.folder}, where "
                f"{free / 1e9:.1f} GB are free: free some space there, or choose other --studies"
            )
        self._say(f"the values do not fit in memory: {needed / 1e9:.1f} GB of them are put in order in {self.folder}")


def _locked(path: Path, kind: int) -> IO[str]:
    """A lock file, open and locked; one that was removed meanwhile locks nobody else out."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        with suppress(OSError):  # a file system may have no locks
            fcntl.flock(file, kind)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _whole(place: Path) -> Found | None:
    """What was found out of an entry that is there, none of its files cut short; else None."""
    with suppress(FileNotFoundError):
        stored = int(np.fromfile(place / COUNTS, dtype=np.int64).sum())
        if all((place / name).stat().st_size == 4 * stored for name in (VALUES, GENES)):
            return _document(place / WHOLE)
    return None


def _document(path: Path) -> dict[str, Any] | None:
    """What was written there; None where it is not there, or not whole."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content


def _agreed(values: IO[bytes], genes: IO[bytes], counts: IO[bytes]) -> tuple[int, int]:
    """Cut the files to the rows that all of them have: how many, and how much they store."""
    counts.seek(0)
    ends = np.cumsum(np.frombuffer(counts.read(os.fstat(counts.fileno()).st_size // 8 * 8), dtype=np.int64))
    there = min(os.fstat(file.fileno()).st_size // 4 for file in (values, genes))
    rows = int(np.searchsorted(ends, there, side="right"))
    stored = int(ends[rows - 1]) if rows else 0
    for file, size in ((values, 4 * stored), (genes, 4 * stored), (counts, 8 * rows)):
        file.truncate(size)
    return rows, stored

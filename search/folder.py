"""The study folder: the one place that knows what lies where in it, and the lease of its one owner."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import threading
import time
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

from scdgn.errors import DataError, OutputError, ScdgnError, first_line, nearest
from scdgn.files import clear, new_file
from scdgn.search.summary import AnySummary, from_json

_Shape = type | Mapping[str, "_Shape"]

BEAT = 5.0
"""Seconds between two signs of life of an owner."""

STALE = 60.0
"""Seconds without one after which an owner on another machine is taken for dead."""

ASIDE = ".before-"
"""Between the name of a study that was set aside and the time."""

ARTIFACTS = "mlartifacts"
"""Where MLflow keeps files among the studies, copies of study.toml too."""

_PART = re.compile(r"\w([\w.+ -]{0,198}[\w.+-])?")

# What every study.toml holds: the study cannot be read, or not be gone on with, without it.
_WRITTEN: _Shape = {
    "study": {"name": str},
    "data": {},
    "sampler": {"name": str},
    "pruner": {"name": str},
    "record": {
        "id": str,
        "created": str,
        "machine": str,
        "fingerprint": {"training": str, "test": str, "unlabeled": str},
        "versions": {},
    },
}

_CHECKSUM = "checksum"


class LeaseError(ScdgnError):
    """Another process owns the study."""


@dataclass(frozen=True)
class StudyFolder:
    """studies/NAME and what is in it."""

    path: Path

    def studies(self, name: str) -> Path:
        """The folder of all studies, of a study of that name, wherever it may have been moved to."""
        return self.path.parents[name.count("/")]

    @property
    def settings(self) -> Path:
        """What the study was asked, on which data, with which versions (study.toml)."""
        return self.path / "study.toml"

    @property
    def journal(self) -> Path:
        """Optuna's journal: the record of all trials."""
        return self.path / "study.journal"

    @property
    def lease(self) -> Path:
        """Who owns the study now."""
        return self.path / "lease.json"

    @property
    def summary(self) -> Path:
        """What came out, once there is something (summary.json)."""
        return self.path / "summary.json"

    @property
    def finalists(self) -> Path:
        """The table of the final seeds (finalists.csv)."""
        return self.path / "finalists.csv"

    @property
    def model(self) -> Path:
        """The exported bundle."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Packs that are under way, or were cut off."""
        return self.path / "checkpoints"

    @property
    def fleet(self) -> Path:
        """Who works on the study (fleet.json), where other machines may."""
        return self.path / "fleet.json"

    @property
    def annotated(self) -> Path:
        """The query, annotated."""
        return self.path / "annotated.h5ad"

    def left_out(self, number: int) -> Path:
        """What a trial that was scored again says of the cells left out of its training."""
        return self.path / "left_out" / f"{number:05d}.npz"

    def adapted(self, number: int) -> Path:
        """The same, once its models have adapted to these cells."""
        return self.left_out(number).with_suffix(".adapted.npz")

    def predictions(self, number: int) -> Path:
        """A trial's predictions for the test cells, unscored."""
        return self.path / "predictions" / f"{number:05d}.npz"

    @property
    def exists(self) -> bool:
        """Whether a study was begun here."""
        return self.settings.exists()

    def write_settings(self, document: Mapping[str, Any]) -> None:
        """Write study.toml, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        with new_file(self.settings) as place:
            place.write_text(tomli_w.dumps(document), encoding="utf-8")

    def read_settings(self) -> dict[str, Any]:
        """The document of study.toml.

        Raises
        ------
        DataError
            If there is none, or it cannot be read, or lacks what `write_settings` was given.
        """
        try:
            document = tomllib.loads(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            other = _nearest_study(self.path.parent, self.path.name)
            raise DataError(f"there is no study {self.path}: {other}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{self.settings} cannot be read ({error}): restore it, or use --fresh") from error
        if wrong := _misfit(document, _WRITTEN):
            raise DataError(f"{self.settings} is damaged (it has no {wrong}): restore it, or use --fresh")
        return document

    def write_summary(self, summary: AnySummary) -> None:
        """Write summary.json, whole or not at all."""
        with new_file(self.summary) as place:
            place.write_text(_checked(summary.to_json()), encoding="utf-8")

    def read_summary(self) -> AnySummary | None:
        """What came out; None as long as there is nothing.

        Raises
        ------
        DataError
            If it cannot be read, or is not what was written.
        """
        try:
            return from_json(_unchecked(self.summary.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise DataError(
                f"{self.summary} cannot be read ({reason}): remove it, and the same `scdgn search` writes it again"
            ) from error

    def write_fleet(self, fleet: Mapping[str, Any]) -> None:
        """Write fleet.json, whole or not at all; a full disk is no reason to stop."""
        with contextlib.suppress(OSError, OutputError), new_file(self.fleet) as place:
            place.write_text(_checked(fleet), encoding="utf-8")

    def read_fleet(self) -> dict[str, Any] | None:
        """Who works on the study, or did when it last ran; None where it never left its process, or nothing tells."""
        try:
            return _unchecked(self.fleet.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def set_aside(self) -> Path:
        """Move the folder beside itself, under a name with the time."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}{ASIDE}{stamp}")
        self.path.rename(aside)
        StudyFolder(aside).lease.unlink(missing_ok=True)  # its owner goes on with the new folder
        return aside


def _checked(document: Mapping[str, Any]) -> str:
    """JSON with its checksum: what was changed or cut short on the way is found when it is read."""
    return json.dumps({**document, _CHECKSUM: _checksum(document)}, indent=1, allow_nan=False)


def _unchecked(text: str) -> dict[str, Any]:
    """What `_checked` was given; `ValueError` if it is something else."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict) or document.pop(_CHECKSUM, None) != _checksum(document):
        raise ValueError("its checksum does not fit")
    return document


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _misfit(content: object, shape: _Shape, name: str = "") -> str:
    """What of a document is missing or of another type; empty where all is there."""
    if not isinstance(shape, Mapping):
        return "" if isinstance(content, shape) else name
    if not isinstance(content, Mapping):
        return name
    found = (_misfit(content.get(key), inner, f"{name}.{key}" if name else key) for key, inner in shape.items())
    return next(filter(None, found), "")


def is_name(name: str) -> bool:
    """Whether a study may be called so: parts divided by slashes, that each can be a folder among the studies."""
    parts = name.split("/")
    # 200 bytes leave room for what is added to the name of a study that is set aside.
    return all(_PART.fullmatch(part) and len(part.encode()) <= 200 for part in parts) and ARTIFACTS not in parts


def find_study(studies: Path, name: str) -> list[StudyFolder]:
    """The study of a name, or the studies under it.

    Raises
    ------
    DataError
        If there is none.
    """
    if not is_name(name):  # it could lead out of the folder
        raise DataError(f"there is no study {name!r} in {studies}: {_nearest_study(studies, name)}")
    top = studies.joinpath(*name.split("/"))
    # Studies that were set aside have to be asked for by their own name.
    found = [folder for folder in studies_under(top) if ASIDE not in str(folder.path.relative_to(top))]
    if not found:
        raise DataError(f"there is no study {name!r} in {studies}: {_nearest_study(studies, name)}")
    return found


def studies_under(folder: Path) -> list[StudyFolder]:
    """All studies in a folder and below; not the copies of their files that MLflow keeps there."""
    found = sorted(folder.rglob("study.toml")) if folder.is_dir() else []
    return [StudyFolder(path.parent) for path in found if ARTIFACTS not in path.relative_to(folder).parts]


def _nearest_study(studies: Path, name: str) -> str:
    return nearest(name, [folder.path.relative_to(studies) for folder in studies_under(studies)])


class Lease:
    """The right to write to a study, renewed by a thread as long as it is held."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self.lost = False

    def _renew(self) -> None:
        while not self._stop.wait(BEAT):
            holder = _holder(self._path)
            if holder is not None and holder.get("token") != self._token:
                self.lost = True  # we were thought dead, for example suspended, and somebody took over
                return
            # A full or unreachable disk now may be well again at the next beat.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        place = self._path.with_name(f"{self._path.name}.{self._token}")
        place.write_text(json.dumps(self._content()), encoding="utf-8")
        place.replace(self._path)

    def _content(self) -> dict[str, Any]:
        return {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "beat": time.time(),
        }

    def take(self) -> None:
        """Become the owner; `LeaseError` if somebody is."""
        with _alone(self._path):
            holder = _holder(self._path)
            if holder is not None and _is_alive(holder, self._path):
                raise LeaseError(
                    f"the study {self._path.parent} is run by process {holder.get('pid')} on {holder.get('host')}: "
                    "wait for it or stop it (`scdgn status` only looks)"
                )
            for left in self._path.parent.glob(f"{self._path.name}.*"):  # by a process that was killed
                left.unlink(missing_ok=True)
            self._write()
        self._thread.start()

    def check(self) -> None:
        """`LeaseError` if another process took the study over, which thought this one dead."""
        if self.lost:
            raise LeaseError(f"another process took over the study {self._path.parent}: leave it to that one")

    def release(self) -> None:
        """Stop being the owner."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        holder = _holder(self._path)
        if holder is not None and holder.get("token") == self._token:
            self._path.unlink(missing_ok=True)


@contextmanager
def owned(folder: StudyFolder) -> Iterator[Lease]:
    """Own a study while the block runs.

    Raises
    ------
    LeaseError
        If a live process owns it: with its host and pid.
    OutputError
        If the folder cannot be written to.
    """
    lease = Lease(folder.lease)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lease.take()
    except OSError as error:
        raise OutputError(f"cannot write {folder.path} ({error.strerror}): choose other --studies") from error
    try:
        for place in (folder.path, folder.checkpoints, folder.predictions(0).parent, folder.left_out(0).parent):
            clear(place)
        yield lease
    finally:
        lease.release()


def owner(folder: StudyFolder) -> str | None:
    """Who runs the study now, as host and pid; None if nobody does."""
    holder = _holder(folder.lease)
    if holder is None or not _is_alive(holder, folder.lease):
        return None
    return f"process {holder.get('pid')} on {holder.get('host')}"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other process look at a lease and take it meanwhile; the system lets go when a process dies."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        # A file system may have no locks: of two that start at once, the next beat then tells one that it has lost.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"token", "host", "pid"} <= content.keys() else None


def _is_alive(holder: Mapping[str, Any], path: Path) -> bool:
    if holder.get("host") == socket.gethostname():
        pid = holder.get("pid")
        started = _start_of(pid) if isinstance(pid, int) else None
        return started is not None and started == holder.get("started")
    # Clocks of machines differ: what the file system says of both is compared, not what they wrote.
    try:
        probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        probe.touch()
        now, beat = probe.stat().st_mtime, path.stat().st_mtime
        probe.unlink()
    except OSError:
        now, beat = time.time(), float(holder.get("beat", 0))
    return now - beat < STALE


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, since its number may be given to another one; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists() or pid <= 0:
        return None
    try:  # no /proc, as on macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"

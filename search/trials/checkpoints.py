"""Packs under way, kept so that another worker can go on with them: safetensors and JSON, nothing that can run.

A checkpoint is one file. Its tensors are the models and what their optimizers remember; its metadata is what else there
is to know, as JSON, and a checksum over both. It may be lost at any time, and a pack without one begins again: so
whatever cannot be read is no checkpoint, and what cannot be written is told and does no harm.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem, make_path_posix  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from scdgn.core.pack.block import LaneState
from scdgn.core.pack.lane import EpochLosses
from scdgn.core.training import TrainingState
from scdgn.errors import OutputError, SettingsError
from scdgn.files import check_file, new_file
from scdgn.search.credentials import without_password

FORMAT = "scdgn checkpoint"
VERSION = 1

MOST_WRITING = 0.02
"""Share of the time that writing may take."""

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors writes none that is longer."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A pack between two epochs.

    Attributes
    ----------
    begun
        Numbers of the trials with which the pack began.
    trials
        What is known of those that are left, by number and in the order of the pack: JSON-safe, and among it `models`,
        how many members of the state are the trial's, side by side.
    seconds
        That the pack has taken.
    state
        Of the members of those trials.
    """

    begun: tuple[int, ...]
    trials: Mapping[int, Mapping[str, Any]]
    seconds: float
    state: TrainingState

    def keep(self, numbers: Sequence[int]) -> Checkpoint:
        """These trials alone, in this order."""
        places: dict[int, range] = {}
        start = 0
        for number, trial in self.trials.items():
            places[number] = range(start, start + trial["models"])
            start = places[number].stop
        state = self.state.keep([index for number in numbers for index in places[number]])
        return replace(self, trials={number: self.trials[number] for number in numbers}, state=state)


class Checkpoints:
    """Where a study's packs leave their checkpoints, one file each, and when.

    Small, and goes to workers on other machines; there its clock starts anew.

    Parameters
    ----------
    place
        A folder, or any URL that fsspec knows.
    every
        Seconds between two checkpoints at least.
    identity
        What must be equal for a pack to go on: studies, or seeds of one, that share a place do not see each other's.
    """

    def __init__(self, place: str, every: float, identity: str) -> None:
        # Workers have working directories of their own.
        self.place = place if "://" in place else make_path_posix(place)
        self.every = every
        self.identity = identity
        self._next = time.monotonic() + every

    def __reduce__(self) -> tuple[type[Checkpoints], tuple[str, float, str]]:
        return Checkpoints, (self.place, self.every, self.identity)

    def check(self) -> None:
        """Refuse, before any work is done, a place that is none.

        Raises
        ------
        SettingsError
            If the URL is of a kind that is not known, or whose package is not installed.
        OutputError
            If the folder cannot be written to.
        """
        given = f"checkpoints is {without_password(self.place, self.place)!r}"
        try:
            system, folder = url_to_fs(self.place)
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or without_password(str(error), self.place)
            raise SettingsError(
                f"{given}, which needs {package}: run `pip install {package}`, or give a folder"
            ) from None
        except Exception as error:  # what a store raises is its own package's
            raise SettingsError(
                f"{given}, which cannot be opened ({_reason(error, self.place)}): give a folder, or a URL such as s3://bucket/folder"
            ) from None  # a traceback would show what the reason leaves out
        if isinstance(system, LocalFileSystem):
            check_file(Path(folder) / "checkpoint")

    def due(self) -> bool:
        """Whether a checkpoint should be written now."""
        return time.monotonic() >= self._next

    def save(self, checkpoint: Checkpoint) -> str | None:
        """Write a checkpoint in place of the pack's last one, whole or not at all.

        Returns
        -------
        Why it could not be written; None if it was.
        """
        start = time.monotonic()
        content = _written(checkpoint, self.identity)
        try:
            system, folder = url_to_fs(self.place)
            path = f"{folder}/{self._name(checkpoint.begun)}"
            if isinstance(system, LocalFileSystem):
                # A machine that does not see the study's folder is not to have one of its own.
                Path(folder).mkdir(exist_ok=True)
                with new_file(Path(path)) as place:
                    place.write_bytes(content)
            else:  # an object appears when all of it is there
                system.pipe_file(path, content)
        except OutputError as error:  # names the file, and so every pack would tell it anew
            cause = error.__cause__
            return f"{folder}: {cause.strerror}" if isinstance(cause, OSError) else _reason(error, self.place)
        except Exception as error:  # what a store raises is its own package's
            return _reason(error, self.place)
        finally:
            now = time.monotonic()
            self._next = now + max(self.every, (now - start) / MOST_WRITING)
        return None

    def find(self, numbers: Sequence[int]) -> Checkpoint | None:
        """Of the checkpoints with all these trials the one that has gone furthest: these trials alone, in this order.

        Files that are damaged, of another format, of another study or gone are no checkpoints.
        """
        system, paths = self._files()
        known = ((path, document) for path in paths if (document := self._document(system, path)) is not None)
        candidates = [(document["epoch"], path) for path, document in known if set(numbers) <= _numbers(document)]
        for _, path in sorted(candidates, reverse=True):
            checkpoint = _read(_content(system, path))
            if checkpoint is not None and set(numbers) <= checkpoint.trials.keys():
                return checkpoint.keep(numbers)
        return None

    def remove(self, numbers: Sequence[int]) -> None:
        """The trials have ended: remove the checkpoints that hold no other."""
        system, paths = self._files()
        own = self._name(numbers)
        for path in paths:
            name = path.rpartition("/")[2]
            document = self._document(system, path)
            if name == own or (document is not None and _numbers(document) <= set(numbers)):
                with suppress(Exception):  # gone, or the store is out of reach: it does no harm where it is
                    system.rm(path)
        if isinstance(system, LocalFileSystem):  # what writes of this pack that were killed have left
            for left in Path(url_to_fs(self.place)[1]).glob(f".{own}.*"):
                shutil.rmtree(left, ignore_errors=True)

    def _name(self, begun: Sequence[int]) -> str:
        pack = json.dumps([self.identity, list(begun)])
        return f"trial-{min(begun):05d}-{hashlib.sha256(pack.encode()).hexdigest()[:16]}.safetensors"

    def _files(self) -> tuple[Any, list[str]]:
        """The file system, and the files there that may be checkpoints."""
        try:
            system, folder = url_to_fs(self.place)
            system.invalidate_cache()  # another worker may have written since
            return system, [path for path in system.ls(folder, detail=False) if path.endswith(".safetensors")]
        except Exception:  # what a store raises is its own package's
            return None, []

    def _document(self, system: Any, path: str) -> dict[str, Any] | None:
        """What the header of a file says, if the file is a checkpoint of this study."""
        size = int.from_bytes(_content(system, path, 0, 8), "little")
        if not 0 < size <= LONGEST_HEADER:
            return None
        parsed = _parsed(_content(system, path, 8, 8 + size))
        return parsed[0] if parsed is not None and parsed[0].get("identity") == self.identity else None


def _content(system: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or a part of them; none if it cannot be read."""
    try:
        return bytes(system.cat_file(path, start=start, end=end))
    except Exception:  # what a store raises is its own package's
        return b""


def _parsed(header: bytes) -> tuple[dict[str, Any], str, str] | None:
    """The document in a header of safetensors, its text and the file's checksum, if it is whole and of this format."""
    try:
        metadata = json.loads(header)["__metadata__"]
        text, checksum = metadata["checkpoint"], metadata["sha256"]
        # The document is looked through without the tensors, so it has a checksum of its own.
        if metadata["checkpoint_sha256"] != _digest(text):
            return None
        document = json.loads(text)
        fits = document["format"] == FORMAT and document["version"] == VERSION
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (document, text, checksum) if fits else None


def _numbers(document: Mapping[str, Any]) -> set[int]:
    return {number for number, _ in document["trials"]}


def _written(checkpoint: Checkpoint, identity: str) -> bytes:
    """The content of a checkpoint's file."""
    state = checkpoint.state
    models = sum(trial["models"] for trial in checkpoint.trials.values())
    if models != len(state.histories):
        raise ValueError(f"the trials have {models} models, the state {len(state.histories)}")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity,
        "begun": checkpoint.begun,
        "trials": list(checkpoint.trials.items()),
        "seconds": checkpoint.seconds,
        "epoch": state.epoch,
        "lanes": [{"indices": lane.indices, "sparse": lane.sparse, "steps": lane.steps} for lane in state.lanes],
        "histories": [[astuple(losses) for losses in history] for history in state.histories],
    }
    text = json.dumps(document)
    tensors = {f"{i}.{name}": tensor for i, lane in enumerate(state.lanes) for name, tensor in lane.tensors.items()}
    return save(tensors, {"checkpoint": text, "checkpoint_sha256": _digest(text), "sha256": _checksum(text, tensors)})


def _read(content: bytes) -> Checkpoint | None:
    """The checkpoint that a file holds, if it is whole."""
    parsed = _parsed(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if parsed is None:
        return None
    document, text, checksum = parsed
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError):
        return None
    if checksum != _checksum(text, tensors):
        return None
    # From here on it is what `_written` wrote.
    lanes = tuple(_lanes(document["lanes"], tensors))
    histories = tuple(tuple(EpochLosses(*losses) for losses in history) for history in document["histories"])
    return Checkpoint(
        tuple(document["begun"]),
        dict(document["trials"]),
        document["seconds"],
        TrainingState(document["epoch"], lanes, histories),
    )


def _lanes(documents: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Iterator[LaneState]:
    for number, lane in enumerate(documents):
        own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{number}.")}
        yield LaneState(tuple(lane["indices"]), lane["sparse"], tuple(lane["steps"]), own)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over all of a checkpoint: safetensors has none, and a flipped bit would leave most weights finite."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _reason(error: Exception, place: str) -> str:
    """What went wrong, in a line without credentials."""
    said = str(error).partition("\n")[0]
    if not isinstance(error, OSError | OutputError | ValueError):
        said = f"{type(error).__name__}: {said}"
    return without_password(said or type(error).__name__, place)[:300]

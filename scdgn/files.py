"""Outputs appear whole or not at all: they are written beside their place and renamed into it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from scdgn.errors import OutputError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to; renamed to `path`, replacing what is there, when the block ends well.

    Raises
    ------
    OutputError
        If the place cannot be written to.
    """
    check_file(path)
    with _beside(path) as workplace:
        yield workplace / path.name
        _rename(workplace / path.name, path)


@contextmanager
def new_folder(path: Path, overwrite: bool, names: Collection[str]) -> Iterator[Path]:
    """A folder to fill with the files of `names`; renamed to `path` when the block ends well.

    Raises
    ------
    OutputError
        If the place cannot be written to, or is taken: by another folder of such files, unless it is to be overwritten;
        by anything else, always.
    """
    check_free(path, overwrite, names)
    with _beside(path) as workplace:
        filled = workplace / path.name
        filled.mkdir()
        yield filled
        old = workplace / f"{path.name}.old"
        if path.exists():  # a folder cannot be renamed onto another one: the old one steps aside first
            _rename(path, old)
        try:
            _rename(filled, path)
        except OutputError:
            if old.exists():
                _rename(old, path)
            raise


def check_file(path: Path) -> None:
    """Refuse, before any work is done, a place that `new_file` would refuse after it; it leaves no trace."""
    with _explained(path):
        if path.is_dir():
            raise OutputError(f"{path} is a directory: give the name of a file")
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced
            raise OutputError(f"{path} is no ordinary file: give another name")
    with _beside(path):
        pass


def check_free(path: Path, overwrite: bool, names: Collection[str]) -> None:
    """Refuse, before any work is done, a place that `new_folder` would refuse after it; it leaves no trace."""
    if path.name in ("", ".."):
        raise OutputError(f"{path} is no name for a new folder: give one, such as {path / 'model'}")
    with _explained(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file: give the name of a folder")
        held = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if others := [name for name in held if name not in names]:
        raise OutputError(f"{path} holds other things than a model, as {others[0]!r}: choose another name")
    if held and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or replace it with --overwrite (overwrite=True)")
    with _beside(path):
        pass


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """An empty folder on the same file system; gone afterwards, with what is left in it.

    It lies in the nearest folder that exists, so that no new folder is left behind when nothing comes to be written.
    """
    with _explained(path):
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        if not existing.is_dir():
            raise OutputError(f"cannot write {path} ({existing} is no folder): choose another output")
        workplace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=existing))
    try:
        with _explained(path, "free some space there, or "):
            yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def _explained(path: Path, remedy: str = "") -> Iterator[None]:
    """What the system has against `path`, as an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}): {remedy}choose another output") from error


def _rename(source: Path, target: Path) -> None:
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)

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
    if path.is_dir():
        raise OutputError(f"{path} is a directory: give the name of a file")
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
        if path.exists():  # a folder cannot be renamed onto another one: the old one steps aside first
            _rename(path, workplace / f"{path.name}.old")
        _rename(filled, path)


def check_free(path: Path, overwrite: bool, names: Collection[str]) -> None:
    """Refuse, before any work is done, a place that `new_folder` would refuse after it; it leaves no trace."""
    if path.name in ("", ".."):
        raise OutputError(f"{path} is no name for a new folder: give one, such as {path / 'model'}")
    if path.is_file():
        raise OutputError(f"{path} is a file: give the name of a folder")
    held = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if others := [name for name in held if name not in names]:
        raise OutputError(f"{path} holds other things than a model, as {others[0]!r}: choose another name")
    if held and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or give --overwrite to replace it")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    with _beside(existing / path.name):
        pass


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """An empty folder on the same file system; gone afterwards, with what is left in it."""
    if path.parent.exists() and not path.parent.is_dir():
        raise OutputError(f"cannot write {path} ({path.parent} is no folder): choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent} ({error.strerror}): choose another output") from error
    try:
        yield workplace
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}): free some space there, or choose another output"
        ) from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror}): choose another output") from error

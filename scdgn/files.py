"""Files: what cannot be read is told in a line; outputs appear whole or not at all, renamed into their place."""

from __future__ import annotations

import ctypes
import io
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scdgn.errors import OutputError, SettingsError

if TYPE_CHECKING:
    import h5py

_WORKPLACE = re.compile(r"\..+\.[a-z0-9_]{8}")
_PAGE = 4096
_ARRAY = 1 << 20  # bytes; HDF5 writes its own structures in smaller pieces


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of the user's.

    Raises
    ------
    SettingsError
        If there is none, or it is something else.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): give a TOML file") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML ({error}): mend it") from None


def read_tables(path: Path, homes: str) -> dict[str, dict[str, Any]]:
    """The tables of a TOML file of the user's; what stands outside of them may belong to the tables of `homes`, in
    words.

    Raises
    ------
    SettingsError
        If there is no such file, it is something else, or anything stands outside a table.
    """
    tables = read_toml(path)
    if loose := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise SettingsError(f"{', '.join(loose)} in {path} stands outside a table: put it under {homes}")
    return tables


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
        if path.exists() and _exchanged(filled, path):
            return
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
        # Renaming onto it would ask the folder alone.
        if path.exists() and not path.stat().st_mode & 0o222:
            raise OutputError(f"{path} is write-protected: choose another output")
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
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in another one, to work in; gone afterwards, or with `clear` if the process was killed."""
    place = Path(tempfile.mkdtemp(prefix=".scratch.", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what processes had begun to write in a folder and were killed over; nobody may be writing there now."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if _WORKPLACE.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def hdf5_output(path: Path, mode: Literal["w", "r+"]) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """An HDF5 file, new or to be added to, and a check that raises if a write to it has failed.

    HDF5 does not survive a failed write: it dies of it when the file is closed (a segmentation fault of 1.14 and 2.0,
    on a full disk). So it is not told, and what it wrote is there when it reads it again; the error is raised at the
    end.

    Raises
    ------
    OSError
        If the place cannot be written to, or is full.
    """
    import h5py

    with path.open("w+b" if mode == "w" else "r+b", buffering=0) as raw:
        place = _Place(raw)
        try:
            with h5py.File(place, mode) as file:
                yield file, place.check
        finally:
            place.check()


class _Place(io.RawIOBase):
    """A file that seems to take everything: from the first failed write on memory does, for all but large arrays."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._error: BaseException | None = None  # an interrupt too
        self._pages: dict[int, bytearray] = {}  # what the file lacks
        self._at = 0

    def check(self) -> None:
        """Raise the error."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._error is None:
            try:
                self._raw.seek(self._at)
                written = 0
                while written < len(view):
                    written += self._raw.write(view[written:])
            except BaseException as error:
                self._error = error
        if self._error is not None and len(view) <= _ARRAY:
            for page, within, part in _pages(self._at, len(view)):
                if page not in self._pages:
                    self._pages[page] = bytearray(_PAGE)
                    self._read(page * _PAGE, memoryview(self._pages[page]))
                self._pages[page][within] = view[part]
        self._at += len(view)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._read(self._at, view)
        for page, within, part in _pages(self._at, len(view)) if self._pages else ():
            if page in self._pages:
                view[part] = self._pages[page][within]
        self._at += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset if whence == io.SEEK_SET else self._raw.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        if self._error is None:
            try:
                return self._raw.truncate(size)
            except BaseException as error:
                self._error = error
        return size or 0

    def flush(self) -> None:
        """Nothing is buffered."""

    def _read(self, start: int, view: memoryview) -> None:
        """Fill with what the file has there, beyond its end with zeros."""
        self._raw.seek(start)
        read = 0
        while now := self._raw.readinto(view[read:]):
            read += now
        view[read:] = bytes(len(view) - read)


def _pages(start: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """The pages that hold `size` bytes from `start` on: number, place within the page, place within the bytes."""
    done = 0
    while done < size:
        page, first = divmod(start + done, _PAGE)
        step = min(_PAGE - first, size - done)
        yield page, slice(first, first + step), slice(done, done + step)
        done += step


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


def _exchanged(one: Path, other: Path) -> bool:
    """Give two paths each other's names at once, where the system can: at no moment is there nothing at either."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old one
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _rename(source: Path, target: Path) -> None:
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)

"""Outputs are whole or not there: whatever raises, fills up or kills the process while they are written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

from scdgn.cells.h5ad import write_h5ad
from scdgn.errors import OutputError
from scdgn.files import _exchanged, check_file, check_free, clear, new_file, new_folder
from tests import LONGEST
from tests.faults import FAST, KEYS, done, tiny, tree

NAMES = ("one", "two")


def fill(folder: Path, text: str) -> None:
    for name in NAMES:
        (folder / name).write_text(text)


def write_file(path: Path, text: str = "new") -> None:
    with new_file(path) as place:
        place.write_text(text)


def write_folder(path: Path, text: str = "new", overwrite: bool = True) -> None:
    with new_folder(path, overwrite, NAMES) as place:
        fill(place, text)


# --- what is written


def test_new_places_and_their_parents(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b" / "file")
    write_folder(tmp_path / "c" / "d" / "folder")
    assert tree(tmp_path) == {
        **{"a": None, "a/b": None, "a/b/file": b"new"},
        **{"c": None, "c/d": None, "c/d/folder": None, "c/d/folder/one": b"new", "c/d/folder/two": b"new"},
    }


def test_old_ones_are_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_file(tmp_path / "file", text)
        write_folder(tmp_path / "folder", text)
    assert tree(tmp_path) == {"file": b"new", "folder": None, "folder/one": b"new", "folder/two": b"new"}


def test_names_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(Path("file"))
    write_folder(Path("folder"))
    assert set(tree(tmp_path)) == {"file", "folder", "folder/one", "folder/two"}


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "file")
        write_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


# --- what is refused


def taken(path: Path) -> Path:
    path.mkdir()
    fill(path, "old")
    return path


def strange(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.tex").touch()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def file(path: Path) -> Path:
    path.touch()
    return path


FOLDERS: dict[str, tuple[Callable[[Path], Path], bool, str]] = {
    "a model without --overwrite": (taken, False, "exists: choose another name, or replace it with --overwrite"),
    "a folder of other things": (strange, True, "holds other things than a model, as 'thesis.tex'"),
    "a file": (file, True, "is a file: give the name of a folder"),
    "a pipe": (pipe, True, "is a file: give the name of a folder"),
    "under a file": (lambda path: file(path) / "model", True, "is no folder"),
    "deep under a file": (lambda path: file(path) / "a" / "model", True, "is no folder"),
    "a name too long": (lambda path: path.with_name("n" * 300), True, "name too long"),
    "no name": (lambda path: path.parent / "..", True, "is no name for a new folder"),
}
FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a directory": (taken, "is a directory: give the name of a file"),
    "a pipe": (pipe, "is no ordinary file: give another name"),
    "under a file": (lambda path: file(path) / "out", "is no folder"),
    "a name too long": (lambda path: path.with_name("n" * 300), "name too long"),
}


@pytest.mark.parametrize(("make", "overwrite", "told"), FOLDERS.values(), ids=FOLDERS)
def test_places_no_folder_can_take(make: Callable[[Path], Path], overwrite: bool, told: str, tmp_path: Path) -> None:
    path = make(tmp_path / "place")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"(?i){told}"):
        check_free(path, overwrite, NAMES)
    with pytest.raises(OutputError, match=f"(?i){told}"), new_folder(path, overwrite, NAMES):
        pytest.fail("nothing may be written")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("make", "told"), FILES.values(), ids=FILES)
def test_places_no_file_can_take(make: Callable[[Path], Path], told: str, tmp_path: Path) -> None:
    path = make(tmp_path / "place")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"(?i){told}"):
        check_file(path)
    with pytest.raises(OutputError, match=f"(?i){told}"), new_file(path):
        pytest.fail("nothing may be written")
    assert set(tmp_path.rglob("*")) == before


def test_a_file_that_is_write_protected_is_not_replaced(tmp_path: Path) -> None:
    """Not by root either, whom the system lets do it."""
    (tmp_path / "kept").write_text("old")
    (tmp_path / "kept").chmod(0o444)
    (tmp_path / "link").symlink_to("kept")
    for name in ("kept", "link"):
        with pytest.raises(OutputError, match="is write-protected: choose another output"), new_file(tmp_path / name):
            pytest.fail("nothing may be written")
    assert (tmp_path / "kept").read_text() == "old" and (tmp_path / "link").is_symlink()


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_file(tmp_path / "a" / "file")
    check_free(tmp_path / "b" / "folder", False, NAMES)
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", False, NAMES)  # an empty folder is free
    assert tree(tmp_path) == {"empty": None}


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # which root would be allowed
    for check in (lambda: check_file(tmp_path / "file"), lambda: check_free(tmp_path / "folder", False, NAMES)):
        with pytest.raises(OutputError, match=r"Permission denied\): choose another output"):
            check()


# --- what goes wrong while writing


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_nothing_is_left_of_what_was_not_finished(error: BaseException, old: bool, tmp_path: Path) -> None:
    if old:
        write_file(tmp_path / "file", "old")
        write_folder(tmp_path / "folder", "old")
    before = tree(tmp_path)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, new_file(tmp_path / "new" / "file") as place:
        place.write_text("half")
        raise error
    with pytest.raises(expected), new_file(tmp_path / "file") as place:
        place.write_text("half")
        raise error
    with pytest.raises(expected), new_folder(tmp_path / "folder", True, NAMES) as place:
        (place / "one").write_text("half")
        raise error
    if expected is OutputError:
        assert "(No space left): free some space there, or choose another output" in str(caught.value)
    assert tree(tmp_path) == before


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "old")
    before = tree(tmp_path)
    replace = Path.replace

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name == "folder" and self.parent != tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    monkeypatch.setattr("scdgn.files._exchanged", lambda *_: False)  # a system that cannot
    with pytest.raises(OutputError, match="Input/output error"):
        write_folder(tmp_path / "folder", "new")
    assert tree(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders at once")
def test_a_folder_is_replaced_with_no_moment_at_which_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("renamed"))
    write_folder(tmp_path / "folder", "new")
    assert tree(tmp_path) == {"folder": None, "folder/one": b"new", "folder/two": b"new"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders at once")
def test_an_exchange_needs_two_of_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    assert not _exchanged(tmp_path / "folder", tmp_path / "nothing")
    assert (tmp_path / "folder" / "one").read_text() == "old"


def test_what_killed_processes_had_begun_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    write_file(tmp_path / "a.x12_45z8", "a file")
    (tmp_path / ".model.short").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".link.x12_45z8").symlink_to(tmp_path / "folder")
    before = tree(tmp_path)
    (tmp_path / ".model.x12_45z8" / "model.old").mkdir(parents=True)
    clear(tmp_path)
    assert tree(tmp_path) == before
    clear(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_the_old_output_whole(kind: str, tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", "old")
    before = tree(tmp_path)
    block = {
        "file": "with new_file(Path('file')) as place: place.write_text('half'); stop()",
        "folder": "with new_folder(Path('folder'), True, ('one', 'two')) as place: (place / 'one').touch(); stop()",
    }[kind]
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom scdgn.files import new_file, new_folder\n"
        f"def stop(): os.kill(os.getpid(), signal.SIGKILL)\n{block}"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=LONGEST, check=False)
    assert ran.returncode == -signal.SIGKILL
    left = tree(tmp_path)
    # Only the hidden workplace stays, whose name no later run takes for an output.
    assert {name: content for name, content in left.items() if not name.startswith(".")} == before
    assert len(left) > len(before)
    write_file(tmp_path / "file")
    write_folder(tmp_path / "folder")
    assert (tmp_path / "folder" / "two").read_text() == "new"


def limited(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line where no file can grow beyond `size` bytes: a full disk, as HDF5 and safetensors see it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    code = "import sys; sys.dont_write_bytecode = True; from scdgn.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "cells.h5ad", "--model", "model", "-o", "cells.h5ad"),
        ("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "--overwrite"),
    ],
    ids=["predict", "train"],
)
def test_no_space_for_the_output(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "-o", "model", "-q")
    before = tree(tmp_path)
    ran = limited(3000, *words, "-q")
    assert ran.returncode == 2, ran  # told of the failure, HDF5 would end in a segmentation fault
    assert ran.stderr.startswith("error: cannot write ") and ran.stderr.count("\n") == 1
    assert "free some space" in ran.stderr
    assert tree(tmp_path) == before


def test_an_anndata_is_written_as_it_is(tmp_path: Path) -> None:
    adata = tiny()
    adata.obs["note"] = [f"note {cell % 3}" for cell in range(adata.n_obs)]
    adata.raw = adata[:, :10]
    write_h5ad(adata, tmp_path / "out.h5ad")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert out.obs.equals(adata.obs) and out.obs["note"].dtype == object  # AnnData itself would make a category of it
    assert (out.X != adata.X).nnz == 0 and out.raw.shape == (140, 10)

"""The study folder, and the lease by which it has one owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scdgn.errors import DataError, OutputError
from scdgn.search import folder as module
from scdgn.search.folder import STALE, Lease, LeaseError, StudyFolder, find_study, owned, owner
from tests import LONGEST
from tests.faults import tree
from tests.summaries import summary_with

OWNER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from scdgn.search.folder import LeaseError, StudyFolder, owned
try:
    with owned(StudyFolder(Path(sys.argv[1]))):
        print("owner", flush=True)
        sys.stdin.read()
except LeaseError as error:
    print(error, flush=True)
"""


def written(name: str, **study: Any) -> dict[str, Any]:
    """The least that a study.toml holds."""
    return {
        "study": {"name": name, **study},
        "data": {},
        "sampler": {"name": "TPESampler"},
        "pruner": {"name": "MedianPruner"},
        "record": {
            "id": uuid.uuid4().hex,
            "created": "2026-11-23T14:07:11+00:00",
            "machine": "somewhere",
            "fingerprint": {"training": "", "test": "", "unlabeled": ""},
            "versions": {},
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "studies" / "s")


@contextmanager
def another_process(folder: StudyFolder) -> Iterator[subprocess.Popen[str]]:
    """One that tries to own the study, for as long as it lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < deadline, f"it did not come true in {LONGEST} seconds"
        time.sleep(0.005)


def left_by(folder: StudyFolder, content: str | dict[str, Any]) -> None:
    """Put somebody's lease into the folder."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.lease.write_text(content if isinstance(content, str) else json.dumps(content))


def of_somebody(**changes: Any) -> dict[str, Any]:
    return {"token": "theirs", "host": socket.gethostname(), "pid": 2**30, "started": "1", "beat": 0.0, **changes}


def test_a_study_has_one_owner(folder: StudyFolder) -> None:
    assert owner(folder) is None
    with owned(folder):
        assert owner(folder) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(LeaseError, match=f"run by process {os.getpid()} on {socket.gethostname()}"):  # noqa: SIM117
            with owned(folder):
                raise AssertionError
        assert owner(folder) is not None
    assert owner(folder) is None
    with owned(folder):
        pass


def test_the_study_is_released_after_an_error(folder: StudyFolder) -> None:
    with pytest.raises(ZeroDivisionError), owned(folder):
        raise ZeroDivisionError
    assert owner(folder) is None and not folder.lease.exists()


def test_a_live_process_keeps_the_study_and_a_killed_one_loses_it(folder: StudyFolder) -> None:
    with another_process(folder) as process:
        assert line_of(process) == "owner\n"
        assert owner(folder) == f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(LeaseError, match=f"run by process {process.pid} on .* wait for it or stop it"):
            Lease(folder.lease).take()
        process.send_signal(signal.SIGKILL)
        until(lambda: owner(folder) is None)  # at once, though nobody has waited for the child yet
        assert folder.lease.exists()
        with owned(folder) as lease:
            assert not lease.lost
            assert owner(folder) == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_process_that_ends_well_releases_the_study(folder: StudyFolder) -> None:
    with another_process(folder) as process:
        line_of(process)
        process.communicate("")
        assert not folder.lease.exists()


def test_of_processes_that_find_a_dead_owner_one_takes_over(folder: StudyFolder) -> None:
    left_by(folder, of_somebody())
    with another_process(folder) as one, another_process(folder) as two, another_process(folder) as three:
        said = [line_of(process) for process in (one, two, three)]
    assert said.count("owner\n") == 1
    assert sum("is run by process" in line for line in said) == 2


def test_of_threads_that_find_a_dead_owner_one_takes_over(folder: StudyFolder) -> None:
    for _ in range(15):
        left_by(folder, of_somebody())
        together = threading.Barrier(6)
        won, lost = [], []

        def take(together: threading.Barrier = together, won: list[Any] = won, lost: list[Any] = lost) -> None:
            lease = Lease(folder.lease)
            together.wait()
            try:
                lease.take()
                won.append(lease)
            except LeaseError as error:
                lost.append(error)

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 5)
        won[0].release()
        assert not folder.lease.exists()


def test_the_number_of_a_dead_process_may_be_given_to_another_one(folder: StudyFolder) -> None:
    left_by(folder, of_somebody(pid=os.getpid(), started="long ago"))
    assert owner(folder) is None
    with owned(folder):
        pass


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", '"lease"', "\0\0\0", json.dumps(of_somebody())[:40]],
    ids=["empty", "half", "null", "list", "text", "zeros", "cut"],
)
def test_a_lease_that_cannot_be_read_is_nobody_s(folder: StudyFolder, content: str) -> None:
    left_by(folder, content)
    assert owner(folder) is None
    with owned(folder):
        assert owner(folder) is not None


@pytest.mark.parametrize("pid", [None, "1", -1, 0, 1.5, [1]])
def test_a_lease_without_a_process_is_nobody_s(folder: StudyFolder, pid: object) -> None:
    left_by(folder, of_somebody(pid=pid, started=None))
    assert owner(folder) is None
    with owned(folder):
        pass


def test_an_owner_on_another_machine_lives_as_long_as_it_beats(folder: StudyFolder) -> None:
    left_by(folder, of_somebody(host="elsewhere", pid=12, beat=0.0))  # its clock may be wrong: the file's time counts
    assert owner(folder) == "process 12 on elsewhere"
    with pytest.raises(LeaseError, match="process 12 on elsewhere"):
        Lease(folder.lease).take()
    assert [path.name for path in folder.path.iterdir() if "lock" not in path.name] == ["lease.json"]
    long_ago = time.time() - STALE - 5
    os.utime(folder.lease, (long_ago, long_ago))
    assert owner(folder) is None
    with owned(folder):
        pass


def test_an_owner_beats(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with owned(folder) as lease:
        first = json.loads(folder.lease.read_text())
        until(lambda: json.loads(folder.lease.read_text())["beat"] > first["beat"])
        folder.lease.unlink()  # as by somebody who tidies up
        until(folder.lease.exists)
        assert not lease.lost
    assert not folder.lease.exists()


def test_an_owner_notices_that_it_was_taken_for_dead(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with owned(folder) as lease:
        theirs = of_somebody()
        until(lambda: left_by(folder, theirs) is None and lease.lost)
    assert json.loads(folder.lease.read_text()) == theirs  # which is not ours to remove


def test_a_disk_that_is_full_for_a_while_loses_no_lease(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    write, tried = Path.write_text, threading.Event()
    with owned(folder) as lease:

        def full(path: Path, *content: Any, **more: Any) -> int:
            tried.set()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        assert tried.wait(LONGEST)
        monkeypatch.setattr(Path, "write_text", write)
        before = json.loads(folder.lease.read_text())["beat"]
        until(lambda: json.loads(folder.lease.read_text())["beat"] > before)
        assert not lease.lost


def test_nothing_but_the_lease_is_left_in_the_folder(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.001)
    with owned(folder):
        time.sleep(0.05)
    assert [name for name in tree(folder.path) if not name.startswith(".")] == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "studies").write_text("a file")
    folder = StudyFolder(tmp_path / "studies" / "s")
    with pytest.raises(OutputError, match=r"cannot write .* choose other --studies"), owned(folder):
        raise AssertionError


def test_the_settings_come_back_and_are_there_whole_or_not_at_all(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not folder.exists
    document = {
        **written("s", trials=3, enqueue=[{"lr": 0.001}]),
        "space": {"hidden": {"low": 8, "high": 9}},
    }
    folder.write_settings(document)
    assert folder.exists and folder.read_settings() == document
    before = tree(folder.path)
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder.write_settings({"study": {}})
    with pytest.raises(ZeroDivisionError):
        folder.write_summary(summary_with())
    assert tree(folder.path) == before


def test_settings_that_are_not_there_or_cannot_be_read(folder: StudyFolder) -> None:
    StudyFolder(folder.path.with_name("islets")).write_settings({"study": {}})
    with pytest.raises(DataError, match=r"there is no study .*s: choose one that exists"):
        folder.read_settings()
    with pytest.raises(DataError, match="did you mean islets"):
        StudyFolder(folder.path.with_name("islet")).read_settings()
    folder.write_settings({"study": {}})
    folder.settings.write_bytes(b"[study\n")
    with pytest.raises(DataError, match=r"study.toml cannot be read .* restore it, or use --fresh"):
        folder.read_settings()
    folder.settings.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"study.toml cannot be read"):
        folder.read_settings()


def test_the_summary_comes_back(folder: StudyFolder) -> None:
    assert folder.read_summary() is None
    folder.write_settings({"study": {}})
    assert folder.read_summary() is None
    summary = summary_with(winner={"number": 3, "score": 0.25})
    folder.write_summary(summary)
    assert folder.read_summary() == summary
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.write_summary(replace(summary, padding=float("nan")))
    assert folder.read_summary() == summary


def test_a_study_set_aside_keeps_everything(folder: StudyFolder) -> None:
    folder.write_settings({"study": {"name": "s"}})
    folder.predictions(7).parent.mkdir()
    folder.predictions(7).write_bytes(b"predictions")
    before = tree(folder.path)
    aside = folder.set_aside()
    assert tree(aside) == before and aside.parent == folder.path.parent
    assert aside.name.startswith("s.before-") and not folder.path.exists()


def test_studies_are_found_by_name(tmp_path: Path) -> None:
    for name in ("islets", "all/nn", "all/dann", "all/scdgn"):
        StudyFolder(tmp_path / name).write_settings({"study": {}})
    assert find_study(tmp_path, "islets") == [StudyFolder(tmp_path / "islets")]
    assert [found.path.name for found in find_study(tmp_path, "all")] == ["dann", "nn", "scdgn"]
    assert find_study(tmp_path, "all/nn") == [StudyFolder(tmp_path / "all" / "nn")]
    with pytest.raises(DataError, match=r"there is no study 'islet' in .*: did you mean islets"):
        find_study(tmp_path, "islet")
    with pytest.raises(DataError, match="there are none"):
        find_study(tmp_path / "nowhere", "islets")

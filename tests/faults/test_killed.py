"""A search that is cut off in the midst of a trial goes on from its checkpoint; and it has one owner."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from scdgn.cells.h5ad import write_h5ad
from scdgn.commands.terminal import STOPS
from scdgn.core.training import TrainingState, train
from scdgn.search.engines.local import Local
from scdgn.search.folder import Lease, StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.shown.watching import Watcher
from scdgn.search.stages.owners import Watched
from scdgn.search.studies import STOPPING, interruptible
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import Study, read_records
from scdgn.search.trials import objective
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.objective import Work
from tests import LONGEST
from tests.faults import KEYS, done, tiny
from tests.test_objective import SPACE, inputs
from tests.test_study import contents, opened

TRIALS = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_h5ad(tiny(cells={"a": 150, "b": 150, "c": 150, "d": 40}, genes=60), folder / "cells.h5ad")
    return folder


def command(place: Path, studies: str, *words: str) -> list[str]:
    return [
        *(sys.executable, "-m", "scdgn.cli", "search", str(place / "cells.h5ad"), *KEYS, "--test-batch", "d"),
        *("--name", "killed", "--studies", str(place / studies), "--trials", str(TRIALS), "--final-seeds", "2"),
        *("--confirm", "2", "--set", "hidden=[24, 32]", "--set", "latent=8"),
        *("--set", "domain_code=8", "--set", "epochs={low=8, high=16}", "--pack", "1", *words),
    ]


def environment(place: Path) -> dict[str, str]:
    store = f"sqlite:///{place / 'mlflow.db'}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": store}


def records_of(place: Path, studies: str) -> list[TrialRecord]:
    folder = StudyFolder(place / studies / "killed")
    return read_records(folder, from_document(folder.read_settings()))


def test_two_searches_at_once_are_refused(place: Path) -> None:
    process = subprocess.Popen(
        command(place, "twice", "--no-track"), cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial"):
            break
    process.send_signal(signal.SIGSTOP)  # it would be done before the other one has started
    other = subprocess.run(
        command(place, "twice", "--no-track"), cwd=place, env=environment(place), capture_output=True, text=True
    )
    process.send_signal(signal.SIGCONT)
    assert other.returncode == 2
    assert f"run by process {process.pid} on" in other.stderr
    process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0


# When all is done, and the interpreter ends

LATE = """
import atexit, os
from scdgn import cli

def wait(read=os.read, write=os.write):
    write(1, b"ending\\n")
    while read(0, 1):
        write(1, b"going on\\n")

def and_more(command=cli._command):
    status = command()
    atexit.register(wait)
    return status

class Left:
    def __del__(self, wait=wait):
        wait()

{}
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("left", "insisting"),
    [("cli._command = and_more", 130), ("left = Left()", 0)],
    ids=["what is called at the exit", "what is cleared after it"],
)
def test_a_signal_after_the_end_changes_nothing(left: str, insisting: int, number: signal.Signals) -> None:
    for signals, expected in ((1, 0), (2, insisting)):
        process = subprocess.Popen(
            [sys.executable, "-c", LATE.format(left), "datasets", "--json"],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0},
        )
        assert process.stdin is not None and process.stdout is not None
        assert any(line == b"ending\n" for line in process.stdout)
        for _ in range(signals):
            process.send_signal(number)
            with suppress(BrokenPipeError):  # of a process that has ended
                process.stdin.write(b"?")
            process.stdout.readline()  # it has met the signal: two of a kind that wait are one
        _, told = process.communicate(timeout=LONGEST)
        assert (process.returncode, told) == (expected, b"")


# Cut off in the midst of a trial

EPOCHS = 24
"""Of every trial."""

HALTED = """
import os, sys
from itertools import count
from scdgn import cli
from scdgn.search.trials import checkpoints, objective

checkpoints.MOST_WRITING = float("inf")  # whatever it takes
train, packs = objective.train, count(1)

def halted(members, device, watch, groups, precision, between, state):
    second, epochs = next(packs) == 2, count(1)

    def halting(state_of):
        between(state_of)
        if second and next(epochs) == 3:
            print("under way", file=sys.stderr, flush=True)
            os.read(0, 1)

    return train(members, device, watch, groups, precision, halting, state)

objective.train = halted
cli.main()
"""
"""A search whose second pack waits after three epochs for a word to go on."""


def long_search(place: Path, studies: str, pack: str, *words: str) -> list[str]:
    """Four trials of many epochs; the words after `scdgn`."""
    return [
        *("search", str(place / "cells.h5ad"), *KEYS, "--test-batch", "d", "--name", "killed", "--no-track"),
        *("--studies", str(place / studies), "--trials", "4", "--final-seeds", "1", "--confirm", "0", "--pack", pack),
        *("--pruner", "NopPruner", "--method", "dann", "--set", "hidden=[24, 32]", "--set", "latent=8"),
        *("--set", "domain_code=8", "--set", f"epochs={EPOCHS}", *words),
    ]


def checkpoints_of(place: Path, studies: str) -> list[Path]:
    return sorted((place / studies / "killed" / "checkpoints").glob("*.safetensors"))


def halted(place: Path, words: list[str]) -> subprocess.Popen[str]:
    """A search of which the first pack has ended, and the second one is under way."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALTED, *words],
        cwd=place, env=environment(place), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line == "under way\n" for line in process.stderr)
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Let it go on; its status, and what it says."""
    assert process.stdin is not None and process.stderr is not None
    process.stdin.close()
    with process.stderr:
        told = process.stderr.read()
    return process.wait(timeout=LONGEST), told


@pytest.fixture
def resumed_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epoch after which each pack of this process goes on; 0 for one that begins."""
    epochs: list[int] = []

    def watched(*given: Any) -> Any:
        state: TrainingState | None = given[-1]
        epochs.append(state.epoch if state else 0)
        return train(*given)

    monkeypatch.setattr(objective, "train", watched)
    return epochs


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Callable[[str], str]:
    """The folder of studies in which nothing was cut off, by the size of the packs."""

    @cache
    def studies(pack: str) -> str:
        done(*long_search(place, f"whole {pack}", pack))
        return f"whole {pack}"

    return studies


def assert_equal(place: Path, studies: str, other: str) -> None:
    """Trials and final seeds alike, to the last bit; and no checkpoint is left."""

    def comparable(record: TrialRecord) -> TrialRecord:
        return replace(record, seconds=0.0, started=0.0, ended=0.0)

    mine, theirs = (list(map(comparable, records_of(place, each))) for each in (studies, other))
    assert mine == theirs and [record.state for record in mine] == ["complete"] * 4
    summaries = [StudyFolder(place / each / "killed").read_summary() for each in (studies, other)]
    for key in ("winner", "final", "protocols"):
        assert getattr(summaries[0], key) == getattr(summaries[1], key)
    assert checkpoints_of(place, studies) == []


@pytest.mark.parametrize("after", [5, 7, 15])
def test_rungs_that_were_passed_before_a_checkpoint_are_not_forgotten(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a trial reports may wait in memory for what is written next, which its checkpoint does not."""
    monkeypatch.setattr("scdgn.search.study.journal.REST", 1e9)

    def searched(studies: str, stopping: Callable[[], bool]) -> tuple[bool, Study]:
        study = opened(tmp_path / studies, method="nn", space={**SPACE, "epochs": 16}, trials=2, pruner="NopPruner")
        folder = study._folder
        work = Work(inputs(), "macro_f1", checkpoints=Checkpoints(str(folder.checkpoints), 60.0, "this study"))
        told = Watched(study, folder, Lease(folder.lease), Watcher())
        return Local("cpu").run(told, work, 2, lambda: False, stopping), study

    epochs = count(1)
    assert not searched("cut", lambda: next(epochs) == after)[0]
    over, study = searched("cut", lambda: False)
    whole, expected = searched("whole", lambda: False)
    assert over and whole
    assert contents(study) == contents(expected)


@pytest.mark.parametrize("pack", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_what_a_batch_system_stops_writes_a_checkpoint_and_goes_on_from_it(
    place: Path, pack: str, resumed_from: list[int], uninterrupted: Callable[[str], str]
) -> None:
    studies = f"usr1 {pack}"
    words = long_search(place, studies, pack)
    process = halted(place, words)
    process.send_signal(signal.SIGUSR1)
    status, told = ended(process)
    assert status == 130
    assert "the same command goes on from here" in told and "Traceback" not in told
    (checkpoint,) = checkpoints_of(place, studies)
    before = records_of(place, studies)
    cut = [record.number for record in before if record.state == "running"]
    assert 0 < len(cut) <= int(pack) and f"trial-{min(cut):05d}" in checkpoint.name

    done(*words)
    assert 0 < resumed_from[0] < EPOCHS and not any(resumed_from[1:])
    after = records_of(place, studies)
    assert all(record in after for record in before if record.state == "complete")
    assert_equal(place, studies, uninterrupted(pack))


@pytest.mark.parametrize("pack", [pytest.param("1", marks=pytest.mark.long), "2"])
def test_a_kill_costs_what_was_trained_since_the_last_checkpoint(
    place: Path, pack: str, resumed_from: list[int], uninterrupted: Callable[[str], str]
) -> None:
    studies = f"kill {pack}"
    words = long_search(place, studies, pack, "--checkpoint-every", "0")
    process = halted(place, words)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert len(checkpoints_of(place, studies)) == 1

    done(*words)
    assert 0 < resumed_from[0] < EPOCHS and not any(resumed_from[1:])
    assert_equal(place, studies, uninterrupted(pack))


def test_a_pack_goes_on_where_others_keep_their_checkpoints(
    place: Path, resumed_from: list[int], uninterrupted: Callable[[str], str]
) -> None:
    """In a folder of the user's, with what is not a checkpoint beside it."""
    kept = place / "kept elsewhere"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    words = long_search(place, "elsewhere", "2", "--checkpoints", str(kept))
    process = halted(place, words)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130
    assert len(list(kept.glob("*.safetensors"))) == 1 and checkpoints_of(place, "elsewhere") == []

    done(*words)
    assert 0 < resumed_from[0] < EPOCHS
    assert_equal(place, "elsewhere", uninterrupted("2"))
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


def test_a_disk_that_takes_no_checkpoint_is_told_and_the_search_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Callable[[str], str]
) -> None:
    monkeypatch.setattr(Checkpoints, "save", lambda *_: "No space left on device")
    told = done(*long_search(place, "full", "2", "--checkpoint-every", "0")).err
    assert "checkpoints cannot be written (No space left on device): a pack that is lost begins again" in told
    assert_equal(place, "full", uninterrupted("2"))


@pytest.mark.parametrize("number", STOPS)
def test_what_stops_a_search_is_answered_at_once(number: signal.Signals) -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    with interruptible(said.put) as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert said.get(timeout=LONGEST) == STOPPING and stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    with interruptible(said.put) as stopping:
        assert not stopping()
    assert said.empty()

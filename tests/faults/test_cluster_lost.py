"""Workers, a machine and the driver are lost: the study ends as if nothing had happened."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Machines

from scdgn.cells.h5ad import write_h5ad
from scdgn.search.engines.cluster import Cluster, Resources
from scdgn.search.engines.local import Local
from scdgn.search.folder import StudyFolder
from scdgn.search.stages import owners
from scdgn.search.study.study import Study
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.objective import Work
from tests.faults import tiny
from tests.faults.disturbed import agrees_with_mlflow
from tests.faults.test_killed import command, environment, records_of
from tests.test_cluster import (
    Asking,
    Marking,
    Slow,
    contents,
    epochs,
    limited,
    never,
    one_thread,
    owner_of,
    ray_of_its_own,
    room,
    thin,
    within,
)
from tests.test_objective import SPACE, inputs
from tests.test_study import opened

__all__ = ["limited", "one_thread"]

EPOCHS = 64
ASKED: dict[str, Any] = {
    "method": "scdgn", "sampler": "RandomSampler", "pruner": "NopPruner", "space": {**SPACE, "epochs": EPOCHS},
}  # fmt: skip


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two machines with two cores each, on this one."""
    with ray_of_its_own():
        with within():
            two = Machines(initialize_head=True, head_node_args={"num_cpus": 2})
            two.add_node(num_cpus=2)
            ray.init(address=two.address, log_to_driver=False, logging_level=logging.ERROR)
        yield two
        with within():
            ray.shutdown()
            two.shutdown()  # type: ignore[no-untyped-call]


class Watching(owners.Watched):
    """Sees who works on which trial, and does something about it."""

    act: Callable[[int, int], None]
    pids: dict[int, list[int]]
    fleet: Mapping[str, Any]

    def workers(self, fleet: Mapping[str, Any]) -> None:
        super().workers(fleet)
        self.fleet = fleet
        for worker in fleet["workers"]:
            for number in worker["trials"]:
                if worker["pid"] not in self.pids[number]:
                    self.pids[number].append(worker["pid"])
                self.act(number, worker["pid"])


def watching(study: Study, act: Callable[[int, int], None]) -> Watching:
    owner = owner_of(study, Watching)
    assert isinstance(owner, Watching)
    owner.act, owner.pids = act, defaultdict(list)
    return owner


def under_way(study: Study, number: int) -> bool:
    """Whether a trial is in the middle of its training."""
    return 2 <= len(study.record(number).steps) < 7


def undisturbed(place: Path, work: Work, trials: int, pack: int) -> list[dict[str, Any]]:
    study = opened(place / "undisturbed", trials=trials, **ASKED)
    assert Local("cpu").run(owner_of(study), Work(work.inputs, work.metric), pack, never, never)
    return contents(study)


# --- a worker


def test_trials_of_lost_workers_go_on_from_their_checkpoints(
    machines: Machines, one_thread: None, tmp_path: Path
) -> None:
    """One worker dies at once, the others are told to leave and write a checkpoint first."""
    study = opened(tmp_path / "study", trials=3, **ASKED)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), 0.0, "this study")
    work = Slow(inputs(), "macro_f1", checkpoints=checkpoints, place=str(tmp_path), pause=0.1)
    left = {0: signal.SIGKILL, 1: signal.SIGTERM, 2: signal.SIGUSR1}
    hit: dict[int, int] = {}

    def act(number: int, pid: int) -> None:
        if number in left and under_way(study, number):
            hit[number] = pid
            os.kill(pid, left.pop(number))

    owner = watching(study, act)
    assert Cluster(Resources(gpus=0, concurrency=3)).run(owner, work, 1, never, never)
    assert sorted(hit) == [0, 1, 2] and owner.fleet["retries"] == 3
    for number, pid in hit.items():
        assert owner.pids[number][0] == pid and len(owner.pids[number]) == 2
    assert contents(study) == undisturbed(tmp_path, work, 3, 1)
    # What the first one had done since its last checkpoint may be done again, but not all; and nothing of the others.
    done = epochs(tmp_path)
    assert EPOCHS - 1 <= done.pop("epochs of 0") < EPOCHS - 1 + EPOCHS / 4
    assert done == {"epochs of 1": EPOCHS - 1, "epochs of 2": EPOCHS - 1}
    assert not list((tmp_path / "checkpoints").iterdir())


class Killing(Asking):
    """Kills whoever has trial 0."""

    def workers(self, fleet: Mapping[str, Any]) -> None:
        super().workers(fleet)
        for worker in fleet["workers"]:
            if 0 in worker["trials"]:
                with suppress(ProcessLookupError):  # dead, and nobody has its pack yet
                    os.kill(worker["pid"], signal.SIGKILL)


@pytest.mark.long
def test_a_pack_that_is_lost_too_often_fails_and_the_others_go_on(machines: Machines, tmp_path: Path) -> None:
    owner = Killing(6)
    cluster = Cluster(Resources(gpus=0, concurrency=2, max_failures=1))
    assert cluster.run(owner, Marking(str(tmp_path), endless=(0,)), 2, never, never)
    states = {number: outcome.record.state for number, outcome in owner.outcomes.items()}
    assert states == {0: "fail", 1: "fail", 2: "complete", 3: "complete", 4: "complete", 5: "complete"}
    for number in (0, 1):
        assert owner.outcomes[number].record.reason.startswith("lost with its worker, 2 times: ")
    assert owner.fleets[-1]["retries"] == 1 and owner.fleets[-1]["workers"] == []


# --- the driver


def command_of(place: Path, studies: str, *words: str) -> list[str]:
    """A search of which every draw is independent of what else runs."""
    return command(
        place, studies, "--sampler", "RandomSampler", "--pruner", "NopPruner", "--set", "epochs={low=100, high=200}",
        "--trials", "5", "--confirm", "1", *words,
    )  # fmt: skip


ON_RAY = ("--engine", "ray", "--concurrency", "2", "--checkpoint-every", "0")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_h5ad(tiny(cells={"a": 80, "b": 80, "c": 80, "d": 40}, genes=60), tmp_path / "cells.h5ad")
    return tmp_path


@pytest.fixture
def marked() -> Iterator[tuple[dict[str, str], Callable[[], list[str]]]]:
    """Variables that mark whatever is started with them, and what is left of it."""
    with room() as folder:

        def remaining() -> list[str]:
            found = []
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                except OSError:
                    continue
                # Two of Ray's own look for their parent once a minute.
                agent = words.startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))
                if folder.name.encode() in words and not agent:
                    found.append(words.replace(b"\0", b" ")[:80].decode(errors="replace"))
            return found

        yield {"RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}, remaining


def gone(remaining: Callable[[], list[str]], seconds: float = 120) -> bool:
    until = time.monotonic() + seconds
    while remaining() and time.monotonic() < until:
        time.sleep(0.5)
    return not remaining()


def interrupted(words: list[str], variables: dict[str, str], place: Path, number: int) -> tuple[int, str]:
    """Run a command until its first trial has ended and others are under way, and then send it a signal."""
    process = subprocess.Popen(words, cwd=place, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("trial"):
            time.sleep(0.5)
            process.send_signal(number)
            break
    told += process.stderr.readlines()
    process.stderr.close()
    return process.wait(timeout=120), "".join(told)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_whose_driver_is_gone_goes_on(
    place: Path, marked: tuple[dict[str, str], Callable[[], list[str]]], number: int
) -> None:
    variables, remaining = {**environment(place), **marked[0]}, marked[1]
    words = command_of(place, "studies", *ON_RAY)
    status, told = interrupted(words, variables, place, number)
    before = records_of(place, "studies")
    assert {record.state for record in before} == {"complete", "running"}, told
    assert gone(remaining), remaining()
    checkpoints = list(StudyFolder(place / "studies" / "killed").checkpoints.glob("*.safetensors"))
    if number == signal.SIGTERM:
        assert status == 130 and "the same command goes on from here" in told and "Traceback" not in told
        assert len(checkpoints) == sum(record.state == "running" for record in before)
    else:
        assert status == -number

    again = subprocess.run(words, cwd=place, env=variables, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert gone(remaining), remaining()
    records = records_of(place, "studies")
    assert [record.number for record in records] == list(range(5))
    assert all(record in records for record in before if record.state == "complete")
    other = subprocess.run(
        command_of(place, "others", "--no-track"), cwd=place, env=variables, capture_output=True, text=True, timeout=240
    )
    assert other.returncode == 0, other.stderr
    for record, expected in zip(records, records_of(place, "others"), strict=True):
        assert record.settings == expected.settings
        assert (record.state, record.steps, record.folds) == (expected.state, expected.steps, expected.folds)
        assert record.curves == expected.curves
    summary = StudyFolder(place / "studies" / "killed").read_summary()
    assert summary is not None
    agrees_with_mlflow(place, summary, records)


# --- a machine: the last test, since it is not there afterwards


@pytest.mark.long
def test_the_trials_of_a_lost_machine_go_on_elsewhere(machines: Machines, one_thread: None, tmp_path: Path) -> None:
    study = opened(tmp_path / "study", trials=6, **ASKED)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), 0.0, "this study")
    work = Slow(inputs(thin()), "macro_f1", checkpoints=checkpoints, place=str(tmp_path), pause=0.1)
    (second,) = machines.worker_nodes
    nodes: list[Any] = [machines.head_node, second]
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    worked = set()

    def act(number: int, pid: int) -> None:
        if machines.worker_nodes:
            worked.add(raylets[parent_of(pid)])
            if raylets[parent_of(pid)] is second and under_way(study, number):
                machines.remove_node(second, allow_graceful=False)

    owner = watching(study, act)
    assert Cluster(Resources(gpus=0)).run(owner, work, 1, never, never)
    assert not machines.worker_nodes and len(worked) == 2
    assert sorted(node["alive"] for node in owner.fleet["nodes"]) == [False, True]
    assert owner.fleet["retries"] >= 1 and owner.fleet["slots"] == 2
    assert contents(study) == undisturbed(tmp_path, work, 6, 1)


def parent_of(pid: int) -> int:
    """For a worker that is the process of its machine."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

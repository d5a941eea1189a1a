"""What is told of those who work: who they are, what they have done, and how busy they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from scdgn.search.engines import fleet as module
from scdgn.search.engines.fleet import Fleet, Working, in_words


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def at(clock: Clock) -> Callable[..., Working]:
    """A worker that begins now."""

    def place(node: str, *trials: int, gpus: tuple[str, ...] = ()) -> Working:
        return Working(node, 4711, gpus, list(trials), since=clock.now)

    return place


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    """As `ray.nodes()` tells it: one that is gone has no resources any more."""
    return {
        "NodeManagerHostname": name,
        "NodeManagerAddress": "10.0.0.1",
        "Alive": alive,
        "Resources": {"memory": 1e9, **resources} if alive else {},
        "NodeID": "0" * 56,
    }


def test_trials_are_counted_by_gpu_and_by_machine_where_there_is_none(at: Callable[..., Working]) -> None:
    fleet = Fleet()
    fleet.begin("one", at("b", 0, 1, gpus=("0",)))
    fleet.begin("two", at("b", 2, gpus=("1",)))
    fleet.begin("three", at("a", 3, 4))
    for pack, number in (("one", 0), ("one", 1), ("two", 2), ("three", 4)):
        fleet.ended(pack, number)
    fleet.leave("one")
    fleet.begin("four", at("b", 5, gpus=("0",)))
    fleet.ended("four", 5)
    told = fleet.describe([], 3)
    assert told["trials"] == {"a": 1, "b GPU 0": 3, "b GPU 1": 1}
    assert [(worker["node"], worker["gpus"], worker["trials"]) for worker in told["workers"]] == [
        ("b", ["1"], []),
        ("a", [], [3]),
        ("b", ["0"], []),
    ]


def test_a_trial_on_two_gpus_counts_for_both(at: Callable[..., Working]) -> None:
    fleet = Fleet()
    fleet.begin("one", at("a", 0, gpus=("0", "1")))
    fleet.ended("one", 0)
    assert fleet.describe([], 1)["trials"] == {"a GPU 0": 1, "a GPU 1": 1}


def test_a_pack_that_is_begun_again_has_one_worker(clock: Clock, at: Callable[..., Working]) -> None:
    fleet = Fleet()
    fleet.begin("one", at("lost", 0, 1))
    assert fleet.working == 1
    clock.now += 10
    fleet.begin("one", at("found", 1))
    assert fleet.working == 1
    (worker,) = fleet.describe([], 1)["workers"]
    assert worker == {"node": "found", "pid": 4711, "gpus": [], "trials": [1], "since": 1010.0}
    clock.now += 10
    assert fleet.describe([], 1)["busy"] == 1.0
    fleet.leave("one")
    fleet.leave("one")  # both its end and its loss may be told
    assert fleet.working == 0 and fleet.describe([], 1)["workers"] == []


def test_retries_are_told(at: Callable[..., Working]) -> None:
    fleet = Fleet()
    fleet.retries += 2
    assert fleet.describe([], 1)["retries"] == 2


def test_busy_is_the_share_of_the_slots_time_in_which_they_had_a_pack(clock: Clock, at: Callable[..., Working]) -> None:
    fleet = Fleet()
    clock.now += 500  # nothing is idle before the first pack has begun
    fleet.begin("one", at("a", 0))
    clock.now += 10
    assert fleet.describe([], 2)["busy"] == 0.5
    fleet.begin("two", at("a", 1))
    clock.now += 10
    assert fleet.describe([], 2)["busy"] == 0.75
    fleet.leave("one")
    fleet.leave("two")
    clock.now += 20
    told = fleet.describe([], 2)
    assert (told["busy"], told["slots"], told["updated"]) == (0.375, 2, 1540.0)
    assert fleet.describe([], 1)["busy"] == 0.75
    fleet.begin("three", at("a", 2))
    clock.now += 20
    assert fleet.describe([], 2)["busy"] == pytest.approx((10 + 20 + 20) / (2 * 60), abs=1e-4)


def test_busy_is_a_share_whatever_becomes_of_the_machines(clock: Clock, at: Callable[..., Working]) -> None:
    fleet = Fleet()
    assert fleet.describe([], 4)["busy"] == 0.0  # nothing has begun
    for name in "abc":
        fleet.begin(name, at("a", 0))
    assert fleet.describe([], 4)["busy"] == 0.0  # just now
    clock.now += 10
    assert fleet.describe([], 2)["busy"] == 1.0  # a machine is gone, and its worker not yet known to be
    assert fleet.describe([], 0)["busy"] == 0.0


def test_machines_are_told_as_ray_tells_them(at: Callable[..., Working]) -> None:
    fleet = Fleet()
    fleet.begin("one", at("a", 0, gpus=("0",)))
    told = fleet.describe([node("a", CPU=16.0, GPU=4.0), node("b", CPU=2.0), node("c", alive=False)], 4)
    keys = ("name", "alive", "cpus", "gpus")
    assert [tuple(one[key] for key in keys) for one in told["nodes"]] == [
        ("a", True, 16.0, 4.0),
        ("b", True, 2.0, 0),
        ("c", False, 0, 0),
    ]
    assert {one["address"] for one in told["nodes"]} == {"10.0.0.1"}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize(
    ("nodes", "retries", "words"),
    [
        ([node("a", CPU=1.0)], 0, "1 CPU on 1 node, 50% busy, 0 retries"),
        ([node("a", CPU=8.0), node("b", CPU=8.0)], 1, "16 CPUs on 2 nodes, 50% busy, 1 retry"),
        ([node("a", CPU=8.0, GPU=1.0)], 2, "1 GPU on 1 node, 50% busy, 2 retries"),
        ([node("a", GPU=4.0), node("b", GPU=4.0)], 0, "8 GPUs on 2 nodes, 50% busy, 0 retries"),
        ([node("a", GPU=4.0), node("b", alive=False)], 3, "4 GPUs on 1 node, 1 lost, 50% busy, 3 retries"),
        ([node("a", alive=False), node("b", alive=False)], 0, "0 CPUs on 0 nodes, 2 lost, 50% busy, 0 retries"),
    ],
)
def test_the_fleet_in_a_line(
    nodes: list[dict[str, Any]], retries: int, words: str, clock: Clock, at: Callable[..., Working]
) -> None:
    fleet = Fleet()
    fleet.retries = retries
    fleet.begin("one", at("a", 0))
    clock.now += 10
    assert in_words(fleet.describe(nodes, 2)) == words

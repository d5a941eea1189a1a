"""Who works on a study: machines, GPUs, the trials that each has, and how busy they are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scdgn.errors import count


@dataclass
class Working:
    """A worker that has a pack (machine, process, GPUs), the trials of it that have not ended, and since when."""

    node: str
    pid: int
    gpus: tuple[str, ...]
    trials: list[int]
    since: float = field(default_factory=time.time)


class Fleet:
    """Counts what is done where, and `retries`: packs begun again after their worker was lost."""

    def __init__(self) -> None:
        self.retries = 0
        self._at: dict[str, Working] = {}
        self._done: dict[str, int] = {}
        self._first: float | None = None
        self._busy = 0.0

    @property
    def working(self) -> int:
        """Workers that have a pack."""
        return len(self._at)

    def begin(self, pack: str, place: Working) -> None:
        """A worker has begun a pack, perhaps one that another worker has lost."""
        self.leave(pack)
        self._first = self._first or place.since
        self._at[pack] = place

    def ended(self, pack: str, number: int) -> None:
        """A trial has ended."""
        place = self._at.get(pack)
        if place is None:  # given up after its worker was lost
            return
        place.trials = [other for other in place.trials if other != number]
        for name in slots_of(place.node, place.gpus):
            self._done[name] = self._done.get(name, 0) + 1

    def leave(self, pack: str) -> None:
        """A pack is done, or lost."""
        place = self._at.pop(pack, None)
        if place is not None:
            self._busy += time.time() - place.since

    def describe(self, nodes: Sequence[Mapping[str, Any]], slots: int) -> dict[str, Any]:
        """All of it, JSON-safe, with the nodes of Ray and the slots, packs that fit at once.

        Returns
        -------
        `nodes` (name, address, alive, cpus, gpus), `workers` (node, pid, gpus, trials and since when), `trials` (ended,
        by GPU, or by machine where there is none), `slots`, `busy` (share of the slots' time in which they had a pack)
        and `retries`.
        """
        now = time.time()
        busy = self._busy + sum(now - place.since for place in self._at.values())
        elapsed = now - self._first if self._first else 0.0
        return {
            "updated": now,
            "nodes": [
                {
                    "name": node["NodeManagerHostname"],
                    "address": node["NodeManagerAddress"],
                    "alive": bool(node["Alive"]),
                    "cpus": node["Resources"].get("CPU", 0),
                    "gpus": node["Resources"].get("GPU", 0),
                }
                for node in nodes
            ],
            "workers": [{**vars(place), "gpus": list(place.gpus)} for place in self._at.values()],
            "trials": dict(sorted(self._done.items())),
            "slots": slots,
            "busy": round(min(1.0, busy / (slots * elapsed)), 4) if slots and elapsed else 0.0,
            "retries": self.retries,
        }


def slots_of(node: str, gpus: Sequence[str]) -> list[str]:
    """Names of what a worker works on."""
    return [f"{node} GPU {gpu}" for gpu in gpus] or [node]


def in_words(fleet: Mapping[str, Any]) -> str:
    """The fleet in a line."""
    alive = [node for node in fleet["nodes"] if node["alive"]]
    gpus, cpus = (sum(node[kind] for node in alive) for kind in ("gpus", "cpus"))
    what = count(round(gpus), "GPU") if gpus else count(round(cpus), "CPU")
    lost = len(fleet["nodes"]) - len(alive)
    words = f"{what} on {count(len(alive), 'node')}"
    words += f", {lost} lost" if lost else ""
    retries = fleet["retries"]
    return f"{words}, {fleet['busy']:.0%} busy, {retries} {'retry' if retries == 1 else 'retries'}"

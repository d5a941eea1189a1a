"""Trials that are watched: what they take, when, and what their owner spends on them, in this process or in a worker's.

What is wrapped around a job here goes to the workers with it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.search.engines import Asked
from scdgn.search.records import Outcome, Proposal
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.objective import Objective, Owner, Place, Work

SPAN = "span"
"""Curve of a record that is none: process, begin and end, until `Watch` takes it out."""

OFTEN = 0.1
"""Seconds between two looks at a process's memory."""

TYPES = tuple(f"type{code}" for code in range(10))
DOMAINS = ("a", "b", "c", "test")


@dataclass(frozen=True)
class Span:
    """When a worker had a trial, in seconds since 1970: from the order's arrival to the handing in of what came of it.

    Attributes
    ----------
    worker
        Id of its process.
    begun, ended
        When.
    """

    worker: int
    begun: float
    ended: float


def by_worker(spans: Sequence[Span]) -> dict[int, list[Span]]:
    """The spans of each worker, in order."""
    found: dict[int, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.begun):
        found[span.worker].append(span)
    return found


def periods(spans: Sequence[Span], workers: int) -> list[float]:
    """Of each worker, seconds from the beginning of a trial to that of its next one; its first trial does not count.

    Says so if fewer workers than that had the trials.
    """
    found = [(own[-1].begun - own[1].begun) / (len(own) - 2) for own in by_worker(spans).values() if len(own) > 2]
    if len(found) < workers:
        print(f"only {len(found)} of {workers} workers had more than two trials", flush=True)
    return found


class Listed:
    """The owner of trials that are given; nothing is pruned.

    Parameters
    ----------
    proposals
        The trials.
    """

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self._left = list(proposals)

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The next ones; and False when there is none left."""
        pack, self._left = self._left[:size], self._left[size:]
        return pack, len(pack) > 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Go on."""
        return False

    def finished(self, outcome: Outcome) -> None:
        """A trial that fails measures nothing."""
        if outcome.record.state != "complete":
            raise RuntimeError(f"trial {outcome.record.number} is {outcome.record.state}: {outcome.record.reason}")

    def note(self, text: str) -> None:
        """Nothing."""

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Nothing."""


class Watch:
    """An owner of trials that is watched.

    Parameters
    ----------
    owner
        Who really decides.

    Attributes
    ----------
    spans
        Of the trials that have ended.
    notes
        What was noted.
    asked
        When packs were asked for, in seconds since 1970.
    cpu
        Seconds of CPU of this thread by what it was asked.
    """

    def __init__(self, owner: Asked) -> None:
        self.owner = owner
        self.spans: list[Span] = []
        self.notes: list[str] = []
        self.asked: list[float] = []
        self.cpu: dict[str, float] = defaultdict(float)

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """See `Asked`."""
        self.asked.append(time.time())
        with self._clocked("drawing"):
            return self.owner.next_pack(size)

    def report(self, number: int, step: int, value: float) -> bool:
        """See `Owner`."""
        with self._clocked("reports"):
            return self.owner.report(number, step, value)

    def finished(self, outcome: Outcome) -> None:
        """See `Owner`."""
        curves = dict(outcome.record.curves)
        worker, begun, ended = curves.pop(SPAN)
        self.spans.append(Span(int(worker), begun, ended))
        with self._clocked("ends"):
            self.owner.finished(replace(outcome, record=replace(outcome.record, curves=curves)))

    def note(self, text: str) -> None:
        """See `Owner`."""
        self.notes.append(text)

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """See `Asked`."""
        self.owner.workers(fleet)

    @contextmanager
    def _clocked(self, what: str) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        finally:
            self.cpu[what] += time.thread_time() - start


@dataclass(frozen=True, eq=False)
class Clocked:
    """A job whose trials hand in their `Span`."""

    job: Work

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        """See `Work`."""
        train = self.job.objective(device, stopping)

        def clocked(proposals: Sequence[Proposal], owner: Owner) -> None:
            train(proposals, Stamp(owner, time.time()))

        return clocked

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Clocked:
        """See `Work`."""
        return replace(self, job=self.job.sent(place, proposals))


class Stamp:
    """An owner whose trials' records get a `Span` on the way to it."""

    def __init__(self, owner: Owner, begun: float) -> None:
        self._owner = owner
        self._begun = begun

    def report(self, number: int, step: int, value: float) -> bool:
        """See `Owner`."""
        return self._owner.report(number, step, value)

    def finished(self, outcome: Outcome) -> None:
        """See `Owner`."""
        curves = {**outcome.record.curves, SPAN: [float(os.getpid()), self._begun, time.time()]}
        self._owner.finished(replace(outcome, record=replace(outcome.record, curves=curves)))

    def note(self, text: str) -> None:
        """See `Owner`."""
        self._owner.note(text)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job that notes when it was sent, which the driver keeps, and when its cells were ready, which is noted."""

    work: Work
    sent_at: list[float]

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        """See `Work`."""
        train = self.work.objective(device, stopping)

        def prepared(proposals: Sequence[Proposal], owner: Owner) -> None:
            for proposal in proposals:  # what is prepared is kept: the objective finds it
                self.work.inputs.prepared(proposal.preprocess, False, device)
            owner.note(str(time.time()))
            train(proposals, owner)

        return prepared

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Prepared:
        """See `Work`."""
        self.sent_at.append(time.time())
        return Prepared(self.work.sent(place, proposals), [])


@dataclass(frozen=True, eq=False)
class Weighed:
    """A job that notes after each pack its process's bytes: private ones, at `most` and at the `end`, and `shared`."""

    job: Work

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        """See `Work`."""
        train = self.job.objective(device, stopping)

        def weighed(proposals: Sequence[Proposal], owner: Owner) -> None:
            found, over = [own_memory()[0]], threading.Event()

            def look() -> None:
                while not over.wait(OFTEN):
                    found.append(own_memory()[0])

            looking = threading.Thread(target=look)
            looking.start()
            try:
                train(proposals, owner)
            finally:
                over.set()
                looking.join()
            private, shared = own_memory()
            found.append(private)
            owner.note(json.dumps({"worker": os.getpid(), "most": max(found), "end": private, "shared": shared}))

        return weighed

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Weighed:
        """See `Work`."""
        return replace(self, job=self.job.sent(place, proposals))


def own_memory() -> tuple[int, int]:
    """Bytes that this process has for itself alone, and those that it looked at of memory shared by its mapping.

    The kernel calls a page private that one process alone has looked at, even of Ray's object store, whose pages the
    next worker will look at too: `smaps_rollup` would count them.
    """
    private = shared = 0
    in_shared = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):  # a mapping: addresses, then permissions
            in_shared = words[0].endswith("s")
        elif name == "Rss:" and in_shared:
            shared += int(words[0]) * 1024
        elif name in ("Private_Clean:", "Private_Dirty:") and not in_shared:
            private += int(words[0]) * 1024
    return private, shared


def random_counts(cells: int, genes: int, density: float) -> SearchCells:
    """Counts of random cells of three domains, and of a fourth to be tested on, as CSR: nothing is to be learned."""
    draws = np.random.default_rng(0)
    each = round(genes * density)
    # Sorted draws plus their places are all different.
    genes_of = np.sort(draws.integers(0, genes - each + 1, (cells, each), dtype=np.int32), axis=1)
    genes_of += np.arange(each, dtype=np.int32)
    counts = draws.integers(1, 8, cells * each, dtype=np.int8).astype(np.float32)
    x = sp.csr_matrix((counts, genes_of.ravel(), np.arange(cells + 1, dtype=np.int32) * each), shape=(cells, genes))
    dataset = Dataset(
        x,
        "counts",
        np.array([f"gene{i}" for i in range(genes)]),
        np.array([f"cell{i}" for i in range(cells)]),
        draws.integers(0, len(TYPES), cells),
        TYPES,
        draws.integers(0, len(DOMAINS), cells),
        DOMAINS,
    )
    whole = TrainingCells(dataset, hold_out(dataset, "test"), Fields("type", "domain"), ("test",), (), ())
    return seal(whole, max_folds=5, adapt=False)

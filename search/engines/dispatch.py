"""Packs handed to Ray Tune, which places them and starts them again when they are lost.

It decides nothing: its searcher asks the study what to run, and what comes of a trial goes to the study through the
desk, without touching Tune.

    Tune (a thread) ── suggest, complete ──┐
                                            ├──> inbox ──> the driver's main thread: the study
    workers ── begin, scored, ended ──> desk ┘
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scdgn.errors import ScdgnError, first_line
from scdgn.search.engines import Asked
from scdgn.search.engines.desk import Begin, Broken, Desk, Ended, Envelope, Note, Order, Question, Scored
from scdgn.search.engines.fleet import Fleet, Working
from scdgn.search.engines.tuning import Left, Losses, Lost, Newest, StudySearcher, Suggest, Until
from scdgn.search.engines.worker import Worker
from scdgn.search.records import Outcome, Proposal, TrialRecord
from scdgn.search.trials.objective import Work

if TYPE_CHECKING:
    from scdgn.search.engines.cluster import Cluster

TICK = 0.5
"""Seconds after which the driver looks up from waiting."""

TOLD = 2.0
"""Seconds from one word about the workers to the next."""

GRACE = 120.0
"""Seconds that workers have to write their checkpoints when the search is stopped."""


class EngineError(ScdgnError):
    """Ray cannot do what was asked of it."""


@dataclass
class Pack:
    """A pack that was handed to Tune: its trials, by number, that have not ended, and how often it was begun."""

    proposals: dict[int, Proposal] = field(default_factory=dict)
    attempt: int = 0


class Dispatch:
    """One search of one study: the driver's main thread, while Tune runs in another."""

    def __init__(
        self,
        study: Asked,
        work: Work,
        pack: int,
        enough: Callable[[], bool],
        stopping: Callable[[], bool],
        cluster: Cluster,
    ) -> None:
        self._study = study
        self._work = work
        self._pack = pack
        self._enough = enough
        self._stopping = stopping
        self._cluster = cluster
        self._inbox: queue.Queue[tuple[Suggest | Lost | Left | Question, Future[Any]]] = queue.Queue()
        self._packs: dict[str, Pack] = {}
        self._live: set[str] = set()  # those that Tune has
        self._fleet = Fleet()
        self._told = 0.0
        self._closed = threading.Event()  # nobody answers any more
        self._spent = self._halted = False
        self._fault: Exception | None = None
        self._name = f"scdgn desk {uuid.uuid4().hex}"
        self._folder = Path(tempfile.mkdtemp(prefix="scdgn-ray-"))
        self._threads = [
            threading.Thread(target=self._pump, daemon=True, name="desk"),
            threading.Thread(target=self._tune, daemon=True, name="tune"),
        ]
        self._tuned: Future[None] = Future()

    def __enter__(self) -> Dispatch:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk: Any = (
            ray.remote(Desk)
            .options(name=self._name, num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
            .remote()
        )
        for thread in self._threads:
            thread.start()
        if self._cluster.told_by:
            self._study.note(self._cluster.told_by)
            self._cluster.told_by = ""
        if not self._cluster.slots():
            wanted = f"{self._cluster.resources.cpus} CPUs and {self._cluster.gpus:g} GPUs"
            self._study.note(f"no node of the cluster has {wanted} now: waiting for one that comes")
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with suppress(Exception):  # the cluster may be gone
            ray.kill(self._desk)
        for thread in self._threads:
            thread.join(timeout=10 * TICK)
        shutil.rmtree(self._folder, ignore_errors=True)

    def serve(self) -> bool:
        """Answer until Tune has nothing left to run; see `Engine.run` for the result."""
        stopped: float | None = None
        while not self._tuned.done():
            if stopped is None and (self._fault is not None or self._stopping()):
                stopped = time.monotonic()
                self._halted = True
                with suppress(ray.exceptions.RayError):
                    ray.get(self._desk.stop.remote())
            if stopped is not None and (not self._fleet.working or time.monotonic() > stopped + GRACE):
                break  # Tune may wait for a machine that never comes
            try:
                question, answer = self._inbox.get(timeout=TICK)
            except queue.Empty:
                self._tell()
                continue
            try:
                answer.set_result(self._answer(question))
            except Exception as error:  # the study cannot be written to, or is not ours any more
                self._fault = self._fault or error
                answer.set_result(None)
            self._tell()
        if self._fault is not None:
            raise self._fault
        if stopped is None:
            self._tuned.result()
        self._tell(last=True)
        return self._spent and stopped is None

    def _answer(self, question: Suggest | Lost | Left | Question) -> Any:
        match question:
            case Suggest(pack):
                return self._suggest(pack)
            case Left(pack, reason):
                return self._left(pack, reason)
            case Lost(pack):
                return self._fleet.leave(pack)
            case Begin():
                return self._begin(question)
            case Note(text):
                return self._study.note(text)
        known = self._packs[question.pack]
        if question.attempt != known.attempt:
            return None  # somebody else has the pack by now
        match question:
            case Scored(number=number, step=step, value=value):
                return self._study.report(number, step, value) if number in known.proposals else None
            case Ended(outcome=outcome):
                if outcome.record.number in known.proposals:
                    self._study.finished(outcome)
                    self._fleet.ended(question.pack, outcome.record.number)
                    del known.proposals[outcome.record.number]
                return True
            case Broken(reason=reason):
                return self._fail(question.pack, reason)

    def _suggest(self, name: str) -> bool | None:
        """Hand a pack to Tune, still empty; False if there is nothing left for it, None if as many run as fit."""
        if self._halted or self._spent or self._enough():
            return False
        if len(self._live) >= self._cluster.most_packs():
            return None
        self._packs[name] = Pack()
        self._live.add(name)
        return True

    def _begin(self, begin: Begin) -> Order | None:
        """What a worker is to do: now, and not before, trials are drawn, from all that is known."""
        pack = self._packs[begin.pack]
        pack.attempt += 1
        if pack.attempt == 1:
            self._draw(pack)
        else:
            self._fleet.retries += 1
            self._cluster.placement.forget()
        if self._halted or not pack.proposals:
            return None
        self._fleet.begin(begin.pack, Working(begin.node, begin.pid, begin.gpus, list(pack.proposals)))
        proposals = tuple(pack.proposals.values())
        work = self._work.sent(self._cluster.placement, proposals)
        return Order(pack.attempt, proposals, work, self._cluster.resources.device)

    def _draw(self, pack: Pack) -> None:
        # A pack of which every trial's settings contradict each other is empty, and not the last one.
        while not (pack.proposals or self._spent or self._halted or self._enough()):
            proposals, left = self._study.next_pack(self._pack)
            pack.proposals = {proposal.number: proposal for proposal in proposals}
            self._spent = not left

    def _left(self, name: str, reason: str) -> None:
        pack = self._packs[name]
        self._live.discard(name)
        if reason and not pack.attempt:
            raise EngineError(f"no worker can be started ({reason}): is scdgn installed on every node?")
        if reason:
            self._fail(name, reason)
        self._fleet.leave(name)

    def _fail(self, name: str, reason: str) -> bool:
        pack = self._packs[name]
        for number in list(pack.proposals):
            self._study.finished(Outcome(TrialRecord(number, "fail", reason=reason)))
            self._fleet.ended(name, number)
            del pack.proposals[number]
        return True

    def _tell(self, last: bool = False) -> None:
        """Say who works on what."""
        if last or time.monotonic() >= self._told + TOLD:
            self._told = time.monotonic()
            self._study.workers(self._fleet.describe(nodes(), self._cluster.slots()))

    def ask(self, question: Suggest | Lost | Left | Question) -> Any:
        """Put a question to the main thread, from another one."""
        answer: Future[Any] = Future()
        self._inbox.put((question, answer))
        while not self._closed.is_set():
            with suppress(TimeoutError):
                return answer.result(timeout=TICK)
        return None

    def _pump(self) -> None:
        """Carry questions from the desk to the main thread, and its answers back."""
        answers: dict[int, Envelope] = {}
        try:
            while not self._closed.is_set():
                asked = ray.get(self._desk.take.remote(answers, 10 * TICK))
                answers = {ticket: Envelope.of(self.ask(question.open())) for ticket, question in asked}
        except Exception as error:  # without the desk there is no word from anybody
            self._fault = self._fault or EngineError(f"the workers cannot be heard any more ({first_line(error)})")

    def _tune(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self._tuned.set_exception(EngineError(f"Ray Tune cannot go on ({first_line(error)})"))
        else:
            self._tuned.set_result(None)

    def _fit(self) -> None:
        resources = self._cluster.resources
        request: dict[str, float] = {"cpu": resources.cpus}
        if self._cluster.gpus:
            request["gpu"] = self._cluster.gpus
        tuner = tune.Tuner(
            tune.with_resources(Worker, request),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(self._name, resources.cpus, self),
                scheduler=Newest(),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="scdgn",
                storage_path=str(self._folder),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=resources.max_failures),
                stop=Until(self._closed),
                callbacks=[Losses(self)],
                verbose=0,
            ),
        )
        tuner.fit()


def nodes() -> list[dict[str, Any]]:
    """The machines of the cluster, those that are gone too."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found

"""Trials wherever Ray reaches: the GPUs of this machine, or the machines of a cluster.

Ray Tune places packs and starts them again when they are lost. It decides nothing: its searcher asks the study what to
run, and what comes of a trial goes to the study through the desk, without touching Tune.

    Tune (a thread) ── suggest, complete ──┐
                                            ├──> inbox ──> the driver's main thread: the study
    workers ── begin, report, ended ──> desk ┘
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scdgn import environment
from scdgn.errors import ScdgnError, SettingsError, first_line
from scdgn.search.credentials import without_password
from scdgn.search.engines import Asked, Job, Result
from scdgn.search.engines.desk import Begin, Broken, Desk, Ended, Envelope, Note, Order, Question, Report
from scdgn.search.engines.fleet import Fleet, Place
from scdgn.search.engines.placement import Placement
from scdgn.search.engines.tuning import Left, Lost, Newest, StudySearcher, Suggest, Told, Until
from scdgn.search.engines.worker import Worker, called
from scdgn.search.records import Outcome, Proposal, TrialRecord
from scdgn.search.study.settings import address_faults
from scdgn.search.trials.objective import Stopped

TICK = 0.5
"""Seconds after which the driver looks up from waiting."""

TOLD = 2.0
"""Seconds from one word about the workers to the next."""

LONGEST_TMPDIR = 38
"""Letters of TMPDIR below which Ray's sockets fit."""

GRACE = 120.0
"""Seconds that workers have to write their checkpoints when the search is stopped."""


class EngineError(ScdgnError):
    """Ray cannot do what was asked of it."""


@dataclass(frozen=True)
class Resources:
    """What to take of Ray.

    Attributes
    ----------
    address
        Of the cluster to join, `auto` or HOST:PORT. Without one, Ray is started on this machine, unless a job was
        submitted to a cluster, which then says where it is (RAY_ADDRESS).
    gpus, cpus
        Per pack. Without a number, a GPU each where there are any.
    concurrency
        Packs at once; 0 for as many as fit.
    max_failures
        How often a pack starts again whose worker was lost; -1 for always.
    device
        See `scdgn.model.fitting.find_device`.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    concurrency: int = 0
    max_failures: int = 3
    device: str = "auto"


@dataclass
class Pack:
    """A pack that was handed to Tune.

    Attributes
    ----------
    proposals
        Its trials, by number, that have not ended.
    attempt
        How often it was begun.
    """

    proposals: dict[int, Proposal] = field(default_factory=dict)
    attempt: int = 0


class Cluster:
    """The engine that runs on Ray.

    Parameters
    ----------
    resources
        What to take.
    """

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._started = self._own = self._joined = False
        self._most, self._counted = 0, -TOLD
        self.told_by = ""  # who said which cluster to join, until the user has been told

    @property
    def kind(self) -> str:
        """See `Engine`."""
        self._start()
        return "cuda" if self.gpus else "cpu"

    def run(self, study: Asked, work: Job, pack: int, enough: Callable[[], bool], stopping: Callable[[], bool]) -> bool:
        """See `Engine.run`.

        Raises
        ------
        EngineError
            If no worker can be started.
        """
        self._start()
        with Run(study, work, pack, enough, stopping, self) as run:
            return run.serve()

    def call(self, stopping: Callable[[], bool], train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """See `Engine.call`."""
        self._start()
        resources = self.resources
        task: Any = ray.remote(num_cpus=resources.cpus, num_gpus=self.gpus, max_retries=resources.max_failures)(called)
        running = task.remote(train, args, kwargs, resources.cpus)
        while not ray.wait([running], timeout=TICK)[0]:
            if stopping():
                ray.cancel(running, force=True)
                raise Stopped
        try:
            answer: Envelope = ray.get(running)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"the cluster lost what it was given ({first_line(error)}): run the same command again"
            ) from error
        result: Result = answer.open()
        return result

    def close(self) -> None:
        """Leave the cluster; what was started here ends."""
        if self._own:
            ray.shutdown()

    @cached_property
    def gpus(self) -> float:
        """Of each pack."""
        if self.resources.gpus is not None:
            return self.resources.gpus
        return 1.0 if self.resources.device != "cpu" and any(node["Resources"].get("GPU") for node in _nodes()) else 0.0

    @cached_property
    def placement(self) -> Placement:
        """Where the cells of this command's studies lie."""
        return Placement(self.kind)

    def most_packs(self) -> int:
        """Packs that Tune is to have at once: one that waits for its turn makes a cluster grow that can."""
        if time.monotonic() >= self._counted + TOLD:
            self._counted = time.monotonic()
            self._most = self.resources.concurrency or self.slots() + self._joined
        return self._most

    def slots(self) -> int:
        """Packs that fit at once."""
        alive = [node["Resources"] for node in _nodes() if node["Alive"]]
        fit = 0
        for node in alive:
            by_cpu = node.get("CPU", 0) // self.resources.cpus
            fit += int(min(by_cpu, node.get("GPU", 0) / self.gpus + 1e-6) if self.gpus else by_cpu)
        return min(fit, self.resources.concurrency or fit)

    def _start(self) -> None:
        if self._started:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # of what it writes, nothing is ever read
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "10000")  # else workers start one after the other
        os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # what they come to is told by the study
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # which prints what the old one can be told not to
        address = self.resources.address or os.environ.get("RAY_ADDRESS")
        if address is None:
            _keep_token()
            _keep_sockets_short()
        if ray.is_initialized():  # by whoever calls from Python: theirs to choose, and to end
            self._started = self._joined = True
            return
        if faults := address_faults(address):  # the variable does what the option does
            raise SettingsError(*faults)
        with _own_signals():
            try:
                _reach(address)
                ray.init(
                    address=address or "local",
                    include_dashboard=False if address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": environment.inherited()} if address else None,
                )
            except Exception as error:  # whatever Ray raises: it has no type of its own for a cluster that is not there
                where = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot be started"
                raise EngineError(f"{where} ({first_line(error)}): see docs/distributed.md") from error
        self._started = self._own = True
        self._joined = address is not None
        if address is not None and self.resources.address is None:
            self.told_by = f"joined the Ray cluster at {without_password(address)}, as RAY_ADDRESS says"
        if address is None and not self.slots():
            (has,) = (node["Resources"] for node in _nodes())
            raise SettingsError(
                f"a pack asks for {self.resources.cpus} CPUs and {self.gpus:g} GPUs, and this machine has "
                f"{has.get('CPU', 0):.0f} and {has.get('GPU', 0):.0f}: give other --cpus-per-trial and --gpus-per-trial"
            )


def _keep_sockets_short() -> None:
    """Have Ray put its sockets where their paths are not longer than systems allow (107 letters)."""
    if len(os.environ.get("TMPDIR", "")) > LONGEST_TMPDIR and os.access("/tmp", os.W_OK):
        os.environ.setdefault("RAY_TMPDIR", "/tmp")


class Run:
    """One search of one study: the driver's main thread, while Tune runs in another."""

    def __init__(
        self,
        study: Asked,
        work: Job,
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

    def __enter__(self) -> Run:
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
            case Report(number=number, step=step, value=value):
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
        self._fleet.begin(begin.pack, Place(begin.node, begin.pid, begin.gpus, list(pack.proposals)))
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
            self._study.workers(self._fleet.describe(_nodes(), self._cluster.slots()))

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
                callbacks=[Told(self)],
                verbose=0,
            ),
        )
        tuner.fit()


def _nodes() -> list[dict[str, Any]]:
    """The machines of the cluster, those that are gone too."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def _reach(address: str | None) -> None:
    """Find out in seconds whether somebody listens at HOST:PORT, for which Ray takes minutes.

    Raises
    ------
    OSError
        If nobody does.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _keep_token() -> None:
    """Make the token without which Ray would let anybody in who reaches its ports, for the user's eyes alone.

    Ray would make it by itself, and let all users of the machine read it.
    """
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():  # somebody else's care
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray will say what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f".{path.name}.{os.getpid()}")
        own.touch(mode=0o600)
        own.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):
            path.hardlink_to(own)
        own.unlink()
        path.chmod(0o600)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals as they are: Ray's would end the driver where it stands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

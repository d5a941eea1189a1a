"""Ray, as trials need it: the GPUs of this machine, or the machines of a cluster, joined or started, and left again."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from typing_extensions import override

from scdgn import environment
from scdgn.errors import SettingsError, first_line
from scdgn.search.credentials import without_password
from scdgn.search.engines import Asked, Engine, Result
from scdgn.search.engines.desk import Envelope
from scdgn.search.engines.dispatch import TICK, TOLD, Dispatch, EngineError, nodes
from scdgn.search.engines.placement import Placement
from scdgn.search.engines.worker import called
from scdgn.search.study.settings import address_faults
from scdgn.search.trials.objective import Stopped, Work

LONGEST_TMPDIR = 38
"""Letters of TMPDIR below which Ray's sockets fit."""


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
        `auto` (a GPU where a node has one), `cpu`, `cuda` or `cuda:N`.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: int = 1
    concurrency: int = 0
    max_failures: int = 3
    device: str = "auto"


class Cluster(Engine):
    """The engine that runs on Ray."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._started = self._own = self._joined = False
        self._most, self._counted = 0, -TOLD
        self.told_by = ""  # who said which cluster to join, until the user has been told

    @property
    @override
    def kind(self) -> str:
        self._start()
        return "cuda" if self.gpus else "cpu"

    @override
    def run(
        self, study: Asked, work: Work, pack: int, enough: Callable[[], bool], stopping: Callable[[], bool]
    ) -> bool:
        """As any engine does; `EngineError` if no worker can be started."""
        self._start()
        with Dispatch(study, work, pack, enough, stopping, self) as dispatch:
            return dispatch.serve()

    @override
    def call(self, stopping: Callable[[], bool], train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
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

    @override
    def close(self) -> None:
        """Leave the cluster; what was started here ends."""
        if self._own:
            ray.shutdown()

    @cached_property
    def gpus(self) -> float:
        """Of each pack."""
        if self.resources.gpus is not None:
            return self.resources.gpus
        return 1.0 if self.resources.device != "cpu" and any(node["Resources"].get("GPU") for node in nodes()) else 0.0

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
        alive = [node["Resources"] for node in nodes() if node["Alive"]]
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
            (has,) = (node["Resources"] for node in nodes())
            raise SettingsError(
                f"a pack asks for {self.resources.cpus} CPUs and {self.gpus:g} GPUs, and this machine has "
                f"{has.get('CPU', 0):.0f} and {has.get('GPU', 0):.0f}: give other --cpus-per-trial and --gpus-per-trial"
            )


def _keep_sockets_short() -> None:
    """Have Ray put its sockets where their paths are not longer than systems allow (107 letters)."""
    if len(os.environ.get("TMPDIR", "")) > LONGEST_TMPDIR and os.access("/tmp", os.W_OK):
        os.environ.setdefault("RAY_TMPDIR", "/tmp")


def _reach(address: str | None) -> None:
    """Find out in seconds whether somebody listens at HOST:PORT, as Ray does in minutes; `OSError` if nobody does."""
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

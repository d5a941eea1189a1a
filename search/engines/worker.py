"""The worker: a Ray Tune trainable that trains a pack, and asks the driver through the desk."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import ray
import torch
from ray import tune
from typing_extensions import override

from scdgn.model.fitting import find_device
from scdgn.search.engines.desk import Begin, Broken, Ended, Envelope, Note, Order, Question, Scored
from scdgn.search.records import Outcome
from scdgn.search.trials.objective import Owner, Stopped

PATIENCE = 1.0
"""Seconds after which a worker asks again whether it is to stop."""


class Worker(tune.Trainable):
    """Trains one pack per Ray trial, and stays for the next one.

    Its configuration is the name of the desk, the pack, and the number of threads. Everything else comes from the
    desk, so that nothing of the study is in what Ray writes down.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Once per process."""
        self._order = config
        self._gpus = keep_to(config["threads"])
        self._leaving = False
        self._training = False
        self._before = {number: signal.signal(number, self._leave) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next pack."""
        self._order = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Train the pack; where the worker itself is at fault or has to leave, it raises, and Ray starts the pack
        elsewhere.
        """
        desk = ray.get_actor(self._order["desk"])
        pack = self._order["pack"]
        order: Order | None = ask(desk, Begin(pack, socket.gethostname(), os.getpid(), self._gpus))
        if order is not None:
            self._training = True
            try:
                self._train(order, desk, pack)
            finally:
                self._training = False
            if self._leaving:
                raise Preempted("the worker was told to leave")
        return {"done": True}

    def _train(self, order: Order, desk: Any, pack: str) -> None:
        objective = order.work.objective(find_device(order.device), self._stopping(desk))
        try:
            objective(order.proposals, Driver(desk, pack, order.attempt))
        except Stopped:
            pass
        except Exception as error:
            if is_lost(error):
                raise
            ask(desk, Broken(pack, order.attempt, f"{type(error).__name__}: {error}"))

    def _stopping(self, desk: Any) -> Callable[[], bool]:
        """Asks the desk, but not after every epoch of a second's thousandth."""
        asked = time.monotonic()
        known = False

        def stopping() -> bool:
            nonlocal asked, known
            if not known and time.monotonic() >= asked + PATIENCE:
                known = ray.get(desk.stopping.remote())
                asked = time.monotonic()
            return known or self._leaving

        return stopping

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """A machine that is taken away says so first: time to write a checkpoint."""
        self._leaving = True
        if number == signal.SIGTERM and not self._training:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


def keep_to(threads: int) -> tuple[str, ...]:
    """Take no more of the machine than this process was given; ids of its GPUs."""
    gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
    if not gpus:  # Ray leaves the variable alone then, and every GPU would be seen
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(threads)
    return gpus


def called(function: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any], threads: int) -> Envelope:
    """Call a function; in an envelope its arrays may be written to, in the object store they may not."""
    keep_to(threads)
    return Envelope.of(function(*args, **kwargs))


class Preempted(Exception):
    """The machine is taken away; a checkpoint has been written."""


class Driver(Owner):
    """The owner of the trials, as a worker sees it, which asks for a pack and is one of its workers (`attempt`)."""

    def __init__(self, desk: Any, pack: str, attempt: int) -> None:
        self._desk = desk
        self._pack = pack
        self._attempt = attempt

    @override
    def report(self, number: int, step: int, value: float) -> bool:
        """As any owner does; `Stopped` if the driver does not want this pack from this worker any more."""
        return bool(self._ask(Scored(self._pack, self._attempt, number, step, value)))

    @override
    def finished(self, outcome: Outcome) -> None:
        """As any owner does; raises as `report`."""
        self._ask(Ended(self._pack, self._attempt, outcome))

    @override
    def note(self, text: str) -> None:
        ask(self._desk, Note(text))

    def _ask(self, question: Question) -> Any:
        answer = ask(self._desk, question)
        if answer is None:
            raise Stopped
        return answer


def ask(desk: Any, question: Question) -> Any:
    """The driver's answer."""
    answer: Envelope = ray.get(desk.ask.remote(Envelope.of(question)))
    return answer.open()


def is_lost(error: BaseException) -> bool:
    """Whether it is the GPU or the connection that failed, so that the same trials may succeed elsewhere."""
    if isinstance(error, ray.exceptions.RayError):
        return True
    return isinstance(error, RuntimeError) and "CUDA" in str(error) and not isinstance(error, torch.OutOfMemoryError)

"""The desk: where workers anywhere in a cluster put questions, and the driver answers them.

The driver is no actor, so nobody can call it. It calls the desk instead, again and again: it hands in its answers and
takes the next questions with it. What is asked and answered is in the dataclasses here, and nothing else passes. It
passes in envelopes, which the desk does not open: its process starts at once and stays small.
"""

from __future__ import annotations

import asyncio
import io
import pickle
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.cloudpickle import CloudPickler

if TYPE_CHECKING:
    from scdgn.search.records import Outcome, Proposal
    from scdgn.search.trials.objective import Work


@dataclass(frozen=True, eq=False)
class Envelope:
    """Anything, pickled, and beside it the references to Ray's objects in it: Ray keeps alive what it can count."""

    content: bytes
    references: list[ray.ObjectRef[Any]]

    @classmethod
    def of(cls, message: object) -> Envelope:
        """Put something into an envelope."""
        file, references = io.BytesIO(), list[Any]()
        _Pickler(file, references).dump(message)  # type: ignore[no-untyped-call]
        return cls(file.getvalue(), references)

    def open(self) -> Any:
        """What is in it."""
        return _Unpickler(io.BytesIO(self.content), self.references).load()


class _Pickler(CloudPickler):
    def __init__(self, file: io.BytesIO, references: list[Any]) -> None:
        super().__init__(file)  # type: ignore[no-untyped-call]
        self._references = references

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, ray.ObjectRef):
            return None
        self._references.append(obj)
        return len(self._references) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, references: list[Any]) -> None:
        super().__init__(file)
        self._references = references

    def persistent_load(self, pid: int) -> Any:
        return self._references[pid]


@dataclass(frozen=True)
class Begin:
    """A worker has a pack, and asks what is to be done with it; answered by `Order`, or None if there is nothing.

    It says where it is: name of the machine, process, and ids of the GPUs that it was given.
    """

    pack: str
    node: str
    pid: int
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """What a worker is to do: train the trials of the pack that have not ended.

    `attempt` says how often the pack was begun, with this time. Of two workers that have it, as after a network
    failure, the first one is not listened to any more.
    """

    attempt: int
    proposals: tuple[Proposal, ...]
    work: Work
    device: str


@dataclass(frozen=True)
class Scored:
    """A trial's score at a rung; answered by whether it is pruned, or None if the worker is to stop at once."""

    pack: str
    attempt: int
    number: int
    step: int
    value: float


@dataclass(frozen=True)
class Ended:
    """What came of a trial; answered by True, or None if the worker is to stop at once."""

    pack: str
    attempt: int
    outcome: Outcome


@dataclass(frozen=True)
class Broken:
    """The trials of a pack that have not ended failed by themselves: no other worker is to try them."""

    pack: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class Note:
    """Something to tell the user."""

    text: str


Question = Begin | Scored | Ended | Broken | Note


class Desk:
    """An actor. Workers call `ask` and `stopping`, the driver `take` and `stop`."""

    def __init__(self) -> None:
        self._questions: deque[tuple[int, Envelope]] = deque()
        self._asked: dict[int, asyncio.Future[Envelope]] = {}
        self._tickets = 0
        self._arrived = asyncio.Event()
        self._stopping = False

    async def ask(self, question: Envelope) -> Envelope:
        """Put a question; returns when it is answered."""
        self._tickets += 1
        answer: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._asked[self._tickets] = answer
        self._questions.append((self._tickets, question))
        self._arrived.set()
        return await answer

    async def take(self, answers: Mapping[int, Envelope], patience: float) -> list[tuple[int, Envelope]]:
        """Hand in answers by ticket, and take the questions that have come, waiting for one for so many seconds."""
        for ticket, answer in answers.items():
            asked = self._asked.pop(ticket)
            if not asked.done():  # the worker may be gone
                asked.set_result(answer)
        if not self._questions:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), patience)
        taken = list(self._questions)
        self._questions.clear()
        return taken

    async def stop(self) -> None:
        """Let every worker write a checkpoint and stop."""
        self._stopping = True

    async def stopping(self) -> bool:
        """Whether workers are to stop."""
        return self._stopping

"""The desk passes questions and answers on, whatever happens to those who ask."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.search.engines.desk import Begin, Broken, Desk, Ended, Envelope, Note, Order, Question, Scored
from scdgn.search.engines.placement import PlacedInputs
from scdgn.search.records import Outcome, Proposal, TrialRecord
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.objective import Work
from tests import LONGEST

ENDLESS = 10 * LONGEST
"""Seconds that nobody waits."""


def alone(test: Callable[[Desk], Awaitable[None]]) -> None:
    """Run a test on a desk of its own, in an event loop as an actor has one."""

    async def limited() -> None:
        await asyncio.wait_for(test(Desk()), LONGEST)

    asyncio.run(limited())


async def asked(desk: Desk, *texts: str) -> list[asyncio.Task[Any]]:
    """Several workers, each with a question on the desk."""

    async def ask(text: str) -> Any:
        return (await desk.ask(Envelope.of(Note(text)))).open()

    workers = [asyncio.create_task(ask(text)) for text in texts]
    await asyncio.sleep(0)  # so that they begin
    return workers


async def take(desk: Desk, answers: Mapping[int, object] | None = None, patience: float = ENDLESS) -> dict[int, str]:
    """What the driver finds on the desk, by ticket, when it has handed in its answers."""
    handed_in = {ticket: Envelope.of(answer) for ticket, answer in (answers or {}).items()}
    return {ticket: question.open().text for ticket, question in await desk.take(handed_in, patience)}


def test_questions_are_taken_in_the_order_in_which_they_came_and_once() -> None:
    async def test(desk: Desk) -> None:
        workers = await asked(desk, "a", "b", "c")
        first = await take(desk)
        workers += await asked(desk, "d")
        second = await take(desk)
        assert (list(first.values()), list(second.values())) == (["a", "b", "c"], ["d"])
        assert not first.keys() & second.keys()
        await take(desk, first | second, patience=0)
        assert await asyncio.gather(*workers) == ["a", "b", "c", "d"]

    alone(test)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_an_answer_reaches_who_asked(data: st.DataObject) -> None:
    """Whatever the driver answers first, and however its answers are bundled."""
    names = [f"worker {number}" for number in range(data.draw(st.integers(1, 6)))]

    async def test(desk: Desk) -> None:
        workers = await asked(desk, *names)
        waiting = await take(desk)
        order = data.draw(st.permutations(sorted(waiting)))
        while order:
            several = data.draw(st.integers(1, len(order)))
            now, order = order[:several], order[several:]
            await take(desk, {ticket: f"to {waiting[ticket]}" for ticket in now}, patience=0)
            await asyncio.sleep(0)
            assert sum(worker.done() for worker in workers) == len(names) - len(order)
        assert await asyncio.gather(*workers) == [f"to {name}" for name in names]

    alone(test)


@pytest.mark.parametrize("answer", [None, False, ("order", 1)])
def test_any_answer_is_an_answer(answer: object) -> None:
    async def test(desk: Desk) -> None:
        (worker,) = await asked(desk, "a")
        (ticket,) = await take(desk)
        await take(desk, {ticket: answer}, patience=0)
        assert await worker == answer

    alone(test)


@pytest.mark.parametrize("taken", [False, True], ids=["before it was taken", "while it is answered"])
def test_who_is_gone_does_not_hold_up_the_others(taken: bool) -> None:
    """As a worker that was killed: Ray cancels what it waited for."""

    async def test(desk: Desk) -> None:
        gone, there = await asked(desk, "gone", "there")
        questions = await take(desk) if taken else {}
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        questions = questions or await take(desk)
        await take(desk, questions, patience=0)
        assert await there == "there"
        (later,) = await asked(desk, "later")
        await take(desk, await take(desk), patience=0)
        assert await later == "later"

    alone(test)


def test_the_driver_waits_for_a_question_and_no_longer() -> None:
    async def test(desk: Desk) -> None:
        taking = asyncio.create_task(take(desk))
        await asyncio.sleep(0.05)
        assert not taking.done()
        await asked(desk, "a")
        assert list((await taking).values()) == ["a"]

    alone(test)


def test_the_driver_does_not_wait_where_there_are_questions_already() -> None:
    async def test(desk: Desk) -> None:
        await asked(desk, "a")
        assert list((await take(desk)).values()) == ["a"]

    alone(test)


def test_the_driver_s_patience_ends_and_it_may_ask_again() -> None:
    async def test(desk: Desk) -> None:
        for texts in ([], ["a"], []):  # after a question too: it would ask without a pause
            await asked(desk, *texts)
            start = time.monotonic()
            assert list((await take(desk, patience=0.1)).values()) == texts
            assert texts or time.monotonic() - start >= 0.09

    alone(test)


def test_a_stop_is_known_from_then_on_and_questions_are_still_answered() -> None:
    """Those who stop have trials to tell of that ended meanwhile."""

    async def test(desk: Desk) -> None:
        assert not await desk.stopping()
        workers = await asked(desk, "a")
        await desk.stop()
        assert await desk.stopping() and await desk.stopping()
        workers += await asked(desk, "b")
        await take(desk, await take(desk), patience=0)
        assert await asyncio.gather(*workers) == ["a", "b"]

    alone(test)


def test_nothing_is_kept_of_what_was_answered() -> None:
    """A desk lives as long as its study, which may have millions of reports."""

    async def test(desk: Desk) -> None:
        for _ in range(3):
            workers = await asked(desk, *"abc")
            questions = await take(desk)
            workers[0].cancel()
            await take(desk, questions, patience=0)
        assert not desk._asked and not desk._questions

    alone(test)


PROPOSAL = Proposal(3, Settings(hidden=8), PreprocessSettings(n_top_genes=20))


@pytest.mark.parametrize(
    "message",
    [
        Begin("pack", "machine", 4711, ("0", "1")),
        Scored("pack", 2, 3, 8, 0.5),
        Broken("pack", 1, "its reason"),
        Note("a word"),
        None,
        True,
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_in_an_envelope_is_what_was_put_in(message: Question | bool | None) -> None:
    envelope: Envelope = pickle.loads(pickle.dumps(Envelope.of(message)))  # as Ray carries it
    assert envelope.open() == message == envelope.open()
    assert envelope.references == []


def test_outcomes_and_orders_go_into_an_envelope() -> None:
    predicted = np.arange(4, dtype=np.uint16)
    ended: Ended = Envelope.of(Ended("pack", 1, Outcome(TrialRecord(3, "complete", epoch=8), predicted))).open()
    assert ended.outcome.record == TrialRecord(3, "complete", epoch=8)
    assert ended.outcome.test_predictions is not None and np.array_equal(ended.outcome.test_predictions, predicted)
    placed = PlacedInputs("training-domain", ("B", "T"), 5, False, None, {}, {})
    sent = Work(placed, "accuracy", checkpoints=Checkpoints("memory://bucket", 60.0, "study"))
    order: Order = Envelope.of(Order(1, (PROPOSAL,), sent, "cpu")).open()
    assert (order.attempt, order.proposals, order.device) == (1, (PROPOSAL,), "cpu")
    assert isinstance(order.work, Work) and order.work.metric == "accuracy"
    assert vars(order.work.inputs) == vars(placed)
    assert order.work.checkpoints is not None and order.work.checkpoints.place == "memory://bucket"


def test_the_desk_starts_without_what_takes_long_to_load() -> None:
    """Its process does nothing but to pass envelopes on."""
    heavy = "{'torch', 'scanpy', 'anndata', 'pandas', 'optuna', 'mlflow', 'ray.tune'}"
    words = f"import sys, search.engines.desk; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", words], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=LONGEST
    )
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr

"""How far a command is and how long it will take, over all stages of all of its studies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from scdgn.search.records import FINISHED, RUNGS, TrialRecord
from scdgn.search.shown.watching import Begun

FIRST = 2
"""Trials that end before a time is told: the first ones take longer, and one says little."""

SETTLING = 20.0
"""Seconds in which what is told of the time left comes to what is known of it: it should not jump."""


class Pace:
    """Counts what is trained (`scdgn.search.trials.amount`), and how long that took by a clock, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._study: Begun | None = None
        self._studies, self._place = 1, 0
        self._parts: dict[int, float] = {}  # of every trial of this study, how much of it has been trained
        self._over: set[int] = set()
        self._after = self._stage = self._in_stage = 0.0  # of the stages that are over, of this one, of its begin
        self._trained = self._seconds = 0.0  # here and now, not before
        self._ended = 0
        self._last = clock()
        self._told: tuple[float, float] | None = None  # the time left, and when
        self._share = 0.0

    def planned(self, studies: int) -> None:
        """A command begins with so many studies."""
        self._studies, self._place, self._study, self._share = studies, 0, None, 0.0

    def begun(self, study: Begun) -> None:
        """The next study begins, or goes on."""
        self._study = study
        self._place += 1
        self._parts = {record.number: _part(record) for record in study.records if record.state in FINISHED}
        self._over = set(self._parts)
        self._after = self._stage = self._in_stage = 0.0
        self._last = self._clock()

    def reported(self, number: int, step: int) -> None:
        """A trial has reached a rung."""
        self._train(number, max(step / RUNGS, self._parts.get(number, 0.0)))

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        self._ended += 1
        self._over.add(record.number)
        self._train(record.number, _part(record))

    def stage(self, amount: float) -> None:
        """What comes after the trials goes on to a stage that trains so much."""
        self.advanced(1.0)
        self._after += self._stage
        self._stage, self._in_stage = amount, 0.0

    def advanced(self, share: float) -> None:
        """The stage is so far."""
        done = share * self._stage
        self._tick(done - self._in_stage)
        self._in_stage = done

    def done(self) -> None:
        """The study is over, whatever it was thought to train."""
        if self._study is not None:
            self.stage(0.0)
            self._after = max(self._after, self._study.amount.after)

    def share(self) -> float:
        """How much of all is done, from 0 to 1; it never falls."""
        done, left = self._counted()
        if done + left > 0:
            self._share = max(self._share, min(done / (done + left), 1.0))
        return self._share

    def left(self) -> float | None:
        """Seconds until all is done; None where that is not known yet."""
        if self._trained <= 0 or (self._ended < FIRST and not self._after + self._in_stage):
            return None
        now, rate = self._clock(), self._seconds / self._trained
        _, left = self._counted()
        since = min(
            now - self._last, rate * self._at_once()
        )  # what is under way tells nothing until it has come further
        seconds = max(rate * left - since, 0.0)
        if self._told is not None:
            told, then = self._told
            before = max(told - (now - then), 0.0)
            seconds += (before - seconds) * math.exp(-(now - then) / max(SETTLING, 0.1 * self._seconds))
        self._told = seconds, now
        return seconds

    def in_words(self) -> str:
        """Both, as they are told."""
        share, left = self.share(), self.left()
        return f"{share:.0%}" + ("" if left is None or share == 1.0 else f", about {duration(left)} left")

    def _counted(self) -> tuple[float, float]:
        """What is trained of all, and what is not."""
        if self._study is None:
            return 0.0, 1.0
        amount, trials = self._study.amount, self._study.settings.trials
        parts = self._parts.copy()  # it changes while this is drawn
        over = [parts[number] for number in self._over.copy()]
        mean = sum(over) / len(over) if over else 1.0  # pruned trials train a part of their epochs
        running = sum(min(part, mean) for number, part in parts.items() if number not in self._over)
        searching = 0.0 if self._after + self._stage else max((trials - len(over)) * mean - running, 0.0)
        following = max(amount.after - self._after - self._in_stage, self._stage - self._in_stage)
        done = sum(parts.values()) * amount.trial + self._after + self._in_stage
        left = searching * amount.trial + following
        whole = done + left  # the other studies will be like this one, as the methods on the same cells are
        return done + (self._place - 1) * whole, left + max(self._studies - self._place, 0) * whole

    def _at_once(self) -> float:
        """What may be trained before it is told of."""
        if self._stage:
            return self._stage - self._in_stage
        return 0.0 if self._study is None else self._study.amount.trial

    def _train(self, number: int, part: float) -> None:
        amount = 0.0 if self._study is None else self._study.amount.trial
        self._tick((part - self._parts.get(number, 0.0)) * amount)
        self._parts[number] = part

    def _tick(self, trained: float) -> None:
        now = self._clock()
        self._trained += trained
        self._seconds += now - self._last
        self._last = now


def duration(seconds: float) -> str:
    """A time as it is said: 80 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _part(record: TrialRecord) -> float:
    return max(record.steps, default=0) / RUNGS

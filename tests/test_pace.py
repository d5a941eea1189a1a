"""How far a command is, and the time left, over all stages of all its studies: with a clock that is set by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from scdgn.search.records import RUNGS, TrialRecord
from scdgn.search.shown.pace import Pace, duration
from scdgn.search.shown.watching import Begun
from tests.test_progress import begun  # noqa: F401

TRIALS, AGAIN = 10, 5


class Run:
    """A search in which a unit of training takes a second, followed second by second."""

    def __init__(self, studies: int = 1) -> None:
        self.now = 0.0
        self.pace = Pace(lambda: self.now)
        self.pace.planned(studies)
        self.left: list[tuple[float, float]] = []
        self.shares: list[float] = []

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            self.shares.append(self.pace.share())
            if (left := self.pace.left()) is not None:
                self.left.append((self.now, left))

    def study(self, study: Begun, pruned: bool = False) -> None:
        study = replace(study, records=())
        self.pace.begun(study)
        for number in range(TRIALS):
            last = RUNGS // 2 if pruned and number >= AGAIN else RUNGS
            self.wait(study.amount.trial * last / RUNGS)
            steps = dict.fromkeys(range(1, last + 1), 0.5)
            self.pace.ended(TrialRecord(number, "complete" if last == RUNGS else "pruned", steps=steps))
        self.pace.stage(AGAIN * study.amount.again)
        for number in range(AGAIN):
            self.wait(study.amount.again)
            self.pace.advanced((number + 1) / AGAIN)
        self.pace.stage(study.amount.final)
        self.wait(study.amount.final)
        self.pace.stage(0.0)
        self.pace.done()


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("studies", [1, 3])
def test_the_bar_and_the_time_left_count_every_stage_of_every_study(
    begun: Begun,  # noqa: F811
    studies: int,
    pruned: bool,
) -> None:
    run = Run(studies)
    for _ in range(studies):
        run.study(begun, pruned)
    assert run.shares == sorted(run.shares) and run.pace.share() == pytest.approx(1.0)
    # With a third of the time gone the bar is not far from a third, and the search is not taken for the whole.
    third = run.shares[len(run.shares) // 3]
    assert 0.2 < third < 0.45
    for when, left in run.left:
        assert left == pytest.approx(run.now - when, abs=0.35 * run.now)
    if not pruned:  # where trials cost what they should, nothing rises
        assert all(later[1] <= earlier[1] + 0.5 for earlier, later in pairwise(run.left))


def test_the_time_left_settles_and_does_not_jump(begun: Begun) -> None:  # noqa: F811
    run = Run()
    run.pace.begun(replace(begun, records=()))
    for number in range(3):
        run.wait(10)
        run.pace.ended(TrialRecord(number, "complete", steps={RUNGS: 0.5}))
    run.wait(1)
    before = run.left[-1][1]
    run.wait(90)  # this trial takes ten times as long
    run.pace.ended(TrialRecord(3, "complete", steps={RUNGS: 0.5}))
    run.wait(1)
    after = run.left[-1][1]
    run.wait(60)
    assert after < before + 60  # what is known has doubled
    assert run.left[-1][1] > before


def test_what_was_done_before_counts_for_the_bar_and_not_for_the_speed(begun: Begun) -> None:  # noqa: F811
    run = Run()
    records = tuple(TrialRecord(number, "complete", steps={RUNGS: 0.5}) for number in range(8))
    run.pace.begun(replace(begun, records=records))
    assert run.pace.share() == pytest.approx(80 / 400)
    assert run.pace.left() is None  # nothing has been timed
    run.wait(20)
    run.pace.ended(TrialRecord(8, "complete", steps={RUNGS: 0.5}))
    run.pace.ended(TrialRecord(9, "complete", steps={RUNGS: 0.5}))
    assert run.pace.left() == pytest.approx(300)


def test_studies_that_were_done_before_are_no_work(begun: Begun) -> None:  # noqa: F811
    run = Run(2)
    run.pace.begun(begun)
    run.pace.done()
    run.study(begun)
    assert run.pace.share() == pytest.approx(1.0)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (7200, "2.0 h")])
def test_times_are_told_in_units_that_suit_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words

"""`scdgn status --watch`: drawn again on a terminal, a line for each change elsewhere, and an end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from scdgn.search.shown.following import EVERY, GRACE, follow
from tests.summaries import summary_with

HIDDEN = [f"name{place} 0.123" for place in range(12)]


def state(done: int, owner: str | None = "process 1", running: int = 0, summary: Any = None) -> dict[str, Any]:
    trials = [{"number": number, "state": "complete", "value": 0.5, "step": 8} for number in range(done)]
    trials += [{"number": done + place, "state": "running", "value": 0.25, "step": 3} for place in range(running)]
    return {
        "name": "islets/nn", "method": "nn", "metric": "accuracy", "budget": 3, "owner": owner, "trials": trials,
        "states": {"complete": done, **({"running": running} if running else {})}, "summary": summary,
        "go_on": "scdgn search --name islets", "words": [f"best: trial 0, accuracy 0.500: {', '.join(HIDDEN)}"],
    }  # fmt: skip


DONE = summary_with()
STATES = [state(0, running=1), state(1, running=1), state(1, running=1), state(3), state(3, None, 0, DONE)]


class Looks:
    """The states of a study one after the other, the last one for ever."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.states = list(states)
        self.slept = 0.0

    def look(self) -> list[dict[str, Any]]:
        return [self.states.pop(0) if len(self.states) > 1 else self.states[0]]

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def test_a_line_for_each_change_where_it_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    looks = Looks(STATES)
    follow(looks.look, Console(file=io.StringIO()), looks.sleep)
    assert capsys.readouterr().out.splitlines() == [
        "islets/nn: 0 complete, 1 running, of 3 trials of nn; run by process 1",
        "islets/nn: 1 complete, 1 running, of 3 trials of nn; run by process 1",
        "islets/nn: 3 complete, of 3 trials of nn; run by process 1",
        "islets/nn: 3 complete, of 3 trials of nn; done",
    ]
    assert looks.slept == pytest.approx((len(STATES) - 2) * EVERY + GRACE)


def test_it_is_drawn_again_on_a_terminal_and_no_name_is_parted_from_its_number() -> None:
    out, looks = io.StringIO(), Looks(STATES)
    follow(looks.look, Console(file=out, force_terminal=True, width=80, color_system=None), looks.sleep)
    seen = out.getvalue()
    for words in (
        "trial 1: 38% of its epochs, accuracy 0.250",
        "the trials are done: the best are scored again",
        "done",
    ):
        assert words in seen, words
    lines = seen.splitlines()
    assert max(map(len, lines)) <= 80 + len("\x1b[2K\x1b[1A") * 8
    assert all(any(name in line for line in lines) for name in HIDDEN)


def test_what_nobody_works_on_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = Looks([state(1, None)])
    follow(looks.look, Console(file=io.StringIO()), looks.sleep)
    assert capsys.readouterr().out == (
        "islets/nn: 1 complete, of 3 trials of nn; `scdgn search --name islets` goes on with it\n"
    )
    assert looks.slept == 0


def test_the_next_method_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    between = [state(3, None, 0, DONE)] * 3
    looks = Looks([state(3), *between, {**state(0), "name": "islets/dann"}, {**state(3, None, 0, DONE)}])
    follow(looks.look, Console(file=io.StringIO()), looks.sleep)
    assert "islets/dann: 0 complete" in capsys.readouterr().out


def test_ctrl_c_is_the_way_out() -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    looks = Looks(STATES)
    assert follow(looks.look, Console(file=io.StringIO()), interrupted) is None  # and no KeyboardInterrupt

"""A search that is killed or stopped anywhere ends as if nothing had happened; and MLflow agrees with it."""

from __future__ import annotations

import random
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from typing import Any

import pytest

from scdgn.search.records import FINISHED
from tests import LONGEST
from tests.faults import tally
from tests.faults.disturbed import TRIALS, Campaign, agrees, whole

EARLY = ("storage", "torn", "checkpoint", "predictions", "tracking", "any", "clock")
"""Where a process is killed while trials run; "torn" is amid a write of the journal, "clock" at any moment."""

LATE = ("left out", "table", "bundle", "summary", "registration")
"""Where it is killed afterwards, in the order of the work."""


KILLS, STOPS = 5, 3
"""In one test; `make test-faults` has six times and four times as many."""


def seeds(tests: int) -> list[Any]:
    """All but the first one are long."""
    return [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, tests))]


@pytest.mark.parametrize("seed", seeds(6))
def test_kills_lose_and_repeat_nothing(campaign: Campaign, seed: int) -> None:
    draws = random.Random(seed)
    survived = 0
    for number in range(KILLS):
        name = f"killed-{seed}-{number}"
        early = draws.sample(EARLY, min(3, KILLS - survived))
        late = sorted(draws.sample(LATE, min(2, KILLS - survived - len(early))), key=LATE.index)
        for target in [*early, *late]:
            if _killed(campaign, name, target, draws):
                survived += 1
                tally[f"killed {target}"] += 1
        agrees(campaign, name)
        if survived >= KILLS:
            break
    assert survived >= KILLS


def _killed(campaign: Campaign, name: str, target: str, draws: random.Random) -> bool:
    """Run the search until it is killed there; False if it came to its end before that."""
    before = [record for record in campaign.records(name) if record.state in FINISHED]
    told = campaign.log(name) if before else ""
    if target == "clock":
        process = campaign.start(name)
        try:
            process.wait(timeout=draws.uniform(0.2, 0.5) * campaign.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    else:
        at = "storage" if target == "torn" else target
        most = campaign.writes[at] if target in LATE else campaign.writes[at] // 5
        how = "torn" if target == "torn" else "kill"
        process = campaign.start(name, place=at, event=draws.randint(1, most), how=how)
    status = process.wait(timeout=300)
    assert status in (0, -signal.SIGKILL), campaign.log(name)
    whole(campaign.folder(name))
    records = campaign.records(name)
    assert len(records) <= TRIALS
    for record in before:  # is not lost, is what it was, and was not run again
        assert records[record.number] == record
        since = campaign.log(name)[len(told) :]
        assert not re.search(rf"^trial {record.number} (complete|pruned|failed)", since, re.MULTILINE)
    return status != 0


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("seed", seeds(4))
def test_signals_stop_it_cleanly(campaign: Campaign, seed: int) -> None:
    """Ctrl-C, and what batch systems send."""
    draws = random.Random(seed)
    name = f"stopped-{seed}"
    for stop in range(STOPS):
        number = SIGNALS[stop % len(SIGNALS)]
        process = campaign.start(name)
        try:
            process.wait(timeout=draws.uniform(0.1, 0.5) * campaign.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            tally[f"stopped by {number.name}"] += 1
        said = campaign.log(name)
        status = process.wait(timeout=LONGEST)
        assert "Traceback" not in campaign.log(name)
        whole(campaign.folder(name))
        if status == 0:  # it was done before: another study
            agrees(campaign, name)
            name = f"stopped-{seed}-from-{stop + 1}"
            continue
        assert status == 130, campaign.log(name)
        last = campaign.log(name)[len(said) :].splitlines()[-1]
        assert last.startswith("stopped; the same command goes on from here") or last == "error: interrupted"
        assert not campaign.folder(name).lease.exists()
    agrees(campaign, name)


@pytest.mark.long
def test_a_database_that_does_not_answer(campaign: Campaign) -> None:
    """Of --storage: another program locks it for longer than the search waits."""
    name, database = "database", campaign.path / "trials.db"
    storage = ("--storage", f"sqlite:///{database}")
    process = campaign.start(name, *storage)
    while "trial 2 " not in campaign.log(name):
        assert process.poll() is None, campaign.log(name)
        time.sleep(0.02)
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert process.wait(timeout=120) == 2, campaign.log(name)
    said = campaign.log(name)
    assert said.splitlines()[-1] == (
        "error: the storage of the study does not answer ((sqlite3.OperationalError) database is locked): "
        "the same command goes on"
    )
    assert "Traceback" not in said
    agrees(campaign, name, *storage)
    tally["databases that did not answer"] += 1

"""What the user sees while a study runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.search.folder import StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.shown.overview import in_words
from scdgn.search.shown.progress import Display, Lines
from scdgn.search.shown.watching import Begun
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.amount import Amount
from scdgn.search.trials.cells import seal
from tests.faults import tiny

SETTINGS = {"method": "scdgn", "hidden": 8, "margin": 2.0, "schedule": "sigmoid", "gamma": 5.0, "warmup": 0.5}


@pytest.fixture
def begun() -> Begun:
    fields = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells={"a": 40, "b": 40, "c": 40, "d": 30}), fields)
    cells = TrainingCells(dataset, hold_out(dataset, "d"), fields, ("d",), (), ())
    before = (TrialRecord(0, "complete", SETTINGS, value=0.5), TrialRecord(1, "running", SETTINGS))
    settings = StudySettings(name="islets", trials=10)
    sealed, amount = seal(cells, 5, False), Amount(trial=10, again=40, rescored=5, final=100)
    return Begun(StudyFolder(Path("islets")), settings, sealed, 4, "leave-one-domain-out", before, amount)


def test_the_display_tells_counts_best_running_and_notes(begun: Begun) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, height=20)
    with Display(console) as display:
        display.note("values read as counts [all of them]")
        display.begun(begun)
        display.reported(1, 3, 0.61)
        console.print(display._render())
        display.ended(TrialRecord(1, "complete", SETTINGS, value=0.62, steps={8: 0.62}))
        display.ended(TrialRecord(2, "fail", SETTINGS, reason="out of memory"))
        display.ended(TrialRecord(3, "pruned", SETTINGS, value=0.1, steps={3: 0.1}))
        console.print(display._render())
        display.stage("training 10 seeds")
        console.print(display._render())
    seen = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())  # without its colours
    for words in (
        "values read as counts [all of them]",
        "10 trials of scdgn, 1 done before, 1 cut off and run again",
        "3 leave-one-domain-out folds",
        "trial 1: 38% of its epochs, macro-F1 0.610",
        "4/10 trials",
        "1 pruned, 1 failed",
        "★ best so far: trial 1, macro-F1 0.620",
        "    hidden 8, margin 2, schedule sigmoid, gamma 5",
        "trial 2 failed, 0.0 s: out of memory",
        "training 10 seeds",
    ):
        assert words in seen, words


def test_lines_mark_the_best_so_far(begun: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begun(begun)
    lines.ended(TrialRecord(1, "complete", SETTINGS, value=0.4, seconds=2.0))
    lines.ended(TrialRecord(2, "complete", SETTINGS, value=0.6, seconds=2.0))
    lines.ended(TrialRecord(3, "pruned", SETTINGS, value=0.7, steps={2: 0.7}))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in said[2:]] == [
        "trial 1 complete, macro-F1 0.400, 2.0 s",  # a trial from before has 0.5
        "trial 2 complete, macro-F1 0.600, 2.0 s, best so far",
        "trial 3 pruned at 2/8, macro-F1 0.700, 0.0 s",
    ]
    assert all(line.endswith("]") and "%" in line for line in said[2:])


def test_settings_are_told_as_far_as_they_matter() -> None:
    words = in_words({**SETTINGS, "schedule": "linear"})
    assert "warmup" in words and "gamma" not in words
    assert "margin" not in in_words({**SETTINGS, "method": "dann"})
    assert "schedule" not in in_words({**SETTINGS, "method": "nn"})

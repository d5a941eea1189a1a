"""What the user sees while a study runs: a live display on a terminal, plain lines elsewhere, or JSON events."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scdgn.errors import count
from search.engines.fleet import in_words as fleet_in_words
from search.folder import StudyFolder
from search.objective import RUNGS
from search.overview import best_of, in_words
from search.records import FINISHED, TrialRecord
from search.watching import Begun, Watcher


class Lines(Watcher):
    """A line per event, on standard error."""

    def __init__(self) -> None:
        self._best = float("-inf")

    def note(self, text: str) -> None:
        """As it is."""
        _say(text)

    def begun(self, study: Begun) -> None:
        """What is going to be done."""
        for line in describe(study):
            _say(line)
        best = best_of(study.records)
        self._best = float("-inf") if best is None or best.value is None else best.value

    def ended(self, record: TrialRecord) -> None:
        """The trial, its score, and whether it is the best so far."""
        best = record.state == "complete" and record.value is not None and record.value > self._best
        if best and record.value is not None:
            self._best = record.value
        _say(in_a_line(record) + (", best so far" if best else ""))

    def stage(self, text: str) -> None:
        """What is done now."""
        _say(text)


class Display(Watcher):
    """Trials done, running, pruned and failed, the best so far with its settings, and the time left.

    Use as a context manager, so that the terminal is left as it was.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._study: Begun | None = None
        self._records: dict[int, TrialRecord] = {}
        self._running: dict[int, tuple[int, float]] = {}
        self._stage = ""
        self._workers = ""
        self._start = time.monotonic()
        self._before = 0
        # Last, since it renders at once.
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Above the display."""
        self._console.print(Text(text))

    def begun(self, study: Begun) -> None:
        """Start anew."""
        self._study = study
        self._records = {record.number: record for record in study.records if record.state in FINISHED}
        self._running, self._stage = {}, ""
        self._start, self._before = time.monotonic(), len(self._records)
        for line in describe(study):
            self._console.print(Text(line))

    def reported(self, number: int, step: int, value: float) -> None:
        """A trial has come further."""
        self._running[number] = (step, value)

    def ended(self, record: TrialRecord) -> None:
        """A trial is done."""
        self._running.pop(record.number, None)
        self._records[record.number] = record
        if record.state == "fail":
            self._console.print(Text(in_a_line(record)))

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Who works."""
        self._workers = fleet_in_words(fleet)

    def stage(self, text: str) -> None:
        """What is done now."""
        self._stage = text

    def _render(self) -> Group:
        if self._study is None:
            return Group(Text("reading the cells"))
        budget = self._study.settings.trials
        records = list(self._records.values())  # the search goes on while this is drawn
        counts = Counter(record.state for record in records)
        done = len(records)
        head = Table.grid(padding=(0, 2))
        left = self._left(done, budget)
        head.add_row(
            Text(self._study.settings.name, style="bold"),
            ProgressBar(total=budget, completed=min(done, budget), width=30),
            Text(f"{done}/{budget} trials"),
            Text(f"{counts['pruned']} pruned, {counts['fail']} failed"),
            Text(self._stage or left),
        )
        lines: list[Text | Table] = [head]
        if self._workers:
            lines.append(Text(f"  {self._workers}"))
        for number, (step, value) in sorted(self._running.copy().items()):
            lines.append(Text(f"  trial {number}: {step}/{RUNGS} of its epochs, {value:.3f}", style="dim"))
        best = best_of(records)
        if best is not None and best.value is not None:
            lines.append(Text(f"  best: trial {best.number}, {best.value:.3f}: {in_words(best.settings)}"))
        return Group(*lines)

    def _left(self, done: int, budget: int) -> str:
        new = done - self._before
        if new < 2 or done >= budget:
            return ""
        seconds = (time.monotonic() - self._start) / new * (budget - done)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


class JsonEvents(Watcher):
    """One JSON object per line on standard output."""

    def note(self, text: str) -> None:
        """{"event": "note"}."""
        _emit("note", text=text)

    def begun(self, study: Begun) -> None:
        """{"event": "begun"}."""
        folds = [{"name": fold.name, "coverage": fold.coverage} for fold in study.cells.folds]
        done = sum(record.state in FINISHED for record in study.records)
        _emit(
            "begun",
            study=study.settings.name,
            trials=study.settings.trials,
            done=done,
            models=study.models,
            selection=study.selection,
            folds=folds,
        )

    def reported(self, number: int, step: int, value: float) -> None:
        """{"event": "reported"}."""
        _emit("reported", trial=number, step=step, value=value)

    def ended(self, record: TrialRecord) -> None:
        """{"event": "ended"}."""
        _emit(
            "ended",
            trial=record.number,
            state=record.state,
            value=record.value,
            step=max(record.steps, default=0),
            epoch=record.epoch,
            seconds=record.seconds,
            reason=record.reason,
            settings=dict(record.settings),
        )

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """{"event": "workers"}."""
        _emit("workers", **fleet)

    def stage(self, text: str) -> None:
        """{"event": "stage"}."""
        _emit("stage", text=text)

    def done(self, folder: StudyFolder, summary: Mapping[str, Any]) -> None:
        """{"event": "done"}, with the summary."""
        _emit("done", folder=str(folder.path), summary=dict(summary))

    def registered(self, record: Mapping[str, Any]) -> None:
        """{"event": "registered"}."""
        _emit("registered", **record)


def describe(study: Begun) -> list[str]:
    """What a study is going to do, in sentences."""
    settings, folds = study.settings, len(study.cells.folds)
    done = sum(record.state in FINISHED for record in study.records)
    cut = sum(record.state == "running" for record in study.records)
    first = f"{settings.name}: {count(settings.trials, 'trial')} of {settings.method}"
    first += (f", {done} done before" if done else "") + (f", {cut} cut off and run again" if cut else "")
    each = f"{count(study.models, 'model')} each"
    how = count(folds, "leave-one-domain-out fold") if folds else "no folds"
    return [f"{first}; {each} ({how}, and all training domains); selected by {study.selection}"]


def in_a_line(record: TrialRecord) -> str:
    """A trial that has ended."""
    state = {"complete": "complete", "pruned": f"pruned at {max(record.steps, default=0)}/{RUNGS}", "fail": "failed"}
    line = f"trial {record.number} {state.get(record.state, record.state)}"
    if record.state != "fail" and record.value is not None:
        line += f", {record.value:.3f}"
    line += f", {record.seconds:.1f} s"
    if record.origin:
        line += f" ({record.origin})"
    return line + (f": {record.reason}" if record.reason else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)

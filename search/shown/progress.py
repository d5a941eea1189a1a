"""What the user sees while a study runs: a live display on a terminal, plain lines elsewhere, or JSON events."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scdgn.commands.terminal import BEST, LEFT_OUT, STAR, folded
from scdgn.errors import count
from scdgn.search.choices import Metric
from scdgn.search.engines.fleet import in_words as fleet_in_words
from scdgn.search.folder import StudyFolder
from scdgn.search.records import FINISHED, RUNGS, TrialRecord
from scdgn.search.shown.notebook import CellLive
from scdgn.search.shown.overview import METRIC, best_of, in_words, outcome_line
from scdgn.search.shown.pace import Pace
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.summary import AnySummary, Registration

SHOWN_RUNNING = 4
"""Running trials of which each has a line; on many GPUs there are more."""


class Lines(Watcher):
    """A line per event, on standard error."""

    def __init__(self) -> None:
        self._best = float("-inf")
        self._metric: Metric = "macro_f1"
        self._told: set[str] = set()
        self._pace = Pace()

    def note(self, text: str) -> None:
        """As it is."""
        _say(text)

    def planned(self, studies: Sequence[str]) -> None:
        """Count all of them."""
        self._pace.planned(len(studies))

    def begun(self, study: Begun) -> None:
        """What is going to be done."""
        for line in _new(describe(study), self._told):
            _say(line)
        self._pace.begun(study)
        self._metric = study.settings.metric
        best = best_of(study.records)
        self._best = float("-inf") if best is None or best.value is None else best.value

    def reported(self, number: int, step: int, value: float) -> None:
        """Counted, but not told."""
        self._pace.reported(number, step)

    def ended(self, record: TrialRecord) -> None:
        """The trial, its score, and whether it is the best so far; and how far all is."""
        best = record.state == "complete" and record.value is not None and record.value > self._best
        if best and record.value is not None:
            self._best = record.value
        self._pace.ended(record)
        _say(f"{in_a_line(record, self._metric)}{', best so far' if best else ''} [{self._pace.in_words()}]")

    def stage(self, text: str, amount: float = 0.0) -> None:
        """What is done now."""
        self._pace.stage(amount)
        _say(f"{text} [{self._pace.in_words()}]")

    def advanced(self, share: float) -> None:
        """Counted, but not told."""
        self._pace.advanced(share)

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """What came of the study."""
        self._pace.done()
        _say(f"{outcome_line(summary)} [{self._pace.in_words()}]")


class Display(Watcher):
    """How far all is and the time left, the trials that run, and the best so far; a line stays of every study.

    Use as a context manager, so that the terminal (or a notebook's cell) is left as it was.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._study: Begun | None = None
        self._names: Sequence[str] = ()
        self._records: dict[int, TrialRecord] = {}
        self._running: dict[int, tuple[int, float]] = {}
        self._stage = "reading the cells"
        self._workers = ""
        self._told: set[str] = set()
        self._pace = Pace()
        # Last, since it renders at once.
        live = CellLive if console.is_jupyter else Live
        self._live = live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Above the display."""
        self._console.print(Text(text))

    def planned(self, studies: Sequence[str]) -> None:
        """Count all of them."""
        self._names = studies
        self._pace.planned(len(studies))

    def begun(self, study: Begun) -> None:
        """Start anew."""
        self._study = study
        self._records = {record.number: record for record in study.records if record.state in FINISHED}
        self._running, self._stage = {}, ""
        self._pace.begun(study)
        for line in _new(describe(study), self._told):
            self._console.print(Text(line))

    def reported(self, number: int, step: int, value: float) -> None:
        """A trial has come further."""
        self._running[number] = (step, value)
        self._pace.reported(number, step)

    def ended(self, record: TrialRecord) -> None:
        """A trial is done."""
        self._running.pop(record.number, None)
        self._records[record.number] = record
        self._pace.ended(record)
        if record.state == "fail" and self._study is not None:
            self._console.print(Text(in_a_line(record, self._study.settings.metric)))

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Who works."""
        self._workers = fleet_in_words(fleet)

    def stage(self, text: str, amount: float = 0.0) -> None:
        """What is done now."""
        self._stage = text
        self._running = {}
        self._pace.stage(amount)

    def advanced(self, share: float) -> None:
        """The stage has come further."""
        self._pace.advanced(share)

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """A line that stays."""
        self._pace.done()
        self._console.print(Text(outcome_line(summary)))
        self._study, self._stage = None, "reading the cells"

    def _render(self) -> Group:
        if self._study is None and not self._names:
            return Group(Text(self._stage))
        bar = Table.grid(padding=(0, 2))
        share = self._pace.share()
        bar.add_row(ProgressBar(total=1.0, completed=share, width=30), Text(self._pace.in_words()))
        return Group(bar, *self._of_the_study())

    def _of_the_study(self) -> Iterator[Text]:
        if self._study is None:
            yield Text(f"  {self._stage}")
            return
        settings, width = self._study.settings, self._console.width
        place = self._names.index(settings.name) + 1 if settings.name in self._names else 1
        which = f", study {place} of {len(self._names)}" if len(self._names) > 1 else ""
        yield Text(f"{settings.name}{which}", style="bold")
        records = list(self._records.values())  # the search goes on while this is drawn
        counts = Counter(record.state for record in records)
        line = Text(f"  {len(records)}/{settings.trials} trials, ")
        line.append(f"{counts['pruned']} pruned", LEFT_OUT).append(f", {counts['fail']} failed")
        yield line
        if self._stage:
            yield Text(f"  {self._stage}")
        if self._workers:
            yield Text(f"  {self._workers}")
        running, metric = sorted(self._running.copy().items()), METRIC[settings.metric]
        for number, (step, value) in running[:SHOWN_RUNNING]:
            yield Text(f"  trial {number}: {step / RUNGS:.0%} of its epochs, {metric} {value:.3f}", LEFT_OUT)
        if len(running) > SHOWN_RUNNING:
            yield Text(f"  and {len(running) - SHOWN_RUNNING} more", LEFT_OUT)
        best = best_of(records)
        if best is not None and best.value is not None:
            yield Text(f"{STAR} best so far: trial {best.number}, {metric} {best.value:.3f}", BEST)
            for part in folded(in_words(best.settings).split(", "), width - 4):
                yield Text(f"    {part}")


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

    def stage(self, text: str, amount: float = 0.0) -> None:
        """{"event": "stage"}."""
        _emit("stage", text=text)

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """{"event": "done"}, with the summary."""
        _emit("done", folder=str(folder.path), summary=summary.to_json())

    def registered(self, registration: Registration) -> None:
        """{"event": "registered"}."""
        _emit("registered", **vars(registration))


def describe(study: Begun) -> list[str]:
    """What a study is going to do, in sentences: first what its siblings do too."""
    settings, folds = study.settings, len(study.cells.folds)
    done = sum(record.state in FINISHED for record in study.records)
    cut = sum(record.state == "running" for record in study.records)
    how = count(folds, "leave-one-domain-out fold") if folds else "no folds"
    common = f"a trial trains {count(study.models, 'model')} ({how}, and all training domains)"
    own = f"{settings.name}: {count(settings.trials, 'trial')} of {settings.method}"
    own += (f", {done} done before" if done else "") + (f", {cut} cut off and run again" if cut else "")
    return [f"{common}; selected by {METRIC[settings.metric]}, {study.selection}", own]


def in_a_line(record: TrialRecord, metric: Metric) -> str:
    """A trial that has ended."""
    state = {"complete": "complete", "pruned": f"pruned at {max(record.steps, default=0)}/{RUNGS}", "fail": "failed"}
    line = f"trial {record.number} {state.get(record.state, record.state)}"
    if record.state != "fail" and record.value is not None:
        line += f", {METRIC[metric]} {record.value:.3f}"
    line += f", {record.seconds:.1f} s"
    if record.origin:
        line += f" ({record.origin})"
    return line + (f": {record.reason}" if record.reason else "")


def _new(lines: Sequence[str], told: set[str]) -> list[str]:
    """Those that were not told before, which they now are."""
    new = [line for line in lines if line not in told]
    told.update(new)
    return new


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _emit(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)

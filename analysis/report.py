"""The report of studies: what came out first, then the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd

import scdgn
from scdgn.analysis import peers
from scdgn.analysis.chapters import (
    classification,
    embedding,
    first_screen,
    genes,
    integration,
    protocols,
    search_figures,
    searches,
    tables,
    unknown,
)
from scdgn.analysis.page.page import Chapter, Document, Link, joined
from scdgn.analysis.page.sections import Section, Table, Text
from scdgn.analysis.studies.cells import Described, described, source_of
from scdgn.analysis.studies.results import METHODS, TITLES, Group, Results, grouped
from scdgn.cells.sources import TrainingCells
from scdgn.errors import DataError, ScdgnError
from scdgn.search.shown.overview import METRIC
from scdgn.search.tracking.store import TrackingError
from scdgn.search.tracking.tracker import attach, run_address
from scdgn.threads import one_thread

STEPS = ("search", "cells", "classification", "unknown cells", "representation", "alignment", "genes")
"""Of which each data set is told; the first alone without its cells."""


@dataclass(frozen=True)
class Asked:
    """What a report is to hold; `say` is told what is done.

    Attributes
    ----------
    data
        The file of the cells, where it has moved; the studies say where it was.
    cells
        Whether the cells are looked at again; without them a report tells of searches and scores alone.
    """

    data: Path | None = None
    cells: bool = True
    say: Callable[[str], object] = field(default=lambda text: None)


def compose(results: Sequence[Results], asked: Asked | None = None, unfinished: Sequence[str] = ()) -> Document:
    """Make the report of finished studies; those of the same cells are told of together.

    Parameters
    ----------
    unfinished
        Names of studies that are not in it.

    Raises
    ------
    DataError
        If there are no studies.
    """
    asked = asked or Asked()
    if not results:
        raise DataError("there is no finished study to report: name one (`scdgn status` lists them)")
    groups = grouped(results)
    several = len(groups) > 1
    overview = [
        _selected(groups) if several else first_screen.settings_section(groups[0]),
        tables.section(groups),
        peers.section(groups),
        protocols.section(results) if several else None,
    ]
    chapters = []
    for place, group in enumerate(groups):
        own = [Section("Summary", tuple(first_screen.items(group))), first_screen.settings_section(group)]
        chapter = _chapter(group, asked, _Steps(groups, place, asked))
        chapters.append(Chapter(group.name, tuple(filter(None, (*(own if several else ()), *chapter)))))
    footer = [_made(min(results, key=lambda one: datetime.fromisoformat(one.made["created"])))]
    if unfinished:
        footer.append(f"Not finished, and left out: {', '.join(unfinished)}.")
    return Document(
        title=f"{joined([group.name for group in groups]) if len(groups) < 4 else _common(groups)}: cell types of a "
        "batch never seen",
        lead=tuple(map(Text, _lead_of_many(groups)) if several else first_screen.items(groups[0])),
        overview=tuple(filter(None, overview)),
        chapters=tuple(chapters),
        links=tuple(_links(results, asked)),
        footer=tuple(footer),
    )


def _common(groups: Sequence[Group]) -> str:
    first = groups[0].name.split("/")[0]
    return first if all(group.name.split("/")[0] == first for group in groups) else f"{len(groups)} data sets"


def _lead_of_many(groups: Sequence[Group]) -> Iterator[str]:
    """What holds over data sets: the mean of each method, and who was selected."""
    searched = [group for group in groups if group.best.is_search]
    yield (
        f"{len(groups)} data sets, each with its own search. The test batch of each took no part in any choice; its "
        "scores are means over the final seeds."
    )
    means = []
    for method in METHODS:
        found = [one.final_test for group in searched if (one := group.of(method)) is not None]
        scores = [test.mean for test in found if test is not None]
        if len(scores) == len(groups):
            means.append(f"{TITLES[method]} {sum(scores) / len(scores):.3f}")
    if means:
        yield f"Mean {METRIC[searched[0].best.metric]} on the test batches: {joined(means)}."
    chosen = pd.Series([TITLES[group.best.method] for group in searched]).value_counts()
    if len(chosen):
        words = [f"{method} for {count}" for method, count in chosen.items()]
        yield f"By the scores on training batches left out, the method selected is {joined(words)}."


def _selected(groups: Sequence[Group]) -> Section:
    """The selected model of every data set, in a table."""
    rows = []
    for group in groups:
        best = group.best
        if not best.is_search:
            continue
        test = best.search.final.test
        rows.append(
            {
                "data set": group.name,
                "selected": TITLES[best.method],
                "test batch": joined(best.summary.data.test_batches or ["none"]),
                "score on batches left out": best.search.winner.score,
                "accuracy": test and test.accuracy.mean,
                "macro-F1": test and test.macro_f1.mean,
                "macro-F1, ensemble": test and test.macro_f1.ensemble,
            }
        )
    caption = (
        "The model selected for each data set: the method and settings with the highest score on training batches left "
        "out in turn. Accuracy and macro-F1 are of its test batch, means over the final seeds."
    )
    return Section("Selected models", (Table("selected", caption, pd.DataFrame(rows)),))


@dataclass(frozen=True)
class _Steps:
    """Says which part of which data set is made, and how many there are in all."""

    groups: Sequence[Group]
    place: int
    asked: Asked

    def say(self, step: str) -> None:
        steps = STEPS if self.asked.cells else STEPS[:1]
        number = self.place * len(steps) + steps.index(step) + 1
        of = f" of {self.groups[self.place].name}" if len(self.groups) > 1 else ""
        self.asked.say(f"{number}/{len(self.groups) * len(steps)} {step}{of}")


def _chapter(group: Group, asked: Asked, steps: _Steps) -> Iterator[Section]:
    """All that is shown of one data set."""
    best = group.best
    steps.say("search")
    yield from filter(None, (searches.section(group), search_figures.section(best)))
    by_method, source, why = _cells(group, asked, steps)
    if why:
        yield Section("The cells", (Text(why),))
    if source is None or best.method not in by_method:
        return
    own = by_method[best.method]
    makers: dict[str, Callable[[], Section | None]] = {
        "classification": lambda: classification.section(own),
        "unknown cells": lambda: unknown.section(best, own, unknown.compare(best, source)),
        "representation": lambda: embedding.section(by_method, best.method),
        "alignment": lambda: integration.section({best.method: own, **by_method}),
        "genes": lambda: genes.section(own),
    }
    for name, make in makers.items():
        steps.say(name)
        try:
            with one_thread():
                section = make()
        except ScdgnError as error:
            section = Section(name.capitalize(), (Text(f"Not shown: {error}."),))
        if section is not None:
            yield section


def _cells(group: Group, asked: Asked, steps: _Steps) -> tuple[dict[str, Described], TrainingCells | None, str]:
    """The cells by method, in the order of the methods; where there are none, why."""
    found: dict[str, Described] = {}
    if not asked.cells:
        return found, None, ""
    here = [one for method in METHODS if (one := group.of(method)) is not None and one.folder is not None]
    if not here:
        return found, None, "No model of these studies is here, so nothing is shown of single cells."
    steps.say("cells")
    try:
        source = source_of(here[0], asked.data)
        for one in here:
            found[one.method] = described(one, source)
    except ScdgnError as error:
        missing = f"Pictures of cells, and what is computed from them, are missing: {error}."
        asked.say(missing)  # too: the page may replace one that has them
        return {}, None, missing
    return found, source, ""


def _links(results: Sequence[Results], asked: Asked) -> Iterator[Link]:
    """To the run of each study, where MLflow has one."""
    for one in results:
        if one.folder is None:
            continue
        try:
            address = run_address(one.folder)
        except TrackingError as error:
            asked.say(f"no links to MLflow: {error}")
            return
        if address is not None:
            yield Link(one.name, address)


def track(page: Path, results: Sequence[Results], say: Callable[[str], object]) -> None:
    """Lay a report beside the run of the study that is selected among those of the same cells, where MLflow has it.

    Its figures lie beside the page. `say` is told where it lies now, or why not: the report is written already.
    """
    figures = {f"figures/{path.name}": path for path in sorted((page.parent / "figures").glob("*.png"))}
    for best in (group.best for group in grouped(results)):
        try:
            if best.folder is not None and attach(best.folder, {page.name: page, **figures}):
                say(f"beside the run of {best.name} in MLflow too")
        except TrackingError as error:
            say(f"the report is not in MLflow: {error}")
            return


def _made(one: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in one.made["versions"].items())
    return (
        f"Written by scdgn {scdgn.__version__}. The first study began {one.made['created']} on {one.made['machine']}, "
        f"with {versions}." + "".join(f" {change[0].upper()}{change[1:]}." for change in one.made.get("changes", []))
    )

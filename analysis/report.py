"""The report of studies: what came out first, then the evidence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import scdgn
from analysis import classification, embedding, genes, integration, peers, protocols, search_figures, tables, unknown
from analysis.cells import Cells, described, source_of
from analysis.page import Chapter, Fact, Link, Report, joined
from analysis.results import METHODS, TITLES, Group, Results, grouped
from analysis.sections import Section, Table, Text
from scdgn.errors import DataError, ScdgnError
from scdgn.sources import TrainingCells
from search.overview import METRIC, composition, exported_test, in_words
from search.store import TrackingError
from search.tracking import attach, run_address
from search.verdict import verdict


@dataclass(frozen=True)
class Asked:
    """What a report is to hold.

    Attributes
    ----------
    data
        The file of the cells, where it has moved; the studies say where it was.
    cells
        Whether the cells are looked at again; without them a report tells of searches and scores alone.
    scib_python
        A Python with scib-metrics; where it has none, the built-in scores stand alone.
    say
        Told what is done.
    """

    data: Path | None = None
    cells: bool = True
    scib_python: str = sys.executable
    say: Callable[[str], object] = field(default=lambda text: None)


def compose(results: Sequence[Results], asked: Asked | None = None, unfinished: Sequence[str] = ()) -> Report:
    """Make the report of studies.

    Parameters
    ----------
    results
        Of finished studies; those of the same cells are told of together.
    asked
        What it is to hold.
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
    overview = [_selected(groups)] if len(groups) > 1 else []
    together = [tables.section(groups), peers.section(groups)]
    if len(groups) > 1:
        together.append(protocols.section(results))
    overview += [section for section in together if section is not None]
    chapters = [Chapter(group.name, tuple(_chapter(group, asked))) for group in groups]
    footer = [_made(one) for one in results[:1]]
    if unfinished:
        footer.append(f"Not finished, and left out: {', '.join(unfinished)}.")
    return Report(
        title=f"{joined([group.name for group in groups]) if len(groups) < 4 else _common(groups)}: cell types of a "
        "batch never seen",
        lead=tuple(_lead(groups[0]) if len(groups) == 1 else _lead_of_many(groups)),
        facts=tuple(_facts(groups[0].best) if len(groups) == 1 else ()),
        overview=tuple(overview),
        chapters=tuple(chapters),
        links=tuple(_links(results, asked)),
        footer=tuple(footer),
    )


def _common(groups: Sequence[Group]) -> str:
    first = groups[0].name.split("/")[0]
    return first if all(group.name.split("/")[0] == first for group in groups) else f"{len(groups)} data sets"


def _lead(group: Group) -> Iterator[str]:
    """What the end of the search said; which model, how good, on what held-out batch, chosen how."""
    yield from (told := verdict([one.summary for one in group.results]))
    best = group.best
    summary = best.summary
    data = summary["data"]
    training = (
        f"{data['training_cells']:,} cells of {len(data['training_domains'])} batches "
        f"({joined(data['training_domains'])})"
    )
    if not best.is_search:
        yield (
            f"{TITLES[best.method]} was trained ten times with random margin and lambda on {training}. The best of the "
            "ten is chosen by the test labels: an oracle's number, for comparison with the write-up alone."
        )
        return
    metric, winner, model = METRIC[best.metric], summary["winner"], summary["model"]
    searches = [one for one in group.results if one.is_search]
    trials = sum(sum(one.summary["trials"].values()) for one in searches)
    methods = list(dict.fromkeys(TITLES[one.method] for one in searches))
    made_of = "One network" if model["kind"] == "single" else f"An ensemble of {model['models']} networks"
    yield f"{made_of} ({TITLES[best.method]}), trained on {model['trained_on']} of {training}."
    again = " and scored again with new seeds" if summary["confirmed"] else ""
    yield (
        f"Chosen among {trials} trials of {joined(methods)} by {_selection(summary['selection'])}{again}: {metric} "
        f"{winner['score']:.3f}. Its settings: {in_words(winner['settings'])}."
    )
    test = summary["final"].get("test")
    if test is not None:
        part = test[best.metric]
        spread = "" if part["std"] is None else f" ± {part['std']:.3f}"
        yield (
            f"On {test['cells']:,} cells of {joined(data['test_batches'])}, which took no part in any choice: {metric} "
            f"{part['mean']:.3f}{spread} over {len(summary['final']['seeds'])} seeds, {part['ensemble']:.3f} as an "
            "ensemble."
        )
        exported = exported_test(summary)
        if exported is not None and not told:
            yield f"The model exported ({composition(model)}) scores {exported[best.metric]:.3f} there."
        if test["unscored_cells"]:
            yield f"{test['unscored_cells']:,} of its cells are of types that were never trained, and are not scored."
    elif not told:
        yield "No batch was held out: the batches left out in the search alone tell how good it is on a new one."
    if summary["transductive"]:
        yield "Transductive: cells without labels, those of the batch to annotate, took part in training or scaling."
    if winner["note"]:
        yield f"Mind: {winner['note']}."


def _selection(name: str) -> str:
    return {
        "leave-one-domain-out": "leaving each training batch out in turn (leave-one-domain-out)",
        "training-domain": "cells set aside of all training batches (training-domain validation)",
    }[name]


def _lead_of_many(groups: Sequence[Group]) -> Iterator[str]:
    """What holds over data sets: the mean of each method, and who was selected."""
    searches = [group for group in groups if group.best.is_search]
    yield (
        f"{len(groups)} data sets, each with its own search. The test batch of each took no part in any choice; its "
        "scores are means over the final seeds."
    )
    means = []
    for method in METHODS:
        found = [one for group in searches if (one := group.of(method)) is not None and "test" in one.summary["final"]]
        if len(found) == len(groups):
            scores = [one.summary["final"]["test"][one.metric]["mean"] for one in found]
            means.append(f"{TITLES[method]} {sum(scores) / len(scores):.3f}")
    if means:
        yield f"Mean {METRIC[searches[0].best.metric]} on the test batches: {joined(means)}."
    chosen = pd.Series([TITLES[group.best.method] for group in searches]).value_counts()
    if len(chosen):
        words = [f"{method} for {count}" for method, count in chosen.items()]
        yield f"By the scores on training batches left out, the method selected is {joined(words)}."


def _facts(best: Results) -> Iterator[Fact]:
    summary = best.summary
    if not best.is_search:
        run = summary["best_oracle"]
        yield Fact(f"{run['accuracy']:.3f}", "best accuracy of ten", "oracle: chosen by the test labels")
        return
    yield Fact(f"{summary['winner']['score']:.3f}", METRIC[best.metric], "training batches left out in turn")
    test = summary["final"].get("test")
    for name in dict.fromkeys((best.metric, "macro_f1", "accuracy")):
        if test is not None:
            held_out = joined(summary["data"]["test_batches"])
            yield Fact(f"{test[name]['ensemble']:.3f}", METRIC[name], f"{held_out}, ensemble")
    yield Fact(f"{sum(summary['trials'].values())}", "trials", f"of {TITLES[best.method]}")


def _selected(groups: Sequence[Group]) -> Section:
    """The selected model of every data set, in a table."""
    rows = []
    for group in groups:
        best = group.best
        if not best.is_search:
            continue
        test = best.summary["final"].get("test", {})
        rows.append(
            {
                "data set": group.name,
                "selected": TITLES[best.method],
                "test batch": joined(best.summary["data"]["test_batches"] or ["none"]),
                "score on batches left out": best.summary["winner"]["score"],
                "accuracy": test.get("accuracy", {}).get("mean"),
                "macro-F1": test.get("macro_f1", {}).get("mean"),
                "macro-F1, ensemble": test.get("macro_f1", {}).get("ensemble"),
            }
        )
    caption = (
        "The model selected for each data set: the method and settings with the highest score on training batches left "
        "out in turn. Accuracy and macro-F1 are of its test batch, means over the final seeds."
    )
    return Section("Selected models", (Table("selected", caption, pd.DataFrame(rows)),))


def _chapter(group: Group, asked: Asked) -> Iterator[Section]:
    """All that is shown of one data set."""
    best = group.best
    asked.say(f"{group.name}: the search")
    if (section := search_figures.section(best)) is not None:
        yield section
    by_method, source, why = _cells(group, asked)
    if why:
        yield Section("The cells", (Text(why),))
    if source is None or best.method not in by_method:
        return
    own = by_method[best.method]
    makers: list[tuple[str, Callable[[], Section | None]]] = [
        ("classification", lambda: classification.section(own)),
        ("unknown cells", lambda: unknown.section(best, own, unknown.compare(best, source))),
        ("representation", lambda: embedding.section(by_method, best.method)),
        ("alignment", lambda: _alignment({best.method: own, **by_method}, asked.scib_python)),
        ("genes", lambda: genes.section(own)),
    ]
    for name, make in makers:
        asked.say(f"{group.name}: {name}")
        try:
            section = make()
        except ScdgnError as error:
            section = Section(name.capitalize(), (Text(f"Not shown: {error}."),))
        if section is not None:
            yield section


def _alignment(by_method: dict[str, Cells], python: str) -> Section | None:
    """How batches are aligned by each method's model; of the selected one, the first, by scib-metrics too."""
    scores, why = integration.scib(next(iter(by_method.values())), python)
    return integration.section(by_method, scores, why)


def _cells(group: Group, asked: Asked) -> tuple[dict[str, Cells], TrainingCells | None, str]:
    """The cells by method, in the order of the methods; where there are none, why."""
    found: dict[str, Cells] = {}
    if not asked.cells:
        return found, None, ""
    searches = [one for method in METHODS if (one := group.of(method)) is not None and one.folder is not None]
    if not searches:
        return found, None, "No model of these studies is here, so nothing is shown of single cells."
    asked.say(f"{group.name}: reading the cells")
    try:
        source = source_of(searches[0], asked.data)
        for one in searches:
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

    Parameters
    ----------
    page
        The report; its figures lie beside it.
    results
        The studies that it is of.
    say
        Told where it lies now, or why not: the report is written already.
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

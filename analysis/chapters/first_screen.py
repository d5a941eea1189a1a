"""What a reader sees first of studies of the same cells: the verdict, the scores, the command, how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from scdgn.analysis.page.page import joined
from scdgn.analysis.page.sections import Command, Item, Section, Table, Text
from scdgn.analysis.studies.results import METHODS, TITLES, Group, Results
from scdgn.search.shown.overview import METRIC, composition, settings_shown
from scdgn.search.shown.verdict import to_annotate, verdict
from scdgn.search.study.space import SETTINGS
from scdgn.search.summary import Data

STAR = "★"


def items(group: Group) -> Iterator[Item]:
    """All that stands on the first screen, in the order in which it is read."""
    best = group.best
    searches = [one for one in group.results if one.is_search]
    sentences = verdict([one.summary for one in group.results])
    yield from map(Text, sentences)
    if not best.is_search:
        yield Text(_ten_draws(best))
        return
    yield Table("scores", _scores_caption(best, searches), scores(group))
    if best.folder is not None:
        yield Text("To annotate cells with the model exported:")
        yield Command(to_annotate(best.search, best.folder.studies(best.name)))
    yield from map(Text, _made(best, searches))


def settings_section(group: Group) -> Section | None:
    """The settings of the winners, for those who have read the first screen; None where nothing was searched."""
    found = settings(group)
    return Section("The settings", (Table("settings", _SETTINGS_CAPTION, found),)) if len(found) else None


def scores(group: Group) -> pd.DataFrame:
    """The scores of every search of these cells.

    Returns
    -------
    A row per search: `chosen` (a star), `method` (and the study, where a method was searched twice); `exported model,
    left out` and `exported model, test`; of the best single trial `winner, left out`, and of its final seeds `winner,
    test` (mean), `sd` and `winner's ensemble, test`. Without columns of which nothing is known.
    """
    searches = [one for one in group.results if one.is_search]
    rows = []
    for one in searches:
        test, exported = one.final_test, one.search.exported_test
        rows.append(
            {
                "chosen": STAR if one is group.best else "",
                "method": _title(one, searches),
                "exported model, left out": one.search.exported_score,
                "exported model, test": exported and exported.of(one.metric),
                "winner, left out": one.search.winner.score,
                "winner, test": test and test.mean,
                "sd": test and test.std,
                "winner's ensemble, test": test and test.ensemble,
            }
        )
    frame = pd.DataFrame(rows)
    numbers = frame.columns[2:]
    return frame.astype(dict.fromkeys(numbers, "float64")).dropna(axis=1, how="all")


def settings(group: Group) -> pd.DataFrame:
    """The settings of every search's winner: `setting`, and a column per search; empty where it is not used."""
    searches = [one for one in group.results if one.is_search]
    columns = {
        f"{_title(one, searches)}, trial {one.search.winner.number}"
        + (f" {STAR}" if one is group.best else ""): settings_shown(one.search.winner.settings)
        for one in searches
    }
    names = [name for name in SETTINGS if any(name in told for told in columns.values())]
    return pd.DataFrame(
        {"setting": names, **{title: [told.get(name, "") for name in names] for title, told in columns.items()}}
    )


def _title(one: Results, searches: Sequence[Results]) -> str:
    twice = sum(other.method == one.method for other in searches) > 1
    return f"{TITLES[one.method]} ({one.name})" if twice else TITLES[one.method]


def _scores_caption(best: Results, searches: Sequence[Results]) -> str:
    summary, metric = best.search, METRIC[best.metric]
    test, batches = summary.final.test, joined(summary.data.test_batches or ["none"])
    held_out = "" if test is None else f" Test: {test.cells:,} cells of {batches}, which took no part in any choice."
    return (
        f"{metric[0].upper()}{metric[1:]}, higher is better. Left out: {_selection(summary.selection)}; the highest "
        f"of these has the star.{held_out} The exported model is what predicts; of the method chosen it is "
        f"{composition(summary.model)}. The winner is the best single trial: with its settings "
        f"{len(summary.final.seeds)} networks of different seeds were trained for the test, whose mean, standard "
        "deviation (sd) and ensemble these are."
    )


_SETTINGS_CAPTION = (
    f"Settings of each method's winner, a star ({STAR}) at the method chosen; empty where they are not used. Those of "
    "all trials are in the tables of the search."
)


def _made(best: Results, searches: Sequence[Results]) -> Iterator[str]:
    """What the model was trained on, among how many it was chosen, and what has to be minded."""
    summary = best.search
    model, test = summary.model, summary.final.test
    made_of = "One network" if model.kind == "single" else f"An ensemble of {model.models} networks"
    trials = sum(sum(one.search.trials.values()) for one in searches)
    methods = [TITLES[method] for method in METHODS if any(one.method == method for one in searches)]
    again = ", the best scored again with new seeds" if summary.confirmed else ""
    yield (
        f"{made_of} ({TITLES[best.method]}), trained on {model.trained_on}: {_training(summary.data)}. Chosen among "
        f"{trials} trials of {joined(methods)}{again}."
    )
    if test is not None and test.unscored_cells:
        of = joined(summary.data.test_batches)
        yield f"{test.unscored_cells:,} cells of {of} are of types that were never trained, and are not scored."
    if summary.transductive:
        yield "Transductive: cells without labels, those of the batch to annotate, took part in training or scaling."
    if summary.winner.note:
        yield f"Mind: {summary.winner.note}."


def _ten_draws(best: Results) -> str:
    """Of a study whose best training the test labels chose."""
    return (
        f"{TITLES[best.method]} was trained ten times with random margin and lambda on {_training(best.summary.data)}. "
        "The best of the ten, chosen by the test labels, has an accuracy of "
        f"{best.oracle.best_oracle.accuracy:.3f}: an oracle's number, for comparison with the write-up alone."
    )


def _training(data: Data) -> str:
    batches = data.training_domains
    return f"{data.training_cells:,} cells of {len(batches)} batches ({joined(batches)})"


def _selection(name: str) -> str:
    return {
        "leave-one-domain-out": "on each training batch in turn by models trained without it (leave-one-domain-out)",
        "training-domain": "on cells set aside of all training batches (training-domain validation)",
    }[name]

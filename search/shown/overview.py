"""Studies at a glance: what `scdgn status`, `scdgn compare` and the end of a search show."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scdgn.commands.terminal import BEST, LEFT_OUT, STAR
from scdgn.errors import count, listed
from scdgn.search.choices import Metric
from scdgn.search.engines.fleet import in_words as in_words_of_fleet
from scdgn.search.engines.fleet import slots_of
from scdgn.search.folder import StudyFolder, owner
from scdgn.search.records import RUNGS, TrialRecord
from scdgn.search.study.documents import from_document
from scdgn.search.study.space import SETTINGS, unused
from scdgn.search.study.study import read_records
from scdgn.search.summary import AnySummary, ExportedModel, OracleSummary, Summary


def go_on(name: str, studies: Path) -> str:
    """The command that goes on with studies that were cut off."""
    return shlex.join(["scdgn", "search", "--name", name, *place_of(studies)])


def place_of(studies: Path) -> list[str]:
    """The words of a command that say where studies are, unless they are where it looks by itself."""
    return [] if studies == Path("studies") else ["--studies", str(studies)]


def status(folder: StudyFolder) -> dict[str, Any]:
    """The state of a study, JSON-safe but for the summary.

    Returns
    -------
    `metric`, `go_on` (the command that goes on with it), `states` (counts), `trials` (number, state, value, settings
    and last step of each), `best`, `budget`, `owner` (who runs it now; None if nobody does), `fleet` (the machines
    that work on it, or did; None where it never left its process), `summary` (None before the end) and `words` (the
    best and the winner).
    """
    document = folder.read_settings()
    settings = from_document(document)
    records = read_records(folder, settings)
    best, summary = best_of(records), folder.read_summary()
    return {
        "name": settings.name,
        "method": settings.method,
        "metric": settings.metric,
        "budget": settings.trials,
        "owner": owner(folder),
        "fleet": folder.read_fleet(),
        "states": dict(Counter(record.state for record in records)),
        "best": None if best is None else _trial(best),
        "trials": [_trial(record) for record in records],
        "summary": summary,
        "go_on": go_on(settings.name, folder.studies(settings.name)),
        "words": [*_outcome(settings.metric, best, summary), *document["record"].get("changes", [])],
    }


def _outcome(metric: Metric, best: TrialRecord | None, summary: AnySummary | None) -> list[str]:
    """The best trial, and the winner where it is another one."""
    words, name = [], METRIC[metric]
    if best is not None:
        words.append(f"best: trial {best.number}, {name} {_number(best.value)}: {in_words(best.settings)}")
    if isinstance(summary, Summary):
        winner = summary.winner
        how = " when scored again with other seeds" if summary.confirmed else ""
        words.append(f"winner: trial {winner.number}, {name} {_number(winner.score)}{how}: {in_words(winner.settings)}")
    return words


def status_line(one: Mapping[str, Any]) -> str:
    """A study in a line: counts, and whether it runs, is done, or waits to be gone on with."""
    summary: AnySummary | None = one["summary"]
    if isinstance(summary, OracleSummary):
        return f"{one['name']}: {len(summary.runs)} trainings with random margin and lambda; done"
    # What nobody runs was cut off.
    names = {"fail": "failed", "running": "running" if one["owner"] else "cut off"}
    counts = [f"{count} {names.get(state, state)}" for state, count in sorted(one["states"].items())]
    state = f"run by {one['owner']}" if one["owner"] else "done" if summary else f"`{one['go_on']}` goes on with it"
    return (
        f"{one['name']}: {', '.join(counts) or 'no trial yet'}, of {one['budget']} trials of {one['method']}; {state}"
    )


def trial_table(one: Mapping[str, Any]) -> Table:
    """Every trial of a study, with the settings that are searched most of all."""
    columns = [name for name in ("hidden", "lambda_max", "margin") if name not in unused(one["method"])]
    chosen = leader(one)
    rows = [
        [
            str(trial["number"]),
            _state(trial, one["owner"]) + (f" {STAR}" if trial["number"] == chosen else ""),
            _number(trial["value"]),
            f"{trial['seconds']:.1f}" if trial["seconds"] else "",
            *("" if trial["settings"].get(name) is None else _short(trial["settings"][name]) for name in columns),
            " ".join(filter(None, [trial["origin"], trial["reason"]])),
        ]
        for trial in one["trials"]
    ]
    short = [name.removesuffix("_max") for name in columns]  # for a table of 80 characters
    return status_line(one), ["trial", "state", METRIC[one["metric"]], "s", *short, ""], rows


def trial_styles(one: Mapping[str, Any]) -> list[str]:
    """How the rows of `trial_table` look: the winner, or the best so far, and those that were pruned or failed."""
    chosen = leader(one)
    other = {"pruned": LEFT_OUT, "fail": LEFT_OUT}
    return [BEST if trial["number"] == chosen else other.get(trial["state"], "") for trial in one["trials"]]


def leader(one: Mapping[str, Any]) -> int | None:
    """The trial that was chosen, or the best so far."""
    if isinstance(summary := one["summary"], Summary):
        return summary.winner.number
    return None if one["best"] is None else int(one["best"]["number"])


def fleet_table(one: Mapping[str, Any]) -> Table | None:
    """Machines and GPUs that work on a study, or did; None where it never left its process."""
    fleet = one["fleet"]
    if fleet is None:
        return None
    running: dict[str, list[int]] = {name: [] for name in fleet["trials"]}
    for worker in fleet["workers"]:
        for name in slots_of(worker["node"], worker["gpus"]):
            running.setdefault(name, []).extend(worker["trials"] if one["owner"] else ())
    rows = [
        [name, str(fleet["trials"].get(name, 0)), ", ".join(map(str, numbers))]
        for name, numbers in sorted(running.items())
    ]
    then = "" if one["owner"] else "when it last ran: "
    return then + in_words_of_fleet(fleet), ["", "trials ended", "running"], rows


def _state(trial: Mapping[str, Any], owner: str | None) -> str:
    if trial["state"] == "running" and owner is None:
        return "cut off"
    return f"pruned {trial['step']}/{RUNGS}" if trial["state"] == "pruned" else str(trial["state"])


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the highest value; None where there is none."""
    done = [record for record in records if record.state == "complete" and record.value is not None]
    return max(done, key=lambda record: (record.value or 0.0, -record.number), default=None)


def settings_shown(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that matter to the method, as they are told."""
    method = settings["method"]
    left_out = {name for name, one in SETTINGS.items() if method not in one.methods or not one.drawn_if(settings)}
    left_out |= {name for name in ("query_weight", "shift_probability") if not settings.get(name)}
    return {name: _short(settings[name]) for name in SETTINGS if name in settings and name not in left_out}


def in_words(settings: Mapping[str, Any]) -> str:
    """The same in one line."""
    return ", ".join(f"{name} {value}" for name, value in settings_shown(settings).items())


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def outcome_line(summary: AnySummary) -> str:
    """A finished study in a line."""
    if isinstance(summary, OracleSummary):
        best = _number(summary.best_oracle.accuracy)
        return f"{summary.study} done: accuracy {best} by the best of {len(summary.runs)} (oracle)"
    line = f"{summary.study} done: {METRIC[summary.metric]} {summary.exported_score:.3f} "
    line += "on batches left out" if summary.winner.folds else "on cells set aside"
    if exported := summary.exported_test:
        line += f", {exported.of(summary.metric):.3f} on {listed(summary.data.test_batches)}"
    return line


def searches_of(summaries: Sequence[AnySummary]) -> list[Summary]:
    """Those of searches, the best model first, by what it scores on cells left out."""
    searches = [summary for summary in summaries if isinstance(summary, Summary)]
    return sorted(searches, key=lambda summary: summary.exported_score, reverse=True)


def chosen_of(summaries: Sequence[AnySummary]) -> Summary | None:
    """The search with the best model; None where they are not to be compared."""
    searches = searches_of(summaries)
    comparable = searches and len({summary.method for summary in searches}) == len(searches)
    return searches[0] if comparable else None


def _trial(record: TrialRecord) -> dict[str, Any]:
    return {
        "number": record.number,
        "state": record.state,
        "value": record.value,
        "step": max(record.steps, default=0),
        "epoch": record.epoch,
        "origin": record.origin,
        "reason": record.reason,
        "seconds": record.seconds,
        "transductive": bool(record.settings.get("query_weight")) and record.settings.get("method") != "nn",
        "settings": dict(record.settings),
    }


METRIC = {"macro_f1": "macro-F1", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}

# A table: its title, its header and its rows.
Table = tuple[str, list[str], list[list[str]]]


def summary_tables(summary: AnySummary, verbose: bool = True) -> list[Table]:
    """What came out of a study, as tables to print; with the recall of every type where that is wanted."""
    if isinstance(summary, OracleSummary):
        return [_best_of_ten(summary)]
    metric, test, winner = METRIC[summary.metric], summary.final.test, summary.winner
    title = f"{summary.study}: {summary.method}, {summary.trials.get('complete', 0)} trials complete"
    if pruned := summary.trials.get("pruned"):
        title += f", {pruned} pruned"
    if failed := summary.trials.get("fail"):
        title += f", {failed} failed"
    if summary.transductive:
        title += "; TRANSDUCTIVE: cells without labels took part in training"
    elif summary.adapted is False:
        title += "; the search chose not to adapt"
    if test is not None:  # in a header it would be divided
        title += f"; held out: {listed(summary.data.test_batches)}"
    header = ["selected by", "trial", f"score ({metric})", *([] if test is None else [f"held out ({metric})"])]
    protocols = [
        [
            one.protocol + (" (shown, not used)" if "oracle" in one.protocol else ""),
            str(one.trial),
            _number(one.score),
            *([] if test is None else [_number(one.test)]),
        ]
        for one in summary.protocols
    ]
    folds = ", ".join(f"{name} {score:.3f}" for name, score in winner.folds.items())
    tables: list[Table] = [(title, header, protocols)]
    words = f"trial {winner.number}: {in_words(winner.settings)}"
    again = f" (means of {summary.asked.confirm[1]} new seeds, which chose it)" if summary.confirmed else ""
    words += f"\nfolds, {metric}: {folds}{again}" if folds else ""
    words += f"\nexported: {composition(summary.model)}"
    tables.append((words, *_finals(summary)))
    if test is not None and verbose:
        rows = [[name, _number(value)] for name, value in test.recall.items()]
        tables.append(("", ["type", "recall of the ensemble, held out"], rows))
    return tables


def _finals(summary: Summary) -> tuple[list[str], list[list[str]]]:
    final, seeds = summary.final, len(summary.final.seeds)
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    place = "training cells set aside of their twins" if final.test is None else "cells held out"
    spreads = [(final.test or final.validation).of(name) for name in names]
    header = [f"{seeds} seeds on {place}", *(METRIC[name] for name in names)]
    rows = [
        ["mean ± standard deviation", *map(str, spreads)],
        [f"seed whose twin validated best ({final.picked_seed})", *(_number(one.picked) for one in spreads)],
        ["ensemble", *(_number(one.ensemble) for one in spreads)],
    ]
    if final.test is not None:
        rows.append([f"best of {seeds} (oracle: by test labels)", *(_number(one.best_oracle) for one in spreads)])
    if (exported := summary.exported_test) is not None:
        rows.append(["the model exported", *(_number(exported.of(name)) for name in names)])
    return header, rows


def composition(model: ExportedModel) -> str:
    """What the exported model is, in words: of which trials, and whether it corrects."""
    if not model.parts:  # of an earlier version
        return f"{count(model.models, 'model')} of the winner"
    if len(model.parts) == 1 and model.kind == "single":
        return f"a model of trial {model.parts[0].trial}"
    several = len(model.parts) > 1
    trials = [
        f"{part.trial} ({part.models})" if several and part.models > 1 else str(part.trial) for part in model.parts
    ]
    said = f"{count(model.models, 'model')} of {'trials' if several else 'trial'} {', '.join(trials)}"
    return said + (", corrected for the query" if model.corrects else "")


def _best_of_ten(summary: OracleSummary) -> Table:
    title = (
        f"{summary.study}: {summary.method}, {len(summary.runs)} trainings with random margin and lambda, on "
        f"{listed(summary.data.test_batches)}. The best is chosen by the test labels: an oracle's number"
    )
    header = ["seed", "margin", "lambda", "accuracy", "macro-F1", ""]
    rows = [
        [
            str(run.seed),
            _short(run.margin),
            _short(run.lambda_max),
            _number(run.accuracy),
            _number(run.macro_f1),
            "best" if run == summary.best_oracle else "",
        ]
        for run in summary.runs
    ]
    return title, header, rows


def compare_table(summaries: Sequence[AnySummary]) -> Table:
    """Studies side by side, a star beside the one that is chosen."""
    header = ["study", "method", "trials", "model", "on test", "winner", "on test"]
    rows = []
    chosen = chosen_of(summaries)
    for summary in summaries:
        method = summary.method + (" (transductive)" if summary.transductive else "")
        if isinstance(summary, OracleSummary):
            best = _number(summary.best_oracle.accuracy)
            rows.append([summary.study, method, "", "", "", summary.protocol, f"{best} (oracle)"])
            continue
        test = None if summary.final.test is None else summary.final.test.of(summary.metric)
        rows.append(
            [
                summary.study,
                method,
                str(sum(summary.trials.values())),
                _number(summary.model.score) + (f" {STAR}" if summary is chosen and len(summaries) > 1 else ""),
                "" if summary.exported_test is None else _number(summary.exported_test.of(summary.metric)),
                _number(summary.winner.score),
                "" if test is None else str(test),
            ]
        )
    metrics = sorted({METRIC[summary.metric] for summary in summaries})
    selections = sorted({summary.selection for summary in searches_of(summaries)})
    title = f"{', '.join(metrics)} of the model exported and of one seed of the winner"
    title += f", each by {', '.join(selections)} and on the test cells" if selections else ""
    return title, header, rows


def spread(summaries: Sequence[AnySummary]) -> list[str]:
    """Mean and standard deviation over studies of one method: over repeats of a search, or over batches held out."""
    lines = []
    for method in sorted({summary.method for summary in summaries}):
        same = [one for one in searches_of(summaries) if one.method == method]
        if len(same) < 2:
            continue
        parts = {METRIC[same[0].metric]: [one.winner.score for one in same]}
        tests = [one.final.test.of(one.metric).mean for one in same if one.final.test is not None]
        if len(tests) == len(same):
            parts["on the test batch"] = tests
        words = [f"{name} {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for name, values in parts.items()]
        lines.append(f"{method}, {len(same)} studies (mean ± standard deviation): {', '.join(words)}")
    return lines


def warnings_of(summaries: Sequence[AnySummary]) -> list[str]:
    """Why studies side by side may not be comparable."""

    def traits(summary: AnySummary) -> dict[str, object]:
        search = summary if isinstance(summary, Summary) else None
        return {
            "their training cells differ": summary.data.fingerprint,
            "their test cells differ": summary.data.test_fingerprint,
            "their winners were selected by different protocols": search.selection if search else summary.protocol,
            "they maximise different scores": search.metric if search else None,
            "some saw the cells they are tested on (transductive), others did not": summary.transductive,
            "their budgets differ": sum(search.trials.values()) if search else 0,
        }

    each = [traits(summary) for summary in summaries]
    return [words for words in each[0] if len({found[words] for found in each}) > 1] if each else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

"""What MLflow says of a study: of the study itself, of its trials and of its final seeds.

Pure functions of what the study folder holds; `scdgn.search.tracking.runs` writes what they give.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from scdgn.core.config import Settings
from scdgn.errors import listed
from scdgn.model.evaluate import REPORTED
from scdgn.search.choices import Metric
from scdgn.search.credentials import without_password
from scdgn.search.records import RUNGS, TrialRecord
from scdgn.search.shown.overview import in_words
from scdgn.search.shown.verdict import NAMES, verdict
from scdgn.search.study.documents import to_document
from scdgn.search.study.settings import CONTINUABLE, StudySettings
from scdgn.search.study.space import Fixed, Space, is_drawn
from scdgn.search.summary import AnySummary, OracleSummary, Summary

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

STUDY, STUDY_ID, KIND = "scdgn.study", "scdgn.study_id", "scdgn.kind"
"""Tags that a run is found by; with `number` (of the trial) and `seed` they make it unique."""

PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
"""Tags of MLflow's own: the run that a run lies under, and the description that its page begins with."""

CONFIRMED = "confirmed_score"
"""Metric of the trials that were scored again with other seeds: what chose the winner."""

MOST_FOLDS = 7
"""Folds whose scores are metrics of a trial, which has eight others; of more the table alone tells."""

State = Literal["running", "stopped", "finished"]

# A pruned trial was ended from outside: what is filtered by FINISHED has trained to its end and compares.
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}

_STUDY_STATUS = {"running": "RUNNING", "stopped": "KILLED", "finished": "FINISHED"}

_COUNTS = {"complete": "trials_complete", "pruned": "trials_pruned", "fail": "trials_failed"}

_ORIGINS = {
    "": "drawn by the sampler",
    "preset": "the default preset",
    "portfolio": "settings that did well on other data",
    "published": "the published sizes, margin and lambda",
    "reference": "the published training as a whole",
    "enqueued": "settings that were asked for",
}
_ENDS = {"complete": "trained to its end", "pruned": "pruned", "fail": "failed"}


@dataclass(frozen=True)
class Point:
    """A value of a metric; the time is in seconds since 1970."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True)
class Content:
    """What a run should hold. Times come from the study, so that writing twice adds nothing."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[Point]
    start: float
    end: float
    status: str


@dataclass(frozen=True, eq=False)
class Facts:
    """What holds for all runs of a study.

    Attributes
    ----------
    settings, space
        What was asked, and what is searched.
    record
        The rest of study.toml.
    tags
        Of each of its runs.
    """

    settings: StudySettings
    space: Space
    record: Mapping[str, Any]
    tags: Mapping[str, str]


def study_content(
    facts: Facts,
    finished: Sequence[TrialRecord],
    summary: AnySummary | None,
    done: float,
    state: State,
    counted: int,
) -> Content:
    """The run of the study: what was asked, how far it is, and what came out.

    Parameters
    ----------
    finished
        The trials that have ended, in the order of their ends.
    summary, done
        What came out and when, once there is something.
    counted
        Trials of which the store has the progress already.
    """
    record = facts.record
    lasting, changing = _flat_settings(facts.settings)
    created = datetime.fromisoformat(record["created"]).timestamp()
    points = _progress(finished, counted)
    end = max([created, *(trial.ended for trial in finished)])
    if summary is not None:
        end = done
        points += [Point(key, value, len(finished), end) for key, value in _results(summary).items()]
    tags = {
        **facts.tags,
        **changing,
        KIND: "study",
        NOTE: _describe_study(facts.settings.method, summary),
        "state": state,
        "transductive": text(facts.settings.source.adapt if summary is None else summary.transductive),
        "fingerprint": record["fingerprint"]["training"],
        "machine": record["machine"],
        "mlflow.source.git.commit": record["git"],
        **{f"version.{name}": version for name, version in record["versions"].items()},
    }
    if isinstance(summary, Summary):
        tags["winner.number"] = winner_of(summary)
        winner = summary.winner.settings
        tags |= {f"winner.{name}": text(winner[name]) for name in _searched(facts.space) if name in winner}
    return Content(facts.settings.name, tags, lasting, points, created, end, _STUDY_STATUS[state])


def trial_content(facts: Facts, record: TrialRecord, parent: str) -> Content:
    """A trial's run: the settings in which trials differ, its scores by fold, and curves by epoch."""
    tags = {
        **facts.tags,
        KIND: "trial",
        NOTE: _describe_trial(record),
        PARENT: parent,
        "number": str(record.number),
        "state": record.state,
        "origin": record.origin,
        "reason": record.reason,
        "pruned_at_step": str(max(record.steps)) if record.state == "pruned" and record.steps else "",
        "transductive": text(_is_transductive(record.settings)),
    }
    return Content(
        f"{facts.settings.name} #{record.number}",
        tags,
        {key: text(value) for key, value in varied(record.settings, facts.space).items()},
        [
            Point(key, float(value), epoch, record.ended)
            for key, value, epoch in _trial_points(record, facts.settings.metric)
            if math.isfinite(value)
        ],
        record.started or record.ended,
        record.ended,
        STATUS[record.state],
    )


def _trial_points(record: TrialRecord, metric: Metric) -> Iterator[tuple[str, float, int]]:
    """Metrics of a trial with their epochs."""
    # Of rungs that one epoch reaches, as in short trainings, the score is the same.
    by_epoch = {-(-step * record.settings["epochs"] // RUNGS): value for step, value in record.steps.items()}
    for epoch, value in by_epoch.items():
        yield "score", value, epoch
    for key, curve in record.curves.items():
        if key != "epoch":
            yield from ((key, value, int(epoch)) for epoch, value in zip(record.curves["epoch"], curve, strict=True))
    scores = {"epoch": float(record.epoch), "seconds": record.seconds}
    if len(record.folds) <= MOST_FOLDS:
        scores |= {f"fold/{name}": getattr(record.folds[fold], metric) for fold, name in names(record.folds).items()}
    if record.training_domain is not None:
        scores["training_domain"] = getattr(record.training_domain, metric)
    yield from ((key, value, record.epoch) for key, value in scores.items())


def varied(settings: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The settings in which trials of a study differ: those that this one draws, and its departures from the others."""
    fixed = {name: one.value for name, one in space.dimensions().items() if isinstance(one, Fixed)}
    constants = {**space.base.to_mapping(), **asdict(space.preprocess), **fixed}
    searched = _searched(space)
    return {
        name: value
        for name, value in settings.items()
        if (is_drawn(name, settings) if name in searched else constants.get(name, value) != value)
    }


def _searched(space: Space) -> list[str]:
    """The settings that some trial draws."""
    return [name for name, dimension in space.dimensions().items() if not isinstance(dimension, Fixed)]


def final_contents(facts: Facts, summary: AnySummary, done: float, parent: str) -> Iterator[tuple[str, Content]]:
    """The runs of the final seeds, by seed, under the winner's run; under the study's where the protocol has no winner.

    Of a study of which came out `summary`, when it was `done`; `parent` is the id of the run above.
    """
    winner = winner_of(summary)
    # All seeds train as one pack. A summary of an earlier version does not tell when.
    start, end = summary.trained or (done, done)
    for seed, params, scores, own in _final_seeds(summary, facts.space):
        tags = {
            **facts.tags,
            KIND: "final",
            NOTE: f"The settings of trial {winner}, trained again with seed {seed}." if winner else "",
            PARENT: parent,
            "number": winner,
            "seed": str(seed),
            "state": "complete",
            "transductive": text(summary.transductive),
            **own,
        }
        name = f"{facts.settings.name}{f' #{winner}' if winner else ''} seed {seed}"
        points = [Point(key, value, 0, end) for key, value in scores.items()]
        yield str(seed), Content(name, tags, params, points, start, end, "FINISHED")


def _final_seeds(
    summary: AnySummary, space: Space
) -> Iterator[tuple[int, Mapping[str, str], Mapping[str, float], Mapping[str, str]]]:
    """Seed, parameters, scores and tags of each of the final trainings, as the summary has it."""
    if isinstance(summary, Summary):
        final = summary.final
        settings = {key: text(value) for key, value in varied(summary.winner.settings, space).items()}
        scores = {
            f"{part}/{metric}": found.of(metric).by_seed for part, found in final.parts.items() for metric in REPORTED
        }
        for place, seed in enumerate(final.seeds):
            own = {key: by_seed[place] for key, by_seed in scores.items()}
            yield seed, {**settings, "seed": str(seed)}, own, {"picked": text(seed == final.picked_seed)}
        return
    for run in summary.runs:
        params = {key: text(value) for key, value in vars(run).items() if key not in REPORTED}
        tags = {"best_oracle": text(run == summary.best_oracle)}
        yield run.seed, params, {f"test/{key}": run.of(key) for key in REPORTED}, tags


def winner_of(summary: AnySummary) -> str:
    """Number of the winning trial; empty under the protocol that has none."""
    return str(summary.winner.number) if isinstance(summary, Summary) else ""


def _progress(finished: Sequence[TrialRecord], counted: int) -> list[Point]:
    """How many trials have ended and the best score so far, after every trial but the first `counted` ones."""
    values: dict[str, float] = {}
    points = []
    for place, record in enumerate(finished, start=1):
        before = dict(values)
        values[_COUNTS[record.state]] = values.get(_COUNTS[record.state], 0) + 1
        if record.state == "complete" and record.value is not None:
            values["best_score"] = max(values.get("best_score", -math.inf), record.value)
        changed = values.items() - before.items()
        points += [Point(key, float(value), place, record.ended) for key, value in sorted(changed) if place > counted]
    return points


def counted(metrics: Mapping[str, float]) -> int:
    """Trials of which a study's run has the progress, by its metrics."""
    return sum(int(metrics.get(key, 0)) for key in _COUNTS.values())


def _results(summary: AnySummary) -> dict[str, float]:
    """The numbers of a summary as metrics of the study's run; what the test labels have chosen is named an oracle."""
    if isinstance(summary, OracleSummary):
        oracle = f"best_of_{len(summary.runs)}_oracle"
        means = {f"test/{key}_mean": summary.mean.of(key) for key in REPORTED}
        return means | {f"test/{key}_{oracle}": summary.best_oracle.of(key) for key in REPORTED}
    oracle = f"best_of_{len(summary.final.seeds)}_oracle"
    results: dict[str, float | None] = {"winner_score": summary.winner.score, **exported_results(summary)}
    kinds = {"mean": "mean", "std": "std", "picked": "picked", "ensemble": "ensemble", "best_oracle": oracle}
    for part, found in summary.final.parts.items():
        for metric in REPORTED:
            results |= {f"{part}/{metric}_{name}": getattr(found.of(metric), kind) for kind, name in kinds.items()}
    return {key: value for key, value in results.items() if value is not None}


def exported_results(summary: Summary) -> dict[str, float]:
    """Those of them that are the exported model's."""
    exported = summary.exported_test
    tested = {} if exported is None else {f"test/{key}_exported": exported.of(key) for key in REPORTED}
    return {"exported_score": summary.exported_score, **tested}


def selected_by(settings: StudySettings, record: Mapping[str, Any], summary: AnySummary | None) -> dict[str, str]:
    """Tags that tell how the winner is chosen, and which batches are held out, where nobody has said so."""
    selection = "" if isinstance(summary, OracleSummary) else (summary or settings).selection
    return {"selection": selection, "held_out": "+".join(sorted(record["test_batches"]))}


def _flat_settings(settings: StudySettings) -> tuple[dict[str, str], dict[str, str]]:
    """A study's settings, as `table.key`: those that stay, for parameters; and those that may change, for tags.

    MLflow refuses to change a parameter.
    """
    lasting: dict[str, str] = {}
    changing: dict[str, str] = {}
    for table, values in to_document(settings).items():
        for key, value in values.items():
            may_change = key in CONTINUABLE or (table == "data" and key in ("data", "path"))
            (changing if may_change else lasting)[f"{table}.{_name(key)}"] = without_password(text(value))
    return lasting, changing


def _is_transductive(settings: Mapping[str, Any]) -> bool:
    known = {name: value for name, value in settings.items() if name in Settings.__dataclass_fields__}
    return bool(known) and Settings.from_mapping(known).uses_unlabeled


def _describe_study(method: str, summary: AnySummary | None) -> str:
    about = f"A study of {NAMES[method]}. Below it are its trials, and below the winner the final seeds."
    if not isinstance(summary, Summary):
        return about
    chosen = f"The winner, trial {summary.winner.number}: {in_words(summary.winner.settings)}."
    return "\n\n".join([" ".join(verdict([summary])), chosen, about])


def _describe_trial(record: TrialRecord) -> str:
    reason = f": {record.reason}" if record.reason else ""
    return f"Trial {record.number}, {_ORIGINS.get(record.origin, record.origin)}; {_ENDS[record.state]}{reason}."


def datasets(settings: StudySettings, record: Mapping[str, Any]) -> list[DatasetInput]:
    """The training cells, and test cells if there are any, as MLflow has data sets: their place and fingerprint."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = settings.source
    if files := source.files:
        name = listed([file.stem for file in files], 1)
        where = os.path.commonpath([file.absolute() for file in files])  # of several, the folder
        place = get_dataset_source_from_json(json.dumps({"uri": where}), "local")
    else:
        name = str(source.dataset)
        place = CodeDatasetSource(tags={"dataset": name})
    fingerprint = record["fingerprint"]
    wanted = [("training", name, fingerprint["training"])]
    if record["test_batches"]:
        wanted.append(("test", f"{name}, {'+'.join(sorted(record['test_batches']))}"[:500], fingerprint["test"]))
    return [
        DatasetInput(
            MetaDataset(place, title, digest[:16])._to_mlflow_entity(),  # type: ignore[abstract]  # it is not
            [InputTag("mlflow.data.context", context)],
        )
        for context, title, digest in wanted
    ]


def maker() -> dict[str, str]:
    """Who makes a run or a model, and by what: tags of MLflow's own."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "scdgn search"}
    with suppress(OSError, KeyError):  # of a container, whose user has no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def names(wanted: Iterable[str]) -> dict[str, str]:
    """A name for a metric for each, no two the same."""
    found: dict[str, str] = {}
    for one in wanted:
        name = _name(one)
        while name in found.values():
            name += "_"
        found[one] = name
    return found


def _name(wanted: str) -> str:
    """MLflow allows a few signs in a metric's name, a slash separating its parts; Windows no colon."""
    return re.sub(r"[^\w.\- ]", "_", wanted)[:80].strip(". ") or "_"


def text(value: object) -> str:
    """A value as a parameter or a tag."""
    return value if isinstance(value, str) else json.dumps(value, default=str)

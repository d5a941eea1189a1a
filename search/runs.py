"""The runs of a study in MLflow: a projection of the study folder.

What the store lacks of it is found by tags and written; what is there stays as it is. A study is a run, a trial a child
of it, a final seed a child of the winner's run. A run gets its final status last, so that one cut off half-way is known
by its status, and completed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from scdgn.config import Settings
from scdgn.evaluate import REPORTED
from search.credentials import without_password
from search.folder import StudyFolder
from search.overview import exported_score, exported_test
from search.records import FINISHED, TrialRecord
from search.settings import CONTINUABLE, StudySettings, from_document, to_document
from search.store import Store, connect, find_runs

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


STUDY, STUDY_ID, KIND = "scdgn.study", "scdgn.study_id", "scdgn.kind"
"""Tags that a run is found by; with `number` (of the trial) and `seed` they make it unique."""


State = Literal["running", "stopped", "finished"]


# A pruned trial was ended from outside: what is filtered by FINISHED has trained to its end and compares.
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}


_STUDY_STATUS = {"running": "RUNNING", "stopped": "KILLED", "finished": "FINISHED"}


Key = tuple[str, str, str]
"""Kind, number and seed of a run of a study."""


_PARENT: Key = ("study", "", "")


_PARENT_TAG = "mlflow.parentRunId"


_FILES_TAG = "scdgn.files"


_COUNTS = {"complete": "trials_complete", "pruned": "trials_pruned", "fail": "trials_failed"}


@dataclass(frozen=True)
class Synced:
    """What `sync` did.

    Attributes
    ----------
    trials, finals
        Runs of trials and of final seeds that were written.
    present
        Runs of either that were there already.
    """

    trials: int = 0
    finals: int = 0
    present: int = 0

    def __str__(self) -> str:
        return f"{self.trials} trials and {self.finals} final seeds written; {self.present} were there"


class Runs:
    """The runs of one study: those in the store, and writing what is missing.

    Raises what MLflow, the database and the network raise; it is then not to be used again.
    """

    def __init__(self, store: Store, folder: StudyFolder, facts: Mapping[str, str] | None = None) -> None:
        document = folder.read_settings()
        self._settings = from_document(document)
        self._record: Mapping[str, Any] = document["record"]
        self._folder = folder
        self._facts = facts
        self._client, self._experiment = connect(store)
        self._known: dict[Key, _Known] = {}
        runs = find_runs(self._client, self._experiment, {STUDY_ID: self._record["id"]})
        for run in sorted(runs, key=lambda run: bool(run.info.status == "RUNNING")):
            tags, found = run.data.tags, _Known(run.info.run_id, run.info.status)
            if self._known.setdefault((tags[KIND], tags.get("number", ""), tags.get("seed", "")), found) is not found:
                self._client.delete_run(found.id)  # of a request that was repeated because its answer was lost
            found.tags, found.params, found.metrics = dict(tags), dict(run.data.params), dict(run.data.metrics)
            found.datasets = len(run.inputs.dataset_inputs) if run.inputs else 0

    @property
    def parent(self) -> str:
        """Id of the study's run."""
        return self._known[_PARENT].id

    def write(self, records: Iterable[TrialRecord], summary: Mapping[str, Any] | None, state: State) -> Synced:
        """Write what is missing of the study, its trials and its final seeds."""
        finished = sorted(
            (record for record in records if record.state in FINISHED), key=lambda record: (record.ended, record.number)
        )
        common = {
            STUDY: self._settings.name,
            STUDY_ID: self._record["id"],
            "method": self._settings.method,
            "protocol": self._settings.protocol,
            **(self._facts or _facts(self._settings, self._record, summary)),
        }
        study = self._study(finished, summary, state, common)
        self._put(_PARENT, study, settle=False)
        self._put_dataset()
        trials = finals = present = 0
        for record in finished:
            if self._is_there(record):
                present += 1
            else:
                trials += self._put(("trial", str(record.number), ""), _trial(record, common, self.parent))
        if summary is not None:
            for key, final in self._finals(summary, common):
                changed = self._put(key, final)
                finals, present = finals + changed, present + (not changed)
            self._mark(_winner(summary))
        self._put_files()
        self._put(_PARENT, study)
        return Synced(trials, finals, present)

    def _study(
        self,
        finished: Sequence[TrialRecord],
        summary: Mapping[str, Any] | None,
        state: State,
        common: Mapping[str, str],
    ) -> _Content:
        lasting, changing = _flat_settings(self._settings)
        transductive = self._settings.source.adapt if summary is None else summary["transductive"]
        created = datetime.fromisoformat(self._record["created"]).timestamp()
        parent = self._known.get(_PARENT)
        counted = 0 if parent is None else sum(int(parent.metrics.get(key, 0)) for key in _COUNTS.values())
        points = _progress(finished, counted)
        end = max([created, *(record.ended for record in finished)])
        if summary is not None:
            end = self._summary_time()
            results = _results(summary)
            points += [_Point(key, value, len(finished), end) for key, value in results.items()]
        tags = {
            **common,
            **changing,
            KIND: "study",
            "state": state,
            "transductive": _text(transductive),
            "fingerprint": self._record["fingerprint"]["training"],
            "machine": self._record["machine"],
            "mlflow.source.git.commit": self._record["git"],
            **{f"version.{name}": version for name, version in self._record["versions"].items()},
        }
        return _Content(self._settings.name, tags, lasting, points, created, end, _STUDY_STATUS[state])

    def _finals(self, summary: Mapping[str, Any], common: Mapping[str, str]) -> Iterator[tuple[Key, _Content]]:
        """The runs of the final seeds, under the winner's; under the study's where the protocol has no winner."""
        winner, moment = _winner(summary), self._summary_time()
        parent = self._known["trial", winner, ""].id if winner else self.parent
        for final in _final_seeds(summary):
            tags = {
                **common,
                KIND: "final",
                _PARENT_TAG: parent,
                "number": winner,
                "seed": final.seed,
                "state": "complete",
                "transductive": _text(summary["transductive"]),
                **final.tags,
            }
            name = f"{common[STUDY]}{f' #{winner}' if winner else ''} seed {final.seed}"
            points = [_Point(key, value, 0, moment) for key, value in final.scores.items()]
            yield ("final", winner, final.seed), _Content(name, tags, final.params, points, moment, moment, "FINISHED")

    def _is_there(self, record: TrialRecord) -> bool:
        """Whether the trial's run is complete; a trial that has ended does not change any more."""
        known = self._known.get(("trial", str(record.number), ""))
        return (
            known is not None and known.status == _STATUS[record.state] and known.tags.get(_PARENT_TAG) == self.parent
        )

    def _put(self, key: Key, content: _Content, settle: bool = True) -> bool:
        """Make a run hold the content, and give it its status if it is to `settle`; False if it had all of that."""
        from mlflow.entities import Metric, Param, RunTag

        tags = {name: value for name, value in content.tags.items() if value}
        known = self._known.get(key)
        changed = known is None
        if known is None:
            run = self._client.create_run(self._experiment, _milliseconds(content.start), tags, content.name)
            known = self._known[key] = _Known(run.info.run_id, "RUNNING", dict(tags))
        latest = {point.key: point.value for point in content.points}
        metrics = [
            Metric(point.key, point.value, _milliseconds(point.time), point.step)
            for point in content.points
            if known.metrics.get(point.key) != latest[point.key]
        ]
        params = {name: value for name, value in content.params.items() if name not in known.params}
        tags = {name: value for name, value in tags.items() if known.tags.get(name) != value}
        if metrics or params or tags:
            self._client.log_batch(
                known.id, metrics, [Param(*item) for item in params.items()], [RunTag(*item) for item in tags.items()]
            )
            known.metrics.update(latest)
            known.params.update(params)
            known.tags.update(tags)
            changed = True
        if settle and known.status != content.status:
            if content.status == "RUNNING":
                self._client.update_run(known.id, content.status)
            else:
                self._client.set_terminated(known.id, content.status, _milliseconds(content.end))
            known.status = content.status
            changed = True
        return changed

    def _put_dataset(self) -> None:
        known = self._known[_PARENT]
        if not known.datasets:
            self._client.log_inputs(known.id, [_dataset(self._settings, self._record["fingerprint"]["training"])])
            known.datasets = 1

    def _put_files(self) -> None:
        """Upload the files of the folder that say what the study is and what came out, if they have changed."""
        paths = [
            path for path in (self._folder.settings, self._folder.summary, self._folder.finalists) if path.exists()
        ]
        texts = {path.name: without_password(path.read_text(encoding="utf-8")) for path in paths}
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        known = self._known[_PARENT]
        if known.tags.get(_FILES_TAG) != digest:
            for name, text in texts.items():
                self._client.log_text(known.id, text, name)
            self._client.set_tag(known.id, _FILES_TAG, digest)
            known.tags[_FILES_TAG] = digest

    def _mark(self, winner: str) -> None:
        """Let the winner be found by a tag; a study that went on may have another one than before."""
        for (kind, number, _), known in self._known.items():
            if kind == "trial" and (number == winner or "winner" in known.tags):
                value = _text(number == winner)
                if known.tags.get("winner") != value:
                    self._client.set_tag(known.id, "winner", value)
                    known.tags["winner"] = value

    def _summary_time(self) -> float:
        return self._folder.summary.stat().st_mtime


@dataclass(frozen=True)
class _Point:
    """A value of a metric; the time is in seconds since 1970."""

    key: str
    value: float
    step: int
    time: float


@dataclass(frozen=True)
class _Content:
    """What a run should hold. Times come from the study, so that writing twice adds nothing."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[_Point]
    start: float
    end: float
    status: str


@dataclass
class _Known:
    """What is known of a run in the store; of a metric, its latest value."""

    id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    datasets: int = 0


def _trial(record: TrialRecord, common: Mapping[str, str], parent: str) -> _Content:
    """A trial's run: settings, scores by rung and fold, curves by epoch."""
    scores = {"epoch": float(record.epoch), "seconds": record.seconds}
    units = {f"fold/{name}": record.folds[fold] for fold, name in metric_names(record.folds).items()}
    if record.training_domain is not None:
        units["training_domain"] = record.training_domain
    for unit, scored in units.items():
        scores |= {f"{unit}/{key}": getattr(scored, key) for key in ("macro_f1", "accuracy", "balanced_accuracy")}
        scores |= {f"{unit}/recall/{name}": scored.recall[type_] for type_, name in metric_names(scored.recall).items()}
    points = [("score", value, step) for step, value in record.steps.items()]
    points += [(key, value, record.epoch) for key, value in scores.items()]
    epochs = record.curves.get("epoch", ())
    points += [
        (key, value, int(epoch))
        for key, curve in record.curves.items()
        if key != "epoch"
        for epoch, value in zip(epochs, curve, strict=True)
    ]
    tags = {
        **common,
        KIND: "trial",
        _PARENT_TAG: parent,
        "number": str(record.number),
        "state": record.state,
        "origin": record.origin,
        "reason": record.reason,
        "pruned_at_step": str(max(record.steps)) if record.state == "pruned" and record.steps else "",
        "transductive": _text(_is_transductive(record.settings)),
    }
    return _Content(
        f"{common[STUDY]} #{record.number}",
        tags,
        {key: _text(value) for key, value in record.settings.items()},
        [_Point(key, float(value), step, record.ended) for key, value, step in points if math.isfinite(value)],
        record.started or record.ended,
        record.ended,
        _STATUS[record.state],
    )


@dataclass(frozen=True)
class _FinalSeed:
    """One of the final trainings, as the summary has it."""

    seed: str
    params: Mapping[str, str]
    scores: Mapping[str, float]
    tags: Mapping[str, str]


def _final_seeds(summary: Mapping[str, Any]) -> list[_FinalSeed]:
    if "final" in summary:
        final = summary["final"]
        settings = {key: _text(value) for key, value in summary["winner"]["settings"].items()}
        scores = {
            f"{part}/{metric}": score["by_seed"]
            for part in ("validation", "test")
            for metric, score in final.get(part, {}).items()
            if metric in REPORTED
        }
        return [
            _FinalSeed(
                str(seed),
                {**settings, "seed": str(seed)},
                {key: by_seed[place] for key, by_seed in scores.items()},
                {"picked": _text(seed == final["picked_seed"])},
            )
            for place, seed in enumerate(final["seeds"])
        ]
    return [
        _FinalSeed(
            str(run["seed"]),
            {key: _text(value) for key, value in run.items() if key not in REPORTED},
            {f"test/{key}": run[key] for key in REPORTED},
            {"best_oracle": _text(run == summary["best_oracle"])},
        )
        for run in summary["runs"]
    ]


def _winner(summary: Mapping[str, Any]) -> str:
    """Number of the winning trial; empty under the protocol that has none."""
    return str(summary["winner"]["number"]) if "winner" in summary else ""


def _progress(finished: Sequence[TrialRecord], counted: int) -> list[_Point]:
    """How many trials have ended and the best score so far, after every trial but the first `counted` ones."""
    values: dict[str, float] = {}
    points = []
    for place, record in enumerate(finished, start=1):
        before = dict(values)
        values[_COUNTS[record.state]] = values.get(_COUNTS[record.state], 0) + 1
        if record.state == "complete" and record.value is not None:
            values["best_score"] = max(values.get("best_score", -math.inf), record.value)
        changed = values.items() - before.items()
        points += [_Point(key, float(value), place, record.ended) for key, value in sorted(changed) if place > counted]
    return points


def _results(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary as metrics of the study's run; what the test labels have chosen is named an oracle."""
    oracle = f"best_of_{len(_final_seeds(summary))}_oracle"
    if "final" not in summary:
        means = {f"test/{key}_mean": summary["mean"][key] for key in REPORTED}
        return means | {f"test/{key}_{oracle}": summary["best_oracle"][key] for key in REPORTED}
    results: dict[str, float | None] = {"winner_score": summary["winner"]["score"]}
    results["exported_score"] = exported_score(summary)
    results |= {f"test/{key}_exported": value for key, value in (exported_test(summary) or {}).items()}
    kinds = {"mean": "mean", "std": "std", "picked": "picked", "ensemble": "ensemble", "best_oracle": oracle}
    for part in ("validation", "test"):
        scores = summary["final"].get(part, {})
        for metric in REPORTED:
            found = scores.get(metric, {})
            results |= {f"{part}/{metric}_{name}": found[kind] for kind, name in kinds.items() if kind in found}
        recall = scores.get("recall", {})
        results |= {f"{part}/recall/{name}": recall[type_] for type_, name in metric_names(recall).items()}
    return {key: value for key, value in results.items() if value is not None}


def _facts(settings: StudySettings, record: Mapping[str, Any], summary: Mapping[str, Any] | None) -> dict[str, str]:
    """What the tags of all runs of a study say and its settings do not."""
    selection = settings.selection if summary is None else summary.get("selection", "")
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
            (changing if may_change else lasting)[f"{table}.{_name(key)}"] = without_password(_text(value))
    return lasting, changing


def _is_transductive(settings: Mapping[str, Any]) -> bool:
    known = {name: value for name, value in settings.items() if name in Settings.__dataclass_fields__}
    return bool(known) and Settings.from_mapping(known).uses_unlabeled


def _dataset(settings: StudySettings, fingerprint: str) -> DatasetInput:
    """The training cells as MLflow has data sets: where they come from, and what identifies them."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = settings.source
    if source.data is not None:
        name = source.data.stem
        place = get_dataset_source_from_json(json.dumps({"uri": str(source.data.absolute())}), "local")
    else:
        name = str(source.dataset)
        place = CodeDatasetSource(tags={"dataset": name})
    dataset = MetaDataset(place, name, fingerprint[:16])  # type: ignore[abstract]  # it is not
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])


def metric_names(wanted: Iterable[str]) -> dict[str, str]:
    """A name for a metric for each, no two the same."""
    names: dict[str, str] = {}
    for one in wanted:
        name = _name(one)
        while name in names.values():
            name += "_"
        names[one] = name
    return names


def _name(wanted: str) -> str:
    """MLflow allows a few signs in a metric's name, a slash separating its parts; Windows no colon."""
    return re.sub(r"[^\w.\- ]", "_", wanted)[:80].strip(". ") or "_"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)

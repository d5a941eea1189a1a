"""MLflow: a projection of the study folder, written while the study runs or at any later time.

The folder is the only truth. What the store lacks of it is found by tags and written; what is there stays as it is. A
study is a run, a trial a child of it, a final seed a child of the winner's run. A run gets its final status last, so
that one cut off half-way is known by its status, and completed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scdgn.config import Settings
from scdgn.errors import ScdgnError
from scdgn.evaluate import REPORTED
from search.folder import StudyFolder, owned
from search.records import FINISHED, TrialRecord
from search.settings import CONTINUABLE, StudySettings, from_document, to_document
from search.study import read_records
from search.watching import Begun, Watcher

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from scdgn.data import Dataset

ENVIRONMENT = "mlflow.env"
"""Name of the file that says where to track."""

STUDY, STUDY_ID, KIND = "scdgn.study", "scdgn.study_id", "scdgn.kind"
"""Tags that a run is found by; with `number` (of the trial) and `seed` they make it unique."""

State = Literal["running", "stopped", "finished"]

# A pruned trial was ended from outside: what is filtered by FINISHED has trained to its end and compares.
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
_STUDY_STATUS = {"running": "RUNNING", "stopped": "KILLED", "finished": "FINISHED"}

PATIENCE = 15.0
"""Seconds that a search waits, when it ends, for what is left to be written."""

PAUSE = 30.0
"""Seconds after a failure before the store is tried again."""

Key = tuple[str, str, str]
"""Kind, number and seed of a run of a study."""


class TrackingError(ScdgnError):
    """The MLflow store cannot be reached, or is not configured well."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    Attributes
    ----------
    uri
        Of the tracking store: a database, or an MLflow server.
    experiment
        That all studies lie in.
    artifacts
        Where the experiment's files go; None leaves it to the server.
    """

    uri: str
    experiment: str
    artifacts: str | None

    @property
    def is_server(self) -> bool:
        """Whether a server stands between scdgn and the runs."""
        return self.uri.startswith(("http://", "https://"))


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


# What `configure` has put into the environment: not the user's words, and to be replaced the next time.
_applied: dict[str, str] = {}


def configure(studies: Path) -> Store:
    """Find out where to track, and set MLflow's environment variables accordingly.

    The environment wins over mlflow.env in the working directory, and that over the one that scdgn brings along.

    Parameters
    ----------
    studies
        Folder of all studies, beside which runs are kept by default.

    Raises
    ------
    TrackingError
        If a file cannot be read.
    """
    for key, value in _applied.items():
        if os.environ.get(key) == value:
            del os.environ[key]
    _applied.clear()
    os.environ["SCDGN_STUDIES"] = str(studies.absolute())  # that the files refer to
    values = _read_environment(Path(__file__).with_name(ENVIRONMENT))
    if Path(ENVIRONMENT).exists():
        values |= _read_environment(Path(ENVIRONMENT))
    for key, value in values.items():
        if key not in os.environ:
            os.environ[key] = _applied[key] = value
    root = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    store = Store(
        os.environ["MLFLOW_TRACKING_URI"],
        os.environ["MLFLOW_EXPERIMENT_NAME"],
        root if "://" in root else str(Path(root).absolute()),
    )
    return Store(store.uri, store.experiment, None) if store.is_server else store


def sync(folder: StudyFolder) -> Synced:
    """Write to the store what it lacks of a study that nobody runs.

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    LeaseError
        If the study is being run: its own process tracks it.
    DataError
        If there is no study.
    """
    settings = from_document(folder.read_settings())
    store = configure(_studies(folder, settings.name))  # before MLflow is imported
    with owned(folder), _reaching(store):
        records = read_records(folder, settings)
        summary = folder.read_summary()
        finished = sum(record.state in FINISHED for record in records)
        done = summary is not None and summary.get("asked", {}).get("finished", 0) == finished
        return _Runs(store, folder).write(records, summary, "finished" if done else "stopped")


def find_parent_run(folder: StudyFolder) -> str | None:
    """The id of a study's run in the store; None if it is not tracked (yet).

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    """
    document = folder.read_settings()
    store = configure(_studies(folder, document["study"]["name"]))
    with _reaching(store):
        client, experiment = _connect(store)
        tags = {STUDY_ID: document["record"]["id"], KIND: "study"}
        return next((str(run.info.run_id) for run in _search(client, experiment, tags)), None)


def ui(studies: Path, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Run MLflow's user interface until it is stopped; its exit status.

    Raises
    ------
    TrackingError
        If runs are kept by a server, which has its own.
    """
    store = configure(studies)
    if store.is_server:
        raise TrackingError(
            f"studies are tracked by the server {_without_password(store.uri)}: open that address in a browser"
        )
    words = ["ui", "--backend-store-uri", store.uri, "--host", host, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "mlflow", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the terminal sent to it as well
        return process.wait()


class Tracker(Watcher):
    """Writes a study to the store while it runs, in a thread of its own.

    Nothing that happens to the store reaches the search. What cannot be written is tried again when a later trial ends.

    Parameters
    ----------
    say
        Given one sentence when the store cannot be written to, and one at the end if it still lacks something.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._folder: StudyFolder | None = None
        self._facts: Mapping[str, str] | None = None
        self._records: dict[int, TrialRecord] = {}
        self._summary: Mapping[str, Any] | None = None
        self._state: State = "running"
        self._runs: _Runs | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracking")
        # What changes the above raises the version; the other is the one that the store has.
        self._version = self._written = 0
        self._busy = self._closing = self._told = False
        self._next_try = 0.0

    def begun(self, study: Begun) -> None:
        """Start to track a study: a tracker is for one."""
        self._start(study.folder)
        self._facts = {"selection": study.selection, "held_out": _held_out(study.cells.test)}
        self._records = {record.number: record for record in study.records}
        self._changed()

    def ended(self, record: TrialRecord) -> None:
        """Write the trial."""
        with self._change:
            self._records[record.number] = record
            self._changed()

    def done(self, folder: StudyFolder, summary: Mapping[str, Any]) -> None:
        """Write what came out, and wait for it if the store answers."""
        if self._folder is None:
            self._start(folder)
        with self._change:
            self._summary, self._state = summary, "finished"
            self._changed()
            self._change.wait_for(lambda: not self._busy and not self._is_due(), PATIENCE)

    def close(self) -> None:
        """Write what is left, trying once more if the store did not answer, and say if something could not be."""
        if self._folder is None or self._closing:
            return
        with self._change:
            if self._state == "running":
                self._state = "stopped"
                self._version += 1
            self._closing = True
            self._next_try = 0.0
            self._change.notify_all()
        self._thread.join(PATIENCE)
        if self._written < self._version:
            name = self._folder.read_settings()["study"]["name"]
            self._say(f"MLflow lacks a part of the study {name}: `scdgn sync {name}` writes it")

    def _start(self, folder: StudyFolder) -> None:
        self._folder = folder
        with suppress(ScdgnError):  # said by the thread, which meets it too
            configure(_studies(folder, folder.read_settings()["study"]["name"]))
        # Not in the thread: imports set filters of warnings, and those are one for all threads.
        import mlflow  # noqa: F401

        self._thread.start()

    def _changed(self) -> None:
        with self._change:
            self._version += 1
            self._change.notify_all()

    def _is_due(self) -> bool:
        """Whether something is to be written now."""
        return self._written < self._version and time.monotonic() >= self._next_try

    def _work(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closing or self._is_due())
                if not self._is_due():
                    return
                self._busy = True
                version, state, last = self._version, self._state, self._closing
                records, summary = list(self._records.values()), self._summary
            try:
                self._write(records, summary, state)
            except Exception as error:  # a search of hours must not end for what tracking raises, whatever it is
                self._failed(error, last)
            else:
                self._written = version

    def _write(self, records: Sequence[TrialRecord], summary: Mapping[str, Any] | None, state: State) -> None:
        assert self._folder is not None
        if self._runs is None:
            name = self._folder.read_settings()["study"]["name"]
            self._runs = _Runs(configure(_studies(self._folder, name)), self._folder, self._facts)
        if state != "running" and self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
            self._monitor = None
        self._runs.write(records, summary, state)
        if state == "running" and self._monitor is None:
            with suppress(Exception):  # a driver that does not tell is no reason to tell nothing else
                self._monitor = _monitor(self._runs.parent)

    def _failed(self, error: Exception, last: bool) -> None:
        self._runs = None  # how far it came is to be looked up again
        with self._change:
            if last:
                self._next_try = math.inf
            elif not self._closing:  # which wants another try at once
                self._next_try = time.monotonic() + PAUSE
        if not self._told:
            self._told = True
            reason = str(error) if isinstance(error, ScdgnError) else _reason(error)
            self._say(f"MLflow cannot be written to ({reason}): the search goes on, and its trials are written later")


def _monitor(run: str) -> SystemMetricsMonitor | None:
    """MLflow's own watch over GPU, processor and memory, where there is a GPU and what it takes to watch it."""
    from importlib.util import find_spec

    import torch

    if not torch.cuda.is_available() or find_spec("psutil") is None or find_spec("pynvml") is None:
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run, resume_logging=True, tracking_uri=os.environ["MLFLOW_TRACKING_URI"]
    )
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def _held_out(test: Dataset | None) -> str:
    return "" if test is None else "+".join(sorted({test.batch_names[code] for code in test.batches}))


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


class _Runs:
    """The runs of one study: those in the store, and writing what is missing.

    Raises what MLflow, the database and the network raise; it is then not to be used again.
    """

    def __init__(self, store: Store, folder: StudyFolder, facts: Mapping[str, str] | None = None) -> None:
        document = folder.read_settings()
        self._settings = from_document(document)
        self._record: Mapping[str, Any] = document["record"]
        self._folder = folder
        self._facts = facts
        self._client, self._experiment = _connect(store)
        self._known: dict[Key, _Known] = {}
        runs = _search(self._client, self._experiment, {STUDY_ID: self._record["id"]})
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
            **(self._facts or _facts(self._settings, summary)),
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
        texts = {path.name: _without_password(path.read_text(encoding="utf-8")) for path in paths}
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


_PARENT: Key = ("study", "", "")
_PARENT_TAG = "mlflow.parentRunId"
_FILES_TAG = "scdgn.files"
_COUNTS = {"complete": "trials_complete", "pruned": "trials_pruned", "fail": "trials_failed"}


def _trial(record: TrialRecord, common: Mapping[str, str], parent: str) -> _Content:
    """A trial's run: settings, scores by rung and fold, curves by epoch."""
    scores = {"epoch": float(record.epoch), "seconds": record.seconds}
    units = {f"fold/{name}": record.folds[fold] for fold, name in _names(record.folds).items()}
    if record.training_domain is not None:
        units["training_domain"] = record.training_domain
    for unit, scored in units.items():
        scores |= {f"{unit}/{key}": getattr(scored, key) for key in ("macro_f1", "accuracy", "balanced_accuracy")}
        scores |= {f"{unit}/recall/{name}": scored.recall[type_] for type_, name in _names(scored.recall).items()}
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
    results: dict[str, float | None] = {"winner_score": summary["winner"]["score"], "seconds": summary["seconds"]}
    kinds = {"mean": "mean", "std": "std", "picked": "picked", "ensemble": "ensemble", "best_oracle": oracle}
    for part in ("validation", "test"):
        scores = summary["final"].get(part, {})
        for metric in REPORTED:
            found = scores.get(metric, {})
            results |= {f"{part}/{metric}_{name}": found[kind] for kind, name in kinds.items() if kind in found}
        recall = scores.get("recall", {})
        results |= {f"{part}/recall/{name}": recall[type_] for type_, name in _names(recall).items()}
    return {key: value for key, value in results.items() if value is not None}


def _facts(settings: StudySettings, summary: Mapping[str, Any] | None) -> dict[str, str]:
    """What the tags of all runs of a study say and its settings do not, as far as its folder knows."""
    if summary is not None:
        held_out = "+".join(sorted(summary["data"]["test_batches"]))
        return {"selection": summary.get("selection", ""), "held_out": held_out}
    # Until the study is done, its folder does not say which batch a split or a data set tests on.
    source = settings.source
    return {"selection": settings.selection, "held_out": source.test_batch or (source.split or "").rpartition(":")[2]}


def _flat_settings(settings: StudySettings) -> tuple[dict[str, str], dict[str, str]]:
    """A study's settings, as `table.key`: those that stay, for parameters; and those that may change, for tags.

    MLflow refuses to change a parameter.
    """
    lasting: dict[str, str] = {}
    changing: dict[str, str] = {}
    for table, values in to_document(settings).items():
        for key, value in values.items():
            may_change = key in CONTINUABLE or (table == "data" and key in ("data", "path"))
            (changing if may_change else lasting)[f"{table}.{_name(key)}"] = _without_password(_text(value))
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
    dataset = MetaDataset(place, name, fingerprint[:32])  # type: ignore[abstract]  # it is not; a digest has at most 36
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])


def _connect(store: Store) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, both made if they are not there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not store.is_server:
        _probe(store)
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    if experiment is None:
        try:
            return client, client.create_experiment(store.experiment, store.artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(store.experiment)
            if experiment is None:
                raise
            # else somebody was faster
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment {store.experiment!r} has been deleted: restore it, or set another "
            f"MLFLOW_EXPERIMENT_NAME in {ENVIRONMENT}"
        )
    return client, str(experiment.experiment_id)


def _probe(store: Store) -> None:
    """Connect to a database once: MLflow itself would try for minutes."""
    import sqlalchemy

    path = Path(store.uri.removeprefix("sqlite:///"))
    if store.uri.startswith("sqlite:///") and not path.exists():
        _create(path, store.artifacts)
    engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    with engine.connect():
        pass


def _create(path: Path, artifacts: str | None) -> None:
    """Make MLflow's tables elsewhere, and put them in place as a whole.

    It takes seconds, and MLflow never recovers a database in whose making it was killed.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
        made = Path(place) / path.name
        SqlAlchemyStore(f"sqlite:///{made}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
        with suppress(FileExistsError):  # another process was faster
            os.link(made, path)


def _search(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """All runs with these tags, oldest first."""
    words = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    token = None
    while True:
        page = client.search_runs(
            [experiment], words, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _reaching(store: Store) -> Iterator[None]:
    """What keeps the store from being reached, as an error with a remedy."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"the MLflow store {_without_password(store.uri)} cannot be used ({_reason(error)}): start its server, or "
            f"set MLFLOW_TRACKING_URI in {ENVIRONMENT}; then try again"
        ) from error


def _reason(error: Exception) -> str:
    """The part of MLflow's long messages that says something."""
    first = str(error).partition("\n")[0].rpartition("Caused by ")[2]
    return _without_password(first).rstrip("\"')")[:200] or type(error).__name__


def _read_environment(path: Path) -> dict[str, str]:
    """The variables of a file, with ${NAME:-DEFAULT} filled in."""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            wrong = [binding.original for binding in parse_stream(file) if binding.error]
        values = dotenv_values(path) if not wrong else {}
    except (OSError, ValueError) as error:
        raise TrackingError(f"{path} cannot be read ({error}): mend or remove it") from error
    faults = [f"line {line.line} of {path} is {line.string.strip()!r}: write NAME=VALUE" for line in wrong]
    faults += [f"{name} in {path} has no value: write {name}=VALUE" for name, value in values.items() if value is None]
    if faults:
        raise TrackingError(*faults)
    return {name: value for name, value in values.items() if value is not None}


def _studies(folder: StudyFolder, name: str) -> Path:
    """The folder of all studies, wherever it may have been moved to."""
    return folder.path.absolute().parents[name.count("/")]


def _names(wanted: Iterable[str]) -> dict[str, str]:
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


def _without_password(text: str) -> str:
    """Without the user and password of addresses in it."""
    return re.sub(r"(?<=://)[^/@\s\"']*@", "", text)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)

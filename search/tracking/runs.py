"""The runs of a study in MLflow: a projection of the study folder.

What the store lacks of it is found by tags and written; what is there stays as it is. A study is a run, a trial a child
of it, a final seed a child of the winner's run. A run gets its final status last, so that one cut off half-way is known
by its status, and completed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scdgn.search.credentials import without_password
from scdgn.search.folder import StudyFolder
from scdgn.search.records import FINISHED, TrialRecord
from scdgn.search.study.documents import from_document
from scdgn.search.summary import AnySummary, Summary
from scdgn.search.tracking import contents, trial_files
from scdgn.search.tracking.contents import CONFIRMED, KIND, PARENT, STATUS, STUDY, STUDY_ID, Content, Facts, State, text
from scdgn.search.tracking.store import Store, connect, find_runs
from scdgn.search.tracking.trial_files import RECALLS, SCORES

Key = tuple[str, str, str]
"""Kind, number and seed of a run of a study."""

_STUDY: Key = ("study", "", "")

_FILES_TAG, _TABLES_TAG = "scdgn.files", "mlflow.loggedArtifacts"


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

    def __init__(self, store: Store, folder: StudyFolder, selected_by: Mapping[str, str] | None = None) -> None:
        document = folder.read_settings()
        self._settings = from_document(document)
        self._space = self._settings.spaces()[0]
        self._record: Mapping[str, Any] = document["record"]
        self._folder = folder
        self._selected_by = selected_by
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
        return self._known[_STUDY].id

    def write(self, records: Iterable[TrialRecord], summary: AnySummary | None, state: State) -> Synced:
        """Write what is missing of the study, its trials and its final seeds."""
        finished = sorted(
            (record for record in records if record.state in FINISHED), key=lambda record: (record.ended, record.number)
        )
        facts = self._facts_of(summary)
        done = self._folder.summary.stat().st_mtime if summary is not None else 0.0
        counted = contents.counted(self._known[_STUDY].metrics) if _STUDY in self._known else 0
        study = contents.study_content(facts, finished, summary, done, state, counted)
        self._put(_STUDY, study, settle=False)
        self._put_datasets()
        trials = finals = present = 0
        for record in finished:
            if self._is_there(record):
                present += 1
            else:
                trial = contents.trial_content(facts, record, self.parent)
                trials += self._put(("trial", str(record.number), ""), trial)
        if summary is not None:
            winner = contents.winner_of(summary)
            above = self._known["trial", winner, ""].id if winner else self.parent
            for seed, final in contents.final_contents(facts, summary, done, above):
                changed = self._put(("final", winner, seed), final)
                finals, present = finals + changed, present + (not changed)
            self._put_scores_again(finished, summary, done)
            self._mark(winner)
        self._put_files({} if state == "running" else trial_files.files(finished, summary))
        self._put(_STUDY, study)
        return Synced(trials, finals, present)

    def _facts_of(self, summary: AnySummary | None) -> Facts:
        """What is the same in all runs."""
        settings, record = self._settings, self._record
        tags = {
            STUDY: settings.name,
            STUDY_ID: record["id"],
            "method": settings.method,
            "protocol": settings.protocol,
            **(self._selected_by or contents.selected_by(settings, record, summary)),
        }
        return Facts(settings, self._space, record, tags)

    def _is_there(self, record: TrialRecord) -> bool:
        """Whether the trial's run is complete; a trial that has ended does not change any more."""
        known = self._known.get(("trial", str(record.number), ""))
        return known is not None and known.status == STATUS[record.state] and known.tags.get(PARENT) == self.parent

    def _put(self, key: Key, content: Content, settle: bool = True) -> bool:
        """Make a run hold the content, and give it its status if it is to `settle`; False if it had all of that."""
        from mlflow.entities import Metric, Param, RunTag

        tags = {name: value for name, value in content.tags.items() if value}
        known = self._known.get(key)
        changed = known is None
        if known is None:
            made = {**contents.maker(), **tags}  # which stay what they were
            run = self._client.create_run(self._experiment, _milliseconds(content.start), made, content.name)
            known = self._known[key] = _Known(run.info.run_id, "RUNNING", made)
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

    def _put_datasets(self) -> None:
        known = self._known[_STUDY]
        wanted = contents.datasets(self._settings, self._record)
        if known.datasets < len(wanted):
            self._client.log_inputs(known.id, wanted)
            known.datasets = len(wanted)

    def _put_scores_again(self, finished: Sequence[TrialRecord], summary: AnySummary, done: float) -> None:
        """Tell of the trials that were scored again what chose the winner among them."""
        epochs = {record.number: record.epoch for record in finished}
        for number, again in summary.confirmed.items() if isinstance(summary, Summary) else ():
            known = self._known["trial", str(number), ""]
            if known.metrics.get(CONFIRMED) != again.score:
                self._client.log_metric(known.id, CONFIRMED, again.score, _milliseconds(done), epochs[number])
                known.metrics[CONFIRMED] = again.score

    def _put_files(self, more: Mapping[str, str]) -> None:
        """Upload the files that say what the study is and what came out, if they have changed."""
        paths = [
            path for path in (self._folder.settings, self._folder.summary, self._folder.finalists) if path.exists()
        ]
        texts = {path.name: without_password(path.read_text(encoding="utf-8")) for path in paths}
        texts.update(more)
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        known = self._known[_STUDY]
        if known.tags.get(_FILES_TAG) != digest:
            for name, content in texts.items():
                self._client.log_text(known.id, content, name)
            tables = [{"path": name, "type": "table"} for name in (SCORES, RECALLS) if name in texts]
            for tag, value in ((_TABLES_TAG, json.dumps(tables)), (_FILES_TAG, digest)):
                self._client.set_tag(known.id, tag, value)
                known.tags[tag] = value

    def _mark(self, winner: str) -> None:
        """Let the winner be found by a tag; a study that went on may have another one than before."""
        for (kind, number, _), known in self._known.items():
            if kind == "trial" and (number == winner or "winner" in known.tags):
                value = text(number == winner)
                if known.tags.get("winner") != value:
                    self._client.set_tag(known.id, "winner", value)
                    known.tags["winner"] = value


@dataclass
class _Known:
    """What is known of a run in the store; of a metric, its latest value."""

    id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    datasets: int = 0


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)

"""What MLflow says of a study is what its folder says, whatever became of the store in between."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pandas as pd
import pytest

import scdgn.search
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.search.folder import LeaseError, StudyFolder, owned
from scdgn.search.records import FINISHED, TrialRecord, UnitScores
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.studies import run, tracked
from scdgn.search.study.documents import from_document
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.space import default_dimensions, is_drawn
from scdgn.search.study.study import read_records
from scdgn.search.tracking import runs, store
from scdgn.search.tracking import tracker as tracking
from scdgn.search.tracking.beside import Beside
from scdgn.search.tracking.runs import Synced
from scdgn.search.tracking.store import Store, TrackingError, configure, reaching
from scdgn.search.tracking.tracker import Tracker, sync
from scdgn.search.tracking.ui import serve
from scdgn.search.trials.amount import Amount
from scdgn.search.trials.cells import SearchCells
from tests import LONGEST, find_parent_run, servers
from tests.faults import tiny

# MLflow's own tables use what SQLAlchemy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

DEAD = "http://127.0.0.1:9"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
SPACE = {
    "hidden": 8, "latent": 4, "domain_code": 4, "epochs": 16, "schedule": "constant", "dropout": 0.0, "batch_size": 32,
}  # fmt: skip
DRAWN = ("lr", *(name for name in default_dimensions("scdgn") if name not in SPACE and name != "lr"))
"""Settings in which trials of that space differ."""
BATCH = "10x v2/3'+"
"""A name that no metric may have."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of studies with one store for all of this module: making its tables takes seconds."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    place = tmp_path_factory.mktemp("tracking")
    here = Path.cwd()
    os.chdir(place)
    with patch.object(tracking, "PATIENCE", LONGEST):  # here all is to be written, however long it takes
        yield place / "studies"
    os.chdir(here)
    store._applied.clear()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def settings(studies: Path) -> StudySettings:
    """Of a study of seconds that has folds, and trials that are pruned."""
    cells = {BATCH: 50, "b": 50, "c": 40, "test": 40}
    tiny(cells=cells).write_h5ad(studies.parent / "cells.h5ad")
    return StudySettings(
        name="group/real",
        source=Source(data=studies.parent / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="test"),
        trials=6,
        space={**SPACE, "lr": [0.000001, 0.02]},
        pruner="MedianPruner",
        pruner_options={"n_startup_trials": 1},
        pack=3,
        final_seeds=3,
        studies=studies,
    )


@dataclass
class Real:
    """A study that was tracked while it ran."""

    folder: StudyFolder
    notes: list[str]


@pytest.fixture(scope="module")
def real(settings: StudySettings) -> Real:
    notes: list[str] = []
    searched(settings, notes)
    return Real(StudyFolder(settings.folder), notes)


def searched(settings: StudySettings, notes: list[str]) -> None:
    """Run a study and track it."""
    tracker = Tracker(notes.append)
    try:
        run(settings, tracker, track=False)
    finally:
        tracker.close()


def untracked(real: Real, name: str) -> StudyFolder:
    """The same study under another identity, of which MLflow knows nothing."""
    folder = StudyFolder(real.folder.path.with_name(name))
    shutil.copytree(real.folder.path, folder.path)
    document = folder.read_settings()
    document["record"]["id"] = name
    folder.write_settings(document)
    return folder


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def runs_of(folder: StudyFolder) -> dict[tuple[str, str, str], Any]:
    """All runs of a study by kind, trial and seed, none of them twice."""
    configure(folder.path.parents[1])
    experiment = client().get_experiment_by_name("scdgn").experiment_id
    identity = folder.read_settings()["record"]["id"]
    found: dict[tuple[str, str, str], Any] = {}
    for one in client().search_runs([experiment], f"tags.`scdgn.study_id` = '{identity}'", max_results=1000):
        tags = one.data.tags
        key = (tags["scdgn.kind"], tags.get("number", ""), tags.get("seed", ""))
        assert key not in found
        found[key] = one
    return found


def history(one: Any, key: str) -> dict[int, float]:
    points = client().get_metric_history(one.info.run_id, key)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def check_agrees(folder: StudyFolder) -> dict[tuple[str, str, str], Any]:
    """MLflow has a run for all that the folder has, and nothing else, with the same content; the runs."""
    runs = runs_of(folder)
    records = [
        record for record in read_records(folder, from_document(folder.read_settings())) if record.state in FINISHED
    ]
    summary = folder.read_summary()
    parent = runs["study", "", ""]
    assert {key for key in runs if key[0] == "trial"} == {("trial", str(record.number), "") for record in records}
    for record in records:
        check_trial(record, runs["trial", str(record.number), ""], parent)
    scores = [record.value for record in records if record.state == "complete"]
    assert parent.data.metrics.get("best_score") == max(scores, default=None)  # type: ignore[type-var]
    for state, key in (("complete", "trials_complete"), ("pruned", "trials_pruned"), ("fail", "trials_failed")):
        assert parent.data.metrics.get(key, 0) == sum(record.state == state for record in records)
    seeds = {} if summary is None else check_finals(summary, runs)
    assert {key for key in runs if key[0] == "final"} == set(seeds)
    return runs


def check_trial(record: TrialRecord, one: Any, parent: Any) -> None:
    data = one.data
    assert one.info.status == STATUS[record.state]
    assert data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (data.tags["state"], data.tags.get("origin", "")) == (record.state, record.origin)
    assert data.tags.get("reason", "") == record.reason
    assert (one.info.start_time, one.info.end_time) == (int(record.started * 1000), int(record.ended * 1000))
    drawn = {key: record.settings[key] for key in DRAWN if is_drawn(key, record.settings)}
    assert data.params == {key: value if isinstance(value, str) else json.dumps(value) for key, value in drawn.items()}
    assert f"Trial {record.number}, " in data.tags["mlflow.note.content"]
    assert len(data.metrics) <= 15
    assert data.metrics.get("score") == record.value
    # Two epochs to a rung.
    assert history(one, "score") == {2 * rung: value for rung, value in record.steps.items()}
    for curve in ("label_loss", "domain_loss", "lambda"):
        wanted = dict(zip(record.curves.get("epoch", ()), record.curves.get(curve, ()), strict=True))
        assert history(one, curve) == wanted and len(wanted) <= 50
    for fold, scores in record.folds.items():
        name = f"fold/{'10x v2_3__' if fold == BATCH else fold}"
        assert data.metrics[name] == scores.macro_f1
    if record.training_domain is not None:
        assert data.metrics["training_domain"] == record.training_domain.macro_f1
    assert (data.metrics["epoch"], data.metrics["seconds"]) == (record.epoch, record.seconds)


def check_finals(summary: Any, runs: dict[tuple[str, str, str], Any]) -> set[tuple[str, str, str]]:
    final, winner = summary.final, str(summary.winner.number)
    child = runs["trial", winner, ""]
    assert [number for (_, number, _), one in runs.items() if one.data.tags.get("winner") == "true"] == [winner]
    for place, seed in enumerate(final.seeds):
        one = runs["final", winner, str(seed)]
        assert one.info.status == "FINISHED"
        assert one.data.tags["mlflow.parentRunId"] == child.info.run_id
        assert one.data.tags["picked"] == json.dumps(seed == final.picked_seed)
        assert one.data.params == {**child.data.params, "seed": str(seed)}
        assert one.data.metrics == {
            f"{part}/{key}": final.parts[part].of(key).by_seed[place]
            for part in ("validation", "test")
            for key in ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
        }
        # The pack's, in which all seeds trained.
        started, ended = summary.trained
        assert (one.info.start_time, one.info.end_time) == (int(started * 1000), int(ended * 1000)) and ended > started
    for number, again in summary.confirmed.items():
        assert runs["trial", str(number), ""].data.metrics["confirmed_score"] == again.score
    parent = runs["study", "", ""]
    assert parent.data.tags["winner.number"] == winner
    assert parent.data.tags["winner.lr"] == json.dumps(summary.winner.settings["lr"])
    assert f"The winner, trial {winner}: " in parent.data.tags["mlflow.note.content"]
    metrics = parent.data.metrics
    assert metrics["winner_score"] == summary.winner.score
    assert metrics["exported_score"] == summary.model.score
    test = summary.model.test.corrected if summary.model.corrects else summary.model.test.plain
    assert metrics["test/macro_f1_exported"] == test.macro_f1
    for kind, name in (
        ("mean", "mean"),
        ("ensemble", "ensemble"),
        ("best_oracle", f"best_of_{len(final.seeds)}_oracle"),
    ):
        assert metrics[f"test/macro_f1_{name}"] == getattr(final.test.macro_f1, kind)
    assert not [key for key in metrics if "recall" in key]
    return {("final", winner, str(seed)) for seed in final.seeds}


def rows(studies: Path) -> dict[str, int]:
    """How much is in the store."""
    with sqlite3.connect(studies / "mlflow.db") as store:
        tables = ("runs", "metrics", "params", "tags", "inputs", "datasets")
        found = {table: store.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}
    store.close()
    return found


def test_runs_agree_with_the_study(real: Real, settings: StudySettings) -> None:
    assert real.notes == []
    runs = check_agrees(real.folder)
    summary = real.folder.read_summary()
    assert summary is not None
    assert summary.trials.keys() == {"complete", "pruned"}  # or this module tests less than it means to
    pruned = [one for one in runs.values() if one.data.tags["state"] == "pruned"]
    assert all(int(one.data.tags["pruned_at_step"]) * 2 == max(history(one, "score")) for one in pruned)
    parent = runs["study", "", ""]
    assert (parent.info.run_name, parent.info.status) == ("group/real", "FINISHED")
    for one in runs.values():
        tags = one.data.tags
        assert (tags["method"], tags["selection"]) == ("scdgn", "leave-one-domain-out")
        assert (tags["held_out"], tags["transductive"]) == ("test", "false")
        assert (tags["mlflow.source.name"], tags["mlflow.user"]) == ("scdgn search", getpass.getuser())
    record = real.folder.read_settings()["record"]
    assert parent.data.tags["fingerprint"] == record["fingerprint"]["training"]
    assert parent.data.tags["version.torch"] == record["versions"]["torch"]
    assert parent.data.params["space.hidden"] == "8"
    assert parent.data.params["pruner.n_startup_trials"] == "1"
    assert parent.data.tags["study.trials"] == "6"
    best = history(parent, "best_score")
    assert list(best.values()) == sorted(best.values())


def test_the_study_carries_its_files_and_its_data_set(real: Real) -> None:
    from mlflow.data import get_source

    parent = runs_of(real.folder)["study", "", ""]
    files = Path(parent.info.artifact_uri)
    assert files.is_relative_to(real.folder.path.parents[1] / "mlartifacts")
    assert {path.name for path in files.iterdir()} == {
        "study.toml", "summary.json", "finalists.csv", "trials.json", "scores.json", "recalls.json",
    }  # fmt: skip
    assert (files / "summary.json").read_text() == real.folder.summary.read_text()
    cells = {one.tags[0].value: one for one in parent.inputs.dataset_inputs}
    fingerprint = real.folder.read_settings()["record"]["fingerprint"]
    for context, name in (("training", "cells"), ("test", "cells, test")):
        dataset = cells[context].dataset
        assert (dataset.name, dataset.digest) == (name, fingerprint[context][:16])
        assert Path(get_source(cells[context]).load()).name == "cells.h5ad"
    assert len(cells) == 2


def test_recalls_are_a_table_that_mlflow_shows(real: Real) -> None:
    parent = runs_of(real.folder)["study", "", ""]
    shown = [table["path"] for table in json.loads(parent.data.tags["mlflow.loggedArtifacts"])]
    files = Path(parent.info.artifact_uri)
    scores, recalls = (pd.DataFrame(**json.loads((files / name).read_text(encoding="utf-8"))) for name in shown)
    assert list(recalls) == ["trial", "cells of", "type", "recall"]
    records = read_records(real.folder, from_document(real.folder.read_settings()))
    for record in records:
        for fold, wanted in record.folds.items():
            (row,) = scores[(scores["trial"] == record.number) & (scores["cells of"] == fold)].to_dict("records")
            assert (row["cells"], row["accuracy"]) == (wanted.cells, wanted.accuracy)
            found = recalls[(recalls["trial"] == record.number) & (recalls["cells of"] == fold)]
            assert dict(zip(found["type"], found["recall"], strict=True)) == wanted.recall
    final = real.folder.read_summary().final.test.recall
    assert dict(recalls[recalls["cells of"] == "test"][["type", "recall"]].to_numpy().tolist()) == final


def test_to_sync_twice_adds_nothing(real: Real, studies: Path) -> None:
    before = rows(studies)
    assert sync(real.folder) == Synced(0, 0, 9)
    assert rows(studies) == before


def test_a_study_that_was_never_tracked_is_written_later(real: Real) -> None:
    folder = untracked(real, "later")
    assert find_parent_run(folder) is None
    assert sync(folder) == Synced(6, 3, 0)
    runs = check_agrees(folder)
    assert runs["study", "", ""].info.status == "FINISHED"
    assert find_parent_run(folder) == runs["study", "", ""].info.run_id
    live, late = (history(runs_of(one)["study", "", ""], "best_score") for one in (real.folder, folder))
    assert live == late


def test_a_study_without_a_summary_is_tracked_as_stopped(real: Real) -> None:
    folder = untracked(real, "stopped")
    folder.summary.unlink()
    assert sync(folder) == Synced(6, 0, 0)
    parent = check_agrees(folder)["study", "", ""]
    assert (parent.info.status, parent.data.tags["state"]) == ("KILLED", "stopped")


def test_runs_that_were_cut_off_doubled_or_deleted_are_mended(real: Real) -> None:
    folder = untracked(real, "mended")
    sync(folder)
    runs = runs_of(folder)
    experiment = runs["study", "", ""].info.experiment_id
    summary = folder.read_summary()
    assert summary is not None
    # The winner's run is the parent of its final seeds'.
    one, two, three = [str(number) for number in range(6) if number != summary.winner.number][:3]
    tags = {"scdgn.study_id": "mended", "scdgn.kind": "trial", "number": one}
    client().create_run(experiment, tags=tags)  # the first one's answer was lost
    client().delete_run(runs["trial", two, ""].info.run_id)
    start = runs["trial", two, ""].info.start_time
    client().create_run(experiment, start, {**tags, "number": two})  # cut off before it held anything
    client().update_run(runs["trial", three, ""].info.run_id, "RUNNING")  # cut off at the end
    assert sync(folder) == Synced(2, 0, 7)
    assert check_agrees(folder)["trial", one, ""].info.run_id == runs["trial", one, ""].info.run_id
    client().delete_run(runs["study", "", ""].info.run_id)
    sync(folder)
    check_agrees(folder)


def test_a_study_that_goes_on_goes_on_in_its_run(settings: StudySettings) -> None:
    longer, notes = replace(settings, name="group/longer"), list[str]()
    searched(longer, notes)
    before = runs_of(StudyFolder(longer.folder))
    searched(replace(longer, trials=8, final_seeds=2), notes)
    assert notes == []
    after = check_agrees_but_for_old_finals(StudyFolder(longer.folder))
    assert {key: one.info.run_id for key, one in before.items()}.items() <= {
        key: one.info.run_id for key, one in after.items()
    }.items()
    assert after["study", "", ""].data.tags["study.trials"] == "8"
    assert (
        history(after["study", "", ""], "best_score").items() >= history(before["study", "", ""], "best_score").items()
    )


def check_agrees_but_for_old_finals(folder: StudyFolder) -> dict[tuple[str, str, str], Any]:
    """The seeds that were final before more trials were run stay: they were trained."""
    summary = folder.read_summary()
    assert summary is not None
    runs = runs_of(folder)
    current = check_finals(summary, runs)
    assert current <= {key for key in runs if key[0] == "final"}
    records = read_records(folder, from_document(folder.read_settings()))
    for record in records:
        check_trial(record, runs["trial", str(record.number), ""], runs["study", "", ""])
    assert sum(key[0] == "trial" for key in runs) == len(records)
    return runs


def test_a_search_does_not_need_its_server(
    settings: StudySettings, monkeypatch: pytest.MonkeyPatch, real: Real
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    notes: list[str] = []
    away = replace(settings, name="group/away", trials=2, pack=1, pruner="NopPruner", pruner_options={})
    searched(away, notes)
    folder = StudyFolder(away.folder)
    summary = folder.read_summary()
    assert summary is not None and summary.trials == {"complete": 2}
    assert len(notes) == 2
    assert "MLflow cannot be written to" in notes[0] and "Connection refused" in notes[0]
    assert "`scdgn sync group/away`" in notes[1]
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot be used .*Connection refused.*: start"):
        sync(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(folder) == Synced(2, 3, 0)
    check_agrees(folder)


def test_ten_trainings_without_a_search_are_tracked_too(settings: StudySettings, real: Real) -> None:
    notes: list[str] = []
    space = {**settings.space, "epochs": 2}
    ten = replace(
        settings, name="group/ten", protocol="seed-best-of-10", space=space, pruner="NopPruner", pruner_options={}
    )
    searched(ten, notes)
    folder = StudyFolder(ten.folder)
    assert notes == []
    runs = runs_of(folder)
    summary = folder.read_summary()
    assert summary is not None
    parent = runs.pop(("study", "", ""))
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["test/accuracy_best_of_10_oracle"] == summary.best_oracle.accuracy
    assert parent.data.metrics["test/macro_f1_mean"] == summary.mean.macro_f1
    assert len(runs) == 10
    for row in summary.runs:
        one = runs["final", "", str(row.seed)]
        assert one.data.metrics["test/accuracy"] == row.accuracy
        assert one.data.params["margin"] == json.dumps(row.margin)
        assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert [one.data.params["seed"] for one in runs.values() if one.data.tags["best_oracle"] == "true"] == [
        str(summary.best_oracle.seed)
    ]
    assert sync(folder) == Synced(0, 0, 10)


# The tracker alone, fed by hand.


def begun(folder: StudyFolder) -> Begun:
    cells = cast(SearchCells, SimpleNamespace(test=None))
    return Begun(
        folder, from_document(folder.read_settings()), cells, 4, "leave-one-domain-out", [], Amount(1, 5, 6, 30)
    )


def record(number: int, **changes: Any) -> TrialRecord:
    scores = UnitScores(0.5, 0.6, 0.7, 10, {"B": 1.0})
    return TrialRecord(
        **{
            "number": number,
            "state": "complete",
            "settings": {"method": "nn", "epochs": 8},
            "value": 0.5,
            "steps": {1: 0.4, 8: 0.5},
            "folds": {"a": scores},
            "started": 1000.0 + number,
            "ended": 2000.0 + number,
            **changes,
        }
    )


def wait_for(what: Any) -> None:
    end = time.monotonic() + LONGEST
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_trial_that_failed_is_tracked_with_its_reason(real: Real) -> None:
    folder = untracked(real, "failed")
    failed = record(
        0, state="fail", reason="the loss was not finite", value=None, steps={}, folds={}, settings={},
        curves={"epoch": [1, 2], "label_loss": [1.0, float("nan")]},
    )  # fmt: skip
    notes: list[str] = []
    tracker = Tracker(notes.append)
    tracker.begun(begun(folder))
    tracker.ended(failed)
    wait_for(lambda: ("trial", "0", "") in runs_of(folder) and runs_of(folder)["trial", "0", ""].info.end_time)
    running = runs_of(folder)["study", "", ""]
    assert (running.info.status, running.data.tags["state"]) == ("RUNNING", "running")
    tracker.close()
    assert notes == []
    one = runs_of(folder)["trial", "0", ""]
    assert (one.info.status, one.data.tags["reason"]) == ("FAILED", "the loss was not finite")
    assert history(one, "label_loss") == {1: 1.0}
    assert runs_of(folder)["study", "", ""].info.status == "KILLED"


def test_what_a_server_missed_is_written_when_it_is_back(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = untracked(real, "back")
    connect, tries = runs.connect, []

    def flaky(store: Store) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no route to host")
        return connect(store)

    monkeypatch.setattr(runs, "connect", flaky)
    monkeypatch.setattr(tracking, "PAUSE", 0.0)
    notes: list[str] = []
    tracker = Tracker(notes.append)
    tracker.begun(begun(folder))
    for number in range(3):
        tracker.ended(record(number))
    wait_for(lambda: len(tries) == 3)
    tracker.close()
    assert len(notes) == 1 and "no route to host" in notes[0]
    assert {number for kind, number, _ in runs_of(folder) if kind == "trial"} == {"0", "1", "2"}


def test_a_run_whose_making_was_not_answered_is_not_made_twice(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    folder = untracked(real, "unanswered")
    create, made = MlflowClient.create_run, []

    def unanswered(*given: Any) -> Any:
        made.append(create(*given))
        if len(made) == 2:
            raise OSError("timed out")
        return made[-1]

    monkeypatch.setattr(MlflowClient, "create_run", unanswered)
    monkeypatch.setattr(tracking, "PAUSE", 0.0)
    tracker = Tracker(lambda _: None)
    tracker.begun(begun(folder))
    tracker.ended(record(0))
    tracker.ended(record(1))
    wait_for(lambda: len(made) == 3)
    tracker.close()
    assert {key[:2] for key in runs_of(folder)} == {("study", ""), ("trial", "0"), ("trial", "1")}
    assert history(runs_of(folder)["trial", "0", ""], "score") == {1: 0.4, 8: 0.5}


def test_a_dead_server_is_not_asked_for_every_trial(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def dead(_: Store) -> Any:
        tries.append(1)
        raise OSError("no route to host")

    monkeypatch.setattr(runs, "connect", dead)
    monkeypatch.setattr(tracking, "PAUSE", 1e9)
    tracker = Tracker(lambda _: None)
    tracker.begun(begun(untracked(real, "dead")))
    wait_for(lambda: tries)
    for number in range(20):
        tracker.ended(record(number))
        time.sleep(0.005)
    assert len(tries) == 1
    tracker.close()
    assert len(tries) == 2


def test_a_server_that_does_not_answer_holds_nobody_up(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()

    def silent(_: Store) -> Any:
        stuck.wait(LONGEST)
        raise OSError

    monkeypatch.setattr(runs, "connect", silent)
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    notes: list[str] = []
    tracker = Tracker(notes.append)
    folder = untracked(real, "silent")
    tracker.begun(begun(folder))
    tracker.ended(record(0))
    tracker.done(folder, folder.read_summary())
    tracker.close()
    assert tracker._thread.is_alive()  # the server's answer is still awaited there, and nowhere else
    assert notes == ["MLflow lacks a part of the study group/real: `scdgn sync group/real` writes it"]
    stuck.set()
    tracker._thread.join(LONGEST)  # it would ask the next test's server
    assert not tracker._thread.is_alive()


def test_the_machine_is_watched_however_short_the_study_is(real: Real) -> None:
    """Of ten seconds, after which MLflow writes the first sample, nothing is left here."""
    metrics = runs_of(real.folder)["study", "", ""].data.metrics
    assert 0 < metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_it_is_watched_while_the_study_runs(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[str] = []
    monkeypatch.setattr(
        tracking, "_monitor", lambda run: watched.append(run) or SimpleNamespace(finish=lambda: watched.append("over"))
    )
    monkeypatch.setattr(tracking, "_finish", lambda monitor: monitor.finish())
    folder = untracked(real, "watched")
    tracker = Tracker(lambda _: None)
    tracker.begun(begun(folder))
    wait_for(lambda: watched)
    tracker.ended(record(0))
    tracker.close()
    assert watched == [find_parent_run(folder), "over"]


def test_passwords_stay_at_home(real: Real, studies: Path) -> None:
    folder = untracked(real, "secret")
    document = folder.read_settings()
    document["study"]["storage"] = "postgresql://me:hunter2@host/optuna"
    folder.write_settings(document)
    notes: list[str] = []
    tracker = Tracker(notes.append)
    tracker.begun(begun(folder))
    tracker.close()
    assert notes == []
    parent = runs_of(folder)["study", "", ""]
    assert parent.data.params["study.storage"] == "postgresql://host/optuna"
    assert b"hunter2" not in (studies / "mlflow.db").read_bytes()
    assert "hunter2" not in (Path(parent.info.artifact_uri) / "study.toml").read_text()


# The process that a command has for it.


def test_another_process_writes_one_study_after_the_other(real: Real) -> None:
    notes: list[str] = []
    beside = Beside(notes.append)
    folders = [untracked(real, name) for name in ("first beside", "second beside")]
    for place, folder in enumerate(folders):
        beside.begun(begun(folder))
        for number in range(2 + place):
            beside.ended(record(number))
        beside.close()
        assert {number for kind, number, _ in runs_of(folder) if kind == "trial"} == {*map(str, range(2 + place))}
        assert runs_of(folder)["study", "", ""].info.status != "RUNNING"
    process = beside._process
    beside.end()
    assert notes == [] and process is not None and process.returncode == 0


@pytest.mark.parametrize("apart", [True, False])
def test_a_search_tells_the_writer_that_it_is_to_have(real: Real, apart: bool) -> None:
    folder = untracked(real, f"apart {apart}")
    threads: set[str] = set()
    with tracked(Watcher(), True, apart) as each:
        for _ in range(2):
            with each() as watcher:
                watcher.begun(begun(folder))
                watcher.ended(record(0))
                threads |= {thread.name for thread in threading.enumerate()}
    assert ("tracking" in threads) != apart and ("trial", "0", "") in runs_of(folder)


def test_what_came_out_is_written_by_it_too(real: Real) -> None:
    folder, beside = untracked(real, "done beside"), Beside(lambda _: None)
    summary = folder.read_summary()
    assert summary is not None
    beside.begun(begun(folder))
    for one in read_records(folder, from_document(folder.read_settings())):
        beside.ended(one)
    beside.done(folder, summary)
    beside.close()
    beside.end()
    assert runs_of(folder)["study", "", ""].info.status == "FINISHED" and sync(folder).trials == 0


@pytest.mark.parametrize("early", [True, False])
def test_a_search_loses_nothing_but_its_runs_with_the_process_that_writes_them(real: Real, early: bool) -> None:
    name = f"killed beside {early}"
    folder, notes = untracked(real, name), list[str]()
    beside = Beside(notes.append)
    beside.begun(begun(folder))
    if not early:
        wait_for(lambda: find_parent_run(folder))
    assert beside._process is not None
    beside._process.kill()
    beside._process.wait()
    beside.ended(record(0))
    beside.close()
    (note,) = notes
    assert "MLflow lacks a part of the study" in note
    other = untracked(real, f"after {name}")
    beside.begun(begun(other))
    beside.close()
    beside.end()
    assert notes == [note] and find_parent_run(other)


def test_it_says_once_that_a_store_is_away(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    notes: list[str] = []
    beside = Beside(notes.append)
    beside.begun(begun(untracked(real, "away beside")))
    beside.ended(record(0))
    beside.close()
    beside.end()
    assert len(notes) == 2 and "cannot be written to" in notes[0] and "lacks a part" in notes[1]


def test_a_running_study_is_left_to_its_own_process(real: Real) -> None:
    with owned(real.folder), pytest.raises(LeaseError, match="is run by process"):
        sync(real.folder)


# Where to track.


@pytest.fixture
def elsewhere(studies: Path, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, and an environment that nobody has configured."""
    here, before, applied = Path.cwd(), dict(os.environ), dict(store._applied)
    os.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    store._applied.clear()
    yield tmp_path
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)
    store._applied.clear()
    store._applied.update(applied)


def test_the_default_is_a_database_beside_the_studies(elsewhere: Path) -> None:
    store = configure(Path("somewhere"))
    assert store.uri == f"sqlite:///{elsewhere}/somewhere/mlflow.db"
    assert (store.experiment, store.artifacts) == ("scdgn", f"{elsewhere}/somewhere/mlartifacts")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert configure(Path("other")).uri == f"sqlite:///{elsewhere}/other/mlflow.db"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path("mlflow.env")
    mine.write_text("MLFLOW_TRACKING_URI=https://mlflow.example.org\nMLFLOW_EXPERIMENT_NAME=mine\n")
    store = configure(Path("studies"))
    assert (store.uri, store.experiment, store.artifacts) == ("https://mlflow.example.org", "mine", None)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert configure(Path("studies")).experiment == "theirs"
    mine.unlink()
    store = configure(Path("studies"))
    assert (store.uri, store.experiment) == (f"sqlite:///{elsewhere}/studies/mlflow.db", "theirs")


def test_every_fault_of_the_file_is_told(elsewhere: Path) -> None:
    Path("mlflow.env").write_text("MLFLOW_EXPERIMENT_NAME\nMLFLOW TRACKING URI=x\n")
    with pytest.raises(TrackingError, match=r"line 2 of mlflow.env is 'MLFLOW TRACKING URI=...': write NAME=VALUE"):
        configure(Path("studies"))
    Path("mlflow.env").write_text("MLFLOW_EXPERIMENT_NAME\n")
    with pytest.raises(TrackingError, match=r"MLFLOW_EXPERIMENT_NAME in mlflow.env has no value: write"):
        configure(Path("studies"))
    Path("mlflow.env").write_bytes(b"A=\xff")
    with pytest.raises(TrackingError, match=r"mlflow.env cannot be read .*: mend or remove it"):
        configure(Path("studies"))


def test_the_file_of_the_project_is_the_packaged_one_and_mlflow_knows_its_variables() -> None:
    from dotenv import dotenv_values
    from mlflow import environment_variables

    with warnings.catch_warnings():  # at import it warns of its own type hints
        warnings.simplefilter("ignore")
        from mlflow.cli import server

    packaged = Path(scdgn.search.__file__).resolve().with_name("mlflow.env")
    project = packaged.parents[1] / "mlflow.env"
    assert packaged.samefile(project) and packaged.readlink() == Path("../mlflow.env")
    known = {name for name in vars(environment_variables) if name.startswith("MLFLOW_")}
    known |= {str(parameter.envvar) for parameter in server.params}
    commented = project.read_text().replace("\n# MLFLOW_", "\nMLFLOW_")
    assert len(dotenv_values(project)) >= 10
    for line in commented.splitlines():
        if line.startswith("MLFLOW_"):
            assert line.partition("=")[0] in known


def test_a_place_that_cannot_be_written_to_is_told_at_once(
    real: Real, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/file/mlflow.db")
    monkeypatch.setattr("mlflow.MlflowClient", None)  # which would try for minutes
    with pytest.raises(TrackingError, match=r"set MLFLOW_TRACKING_URI in mlflow\.env"):
        sync(real.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(TrackingError, match=r"set MLFLOW_TRACKING_URI in mlflow\.env"):
        sync(real.folder)


def test_a_database_in_whose_making_the_process_died_is_not_there(
    real: Real, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(uri: str, _: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_text("half")
        raise OSError("killed")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/new/mlflow.db")
    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", dies)
    with pytest.raises(TrackingError, match="killed"):
        find_parent_run(real.folder)
    assert list(Path("new").iterdir()) == []


def test_a_deleted_experiment_is_told(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    folder = untracked(real, "gone")
    sync(folder)
    client().delete_experiment(client().get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match="'gone' has been deleted: restore it"):
        sync(folder)


def test_an_older_schema_is_told_with_the_whole_command() -> None:
    from mlflow.exceptions import MlflowException

    old = Store("sqlite:////place/mlflow.db", "scdgn", None)
    wanted = (
        r"by another version of MLflow: back it up, then `mlflow db upgrade sqlite:////place/mlflow\.db`, or install"
    )
    with pytest.raises(TrackingError, match=wanted), reaching(old):
        raise MlflowException("Detected out-of-date database schema (found version a, but expected b). Take a backup")


@contextmanager
def interface(studies: Path) -> Iterator[tuple[subprocess.Popen[str], int, dict[str, str]]]:
    """`scdgn ui` of some studies: its process and port, and the addresses that it tells, by what they show."""
    port = servers.free_port()
    words = [sys.executable, "-m", "scdgn.cli", "ui", "--studies", str(studies), "--port", str(port)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        told: dict[str, str] = {}
        while len(told) < 2:
            line = process.stderr.readline()
            assert line, "it ended"
            if (place := line.find(f"http://127.0.0.1:{port}/#")) >= 0:
                told[line[:place].rstrip(": ")] = line[place:].strip()
        yield process, port, told
    finally:
        process.terminate()
        process.wait(LONGEST)
        process.stderr.close()  # type: ignore[union-attr]


def test_the_interface_tells_two_addresses_and_ends_as_a_whole(real: Real) -> None:
    with interface(real.folder.path.parents[1]) as (process, port, told):
        trials, best = told["all trials, the best ones first"], told["the best ten side by side"]
        assert f"http://127.0.0.1:{port}/#/experiments/" in trials and "workflowType=machine_learning" in trials
        assert "orderByKey=metrics.%60score%60&orderByAsc=false" in trials
        assert f"http://127.0.0.1:{port}/#/compare-runs?runs=%5B%22" in best
        wait_for(lambda: _status(f"http://127.0.0.1:{port}/health") == 200)
        words = [sys.executable, "-m", "scdgn.cli", "ui", "--studies", str(real.folder.path.parents[1])]
        ran = subprocess.run(
            [*words, "--port", str(port)], capture_output=True, text=True, timeout=LONGEST, check=False
        )
        assert ran.returncode == 2 and f"port {port} of 127.0.0.1 cannot be had" in ran.stderr
        process.terminate()
        assert process.wait(30) == 0
        wait_for(lambda: _status(f"http://127.0.0.1:{port}/health") is None)  # nothing is left behind


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed (chromium or google-chrome)")
def test_a_browser_shows_at_these_addresses_what_is_told_of_them(real: Real, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "studies" / "group" / "real")  # by itself: the others have the same scores
    shutil.copytree(real.folder.path, folder.path)
    sync(folder)
    records = read_records(folder, from_document(folder.read_settings()))
    complete = [record for record in records if record.state == "complete"]

    def scores(records: Sequence[TrialRecord]) -> list[float]:
        return sorted((record.value for record in records if record.value is not None), reverse=True)

    def trials(page: str) -> list[TrialRecord]:
        numbers = dict.fromkeys(re.findall(r"group/real #(\d+)", page))
        return [records[int(number)] for number in numbers]

    with interface(folder.path.parents[1]) as (_, _, told):
        wait_for(lambda: trials(_page(told["all trials, the best ones first"], tmp_path)))
        shown = trials(_page(told["all trials, the best ones first"], tmp_path))
        assert len(shown) == len(records) and [record.value for record in shown] == scores(records)
        page = _page(told["the best ten side by side"], tmp_path)
        assert f"Comparing {len(complete)} Runs" in page
        assert [record.value for record in trials(page)] == scores(complete)


def _page(address: str, place: Path) -> str:
    """What a browser makes of an address, once its scripts have run."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'browser'}", *quiet]
    ran = subprocess.run(
        [str(BROWSER), *words, "--window-size=1440,1200", "--virtual-time-budget=15000", "--dump-dom", address],
        capture_output=True, text=True, timeout=LONGEST, check=True,
    )  # fmt: skip
    return ran.stdout


def _status(address: str) -> int | None:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return None


def test_there_is_no_interface_of_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match="no study is tracked in studies: run `scdgn search` first"):
        serve(Path("studies"))
    assert not (elsewhere / "studies").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    with pytest.raises(TrackingError, match=r"by the server https://mlflow\.example\.org: open that address"):
        serve(Path("studies"))


def test_another_thread_never_finds_the_environment_without_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracking and the export configure each in a thread of their own."""
    monkeypatch.chdir(tmp_path)
    configure(tmp_path / "studies")
    done, missed = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            if "MLFLOW_TRACKING_URI" not in os.environ:
                missed.append(1)

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(300):
        configure(tmp_path / "studies")
    done.set()
    watcher.join()
    assert not missed

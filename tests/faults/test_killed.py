"""A search that is killed, again and again, ends as if nothing had happened; and MLflow agrees with it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scdgn.data import write_h5ad
from search.folder import StudyFolder
from search.records import TrialRecord
from search.settings import from_document
from search.study import read_records
from tests.faults import KEYS, tiny

TRIALS = 16
KILLS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_h5ad(tiny(cells={"a": 150, "b": 150, "c": 150, "d": 40}, genes=60), folder / "cells.h5ad")
    return folder


def command(place: Path, studies: str, *words: str) -> list[str]:
    return [
        *(sys.executable, "-m", "scdgn.cli", "search", str(place / "cells.h5ad"), *KEYS, "--test-batch", "d"),
        *("--name", "killed", "--studies", str(place / studies), "--trials", str(TRIALS), "--final-seeds", "2"),
        *("--confirm", "2", "--set", "hidden=[24, 32]", "--set", "latent=8"),
        *("--set", "domain_code=8", "--set", "epochs={low=8, high=16}", "--pack", "1", *words),
    ]


def environment(place: Path) -> dict[str, str]:
    store = f"sqlite:///{place / 'mlflow.db'}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": store}


def records_of(place: Path, studies: str) -> list[TrialRecord]:
    folder = StudyFolder(place / studies / "killed")
    return read_records(folder, from_document(folder.read_settings()))


def test_ten_kills_lose_and_repeat_nothing(place: Path) -> None:
    moments = random.Random(7)
    kills, sessions = 0, 0
    status = -1
    while status != 0:
        sessions += 1
        assert sessions < 4 * KILLS, "the search does not come to an end"
        process = subprocess.Popen(
            command(place, "studies"), cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        told = []
        for line in process.stderr:  # the first trial that ends starts the clock of the next kill
            told.append(line)
            if kills < KILLS and line.startswith(("trial", "scoring", "training", "exporting", "registering")):
                time.sleep(moments.uniform(0, 0.6))
                process.send_signal(signal.SIGKILL)
                break
        told += process.stderr.readlines()
        process.stderr.close()
        status = process.wait(timeout=120)
        assert status in (0, -signal.SIGKILL), "".join(told)
        kills += status == -signal.SIGKILL
        finished = [record for record in records_of(place, "studies") if record.state in ("complete", "pruned", "fail")]
        assert len(finished) <= TRIALS
    assert kills == KILLS

    records = records_of(place, "studies")
    assert [record.number for record in records] == list(range(TRIALS))
    assert all(record.state in ("complete", "pruned") for record in records)
    untouched = subprocess.run(
        command(place, "others", "--no-track"), cwd=place, env=environment(place), capture_output=True, text=True
    )
    assert untouched.returncode == 0, untouched.stderr
    for record, expected in zip(records, records_of(place, "others"), strict=True):
        assert record.settings == expected.settings
        assert (record.state, record.steps, record.folds) == (expected.state, expected.steps, expected.folds)
    _agree(place, records)


def _agree(place: Path, records: list[TrialRecord]) -> None:
    """MLflow has one run per trial, with the study's values and states, and nothing else."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(experiments, max_results=1000))
    trials = [run for run in runs if run.data.tags.get("scdgn.kind") == "trial"]
    assert sorted(int(run.data.tags["number"]) for run in trials) == [record.number for record in records]
    for run in trials:
        record = records[int(run.data.tags["number"])]
        assert run.data.tags["state"] == record.state
        assert run.data.metrics["score"] == pytest.approx(record.value)
    assert sum(run.data.tags.get("scdgn.kind") == "study" for run in runs) == 1
    assert sum(run.data.tags.get("scdgn.kind") == "final" for run in runs) == 2
    assert not [run for run in runs if run.info.status == "RUNNING"]


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(place: Path) -> None:
    words = ("--no-track", "--set", "lr={low=1e-4, high=1e-3}")
    process = subprocess.Popen(
        command(place, "stopped", *words), cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial"):
            process.send_signal(signal.SIGINT)
            break
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 130
    assert "the same command goes on from here" in told and "Traceback" not in told
    before = [record for record in records_of(place, "stopped") if record.state == "complete"]
    assert 0 < len(before) < TRIALS
    again = subprocess.run(
        command(place, "stopped", *words), cwd=place, env=environment(place), capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    after = records_of(place, "stopped")
    assert len(after) == TRIALS and all(record in after for record in before)


def test_two_searches_at_once_are_refused(place: Path) -> None:
    process = subprocess.Popen(
        command(place, "twice", "--no-track"), cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("trial"):
            break
    process.send_signal(signal.SIGSTOP)  # it would be done before the other one has started
    other = subprocess.run(
        command(place, "twice", "--no-track"), cwd=place, env=environment(place), capture_output=True, text=True
    )
    process.send_signal(signal.SIGCONT)
    assert other.returncode == 2
    assert f"run by process {process.pid} on" in other.stderr
    process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0

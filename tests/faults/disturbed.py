"""The search that the campaigns disturb: as a process, with what there is to say about it when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdgn.commands.terminal import STOPS
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import WEIGHTS
from scdgn.search.folder import StudyFolder
from scdgn.search.left_out import read
from scdgn.search.records import TrialRecord
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from tests.faults import KEYS

TRIALS = 10


@dataclass(frozen=True)
class Campaign:
    """Where the campaign runs, and how a search goes that nobody kills."""

    path: Path
    writes: Mapping[str, int]
    seconds: float

    def studies(self, name: str) -> Path:
        return self.path / name

    def folder(self, name: str) -> StudyFolder:
        return StudyFolder(self.studies(name) / "killed")

    def records(self, name: str) -> list[TrialRecord]:
        folder = self.folder(name)
        return read_records(folder, from_document(folder.read_settings())) if folder.exists else []

    def variables(self) -> dict[str, str]:
        store = f"sqlite:///{self.path / 'mlflow.db'}"
        root = str(Path(__file__).parents[2])
        return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": store, "PYTHONPATH": root}

    def start(self, name: str, *more: str, **fault: object) -> subprocess.Popen[str]:
        """The search, with more words, as a process that is visited by a fault; signals wait until it listens."""
        words = [
            *(sys.executable, "-m", "tests.faults.mortal", json.dumps(fault)),
            *("search", str(self.path / "cells.h5ad"), *KEYS, "--test-batch", "d"),
            *("--name", "killed", "--studies", str(self.studies(name)), "--trials", str(TRIALS), "--final-seeds", "2"),
            *("--confirm", "2", "--set", "hidden=[24, 32]", "--set", "latent=8", "--set", "domain_code=8"),
            *("--set", "epochs={low=8, high=16}", "--pack", "1", "--checkpoint-every", "0"),
            *more,
        ]
        with (self.path / f"{name}.log").open("a") as log:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # which the process inherits
            try:
                return subprocess.Popen(words, cwd=self.path, env=self.variables(), stdout=log, stderr=log, text=True)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()


def whole(folder: StudyFolder) -> None:
    """Whatever has a name that is shown is whole."""
    for path in folder.path.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder.path).parts):
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".npz":
                assert read(path) if path.parent.name == "left_out" else len(np.load(path)["predicted"])
            case ".csv":
                assert path.read_text().endswith("\n")
            case ".toml":
                folder.read_settings()
    if folder.model.exists():
        Bundle.load(folder.model)


def agrees(campaign: Campaign, name: str, *more: str) -> None:
    """The search ends as the one that nobody killed, to the last bit, and MLflow has what the folder has."""
    assert campaign.start(name, *more).wait(timeout=300) == 0, campaign.log(name)
    synced = subprocess.run(
        [sys.executable, "-m", "scdgn.cli", "sync", "killed", "--studies", str(campaign.studies(name))],
        cwd=campaign.path, env=campaign.variables(), capture_output=True, text=True,
    )  # fmt: skip
    assert synced.returncode == 0, synced.stderr

    def comparable(records: list[TrialRecord]) -> list[TrialRecord]:
        return [replace(record, seconds=0.0, started=0.0, ended=0.0) for record in records]

    records = campaign.records(name)
    assert [record.number for record in records] == list(range(TRIALS))
    assert comparable(records) == comparable(campaign.records("untouched"))
    mine, untouched = campaign.folder(name), campaign.folder("untouched")
    assert (mine.model / WEIGHTS).read_bytes() == (untouched.model / WEIGHTS).read_bytes()
    summary, expected = mine.read_summary(), untouched.read_summary()
    assert summary is not None and expected is not None
    for key in ("winner", "final", "protocols", "calibration"):
        assert getattr(summary, key) == getattr(expected, key)
    assert not list(mine.checkpoints.glob("*"))
    left = [path.name for path in mine.path.rglob("*") if path.name.startswith((".", "lease"))]
    assert left == [".lease.json.lock"], "what a killed process had begun to write is still there"
    agrees_with_mlflow(campaign.path, summary, records)


def agrees_with_mlflow(path: Path, summary: Any, records: list[TrialRecord]) -> None:
    """One run per trial, with the study's values and states, and nothing else; one version of the model.

    `path` is the folder of mlflow.db.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{path / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    study = f"tags.`scdgn.study_id` = '{summary.id}'"
    runs = list(client.search_runs(experiments, study, max_results=1000))
    trials = [run for run in runs if run.data.tags["scdgn.kind"] == "trial"]
    assert sorted(int(run.data.tags["number"]) for run in trials) == [record.number for record in records]
    for run in trials:
        record = records[int(run.data.tags["number"])]
        assert run.data.tags["state"] == record.state
        assert run.data.metrics["score"] == pytest.approx(record.value)
    assert [sum(run.data.tags["scdgn.kind"] == kind for run in runs) for kind in ("study", "final")] == [1, 2]
    assert not [run for run in runs if run.info.status == "RUNNING"], "a run is left that nobody writes"
    versions = [
        version
        for version in client.search_model_versions("name='killed'")
        if version.tags["scdgn.study_id"] == summary.id
    ]
    assert [str(version.version) for version in versions] == [summary.registered.version]
    models = client.search_logged_models(experiments, f"source_run_id = '{versions[0].run_id}'")
    assert [model.status.value for model in models] == ["READY"], "half a model is left"

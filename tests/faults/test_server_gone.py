"""MLflow's server away for a minute: the search goes on, and has written everything when it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scdgn.cells.h5ad import write_h5ad
from tests.faults import KEYS, run, tally, tiny
from tests.servers import mlflow_server, without_mlflow

pytestmark = pytest.mark.long

MINUTE = 60.0


def test_a_minute_without_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and started again, while trials run; `scdgn sync` finds nothing left to do."""
    write_h5ad(tiny(cells={"a": 150, "b": 150, "c": 150, "d": 40}, genes=60), tmp_path / "cells.h5ad")
    log = tmp_path / "log"
    words = [
        *(sys.executable, "-m", "scdgn.cli", "search", "cells.h5ad", *KEYS, "--test-batch", "d", "--name", "away"),
        *("--trials", "10000", "--timeout", str(1.5 * MINUTE), "--sampler", "RandomSampler", "--pruner", "NopPruner"),
        *("--pack", "1", "--confirm", "1", "--final-seeds", "2", "--set", "hidden=[24, 32]", "--set", "latent=8"),
        *("--set", "domain_code=8", "--set", "epochs=80"),
    ]
    with mlflow_server(tmp_path / "server", f"sqlite:///{tmp_path / 'mlflow.db'}") as server:
        variables = {**without_mlflow(os.environ), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": server.address}
        with log.open("w") as file:
            process = subprocess.Popen(words, cwd=tmp_path, env=variables, stdout=file, stderr=file)
        while "trial 3 " not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        server.signal(signal.SIGKILL)
        server.stop()
        time.sleep(MINUTE)
        going = process.poll() is None
        server.start()
        assert process.wait(timeout=600) == 0, log.read_text()
        assert going, "the search was over before the server was back"
        told = log.read_text()
        assert told.count("MLflow cannot be written to") == 1 and "lacks" not in told and "Traceback" not in told
        assert "registered as away version 1" in told
        client = MlflowClient(server.address)
        (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
        runs = client.search_runs([experiment.experiment_id], "tags.`scdgn.kind` = 'trial'", max_results=10000)
        trials = len(re.findall(r"^trial \d+ (?:complete|failed)", told, re.MULTILINE))
        assert sorted(int(one.data.tags["number"]) for one in runs) == list(range(trials))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        assert f"0 trials and 0 final seeds written; {trials + 2} were there" in run("sync", "away").err
    tally["seconds without MLflow's server, made up for"] += int(MINUTE)

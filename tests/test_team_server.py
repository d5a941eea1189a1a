"""A team's server: MLflow on PostgreSQL, installed and started here, holds what the studies hold; and no password."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scdgn.cells.h5ad import write_h5ad
from scdgn.search.folder import StudyFolder
from scdgn.search.records import FINISHED, RUNGS, TrialRecord
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from tests.faults import KEYS, tiny
from tests.servers import Database, MLflowServer, free_port, mlflow_server, postgresql, without_mlflow

if TYPE_CHECKING:
    from mlflow.entities import Run

pytestmark = pytest.mark.long
pytest.importorskip("psycopg", reason="needs a driver for PostgreSQL: pip install psycopg[binary]")

SCRIPTS = Path(sysconfig.get_path("scripts"))
SECRET = "the-password-of-a-team"
"""Of the MLflow server, as its users have it; the database has one of its own."""
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}
TRIALS = 16


@dataclass(frozen=True)
class Team:
    """What a team has: a database, MLflow's server on it, and a folder of one of its users."""

    database: Database
    server: MLflowServer
    place: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of a user who tracks at the server."""
        address = self.server.address.replace("://", f"://somebody:{SECRET}@")
        return {**without_mlflow(os.environ), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": address}

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start the installed command."""
        environment = self.environment | variables
        return subprocess.Popen(
            [SCRIPTS / "scdgn", *words], cwd=self.place, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command to its end."""
        with self.start(*words, **variables) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def folder(self, name: str) -> StudyFolder:
        """Of a study."""
        return StudyFolder(self.place / "studies" / name)

    def records(self, name: str, storage: str | None = None) -> list[TrialRecord]:
        """The trials of a study; of one that is kept at a storage URL, by that."""
        folder = self.folder(name)
        document = folder.read_settings()
        if storage is not None:
            document["study"]["storage"] = storage
        with warnings.catch_warnings():
            # Optuna leaves its connections to the garbage collector, and psycopg says so then.
            warnings.filterwarnings("ignore", message="<psycopg.Connection.* still open", category=ResourceWarning)
            records = read_records(folder, from_document(document))
            gc.collect()
        return records

    def tracked_trials(self, name: str) -> int:
        """How many trials of a study the server's database has runs of."""
        kinds, studies = "t.key = 'scdgn.kind' AND t.value = 'trial'", f"s.key = 'scdgn.study' AND s.value = '{name}'"
        query = f"SELECT count(*) FROM tags t JOIN tags s ON s.run_uuid = t.run_uuid WHERE {kinds} AND {studies}"
        [(count,)] = self.database.execute("mlflow", query)
        assert isinstance(count, int)
        return count


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    place = tmp_path_factory.mktemp("team")
    write_h5ad(tiny(cells={"a": 150, "b": 150, "c": 150, "d": 40}, genes=60), place / "cells.h5ad")
    with postgresql() as database, mlflow_server(place / "server", database.create("mlflow")) as server:
        yield Team(database, server, place)


def words(name: str, *more: str, trials: int = TRIALS) -> list[str]:
    """Of a search of seconds."""
    return [
        *("search", "cells.h5ad", *KEYS, "--test-batch", "d", "--name", name, "--trials", str(trials)),
        *("--final-seeds", "2", "--confirm", "2", "--pack", "1", "--set", "hidden=[24, 32]", "--set", "latent=8"),
        *("--set", "domain_code=8", "--set", "epochs={low=8, high=16}", *more),
    ]


def test_a_study_on_the_server_is_what_its_folder_says(team: Team) -> None:
    ran = team.run(*words("first"))
    assert ran.returncode == 0, ran.stderr
    assert "MLflow" not in ran.stderr
    agree(team, "first", team.records("first"))
    champion_predicts(team, "first")
    assert not told(team, SECRET, ran)
    assert not told(team, team.database.password, ran)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["halted", "killed"])
def test_a_server_that_goes_and_comes_back_lacks_nothing(team: Team, how: signal.Signals) -> None:
    name, trials = f"server-{how.name}", 40
    with team.start(*words(name, trials=trials)) as process:
        while team.tracked_trials(name) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        team.server.signal(how)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            if how is signal.SIGSTOP:
                team.server.signal(signal.SIGCONT)
            else:
                team.server.stop()
                team.server.start()
    assert process.returncode == 0, err
    assert err.count("MLflow cannot be written to") == 1 and "Traceback" not in err
    assert f"`scdgn sync {name}` writes it" in err
    assert f"the model is not registered, which `scdgn export {name}` makes up for" in err
    records = team.records(name)
    assert team.tracked_trials(name) < trials == len(records)

    synced = team.run("sync", name)
    assert synced.returncode == 0, synced.stderr
    counts = re.search(r"(\d+) trials and 2 final seeds written; (\d+) were there", synced.stderr)
    assert counts is not None and int(counts[2]) >= 2 and int(counts[1]) + int(counts[2]) == trials
    agree(team, name, records)
    again = team.run("sync", name)
    assert f"0 trials and 0 final seeds written; {trials + 2} were there" in again.stderr
    exported = team.run("export", name)
    assert exported.returncode == 0, exported.stderr
    champion_predicts(team, name)
    assert not told(team, SECRET, subprocess.CompletedProcess((), 0, out, err), synced, again, exported)


def test_a_search_whose_trials_the_database_keeps_is_killed_and_goes_on(team: Team) -> None:
    storage = team.database.create("trials")
    moments = random.Random(11)
    command = words("shared", "--storage", storage)
    kills, status, told_so_far = 0, -1, ""
    while status != 0:
        with team.start(*command) as process:
            assert process.stderr is not None
            for line in process.stderr:
                told_so_far += line
                if kills < 3 and line.startswith("trial"):
                    time.sleep(moments.uniform(0, 0.6))
                    process.kill()
                    break
            told_so_far += process.stderr.read()
            status = process.wait(timeout=300)
        assert status in (0, -signal.SIGKILL), told_so_far
        kills += status == -signal.SIGKILL
        assert sum(record.state in FINISHED for record in team.records("shared", storage)) <= TRIALS
    assert kills == 3

    records = team.records("shared", storage)
    assert [record.number for record in records] == list(range(TRIALS))
    agree(team, "shared", records)
    untouched = team.run(*words("alone", "--no-track"))
    assert untouched.returncode == 0, untouched.stderr
    for record, expected in zip(records, team.records("alone"), strict=True):
        assert (record.state, record.settings) == (expected.state, expected.settings)
        assert (record.steps, record.folds) == (expected.steps, expected.folds)


def test_the_password_of_a_storage_url_is_neither_kept_nor_printed(team: Team) -> None:
    storage, password = team.database.create("secret"), team.database.password
    ran = [team.run(*words("secret", "--storage", storage, trials=4))]
    assert ran[0].returncode == 0, ran[0].stderr
    agree(team, "secret", team.records("secret", storage))

    ran += [team.run(command, "secret", PGPASSWORD=password) for command in ("status", "sync")]
    assert [done.returncode for done in ran] == [0, 0, 0], ran[-1].stderr
    assert "4 complete" in ran[1].stdout and "0 trials and 0 final seeds written" in ran[2].stderr
    wrong = {"/secret": "/postgres", f":{team.database.port}/": f":{free_port()}/", "scdgn:": "nobody:", "://": ":/"}
    refused = [team.run(*words("secret", "--storage", storage.replace(*change))) for change in wrong.items()]
    refused.append(team.run("status", "secret"))
    for done in refused:
        assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not told(team, password, *ran, *refused)


def agree(team: Team, name: str, records: list[TrialRecord]) -> None:
    """The server has one run per trial, with the study's values and states, below the study's run; and nothing else."""
    from mlflow import MlflowClient

    client = MlflowClient(team.server.address)
    experiment = client.get_experiment_by_name("scdgn")
    assert experiment is not None
    identity = team.folder(name).read_settings()["record"]["id"]
    found = client.search_runs([experiment.experiment_id], f"tags.`scdgn.study_id` = '{identity}'", max_results=1000)
    runs: dict[str, list[Run]] = {kind: [] for kind in ("study", "trial", "final")}
    for run in found:
        runs[run.data.tags["scdgn.kind"]].append(run)
    [parent] = runs["study"]
    assert parent.info.status == "FINISHED" and "mlflow.parentRunId" not in parent.data.tags
    trials = sorted(runs["trial"], key=lambda run: int(run.data.tags["number"]))
    assert [int(run.data.tags["number"]) for run in trials] == [record.number for record in records]
    for run, record in zip(trials, records, strict=True):
        tags = run.data.tags
        assert (run.info.status, tags["state"]) == (STATUS[record.state], record.state)
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        history = client.get_metric_history(run.info.run_id, "score")
        by_epoch = {-(-step * record.settings["epochs"] // RUNGS): value for step, value in record.steps.items()}
        assert {point.step: point.value for point in history} == by_epoch and len(history) == len(by_epoch)
        assert run.data.params["lr"] == str(record.settings["lr"])
    summary = team.folder(name).read_summary()
    assert summary is not None
    winner = trials[summary.winner.number].info.run_id
    assert sorted(int(run.data.tags["seed"]) for run in runs["final"]) == sorted(summary.final.seeds)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs["final"]} == {winner}
    assert {path.path for path in client.list_artifacts(parent.info.run_id)} >= {"study.toml", "summary.json"}


def champion_predicts(team: Team, name: str) -> None:
    """The champion comes over HTTP, to a process that knows the server's address alone, and predicts as the study's."""
    code = """
import sys, anndata, mlflow.pyfunc
cells = anndata.read_h5ad("cells.h5ad")
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[1]}@champion")
print(*model.predict(cells[cells.obs["tech"] == "d"].to_df())["label"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, name], cwd=team.place, env=team.environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == expected_labels(team, name)


def expected_labels(team: Team, name: str) -> list[str]:
    from anndata import read_h5ad

    from scdgn.cells.fields import Fields
    from scdgn.cells.reading import from_anndata
    from scdgn.model.bundle import Bundle

    cells = read_h5ad(team.place / "cells.h5ad")
    dataset = from_anndata(cells[cells.obs["tech"] == "d"].copy(), Fields("celltype", "tech"))
    bundle = Bundle.load(team.folder(name).model)
    return [bundle.cell_types[code] for code in bundle.probabilities(bundle.input(dataset)).argmax(axis=1)]


def told(team: Team, secret: str, *ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Where a password can be read: what commands printed, the studies, the artifacts, or MLflow's own database."""
    files = [path for part in ("studies", "server") for path in (team.place / part).rglob("*") if path.is_file()]
    found = [str(path.relative_to(team.place)) for path in files if secret.encode() in path.read_bytes()]
    found += [text for one in ran for text in (one.stdout, one.stderr) if secret in text]
    return found + ["MLflow's database"] * (secret in team.database.dump("mlflow"))

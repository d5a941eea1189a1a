"""What docs/distributed.md and docs/deploy say is there, and what can run on one machine runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scdgn.cells.h5ad import write_h5ad
from scdgn.search.folder import StudyFolder
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from tests import LONGEST
from tests.faults import FAST, KEYS, tiny
from tests.guides import DOCS, check_command, commands_of, fragments

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = DOCS / "deploy"
GUIDE = DOCS / "distributed.md"
SCRIPTS = sorted(DEPLOY.glob("*.sbatch"))
FILES = sorted(path for path in (*DEPLOY.iterdir(), GUIDE))

SECRET = re.compile(r"PASSWORD|SECRET|KEY|TOKEN")


def _yaml(name: str) -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(document, dict)
    return document


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


# --- What is written ------------------------------------------------------------------------------------------------


def shell_parts() -> list[tuple[str, str]]:
    parts = [(path.name, path.read_text()) for path in SCRIPTS]
    return parts + [
        (f"{heading} ({kind})", text) for kind in ("bash", "sh") for heading, text in fragments(GUIDE, kind).items()
    ]


@pytest.mark.parametrize(("name", "text"), shell_parts(), ids=[name for name, _ in shell_parts()])
def test_shell_is_well_formed(name: str, text: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert not checked.stderr, checked.stderr
    shellcheck = shutil.which("shellcheck")
    if shellcheck is not None and name.endswith(".sbatch"):
        linted = subprocess.run([shellcheck, "--shell=bash", "-"], input=text, text=True, capture_output=True)
        assert linted.returncode == 0, linted.stdout


def test_every_file_is_spoken_of() -> None:
    guide = GUIDE.read_text()
    read = [path.name for path in DEPLOY.iterdir() if path.suffix != ".dockerignore"]
    assert all(name in guide for name in read)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", guide)
    assert links
    assert all((GUIDE.parent / link).exists() for link in links)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_of_scdgn_exists(path: Path) -> None:
    given = commands_of(path)
    assert given or path.suffix not in (".md", ".sbatch")
    for words in given:
        check_command(words)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_of_ray_start_exists(path: Path) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    text = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    for words in re.findall(r"(?:ray start|ray_on) ([^\n`;&]*)", text):
        assert set(re.findall(r"--[a-z][a-z-]*", words)) <= known, words


def test_the_image_copies_what_is_there_and_runs_as_nobody_special() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    linked = {path.readlink().name for path in (ROOT / "scdgn").iterdir() if path.is_symlink()}
    assert {"scdgn", "mlflow.env", "constraints.txt", "pyproject.toml"} | linked <= set(copied) and len(linked) == 2
    assert all((ROOT / name).exists() for name in copied)
    shown = {line.removeprefix("!") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()}
    assert set(copied) <= shown
    assert [line for line in lines if line.startswith("USER ")] == ["USER scdgn"]
    assert all("-c constraints.txt" in line for line in lines if "pip install" in line)
    assert "RAY_AUTH_MODE=token" in "\n".join(lines)


def test_the_cluster_is_one_that_ray_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(_yaml("ray-cluster.yaml"))
    validate_config(config)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for kind in ("head", "worker"):
        (started,) = [words for words in config[f"{kind}_start_ray_commands"] if "ray start" in words]
        assert "RAY_AUTH_MODE=token" in started
    assert config["available_node_types"]["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "0.0.0.0" not in (DEPLOY / "ray-cluster.yaml").read_text()


def test_the_rayjob_runs_a_study_on_a_cluster_with_a_token() -> None:
    job = _yaml("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["scdgn", "search"]
    assert words[words.index("--engine") + 1] == "ray"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pins()["ray"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert words[2].startswith(mount["mountPath"])
        assert words[words.index("--studies") + 1].startswith(mount["mountPath"])
        assert pod["securityContext"]["runAsNonRoot"] is True
    assert "nvidia.com/gpu" in pods[1]["containers"][0]["resources"]["limits"]
    assert "envFrom" not in pods[1]["containers"][0]  # only the driver speaks to MLflow


def test_the_servers_are_checked_pinned_and_closed() -> None:
    team = _yaml("compose.yaml")
    services = team["services"]
    assert set(services) == {"postgres", "store", "mlflow"}
    for service in services.values():
        assert service["healthcheck"]["test"]
        assert ":" in service["image"]
        assert "latest" not in service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not services["postgres"].get("ports")
    assert services["mlflow"]["image"] == f"ghcr.io/mlflow/mlflow:v{pins()['mlflow']}-full"
    assert {name: how["condition"] for name, how in services["mlflow"]["depends_on"].items()} == {
        "postgres": "service_healthy",
        "store": "service_healthy",
    }
    assert services["mlflow"]["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert set(team["volumes"]) >= {
        mount.partition(":")[0] for one in services.values() for mount in one.get("volumes", [])
    }


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's, of its own types
def test_mlflow_knows_the_options_of_its_server() -> None:
    from mlflow.cli import server

    words = _yaml("compose.yaml")["services"]["mlflow"]["command"].split()
    server.make_context("server", words[2:])
    read = {name for parameter in server.params for name in (parameter.envvar or ())} | {
        parameter.envvar for parameter in server.params if isinstance(parameter.envvar, str)
    }
    from mlflow import environment_variables

    for name in _yaml("compose.yaml")["services"]["mlflow"]["environment"]:
        assert name in read or hasattr(environment_variables, name) or name.startswith("AWS_"), name


def test_no_secret_is_written_down() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    for service in _yaml("compose.yaml")["services"].values():
        for name, value in service["environment"].items():
            assert not SECRET.search(name) or value.startswith("${"), name
    assert all("${" in secret for secret in re.findall(r"://\w+:([^@\s]+)@", text))
    asked = set(re.findall(r"\$\{(\w+)", text))
    values = {name: dict(_variables(name)) for name in ("team.env", "client.env")}
    assert asked == set(values["team.env"])
    for content in values.values():
        assert all(not value for name, value in content.items() if SECRET.search(name))
    for path in FILES:
        assert not re.search(r"RAY_AUTH_TOKEN=\S|auth_token: *[0-9a-f]{8}", path.read_text()), path.name


def _variables(name: str) -> list[tuple[str, str]]:
    lines = (DEPLOY / name).read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_0-9]+", key) and sign for key, sign, _ in pairs)
    return [(key, value) for key, _, value in pairs]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_jobs_are_told_before_the_walltime_and_may_queue_again(script: Path) -> None:
    text = script.read_text()
    told = re.findall(r"^#SBATCH (.+)$", text, flags=re.MULTILINE)
    assert {"--requeue", "--open-mode=append"} <= set(told)
    (seconds,) = (int(word.partition("@")[2]) for word in told if word.startswith("--signal=B:USR1@"))
    assert seconds >= 60
    # sbatch reads its directives up to the first command.
    assert text.index("#SBATCH --signal") < text.index("set -euo pipefail")


# --- What runs ------------------------------------------------------------------------------------------------------


class Bench:
    """A machine with the programs of SLURM as far as the scripts use them, and nothing of anybody else's."""

    def __init__(self, folder: Path, ray: Path) -> None:
        self.folder = folder
        self.ray = ray
        self.asked = folder / "scontrol.log"
        programs = folder / "bin"
        programs.mkdir()
        scripts = {
            # The rest of the command, on this host: a step is over when what it runs is.
            "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"',
            "scontrol": f'if [[ $1 == show ]]; then printf "one\\ntwo\\n"; else echo "$@" >> {self.asked}; fi',
            "scdgn": f'exec {sys.executable} -m scdgn.cli "$@"',
        }
        for name, body in scripts.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n")
            (programs / name).chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "MLFLOW_"))},
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(folder),
            "RAY_TMPDIR": str(ray),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *words: str | Path, **environment: str) -> subprocess.Popen[str]:
        """A command, its output as one stream."""
        return subprocess.Popen(
            [str(word) for word in words],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def states(self, name: str) -> list[str]:
        """Of the trials of a study."""
        folder = StudyFolder(self.folder / "studies" / Path(*name.split("/")))
        return [record.state for record in read_records(folder, from_document(folder.read_settings()))]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    ray = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))  # short: Ray's sockets lie in it
    yield Bench(tmp_path, ray)
    for mark in (str(ray), str(tmp_path)):  # in case that a test failed: what it started
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
    shutil.rmtree(ray, ignore_errors=True)


def until(process: subprocess.Popen[str], beginning: str) -> str:
    """Its output up to a line that begins so."""
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if line.startswith(beginning):
            return told
    raise AssertionError(f"ended with {process.wait()} before {beginning!r}:\n{told}")


TRIALS = 4
SMALL = ("--trials", str(TRIALS), "--confirm", "0", "--final-seeds", "1", "--pack", "1", *FAST)
SLOW = ("--set", "epochs=150")


def test_a_task_of_the_array_queues_again_and_goes_on(bench: Bench) -> None:
    write_h5ad(tiny(), bench.folder / "tiny.h5ad")
    script = ["bash", str(DEPLOY / "slurm-array.sbatch"), "islets", "tiny.h5ad", *KEYS, *SMALL, *SLOW]
    slurm = {"SLURM_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": "5", "SLURM_CPUS_PER_TASK": "1"}

    process = bench.start(*script, **slurm)
    told = until(process, "trial ")
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 130, told + rest
    assert "the same command goes on" in rest
    assert bench.asked.read_text() == "requeue 4242\n"
    before = bench.states("islets/repeat2/scdgn")  # task 5 of 3 methods: the second repeat of the third
    assert before.count("complete") + before.count("pruned") < TRIALS

    process = bench.start(*script, **slurm)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert bench.asked.read_text() == "requeue 4242\n"  # not again
    states = bench.states("islets/repeat2/scdgn")
    assert len(states) == TRIALS
    assert set(states) <= {"complete", "pruned"}
    assert not (bench.folder / "studies" / "mlflow.db").exists()
    settings = StudyFolder(bench.folder / "studies" / "islets" / "repeat2" / "scdgn").read_settings()
    assert settings["study"]["seed"] == 1000


@pytest.mark.parametrize(
    ("told", "status", "queued"),
    [
        (signal.SIGUSR1, 130, True),  # the walltime
        (signal.SIGUSR1, 0, False),  # done in the nick of time
        (signal.SIGTERM, 130, False),  # preempted: SLURM itself sees to it
        (None, 2, False),  # a mistake would be one the next time too
    ],
)
def test_what_is_queued_again(bench: Bench, told: signal.Signals | None, status: int, queued: bool) -> None:
    driver = f"trap 'sleep 0.2; exit {status}' USR1\necho running\nwhile :; do sleep 0.05; done"
    (bench.folder / "bin" / "scdgn").write_text(f"#!/bin/bash\n{driver if told else f'echo running; exit {status}'}\n")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    process = bench.start("bash", DEPLOY / "slurm-array.sbatch", "name", **slurm)
    until(process, "running")
    if told is not None:
        process.send_signal(told)
    rest, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == status, rest
    assert bench.asked.exists() == queued


@pytest.mark.long
def test_a_ray_cluster_in_an_allocation(bench: Bench) -> None:
    write_h5ad(tiny(), bench.folder / "tiny.h5ad")
    words = ("tiny.h5ad", *KEYS, *SMALL, "--name", "islets", "--no-track")
    script = ["bash", str(DEPLOY / "slurm-ray.sbatch"), *words]
    slurm = {
        "SLURM_JOB_ID": str(900_000 + os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_NODE": "1000",
    }
    token = bench.folder / f".ray-token-{slurm['SLURM_JOB_ID']}"
    temp = Path(f"/tmp/ray-{slurm['SLURM_JOB_ID']}")

    process = bench.start(*script, *SLOW, **slurm)
    told = until(process, "Ray runs on 2 of 2 nodes")
    assert token.stat().st_mode & 0o777 == 0o600
    told += until(process, "trial ")
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=180)
    assert process.returncode == 130, told + rest
    assert bench.asked.read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    assert not token.exists()
    assert not temp.exists()

    process = bench.start(*script, *SLOW, **slurm)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    states = bench.states("islets")
    assert len(states) == TRIALS
    assert set(states) <= {"complete", "pruned"}
    fleet = json.loads((bench.folder / "studies" / "islets" / "fleet.json").read_text())
    assert len(fleet["nodes"]) == 2
    assert not token.exists()
    assert not temp.exists()


@pytest.mark.long
def test_the_fragments_of_the_guide_run_in_order(bench: Bench) -> None:
    """All in one shell, as somebody would give them who reads on."""
    # Of what the guide calls islets.h5ad, and so small settings that it takes seconds.
    small = shlex.join(["--trials", "2", "--confirm", "0", "--final-seeds", "1", *FAST])
    shim = f'if [[ $1 == search ]]; then set -- "$@" {small}; fi\nexec {sys.executable} -m scdgn.cli "$@"'
    (bench.folder / "bin" / "scdgn").write_text(f"#!/bin/bash\n{shim}\n")
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    guide = fragments(GUIDE, "bash")
    assert set(guide) == {"One machine", "A cluster by hand", "SLURM", "When things fail"}
    text = "\n".join(f"echo '## {heading}'\n{part}" for heading, part in guide.items()).replace("6379", port)
    simulated = "scdgn simulate islets.h5ad --cells 400 --genes 60"
    process = bench.start("bash", "-c", f"set -euo pipefail\n{simulated}\n{text}")
    try:
        told, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, told
    for name in ("islets", "islets_cluster", "islets_walltime", "comparison/repeat1/nn", "comparison/repeat1/scdgn"):
        assert len(bench.states(name)) == 2, told
    assert (bench.folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600

"""The servers of a team, on loopback: PostgreSQL from Debian's packages, and MLflow's server on it."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian's packages keep PostgreSQL's programs, by version."""


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server that wants a password.

    Attributes
    ----------
    port
        On 127.0.0.1.
    password
        Of the user scdgn, who may do everything.
    folder
        Of the server: its socket and its log; the data are in its `data`.
    """

    port: int
    password: str
    folder: Path

    def url(self, name: str) -> str:
        """Of one of its databases, as SQLAlchemy has it."""
        return f"postgresql://scdgn:{self.password}@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """Make a database; its URL."""
        self.execute("postgres", f'CREATE DATABASE "{name}"')
        return self.url(name)

    def dump(self, name: str) -> str:
        """All that one of its databases holds."""
        command = [str(_programs() / "pg_dump"), "--data-only", self.url(name)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def execute(self, name: str, statement: str) -> list[tuple[object, ...]]:
        """Run a statement in a database; the rows that it gives."""
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.url(name), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []


@contextmanager
def postgresql() -> Iterator[Database]:
    """A PostgreSQL server of its own, gone with its data at the end; skips the test where there can be none."""
    programs, owner = _programs(), _owner()
    database = Database(free_port(), secrets.token_hex(16), Path(tempfile.mkdtemp(prefix="scdgn-pg-", dir="/tmp")))
    secret, log = database.folder / "password", database.folder / "log"
    identity = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def call(program: str, *words: str | Path) -> None:
        command = [programs / program, "--pgdata", database.folder / "data", *words]
        # Not into a pipe, which the server that pg_ctl leaves behind would hold open.
        with log.open("ab") as told:
            done = subprocess.run(command, cwd=database.folder, stdout=told, stderr=told, timeout=120, **identity)
        assert done.returncode == 0, log.read_text()

    try:
        secret.write_text(database.password)
        if owner is not None:
            for place in (database.folder, secret):
                os.chown(place, owner.pw_uid, owner.pw_gid)
        call("initdb", "--username", "scdgn", "--auth", "scram-sha-256", "--pwfile", secret, "--no-sync")
        # The path of a socket has to be short (107 characters), which pytest's folders are not; and root's are closed.
        options = f"-p {database.port} -k {database.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "start", "--wait", "--options", options)
        try:
            yield database
        finally:
            call("pg_ctl", "stop", "--wait", "--mode", "immediate")
    finally:
        shutil.rmtree(database.folder)


class MLflowServer:
    """`mlflow server` on loopback, which can be halted, killed and started again at the same address.

    Parameters
    ----------
    folder
        For the artifacts and the log.
    backend
        URL of the database.
    """

    def __init__(self, folder: Path, backend: str) -> None:
        self._folder = folder
        self._backend = backend
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        """What it said."""
        return (self._folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--workers", "1", "--serve-artifacts"),
        ]
        environment = {
            **without_mlflow(os.environ),
            # Not as arguments, which everybody on the machine can read.
            "MLFLOW_BACKEND_STORE_URI": self._backend,
            "MLFLOW_ARTIFACTS_DESTINATION": str(self._folder / "artifacts"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self._folder / "server.log").open("ab") as log:
            # A session of its own, to be signalled with its workers.
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, self.log
            time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and all its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[MLflowServer]:
    """An MLflow server that runs, and is stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    server = MLflowServer(folder, backend)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def without_mlflow(environment: os._Environ[str]) -> dict[str, str]:
    """An environment that says nothing of MLflow."""
    return {key: value for key, value in environment.items() if not key.startswith("MLFLOW_")}


def _programs() -> Path:
    """PostgreSQL's programs, installed if they are not there."""
    if (found := _newest()) is None:
        if reason := _install():
            pytest.skip(f"Debian packages cannot be installed here: {reason}")
        found = _newest()
        assert found is not None, f"the package postgresql brought no initdb under {INSTALLED}"
    return found


def _newest() -> Path | None:
    found = [path.parent for path in INSTALLED.glob("*/bin/initdb") if (path.parent / "pg_ctl").exists()]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def _install() -> str:
    """Install Debian's PostgreSQL; why that cannot be done, in one line, or nothing."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    if os.geteuid() != 0:
        return "that takes root"
    environment = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "TMPDIR": "/tmp",
    }  # where apt's own user may write
    for words in (("update",), ("install", "--yes", "--no-install-recommends", "postgresql")):
        try:
            done = subprocess.run(
                ["apt-get", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=600,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"apt-get {words[0]} takes more than ten minutes"
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            return f"apt-get {words[0]}: {last}"
    return ""


def _owner() -> pwd.struct_passwd | None:
    """Who is to run PostgreSQL, which refuses root; None: who runs this."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres", known["nobody"])

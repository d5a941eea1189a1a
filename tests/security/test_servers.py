"""Servers that we start listen on this machine alone; Ray's, which cannot, let nobody in without a token."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scdgn.search.tracking.store import HOST, _create
from tests.servers import free_port, without_mlflow

ROOT = Path(__file__).parents[2]
LOOPBACK = {"127.0.0.1", "::1"}
LISTENING = "0A"


def addresses(process: int) -> set[tuple[str, int]]:
    """Where a process and its children listen for TCP connections."""
    own = {inode for pid in _family(process) for inode in _sockets(pid)}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[3] == LISTENING and words[9] in own:
                host, _, port = words[1].partition(":")
                # In words of four bytes, each as this machine has its numbers.
                content = b"".join(struct.pack("=I", int(host[at : at + 8], 16)) for at in range(0, len(host), 8))
                found.add((socket.inet_ntop(family, content), int(port, 16)))
    return found


def _family(process: int) -> Iterator[int]:
    yield process
    for thread in Path(f"/proc/{process}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from _family(int(child))


def _sockets(process: int) -> Iterator[str]:
    for opened in Path(f"/proc/{process}/fd").iterdir():
        try:
            kind = str(opened.readlink())
        except OSError:  # closed meanwhile
            continue
        if found := re.fullmatch(r"socket:\[(\d+)\]", kind):
            yield found[1]


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc of Linux")


@needs_proc
@pytest.mark.parametrize(("host", "seen"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1")])
def test_what_listens_is_seen(host: str, seen: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        server.listen()
        assert (seen, server.getsockname()[1]) in addresses(os.getpid())


@needs_proc
def test_the_user_interface_listens_on_this_machine_alone(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "scdgn.cli", "ui", "--port", str(port), "--studies", str(tmp_path / "studies")]
    (tmp_path / "studies").mkdir()
    _create(tmp_path / "studies" / "mlflow.db", str(tmp_path / "studies" / "mlartifacts"))
    environment = {**without_mlflow(os.environ), "PYTHONPATH": str(ROOT)}
    with started(command, tmp_path, environment) as process:
        deadline = time.monotonic() + 120
        while not (found := addresses(process.pid)):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert {host for host, _ in found} <= LOOPBACK, found
        assert (HOST, port) in found


def test_no_address_of_all_interfaces_is_written_anywhere() -> None:
    files = [ROOT / "Makefile", ROOT / "mlflow.env", *(ROOT / "docs").rglob("*.md")]
    files += [path for package in ("scdgn", "search", "analysis") for path in (ROOT / package).rglob("*.py")]
    assert HOST == "127.0.0.1"
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\d.])0\.0\.0\.0(?![\d.])", text), path
        for line in text.splitlines():
            assert "http.server" not in line or "--bind 127.0.0.1" in line, f"{path}: {line}"


RAY = """
import sys, ray
from scdgn.search.engines.cluster import Cluster, Resources
cluster = Cluster(Resources(None, None, 1, 0, 0, "cpu"))
cluster._start()
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
"""
VISITOR = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('inside', len(ray.nodes()))"


@pytest.mark.long
def test_ray_lets_nobody_in_without_the_token(tmp_path: Path) -> None:
    """Its ports are open to all interfaces: it has no way to say otherwise."""
    users = {name: tmp_path / name for name in ("owner", "stranger")}
    for home in users.values():
        home.mkdir()
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    plain |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    of = {name: {**plain, "HOME": str(home)} for name, home in users.items()}
    with subprocess.Popen(
        [sys.executable, "-c", RAY], env=of["owner"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None and driver.stdin is not None
        address = driver.stdout.readline().strip()

        def visit(environment: dict[str, str]) -> bool:
            command = [sys.executable, "-c", VISITOR, address]
            try:
                ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            except subprocess.TimeoutExpired:
                return False
            return "inside" in ran.stdout

        try:
            assert visit({**of["owner"], "RAY_AUTH_MODE": "token"})
            assert not visit({**of["stranger"], "RAY_AUTH_MODE": "disabled"})
            assert not visit({**of["stranger"], "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
        finally:
            driver.stdin.write("\n")
            driver.stdin.flush()


@contextmanager
def started(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in folder/log, ended with its children when the block ends."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()

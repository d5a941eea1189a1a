"""MLflow's user interface of the studies, on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from scdgn.search.credentials import without_password
from scdgn.search.tracking.contents import KIND
from scdgn.search.tracking.store import HOST, PORT, TrackingError, configure, connect, reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST = 10
"""Trials that are shown side by side."""

ASKED = 0.2
"""Seconds after which it is asked again whether the interface answers, unless it has ended."""


def serve(
    studies: Path, host: str = HOST, port: int = PORT, ready: Callable[[str, str | None], object] | None = None
) -> int:
    """Run MLflow's user interface until it is stopped; its exit status.

    Parameters
    ----------
    ready
        Given, once it answers, the address that shows all trials, the best ones first, and the one that shows the best
        ten side by side; None where there are not two to compare.

    Raises
    ------
    TrackingError
        If runs are kept by a server, which has its own; if there are none, or the port is taken.
    """
    store = configure(studies)
    if store.is_server:
        raise TrackingError(
            f"studies are tracked by the server {without_password(store.uri)}: open that address in a browser"
        )
    if store.file is not None and not store.file.exists():
        raise TrackingError(f"no study is tracked in {studies}: run `scdgn search` first, or give --studies")
    with reaching(store):
        client, experiment = connect(store)
        best = best_trials(client, experiment)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} of {host} cannot be had ({error.strerror}): give another --port"
            ) from None
    words = ["ui", "--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # Not among the words, which all users of the machine may read.
    environment = {"PYTHONWARNINGS": "ignore", **os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}
    # A group of its own, so that it ends as a whole: MLflow leaves its workers behind.
    process = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True)
    try:
        while not _answers(host, port):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(ASKED)
        if ready is not None:
            server = f"http://{host}:{port}"
            compared = compare_address(server, experiment, best) if len(best) > 1 else None
            ready(trials_address(server, experiment), compared)
        return process.wait()
    finally:
        _end(process)


def trials_address(server: str, experiment: str) -> str:
    """Where a browser finds the trials of all studies, the best ones first.

    MLflow opens an experiment on its page for traces; this names the page for training, its order and its filter.
    """
    words = {
        "workflowType": "machine_learning",
        "orderByKey": "metrics.`score`",
        "orderByAsc": "false",
        "searchFilter": f"tags.`{KIND}` = 'trial'",
    }
    return f"{server}/#/experiments/{experiment}/runs?{urlencode(words, quote_via=quote)}"


def compare_address(server: str, experiment: str, runs: Sequence[str]) -> str:
    """Where a browser finds runs side by side: parallel coordinates, contours, and a table of their differences."""
    words = {"runs": json.dumps(list(runs)), "experiments": json.dumps([experiment])}
    return f"{server}/#/compare-runs?{urlencode(words, quote_via=quote)}"


def best_trials(client: MlflowClient, experiment: str) -> list[str]:
    """Ids of the `BEST` trials of all studies, by their score; those that were pruned are not among them."""
    words = f"tags.`{KIND}` = 'trial' and tags.state = 'complete'"
    found = client.search_runs([experiment], words, max_results=BEST, order_by=["metrics.score DESC"])
    return [str(run.info.run_id) for run in found]


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return

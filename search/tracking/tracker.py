"""MLflow beside a study: written while it runs, or at any later time, from the study folder."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scdgn.errors import ScdgnError
from scdgn.search.credentials import without_password
from scdgn.search.folder import StudyFolder, owned
from scdgn.search.records import FINISHED, TrialRecord
from scdgn.search.shown.watching import Begun, Watcher
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from scdgn.search.summary import AnySummary, Summary
from scdgn.search.tracking.contents import KIND, STUDY_ID, State
from scdgn.search.tracking.runs import Runs, Synced
from scdgn.search.tracking.store import HOST, PORT, Store, configure, connect, find_runs, reaching, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PATIENCE = 15.0
"""Seconds that a search waits, when it ends, for what is left to be written."""

PAUSE = 30.0
"""Seconds after a failure before the store is tried again."""


def sync(folder: StudyFolder) -> Synced:
    """Write to the store what it lacks of a study that nobody runs.

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    LeaseError
        If the study is being run: its own process tracks it.
    DataError
        If there is no study.
    """
    settings = from_document(folder.read_settings())
    store = _store_of(folder)  # before MLflow is imported
    with owned(folder), reaching(store):
        records = read_records(folder, settings)
        summary = folder.read_summary()
        finished = sum(record.state in FINISHED for record in records)
        done = finished == (summary.asked.finished if isinstance(summary, Summary) else 0)
        return Runs(store, folder).write(records, summary, "finished" if done else "stopped")


class StudyRun(NamedTuple):
    """The run of a study in a store."""

    store: Store
    client: MlflowClient
    experiment: str
    id: str


def find_study_run(folder: StudyFolder) -> StudyRun | None:
    """The run of a study; None if it is not tracked (yet).

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    """
    store = _store_of(folder)
    with reaching(store):
        client, experiment = connect(store)
        tags = {STUDY_ID: folder.read_settings()["record"]["id"], KIND: "study"}
        found = next(iter(find_runs(client, experiment, tags)), None)
    return None if found is None else StudyRun(store, client, experiment, str(found.info.run_id))


def _run_if_any(folder: StudyFolder) -> StudyRun | None:
    """The same, where there is a store: no database is made to find that out."""
    store = _store_of(folder)
    return None if store.file is not None and not store.file.exists() else find_study_run(folder)


def attach(folder: StudyFolder, files: Mapping[str, Path]) -> bool:
    """Lay files, by the names that they get there, parts separated by slashes, beside a study's run; False where it has
    none.

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    """
    run = _run_if_any(folder)
    if run is None:
        return False
    with reaching(run.store):
        for name, path in files.items():
            run.client.log_artifact(run.id, str(path), name.rpartition("/")[0] or None)
    return True


def run_address(folder: StudyFolder) -> str | None:
    """Where a browser finds a study's run: on its server, else where `scdgn ui` serves by default; None if untracked.

    Raises
    ------
    TrackingError
        If the store cannot be reached.
    """
    run = _run_if_any(folder)
    if run is None:
        return None
    server = without_password(run.store.uri).rstrip("/") if run.store.is_server else f"http://{HOST}:{PORT}"
    return f"{server}/#/experiments/{run.experiment}/runs/{run.id}"


class Tracker(Watcher):
    """Writes a study to the store while it runs, in a thread of its own.

    Nothing that happens to the store reaches the search. What cannot be written is tried again when a later trial ends.

    Parameters
    ----------
    say
        Given one sentence when the store cannot be written to, and one at the end if it still lacks something.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._folder: StudyFolder | None = None
        self._selected_by: Mapping[str, str] | None = None
        self._records: dict[int, TrialRecord] = {}
        self._summary: AnySummary | None = None
        self._state: State = "running"
        self._runs: Runs | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracking")
        # What changes the above raises the version; the other is the one that the store has.
        self._version = self._written = 0
        self._busy = self._closing = self._told = False
        self._next_try = 0.0

    def begun(self, study: Begun) -> None:
        """Start to track a study: a tracker is for one."""
        self.follow(study.folder, selected_by(study), study.records)

    def follow(self, folder: StudyFolder, by: Mapping[str, str], records: Sequence[TrialRecord]) -> None:
        """The same, of what `begun` takes from a study."""
        self._start(folder)
        self._selected_by = by
        self._records = {record.number: record for record in records}
        self._changed()

    def ended(self, record: TrialRecord) -> None:
        """Write the trial."""
        with self._change:
            self._records[record.number] = record
            self._changed()

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """Write what came out, and wait for it if the store answers."""
        if self._folder is None:
            self._start(folder)
        with self._change:
            self._summary, self._state = summary, "finished"
            self._changed()
        self.wait(PATIENCE)

    def wait(self, seconds: float) -> None:
        """Wait until all is written that can be, but not for longer."""
        with self._change:
            self._change.wait_for(lambda: not self._busy and not self._is_due(), seconds)

    def close(self) -> None:
        """Write what is left, trying once more if the store did not answer, and say if something could not be."""
        if self._folder is None or self._closing:
            return
        with self._change:
            if self._state == "running":
                self._state = "stopped"
                self._version += 1
            self._closing = True
            self._next_try = 0.0
            self._change.notify_all()
        self._thread.join(PATIENCE)
        if self._written < self._version:
            self._say(lacking(self._folder))

    def _start(self, folder: StudyFolder) -> None:
        self._folder = folder
        with suppress(ScdgnError):  # said by the thread, which meets it too
            _store_of(folder)
        # Not in the thread: imports set filters of warnings, and those are one for all threads.
        import mlflow  # noqa: F401

        self._thread.start()

    def _changed(self) -> None:
        with self._change:
            self._version += 1
            self._change.notify_all()

    def _is_due(self) -> bool:
        """Whether something is to be written now."""
        return self._written < self._version and time.monotonic() >= self._next_try

    def _work(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closing or self._is_due())
                if not self._is_due():
                    return
                self._busy = True
                version, state, last = self._version, self._state, self._closing
                records, summary = list(self._records.values()), self._summary
            try:
                self._write(records, summary, state)
            except Exception as error:  # a search of hours must not end for what tracking raises, whatever it is
                self._failed(error, last)
            else:
                self._written = version

    def _write(self, records: Sequence[TrialRecord], summary: AnySummary | None, state: State) -> None:
        assert self._folder is not None
        if self._runs is None:
            self._runs = Runs(_store_of(self._folder), self._folder, self._selected_by)
        self._runs.write(records, summary, state)
        if state != "running" and self._monitor is not None:  # after it: who is away is not waited for twice
            watched, self._monitor = self._monitor, None
            with suppress(Exception):  # as below
                _finish(watched)
        if state == "running" and self._monitor is None:
            with suppress(Exception):  # a machine that does not tell of itself is no reason to tell nothing else
                self._monitor = _monitor(self._runs.parent)

    def _failed(self, error: Exception, last: bool) -> None:
        self._runs = None  # how far it came is to be looked up again
        with self._change:
            if last:
                self._next_try = math.inf
            elif not self._closing:  # which wants another try at once
                self._next_try = time.monotonic() + PAUSE
        if not self._told:
            self._told = True
            reason = str(error) if isinstance(error, ScdgnError) else reason_of(error)
            self._say(f"MLflow cannot be written to ({reason}): the search goes on, and its trials are written later")


def _monitor(run: str) -> SystemMetricsMonitor:
    """MLflow's own watch over processor, memory, disk and network, and over a GPU with what it takes to watch it."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Of a server that is away the user is told once, and not by its thread.
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run, resume_logging=True, tracking_uri=os.environ["MLFLOW_TRACKING_URI"]
    )
    monitor.collect_metrics()  # type: ignore[no-untyped-call]  # the load is told since the same thread last asked
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def _finish(monitor: SystemMetricsMonitor) -> None:
    """End the watch with one more sample, since MLflow takes the first after ten seconds."""
    monitor.finish()  # type: ignore[no-untyped-call]
    for one in monitor.monitors:
        one.clear_metrics()  # type: ignore[no-untyped-call]
    monitor.collect_metrics()  # type: ignore[no-untyped-call]
    monitor.publish_metrics(monitor.aggregate_metrics())  # type: ignore[no-untyped-call]
    monitor.mlflow_logger.flush()  # type: ignore[no-untyped-call]


def selected_by(study: Begun) -> Mapping[str, str]:
    """How the winner of a study is chosen, and which batches are held out."""
    test = study.cells.test
    held_out = "" if test is None else "+".join(sorted({test.batch_names[code] for code in test.batches}))
    return {"selection": study.selection, "held_out": held_out}


def lacking(folder: StudyFolder) -> str:
    """What to say where something could not be written."""
    name = folder.read_settings()["study"]["name"]
    return f"MLflow lacks a part of the study {name}: `scdgn sync {name}` writes it"


def _store_of(folder: StudyFolder) -> Store:
    """Where a study is tracked, from wherever its folder is looked at; the environment says so from then on."""
    return configure(folder.studies(folder.read_settings()["study"]["name"]).absolute())

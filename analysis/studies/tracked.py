"""Finished studies from MLflow alone, for who has no study folders: settings, trials and what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scdgn.analysis.studies.results import Results
from scdgn.errors import nearest
from scdgn.search.credentials import without_password
from scdgn.search.folder import StudyFolder
from scdgn.search.study.documents import from_document
from scdgn.search.tracking.contents import KIND, STUDY
from scdgn.search.tracking.store import Store, TrackingError, find_runs, probe, reaching
from scdgn.search.tracking.trial_files import TRIALS, read_trials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def read_tracked(store: Store, names: Sequence[str]) -> list[Results]:
    """Studies from the files that tracking has laid beside their runs; nothing is written or made.

    By names, or what their names begin with before a slash. Of several studies of one name the one that was begun last
    is taken.

    Raises
    ------
    TrackingError
        If the store cannot be reached, a name is not known there, or none of the studies is finished.
    """
    from mlflow import MlflowClient

    with reaching(store):
        if store.file is not None and not store.file.exists():
            shown = without_password(store.uri)
            raise TrackingError(f"there is no MLflow store {shown}: set MLFLOW_TRACKING_URI, or give --studies")
        probe(store)
        client = MlflowClient(store.uri)
        experiment = client.get_experiment_by_name(store.experiment)
        if experiment is None:
            raise TrackingError(
                f"{without_password(store.uri)} has no experiment {store.experiment!r}: set MLFLOW_EXPERIMENT_NAME"
            )
        # Oldest first, so that the last of a name stays.
        known = {run.data.tags[STUDY]: run for run in find_runs(client, experiment.experiment_id, {KIND: "study"})}
        chosen: dict[str, Run] = {}
        for name in names:
            found = {study: known[study] for study in sorted(known) if study == name or study.startswith(f"{name}/")}
            if not found:
                raise TrackingError(f"MLflow has no study {name!r}: {nearest(name, known)}")
            chosen |= found
        results = [one for run in chosen.values() if (one := _read(client, run)) is not None]
    if not results:
        raise TrackingError(f"none of {', '.join(chosen)} is finished in MLflow: search on, or `scdgn sync` them")
    return results


def _read(client: MlflowClient, run: Run) -> Results | None:
    """A study; None where it is not finished."""
    held = {file.path for file in client.list_artifacts(run.info.run_id)}
    if not {"study.toml", "summary.json", TRIALS} <= held:
        return None
    with tempfile.TemporaryDirectory() as place:
        for name in ("study.toml", "summary.json", TRIALS):
            client.download_artifacts(run.info.run_id, name, place)
        folder = StudyFolder(Path(place))
        document, came_out = folder.read_settings(), folder.read_summary()
        assert came_out is not None  # it was downloaded
        trials = read_trials((folder.path / TRIALS).read_text(encoding="utf-8"))
    return Results(document["study"]["name"], from_document(document), document["record"], came_out, tuple(trials))

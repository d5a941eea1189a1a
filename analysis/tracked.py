"""Finished studies from MLflow alone, for who has no study folders: settings, trials and what came out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from analysis.results import Results
from scdgn.errors import nearest
from search.credentials import without_password
from search.folder import StudyFolder
from search.records import State, TrialRecord, UnitScores
from search.runs import KIND, STUDY, STUDY_ID, metric_names
from search.settings import from_document
from search.store import Store, TrackingError, find_runs, probe, reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_CURVES = ("label_loss", "domain_loss", "lambda")
_SCORES = ("macro_f1", "accuracy", "balanced_accuracy")


def read_tracked(store: Store, names: Sequence[str]) -> list[Results]:
    """Studies from the files and runs that tracking has written; nothing is written or made.

    Of several studies of one name the one that was begun last is taken. MLflow does not keep all of a trial: the number
    of cells of a fold comes from the summary, and the padding is taken for none. Names of folds and types that MLflow
    had to change are found again by the summary, unless two of them were changed alike.

    Parameters
    ----------
    store
        Where runs are kept (`search.store.configure`).
    names
        Of studies, or of what their names begin with before a slash.

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
    if not {"study.toml", "summary.json"} <= held:
        return None
    with tempfile.TemporaryDirectory() as place:
        for name in ("study.toml", "summary.json"):
            client.download_artifacts(run.info.run_id, name, place)
        folder = StudyFolder(Path(place))
        document, came_out = folder.read_settings(), folder.read_summary() or {}
    trials = find_runs(client, run.info.experiment_id, {STUDY_ID: run.data.tags[STUDY_ID], KIND: "trial"})
    records = sorted((_record(client, trial, came_out) for trial in trials), key=lambda record: record.number)
    return Results(document["study"]["name"], from_document(document), document["record"], came_out, tuple(records))


def _record(client: MlflowClient, run: Run, summary: Mapping[str, Any]) -> TrialRecord:
    tags, metrics = run.data.tags, run.data.metrics

    def history(key: str) -> dict[int, float]:
        if key not in metrics:
            return {}
        points = client.get_metric_history(run.info.run_id, key)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}

    steps = history("score")
    curves = {key: points for key in _CURVES if (points := history(key))}
    epochs = sorted({epoch for points in curves.values() for epoch in points})
    folds = {fold["name"]: fold["scored_cells"] for fold in summary["folds"]}
    validation, test = summary["final"]["validation"], summary["final"].get("test", {"recall": {}})
    types = sorted({*validation["recall"], *test["recall"], *summary["unscored_types"]})
    in_store = _in_store(folds)
    found = {name: f"fold/{in_store[name]}" for name in folds if f"fold/{in_store[name]}/macro_f1" in metrics}
    units = {name: _unit(metrics, key, types, folds[name]) for name, key in found.items()}
    everywhere = "training_domain/macro_f1" in metrics
    return TrialRecord(
        number=int(tags["number"]),
        state=cast(State, tags["state"]),
        settings={key: _value(text) for key, text in run.data.params.items()},
        origin=tags.get("origin", ""),
        value=steps[max(steps)] if steps else None,
        steps=steps,
        epoch=int(metrics["epoch"]),
        reason=tags.get("reason", ""),
        folds=units,
        training_domain=_unit(metrics, "training_domain", types, validation["cells"]) if everywhere else None,
        # MLflow takes no number that is not finite.
        curves={
            "epoch": epochs, **{key: [points.get(epoch, np.nan) for epoch in epochs] for key, points in curves.items()}
        } if curves else {},
        seconds=metrics["seconds"],
        started=run.info.start_time / 1000,
        ended=run.info.end_time / 1000,
    )  # fmt: skip


def _unit(metrics: Mapping[str, float], key: str, types: Sequence[str], cells: int) -> UnitScores:
    """The scores under `key/` among the metrics of a trial's run."""
    names = {in_store: name for name, in_store in _in_store(types).items()}
    start = f"{key}/recall/"
    recall = {
        names.get(metric.removeprefix(start), metric.removeprefix(start)): value
        for metric, value in metrics.items()
        if metric.startswith(start)
    }
    scores = {name: metrics[f"{key}/{name}"] for name in _SCORES}
    return UnitScores(**scores, cells=cells, recall=dict(sorted(recall.items())))


def _in_store(names: Iterable[str]) -> dict[str, str]:
    """Names as tracking writes them into those of metrics."""
    return metric_names(names)


def _value(text: str) -> Any:
    """A setting from the text that tracking made of it."""
    try:
        return json.loads(text)
    except ValueError:
        return text

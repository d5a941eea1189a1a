"""The exported model: a served MLflow model made of a bundle, and its place in the model registry."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scdgn.errors import ScdgnError, first_line, nearest
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT
from scdgn.search.credentials import without_password
from scdgn.search.folder import StudyFolder, find_study, is_name, owned, studies_under
from scdgn.search.study.documents import from_document
from scdgn.search.summary import Registration, Summary
from scdgn.search.tracking import tracker as tracking
from scdgn.search.tracking.contents import NOTE, STUDY, STUDY_ID, datasets, exported_results, maker
from scdgn.search.tracking.description import describe
from scdgn.search.tracking.served import save_pyfunc, undisturbed
from scdgn.search.tracking.store import TrackingError, configure, connect, reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

SOURCE = "models:/"
"""What the address of a logged or registered model begins with."""

CHAMPION, CANDIDATE = "champion", "candidate"

SCORE, REASON = "selection_score", "alias_reason"

COMPARED = ("data", "metric", "selection", "transductive")
"""Tags of a version in which two versions must agree before their selection scores say which is better."""


class ExportError(ScdgnError):
    """The study has no model to hand over, or the model registry does not take it."""


def export_study(
    studies: Path, name: str, destination: Path | None = None, promote: bool = False, overwrite: bool = False
) -> Registration:
    """Copy a study's bundle out, if a destination is named, and register its model unless it is.

    Of several methods or repeats of one name the best by selection score is taken. What comes back is also kept in the
    study's summary.

    Raises
    ------
    DataError, ExportError, OutputError, LeaseError
        If there is no such study or model, it cannot be copied or registered, or a process is at work on it.
    """
    folder = _choose(studies, name)
    folder.read_settings()  # what is damaged is told before anything is written
    if destination is not None:
        Bundle.load(folder.model).save(destination, overwrite)
    with owned(folder):
        summary = _summary(folder)
        if summary.registered is not None:
            name = summary.registered.name  # the best of several methods has the name of them all
        try:
            registered = register(folder, name, promote)
        except ExportError as error:
            if destination is None:
                raise
            raise ExportError(f"the model is in {destination}, but not registered: {error}") from error
        folder.write_summary(replace(summary, registered=registered))
    return registered


def register(folder: StudyFolder, name: str, promote: bool) -> Registration:
    """Log a study's model to its MLflow run and register it, once; decide whether it is the champion.

    The alias `champion` goes to it if there is none, if its selection score is above the champion's and the two were
    selected by the same score on the same cells (`COMPARED`), or if it is promoted; else it is the `candidate`. A slash
    in the name, which MLflow does not allow, becomes a hyphen.

    Raises
    ------
    ExportError
        If the study has no model, or one that was chosen by test labels; if it is not in MLflow, or MLflow cannot be
        reached.
    """
    summary = _summary(folder)
    description = describe(summary, Bundle.load(folder.model))
    tags = _tags(folder, summary)
    name = name.replace("/", "-")
    store = configure(folder.studies(summary.study).absolute())
    from mlflow import MlflowClient  # not before: on import it reads what has been configured

    with _explained(summary.study):
        run = tracking.find_study_run(folder)
        client = MlflowClient(store.uri)
        version = _find(client, name, tags)
        if version is None:
            model = _log(client, folder, None if run is None else run.id, summary, tags)
            version = _add(client, name, model, tags, description)
        _tell(client, folder, version, summary, description)
        return _place(client, name, version, promote)


def find_model(named: str, studies: Path) -> Path:
    """The folder of a bundle.

    Parameters
    ----------
    named
        That folder, a folder that holds it as `model`, the name of a study (the best of several methods), or an address
        in the registry: `models:/NAME@champion`, `models:/NAME/3`.
    studies
        Folder of all studies.

    Raises
    ------
    ExportError, DataError, TrackingError
        If there is no such study or registered model.
    """
    if named.startswith(SOURCE):
        store = configure(studies)
        with reaching(store), undisturbed():
            import mlflow

            client, _ = connect(store)
            known = [model.name for model in client.search_registered_models()]
            if (name := re.split("[/@]", named.removeprefix(SOURCE))[0]) not in known:
                raise ExportError(f"no model is registered as {name!r} (--model): {nearest(name, known)}")
            mlflow.set_tracking_uri(store.uri)
            return Path(mlflow.artifacts.download_artifacts(named)) / "artifacts" / "model"
    path, inside = Path(named), Path(named) / "model"
    with suppress(OSError):  # which is told where it is opened
        if not path.exists() and is_name(named):
            if (studies / path).is_dir():
                return _choose(studies, named).model
            found = [one.path.relative_to(studies) for one in studies_under(studies)]
            raise ExportError(
                f"{named} is neither a folder nor a study in {studies} (--studies): {nearest(named, found)}"
            )
        if (inside / DOCUMENT).is_file() and not (path / DOCUMENT).exists():
            return inside
    return path


def _choose(studies: Path, name: str) -> StudyFolder:
    """The study of that name, or the best of those under it."""
    folders = [folder for folder in find_study(studies, name) if folder.read_summary() is not None]
    if len({_summary(folder).data.fingerprint for folder in folders}) > 1:
        names = ", ".join(str(folder.path.relative_to(studies)) for folder in folders)
        raise ExportError(f"the studies under {name!r} have different training cells: name one of {names}")
    if not folders:
        raise ExportError(f"the study {name!r} has no model to export: finish it with `scdgn search`")
    return max(folders, key=lambda folder: _summary(folder).exported_score)


def _summary(folder: StudyFolder) -> Summary:
    summary = folder.read_summary()
    if summary is None:
        raise ExportError(f"the study {folder.path} has no model yet: finish it with `scdgn search`")
    if summary.protocol != "search":
        raise ExportError(
            f"the best run of {summary.study!r} was chosen by the test labels ({summary.protocol}), which makes "
            "no model to hand over: search with --protocol search"
        )
    return summary


def _tags(folder: StudyFolder, summary: Summary) -> dict[str, str]:
    """What makes a version findable and comparable."""
    return {
        STUDY: summary.study,
        STUDY_ID: summary.id,
        "bundle": json.loads((folder.model / DOCUMENT).read_text(encoding="utf-8"))["sha256"],
        "method": summary.method,
        "data": summary.data.fingerprint,
        "metric": summary.metric,
        "selection": summary.selection,
        SCORE: repr(summary.exported_score),
        "transductive": str(summary.transductive).lower(),
        "corrects": str(summary.model.corrects).lower(),
    }


def _find(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The version made of this study's bundle."""
    for found in client.search_model_versions(f"name='{name}'"):
        if all(found.tags.get(key) == tags[key] for key in (STUDY_ID, "bundle")):
            return found
    return None


def _log(
    client: MlflowClient, folder: StudyFolder, run_id: str | None, summary: Summary, tags: Mapping[str, str]
) -> LoggedModel:
    """Log the model to the study's run, by explicit ids: `mlflow.pyfunc.log_model` goes by the run that is active."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    study = summary.study
    if run_id is None:
        raise ExportError(
            f"MLflow has no run of the study {study!r} to log the model to: write it with `scdgn sync {study}`, then "
            f"`scdgn export {study}`"
        )
    experiment_id = client.get_run(run_id).info.experiment_id
    for earlier in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if earlier.status != "READY":  # a process was stopped or killed over it
            client.delete_logged_model(earlier.model_id)
        elif tags.items() <= earlier.tags.items():  # or right after it
            return earlier
    settings = {key: str(value) for key, value in summary.winner.settings.items()}
    model = client.create_logged_model(experiment_id, "model", run_id, {**maker(), **tags}, settings)
    try:
        with tempfile.TemporaryDirectory() as place:
            identity = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
            save_pyfunc(folder.model, Path(place), identity)
            client.log_model_artifacts(model.model_id, place)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):  # it is the first failure that counts
            client.finalize_logged_model(model.model_id, "FAILED")
        raise


def _add(
    client: MlflowClient, name: str, model: LoggedModel, tags: Mapping[str, str], description: str
) -> ModelVersion:
    """Make a logged model a version of a registered one."""
    if not client.search_registered_models(f"name='{name}'"):
        about = "A cell-type classifier by scdgn. Every version says how it was selected and what it scored."
        client.create_registered_model(name, description=about)
    source = f"{SOURCE}{model.model_id}"
    return client.create_model_version(
        name, source, model.source_run_id, dict(tags), description=description, model_id=model.model_id
    )


def _tell(client: MlflowClient, folder: StudyFolder, version: ModelVersion, summary: Summary, description: str) -> None:
    """Let the page of the logged model say which version it is, what it scores, and on which cells."""
    from mlflow.entities import Metric
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    assert version.source is not None and version.run_id is not None  # `_add` gives both
    model = client.get_logged_model(version.source.removeprefix(SOURCE))  # a database keeps the id nowhere else
    versions = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    this = {"name": version.name, "version": str(version.version)}
    if this not in [{**one, "version": str(one["version"])} for one in versions]:  # a server has put it there
        tags = {MLFLOW_MODEL_VERSIONS: json.dumps([*versions, this]), NOTE: description}
        client.set_logged_model_tags(model.model_id, tags)
    if model.metrics:
        return
    document = folder.read_settings()
    cells = {data.tags[0].value: data.dataset for data in datasets(from_document(document), document["record"])}
    points = []
    for key, value in exported_results(summary).items():
        of = cells["test" if key.startswith("test/") else "training"]
        before = client.get_metric_history(version.run_id, key)  # the run's own point, or it would have two
        moment, step = (before[-1].timestamp, before[-1].step) if before else (model.creation_timestamp, 0)
        points.append(Metric(key, value, moment, step, model.model_id, of.name, of.digest))
    client.log_batch(version.run_id, points)


def _place(client: MlflowClient, name: str, version: ModelVersion, promote: bool) -> Registration:
    """Give a version its alias: when it is new, and when it is told to."""
    number = str(version.version)  # a string from a server, a number from a database
    aliases = {alias: str(held) for alias, held in client.get_registered_model(name).aliases.items()}
    alias = next((one for one in (CHAMPION, CANDIDATE) if aliases.get(one) == number), None)
    reason = version.tags.get(REASON)
    if reason is None or (promote and alias != CHAMPION):
        champion = client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None
        alias, reason = (CHAMPION, "promoted by hand") if promote else _judge(version, champion)
        client.set_registered_model_alias(name, alias, number)
        if alias == CHAMPION and aliases.get(CANDIDATE) == number:
            client.delete_registered_model_alias(name, CANDIDATE)
        # Last: a version whose registration is cut off before it is judged when it is registered again.
        client.set_model_version_tag(name, number, REASON, reason)
    elif alias is None:
        reason = "registered before, and another version has its alias now"
    return Registration(name=name, version=number, alias=alias, uri=f"models:/{name}/{number}", reason=reason)


def _judge(version: ModelVersion, champion: ModelVersion | None) -> tuple[str, str]:
    """The alias of a version, and why."""
    if champion is None or str(champion.version) == str(version.version):
        return CHAMPION, "there was no champion"
    if different := [key for key in COMPARED if champion.tags.get(key) != version.tags[key]]:
        return CANDIDATE, (
            f"not comparable with the champion, version {champion.version}, by its score: {' and '.join(different)} "
            f"{'differs' if len(different) == 1 else 'differ'}"
        )
    score, best = float(version.tags[SCORE]), float(champion.tags[SCORE])
    scores = f"{version.tags['selection']} {version.tags['metric']} {score:.4f}"
    if score > best:
        return CHAMPION, f"{scores} is above {best:.4f} of version {champion.version}, the champion before"
    return CANDIDATE, f"{scores} is not above {best:.4f} of the champion, version {champion.version} (or --promote it)"


@contextmanager
def _explained(study: str) -> Iterator[None]:
    """What MLflow has against it, as an error with a remedy."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except TrackingError as error:
        raise ExportError(f"{error} (`scdgn export {study}` registers the model)") from error
    except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: of disks, and of HTTP connections
        reason = without_password(first_line(error))
        raise ExportError(
            f"MLflow did not take the model ({reason}): put that right, then `scdgn export {study}`"
        ) from None  # a traceback would show what the reason leaves out

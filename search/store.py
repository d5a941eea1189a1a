"""Where MLflow keeps runs: found from the environment and mlflow.env, reached or told why not."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scdgn.errors import ScdgnError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


ENVIRONMENT = "mlflow.env"
"""Name of the file that says where to track."""


HOST, PORT = "127.0.0.1", 5000
"""Where `scdgn ui` serves by default: on this machine alone."""


class TrackingError(ScdgnError):
    """The MLflow store cannot be reached, or is not configured well."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    Attributes
    ----------
    uri
        Of the tracking store: a database, or an MLflow server.
    experiment
        That all studies lie in.
    artifacts
        Where the experiment's files go; None leaves it to the server.
    """

    uri: str
    experiment: str
    artifacts: str | None

    @property
    def is_server(self) -> bool:
        """Whether a server stands between scdgn and the runs."""
        return self.uri.startswith(("http://", "https://"))


# What `configure` has put into the environment: not the user's words, and to be replaced the next time.
_applied: dict[str, str] = {}


def configure(studies: Path) -> Store:
    """Find out where to track, and set MLflow's environment variables accordingly.

    The environment wins over mlflow.env in the working directory, and that over the one that scdgn brings along.

    Parameters
    ----------
    studies
        Folder of all studies, beside which runs are kept by default.

    Raises
    ------
    TrackingError
        If a file cannot be read.
    """
    for key, value in _applied.items():
        if os.environ.get(key) == value:
            del os.environ[key]
    _applied.clear()
    os.environ["SCDGN_STUDIES"] = str(studies.absolute())  # that the files refer to
    values = _read_environment(Path(__file__).with_name(ENVIRONMENT))
    if Path(ENVIRONMENT).exists():
        values |= _read_environment(Path(ENVIRONMENT))
    for key, value in values.items():
        if key not in os.environ:
            os.environ[key] = _applied[key] = value
    root = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    store = Store(
        os.environ["MLFLOW_TRACKING_URI"],
        os.environ["MLFLOW_EXPERIMENT_NAME"],
        root if "://" in root else str(Path(root).absolute()),
    )
    return Store(store.uri, store.experiment, None) if store.is_server else store


def connect(store: Store) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, both made if they are not there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not store.is_server:
        _probe(store)
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    if experiment is None:
        try:
            return client, client.create_experiment(store.experiment, store.artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(store.experiment)
            if experiment is None:
                raise
            # else somebody was faster
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment {store.experiment!r} has been deleted: restore it, or set another "
            f"MLFLOW_EXPERIMENT_NAME in {ENVIRONMENT}"
        )
    return client, str(experiment.experiment_id)


def _probe(store: Store) -> None:
    """Connect to a database once: MLflow itself would try for minutes."""
    import sqlalchemy

    path = Path(store.uri.removeprefix("sqlite:///"))
    if store.uri.startswith("sqlite:///") and not path.exists():
        _create(path, store.artifacts)
    engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    with engine.connect():
        pass


def _create(path: Path, artifacts: str | None) -> None:
    """Make MLflow's tables elsewhere, and put them in place as a whole.

    It takes seconds, and MLflow never recovers a database in whose making it was killed.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as place:
        made = Path(place) / path.name
        SqlAlchemyStore(f"sqlite:///{made}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
        with suppress(FileExistsError):  # another process was faster
            os.link(made, path)


def find_runs(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """All runs with these tags, oldest first."""
    words = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    token = None
    while True:
        page = client.search_runs(
            [experiment], words, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def reaching(store: Store) -> Iterator[None]:
    """What keeps the store from being reached, as an error with a remedy."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"the MLflow store {without_password(store.uri)} cannot be used ({reason_of(error)}): start its server, or "
            f"set MLFLOW_TRACKING_URI in {ENVIRONMENT}; then try again"
        ) from error


def reason_of(error: Exception) -> str:
    """The part of MLflow's long messages that says something."""
    first = str(error).partition("\n")[0].rpartition("Caused by ")[2].strip()
    if isinstance(error, KeyError) or not first:
        return f"{type(error).__name__} {first}".strip()
    return without_password(first)[:200]


def _read_environment(path: Path) -> dict[str, str]:
    """The variables of a file, with ${NAME:-DEFAULT} filled in."""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            wrong = [binding.original for binding in parse_stream(file) if binding.error]
        values = dotenv_values(path) if not wrong else {}
    except (OSError, ValueError) as error:
        raise TrackingError(f"{path} cannot be read ({error}): mend or remove it") from error
    faults = [f"line {line.line} of {path} is {line.string.strip()!r}: write NAME=VALUE" for line in wrong]
    faults += [f"{name} in {path} has no value: write {name}=VALUE" for name, value in values.items() if value is None]
    if faults:
        raise TrackingError(*faults)
    return {name: value for name, value in values.items() if value is not None}


def without_password(text: str) -> str:
    """Without the user and password of addresses in it."""
    return re.sub(r"(?<=://)[^/@\s\"']*(:[^@\s\"']*)?@", "", text)

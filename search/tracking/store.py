"""Where MLflow keeps runs: found from the environment and mlflow.env, reached or told why not."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from scdgn.errors import ScdgnError
from scdgn.search.credentials import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


_SQLITE = ("sqlite", "sqlite+pysqlite")  # MLflow makes a folder of the escaped name for the first of them

ENVIRONMENT = "mlflow.env"
"""Name of the file that says where to track."""

KNOWN = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_DEFAULT_ARTIFACT_ROOT",
    "MLFLOW_ARTIFACTS_DESTINATION",
)
"""Variables of that file that decide where runs go: a name that is nearly one of them is a slip of the pen."""

HOST, PORT = "127.0.0.1", 5000
"""Where `scdgn ui` serves by default: on this machine alone."""

ABOUT = (
    "Studies of scdgn: each is a run with its trials below it, and below the winner its final seeds. "
    "`scdgn ui` prints the addresses of all trials, the best ones first, and of the best ten side by side."
)
"""What the page of the experiment begins with."""


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
    def file(self) -> Path | None:
        """The database, where it is a file."""
        scheme, found, path = self.uri.partition(":///")
        return Path(unquote(path)) if found and scheme in _SQLITE else None

    @property
    def is_server(self) -> bool:
        """Whether a server stands between scdgn and the runs."""
        return self.uri.startswith(("http://", "https://"))


# What `configure` has put into the environment: not the user's words, and to be replaced the next time.
_applied: dict[str, str] = {}
_configuring = threading.Lock()


def configure(studies: Path) -> Store:
    """Find out where to track, by default beside the studies, and set MLflow's environment variables accordingly.

    The environment wins over mlflow.env in the working directory, and that over the one that scdgn brings along.

    Raises
    ------
    TrackingError
        If a file cannot be read.
    """
    with _configuring:
        # That the files refer to: in a path, and in an address, where %, ? and # mean something.
        os.environ["SCDGN_STUDIES"] = str(studies.absolute())
        os.environ["SCDGN_STUDIES_URL"] = quote(str(studies.absolute()))
        values = _read_environment(Path(__file__).parents[1] / ENVIRONMENT)
        if Path(ENVIRONMENT).exists():
            values |= _read_environment(Path(ENVIRONMENT))
        ours = {key for key, value in _applied.items() if os.environ.get(key) == value}
        for key in ours - set(values):
            del os.environ[key]
        _applied.clear()
        for key, value in values.items():  # one that stays is there all the time: other threads look for it
            if key in ours or key not in os.environ:
                os.environ[key] = _applied[key] = _usable(value)
        root = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
        store = Store(
            os.environ["MLFLOW_TRACKING_URI"],
            os.environ["MLFLOW_EXPERIMENT_NAME"],
            root if "://" in root else location(Path(root).absolute()),
        )
    return Store(store.uri, store.experiment, None) if store.is_server else store


def _usable(address: str) -> str:
    """The address of a database, by the name of the scheme that MLflow takes escaped characters in."""
    scheme, found, path = address.partition(":///")
    return f"{_SQLITE[1]}:///{path}" if found and scheme == _SQLITE[0] and "%" in path else address


def location(path: Path) -> str:
    """Where MLflow is to put files: as an address where it would take a part of the path for one of an address."""
    return path.as_uri() if set(str(path)) & set("%?#") else str(path)


def connect(store: Store) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, both made if they are not there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    probe(store)
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(store.experiment)
    if experiment is None:
        try:
            return client, client.create_experiment(store.experiment, store.artifacts, {"mlflow.note.content": ABOUT})
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


def probe(store: Store) -> None:
    """See that the address is one, and connect to a database once: MLflow itself would try for minutes.

    Raises
    ------
    TrackingError
        If it is none, or the package that it needs is not installed.
    """
    import sqlalchemy

    if not store.uri:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is empty: set it in {ENVIRONMENT} to sqlite:///FILE, or to the address of a server"
        )
    if not set(store.uri) & set(":@") or store.uri.startswith("file:"):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {store.uri!r}, a folder, and MLflow no longer writes runs into folders: set "
            f"MLFLOW_TRACKING_URI in {ENVIRONMENT} to sqlite:///FILE (`mlflow migrate-filestore` takes the runs along)"
        )
    if store.file is not None and not store.file.exists():
        _create(store.file, store.artifacts)
    shown = without_password(store.uri)
    try:
        if store.is_server:
            _ = urlsplit(store.uri).port  # raises where it is no number
            return
        engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    except ImportError as error:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {shown!r}, which needs {error.name}: install it") from None
    except ValueError as error:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {shown!r} ({without_password(str(error))}): write https://HOST:PORT, or "
            "DATABASE://USER@HOST:PORT/NAME"
        ) from None
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
        SqlAlchemyStore(_usable(f"{_SQLITE[0]}:///{quote(str(made))}"), artifacts).engine.dispose()  # type: ignore[no-untyped-call]
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
        shown = without_password(store.uri)
        if "out-of-date database schema" in str(error):
            raise TrackingError(
                f"the MLflow store {shown} was written by another version of MLflow: back it up, then "
                f"`mlflow db upgrade {shown}`, or install that version"
            ) from None
        remedy = "see that the file is a database of MLflow" if store.file is not None else "start its server"
        raise TrackingError(
            f"the MLflow store {shown} cannot be used ({reason_of(error)}): {remedy}, or set MLFLOW_TRACKING_URI in "
            f"{ENVIRONMENT}; then try again"
        ) from None  # a traceback would show what the reason leaves out


def reason_of(error: Exception) -> str:
    """The part of MLflow's long messages that says something."""
    first = str(error).partition("\n")[0].rpartition("Caused by ")[2].strip()
    if isinstance(error, KeyError) or not first:
        first = f"{type(error).__name__} {first}".strip()
    return without_password(first)[:200]


def _read_environment(path: Path) -> dict[str, str]:
    """The variables of a file, with ${NAME:-DEFAULT} filled in."""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            lines = list(parse_stream(file))
    except (OSError, ValueError) as error:
        raise TrackingError(f"{path} cannot be read ({error}): mend or remove it") from None
    faults = []
    for line in lines:
        place = f"line {line.original.line} of {path}"
        # It may hold a password, or be the rest of one: only what looks like a name is shown.
        name = re.match(r"[A-Z][A-Z0-9_ ]*(?==|$)", line.original.string.strip())
        if line.error:
            faults.append(f"{place} is {(f'{name[0]}=...' if name else '...')!r}: write NAME=VALUE")
        elif line.key is not None and line.key not in KNOWN and (meant := get_close_matches(line.key, KNOWN, 1, 0.9)):
            faults.append(f"{place} sets {line.key}, which is none: did you mean {meant[0]}?")
        elif line.key is not None and line.value is None:
            faults.append(
                f"{name[0]} in {path} has no value: write {name[0]}=VALUE"
                if name
                else f"{place} has no value: write NAME=VALUE"
            )
    if faults:
        raise TrackingError(*faults)
    return {name: value for name, value in dotenv_values(path).items() if value is not None}

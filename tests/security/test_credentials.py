"""No password, token or key of a store is printed, logged or written, whatever the store does."""

from __future__ import annotations

import base64
import os
import shutil
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from scdgn.cells.h5ad import write_h5ad
from scdgn.errors import ScdgnError
from scdgn.search.credentials import without_password, without_secret
from scdgn.search.folder import StudyFolder
from scdgn.search.study.documents import to_document
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import open_storage
from scdgn.search.tracking import store as stores
from scdgn.search.tracking.store import TrackingError, configure, connect, reaching
from scdgn.search.tracking.ui import serve
from scdgn.search.trials.checkpoints import Checkpoints
from tests.faults import KEYS, Ran, done, run, tiny
from tests.servers import free_port

SECRET = "hunter2!zq+Ünique"
ALL_FORMS = {
    SECRET,
    quote(SECRET),
    quote(SECRET, safe=""),
    quote_plus(SECRET),
    base64.b64encode(f"me:{SECRET}".encode()).decode(),
}
ENCODED = quote(SECRET, safe="")
SEARCH = (
    *("search", "cells.h5ad", *KEYS, "--name", "x", "--trials", "2", "--final-seeds", "1", "--confirm", "0"),
    *("--set", "hidden=8", "--set", "latent=4", "--set", "domain_code=4", "--set", "epochs=2"),
    *("--selection", "training-domain", "--device", "cpu"),
)  # fmt: skip


def told(text: str | bytes) -> list[str]:
    """The forms of the secret that a text or a file holds."""
    content = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
    return [form for form in sorted(ALL_FORMS) if form.encode() in content]


def nothing_told(folder: Path, *ran: Ran) -> None:
    """Neither what was printed nor any file holds the secret."""
    for one in ran:
        assert not told(one.out + one.err), one.err
    assert {
        str(path): found for path in folder.rglob("*") if path.is_file() and (found := told(path.read_bytes()))
    } == {}


class _Echo(BaseHTTPRequestHandler):
    """A server that refuses, and repeats all that it was sent."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"denied to {self.headers.get('Authorization')} at {self.path}".encode(errors="replace")
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """HOST:PORT of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory; stores that do not answer are not asked twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "_applied", {})
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    return tmp_path


# --- addresses of the store of runs

NOBODY = "127.0.0.1:1"
TRACKING = {
    "refused": {"MLFLOW_TRACKING_URI": f"http://me:{ENCODED}@{NOBODY}"},
    "the password as it is": {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@{NOBODY}"},
    "no user": {"MLFLOW_TRACKING_URI": f"http://{ENCODED}@{NOBODY}"},
    "an @ in the password": {"MLFLOW_TRACKING_URI": f"http://me:a@{ENCODED}@{NOBODY}"},
    "an @ in the user": {"MLFLOW_TRACKING_URI": f"http://me@x.org:{ENCODED}@{NOBODY}"},
    "a slash in the password": {"MLFLOW_TRACKING_URI": f"http://me:a/{ENCODED}@{NOBODY}"},
    "a quote in the password": {"MLFLOW_TRACKING_URI": f"http://me:a\"b'{ENCODED}@{NOBODY}"},
    "a space in the password": {"MLFLOW_TRACKING_URI": f"http://me:a {ENCODED}@{NOBODY}"},
    "no such port": {"MLFLOW_TRACKING_URI": f"http://me:{ENCODED}@127.0.0.1:port"},
    "half of an address": {"MLFLOW_TRACKING_URI": f"http://me:{ENCODED}@[::1"},
    "no host": {"MLFLOW_TRACKING_URI": f"http://me:{ENCODED}"},
    "no scheme": {"MLFLOW_TRACKING_URI": f"me:{ENCODED}@{NOBODY}"},
    "token in the address": {"MLFLOW_TRACKING_URI": f"http://{NOBODY}/?access_token={ENCODED}"},
    "echoed password": {"MLFLOW_TRACKING_URI": f"http://me:{ENCODED}@ECHO"},
    "echoed credentials": {
        "MLFLOW_TRACKING_URI": "http://ECHO", "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET
    },
    "echoed token": {"MLFLOW_TRACKING_URI": "http://ECHO", "MLFLOW_TRACKING_TOKEN": ENCODED},
    "a line after the token": {"MLFLOW_TRACKING_URI": f"http://{NOBODY}", "MLFLOW_TRACKING_TOKEN": f"{ENCODED}\n"},
    "a sign that no header has": {"MLFLOW_TRACKING_URI": f"http://{NOBODY}", "MLFLOW_TRACKING_TOKEN": f"→{SECRET}"},
    "database refused": {"MLFLOW_TRACKING_URI": f"postgresql://me:{ENCODED}@{NOBODY}/db"},
    "database, an @ in the password": {"MLFLOW_TRACKING_URI": f"postgresql://me:a@{ENCODED}@{NOBODY}/db"},
    "database, no such port": {"MLFLOW_TRACKING_URI": f"postgresql://me:{ENCODED}@127.0.0.1:port/db"},
    "database, no host": {"MLFLOW_TRACKING_URI": f"postgresql://me:{ENCODED}/db"},
    "database, in the query": {"MLFLOW_TRACKING_URI": f"postgresql://{NOBODY}/db?password={ENCODED}"},
    "database, no driver": {"MLFLOW_TRACKING_URI": f"mysql+nodriver://me:{ENCODED}@{NOBODY}/db"},
    "database, no package": {"MLFLOW_TRACKING_URI": f"oracle://me:{ENCODED}@{NOBODY}/db"},
    "database of an unknown kind": {"MLFLOW_TRACKING_URI": f"nosuch://me:{ENCODED}@{NOBODY}/db"},
}  # fmt: skip


@pytest.mark.parametrize("variables", TRACKING.values(), ids=TRACKING)
def test_a_store_of_runs_that_cannot_be_used(
    variables: dict[str, str],
    echo: str,
    quick: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("psycopg")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("ECHO", echo))
    store = configure(Path("studies"))
    with pytest.raises(TrackingError) as caught, reaching(store):
        connect(store)
    said = "".join(traceback.format_exception(caught.value))
    assert not told(said), said
    assert not told(without_password(store.uri))
    if store.is_server:
        with pytest.raises(TrackingError) as caught:
            serve(Path("studies"))
        assert not told(str(caught.value))
    assert not told("".join(capfd.readouterr()))
    nothing_told(quick)


def test_the_doctor_tells_the_address_alone(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{ENCODED}@mlflow.example.org")
    for words in (("doctor",), ("doctor", "--json")):
        ran = done(*words)
        assert "https://mlflow.example.org" in ran.out
        nothing_told(quick, ran)


def test_the_address_is_not_among_the_words_of_the_server(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which all users of the machine can list."""
    started = []

    class Server:
        def __init__(self, words: list[str], env: dict[str, str], **_: object) -> None:
            started.append((words, env))

        pid = -1

        def wait(self, _seconds: float = 0) -> int:
            return 0

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("scdgn.search.tracking.ui.subprocess.Popen", Server)
    monkeypatch.setattr("scdgn.search.tracking.ui.os.killpg", lambda *_: None)
    monkeypatch.setattr("scdgn.search.tracking.ui.connect", lambda _: (None, "1"))
    monkeypatch.setattr("scdgn.search.tracking.ui.best_trials", lambda *_: [])
    address = f"postgresql://me:{ENCODED}@{NOBODY}/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    serve(Path("studies"), port=free_port())
    [(words, environment)] = started
    assert not told(" ".join(words)) and environment["MLFLOW_BACKEND_STORE_URI"] == address


ENVIRONMENT_FILES = {
    "no equals sign": f"MLFLOW_TRACKING_PASSWORD {SECRET}\n",
    "a colon": f"MLFLOW_TRACKING_PASSWORD: {SECRET}\n",
    "a space in the name": f"MLFLOW TRACKING PASSWORD={SECRET}\n",
    "a quote that does not end": f'MLFLOW_TRACKING_PASSWORD="{SECRET}\n',
    "over two lines": f'MLFLOW_TRACKING_TOKEN="half\n{SECRET}==\n',
    "the secret alone": f"{SECRET}\n",
    "no text": f"MLFLOW_TRACKING_PASSWORD={SECRET}\n".encode() + b"\xff",
}


@pytest.mark.parametrize("content", ENVIRONMENT_FILES.values(), ids=ENVIRONMENT_FILES)
def test_an_environment_file_that_cannot_be_read(content: str | bytes, quick: Path) -> None:
    Path("mlflow.env").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrackingError, match=r"mlflow\.env") as caught:
        configure(Path("studies"))
    said = "".join(traceback.format_exception(caught.value))
    assert not told(said), said


# --- addresses of the storage of trials, and of checkpoints

STORAGES = {
    "refused": f"postgresql://me:{ENCODED}@{NOBODY}/db",
    "the password as it is": f"postgresql://me:{SECRET}@{NOBODY}/db",
    "an @ in the password": f"postgresql://me:a@{ENCODED}@{NOBODY}/db",
    "an @ at its end": f"postgresql://me:{ENCODED}@@{NOBODY}/db",
    "a slash in the password": f"postgresql://me:a/{ENCODED}@{NOBODY}/db",
    "a hash in the password": f"postgresql://me:{ENCODED}#@{NOBODY}/db",
    "a quote in the password": f'postgresql://me:"{ENCODED}@{NOBODY}/db',
    "no such host": f"postgresql://me:{ENCODED}@nohost.invalid/db",
    "no such port": f"postgresql://me:{ENCODED}@127.0.0.1:port/db",
    "a port too high": f"postgresql://me:{ENCODED}@127.0.0.1:99999/db",
    "half of an address": f"postgresql://me:{ENCODED}@[::1/db",
    "no host": f"postgresql://me:{ENCODED}/db",
    "one slash": f"postgresql:/me:{ENCODED}@{NOBODY}/db",
    "no scheme": f"me:{ENCODED}@{NOBODY}/db",
    "in the query": f"postgresql://{NOBODY}/db?password={ENCODED}",
    "of the key in the query": f"postgresql://{NOBODY}/db?sslpassword={ENCODED}&sslmode=no",
    "by MySQL's name": f"postgresql://{NOBODY}/db?passwd={ENCODED}",
    "of a data source": f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{ENCODED}",
    "no driver": f"mysql://me:{ENCODED}@{NOBODY}/db",
    "unknown": f"nosuch://me:{ENCODED}@{NOBODY}/db",
    "a tracking server": f"http://me:{ENCODED}@{NOBODY}",
    "Redis": f"redis://:{ENCODED}@{NOBODY}/0",
    "SQLite has no password": f"sqlite://me:{ENCODED}@host/file.db",
}


@pytest.mark.parametrize("url", STORAGES.values(), ids=STORAGES)
def test_a_storage_of_trials_that_cannot_be_opened(url: str, quick: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ScdgnError, match="cannot be opened") as caught:
        open_storage(StudyFolder(quick), url)
    said = "".join(traceback.format_exception(caught.value))
    assert not told(said), said
    document = to_document(StudySettings("x", storage=url, checkpoints=url))
    assert not told(repr(document)), document
    assert to_document(StudySettings("x", storage=without_secret(url)))["study"]["storage"] == without_secret(url)


@pytest.mark.parametrize(
    "url", [f"nosuch://me:{ENCODED}@{NOBODY}/x", f"s3://key:{ENCODED}@bucket/x", f"ftp://me:{ENCODED}@{NOBODY}/x"]
)
def test_a_place_for_checkpoints_that_is_none(url: str) -> None:
    with pytest.raises(ScdgnError, match="checkpoints is") as caught:
        Checkpoints(url, 1.0, "study").check()
    said = "".join(traceback.format_exception(caught.value))
    assert not told(said), said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://mlflow.example.org:5000/api?page=2", "https://mlflow.example.org:5000/api?page=2"),
        ("sqlite:////home/me@work/studies/mlflow.db", "sqlite:////home/me@work/studies/mlflow.db"),
        ("models:/islets@champion", "models:/islets@champion"),
        ("macro_f1 of token and password", "macro_f1 of token and password"),
        ("s3://bucket/key?X-Amz-Signature=0a1b&part=2", "s3://bucket/key?X-Amz-Signature=***&part=2"),
    ],
)
def test_the_rest_of_an_address_stays(text: str, expected: str) -> None:
    assert without_password(text) == expected
    assert without_password(text, "https://mlflow.example.org:5000/api") == expected


# --- a whole study


@pytest.mark.filterwarnings("ignore:Query string argument")  # SQLite has no password
def test_a_study_and_its_report_know_no_secret(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The store of runs refuses, trials lie in a database and checkpoints elsewhere; then the runs go to a file."""
    write_h5ad(tiny(), Path("cells.h5ad"))
    for name in ("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    address = f"http://me:{ENCODED}@{NOBODY}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    places = ("--storage", f"sqlite:///trials.db?password={ENCODED}", "--checkpoint-every", "0")
    places += ("--checkpoints", f"memory://me:{ENCODED}@host/folder")
    ran = [done(*SEARCH, *places, "--json"), done(*SEARCH, *places, "--trials", "3")]
    assert "MLflow cannot be written to" in ran[1].err
    ran += [run("sync", "x"), run("export", "x"), run("report", "x", "--from-mlflow")]
    assert [one.status for one in ran[2:]] == [2, 2, 2]
    ran += [done("report", "x", "--no-cells"), done("status", "x", "--json"), done("compare", "x")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{quick / 'runs.db'}")
    ran += [done("sync", "x"), done("export", "x"), done("report", "x", "--from-mlflow", "-o", "tracked")]
    nothing_told(quick, *ran)
    assert not told("".join(capfd.readouterr()))
    assert Path("studies/x/report.html").exists() and Path("runs.db").exists()


def test_the_check_finds_what_it_looks_for(quick: Path) -> None:
    for number, form in enumerate(sorted(ALL_FORMS)):
        place = quick / str(number)
        place.mkdir()
        (place / "file").write_text(f"...{form}...", encoding="utf-8")
        with pytest.raises(AssertionError):
            nothing_told(place)
        with pytest.raises(AssertionError):
            nothing_told(quick / "none", Ran(0, "", form))
        shutil.rmtree(place)

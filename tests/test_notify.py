"""A webhook is told how a search ended; that it cannot be told does no harm."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from scdgn.errors import DataError, SettingsError
from scdgn.search.notify import notifying
from scdgn.search.stages.job import Interrupted
from tests.faults import FAST, KEYS, done, run, tiny, tree
from tests.test_verdict import NN


class Webhook:
    """Answers with a status, and remembers what it was sent."""

    def __init__(self, status: int = 200) -> None:
        self.messages: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                hook.messages.append(json.loads(self.rfile.read(length)))
                hook.headers.append(dict(self.headers))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.status = status
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server.server_port}/hooks/T0KENOFTHEHOOK"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.close()


def test_a_search_tells_what_came_of_it_and_keeps_the_address_to_itself(hook: Webhook, tmp_path: Path) -> None:
    tiny(cells={"a": 50, "b": 50, "c": 40, "d": 30}).write_h5ad(tmp_path / "cells.h5ad")
    words = ("search", tmp_path / "cells.h5ad", *KEYS, *FAST, "--test-batch", "d", "--method", "nn", "--trials", "1")
    words = (*words, "--confirm", "0", "--final-seeds", "1", "--no-track", "--studies", tmp_path / "studies")
    ran = done(*words, "--notify", f"http://{hook.place}")
    (message,) = hook.messages
    assert (message["study"], message["state"]) == ("cells", "done")
    assert message["summaries"][0]["winner"]["number"] == 0
    assert message["text"].startswith("cells: done. Chosen: the plain network (NN), macro-F1")
    kept = [content for content in tree(tmp_path / "studies").values() if content is not None]
    assert not any(b"T0KENOFTHEHOOK" in content for content in kept)
    assert "T0KENOFTHEHOOK" not in ran.err + ran.out
    hook.status = 500
    ran = done(*words, "--notify", f"http://{hook.place}")
    told = [line for line in ran.err.splitlines() if "was not notified" in line]
    assert told == [
        f"{hook.place.partition('/')[0]} was not notified (it answered 500); the results are not touched by that"
    ]


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (DataError("no such cells in postgresql://me:hunter22@host/db"), "failed", "no such cells in postgresql://"),
        (ZeroDivisionError("a bug"), "failed", "a bug"),
        (Interrupted(), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
def test_the_end_that_was_not_meant_is_told_without_secrets(
    hook: Webhook, error: BaseException, state: str, told: str | None
) -> None:
    with pytest.raises(type(error)), notifying(f"http://{hook.place}", "s", print):
        raise error
    (message,) = hook.messages
    assert message["state"] == state
    assert "hunter22" not in json.dumps(message)
    assert message.get("error", "").startswith(told or "") and ("error" in message) == (told is not None)


def test_a_user_of_the_address_is_sent_as_one_and_summaries_in_words(hook: Webhook) -> None:
    with notifying(f"http://me:s%40cret@{hook.place}", "cells", print) as message:
        message["summaries"] = [NN]
    assert hook.headers[0]["Authorization"] == "Basic bWU6c0BjcmV0"  # me:s@cret
    assert hook.messages[0]["text"].startswith("cells: done. Chosen: the plain network (NN), macro-F1 0.800")


@pytest.mark.parametrize("place", ["127.0.0.1:9/T0KEN", "no-host.invalid/T0KEN", "127.0.0.1:9/T0KEN with blanks"])
def test_nobody_there_does_no_harm(place: str) -> None:
    said: list[str] = []
    with suppress(KeyError), notifying(f"http://me:password1@{place}", "s", said.append):
        raise KeyError  # which is not hidden by what comes of telling it
    (line,) = said
    assert line.startswith(place.partition("/")[0]) and "was not notified" in line
    assert "T0KEN" not in line and "password1" not in line


@pytest.mark.parametrize("url", ["hooks.example.org/x", "file:///etc/passwd", "https://", "http://host:port/x", ""])
def test_what_is_no_address_is_refused_before_the_search(url: str) -> None:
    with pytest.raises(SettingsError, match="--notify is no address"), notifying(url, "s", print):
        pytest.fail("begun all the same")


def test_nobody_is_told_of_a_dry_run(hook: Webhook, tmp_path: Path) -> None:
    tiny(cells={"a": 50, "b": 50, "c": 40}).write_h5ad(tmp_path / "cells.h5ad")
    words = ("search", tmp_path / "cells.h5ad", *KEYS, *FAST, "--method", "nn", "--trials", "1", "--dry-run")
    assert run(*words, "--notify", f"http://{hook.place}").status == 0
    assert hook.messages == []

"""`--notify URL`: when a search ends, what came of it goes to a webhook, as JSON."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from scdgn.errors import SettingsError, first_line
from scdgn.search.credentials import without_password
from scdgn.search.shown.verdict import verdict
from scdgn.search.stages.job import Interrupted

PATIENCE = 10.0
"""Seconds that a webhook has to answer: nobody waits at the end of a search."""


@contextmanager
def notifying(url: str | None, name: str, say: Callable[[str], None], *secret: str) -> Iterator[dict[str, Any]]:
    """Tell the webhook how what is done inside ended: done, failed or interrupted. That it cannot be told does no harm.

    Gives the message, to which the `summaries` are to be added, as `run` returns them.

    Parameters
    ----------
    url
        Of the webhook; None tells nobody. It is itself a secret, and is written nowhere.
    say
        Given a sentence where the message was not taken.
    secret
        Addresses whose passwords are not to be told.

    Raises
    ------
    SettingsError
        Before anything is done, if the URL is none.
    """
    message: dict[str, Any] = {"study": name, "state": "done", "summaries": []}
    if url is None:
        yield message
        return
    host = _host_of(url)
    try:
        yield message
    except (Interrupted, KeyboardInterrupt):
        message["state"] = "interrupted"
        raise
    except Exception as error:
        message |= {"state": "failed", "error": first_line(error)}
        raise
    finally:
        if fault := _post(url, message, secret):
            say(f"{host} was not notified ({fault}); the results are not touched by that")


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:  # no port, or half an address
        pass
    raise SettingsError("--notify is no address of a webhook: give https://HOST/..., or leave it out")


def _post(url: str, message: Mapping[str, Any], secret: tuple[str, ...]) -> str:
    """Send it; why that failed, empty where it did not. The text is what chats show of a message."""
    text = [f"{message['study']}: {message['state']}.", *verdict(message["summaries"]), message.get("error", "")]
    summaries = [summary.to_json() for summary in message["summaries"]]
    body = json.dumps({"text": " ".join(filter(None, text)), **message, "summaries": summaries})
    headers = {"Content-Type": "application/json", "User-Agent": "scdgn"}
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if user:  # which urllib takes for a part of the host
        headers["Authorization"] = f"Basic {b64encode(unquote(user).encode()).decode()}"
    try:
        address = parts._replace(netloc=host).geturl()
        asked = urllib.request.Request(address, without_password(body, *secret).encode(), headers)
        with urllib.request.urlopen(asked, timeout=PATIENCE):
            return ""
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        # An error of the address itself would quote it.
        return first_line(reason) if isinstance(reason, OSError) else type(error).__name__

"""What must not be told: passwords, tokens and keys, in addresses and in what libraries say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"

_SECRET = r"[\w.-]*(?:password|passwd|pwd|secret|token|credential|signature|\bsig)"
_NAMED = re.compile(rf"(?i)({_SECRET}(?:=|%3D))[^&\s\"';,}}]+")  # ?password=..., PWD%3D...
_SENT = re.compile(r"(?i)\b(basic|bearer)\s+[\w+/=.~-]{6,}")  # the header of a request
_USER = re.compile(r"(?<=://)[^/\s\"']*(:[^\s\"']*)?@")  # to the last @: passwords hold some, though they should not

_IN_ENVIRONMENT = re.compile(r"(?:PASSWORD|PASSWD|TOKEN|SECRET|SECRET_ACCESS_KEY)$")
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT")

_LONG = 6
"""Letters from which a secret is looked for by itself: shorter ones are parts of other words."""


def without_password(text: str, *addresses: str) -> str:
    """A text without the users and passwords of addresses in it, and without values that are called secrets.

    It may quote the addresses in parts: drivers take them apart, and name the part that they do not understand. Those
    of the environment's MLflow variables, and its passwords and tokens, are looked for in any case.
    """
    for secret in sorted(_secrets(addresses), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USER.sub("", text)
    return _SENT.sub(rf"\1 {HIDDEN}", _NAMED.sub(rf"\1{HIDDEN}", text))


def without_secret(url: str) -> str:
    """A storage URL without its password, which the database's own ways give again (PGPASSWORD, ~/.pgpass)."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    unknown = f"{url.partition(':')[0]}:..."
    try:
        parts = make_url(url)._replace(password=None)  # `set` takes None for unchanged
    except (ArgumentError, ValueError):  # what is no URL is refused when it is opened
        return unknown
    if "@" in (parts.host or ""):  # the end of a password with such a sign
        return unknown
    named = [key for key, value in parts.query.items() if _NAMED.search(f"{key}={unquote_plus(str(value))}")]
    return parts.difference_update_query(named).render_as_string(hide_password=False)


def _secrets(addresses: tuple[str, ...]) -> set[str]:
    """What is to be found and hidden, in every way of writing it."""
    known = [value.strip() for name, value in os.environ.items() if _IN_ENVIRONMENT.search(name.upper())]
    for address in (*addresses, *(os.environ.get(name, "") for name in _ADDRESSES)):
        known += _parts(address)
    written = {write(one) for one in known for write in (str, unquote, unquote_plus, quote, _quote_all, quote_plus)}
    return {one for one in written if len(one) >= _LONG}


def _quote_all(text: str) -> str:
    return quote(text, safe="")


def _parts(address: str) -> Iterator[str]:
    """The password of an address, and what it may come apart into where its signs are not encoded."""
    found = re.match(r"[\w.+-]*:/{0,2}([^/].*)@", address, re.DOTALL)
    if found is None:
        # With the host left out the password stands where a port should.
        port = re.match(r"[\w.+-]+://[\w.-]*:([^/?]+)", address)
        if port is not None and not port[1].isdigit():
            yield port[1]
        return
    user, colon, password = found[1].partition(":")
    secret = password if colon else user
    yield secret
    yield from re.split(r"[@/:?#\s]", secret)

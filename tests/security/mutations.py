"""Damage, seeded: to bytes, to JSON and to the header of safetensors."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

_ODD: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2, 1e308, -1e308, 10**400, 2**31, 2**63, 0.5, float("nan"), float("inf"), "", "x", "0",
    "../../x", "/etc/passwd", "\x00", "\ud800", "é" * 1000, "a" * 100_000, [], {}, [[]], [None], {"": ""},
    {"x": {"y": []}},
)  # fmt: skip


def flip(content: bytes, draw: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """The beginning, maybe nothing."""
    return content[: draw.randrange(len(content))]


def drop(content: bytes, draw: random.Random) -> bytes:
    """Without a few bytes."""
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 64) :]


def double(content: bytes, draw: random.Random) -> bytes:
    """A few bytes twice."""
    start = draw.randrange(len(content))
    end = start + draw.randint(1, 64)
    return content[:end] + content[start:]


def scramble(content: bytes, draw: random.Random) -> bytes:
    """A few bytes of noise in the place of others."""
    start = draw.randrange(len(content))
    noise = draw.randbytes(draw.randint(1, 64))
    return content[:start] + noise + content[start + len(noise) :]


BYTES: tuple[Damage, ...] = (flip, truncate, drop, double, scramble)


def json_changed(document: Any, draw: random.Random) -> Any:
    """One to three of its values or keys replaced, removed, doubled, nested or swapped with others."""
    changed = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return draw.choice(_ODD)
        # First how deep, so that the long lists of numbers do not take all of the damage.
        depth = draw.choice(sorted({depth for depth, _, _ in places}))
        _, holder, key = draw.choice([place for place in places if place[0] == depth])
        match draw.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(draw.choice(_ODD))
            case 3:
                del holder[key]
            case 4:
                _, other, its_key = draw.choice(places)
                holder[key] = copy.deepcopy(other[its_key])
            case _:
                holder[key] = [holder[key], holder[key]] if draw.random() < 0.5 else {str(key): holder[key]}
    return changed


def _places(document: Any, depth: int = 0) -> Any:
    """Where there is a value: how deep, in what, under which key."""
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield depth, document, key
            yield from _places(document[key], depth + 1)


def header_changed(content: bytes, draw: random.Random) -> bytes:
    """The weights under another header: lengths, types, shapes and offsets that lie."""
    length = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    match draw.randrange(9):
        case 0:
            return (
                draw.choice((0, 1, length + 1, length - 1, len(content), 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
                + content[8:]
            )
        case 1:
            entry["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "X", 7, None))
        case 2:
            entry["shape"] = draw.choice(
                ([], [0], [-1], [2**31, 2**31, 2**31], [2**63], [1.5], "x", None, entry["shape"][::-1], [1] * 100)
            )
        case 3:
            start, end = entry["data_offsets"]
            entry["data_offsets"] = draw.choice(
                ([end, start], [0, 2**63], [-1, end], [start, end + 1], [start + 1, end + 1], [start], None, ["0", "1"])
            )
        case 4:
            header[draw.choice(("", "x" * 1000, f"../{name}", "/etc/passwd", "\x00"))] = header.pop(name)
        case 5:
            header["__metadata__"] = draw.choice(({"x": "y"}, {"x": 1}, [], "x", None, {"x": "y" * 100_000}))
        case 6:
            header = json_changed(header, draw)
        case 7:
            text = json.dumps(header)
            return _framed((text[:-1] + f', "{name}": ' + json.dumps(entry) + "}").encode(), tensors)  # twice
        case _:
            return _framed(b"[" * 200_000, tensors)
    return _framed(json.dumps(header).encode(), tensors)


def _framed(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors

"""Bundles that somebody damaged, or made to do damage: each is refused, or predicts as it did."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.errors import BundleError
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT, WEIGHTS, checksum
from tests import LONGEST
from tests.faults import FAST, KEYS, done, tally, tiny
from tests.security.mutations import BYTES, header_changed, json_changed
from tests.test_bundle import VERSION_1

CASES = 300
MANY = 10_000
MOST = 1 << 30
"""Bytes that it may take."""


@pytest.fixture(scope="module")
def query() -> Dataset:
    return from_anndata(tiny(), Fields("celltype", "tech"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tiny().write_h5ad(folder / "cells.h5ad")
    done("train", folder / "cells.h5ad", *KEYS, *FAST, "-o", folder / "model", "-q")
    return folder / "model"


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A folder with a copy, to be spoilt."""
    (tmp_path / "model").mkdir()
    for name in (DOCUMENT, WEIGHTS):
        (tmp_path / "model" / name).write_bytes((trained / name).read_bytes())
    return tmp_path / "model"


def probabilities(bundle: Bundle, query: Dataset) -> NDArray[np.float32]:
    return bundle.all_outputs(bundle.input(query)).probabilities


@contextmanager
def within_reason() -> Iterator[None]:
    """Neither a hang nor much memory."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024 < MOST


def loaded(folder: Path, query: Dataset) -> NDArray[np.float32] | None:
    """What the model says; None if it is refused."""
    with within_reason():
        try:
            bundle = Bundle.load(folder)
        except BundleError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            return None
        return probabilities(bundle, query)


def resealed(document: Any, weights: bytes) -> bytes:
    """The document with a checksum that fits: what who does damage on purpose would write."""
    if isinstance(document, dict):
        document = {**document, "sha256": checksum(document, weights)}
    return json.dumps(document).encode()


def spoilt(document: bytes, weights: bytes, draw: random.Random) -> tuple[bytes, bytes, bool]:
    """Both files, and whether the checksum was made to fit."""
    content = json.loads(document)
    match draw.randrange(6):
        case 0:
            return draw.choice(BYTES)(document, draw), weights, False
        case 1:
            return document, draw.choice(BYTES)(weights, draw), False
        case 2:
            return json.dumps(json_changed(content, draw)).encode(), weights, False
        case 3:
            return resealed(json_changed(content, draw), weights), weights, True
        case 4:
            weights = draw.choice(BYTES)(weights, draw)
        case _:
            weights = header_changed(weights, draw)
    return resealed(content, weights), weights, True


def fuzz(seeds: range, model: Path, query: Dataset) -> None:
    document, weights = (model / DOCUMENT).read_bytes(), (model / WEIGHTS).read_bytes()
    expected = loaded(model, query)
    assert expected is not None
    refused = 0
    for seed in seeds:
        changed, other_weights, sealed = spoilt(document, weights, random.Random(seed))
        (model / DOCUMENT).write_bytes(changed)
        (model / WEIGHTS).write_bytes(other_weights)
        try:
            said = loaded(model, query)
            if said is None:
                refused += 1
            elif sealed:  # another model, by somebody's will; it predicts all the same
                assert len(said) == len(expected) and np.isfinite(said).all()
            else:
                np.testing.assert_array_equal(said, expected)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        tally["bundles spoilt"] += 1
    assert len(seeds) / 2 < refused < len(seeds)


def test_a_spoilt_bundle_is_refused_or_predicts_the_same(model: Path, query: Dataset) -> None:
    fuzz(range(CASES), model, query)


def test_a_spoilt_bundle_of_version_1_is_too(model: Path, query: Dataset) -> None:
    for name in (DOCUMENT, WEIGHTS):
        (model / name).write_bytes((VERSION_1 / name).read_bytes())
    fuzz(range(CASES), model, query)


@pytest.mark.long
def test_thousands_of_spoilt_bundles_are_refused_or_predict_the_same(model: Path, query: Dataset) -> None:
    fuzz(range(CASES, CASES + MANY), model, query)


def _written(key: str, value: str) -> Callable[[Path], None]:
    """A document with JSON of ours at a key, sealed as it is read."""

    def change(model: Path) -> None:
        content = json.loads((model / DOCUMENT).read_text())
        part = content["parts"][0]
        (part if key in part else content)[key] = "HERE"
        text = json.dumps(content).replace('"HERE"', value)
        with suppress(ValueError, RecursionError):
            text = resealed(json.loads(text), (model / WEIGHTS).read_bytes()).decode()
        (model / DOCUMENT).write_text(text)

    return change


def _linked(name: str, target: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to(target)

    return change


def _pipe(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return change


def _folder(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).unlink()
        (model / name).mkdir()

    return change


def _huge(name: str) -> Callable[[Path], None]:
    return lambda model: os.truncate(model / name, 1 << 42)


SPOILT: dict[str, Callable[[Path], Any]] = {
    "nested deeply": _written("history", "[" * 100_000 + "]" * 100_000),
    "settings of many letters": _written("settings", '"' + "a" * 500_000 + '"'),
    "many settings": _written("settings", "{" + ", ".join(f'"x{number}": 1' for number in range(50_000)) + "}"),
    "a number of many digits": _written("models", "9" * 4000),
    "a number of too many digits": _written("models", "9" * 100_000),
    "a temperature of many digits": _written(
        "calibration", '{"temperature": 1' + "0" * 400 + ', "spreads": [], "auroc": {}}'
    ),
    "many models": _written("models", "1000000000"),
    "NaN": _written("models", "NaN"),
    **{f"{name} a pipe": _pipe(name) for name in (DOCUMENT, WEIGHTS)},
    **{f"{name} a folder": _folder(name) for name in (DOCUMENT, WEIGHTS)},
    **{f"{name} a link to nothing": _linked(name, "nothing") for name in (DOCUMENT, WEIGHTS)},
    **{f"{name} a link to itself": _linked(name, name) for name in (DOCUMENT, WEIGHTS)},
    **{f"{name} endless": _linked(name, "/dev/zero") for name in (DOCUMENT, WEIGHTS)},
    **{f"{name} larger than the memory": _huge(name) for name in (DOCUMENT, WEIGHTS)},
    **{f"no {name}": lambda model, name=name: (model / name).unlink() for name in (DOCUMENT, WEIGHTS)},
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT)
def test_what_a_bundle_may_not_be(change: Callable[[Path], Any], model: Path, query: Dataset) -> None:
    change(model)
    assert loaded(model, query) is None


@pytest.mark.parametrize("depth", range(700, 1000, 25))
def test_a_document_nested_to_about_where_the_interpreter_ends(depth: int, model: Path, query: Dataset) -> None:
    _written("provenance", '{"values": "counts", "x": ' + '{"x":' * depth + "1" + "}" * depth + "}")(model)
    loaded(model, query)


def test_a_key_that_comes_twice_is_read_as_its_last_value(model: Path, query: Dataset) -> None:
    """As JSON is read everywhere; the checksum is of what is read."""
    expected = loaded(model, query)
    text = (model / DOCUMENT).read_text()
    (model / DOCUMENT).write_text(text.replace("{", '{"parts": 99, ', 1))
    np.testing.assert_array_equal(loaded(model, query), expected)
    (model / DOCUMENT).write_text(text[:-1] + ', "parts": 99}')
    assert loaded(model, query) is None


def test_names_in_a_bundle_are_no_paths(model: Path, query: Dataset) -> None:
    """Types, batches and genes called as files are names, in what is loaded and in what is saved."""
    document = json.loads((model / DOCUMENT).read_text())
    document["cell_types"] = ["../../x", "/etc/passwd", "a/b"]
    part = document["parts"][0]
    part["batch_names"] = [f"../{name}" for name in part["batch_names"]]
    (model / DOCUMENT).write_bytes(resealed(document, (model / WEIGHTS).read_bytes()))
    before = set(model.parent.rglob("*"))
    bundle = Bundle.load(model)
    assert probabilities(bundle, query).shape == (query.x.shape[0], 3)
    bundle.save(model, overwrite=True)
    assert set(model.parent.rglob("*")) == before

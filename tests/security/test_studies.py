"""Studies whose files somebody damaged: each command says so in a line, or tells what is there."""

from __future__ import annotations

import json
import random
import shutil
import tomllib
from pathlib import Path

import pytest
import tomli_w

from scdgn.cells.h5ad import write_h5ad
from tests.faults import done, run, tally, tiny
from tests.security.mutations import BYTES, json_changed
from tests.security.test_credentials import SEARCH

CASES = 90
MANY = 2_000
FILES = ("study.toml", "summary.json", "study.journal")
STUDY = Path("studies/x")


@pytest.fixture
def study(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The working directory holds a study; the content of its files."""
    place = tmp_path_factory.mktemp("studies")
    monkeypatch.chdir(place)
    write_h5ad(tiny(), Path("cells.h5ad"))
    done(*SEARCH, "--no-track")
    return {name: (STUDY / name).read_bytes() for name in FILES}


def spoilt(name: str, content: bytes, draw: random.Random) -> bytes:
    """Bytes or values of a file changed."""
    if draw.random() < 0.4:
        return draw.choice(BYTES)(content, draw)
    match name:
        case "study.toml":
            for _ in range(100):
                try:
                    changed = json_changed(tomllib.loads(content.decode()), draw)
                    return tomli_w.dumps(changed).encode()
                except (TypeError, AttributeError, ValueError):  # not everything can be written as TOML
                    continue
            raise AssertionError("no change can be written")
        case "summary.json":
            return json.dumps(json_changed(json.loads(content), draw)).encode()
    lines = content.splitlines()
    place = draw.randrange(len(lines))
    lines[place] = json.dumps(json_changed(json.loads(lines[place]), draw)).encode()
    return b"\n".join(lines) + b"\n"


def fuzz(seeds: range, study: dict[str, bytes], *commands: tuple[str, ...]) -> None:
    refused = 0
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(FILES)
        (STUDY / name).write_bytes(spoilt(name, study[name], draw))
        for words in commands:
            try:
                ran = run(*words)
                assert ran.status in (0, 2)
                errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
                assert "Traceback" not in ran.err and len(errors) == (ran.status == 2)
                assert len(ran.err) < 5_000
            except BaseException as error:
                error.add_note(f"seed {seed}, {name}, {words}")
                raise
            refused += ran.status == 2
        (STUDY / name).write_bytes(study[name])
        tally["studies spoilt"] += 1
    assert len(seeds) * len(commands) / 4 < refused < len(seeds) * len(commands)


LOOKING = (("status", "x"), ("compare", "x"))


def test_a_spoilt_study_is_refused_or_told(study: dict[str, bytes]) -> None:
    fuzz(range(CASES), study, *LOOKING)


@pytest.mark.long
def test_thousands_of_spoilt_studies_are_refused_or_told(study: dict[str, bytes]) -> None:
    fuzz(range(CASES, CASES + MANY), study, *LOOKING)


@pytest.mark.long
def test_a_spoilt_study_is_gone_on_with_or_refused(study: dict[str, bytes]) -> None:
    shutil.copytree("studies", "kept")

    for seed in range(100):
        shutil.rmtree("studies")
        shutil.copytree("kept", "studies")
        draw = random.Random(seed)
        name = draw.choice(FILES)
        (STUDY / name).write_bytes(spoilt(name, study[name], draw))
        for words in ((*SEARCH, "--no-track", "--trials", "3"), ("report", "x", "--no-cells")):
            try:
                ran = run(*words)
            except BaseException as error:
                error.add_note(f"seed {seed}, {name}, {words[0]}")
                raise
            assert ran.status in (0, 2) and "Traceback" not in ran.err

"""What came out of a study comes back from JSON as it was; what is damaged is told in a line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scdgn.errors import DataError
from scdgn.search.folder import StudyFolder, _checked
from scdgn.search.summary import VERSION, Summary, from_json
from tests.security.mutations import json_changed
from tests.summaries import WRITTEN, summary_with


@pytest.mark.parametrize("protocol", WRITTEN)
def test_a_summary_of_before_says_what_it_said(protocol: str, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.summary.write_bytes(WRITTEN[protocol].read_bytes())
    summary = folder.read_summary()
    assert summary is not None and summary.protocol == protocol
    written = json.loads(WRITTEN[protocol].read_text())
    del written["checksum"]
    if "model" in written:
        written["model"]["moves"] = True  # what it did then
    assert summary.to_json() == {"version": VERSION, "trained": None, **written}  # which one of them lacks
    folder.write_summary(summary)
    assert folder.read_summary() == summary


def oldest() -> dict[str, Any]:
    """The document of the first version of all, as far as it is read: a model of the winner, without calibration."""
    document = json.loads(WRITTEN["search"].read_text())
    for key in ("checksum", "padding", "confirmed", "calibration", "annotated"):
        del document[key]
    for part, keys in {
        "asked": ("confirm", "ensemble", "correct", "calibration"),
        "data": ("cells_by_type", "genes", "mutual_information_bits"),
        "winner": ("first_score", "shrunk"),
        "model": ("parts", "score", "corrects", "correction_gains", "adaptation_gains", "test"),
    }.items():
        for key in keys:
            del document[part][key]
    return {**document, "seconds": 12.5}  # which later versions do not tell


def test_what_the_first_version_lacked_has_a_default() -> None:
    summary = from_json(oldest())
    assert isinstance(summary, Summary)
    assert summary.exported_score == summary.winner.score and summary.exported_test is None
    assert summary.model.parts == () and summary.calibration is None and summary.confirmed == {}


def test_the_exported_model_is_scored_as_it_predicts() -> None:
    summary: Summary = summary_with()
    assert summary.model.test is not None and summary.exported_score == summary.model.score
    for corrects, scores in ((False, summary.model.test.plain), (True, summary.model.test.corrected)):
        assert replace(summary, model=replace(summary.model, corrects=corrects)).exported_test is scores


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("winner",), None, "winner: Input should be an object"),
        (("winner", "score"), "0.5", "winner.score: Input should be a valid number"),
        (
            ("final", "test", "macro_f1", "by_seed"),
            [0.5, None],
            "final.test.macro_f1.by_seed.1: Input should be a valid",
        ),
        (("model", "champion"), True, "model.champion: Unexpected keyword argument"),
        (("protocol",), "best", "Input tag 'best' found using 'protocol' does not match any of the expected tags"),
        (("metric",), "f1", "metric: Input should be 'macro_f1', 'accuracy' or 'balanced_accuracy'"),
        (("version",), VERSION + 1, f"it is of version {VERSION + 1}, this scdgn reads up to version {VERSION}"),
    ],
)
def test_damage_is_told_in_a_line(place: tuple[str, ...], value: object, told: str, tmp_path: Path) -> None:
    document = summary_with().to_json()
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    folder = StudyFolder(tmp_path)
    folder.summary.write_text(_checked(document))
    with pytest.raises(DataError) as caught:
        folder.read_summary()
    words = str(caught.value)
    assert f"summary.json cannot be read ({told}" in words and "\n" not in words
    assert words.endswith("): remove it, and the same `scdgn search` writes it again")


@pytest.mark.parametrize(
    ("protocol", "part"),
    [("search", "winner"), ("search", "final"), ("search", "model"), ("seed-best-of-10", "runs")],
)
def test_a_part_that_is_missing_is_told(protocol: str, part: str) -> None:
    document = summary_with(protocol=protocol).to_json()
    del document[part]
    with pytest.raises(ValueError, match=f"^{part}: Field required$"):
        from_json(document)


@pytest.mark.parametrize("protocol", WRITTEN)
def test_whatever_is_changed_is_refused_in_a_line_or_comes_back(protocol: str) -> None:
    read = 0
    for seed in range(300):
        document = json_changed(summary_with(protocol=protocol).to_json(), random.Random(seed))
        if not isinstance(document, dict):  # which the folder refuses
            continue
        try:
            told = from_json(document).to_json()
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            assert json.dumps(from_json(told).to_json()) == json.dumps(told)
    assert 0 < read < 150

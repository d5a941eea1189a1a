"""Scores of unknown cells compared, and what rejecting cells is worth: numbers by hand and by scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from scdgn.analysis.chapters import unknown
from scdgn.analysis.chapters.unknown import NAMES, compare, coverage_accuracy, picture_of_auroc, section
from scdgn.analysis.page.sections import Picture, Table, Text
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, Described
from scdgn.analysis.studies.results import Results
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import UNLABELED, Settings
from scdgn.core.rejection import SCORES, Calibration
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.search.records import TrialRecord
from scdgn.search.stages.calibration import FOLDS, SET_ASIDE
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.cells import seal
from tests.faults import tiny
from tests.summaries import summary_with

SETTINGS = Settings(method="scdgn", hidden=8, latent=4, domain_code=4, epochs=4, batch_size=32, lr=0.01)
PREPROCESS = PreprocessSettings(n_top_genes=20, scaling="standard")
TYPES = ("B & <b>", "N$K$_%", "T")
PART = {"known": 40, "unknown": 25, "kept": 0.9, "told": 0.5, "auroc": dict.fromkeys(SCORES, 0.75)}
CALIBRATION: dict[str, Any] = {
    **Calibration(1.5, "energy", -2.0, auroc=dict.fromkeys(SCORES, 0.75), known=80, unknown=25, source=FOLDS).to_json(),
    "calibration_error": {"before": 0.3, "after": 0.1},
    "apart": True,
    "parts": [{**PART, "name": "a$1$"}, {**PART, "name": "b", "unknown": 0, "told": None, "auroc": {}}],
    "test": {
        "known": 40,
        "unknown": 0,
        "kept": 0.93,
        "told": None,
        "calibration_error": {"before": 0.2, "after": 0.15},
    },
}


@cache
def source(cells: int = 100) -> TrainingCells:
    dataset = from_anndata(tiny(cells={"a": cells, "b": cells, "d": 40}, cell_types=TYPES), Fields("celltype", "tech"))
    split = hold_out(dataset, "d")
    return TrainingCells(dataset, split, Fields("celltype", "tech"), ("d",), (), ())


def results(calibration: dict[str, Any] | None = CALIBRATION, method: str = "scdgn", **settings: Any) -> Results:
    record = TrialRecord(
        0, "complete", {**replace(SETTINGS, method=method).to_mapping(), **vars(PREPROCESS)}, value=0.5
    )
    summary = summary_with(method=method, winner={"number": 0}, calibration=calibration)
    return Results("s", StudySettings(name="s", **settings), {}, summary, (record,))


@cache
def bundle() -> Bundle:
    cells = source()
    trained = fit(cells.dataset, cells.split.train, SETTINGS, PREPROCESS, [0, 1], device="cpu")
    return replace(trained, calibration=Calibration(1.5, "energy", -2.0))


def cells_of(part: str = TEST, unlabeled: bool = False) -> Described:
    """The test cells, called `part`, and as many training cells."""
    held = source()
    rows = np.concatenate([held.split.test, held.split.train[:40]])
    dataset: Dataset = held.dataset.take(rows)
    labels = dataset.labels
    if unlabeled:
        labels = labels.copy()
        labels[:40] = UNLABELED
        dataset = replace(dataset, labels=labels)
    probabilities = bundle().probabilities(bundle().input(dataset))
    names = np.array([part] * 40 + [TRAINING] * 40)
    return Described(dataset, names, bundle(), labels, probabilities, np.zeros((80, 4), np.float32))


# --- comparison of the scores


def test_every_type_is_left_out_in_turn_and_its_models_never_see_it() -> None:
    held = source()
    sealed = seal(held, 5, False)
    labels, units = sealed.dataset.labels, unknown._units(sealed, "scdgn", 0)
    assert [unit.name for unit in units] == list(TYPES)
    for code, unit in enumerate(units):
        assert code not in labels[unit.train] and not set(unit.train) & set(unit.scored)
        assert (labels[unit.scored] == code).sum() == (labels == code).sum()
        assert (labels[unit.scored] != code).any()


def test_the_comparison_has_the_numbers_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.extend(found := predict(*args, **kwargs))
        return found

    predict = unknown.predict_left_out
    monkeypatch.setattr(unknown, "predict_left_out", spy)
    frame = compare(results(), source())
    assert frame["left out"].tolist() == ["batch", *["cell type"] * 3]
    assert frame["name"].tolist() == ["a$1$", *TYPES]
    assert frame.loc[0, list(NAMES.values())].tolist() == [0.75] * 3
    for part, (_, row) in zip(seen, frame.iloc[1:].iterrows(), strict=True):
        truth = part.labels.numpy() == TYPES.index(part.name)
        assert row["unknown cells"] == truth.sum() and row["known cells"] == (~truth).sum()
        for score, name in NAMES.items():
            assert row[name] == pytest.approx(roc_auc_score(truth, part.score(score, 1.5)))


def test_test_cells_take_no_part() -> None:
    held = source()
    labels = held.dataset.labels.copy()
    labels[held.split.test] = labels[held.split.test][::-1]
    other = replace(held, dataset=replace(held.dataset, labels=labels))
    pd.testing.assert_frame_equal(compare(results(), held), compare(results(), other))


def test_a_study_of_before_has_no_folds_to_tell_of() -> None:
    frame = compare(results(None), source())
    assert set(frame["left out"]) == {"cell type"}


def test_types_that_cannot_be_left_out_are_not() -> None:
    held = source()
    one_batch = hold_out(held.dataset, ["b", "d"])
    alone = replace(held, split=one_batch)
    assert unknown._units(seal(alone, 5, False), "scdgn", 0) == []  # nothing to align
    assert len(unknown._units(seal(alone, 5, False), "nn", 0)) == 3
    two = replace(one_batch, train=one_batch.train[held.dataset.labels[one_batch.train] < 2])
    assert unknown._units(seal(replace(held, split=two), 5, False), "nn", 0) == []  # a model of one type
    frame = compare(results({**CALIBRATION, "parts": []}, "nn"), replace(held, split=two))
    assert len(frame) == 0
    texts = [item.words for item in section_of(frame) if isinstance(item, Text)]
    assert any("No type could be left out" in words for words in texts)


def test_many_types_and_cells_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown, "MOST_TYPES", 2)
    monkeypatch.setattr(unknown, "MOST_SEEN", 60)
    sealed = seal(source(), 5, False)
    units = unknown._units(sealed, "scdgn", 0)
    assert len(units) == 2
    assert all(len(unit.train) + len(unit.scored) <= 62 for unit in units)
    monkeypatch.setattr(unknown, "LEAST_CELLS", 1_000)
    assert unknown._units(sealed, "scdgn", 0) == []


# --- coverage and accuracy


def test_accuracy_at_every_coverage_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of()
    scores = np.full(40, 9, dtype=np.float32)
    scores[:6] = [3, 1, 2, 2, 0, 5]
    labels = cells.labels.copy()
    labels[:40] = (cells.predicted[:40] + 1) % 3  # wrong
    labels[[4, 1, 2]] = cells.predicted[[4, 1, 2]]
    monkeypatch.setattr(unknown, "_strangeness", lambda *_: scores)
    curve = coverage_accuracy(replace(cells, labels=labels))
    assert curve["limit"].tolist() == [0, 1, 2, 3, 5, 9]
    assert curve["coverage"].tolist() == [1 / 40, 2 / 40, 4 / 40, 5 / 40, 6 / 40, 1]
    assert curve["accuracy"].tolist() == [1, 1, 3 / 4, 3 / 5, 3 / 6, 3 / 40]
    assert curve.attrs == {"part": TEST, "cells": 40}
    assert unknown._at(curve, 2.5) == (0.1, 0.75) and unknown._at(curve, -1.0) is None


def test_the_curve_ends_at_the_accuracy_of_all_cells_and_is_made_by_the_model_s_score() -> None:
    cells = cells_of()
    curve = coverage_accuracy(cells)
    assert curve["coverage"].iloc[-1] == 1
    assert curve["accuracy"].iloc[-1] == pytest.approx(np.mean(cells.labels[:40] == cells.predicted[:40]))
    logits = torch.stack(
        [model.forward(cells.input(np.arange(len(cells.labels))).leading)[1] for model in bundle().models]
    )
    energy = -logits.logsumexp(dim=2).mean(dim=0).numpy()[:40]
    assert np.allclose(curve["limit"], np.sort(energy), atol=1e-5)


def test_cells_of_types_not_known_are_wrong_and_cells_without_a_label_do_not_count() -> None:
    cells = cells_of()
    labels = cells.labels.copy()
    labels[:40] = UNLABELED  # of the model; the data name their types
    assert coverage_accuracy(replace(cells, labels=labels))["accuracy"].max() == 0
    assert len(coverage_accuracy(cells_of(unlabeled=True))) == 0
    assert coverage_accuracy(cells_of(VALIDATION)).attrs == {"part": VALIDATION, "cells": 40}


def test_a_curve_has_at_most_200_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unknown, "POINTS", 7)
    curve = coverage_accuracy(cells_of())
    assert len(curve) == 7 and curve["coverage"].iloc[-1] == 1


# --- the section


def section_of(frame: pd.DataFrame | None, given: Results | None = None, cells: Described | None = None) -> list[Any]:
    found = section(given or results(), cells or cells_of(), frame)
    assert found is not None
    return list(found.items)


def comparison(rows: int = 3) -> pd.DataFrame:
    cells = {"known cells": 50, "unknown cells": 20}
    scores = dict(zip(NAMES.values(), (0.4, 0.6, 0.8), strict=True))
    names = [f"type {n} $x_1$ <&>%" * (1 + n % 3) for n in range(rows)]
    kinds = ["batch", *["cell type"] * (rows - 1)]
    return pd.DataFrame(
        [{"left out": kind, "name": n, **cells, **scores} for kind, n in zip(kinds, names, strict=True)]
    )


def test_the_section_tells_temperature_errors_and_threshold() -> None:
    items = section_of(comparison())
    words = items[0].words
    assert "temperature of 1.50" in words and "80 cells of left-out domains" in words
    assert "0.300 without it and 0.100 with it" in words and "40 test cells" in words and "0.200 and 0.150" in words
    keys = [item.key for item in items if isinstance(item, Table | Picture)]
    assert keys == ["unknown-threshold", "unknown-scores", "unknown-scores", "coverage-accuracy"]
    kept = items[1].frame
    assert kept["cells"].tolist() == ["a$1$", "b", "the test cells"] and kept["of them kept"].tolist() == [
        0.9,
        0.9,
        0.93,
    ]
    means = items[2].frame
    assert means["name"].tolist().count("mean") == 1  # one batch has no mean
    assert means.iloc[-1]["energy"] == pytest.approx(0.6) and means.iloc[-1]["unknown cells"] == 40


def test_what_is_missing_is_said() -> None:
    items = section_of(None, results(None))
    assert "run again" in items[0].words and isinstance(items[-1], Picture)
    no_threshold = {**CALIBRATION, **Calibration().to_json(), "test": None}
    assert "too few cells to calibrate" in section_of(None, results(no_threshold))[0].words
    inside = {**CALIBRATION, "source": SET_ASIDE, "apart": False, "test": None, "auroc": {}}
    words = section_of(None, results(inside))[0].words
    assert "expect it to keep fewer" in words and "too few cells of unknown types" in words
    assert "none is left" in section_of(None, results(refit_all=True))[-1].words
    given = results()
    assert section(replace(given, summary=summary_with(protocol="seed-best-of-10")), cells_of(), None) is None


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_pictures_are_drawn(rows: int, tmp_path: Path) -> None:
    figure = picture_of_auroc(comparison(rows))
    figure.savefig(tmp_path / "figure.png")
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert len(labels) == rows
    section_of(None)[-1].figure.savefig(tmp_path / "coverage.png")

"""The winner trained again: the seed picked by validation, and what each way of making one number of ten gives."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import Settings
from scdgn.model.evaluate import REPORTED, Evaluation
from scdgn.search.choices import Metric
from scdgn.search.stages import finalists as module
from scdgn.search.stages.finalists import FIRST_SEED, Finalists, summarize, train_finalists, write_table
from scdgn.search.trials.cells import seal
from tests.faults import tiny

SETTINGS = Settings(method="dann", hidden=8, latent=4, domain_code=4, epochs=6, batch_size=32, lr=0.01)
PREPROCESS = PreprocessSettings(n_top_genes=20, scaling="standard")


def cells_of(shuffled: bool = False) -> TrainingCells:
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells={"a": 40, "b": 40, "c": 40, "d": 40}), reading)
    split = hold_out(dataset, "d")
    if shuffled:
        labels = dataset.labels.copy()
        labels[split.test] = np.random.default_rng(0).permutation(labels[split.test])
        dataset = replace(dataset, labels=labels)
    return TrainingCells(dataset, split, reading, ("d",), (dataset.take(split.test),), ())


def trained(cells: TrainingCells, count: int = 4, metric: Metric = "macro_f1", adapt: bool = False) -> Finalists:
    return train_finalists(seal(cells, 5, adapt), SETTINGS, PREPROCESS, metric, 7, count, "cpu", adapts=adapt)


@cache
def evaluated() -> tuple[Finalists, Evaluation]:
    finalists = trained(cells_of())
    test = module.test_finalists(finalists, cells_of(), "cpu")
    assert test is not None
    return finalists, test


def test_seeds_are_others_than_the_search_s() -> None:
    finalists, _ = evaluated()
    assert finalists.seeds == (7 + FIRST_SEED, 8 + FIRST_SEED, 9 + FIRST_SEED, 10 + FIRST_SEED)
    assert len(finalists.bundle.models) == 4
    assert finalists.bundle.provenance["epochs"] == [6] * 4  # its own epochs: nothing stops early


def test_a_fifth_of_every_type_is_set_aside_of_the_twins_and_picks_the_seed() -> None:
    finalists, _ = evaluated()
    dataset = seal(cells_of(), 5, False).dataset
    shares = finalists.validation.ensemble.cells_by_type / np.bincount(dataset.labels)
    assert np.all(np.abs(shares - 0.2) < 0.03)
    assert finalists.bundle.provenance["training_cells"] == len(dataset)  # and costs the finalists nothing
    for metric in ("macro_f1", "accuracy"):
        values = [getattr(one, metric) for one in finalists.validation.models]
        assert trained(cells_of(), metric=metric).picked == int(np.argmax(values))


def test_the_test_cells_are_predicted_as_the_bundle_predicts_them() -> None:
    finalists, test = evaluated()
    cells = cells_of()
    held_out = cells.dataset.take(cells.split.test)
    predicted = finalists.bundle.probabilities(finalists.bundle.input(held_out)).argmax(axis=1)
    assert test.ensemble.accuracy == pytest.approx(float(np.mean(predicted == held_out.labels)))
    f1 = f1_score(held_out.labels, predicted, labels=np.unique(held_out.labels), average="macro")
    assert test.ensemble.macro_f1 == pytest.approx(f1)


@pytest.mark.parametrize("adapt", [False, True])
def test_test_labels_change_no_weight_and_no_pick(adapt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.core.adaptation.CONFIDENCE", 0.4)
    one, two = (trained(cells_of(shuffled), 2, adapt=adapt) for shuffled in (False, True))
    assert one.picked == two.picked and one.bundle.provenance["transductive"] == adapt
    for mine, theirs in zip(one.bundle.models, two.bundle.models, strict=True):
        assert all(torch.equal(weight, theirs.weights[name]) for name, weight in mine.weights.items())
    before, after = (module.test_finalists(one, cells_of(shuffled), "cpu") for shuffled in (False, True))
    assert before is not None and after is not None and before.ensemble.accuracy != after.ensemble.accuracy


def test_the_summary_tells_every_way_of_making_one_number() -> None:
    finalists, test = evaluated()
    summary = summarize(finalists, test)
    assert summary.picked_seed == finalists.seeds[finalists.picked]
    for part, evaluation in (("validation", finalists.validation), ("test", test)):
        for key in REPORTED:
            told = summary.parts[part].of(key)
            values = [getattr(one, key) for one in evaluation.models]
            assert told.by_seed == tuple(values)
            assert told.mean == pytest.approx(np.mean(values))
            assert told.std == pytest.approx(np.std(values, ddof=1))
            assert told.picked == values[finalists.picked]
            assert told.ensemble == getattr(evaluation.ensemble, key)
            assert (told.best_oracle is not None) == (part == "test")
    assert summary.test.accuracy.best_oracle == max(one.accuracy for one in test.models)
    error = summary.test.calibration_error
    assert error.best_oracle == min(error.by_seed)
    assert summary.test.cells == 40


def test_one_seed_has_no_spread() -> None:
    finalists = trained(cells_of(), 1)
    summary = summarize(finalists, None)
    assert summary.test is None and summary.validation.macro_f1.std is None


def test_the_table_says_the_same_and_marks_the_oracle(tmp_path: Path) -> None:
    finalists, test = evaluated()
    summary = summarize(finalists, test)
    write_table(tmp_path / "finalists.csv", summary)
    with (tmp_path / "finalists.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    names = [f"seed {seed}" for seed in finalists.seeds]
    assert list(rows) == [*names, "mean", "standard deviation", "ensemble", "best of 4"]
    assert [name for name in names if rows[name]["note"]] == [names[finalists.picked]]
    for part in ("validation", "test"):
        for key in REPORTED:
            told, column = summary.parts[part].of(key), f"{part}_{key}"
            assert [float(rows[name][column]) for name in names] == pytest.approx(told.by_seed, abs=1e-6)
            for row, entry in (("mean", "mean"), ("standard deviation", "std"), ("ensemble", "ensemble")):
                assert float(rows[row][column]) == pytest.approx(getattr(told, entry), abs=1e-6)
    best = rows["best of 4"]
    assert "oracle" in best["note"] and best["validation_macro_f1"] == ""
    assert float(best["test_macro_f1"]) == pytest.approx(summary.test.macro_f1.best_oracle, abs=1e-6)
    lowest = min(summary.test.calibration_error.by_seed)
    assert float(best["test_calibration_error"]) == pytest.approx(lowest, abs=1e-6)


def test_a_table_without_test_cells_has_no_oracle(tmp_path: Path) -> None:
    finalists, _ = evaluated()
    write_table(tmp_path / "finalists.csv", summarize(finalists, None))
    text = (tmp_path / "finalists.csv").read_text()
    assert "oracle" not in text and "test_" not in text


def test_without_scored_test_cells_there_is_no_evaluation() -> None:
    finalists, _ = evaluated()
    cells = cells_of()
    nobody = cells.split.test[:0]
    assert module.test_finalists(finalists, replace(cells, split=replace(cells.split, scored=nobody)), "cpu") is None

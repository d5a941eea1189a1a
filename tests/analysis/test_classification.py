"""Confusion, recall, reliability and confidence, against scikit-learn, statsmodels and cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from scdgn.analysis.chapters.classification import (
    KNOWN_RIGHT,
    KNOWN_WRONG,
    UNSEEN,
    by_type,
    confidences,
    confusion,
    confusion_figure,
    confusions,
    most_confused,
    recall_by_training_cells,
    recall_figure,
    reliability,
    section,
    wilson,
)
from scdgn.analysis.page.sections import Picture, Table
from scdgn.analysis.page.sections import Text as Paragraph
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, Described
from scdgn.cells.dataset import Dataset
from scdgn.core.metrics import calibration_error, macro_f1
from scdgn.model.bundle import Bundle

TYPES = ("B", "NK", "T <$x$>")


def cells_of(
    true: list[str],
    probabilities: NDArray[np.floating] | list[list[float]],
    part: list[str],
    types: tuple[str, ...] = TYPES,
    **provenance: Any,
) -> Described:
    """Cells with these true types (empty: no label), of a model that knows `types`."""
    names = tuple(sorted(set(true) - {""} | set(types)))
    n = len(true)
    dataset = Dataset(
        x=np.zeros((n, 1), dtype=np.float32),
        values="counts",
        genes=np.array(["g"]),
        cells=np.array([f"c{place}" for place in range(n)]),
        labels=np.array([names.index(name) if name else -1 for name in true], dtype=np.int64),
        cell_types=names,
        batches=np.array([int(name == TEST) for name in part], dtype=np.int64),
        batch_names=("a", "b"),
    )
    return Described(
        dataset,
        np.array(part),
        cast(Bundle, SimpleNamespace(cell_types=types, provenance=provenance)),
        np.array([types.index(name) if name in types else -1 for name in true], dtype=np.int64),
        np.asarray(probabilities, dtype=np.float32),
        np.zeros((n, 2), dtype=np.float32),
    )


def certain(predicted: list[str], types: tuple[str, ...] = TYPES) -> NDArray[np.floating]:
    return 0.7 * np.eye(len(types))[[types.index(name) for name in predicted]] + 0.1


def drawn(n: int = 400, types: int = 5, seed: int = 0) -> Described:
    """Random cells and probabilities, a quarter of them for training."""
    generator = np.random.default_rng(seed)
    names = tuple(f"type {code:02d}" for code in range(types))
    true = generator.integers(types, size=n)
    scores = generator.normal(size=(n, types)) + 1.5 * np.eye(types)[true]
    exponentials = np.exp(scores)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    part = [TRAINING if place % 4 == 0 else TEST for place in range(n)]
    return cells_of([names[code] for code in true], probabilities, part, names)


def small() -> Described:
    """Four training cells; of the test, one B found, one taken for NK, a T found, a pDC, and one without a label.

    And a cell for validation.
    """
    true = ["B", "B", "NK", "T <$x$>", "B", "B", "T <$x$>", "pDC", "", "B"]
    predicted = ["B", "B", "NK", "T <$x$>", "B", "NK", "T <$x$>", "NK", "B", "B"]
    return cells_of(true, certain(predicted), [TRAINING] * 4 + [TEST] * 5 + [VALIDATION])


def test_confusion_has_types_that_the_model_does_not_know_as_rows_alone() -> None:
    counts = confusion(small(), TEST)

    assert list(counts.index) == ["B", "NK", "T <$x$>", "pDC"]
    assert list(counts.columns) == list(TYPES)
    assert counts.to_numpy().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_of_many_types_the_most_confused_are_shown_and_no_cell_is_lost() -> None:
    draws = np.random.default_rng(0)
    known = [f"type{place}" for place in range(9)]
    numbers = draws.integers(0, 5, (12, 9)) + 50 * np.eye(12, 9, dtype=np.int64)
    numbers[[2, 5]] += 20  # taken for others
    numbers[10] += 30  # not in training
    counts = pd.DataFrame(
        numbers, pd.Index([*known, "x", "y", "z"], name="true type"), pd.Index(known, name="predicted")
    )
    found = most_confused(counts, 3)
    assert list(found.columns) == ["type2", "type5", "9 other types"] and list(found.index)[3:] == ["y"]
    assert found.loc[["type2", "type5", "y"], ["type2", "type5"]].equals(
        counts.loc[["type2", "type5", "y"], ["type2", "type5"]]
    )
    assert found.loc["type2"].sum() == counts.loc["type2"].sum() and found["type5"].sum() == counts["type5"].sum()
    assert found.to_numpy().sum() == numbers.sum()
    assert most_confused(counts, 12) is counts
    pairs = confusions(counts)
    assert pairs["cells"].sum() == numbers.sum() - np.trace(numbers) and pairs["cells"].is_monotonic_decreasing
    first = pairs.iloc[0]
    assert first["cells"] == counts.loc[first["true type"], first["predicted"]]
    assert first["share"] == first["cells"] / counts.loc[first["true type"]].sum()


def test_a_section_of_many_types_says_what_it_leaves_out() -> None:
    many = section(drawn(types=60))
    assert "Of 60 types the 50 are shown" in next(item for item in many.items if isinstance(item, Picture)).caption
    assert any(isinstance(item, Table) and item.key == "confusions" for item in many.items)
    assert not any(isinstance(item, Table) and item.key == "confusions" for item in section(drawn(types=40)).items)


def test_confusion_is_scikit_learns() -> None:
    cells = drawn()
    test = cells.part == TEST
    assert (confusion(cells, TEST).to_numpy() == confusion_matrix(cells.labels[test], cells.predicted[test])).all()


def test_scores_by_type_are_scikit_learns_and_their_mean_is_macro_f1() -> None:
    cells = drawn()
    test = cells.part == TEST
    frame = by_type(cells, TEST).sort_values("type")
    expected = precision_recall_fscore_support(cells.labels[test], cells.predicted[test])

    np.testing.assert_allclose(frame[["precision", "recall", "F1", "cells"]].to_numpy().T, np.stack(expected))
    assert frame["F1"].mean() == pytest.approx(macro_f1(cells.labels[test], cells.predicted[test]))
    assert (frame["training cells"] == np.bincount(cells.labels[~test])).all()


def test_scores_leave_out_cells_of_types_that_the_model_does_not_know() -> None:
    frame = by_type(small(), TEST).set_index("type")

    assert frame["training cells"].tolist() == [2, 1, 1]
    assert frame["predicted"].to_dict() == {"B": 1, "NK": 1, "T <$x$>": 1}
    assert np.isnan(frame.loc["NK", "recall"])
    assert np.isnan(frame.loc["NK", "F1"])
    assert frame["F1"].mean() == pytest.approx((2 / 3 + 1) / 2)


def test_training_cells_are_all_that_trained_the_model_not_those_drawn() -> None:
    cells = cells_of(["B"] * 3 + ["NK"], certain(["B"] * 4), [TRAINING] * 4)
    assert by_type(cells, TRAINING)["training cells"].tolist() == [3, 1, 0]
    assert by_type(replace(cells, trained=np.array([7, 9, 2])), TRAINING)["training cells"].tolist() == [9, 7, 2]


@pytest.mark.parametrize(("right", "n"), [(0, 5), (1, 1), (30, 100), (1_000, 1_000)])
def test_wilson_interval_is_that_of_statsmodels(right: int, n: int) -> None:
    low, high = wilson(np.array([right / n]), np.array([n]))
    np.testing.assert_allclose([low[0], high[0]], proportion_confint(right, n, method="wilson"), atol=1e-6)


def test_recall_is_told_of_types_with_cells_to_judge_by_most_trained_first() -> None:
    frame = recall_by_training_cells(small(), TEST)

    assert frame["type"].tolist() == ["B", "T <$x$>"]
    assert frame["recall"].tolist() == [0.5, 1.0]
    assert (frame["low"] < frame["recall"]).all()
    assert (frame["recall"] <= frame["high"]).all()


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_sums_to_the_calibration_error(bins: int) -> None:
    cells = drawn()
    test = cells.part == TEST
    frame = reliability(cells, TEST, bins)

    gap = (frame["cells"] * (frame["accuracy"] - frame["confidence"]).abs()).sum() / frame["cells"].sum()
    assert gap == pytest.approx(calibration_error(cells.labels[test], cells.probabilities[test], bins), abs=1e-6)
    filled = frame[frame["cells"] > 0]
    assert (filled["low"] < filled["confidence"]).all()
    assert (filled["confidence"] <= filled["high"] + 1e-6).all()


def test_reliability_by_hand() -> None:
    probabilities = [[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]
    frame = reliability(cells_of(["B", "NK", "B", "pDC"], probabilities, [TEST] * 4), TEST, bins=2)

    assert frame["cells"].tolist() == [1, 2]
    assert frame["accuracy"].tolist() == [1.0, 0.5]
    np.testing.assert_allclose(frame["confidence"], [0.5, 0.9], atol=1e-6)


def test_confidences_tell_right_wrong_and_unseen_apart() -> None:
    frame = confidences(small(), TEST)

    assert frame["cell"].tolist() == ["c4", "c5", "c6", "c7"]
    assert frame["group"].tolist() == [KNOWN_RIGHT, KNOWN_WRONG, KNOWN_RIGHT, UNSEEN]
    np.testing.assert_allclose(frame["confidence"], 0.8, atol=1e-6)


def test_section_is_of_the_test_cells_and_says_which_types_it_leaves_out() -> None:
    found = section(small())

    assert [item.key for item in found.items if isinstance(item, Picture | Table)] == [
        "confusion", "by-type", "recall-by-training-cells", "reliability", "confidence",
    ]  # fmt: skip
    caption = found.items[0].caption if isinstance(found.items[0], Picture) else ""
    assert "3 test cells (batch b)" in caption
    assert "1 more cells are of 1 type that it was not trained on (pDC)" in caption


def test_section_is_of_the_validation_cells_where_test_cells_have_no_labels() -> None:
    cells = cells_of(["B", "B", "B", "", ""], certain(["B"] * 5), [TRAINING, TRAINING, VALIDATION, TEST, TEST])
    found = section(cells)
    assert all(
        "1 cells of the training batches" in item.caption for item in found.items if not isinstance(item, Paragraph)
    )


def test_section_says_that_there_is_nothing_to_judge_by() -> None:
    found = section(cells_of(["B", ""], certain(["B", "B"]), [TRAINING, TEST]))
    assert len(found.items) == 1
    assert isinstance(found.items[0], Paragraph)


def test_counts_are_written_for_few_types_only() -> None:
    few, many = (confusion_figure(confusion(drawn(types=types), TEST)) for types in (5, 40))
    assert "12" not in {text.get_text() for text in many.axes[0].texts}
    assert len(many.axes[0].texts) == 0
    assert len(few.axes[0].texts) > 5


@pytest.mark.parametrize("types", [1, 13, 40])
def test_names_beside_recall_are_readable(types: int) -> None:
    figure = recall_figure(recall_by_training_cells(drawn(2_000, types), TEST))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to the points
    assert len(boxes) == min(types, 20)
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)

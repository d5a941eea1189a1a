"""The metrics against scikit-learn and independent loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, mutual_info_score, recall_score

from scdgn.core.metrics import (
    Codes,
    accuracy,
    balanced_accuracy,
    calibration_error,
    entropy,
    macro_f1,
    mutual_information,
    recall_by_type,
    score,
)
from tests.conftest import shared_file

TYPES = 6

# Few cells of many types: types never predicted, predicted but absent, and absent altogether are common.
answers = st.lists(st.tuples(st.integers(0, TYPES - 1), st.integers(0, TYPES - 1)), min_size=1, max_size=20)


def codes(answers: list[tuple[int, int]]) -> tuple[Codes, Codes]:
    labels, predicted = np.array(answers).T
    return labels, predicted


def random_probabilities(seed: int, cells: int) -> tuple[Codes, np.ndarray]:
    draws = np.random.default_rng(seed)
    return draws.integers(TYPES, size=cells), draws.dirichlet(np.full(TYPES, 0.4), size=cells)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@settings(max_examples=50, deadline=None)
@given(answers)
def test_accuracies_and_macro_f1_are_those_of_scikit_learn(answers: list[tuple[int, int]]) -> None:
    labels, predicted = codes(answers)
    present = np.unique(labels)
    assert accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    assert balanced_accuracy(labels, predicted) == pytest.approx(balanced_accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert macro_f1(labels, predicted) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(answers)
def test_recall_is_that_of_scikit_learn_and_nan_for_absent_types(answers: list[tuple[int, int]]) -> None:
    labels, predicted = codes(answers)
    expected = recall_score(labels, predicted, labels=range(TYPES), average=None, zero_division=np.nan)
    np.testing.assert_allclose(recall_by_type(labels, predicted, TYPES), expected)


def test_predicting_an_absent_type_adds_no_term_to_macro_f1() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 5, 1, 1])
    assert macro_f1(labels, predicted) == pytest.approx((2 / 3 + 1) / 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_calibration_error_by_a_loop_over_the_bins(seed: int, cells: int) -> None:
    labels, probabilities = random_probabilities(seed, cells)
    expected = 0.0
    for bin_ in range(15):
        inside = [i for i in range(cells) if bin_ / 15 < max(probabilities[i]) <= (bin_ + 1) / 15]
        if inside:
            confidence = sum(max(probabilities[i]) for i in inside) / len(inside)
            right = sum(list(probabilities[i]).index(max(probabilities[i])) == labels[i] for i in inside) / len(inside)
            expected += len(inside) / cells * abs(confidence - right)
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_a_calibrated_and_of_a_deluded_model() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    assert calibration_error(labels, np.tile([0.8, 0.2], (10, 1))) == pytest.approx(0)
    assert calibration_error(labels, np.tile([0.0, 0.0, 1.0], (10, 1))) == pytest.approx(1)


def test_bins_are_closed_above_as_in_guo_et_al() -> None:
    # 0.6 is the upper edge of the bin that holds 0.55: one right and one wrong answer nearly cancel.
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45]])
    assert calibration_error(np.array([1, 0]), probabilities) == pytest.approx((0.6 + 0.55 - 1) / 2)


def test_all_scores_at_once_are_the_scores_one_by_one() -> None:
    labels, probabilities = random_probabilities(0, 40)
    labels[labels == 3] = 2
    predicted = probabilities.argmax(axis=1)
    scores = score(labels, probabilities)
    assert scores.cells == 40
    assert scores.accuracy == accuracy(labels, predicted)
    assert scores.balanced_accuracy == balanced_accuracy(labels, predicted)
    assert scores.macro_f1 == macro_f1(labels, predicted)
    assert scores.calibration_error == calibration_error(labels, probabilities)
    assert scores.recall.shape == (TYPES,) and np.flatnonzero(np.isnan(scores.recall)).tolist() == [3]


def test_no_cells_have_no_score() -> None:
    with pytest.raises(ValueError, match="no cells"):
        score(np.array([], dtype=np.int64), np.zeros((0, 3)))


@settings(max_examples=50, deadline=None)
@given(answers)
def test_mutual_information_is_that_of_scikit_learn_in_bits(answers: list[tuple[int, int]]) -> None:
    labels, domains = codes(answers)
    expected = mutual_info_score(labels, domains) / math.log(2)
    assert mutual_information(labels, domains) == pytest.approx(expected, abs=1e-12)
    assert mutual_information(domains, labels) == pytest.approx(expected, abs=1e-12)


def test_mutual_information_and_entropies_are_the_published_ones() -> None:
    for case in json.loads(shared_file("reference", "mutual_information.json").read_text()):
        labels, domains = np.array(case["label"]), np.array(case["domain"])
        assert mutual_information(labels, domains) == pytest.approx(case["mi_bits"], abs=1e-10)
        assert entropy(labels) == pytest.approx(case["h_label_bits"], abs=1e-10)
        assert entropy(domains) == pytest.approx(case["h_domain_bits"], abs=1e-10)


def test_mutual_information_of_independent_and_of_identical_codes() -> None:
    labels, domains = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    assert 0 <= mutual_information(labels, domains) < 1e-12
    assert mutual_information(labels, labels) == pytest.approx(2)
    assert entropy(np.array([0, 5, 0, 5])) == pytest.approx(1)  # a code that nothing has


@given(answers, st.integers(0, 9))
def test_a_cell_that_stands_for_several_counts_as_often(answers: list[tuple[int, int]], seed: int) -> None:
    labels, _ = codes(answers)
    draws = np.random.default_rng(seed)
    probabilities = draws.dirichlet(np.ones(TYPES), size=len(labels))
    times = draws.integers(1, 5, size=len(labels))
    weighted, repeated = (
        score(labels, probabilities, times.astype(float)),
        score(np.repeat(labels, times), np.repeat(probabilities, times, axis=0)),
    )
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name))
    np.testing.assert_allclose(weighted.recall, repeated.recall)
    assert weighted.cells == len(labels) and weighted.cells_by_type.sum() == len(labels)

"""Confounding in numbers, and rank correlations of few points, against hand-computed cases and scipy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from scdgn.analysis.chapters.information import (
    CELLS,
    DIFFERENCE,
    _interval,
    against_information,
    published_statistics,
    rank_correlation,
    readings,
    statistics,
    versus_information,
)
from scdgn.analysis.page.style import styled
from scdgn.analysis.studies import published
from scdgn.analysis.studies.results import METHODS
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source, TrainingCells, read
from scdgn.cells.splits import Split


def cells(labels: list[int], batches: list[int], train: list[int], test: list[int], types: int = 3) -> TrainingCells:
    """Cells of two genes of which only types and batches matter."""
    dataset = Dataset(
        x=np.ones((len(labels), 2), dtype=np.float32),
        labels=np.array(labels),
        batches=np.array(batches),
        cell_types=tuple(f"type{code}" for code in range(types)),
        batch_names=tuple(f"batch{code}" for code in range(max(batches) + 1)),
        genes=np.array(["a", "b"]),
        cells=np.array([f"cell{row}" for row in range(len(labels))]),
        values="counts",
    )
    rows = np.array(test, dtype=np.int64)
    split = Split(np.array(train), rows, rows, rows[:0])
    return TrainingCells(dataset, split, Fields("celltype", "tech"), (), (), ())


def table(scores: dict[str, list[float]], test: str = "test", metric: str = "accuracy") -> pd.DataFrame:
    """Scores of four or so data sets in the form of table 2; the more cells, the less information."""
    return pd.DataFrame(
        {
            "data_set": f"{test}{place}", "test": test, "mutual_information": 1.0 - 0.1 * place,
            "training_cells": 1000 + 100 * place, "method": method, "transductive": False, "metric": metric,
            "mean": value, "std": 0.02,
        }
        for method, values in scores.items()
        for place, value in enumerate(values)
    )  # fmt: skip


# --- statistics


def test_type_and_batch_that_are_the_same_share_all_their_information() -> None:
    frame = statistics(cells([0, 0, 1, 1, 0], [0, 0, 1, 1, 2], [0, 1, 2, 3], [4]))
    training = frame.iloc[0]
    assert training.tolist() == ["training", 4, 2, 2, 2, pytest.approx(1.0), pytest.approx(1.0)]
    assert frame.iloc[1].tolist() == ["test", 1, 1, 1, 2, 0.0, 0.0]


def test_information_is_that_of_the_counts() -> None:
    """Three cells of type 0 in batch 0 and one in batch 1; one of type 1 in batch 1: by hand."""
    frame = statistics(cells([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 1, 2, 3, 4], []))
    joint = np.array([[3, 1], [0, 1]]) / 5
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    by_hand = sum(p * math.log2(p / q) for p, q in zip(joint.ravel(), independent.ravel(), strict=True) if p)
    assert len(frame) == 1
    assert frame["mutual_information"][0] == pytest.approx(by_hand)
    assert frame["label_entropy"][0] == pytest.approx(stats.entropy([4, 1], base=2))


def test_cells_without_a_label_count_and_tell_nothing() -> None:
    frame = statistics(cells([0, 1, -1, -1], [0, 0, 1, 1], [0, 1], [2, 3]))
    test = frame.iloc[1]
    assert (test["cells"], test["cell_types"], test["domains"]) == (2, 0, 1)
    assert math.isnan(test["mutual_information"]) and math.isnan(test["label_entropy"])


def test_the_splits_have_the_information_that_was_computed_for_them(pbmc_file: Path, splits_file: Path) -> None:
    reference = json.loads(splits_file.read_text())["splits"]["split5"]
    training = statistics(read(Source(data=pbmc_file, split=f"{splits_file}:split5"))).iloc[0]
    assert training["cells"] == reference["train_cells"]
    assert training["mutual_information"] == pytest.approx(reference["mi_bits"], abs=5e-5)


def test_table_1_has_the_same_form() -> None:
    frame = published_statistics()
    assert frame["data_set"].value_counts().to_dict() == {"scquery": 3, "pancreas": 2, "pbmc": 2}
    scquery = frame[frame["data_set"] == "scquery"].iloc[0]
    assert (scquery["cells"], scquery["cell_types"], scquery["domains"], scquery["genes"]) == (37697, 39, 99, 20499)
    assert scquery["mutual_information"] == 3.025
    assert frame[frame["data_set"] == "pancreas"]["mutual_information"].isna().all()


# --- rank correlation


@pytest.mark.parametrize("n", [4, 6, 9, 40])
@pytest.mark.parametrize("ties", [False, True])
def test_the_coefficient_is_scipys(n: int, ties: bool) -> None:
    generator = np.random.default_rng(n)
    x, y = generator.normal(size=(2, n))
    if ties:
        x, y = np.round(x), np.round(y * 2)
    assert rank_correlation(x, y).rho == pytest.approx(stats.spearmanr(x, y).statistic)


def all_orders(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The exact probability, by going through all orders."""
    wanted = abs(stats.spearmanr(x, y).statistic) - 1e-9
    found = [abs(np.corrcoef(stats.rankdata(order), stats.rankdata(y))[0, 1]) for order in itertools.permutations(x)]
    return float(np.mean([one >= wanted for one in found]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_probability_counts_all_orders(seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, 5))
    assert rank_correlation(x, y).p == pytest.approx(all_orders(x, y))


def test_the_probability_of_many_points_is_scipys_nearly() -> None:
    x, noise = np.random.default_rng(0).normal(size=(2, 30))
    y = 0.4 * x + noise
    found = rank_correlation(x, y)
    assert found.p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.01)
    assert found == rank_correlation(x, y)  # the draw is always the same


def test_the_interval_is_bonett_and_wrights() -> None:
    """Computed by hand for six points with a coefficient of -5/7."""
    found = rank_correlation([1, 2, 3, 4, 5, 6], [6, 3, 5, 2, 4, 1])
    assert found.rho == pytest.approx(-5 / 7)
    width = 1.959964 * math.sqrt((1 + found.rho**2 / 2) / 3)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.rho) - width), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.rho) + width), abs=1e-6)
    mirrored = rank_correlation([1, 2, 3, 4, 5, 6], [-6, -3, -5, -2, -4, -1])
    assert (mirrored.rho, mirrored.low, mirrored.high) == pytest.approx((-found.rho, -found.high, -found.low))


def test_the_interval_holds_what_it_says_for_six_points() -> None:
    """Of many draws of six from a normal distribution, about 95 % of the intervals hold the true coefficient."""
    generator = np.random.default_rng(1)
    true, held = 6 / math.pi * math.asin(0.6 / 2), 0
    for _ in range(300):
        x, noise = generator.normal(size=(2, 6))
        # Only the interval is looked at, which does not need the exact probability.
        rho = stats.spearmanr(x, 0.6 * x + 0.8 * noise).statistic
        low, high = _interval(float(rho), 6)
        held += low <= true <= high
    assert 0.92 <= held / 300 <= 0.995


def test_full_agreement_is_not_taken_for_certainty() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (found.rho, found.high) == (1.0, 1.0) and found.low < 0.6
    assert found.p == pytest.approx(2 / 120)
    against = rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert (against.low, against.high) == (-1.0, pytest.approx(-found.low))


def test_too_few_or_constant_points_have_none() -> None:
    for x, y in (([1.0], [2.0]), ([1.0, 2.0], [2.0, 1.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([], [])):
        found = rank_correlation(x, y)
        assert math.isnan(found.rho) and math.isnan(found.p) and found.n == len(x)
    three = rank_correlation([1, 2, 3], [1, 2, 3])
    assert (three.rho, three.low, three.high, three.n) == (1.0, -1.0, 1.0, 3)
    assert three.p == pytest.approx(2 / 6)


def test_pairs_with_a_missing_number_are_left_out() -> None:
    found = rank_correlation([1, 2, math.nan, 4, 5], [1, 3, 9, math.nan, 4])
    assert (found.n, found.rho) == (3, 1.0)


# --- readings


def test_on_the_published_table_both_fall() -> None:
    found = readings(table({"nn": [0.5]}))
    assert set(found["source"]) == {"published"} and set(found["n"]) == {6}
    rho = found.set_index(["against", "method"])["rho"]
    assert rho["mutual_information", "nn"] == pytest.approx(-0.71, abs=0.005)
    assert rho["mutual_information", "scdgn"] == pytest.approx(-0.89, abs=0.005)
    sets = [published.TABLE2[name] for name in published.PANCREAS]
    difference = [row.accuracy["scDGN"] - row.accuracy["NN"] for row in sets]
    by_scipy = stats.spearmanr([row.mutual_information for row in sets], difference).statistic
    assert rho["mutual_information", DIFFERENCE] == pytest.approx(by_scipy)
    assert rho["mutual_information", CELLS] == pytest.approx(
        stats.spearmanr(
            [row.mutual_information for row in sets], [published.training_cells(name) for name in published.PANCREAS]
        ).statistic
    )
    words = found.set_index(["against", "method"])["found"]
    assert words["mutual_information", "nn"] == "open" and words["mutual_information", "scdgn"] == "falls"


def test_ours_are_read_by_test_cells() -> None:
    falling, rising = [0.5, 0.6, 0.7, 0.8, 0.9], [0.9, 0.8, 0.7, 0.6, 0.5]
    both = [table({"nn": falling, "scdgn": rising}), table({"nn": rising}, "other"), table({"nn": [0.5, 0.6]}, "two")]
    found = readings(pd.concat(both))
    found = found[found["source"] == "ours"].set_index(["test", "against", "method"])
    # The first set has the most information and the fewest cells.
    assert (
        found["rho"]["test", "mutual_information", "nn"] == -1
        and found["found"]["test", "training_cells", "nn"] == "rises"
    )
    assert found["found"]["test", "mutual_information", "scdgn"] == "rises"
    assert found["rho"]["test", "mutual_information", DIFFERENCE] == 1
    assert found["rho"]["other", "mutual_information", "nn"] == 1 and set(found["n"]) == {5}
    assert found["rho"]["test", "mutual_information", CELLS] == -1
    assert "two" not in found.index.get_level_values("test")


def test_what_saw_the_test_cells_or_has_no_information_is_left_out() -> None:
    plain = table({"nn": [0.5, 0.6, 0.7]})
    again = table({"nn": [0.9, 0.8, 0.1]}).assign(transductive=True)
    found = readings(pd.concat([plain, again]))
    assert found[(found["source"] == "ours") & (found["method"] == "nn")]["rho"].tolist() == [-1, 1]
    unknown = readings(plain.assign(mutual_information=np.nan))
    assert set(unknown[unknown["source"] == "ours"]["against"]) == {"training_cells"}


# --- figures


def texts(figure: Figure) -> list[str]:
    with styled():
        figure.draw_without_rendering()
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_ours_are_filled_and_published_hollow() -> None:
    figure = against_information(table({method: [0.5, 0.6, 0.7] for method in METHODS}))
    assert texts(figure) == ["NN", "DANN", "scDGN", "published, pancreas1 to 6"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["mutual information (bits)", "training cells"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [len(line.get_xdata()) for line in hollow] == [6, 0, 6]  # type: ignore[arg-type]
    filled = [line for line in figure.axes[0].lines if line.get_markerfacecolor() != "none"]
    assert [np.asarray(line.get_ydata()).tolist() for line in filled] == [[0.5, 0.6, 0.7]] * 3


def test_published_are_accuracies_alone() -> None:
    scores = table({method: [0.5, 0.6, 0.7] for method in METHODS}, metric="macro_f1")
    assert texts(against_information(scores, "macro_f1")) == ["NN", "DANN", "scDGN"]


def test_two_families_of_test_cells_have_markers() -> None:
    both = pd.concat([table({"nn": [0.5, 0.6, 0.7]}, "$a$"), table({"nn": [0.4, 0.5]}, "b_")])
    assert texts(against_information(both))[-3:] == [r"tested on \$a\$", "tested on b_", "published, pancreas1 to 6"]


def test_many_families_of_test_cells_have_no_markers() -> None:
    """As of every one of 99 batches held out in turn: a legend of 99 would leave no room."""
    every = pd.concat([table({"nn": [0.5]}, f"batch {number}") for number in range(99)])
    assert texts(against_information(every)) == ["NN", "scDGN", "published, pancreas1 to 6"]
    assert texts(versus_information(every.assign(metric="macro_f1"))) == ["NN"]


def test_peers_stand_beside_ours_at_the_information_of_their_data_set() -> None:
    scores = table({method: [0.5, 0.6, 0.7] for method in METHODS}, metric="macro_f1")
    peers = pd.DataFrame(
        {
            "data_set": ["test2", "test0", "unknown", "test1", "test1"],
            "method": ["logistic $x$"] * 4 + ["failed"],
            "macro_f1": [0.9, 0.3, 0.5, np.nan, np.nan],
        }
    )
    figure = versus_information(scores, peers)
    assert texts(figure) == ["NN", "DANN", "scDGN", r"logistic \$x\$"]
    line = figure.axes[0].lines[-1]
    assert np.asarray(line.get_xdata()).tolist() == pytest.approx([0.8, 1.0])
    assert np.asarray(line.get_ydata()).tolist() == [0.9, 0.3]


def test_many_peers_and_a_single_data_set_can_be_told() -> None:
    scores = table({method: [0.5] for method in METHODS}, metric="macro_f1")
    names = [f"peer {number}" for number in range(9)]
    peers = pd.DataFrame({"data_set": "test0", "method": names, "macro_f1": 0.4})
    figure = versus_information(scores, peers)
    assert texts(figure)[3:] == names
    looks = {(line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines[-9:]}
    assert len(looks) == 9

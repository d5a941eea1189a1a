"""The numbers in the code are those in print."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from scdgn.analysis.studies import published
from scdgn.analysis.studies.published import METHODS, PANCREAS, TABLE1, TABLE2, Part
from tests.conftest import shared_file


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(shared_file("reference", "paper_tables.json").read_text())
    return content


PANCREAS_AVERAGE = dict(zip(METHODS, (0.826, 0.817, 0.842, 0.845, 0.840, 0.872), strict=True))
"""Accuracy over the six pancreas sets, as printed."""


def test_table_1_is_as_printed(printed: dict[str, Any]) -> None:
    table = printed["dataset_statistics"]
    assert TABLE1.keys() == table.keys()
    for name, statistics in TABLE1.items():
        assert statistics.genes == table[name]["genes"]
        for part, ours in (
            ("train", statistics.train),
            ("validation", statistics.validation),
            ("test", statistics.test),
        ):
            assert ours == (Part(**table[name][part]) if part in table[name] else None)


def test_table_2_is_as_printed(printed: dict[str, Any]) -> None:
    table = printed["test_accuracy"]
    assert list(METHODS) == table["methods"]
    assert set(TABLE2) == set(table) - {"methods", "pancreas_average", "known_misprints"}
    for name, row in TABLE2.items():
        assert row.mutual_information == table[name]["mi_bits"]
        assert [row.accuracy[method] for method in METHODS] == table[name]["values"]
    assert [PANCREAS_AVERAGE[method] for method in METHODS] == table["pancreas_average"]


def test_training_cells_are_as_reported(printed: dict[str, Any]) -> None:
    for name, cells in printed["pancreas_splits"]["reported_cells"].items():
        assert published.training_cells(name) == cells["train"]
    assert published.training_cells("scquery") == 37697
    assert published.training_cells("pancreas7") is None


def test_what_is_not_printed_is_none() -> None:
    assert published.accuracy("pancreas3", "scDGN") == 0.663
    assert published.accuracy("pancreas3", "DANN") is None
    assert published.accuracy("split1", "NN") is None


def test_the_misprints_are_there() -> None:
    """A corrected number would be another table than the printed one."""
    means = {method: np.mean([TABLE2[name].accuracy[method] for name in PANCREAS]) for method in METHODS}
    off = {method for method in METHODS if abs(means[method] - PANCREAS_AVERAGE[method]) > 0.00051}
    assert off == {"MNN"}
    for name in ("pancreas2", "pancreas3", "pancreas4"):
        assert TABLE2[name].accuracy["MNN"] == TABLE2[name].accuracy["CaSTLe"]
    assert TABLE1["pancreas"].train.cells == 5683 + TABLE1["pancreas"].test.cells


def test_the_table_has_a_row_per_data_set_and_method() -> None:
    table = published.table2()
    assert len(table) == 8 * 6
    row = table[(table["data_set"] == "pancreas1") & (table["method"] == "scVI")].iloc[0]
    assert (row["mutual_information"], row["training_cells"], row["accuracy"]) == (0.902, 2490, 0.855)

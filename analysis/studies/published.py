"""The numbers that were published for the method (Ge et al. 2020, bioRxiv 2020.01.06.896621v1), as printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from scdgn.cells.datasets import DATASETS

METHODS = ("NN", "CaSTLe", "MNN", "scVI", "Seurat", "scDGN")
"""Of table 2, in its order; it has no DANN."""

PANCREAS = ("pancreas1", "pancreas2", "pancreas3", "pancreas4", "pancreas5", "pancreas6")
"""The six sets that share their test cells."""


@dataclass(frozen=True)
class Part:
    """Cells, types and domains of the training, validation or test cells of a data set."""

    cells: int
    cell_types: int
    domains: int


@dataclass(frozen=True)
class Statistics:
    """A data set in table 1; only scquery has validation cells."""

    genes: int
    train: Part
    test: Part
    validation: Part | None = None


@dataclass(frozen=True)
class Row:
    """A data set in table 2: the mutual information of label and domain of its training cells, in bits, and the
    accuracy on its test cells, by method.
    """

    mutual_information: float
    accuracy: Mapping[str, float]


def _row(mutual_information: float, *accuracy: float) -> Row:
    return Row(mutual_information, dict(zip(METHODS, accuracy, strict=True)))


TABLE1: Mapping[str, Statistics] = {
    "scquery": Statistics(20499, Part(37697, 39, 99), Part(3770, 23, 30), Part(3023, 19, 26)),
    "pancreas": Statistics(3000, Part(6321, 13, 3), Part(638, 13, 1)),
    "pbmc": Statistics(3000, Part(25977, 10, 8), Part(2992, 10, 1)),
}

TABLE2: Mapping[str, Row] = {
    "scquery": _row(3.025, 0.255, 0.156, 0.200, 0.257, 0.144, 0.286),
    "pbmc": _row(0.112, 0.861, 0.865, 0.859, 0.808, 0.830, 0.868),
    "pancreas1": _row(0.902, 0.720, 0.705, 0.591, 0.855, 0.812, 0.856),
    "pancreas2": _row(0.733, 0.891, 0.764, 0.764, 0.852, 0.825, 0.918),
    "pancreas3": _row(0.931, 0.545, 0.722, 0.722, 0.651, 0.751, 0.663),
    "pancreas4": _row(0.458, 0.927, 0.914, 0.914, 0.925, 0.881, 0.925),
    "pancreas5": _row(0.849, 0.928, 0.882, 0.932, 0.895, 0.865, 0.923),
    "pancreas6": _row(0.670, 0.944, 0.917, 0.946, 0.893, 0.907, 0.950),
}

MISPRINTS = (
    "The MNN values of pancreas2 to pancreas4 repeat those of CaSTLe, and the six do not average to the printed 0.842.",
    "The 6,321 training cells of pancreas in table 1 are 5,683 + 638: they include the test cells.",
    "The training cells and the mutual information of the six pancreas sets, as published, need not follow from the "
    "types that each technology keeps when these are taken from today's data.",
)
"""What is known to be wrong in print; the numbers here are the printed ones."""


def training_cells(data_set: str) -> int | None:
    """Training cells as reported for a data set of table 2; None for others.

    Those of the six pancreas sets are not in the paper: a later write-up counted them.
    """
    if data_set in TABLE1:
        return TABLE1[data_set].train.cells
    return DATASETS[data_set].reported_training_cells if data_set in TABLE2 else None


def accuracy(data_set: str, method: str) -> float | None:
    """Accuracy in table 2, of a data set as `TABLE2` and a method as `METHODS` names it; None where it has none."""
    return TABLE2[data_set].accuracy.get(method) if data_set in TABLE2 else None


def table2() -> pd.DataFrame:
    """Table 2, a row per set and method: `data_set`, `mutual_information`, `training_cells`, `method`, `accuracy`."""
    return pd.DataFrame(
        {
            "data_set": name,
            "mutual_information": row.mutual_information,
            "training_cells": training_cells(name),
            "method": method,
            "accuracy": value,
        }
        for name, row in TABLE2.items()
        for method, value in row.accuracy.items()
    )

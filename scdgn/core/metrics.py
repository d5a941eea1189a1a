"""How good predictions are, and how strongly labels and batches are confounded. Arrays in, a number out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]

Weights = NDArray[np.float64] | None
"""(cells,) how many cells each stands for; None where each stands for itself."""


@dataclass(frozen=True)
class Scores:
    """All scores of one set of predictions.

    Attributes
    ----------
    cells
        Cells scored.
    accuracy, balanced_accuracy, macro_f1, calibration_error
        See the functions of this module; `calibration_error` is the expected one.
    recall, cells_by_type
        By type, (types,): recall, NaN for types without a scored cell, and the number of scored cells.
    """

    cells: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float
    recall: NDArray[np.float64]
    cells_by_type: Codes


def score(labels: Codes, probabilities: NDArray[np.floating], weights: Weights = None) -> Scores:
    """All scores of predicted probabilities.

    Parameters
    ----------
    labels
        (cells,) true types.
    probabilities
        (cells, types)
    weights
        Of a sample, how many cells each stands for.

    Raises
    ------
    ValueError
        If there are no cells.
    """
    if not len(labels):
        raise ValueError("no cells to score")
    predicted = probabilities.argmax(axis=1)
    return Scores(
        cells=len(labels),
        accuracy=accuracy(labels, predicted, weights),
        balanced_accuracy=balanced_accuracy(labels, predicted, weights),
        macro_f1=macro_f1(labels, predicted, weights),
        calibration_error=calibration_error(labels, probabilities, weights=weights),
        recall=recall_by_type(labels, predicted, probabilities.shape[1], weights),
        cells_by_type=np.bincount(labels, minlength=probabilities.shape[1]),
    )


def accuracy(labels: Codes, predicted: Codes, weights: Weights = None) -> float:
    """Fraction of cells predicted right."""
    return float(np.average(labels == predicted, weights=weights))


def recall_by_type(labels: Codes, predicted: Codes, types: int, weights: Weights = None) -> NDArray[np.float64]:
    """Fraction of each type's cells predicted right, (types,); NaN for types without a cell."""
    present = np.bincount(labels, weights, types)
    right = _right(labels, predicted, weights, types)
    recall: NDArray[np.float64] = np.divide(right, present, out=np.full(types, np.nan), where=present > 0)
    return recall


def balanced_accuracy(labels: Codes, predicted: Codes, weights: Weights = None) -> float:
    """Mean recall over the types present among the true labels."""
    return float(np.nanmean(recall_by_type(labels, predicted, int(labels.max()) + 1, weights)))


def macro_f1(labels: Codes, predicted: Codes, weights: Weights = None) -> float:
    """Mean F1 over the types present among the true labels.

    A cell predicted as a type that is not present counts against the recall of its own type, and adds no term of its
    own to the mean (scikit-learn's f1_score with `labels` the true types and average "macro").
    """
    types = int(max(labels.max(), predicted.max())) + 1
    present = np.bincount(labels, weights, types)
    claimed = np.bincount(predicted, weights, types)
    right = _right(labels, predicted, weights, types)
    shown = present > 0
    return float(np.mean(2 * right[shown] / (present[shown] + claimed[shown])))


def calibration_error(
    labels: Codes, probabilities: NDArray[np.floating], bins: int = 15, weights: Weights = None
) -> float:
    """Expected calibration error of the predicted type (Guo et al. 2017), over equal-width bins of its probability."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    of_cells = np.ones(len(labels)) if weights is None else weights
    gap = np.bincount(place, right * of_cells, bins) - np.bincount(place, confidence * of_cells, bins)
    return float(np.abs(gap).sum() / of_cells.sum())


def _right(labels: Codes, predicted: Codes, weights: Weights, types: int) -> NDArray[np.number]:
    """(types,) cells predicted right."""
    right = labels == predicted
    return np.bincount(labels[right], None if weights is None else weights[right], types)


def entropy(codes: Codes) -> float:
    """Entropy of a coding, in bits."""
    share = np.bincount(codes) / len(codes)
    share = share[share > 0]
    return float(-np.sum(share * np.log2(share)) + 0.0)  # 0, not -0, of a constant


def mutual_information(labels: Codes, domains: Codes) -> float:
    """Mutual information of label and domain, in bits: 0 where they are independent (Ge et al. 2020, table 1).

    Parameters
    ----------
    labels, domains
        (cells,) non-negative codes.
    """
    joint = labels * (int(domains.max()) + 1) + domains
    return max(0.0, entropy(labels) + entropy(domains) - entropy(joint))

"""Which trial wins: three protocols, named as in DomainBed (Gulrajani and Lopez-Paz 2021), from one study's records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdgn.metrics import accuracy, balanced_accuracy, macro_f1
from search.records import TrialRecord
from search.settings import Metric

FAILED_RECALL = 0.5
"""A trial whose mean recall of the types that no fold scores is lower fails them."""

SCORERS = {"macro_f1": macro_f1, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True)
class Winner:
    """The trial that a protocol selects.

    Attributes
    ----------
    protocol
        `leave-one-domain-out`, `training-domain` or `test-domain oracle`.
    number
        Of the trial.
    score
        By which it was selected.
    note
        What is to be known of it.
    """

    protocol: str
    number: int
    score: float
    note: str = ""


def leave_one_domain_out(
    records: Sequence[TrialRecord], metric: Metric, unscored: Collection[str] = ()
) -> Winner | None:
    """The trial with the highest mean score over the domains left out, in turn, of training.

    Parameters
    ----------
    records
        Trials; those that are not complete cannot win.
    metric
        Of the fold scores.
    unscored
        Types that no fold scores. A trial that fails them on the cells set aside of all domains (`FAILED_RECALL`) does
        not win, unless all do.

    Returns
    -------
    None where no trial is complete, or there are no folds.
    """
    scored = {
        record.number: float(np.mean([getattr(fold, metric) for fold in record.folds.values()]))
        for record in records
        if record.state == "complete" and record.folds
    }
    if not scored:
        return None
    kept = [record for record in records if record.number in scored and not fails(record, unscored)]
    note = ""
    if not kept:
        kept = [record for record in records if record.number in scored]
        note = f"every trial fails the types that no fold scores: {', '.join(unscored)}"
    best = max(kept, key=lambda record: (scored[record.number], -record.number))
    return Winner("leave-one-domain-out", best.number, scored[best.number], note)


def training_domain(records: Sequence[TrialRecord], metric: Metric) -> Winner | None:
    """The trial with the highest score on cells set aside of all training domains; None where none is complete."""
    scored = {
        record.number: float(getattr(record.training_domain, metric))
        for record in records
        if record.state == "complete" and record.training_domain is not None
    }
    return _best("training-domain", scored)


def oracle(test_scores: Mapping[int, float]) -> Winner | None:
    """The trial that is best on the test cells: what no honest selection can know. Shown, never used."""
    return _best("test-domain oracle", test_scores)


def score_test(
    predictions: Mapping[int, NDArray[np.uint16]], labels: NDArray[np.int64], scored: NDArray[np.bool_], metric: Metric
) -> dict[int, float]:
    """The score of stored predictions, once the labels are opened.

    Parameters
    ----------
    predictions
        (test cells,) codes predicted, by trial.
    labels
        (test cells,) true codes.
    scored
        (test cells,) those whose type is trained.
    metric
        Which score.
    """
    return {
        number: SCORERS[metric](labels[scored], predicted[scored].astype(np.int64))
        for number, predicted in predictions.items()
    }


def fails(record: TrialRecord, unscored: Collection[str]) -> bool:
    """Whether a trial fails the types that no fold scores."""
    if record.training_domain is None:
        return False
    recalls = [recall for name, recall in record.training_domain.recall.items() if name in unscored]
    return bool(recalls) and float(np.mean(recalls)) < FAILED_RECALL


def _best(protocol: str, scored: Mapping[int, float]) -> Winner | None:
    if not scored:
        return None
    number = max(scored, key=lambda number: (scored[number], -number))
    return Winner(protocol, number, scored[number])

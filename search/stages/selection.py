"""Which trial wins: three protocols, named as in DomainBed (Gulrajani and Lopez-Paz 2021), from one study's records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdgn.core.metrics import accuracy, balanced_accuracy, macro_f1
from scdgn.search.choices import Metric
from scdgn.search.records import TrialRecord

FAILED_RECALL = 0.5
"""A trial fails the types that no fold scores if its mean recall of them is lower, or if it finds none of one."""

SCORERS = {"macro_f1": macro_f1, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


@dataclass(frozen=True)
class Winner:
    """The trial that a protocol (`leave-one-domain-out`, `training-domain` or `test-domain oracle`) selects, by its
    score there; `note` says what is to be known of it.
    """

    protocol: str
    number: int
    score: float
    note: str = ""


def leave_one_domain_out(
    records: Sequence[TrialRecord],
    metric: Metric,
    unscored: Collection[str] = (),
    confirmed: Mapping[int, float] | None = None,
) -> Winner | None:
    """The trial with the highest mean score over the domains left out, in turn, of training; None where none is
    complete.

    Parameters
    ----------
    unscored
        Types that no fold scores. A trial that fails them on the cells set aside of all domains (`FAILED_RECALL`) does
        not win, unless all do.
    confirmed
        Scores with other seeds, by trial: where there are any, they alone choose.
    """
    scored = {
        record.number: float(np.mean([getattr(fold, metric) for fold in record.folds.values()]))
        for record in records
        if record.state == "complete" and record.folds
    }
    known = [record for record in records if record.number in scored]
    failing = {record.number for record in known if fails(record, unscored)}
    note = ""
    if failing and len(failing) == len(known):
        note, failing = f"every trial fails the types that no fold scores: {', '.join(unscored)}", set()
    scored = {number: score for number, score in scored.items() if number not in failing}
    return _best("leave-one-domain-out", scored, confirmed, note)


def training_domain(
    records: Sequence[TrialRecord], metric: Metric, confirmed: Mapping[int, float] | None = None
) -> Winner | None:
    """The trial with the highest score on cells set aside of all training domains; None where none is complete."""
    scored = {
        record.number: float(getattr(record.training_domain, metric))
        for record in records
        if record.state == "complete" and record.training_domain is not None
    }
    return _best("training-domain", scored, confirmed)


def ranked(records: Sequence[TrialRecord], protocol: str, metric: Metric, unscored: Collection[str]) -> list[int]:
    """Trials that may win, the best first."""
    left = list(records)
    found = []
    while left:
        first = (
            leave_one_domain_out(left, metric, unscored)
            if protocol == "leave-one-domain-out"
            else training_domain(left, metric)
        )
        if first is None:
            break
        found.append(first.number)
        left = [record for record in left if record.number != first.number]
    return found


def oracle(test_scores: Mapping[int, float]) -> Winner | None:
    """The trial that is best on the test cells: what no honest selection can know. Shown, never used."""
    return _best("test-domain oracle", test_scores)


def score_test(
    predictions: Mapping[int, NDArray[np.uint16]], labels: NDArray[np.int64], scored: NDArray[np.bool_], metric: Metric
) -> dict[int, float]:
    """By trial, the score of stored predictions once the labels are opened.

    All are codes of (test cells,); `scored` says whose type is trained.
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
    return bool(recalls) and (float(np.mean(recalls)) < FAILED_RECALL or min(recalls) == 0)


def _best(
    protocol: str, scored: Mapping[int, float], confirmed: Mapping[int, float] | None = None, note: str = ""
) -> Winner | None:
    again = {number: score for number, score in (confirmed or {}).items() if number in scored}
    scored = again or scored
    if not scored:
        return None
    number = max(scored, key=lambda number: (scored[number], -number))
    return Winner(protocol, number, scored[number], note)

"""What is exported, chosen on the cells left out: the winner, the trials beside it, and whether the input is corrected.

A score is half noise: the seed moves it as much as the settings of good trials do. So the preset stays unless it is
clearly beaten, scores are shrunk toward their mean by the noise that the second scoring shows, and the exported model
averages all that were scored again, those the more that make it better (ensemble selection with replacement from a
filled start, Caruana et al. 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.core.rejection import pooled
from scdgn.search.choices import Correct, Metric
from scdgn.search.left_out import LeftOut
from scdgn.search.stages.selection import SCORERS, Winner

FAR_BELOW = 0.2
"""Of the winner's score: a trial that loses more has failed where another one works."""

HARM = 2.0
"""Standard errors that must be lost for a change to be given up that helps on average: one is lost by chance in every
fifth search, with three to five domains left out."""

Trials = Mapping[int, Sequence[LeftOut]]
"""By trial, what its models say of each part left out; the parts and their cells are the same for all."""


def scores(left_out: Sequence[LeftOut], metric: Metric) -> list[float]:
    """The score of the ensemble of all models on each part."""
    return [_score(part, pooled(part.logits), metric) for part in left_out]


def scores_by_seed(left_out: Sequence[LeftOut], metric: Metric) -> NDArray[np.float64]:
    """The score of each model by itself, (parts, models)."""
    return np.array([[_score(part, logits, metric) for logits in part.logits] for part in left_out])


def clearly_better(one: NDArray[np.float64], other: NDArray[np.float64], by: float = 1.0) -> bool:
    """Whether the mean of `one` is above that of `other`, (parts, seeds) both, by more than so many standard errors of
    the difference.

    By default the rule of one standard error (Breiman et al. 1984). The error is the larger one of that over the parts
    and that over the seeds: with few parts either alone is too small by chance.
    """
    difference = one - other
    errors = [
        means.std(ddof=1) / np.sqrt(len(means))
        for means in (difference.mean(axis=1), difference.mean(axis=0))
        if len(means) > 1
    ]
    return bool(difference.mean() > by * max(errors, default=0.0))


def unless_clearly_better(winner: Winner, preset: int, by_seed: Mapping[int, NDArray[np.float64]]) -> Winner:
    """The winner, or the preset that it does not clearly beat; both scored again (`scores_by_seed`, by trial)."""
    if winner.number == preset or clearly_better(by_seed[winner.number], by_seed[preset]):
        return winner
    why = f"trial {winner.number} is not above the preset by more than a standard error"
    note = f"{winner.note}; {why}" if winner.note else why
    return replace(winner, number=preset, score=float(by_seed[preset].mean()), note=note)


def shrunk(by_seed: Mapping[int, NDArray[np.float64]]) -> dict[int, float]:
    """What the mean scores of trials, (parts, seeds) each, would be on average, were they scored again and again.

    Each is moved toward the mean of all of them by the share of noise in their variance, which the scatter over the
    seeds tells (the empirical Bayes estimate of James and Stein 1961 with an estimated center).
    """
    means = {number: float(values.mean()) for number, values in by_seed.items()}
    center = float(np.mean(list(means.values())))
    if len(means) < 2:
        return means
    noise = float(np.mean([
        values.mean(axis=0).var(ddof=1) / values.shape[1] if values.shape[1] > 1 else 0.0
        for values in by_seed.values()
    ]))  # fmt: skip
    variance = float(np.var(list(means.values()), ddof=1))
    signal = max(variance - noise, 0.0) / variance if variance > 0 else 0.0
    return {number: center + signal * (mean - center) for number, mean in means.items()}


def members(trials: Trials, winner: int, size: int, metric: Metric) -> dict[int, int]:
    """How many models of each trial the ensemble of a size has, the winner first.

    Every trial has one, the best first, as far as the size goes; but for those whose own score is lower than the
    winner's by more than `FAR_BELOW`. The rest go one by one to the trial that makes the mean of the probabilities
    best, by the mean of a metric over the parts; a tie to the trial that has fewest.
    """
    probabilities = {number: [pooled(part.logits).exp() for part in parts] for number, parts in trials.items()}

    def score(models: Mapping[int, int]) -> float:
        sums = [torch.zeros_like(p) for p in probabilities[winner]]
        for number, many in models.items():
            sums = [total + many * p for total, p in zip(sums, probabilities[number], strict=True)]
        return float(np.mean([_score(part, total, metric) for part, total in zip(trials[winner], sums, strict=True)]))

    own = {number: score({number: 1}) for number in trials}
    worked = [number for number in trials if own[number] >= own[winner] - FAR_BELOW]
    first = sorted(worked, key=lambda number: (number != winner, -own[number], number))[:size]
    taken = dict.fromkeys(first, 1)
    for _ in range(size - len(taken)):
        more = {number: score({**taken, number: taken[number] + 1}) for number in worked}
        taken[max(worked, key=lambda number: (more[number], -taken[number], -number))] += 1
    return taken


@dataclass(frozen=True)
class Change:
    """What predicting in another way does to the scores of each part: with a corrected input, or after adapting.

    It is harmless unless the domains left out lose more than `HARM` standard errors. There are no scores where there
    is nothing to tell by.
    """

    harmless: bool
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()

    @property
    def gains(self) -> tuple[float, ...]:
        """Of each part."""
        return tuple(two - one for one, two in zip(self.before, self.after, strict=True))


def correction(left_out: Sequence[LeftOut], metric: Metric) -> tuple[Change, bool]:
    """Whether an ensemble may correct for the cells that it predicts, and whether it moves batches then.

    It may unless the domains left out say otherwise: first by all of correction, then by what their cells teach alone.
    Most of them are as near to the others as training domains are, and so not moved: they say nothing of a query that
    is further away, for which moving is made.
    """
    found = Change(False)
    for moves in (True, False):
        if any((part.corrected if moves else part.learned) is None for part in left_out):
            continue
        found = change(left_out, [part.as_predicted(True, moves) for part in left_out], metric)
        if found.harmless:
            return found, moves
    return found, True


@dataclass(frozen=True, eq=False)
class Prediction:
    """How some models predict.

    Attributes
    ----------
    left_out
        What they say of the cells left out, as they predict.
    correction
        What correcting does to their scores.
    corrects, moves
        Whether they correct by default, and whether they move batches then.
    """

    left_out: Sequence[LeftOut]
    correction: Change = Change(False)
    corrects: bool = False
    moves: bool = True


def prediction(left_out: Sequence[LeftOut], correct: Correct, metric: Metric) -> Prediction:
    """How models are to predict: as is asked for, or as the cells left out allow (`correction`)."""
    found, moves = correction(left_out, metric)
    corrects = {"auto": found.harmless, "always": True, "never": False}[correct]
    return Prediction([part.as_predicted(corrects, moves) for part in left_out], found, corrects, moves)


def change(before: Sequence[LeftOut], after: Sequence[LeftOut], metric: Metric) -> Change:
    """What becomes of the same cells; harmless only where there are two parts or more to tell by."""
    if len(before) < 2 or len(after) != len(before):
        return Change(False)
    one, two = scores(before, metric), scores(after, metric)
    harms = clearly_better(np.array(one)[:, None], np.array(two)[:, None], HARM)
    return Change(not harms, tuple(one), tuple(two))


def _score(part: LeftOut, outputs: torch.Tensor, metric: Metric) -> float:
    """Of outputs, (cells, types), on the cells whose type is trained."""
    known = part.known
    predicted = outputs.argmax(dim=1).numpy()
    return SCORERS[metric](part.labels.numpy()[known], predicted[known])

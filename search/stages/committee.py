"""What is exported, chosen on the cells left out: the winner, the trials beside it, and whether the input is corrected.

A score is half noise: the seed moves it as much as the settings of good trials do. So the preset stays unless it is
clearly beaten, scores are shrunk toward their mean by the noise that the second scoring shows, and the exported model
averages the trials that are better together (ensemble selection with replacement, Caruana et al. 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.core.rejection import pooled
from scdgn.search.choices import Metric
from scdgn.search.left_out import LeftOut
from scdgn.search.stages.selection import SCORERS, Winner

Trials = Mapping[int, Sequence[LeftOut]]
"""By trial, what its models say of each part left out; the parts and their cells are the same for all."""


def scores(left_out: Sequence[LeftOut], metric: Metric) -> list[float]:
    """The score of the ensemble of all models on each part."""
    return [_score(part, pooled(part.logits), metric) for part in left_out]


def scores_by_seed(left_out: Sequence[LeftOut], metric: Metric) -> NDArray[np.float64]:
    """The score of each model by itself, (parts, models)."""
    return np.array([[_score(part, logits, metric) for logits in part.logits] for part in left_out])


def clearly_better(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether the mean of `one` is above that of `other`, (parts, seeds) both, by more than a standard error of the
    difference.

    The rule of one standard error (Breiman et al. 1984). The error is the larger one of that over the parts and that
    over the seeds: with few parts either alone is too small by chance.
    """
    difference = one - other
    errors = [
        means.std(ddof=1) / np.sqrt(len(means))
        for means in (difference.mean(axis=1), difference.mean(axis=0))
        if len(means) > 1
    ]
    return bool(difference.mean() > max(errors, default=0.0))


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

    Starting with the winner, that trial is added, again and again, which makes the mean of the probabilities best, by
    the mean of a metric over the parts; a tie goes to the trial that is there most often already.
    """
    probabilities = {number: [pooled(part.logits).exp() for part in parts] for number, parts in trials.items()}
    parts = trials[winner]
    taken = {winner: 1}
    sums = list(probabilities[winner])
    for _ in range(size - 1):
        means = {
            number: float(np.mean([
                _score(part, total + more, metric) for part, total, more in zip(parts, sums, added, strict=True)
            ]))
            for number, added in probabilities.items()
        }  # fmt: skip
        best = max(means, key=lambda number: (means[number], taken.get(number, 0), -number))
        taken[best] = taken.get(best, 0) + 1
        sums = [total + more for total, more in zip(sums, probabilities[best], strict=True)]
    return taken


@dataclass(frozen=True)
class Change:
    """What predicting in another way does to the scores of each part: with a corrected input, or after adapting.

    It is harmless where the domains left out lose no more than a standard error. There are no scores where there is
    nothing to tell by.
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


def change(before: Sequence[LeftOut], after: Sequence[LeftOut], metric: Metric) -> Change:
    """What becomes of the same cells; harmless only where there are two parts or more to tell by."""
    if len(before) < 2 or len(after) != len(before):
        return Change(False)
    one, two = scores(before, metric), scores(after, metric)
    harms = clearly_better(np.array(one)[:, None], np.array(two)[:, None])
    return Change(not harms, tuple(one), tuple(two))


def _score(part: LeftOut, outputs: torch.Tensor, metric: Metric) -> float:
    """Of outputs, (cells, types), on the cells whose type is trained."""
    known = part.known
    predicted = outputs.argmax(dim=1).numpy()
    return SCORERS[metric](part.labels.numpy()[known], predicted[known])

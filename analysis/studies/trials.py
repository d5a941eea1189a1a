"""The trials of a study as tidy frames: scores, settings on the scale they are drawn on, curves, rungs, importances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scdgn.analysis.studies.results import Results
from scdgn.search.records import FINISHED, RUNGS, TrialRecord
from scdgn.search.study.space import Choice, Fixed, Real, Whole, is_drawn
from scdgn.search.study.study import quiet

FEWEST = 10
"""Complete trials below which a forest has nothing to learn importances from."""

TREES = 64
"""Of the forest of fANOVA: Optuna's default."""

CURVES = {"label_loss": "label loss", "domain_loss": "domain loss", "lambda": "lambda"}
"""Columns of `curves`, by their names in the records."""


@dataclass(frozen=True)
class Axis:
    """A setting that is searched, and what it is drawn from, as the axis of a picture."""

    name: str
    dimension: Real | Whole | Choice

    def places(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """(values,) 0 at the low end of the range and 1 at the high one; choices are spread evenly; NaN for None.

        The scale is the one on which the setting is drawn: logarithmic where the space says so.
        """
        missing = pd.isna(pd.Series(list(values), dtype=object)).to_numpy()
        places = np.full(len(missing), np.nan)
        known = [value for value, none in zip(values, missing, strict=True) if not none]
        if isinstance(self.dimension, Choice):
            last = len(self.dimension.values) - 1
            places[~missing] = [self.dimension.values.index(value) / last for value in known]
            return places
        low, high = self._scaled([self.dimension.low, self.dimension.high])
        places[~missing] = (self._scaled(known) - low) / (high - low)
        return places

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places of a few round values in the range, and the values as they are written."""
        values: list[Any]
        if isinstance(self.dimension, Choice):
            values = list(self.dimension.values)
        else:
            values = _round_values(self.dimension.low, self.dimension.high, self.dimension.log)
        written = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        return self.places(values).tolist(), written

    def _scaled(self, values: Sequence[float]) -> NDArray[np.float64]:
        array = np.asarray(values, dtype=float)
        return np.log(array) if not isinstance(self.dimension, Choice) and self.dimension.log else array


def axes(results: Results) -> tuple[Axis, ...]:
    """The settings that a study searched, in the order of the space: not held fixed, and drawn by some trial."""
    dimensions, records = results.settings.spaces()[0].dimensions(), finished(results)
    return tuple(
        Axis(name, one)
        for name, one in dimensions.items()
        if not isinstance(one, Fixed) and any(_draws(record, name) for record in records)
    )


def trials(results: Results) -> pd.DataFrame:
    """Every finished trial, by number.

    Returns
    -------
    `trial`, `origin`, `state`, `score` (the selection score at its last rung), `best so far` (of the complete trials),
    `scored again` (with new seeds; NaN where it was not), `winner`, `rungs`, `epochs`, `seconds`, and a column for
    every setting searched: its value, None where the trial did not draw it.
    """
    searched = axes(results)
    search = results.search if results.is_search else None
    again = {} if search is None else {number: kept.score for number, kept in search.confirmed.items()}
    winner = None if search is None else search.winner.number
    rows = []
    best = np.nan
    for record in finished(results):
        if record.state == "complete" and record.value is not None:
            best = np.fmax(best, record.value)
        rows.append(
            {
                "trial": record.number,
                "origin": record.origin,
                "state": record.state,
                "score": np.nan if record.value is None else record.value,
                "best so far": best,
                "scored again": again.get(record.number, np.nan),
                "winner": record.number == winner,
                "rungs": max(record.steps, default=0),
                "epochs": record.epoch,
                "seconds": record.seconds,
                **{
                    axis.name: record.settings.get(axis.name) if _draws(record, axis.name) else None
                    for axis in searched
                },
            }
        )
    return pd.DataFrame(rows)


def curves(results: Results) -> pd.DataFrame:
    """Losses and lambda of every trial by epoch: `trial`, `state`, `epoch`, `label loss`, `domain loss`, `lambda`.

    Means over the models of a trial's folds, at most 50 epochs of each. The method nn has neither a domain loss nor a
    lambda, and no column of them.
    """
    columns = CURVES if results.method != "nn" else {"label_loss": CURVES["label_loss"]}
    parts = [
        pd.DataFrame(
            {
                "trial": record.number,
                "state": record.state,
                "epoch": list(record.curves["epoch"]),
                **{name: list(record.curves[key]) for key, name in columns.items()},
            }
        )
        for record in finished(results)
        if record.curves.get("epoch")
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def rungs(results: Results) -> pd.DataFrame:
    """The selection score of every trial at every rung that it reached: `trial`, `state`, `rung`, `score`."""
    return pd.DataFrame(
        [
            {"trial": record.number, "state": record.state, "rung": step, "score": score}
            for record in finished(results)
            for step, score in sorted(record.steps.items())
        ]
    )


def survival(results: Results) -> pd.DataFrame:
    """How many trials there were left at each rung.

    Returns
    -------
    `rung`, `share of its epochs`, `reached` (trials scored there), `pruned` (stopped there), `failed` (on the way to
    it), `median score` (of those that reached it; NaN where none did).
    """
    records = finished(results)
    last = np.array([max(record.steps, default=0) for record in records], dtype=int)
    state = np.array([record.state for record in records], dtype=object)
    rows = []
    for rung in range(1, RUNGS + 1):
        scores = [record.steps[rung] for record in records if rung in record.steps]
        rows.append(
            {
                "rung": rung,
                "share of its epochs": rung / RUNGS,
                "reached": int((last >= rung).sum()),
                "pruned": int(((last == rung) & (state == "pruned")).sum()),
                "failed": int(((last == rung - 1) & (state == "fail")).sum()),
                "median score": float(np.median(scores)) if scores else np.nan,
            }
        )
    return pd.DataFrame(rows)


def importances(results: Results) -> tuple[pd.DataFrame, str]:
    """How much of the score's variance over the search space each setting explains by itself: functional ANOVA.

    The space is weighted as trials are drawn from it, on a logarithmic scale where it says so. Pruned trials have no
    final score and are not used, nor are settings that only some trials draw.

    Returns
    -------
    frame, words
        `setting` and `importance` (0 to 1; what they leave of 1 is due to settings together), the greatest first; and
        what it rests on. Where there is nothing to learn from, the frame is empty and the words say why.

    References
    ----------
    Hutter, Hoos and Leyton-Brown (2014), An efficient approach for assessing hyperparameter importance.
    """
    frame = of_the_space(trials(results))
    scored = frame[frame["state"] == "complete"].dropna(subset="score") if len(frame) else frame
    none = pd.DataFrame({"setting": pd.Series(dtype=str), "importance": pd.Series(dtype=float)})
    if len(scored) < FEWEST:
        return none, f"too few complete trials ({len(scored)}) to tell which settings matter: it takes {FEWEST}"
    searched = [axis for axis in axes(results) if scored[axis.name].notna().all()]
    score = scored["score"].to_numpy(dtype=float)
    varied = [axis for axis in searched if scored[axis.name].nunique() > 1]
    if not varied or np.ptp(score) <= np.finfo(float).eps * np.abs(score).max():
        return none, f"the {len(scored)} complete trials do not differ in {'score' if varied else 'their settings'}"
    found = _fanova(searched, scored, score)
    r2 = _predicted(searched, scored, score)
    words = (
        f"from {len(scored)} complete trials; the forest that they are read off, tried on trials that it had not seen "
        f"(five folds), predicts {max(r2, 0.0):.0%} of their variance, {_trust(r2)}"
    )
    return found, words


def of_the_space(frame: pd.DataFrame) -> pd.DataFrame:
    """Trials that were drawn from the space: not the published training as a whole, which lies outside it."""
    return frame[frame["origin"] != "reference"] if len(frame) else frame


def finished(results: Results) -> list[TrialRecord]:
    """The trials that completed, were pruned or failed, by number."""
    return sorted((one for one in results.records if one.state in FINISHED), key=lambda one: one.number)


def _draws(record: TrialRecord, name: str) -> bool:
    """Whether a trial draws a setting that others may not."""
    return name in record.settings and is_drawn(name, record.settings)


def _fanova(searched: Sequence[Axis], scored: pd.DataFrame, score: NDArray[np.float64]) -> pd.DataFrame:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator

    distributions: dict[str, BaseDistribution] = {}
    columns: dict[str, list[Any]] = {}
    for axis in searched:
        if isinstance(axis.dimension, Choice):
            distributions[axis.name] = CategoricalDistribution(axis.dimension.values)
            columns[axis.name] = scored[axis.name].tolist()
        else:
            # Optuna's fANOVA weights a range evenly as it stands: of a margin of 0.1 to 10 nine tenths were above 1.
            distributions[axis.name] = FloatDistribution(0.0, 1.0)
            columns[axis.name] = axis.places(scored[axis.name].tolist()).clip(0.0, 1.0).tolist()
    with quiet():
        study = optuna.create_study(direction="maximize")
        for place, value in enumerate(score.tolist()):
            params = {name: column[place] for name, column in columns.items()}
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
        found = FanovaImportanceEvaluator(n_trees=TREES, seed=0).evaluate(study)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return pd.DataFrame(ordered, columns=["setting", "importance"])


def _predicted(searched: Sequence[Axis], scored: pd.DataFrame, score: NDArray[np.float64]) -> float:
    """R² of such a forest on trials left out in five folds."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    columns: list[NDArray[np.float64]] = []
    for axis in searched:
        if isinstance(axis.dimension, Choice):
            columns += [np.where(scored[axis.name] == value, 1.0, 0.0) for value in axis.dimension.values]
        else:
            columns.append(axis.places(scored[axis.name].tolist()))
    forest = RandomForestRegressor(n_estimators=TREES, random_state=0)
    folds = KFold(5, shuffle=True, random_state=0)
    return float(r2_score(score, cross_val_predict(forest, np.column_stack(columns), score, cv=folds)))


def _trust(r2: float) -> str:
    if r2 < 0.2:
        return "so that the importances say next to nothing"
    return "so that they are a hint" if r2 < 0.5 else "so that they can be relied on"


def _round_values(low: float, high: float, log: bool) -> list[Any]:
    """Two to five round values in a range; its ends where there are none."""
    if log:
        powers = [10.0**power for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
        for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            values = [float(f"{power * step:.1g}") for power in powers for step in steps]
            found = [value for value in values if low <= value <= high]
            if len(found) >= 2:
                return found
        return [low, high]
    ticks = np.round(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high), 12)
    return [value for value in ticks.tolist() if low <= value <= high]

"""What is known of a trial: the record that the study keeps, tracking copies and tables read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.core.metrics import Scores
from scdgn.search.left_out import LeftOut

State = Literal["waiting", "running", "complete", "pruned", "fail"]
FINISHED: tuple[State, ...] = ("complete", "pruned", "fail")

RUNGS = 8
"""How often a trial reports; the last rung is its end."""


@dataclass(frozen=True)
class Proposal:
    """A trial to run, by its number in its study."""

    number: int
    settings: Settings
    preprocess: PreprocessSettings

    def to_mapping(self) -> dict[str, object]:
        """All settings, flat."""
        return {**self.settings.to_mapping(), **asdict(self.preprocess)}


@dataclass(frozen=True)
class UnitScores:
    """Scores on so many cells of a fold, or set aside of all domains; means over the seeds. The recall is by name of a
    type.
    """

    macro_f1: float
    accuracy: float
    balanced_accuracy: float
    cells: int
    recall: Mapping[str, float]

    @classmethod
    def mean(cls, scores: Sequence[Scores], cell_types: Sequence[str]) -> UnitScores:
        """Over models of different seeds, scored on the same cells."""
        recall = np.mean([one.recall for one in scores], axis=0)  # (types,), NaN where there is no cell
        return cls(
            macro_f1=float(np.mean([one.macro_f1 for one in scores])),
            accuracy=float(np.mean([one.accuracy for one in scores])),
            balanced_accuracy=float(np.mean([one.balanced_accuracy for one in scores])),
            cells=scores[0].cells,
            recall={name: float(value) for name, value in zip(cell_types, recall, strict=True) if not np.isnan(value)},
        )


@dataclass(frozen=True)
class TrialRecord:
    """A trial and what came of it.

    Attributes
    ----------
    number, state
        In the study.
    settings
        All settings of model and preprocessing, flat; empty before they are drawn.
    origin
        Why the trial was run, where the sampler did not draw it: `preset`, `portfolio`, `published`, `reference` or
        `enqueued`.
    value
        The selection score at the last step; None if there is none.
    steps
        Selection score by rung: step s of R ends s/R of the trial's epochs.
    epoch
        Epochs trained.
    reason
        Why it failed.
    folds
        Scores by name of the fold.
    training_domain
        Scores on cells set aside of all training domains.
    curves
        `epoch`, `label_loss`, `domain_loss` and `lambda`, means over the folds' models, at most 50 points.
    seconds
        Wall time; of the whole pack where it had several trials.
    padding
        Arithmetic of its pack against what its models alone would have taken: what fusing unequal sizes wasted.
    started, ended
        Seconds since 1970.
    """

    number: int
    state: State
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    value: float | None = None
    steps: Mapping[int, float] = field(default_factory=dict)
    epoch: int = 0
    reason: str = ""
    folds: Mapping[str, UnitScores] = field(default_factory=dict)
    training_domain: UnitScores | None = None
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    padding: float = 1.0
    started: float = 0.0
    ended: float = 0.0

    @classmethod
    def from_mapping(cls, kept: Mapping[str, Any]) -> TrialRecord:
        """From what `asdict` and JSON have made of a record."""
        training_domain = kept["training_domain"]
        units = {
            "steps": {int(step): value for step, value in kept.get("steps", {}).items()},
            "folds": {name: UnitScores(**scores) for name, scores in kept["folds"].items()},
            "training_domain": None if training_domain is None else UnitScores(**training_domain),
        }
        return cls(**{**kept, **units})

    def to_json(self) -> dict[str, Any]:
        """What Optuna does not keep by itself, JSON-safe."""
        return {
            "epoch": self.epoch,
            "reason": self.reason,
            "folds": {name: vars(scores) for name, scores in self.folds.items()},
            "training_domain": None if self.training_domain is None else vars(self.training_domain),
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "seconds": round(self.seconds, 3),
            "padding": round(self.padding, 4),
        }


def settings_of(record: TrialRecord) -> tuple[Settings, PreprocessSettings]:
    """The settings of a trial."""
    model = {name: value for name, value in record.settings.items() if name in Settings.__dataclass_fields__}
    prepare = {name: value for name, value in record.settings.items() if name not in model}
    return Settings.from_mapping(model), PreprocessSettings.from_mapping(prepare)


@dataclass(frozen=True)
class Confirmation:
    """A trial scored again, with other seeds: its selection score, and that by name of the fold."""

    score: float
    folds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the objective hands to the study when a trial has ended; of its record all but what Optuna knows (value,
    steps, times).

    Attributes
    ----------
    test_predictions
        (test cells,) codes of the types predicted, unscored; None where there are none.
    left_out
        What its models say of the cells left out of their training, where that is to be kept.
    """

    record: TrialRecord
    test_predictions: NDArray[np.uint16] | None = None
    left_out: tuple[LeftOut, ...] = ()

"""How much a study trains, all stages of it: a plan and a progress bar count it alike."""

from __future__ import annotations

from dataclasses import dataclass

from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.inputs import VALIDATED, OwnInputs

OTHERS = 0.8
"""Models of other trials than the winner that are trained for the ensemble, for each final seed: as searches went."""

KNOWN = 2
"""Trials of the portfolio that are neither pruned nor among the best, likewise."""


@dataclass(frozen=True)
class Amount:
    """Cells that models train on in an epoch, added up over the models.

    Attributes
    ----------
    trial
        Of a trial that is not pruned.
    again, rescored
        Of a trial that is scored again, and how many are.
    final
        Of the final seeds, their twins, and the rest of the ensemble.
    """

    trial: float
    again: float
    rescored: int
    final: float

    @property
    def after(self) -> float:
        """Of all that follows the trials."""
        return self.rescored * self.again + self.final


def amount_of(settings: StudySettings, inputs: OwnInputs, again: OwnInputs) -> Amount:
    """What a study trains, whose trials are scored on `inputs` and the best of them again on those of `again`."""
    # The preset and the portfolio are scored again beside the best.
    beside = 1 + (KNOWN if settings.portfolio else 0)
    rescored = min(settings.confirm + beside, settings.trials) if settings.confirm else 1
    copies = 2 - VALIDATED + (OTHERS if settings.ensemble and not settings.single else 0) + settings.refit_all
    return Amount(inputs.trained, again.trained, rescored, copies * settings.final_seeds * len(inputs.cells.rows))

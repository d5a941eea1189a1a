"""What can be told while a study runs. Progress displays and tracking are watchers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scdgn.search.folder import StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.study.settings import StudySettings
from scdgn.search.summary import AnySummary, Registration
from scdgn.search.trials.amount import Amount
from scdgn.search.trials.cells import SearchCells


@dataclass(frozen=True, eq=False)
class Begun:
    """A study that is about to run.

    Attributes
    ----------
    models
        Models per trial.
    selection
        What chooses the winner; training-domain where there are no folds, whatever was asked.
    records
        Trials from before, if it is resumed.
    amount
        How much is trained, in all stages.
    """

    folder: StudyFolder
    settings: StudySettings
    cells: SearchCells
    models: int
    selection: str
    records: Sequence[TrialRecord]
    amount: Amount


class Watcher:
    """Hooks that do nothing; override what is wanted."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def planned(self, studies: Sequence[str]) -> None:
        """A command begins, with studies of these names."""

    def begun(self, study: Begun) -> None:
        """A study starts, or goes on."""

    def reported(self, number: int, step: int, value: float) -> None:
        """A trial has reached a rung."""

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Who works on the study: see `scdgn.search.engines.fleet`."""

    def stage(self, text: str, amount: float = 0.0) -> None:
        """The search is over, and something else is done now, which trains so much (`scdgn.search.trials.amount`)."""

    def advanced(self, share: float) -> None:
        """The stage is so far, from 0 to 1."""

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        """All is done; the summary is that of summary.json."""

    def registered(self, registration: Registration) -> None:
        """The model of the best study is registered."""


class Watchers(Watcher):
    """Several as one: what this is told, all of them are."""

    def __init__(self, *watchers: Watcher) -> None:
        for hook in (name for name in vars(Watcher) if not name.startswith("_")):
            setattr(self, hook, partial(_tell, [getattr(one, hook) for one in watchers]))


def _tell(hooks: Sequence[Callable[..., None]], *what: Any) -> None:
    for hook in hooks:
        hook(*what)

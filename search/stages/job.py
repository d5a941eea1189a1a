"""A study under way: what its stages work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scdgn.cells.sources import TrainingCells
from scdgn.core.training import Report
from scdgn.search.engines import Engine
from scdgn.search.folder import Lease, StudyFolder
from scdgn.search.shown.watching import Watcher
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.space import Space
from scdgn.search.trials.cells import SearchCells


class Interrupted(Exception):
    """The study was stopped on request; the same command goes on with it."""


@dataclass(frozen=True, eq=False)
class Job:
    """A study and what it works on: what was asked, where it is kept, all cells with their labels, and what trains.

    Attributes
    ----------
    sealed
        What the search may look at.
    lease
        The right to write.
    stopping
        Asked again and again; True stops the study.
    notes, noted
        What `validate` had to say; what was said, in other studies of the command too, and is not said again.
    """

    settings: StudySettings
    folder: StudyFolder
    cells: TrainingCells
    sealed: SearchCells
    lease: Lease
    watch: Watcher
    stopping: Callable[[], bool]
    engine: Engine
    notes: Sequence[str] = ()
    noted: set[str] = field(default_factory=set)

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.settings.spaces()[0]

    @property
    def by_folds(self) -> bool:
        """Whether domains left out choose, and not cells set aside of all of them."""
        return bool(self.sealed.folds) and self.settings.selection == "leave-one-domain-out"

    def note(self, text: str) -> None:
        """Tell the user, once."""
        if text not in self.noted:
            self.noted.add(text)
            self.watch.note(text)

    def halting(self) -> bool:
        """Whether what trains is to be cut off."""
        return self.stopping() or self.lease.lost

    def stop_if_asked(self, _: Report | None = None) -> None:
        """`Interrupted` if that was asked for, `LeaseError` if another process took the study over, which thought this
        one dead.
        """
        self.lease.check()
        if self.stopping():
            raise Interrupted

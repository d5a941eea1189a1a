"""Trials one pack after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from search.objective import Objective, Owner, Stopped
from search.records import Proposal


class Asked(Owner, Protocol):
    """The study: it also says what to run."""

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """See `search.study.Study.next_pack`."""


def run(study: Asked, objective: Objective, pack: int, enough: Callable[[], bool]) -> bool:
    """Run trials until the budget is spent.

    Parameters
    ----------
    study
        The owner of the trials.
    objective
        What trains them.
    pack
        Trials trained together.
    enough
        Asked before every pack; True starts no further one.

    Returns
    -------
    False if it was cut off or stopped before the budget was spent.
    """
    while not enough():
        # A pack of which every trial's settings contradict each other is empty, and not the last one.
        proposals, left = study.next_pack(pack)
        if proposals:
            try:
                objective(proposals, study)
            except Stopped:
                return False
        elif not left:
            return True
    return False

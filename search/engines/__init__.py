"""Where trials are trained: in this process (`local`), or wherever Ray reaches (`cluster`).

An engine asks the study what to run and tells it what came of it. The study stays in the driver: an engine may lose
all that it has, and the next one goes on from the study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:  # the desk's process needs none of them
    from collections.abc import Callable, Mapping

    from scdgn.search.records import Outcome, Proposal
    from scdgn.search.trials.objective import Work

Result = TypeVar("Result")


class Asked(Protocol):
    """Who owns the trials (`scdgn.search.trials.objective.Owner`): it also says what to run, and hears who runs it."""

    def report(self, number: int, step: int, value: float) -> bool:
        """As `Owner` has it."""

    def finished(self, outcome: Outcome) -> None:
        """As `Owner` has it."""

    def note(self, text: str) -> None:
        """As `Owner` has it."""

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The trials to run next, and False when the budget is spent."""

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Hear of the machines that work (`scdgn.search.engines.fleet`)."""


class Engine(Protocol):
    """Trains the trials of a study."""

    def run(
        self, study: Asked, work: Work, pack: int, enough: Callable[[], bool], stopping: Callable[[], bool]
    ) -> bool:
        """Run trials, trained together `pack` at a time, until the budget is spent; False if that did not come to pass.

        Parameters
        ----------
        enough
            Asked before every pack; True starts no further one.
        stopping
            Asked again and again; True cuts the packs off that run, when they have written a checkpoint.
        """

    def call(self, stopping: Callable[[], bool], train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function that trains, where there is a device for it; it takes `on_epoch`, as
        `scdgn.model.fitting.fit` does.

        Raises
        ------
        Stopped
            If it was cut off, because `stopping`, which is asked again and again, said so.
        """

    @property
    def kind(self) -> str:
        """Of the device that a pack has: `cpu` or `cuda`."""

    def close(self) -> None:
        """Let go of what was taken."""

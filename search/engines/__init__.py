"""Where trials are trained: in this process (`local`), or wherever Ray reaches (`cluster`).

An engine asks the study what to run and tells it what came of it. The study stays in the driver: an engine may lose
all that it has, and the next one goes on from the study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:  # the desk's process needs none of them
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from scdgn.search.records import Outcome, Proposal
    from scdgn.search.trials.objective import Owner, Place

Result = TypeVar("Result")


class Asked(Protocol):
    """Who owns the trials (`scdgn.search.trials.objective.Owner`): it also says what to run, and hears who runs it."""

    def report(self, number: int, step: int, value: float) -> bool:
        """See `Owner`."""

    def finished(self, outcome: Outcome) -> None:
        """See `Owner`."""

    def note(self, text: str) -> None:
        """See `Owner`."""

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """See `scdgn.search.study.study.Study.next_pack`."""

    def workers(self, fleet: Mapping[str, Any]) -> None:
        """Hear of the machines that work (`scdgn.search.engines.fleet`)."""


class Trains(Protocol):
    """Trains trials as one pack, and tells their owner: see `scdgn.search.trials.objective.Objective`."""

    def __call__(self, proposals: Sequence[Proposal], owner: Owner) -> None:
        """Train them."""


class Job(Protocol):
    """What there is to do with trials: see `scdgn.search.trials.objective.Work`."""

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Trains:
        """What trains them on a device."""

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Job:
        """The same for a worker on another machine."""


class Engine(Protocol):
    """Trains the trials of a study."""

    def run(self, study: Asked, work: Job, pack: int, enough: Callable[[], bool], stopping: Callable[[], bool]) -> bool:
        """Run trials until the budget is spent.

        Parameters
        ----------
        study
            The owner of the trials.
        work
            What trains them.
        pack
            Trials trained together.
        enough
            Asked before every pack; True starts no further one.
        stopping
            Asked again and again; True cuts the packs off that run, when they have written a checkpoint.

        Returns
        -------
        False if it was cut off or stopped before the budget was spent.
        """

    def call(self, stopping: Callable[[], bool], train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function that trains, where there is a device for it; it is cut off when `stopping` says so.

        Parameters
        ----------
        stopping
            Asked again and again.
        train
            It takes `on_epoch`, as `scdgn.model.fitting.fit` does.
        args, kwargs
            Its other arguments.

        Raises
        ------
        Stopped
            If it was cut off.
        """

    @property
    def kind(self) -> str:
        """Of the device that a pack has: `cpu` or `cuda`."""

    def close(self) -> None:
        """Let go of what was taken."""

"""The thin side of Ray Tune: a searcher that asks the study, and what Tune tells of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from scdgn.errors import count, first_line


@dataclass(frozen=True)
class Suggest:
    """Tune asks for something to run; answered by True, False if nothing is left, or None if it is to ask later."""

    pack: str


@dataclass(frozen=True)
class Left:
    """Tune is done with a pack, or has given it up for this reason."""

    pack: str
    reason: str = ""


@dataclass(frozen=True)
class Lost:
    """A worker of a pack is gone; the pack starts again."""

    pack: str


class Asks(Protocol):
    """The driver: see `scdgn.search.engines.dispatch.Dispatch`."""

    def ask(self, question: Suggest | Lost | Left) -> Any:
        """Put a question to it."""


class StudySearcher(Searcher):
    """Asks the study for packs, and tells workers the name of the desk and how many threads to compute with.

    The driver, who knows the study, is not part of what Tune pickles: a restart asks the study, and nothing of Ray's is
    restored.
    """

    def __init__(self, desk: str, threads: int, driver: Asks) -> None:
        super().__init__()
        self._about = {"desk": desk, "threads": threads}
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """A pack, by the id of Tune's trial: what is in it is decided when a worker has it."""
        answer = self._driver.ask(Suggest(trial_id))
        if answer is None:
            return None
        return {**self._about, "pack": trial_id} if answer else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A pack is done; one that was given up is told by `Losses`, which knows why."""
        if not error:
            self._driver.ask(Left(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __reduce__(self) -> Any:
        return Searcher, ()


class Newest(FIFOScheduler):
    """Gives a worker that is free to a pack for which no other worker is being started.

    The oldest pack, which Tune would choose, has a worker that starts up. Tune would end that one in favour of the free
    one, again and again, and there would never be as many workers as fit.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._order: dict[str, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Remember the order."""
        self._order[trial.trial_id] = len(self._order)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Packs that were lost first, then the newest."""
        pending = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        return max(pending, key=lambda trial: (trial.num_failures > 0, self._order[trial.trial_id]), default=None)


class Losses(tune.Callback):
    """Tells the driver of packs that were lost, and of those that were given up."""

    def __init__(self, driver: Asks) -> None:
        self._driver = driver

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack is to start again."""
        self._driver.ask(Lost(trial.trial_id))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack was lost more often than is allowed."""
        said = trial.get_pickled_error() or trial.get_error()
        first = first_line(said if isinstance(said, BaseException) else Exception(said))
        failures = count(trial.num_failures, "time")
        self._driver.ask(Left(trial.trial_id, f"lost with its worker, {failures}: {first}"))

    def __reduce__(self) -> Any:
        return tune.Callback, ()


class Until(tune.Stopper):
    """Ends Tune's run when the driver does not answer any more."""

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """A single trial ends by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop all."""
        return self._closed.is_set()

    def __reduce__(self) -> Any:
        return _never, ()


def _never() -> Until:
    return Until(threading.Event())

"""The thin side of Ray Tune: a searcher that asks the study, and what Tune tells of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher


@dataclass(frozen=True)
class Suggest:
    """Tune asks for something to run."""

    pack: str


@dataclass(frozen=True)
class Left:
    """Tune is done with a pack, or has given it up for this reason."""

    pack: str
    reason: str = ""


class Asks(Protocol):
    """The driver: see `search.engines.cluster.Run`."""

    def ask(self, question: Suggest | Left) -> Any:
        """Put a question to it."""


class StudySearcher(Searcher):
    """Asks the study for packs.

    Parameters
    ----------
    desk, threads
        What a worker is told: the name of the desk, and how many threads to compute with.
    driver
        Who knows the study. Not part of what Tune pickles: a restart asks the study, and nothing of Ray's is restored.
    """

    def __init__(self, desk: str, threads: int, driver: Asks) -> None:
        super().__init__()
        self._told = {"desk": desk, "threads": threads}
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """The next pack, by the id of Tune's trial."""
        return {**self._told, "pack": trial_id} if self._driver.ask(Suggest(trial_id)) else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A pack is done; one that was given up is told by `Told`, which knows why."""
        if not error:
            self._driver.ask(Left(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __reduce__(self) -> Any:
        return Searcher, ()


class Told(tune.Callback):
    """Tells the driver of packs that were given up."""

    def __init__(self, driver: Asks) -> None:
        self._driver = driver

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A pack was lost more often than is allowed."""
        error = trial.get_pickled_error() or trial.get_error()
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        failures = trial.num_failures
        self._driver.ask(
            Left(trial.trial_id, f"lost with its worker, {failures} {'time' if failures == 1 else 'times'}: {first}")
        )

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

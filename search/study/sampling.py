"""Optuna's samplers and pruners by name, made fit for a study that is interrupted and for trials of unequal size."""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr

from scdgn.errors import SettingsError, nearest

BANDS = (64, 256)
"""Widths of the hidden layer that part small, medium and wide networks: see `Comparable`."""

with suppress(ImportError):
    from optuna.samplers._tpe import _truncnorm

    # Optuna computes the same function in Python, number by number: after 250 trials half the time of a draw of TPE.
    # Under another name in another version it would be slower again, not wrong.
    _truncnorm._log_ndtr = log_ndtr  # type: ignore[assignment]


class Reseeded(BaseSampler):
    """Makes every draw depend on the study's seed, the trial's number, the setting's name and the finished trials.

    Optuna's samplers draw from one generator whose state a process takes with it when it dies. Here each draw has a
    generator of its own, a sampler made from its seed, so that a study that was cut off, even between two settings of a
    trial, goes on as if it had not been. (The genetic samplers alone keep their generations in the study: the trial
    that was cut off in its draw may be drawn otherwise.)
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._relative: tuple[int, BaseSampler] | None = None

    def _sampler(self, trial: FrozenTrial, purpose: str) -> BaseSampler:
        words = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(purpose.encode())]).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(int(words[0]))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The settings that are drawn together."""
        sampler = self._sampler(trial, "relative")
        self._relative = trial.number, sampler
        return sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw them: Optuna has always just asked which they are."""
        assert self._relative is not None
        number, sampler = self._relative
        assert number == trial.number
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one setting by itself."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the sampler note what it needs to know."""
        self._sampler(trial, "after").after_trial(study, trial, state, values)


class Comparable(BasePruner):
    """Lets a pruner compare a trial with its peers alone: trials whose hidden layer is as wide, roughly.

    At the same fraction of its training a wide network is nearer to its end than a narrow one: it learns faster per
    step. Against all trials, narrow ones would be pruned for that alone. Epochs need no bands: a rung is a fraction of
    the trial's own epochs.
    """

    def __init__(self, pruner: BasePruner, width: Callable[[FrozenTrial], int | None]) -> None:
        self._pruner = pruner
        self._width = width
        self._bands: dict[int, int] = {}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop."""
        band = self._band(trial)
        peers: Any = _PeersOnly(study._storage, lambda other: self._band(other) == band)
        return self._pruner.prune(Study(study.study_name, peers, study.sampler, study.pruner), trial)

    def _band(self, trial: FrozenTrial) -> int:
        band = self._bands.get(trial.number)
        if band is None:
            width = self._width(trial)
            if width is None:  # not drawn yet
                return -1
            band = self._bands[trial.number] = sum(width > limit for limit in BANDS)
        return band


class _PeersOnly:
    """A storage of which some trials are seen: pruners find them in more ways than by `Study.get_trials`."""

    def __init__(self, storage: BaseStorage, belongs: Callable[[FrozenTrial], bool]) -> None:
        self._storage = storage
        self._belongs = belongs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self._storage.get_all_trials(study_id, deepcopy, states) if self._belongs(trial)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: (trial.value, -trial.number))  # ValueError, as Optuna's, if none is


class _Sequence(QMCSampler):
    """A quasi-random sequence whose points go by the trials' numbers.

    Optuna counts the points that it has given out: a trial cut off between two settings would go on with the next one.
    And it takes the settings drawn together from trials that are not drawn to their end, where none has ended.
    """

    _number = 0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The settings of the first trial that drew any."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return next((dict(other.distributions) for other in ended if other.distributions), {})

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The point of the trial."""
        self._number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


EXHAUSTIVE = ("BruteForceSampler", "GridSampler")
"""Samplers that end a study themselves, when they have nothing left to draw."""

SAMPLER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"TPESampler": {"multivariate": True, "group": True}}
PRUNER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"MedianPruner": {"n_startup_trials": 4}}


def make_sampler(name: str, options: Mapping[str, object], seed: int) -> BaseSampler:
    """An Optuna sampler by the name of its class.

    Raises
    ------
    SettingsError
        If there is no such sampler, or it has no such arguments.
    """
    kind = _find(optuna.samplers, BaseSampler, "sampler", name)
    if name in EXHAUSTIVE:
        raise SettingsError(
            f"sampler {name} goes through a grid to its end: list values in [space], and draw from them"
        )
    if name == "CmaEsSampler":
        raise SettingsError(
            "sampler CmaEsSampler keeps a pickle in the study and runs it when the study goes on: choose TPESampler or "
            "GPSampler"
        )
    given = {**SAMPLER_DEFAULTS.get(name, {}), **options}
    seeded = "seed" in inspect.signature(kind).parameters
    _check(kind, "sampler", name, options, ("seed", "independent_sampler"))

    def make(number: int) -> BaseSampler:
        if kind is QMCSampler:  # its points are one set for all trials, what is drawn beside them is not
            return _Sequence(**given, seed=seed, independent_sampler=RandomSampler(seed=number))
        sampler: BaseSampler = kind(**given, **({"seed": number} if seeded else {}))
        return sampler

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(seed)
    except (TypeError, ValueError, ImportError) as error:
        raise SettingsError(f"sampler {name} cannot be made ({error}): mend [sampler], or choose another") from None
    return Reseeded(make, seed)


def make_pruner(name: str, options: Mapping[str, object], width: Callable[[FrozenTrial], int | None]) -> BasePruner:
    """An Optuna pruner by the name of its class, which compares peers.

    Raises
    ------
    SettingsError
        If there is no such pruner, or it has no such arguments.
    """
    kind = _find(optuna.pruners, BasePruner, "pruner", name)
    _check(kind, "pruner", name, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return Comparable(kind(**{**PRUNER_DEFAULTS.get(name, {}), **options}), width)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"pruner {name} cannot be made ({error}): mend [pruner], or choose another") from None


def _find(module: Any, base: type, what: str, name: str) -> Any:
    known = [key for key, entry in vars(module).items() if isinstance(entry, type) and issubclass(entry, base)]
    known = [key for key in known if not inspect.isabstract(getattr(module, key))]
    if name not in known:
        raise SettingsError(f"{what} is {name!r}, which Optuna does not have: {nearest(name, known)}")
    return getattr(module, name)


def _check(kind: Any, what: str, name: str, options: Mapping[str, object], reserved: Sequence[str] = ()) -> None:
    known = [key for key in inspect.signature(kind).parameters if key not in reserved]
    faults = [f"{what} {name} has no option {key!r}: {nearest(key, known)}" for key in options if key not in known]
    if faults:
        raise SettingsError(*faults)

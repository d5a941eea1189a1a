"""Optuna's samplers and pruners by name, made fit for a study that is interrupted and for trials of unequal size."""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from scdgn.errors import SettingsError, nearest

BANDS = (64, 256)
"""Widths of the hidden layer that part small, medium and wide networks: see `Comparable`."""


class Reseeded(BaseSampler):
    """Makes every draw depend on the study's seed, the trial's number, the setting's name and the finished trials.

    Optuna's samplers draw from one generator whose state a process takes with it when it dies. Here each draw has a
    generator of its own, so that a study that was cut off, even between two settings of a trial, goes on as if it had
    not been.

    Parameters
    ----------
    make
        A sampler from a seed.
    seed
        Of the study.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed

    def _sampler(self, trial: FrozenTrial, purpose: str) -> BaseSampler:
        words = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(purpose.encode())]).generate_state(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(int(words[0]))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The settings that are drawn together."""
        return self._sampler(trial, "space").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw them."""
        sampler = self._sampler(trial, "relative")
        sampler.infer_relative_search_space(study, trial)  # what it finds on the way it keeps for the draw
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

    Parameters
    ----------
    pruner
        What decides.
    width
        The hidden units of a trial.
    """

    def __init__(self, pruner: BasePruner, width: Callable[[FrozenTrial], int | None]) -> None:
        self._pruner = pruner
        self._width = width

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop."""
        band = self._band(trial)
        return self._pruner.prune(_Peers(study, lambda other: self._band(other) == band), trial)

    def _band(self, trial: FrozenTrial) -> int:
        width = self._width(trial)
        return -1 if width is None else sum(width > limit for limit in BANDS)


class _Peers(Study):
    """A study of which some trials are seen."""

    def __init__(self, study: Study, belongs: Callable[[FrozenTrial], bool]) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._belongs = belongs

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in super().get_trials(deepcopy, states) if self._belongs(trial)]


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
    given = {**SAMPLER_DEFAULTS.get(name, {}), **options}
    seeded = "seed" in inspect.signature(kind).parameters
    _check(kind, "sampler", name, options, {"seed": 0} if seeded else {})

    def make(number: int) -> BaseSampler:
        # The points of a quasi-random sequence are one set for all trials: its seed is the study's.
        own = seed if name == "QMCSampler" else number
        sampler: BaseSampler = kind(**given, **({"seed": own} if seeded else {}))
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
    _check(kind, "pruner", name, options, {})
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


def _check(kind: Any, what: str, name: str, options: Mapping[str, object], reserved: Mapping[str, object]) -> None:
    known = [key for key in inspect.signature(kind).parameters if key not in reserved]
    faults = [f"{what} {name} has no option {key!r}: {nearest(key, known)}" for key in options if key not in known]
    if faults:
        raise SettingsError(*faults)

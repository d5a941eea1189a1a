"""What a study is asked to do: one frozen dataclass, from flags, a TOML file, or both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from scdgn.cells.sources import Source
from scdgn.core.config import Method, Precision, is_number, kinds_of
from scdgn.errors import SettingsError
from scdgn.search.choices import Correct, EngineName, Methods, Metric, Procedure, Selection
from scdgn.search.folder import ARTIFACTS, is_name
from scdgn.search.study.space import Space

EACH = "each"
"""As a test batch: hold out every batch in turn."""

SEARCH_CELLS = 10_000
"""Cells that a model of a trial trains on, unless the user says otherwise."""

AGAIN = 2
"""Times as many cells on which the best trials are scored again."""

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class StudySettings:
    """A study, or the several studies of one command.

    Attributes
    ----------
    name
        Of the study, of its folder and of the registered model.
    source
        The cells. Its test batch may be `each`.
    method
        What is searched; `all`: the three as sibling studies NAME/nn, NAME/dann and NAME/scdgn.
    trials
        Trials in all, of each study: those that completed, were pruned or failed.
    timeout
        Seconds after which no further trial starts; 0 for none.
    seed
        Of the sampler, of every model and of every split.
    fold_seeds
        Models of different seeds trained per fold and trial; the score is their mean.
    metric
        What is maximised on the folds.
    selection
        Where the winner is chosen: on training domains left out, or on cells of all training domains set aside.
    max_folds
        More training domains than this are left out in groups.
    search_cells
        Cells that a model of a trial trains on at most, `SEARCH_CELLS` by default, 0 for all: rare types stay whole.
        The best trials are scored again on `AGAIN` times as many, and what is exported trains on all.
    space
        The user's changes to the search space (`Space.of`).
    sampler, pruner
        Names of Optuna's classes; `NopPruner` prunes nothing.
    sampler_options, pruner_options
        Their arguments, instead of the defaults.
    pack
        Trials trained as one pack; 0 leaves it to the device and the sizes.
    reference
        Whether the published training as a whole is one of the trials.
    portfolio
        Whether the first trials are those that did well on other data (`scdgn.search.study.portfolio`).
    enqueue
        Settings of trials to run first, as tables of settings by name.
    confirm, confirm_seeds
        The best trials of the search, this many, are scored again with this many seeds that are new to them, and the
        winner is chosen by those scores alone: the best of many noisy scores is mostly luck (docs/experiments.md). 0
        trials: the search's own scores choose.
    final_seeds
        Seeds with which the winner is trained again, and models of the ensemble.
    ensemble
        Whether the ensemble may have models of other trials that were scored again; else all are the winner's.
    correct
        Whether the exported model corrects its input for the cells that it predicts (`scdgn.core.correction`) when it
        is not told: unless the domains left out lost by it, always, or never.
    single
        Whether the model exported is the winner's seed picked by validation, instead of the ensemble.
    refit_all
        Whether the model exported is trained on all labelled cells, those of the test batch too.
    promote
        Whether the model becomes the champion whatever the present one's score is.
    protocol
        `search`, or `seed-best-of-10`: ten trainings with random margin and lambda, the best test accuracy taken.
    repeats
        Searches with different seeds, to see how far the search itself scatters.
    storage
        Optuna storage URL instead of the journal in the study folder.
    studies
        Folder of all studies.
    device
        `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
    precision
        Of matrix products (`scdgn.core.precision`).
    engine
        Where trials are trained: in this process, or wherever Ray reaches.
    address, gpus_per_trial, cpus_per_trial, concurrency, max_failures
        What to take of Ray: see `scdgn.search.engines.cluster.Resources`. A pack is placed as one.
    checkpoints
        Folder or URL (fsspec) of the checkpoints of packs; by default in the study's folder.
    checkpoint_every
        Seconds between two of them.
    """

    name: str
    source: Source = field(default_factory=Source)
    method: Methods = "scdgn"
    trials: int = 50
    timeout: float = 0.0
    seed: int = 0
    fold_seeds: int = 1
    metric: Metric = "macro_f1"
    selection: Selection = "leave-one-domain-out"
    max_folds: int = 5
    search_cells: int | None = None
    space: Mapping[str, object] = field(default_factory=dict)
    sampler: str = "TPESampler"
    sampler_options: Mapping[str, object] = field(default_factory=dict)
    pruner: str = "MedianPruner"
    pruner_options: Mapping[str, object] = field(default_factory=dict)
    pack: int = 0
    reference: bool = False
    portfolio: bool = True
    enqueue: tuple[Mapping[str, object], ...] = ()
    confirm: int = 5
    confirm_seeds: int = 4
    final_seeds: int = 10
    ensemble: bool = True
    correct: Correct = "auto"
    single: bool = False
    refit_all: bool = False
    promote: bool = False
    protocol: Procedure = "search"
    repeats: int = 1
    storage: str | None = None
    studies: Path = Path("studies")
    device: str = "auto"
    precision: Precision = "tf32"
    engine: EngineName = "local"
    address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: int = 1
    concurrency: int = 0
    max_failures: int = 3
    checkpoints: str | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        if faults := _faults(self):
            raise SettingsError(*faults)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.studies.joinpath(*self.name.split("/"))

    @property
    def most_cells(self) -> int:
        """That a model of a trial trains on; 0 for all."""
        return SEARCH_CELLS if self.search_cells is None else self.search_cells

    def spaces(self) -> list[Space]:
        """The search space of each method searched.

        Raises
        ------
        SettingsError
            With every fault of the user's changes.
        """
        methods = METHODS if self.method == "all" else (self.method,)
        return [Space.of(method, self.space) for method in methods]


# Lowest value allowed of every number.
_LOWEST = {
    "trials": 1, "timeout": 0, "seed": 0, "fold_seeds": 1, "max_folds": 2, "pack": 0, "confirm": 0, "confirm_seeds": 1,
    "final_seeds": 1, "repeats": 1, "cpus_per_trial": 1, "concurrency": 0, "max_failures": -1, "checkpoint_every": 0,
}  # fmt: skip

HIGHEST_SEED = 2**32 - 1
"""That Optuna's samplers take."""


# What the same study may be continued with; the rest would make it another one.
CONTINUABLE = (
    "trials",
    "timeout",
    "device",
    "pack",
    "promote",
    "portfolio",
    "ensemble",
    "correct",
    "single",
    "refit_all",
    "studies",
    "final_seeds",
    "confirm",
    "confirm_seeds",
    "engine",
    "address",
    "gpus_per_trial",
    "cpus_per_trial",
    "concurrency",
    "max_failures",
    "checkpoints",
    "checkpoint_every",
)

_OF_RAY = ("address", "gpus_per_trial", "cpus_per_trial", "concurrency", "max_failures")


def _faults(settings: StudySettings) -> list[str]:
    faults = []
    if not is_name(settings.name):
        faults.append(
            f"name {settings.name!r} is no name for a folder: use letters, digits, spaces and ._+-, at most 200, but "
            f"not {ARTIFACTS}"
        )
    kinds = kinds_of(StudySettings)
    for key in ("method", "metric", "selection", "correct", "protocol", "precision", "engine"):
        value, choices = getattr(settings, key), get_args(kinds[key])
        if value not in choices:
            faults.append(f"{key} is {value!r}: choose one of {', '.join(choices)}")
    for key, low in _LOWEST.items():
        value = getattr(settings, key)
        whole = kinds[key] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            faults.append(f"{key} is {value!r}: give a {'whole ' if whole else ''}number")
        elif not low <= value < float("inf"):
            faults.append(f"{key} is {value!r}: give at least {low}")
    if isinstance(settings.seed, int) and settings.seed > HIGHEST_SEED:
        faults.append(f"seed is {settings.seed}: give at most {HIGHEST_SEED}")
    most = settings.search_cells
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        faults.append(f"search_cells is {most!r}: give a whole number of cells, or 0 for all")
    gpus = settings.gpus_per_trial
    if gpus is not None and not (is_number(gpus) and (0 <= gpus < 1 or gpus == int(gpus) >= 1)):
        faults.append(f"gpus_per_trial is {gpus!r}: give a fraction of a GPU, or whole GPUs")
    faults += address_faults(settings.address)
    if settings.engine == "local":
        defaults = StudySettings.__dataclass_fields__
        faults += [
            f"{key} is for the engine ray: set engine to ray, or leave {key} out"
            for key in _OF_RAY
            if getattr(settings, key) != defaults[key].default
        ]
    switches = {
        key: getattr(settings, key) for key in ("reference", "portfolio", "ensemble", "single", "refit_all", "promote")
    }
    faults += [
        f"{key} is {value!r}: give true or false"
        for key, value in {**switches, "adapt": settings.source.adapt}.items()
        if not isinstance(value, bool)
    ]
    if not isinstance(settings.enqueue, tuple) or not all(isinstance(one, Mapping) for one in settings.enqueue):
        faults.append(
            f"enqueue is {settings.enqueue!r}: give a list of tables of settings, or the name of a file of them"
        )
    try:
        if settings.method in get_args(Methods):
            settings.spaces()
    except SettingsError as error:
        faults += error.faults
    return faults


TEXTS = ("name", "sampler", "pruner", "storage", "address", "checkpoints")


def address_faults(address: str | None) -> list[str]:
    """What is wrong with the address of a Ray cluster."""
    if address in (None, "auto", "local"):
        return []
    host, _, port = address.rpartition(":")
    if not address.startswith("ray://"):
        return [] if host and port.isdecimal() else [f"address is {address!r}: give auto, or HOST:PORT"]
    return [
        f"address is {address!r}, over which the study would move to another machine: submit the whole command as a "
        "job instead (`ray job submit -- scdgn search ...`), or run it on a node with address auto"
    ]


def leaves(settings: StudySettings, batches: tuple[str, ...] = ()) -> list[StudySettings]:
    """The studies that a command runs: one per test batch (of all batches, with `each`), repeat and method."""
    found = [settings]
    if settings.source.test_batch == EACH:
        found = [
            replace(leaf, name=f"{leaf.name}/{slug}", source=replace(leaf.source, test_batch=batch))
            for leaf in found
            for slug, batch in _slugs(batches).items()
        ]
    if settings.repeats > 1:
        found = [
            # Seeds of repeats lie far apart: a study also uses the seeds next to its own.
            replace(leaf, name=f"{leaf.name}/repeat{number + 1}", seed=leaf.seed + 1000 * number, repeats=1)
            for leaf in found
            for number in range(settings.repeats)
        ]
    if settings.method == "all":
        found = [
            replace(
                leaf,
                name=f"{leaf.name}/{method}",
                method=method,
                space=dict(Space.of(method, leaf.space).written),
            )
            for leaf in found
            for method in METHODS
        ]
    return found


def _slugs(batches: tuple[str, ...]) -> dict[str, str]:
    """Batches by the name of a folder, all different."""
    found: dict[str, str] = {}
    for batch in batches:
        short = name = slug(batch) or "batch"
        number = 1
        while name in found:
            number += 1
            name = f"{short}-{number}"
        found[name] = batch
    return found


def slug(text: str) -> str:
    """A text as the name of a folder; empty where nothing of it can be one."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".+-")

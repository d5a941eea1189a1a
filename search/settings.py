"""What a study is asked to do: one frozen dataclass, from flags, a TOML file, or both."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from scdgn.config import Method, Precision, kinds_of
from scdgn.data import NO_TEXTS, Fields
from scdgn.errors import DataError, SettingsError, nearest
from scdgn.formats import is_file
from scdgn.search.credentials import without_password, without_secret
from scdgn.search.folder import ARTIFACTS, StudyFolder, is_name
from scdgn.search.space import Space
from scdgn.sources import Source

Methods = Literal["nn", "dann", "scdgn", "all"]
Metric = Literal["macro_f1", "accuracy", "balanced_accuracy"]
Selection = Literal["leave-one-domain-out", "training-domain"]
Protocol = Literal["search", "seed-best-of-10"]
Correct = Literal["auto", "always", "never"]
EngineName = Literal["local", "ray"]

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
        Where the winner is told: on training domains left out, or on cells of all training domains set aside.
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
        Whether the first trials are those that did well on other data (`scdgn.search.portfolio`).
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
        Whether the exported model corrects its input for the cells that it predicts (`scdgn.correction`) when it is not
        told: unless the domains left out lost by it, always, or never.
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
        See `scdgn.fitting.find_device`.
    precision
        Of matrix products: see `scdgn.precision`.
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
    protocol: Protocol = "search"
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
    if gpus is not None and not (_is_number(gpus) and (0 <= gpus < 1 or gpus == int(gpus) >= 1)):
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


_TEXTS = ("name", "sampler", "pruner", "storage", "address", "checkpoints")


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


_TABLES_OF_THEIR_OWN = ("source", "space", "sampler_options", "pruner_options")
TABLES = ("study", "data", "space", "sampler", "pruner")


def read_study(config: Path | None, flags: Mapping[str, Any]) -> StudySettings:
    """The settings of a study from a TOML file, changed by the flags of the command line.

    Parameters
    ----------
    config
        TOML file with the tables [study] (names of `StudySettings`), [data] (those of `Source` and `Fields`), [space],
        [sampler] and [pruner] (`name`, and arguments of Optuna's class).
    flags
        By the same names, flat; None where the user gave none. `space` is merged by setting.

    Raises
    ------
    SettingsError
        With every fault.
    """
    tables = {} if config is None else _read_tables(config)
    faults = [f"unknown table [{name}] in {config}: {nearest(name, TABLES)}" for name in tables if name not in TABLES]
    return _from_tables(tables, flags, faults)


def named_cells(config: Path | None, flags: Mapping[str, Any]) -> Source:
    """The cells that file and flags name, as far as looking at their columns takes it, whatever is wrong otherwise."""
    data = {} if config is None else _read_tables(config).get("data", {})
    said = {**data, **{key: value for key, value in flags.items() if value is not None}}
    texts = {key: str(value) for key, value in said.items() if isinstance(value, str | Path)}
    paths = {key: Path(texts[key]) for key in _PATHS if key in texts}
    fields = Fields(texts.get("labels_key"), texts.get("batch_key"))
    batches = _batches(said.get("test_batch"))
    return Source(
        paths.get("data"),
        texts.get("dataset"),
        paths.get("path"),
        fields,
        None if batches == EACH else batches,
        texts.get("split"),
        paths.get("obs"),
    )


def _batches(given: object) -> str | tuple[str, ...] | None:
    """Batches to hold out: a single one as text, as every study.toml has it."""
    if isinstance(given, str):
        return given
    names = tuple(dict.fromkeys(map(str, given))) if isinstance(given, list | tuple) else ()
    return names[0] if len(names) == 1 else names or None


def read_begun(folders: Sequence[StudyFolder], name: str, flags: Mapping[str, Any]) -> StudySettings:
    """The settings of studies that were begun under a name, changed by the flags of the command line.

    Parameters
    ----------
    folders
        The study of that name, or one for each method.
    name
        The name.
    flags
        As for `read_study`.

    Raises
    ------
    SettingsError, DataError
        With every fault, if a study is damaged, or if these are no studies of one command that differ in method alone.
    """
    documents = [folder.read_settings() for folder in folders]
    settings = from_document(documents[0])
    names = [document["study"]["name"] for document in documents]
    if names != [name]:
        if {*names} != {f"{name}/{method}" for method in METHODS}:  # each knows of the space what its method needs
            begun = ", ".join(names)
            raise SettingsError(f"of {name!r} there are {begun} so far: name one of these, or give the whole command")
        space = {key: value for document in documents for key, value in document.get("space", {}).items()}
        settings = replace(settings, name=name, method="all", space=space)
    return _from_tables(to_document(settings), {**flags, "name": name}, [])


def _from_tables(tables: Mapping[str, Any], flags: Mapping[str, Any], faults: list[str]) -> StudySettings:
    study, data = dict(tables.get("study", {})), dict(tables.get("data", {}))
    given = {key: value for key, value in flags.items() if value is not None}
    space = {**tables.get("space", {}), **given.pop("space", {})}
    place = {**{key: data.pop(key) for key in list(data) if key in _SOURCE}, **_among(given, _SOURCE)}
    reading = {**{key: data.pop(key) for key in list(data) if key in _FIELDS}, **_among(given, _FIELDS)}
    study.update(given)
    known = [entry.name for entry in fields(StudySettings) if entry.name not in _TABLES_OF_THEIR_OWN]
    faults += [f"unknown setting {key!r} of [data]: {nearest(key, [*_SOURCE, *_FIELDS])}" for key in data]
    faults += [f"unknown setting {key!r} of [study]: {nearest(key, known)}" for key in study if key not in known]
    study = {key: value for key, value in study.items() if key in known}
    for table in ("sampler", "pruner"):
        options = dict(tables.get(table, {}))
        study.setdefault(table, options.pop("name", StudySettings.__dataclass_fields__[table].default))
        options.pop("name", None)
        study[f"{table}_options"] = options
    if "name" not in study:
        of_cells = str(place.get("dataset") or (Path(str(place["data"])).stem if place.get("data") else ""))
        if is_name(of_cells := of_cells if is_name(of_cells) else _slug(of_cells)):
            study["name"] = of_cells
        else:
            faults.append("the study has no name: give --name NAME")
            study["name"] = "unnamed"
    for key in _PATHS:
        if isinstance(place.get(key), str):
            place[key] = Path(place[key])
    if isinstance(place.get("test_batch"), list | tuple):
        place["test_batch"] = _batches(place["test_batch"])
        if EACH in place["test_batch"] and place["test_batch"] != EACH:
            faults.append(f"--test-batch {EACH} holds out every batch in turn: leave the others out")
    faults += [
        f"{key} is {value!r}: give text"
        for key, value in (place | reading).items()
        if not (key == "test_batch" and isinstance(value, tuple))
        and key not in ("adapt", *NO_TEXTS)
        and not isinstance(value, str | Path)
    ]
    faults += [f"{key} is {study[key]!r}: give text" for key in _TEXTS
               if not isinstance(study.get(key, ""), str)]  # fmt: skip
    if not isinstance(study.get("studies", ""), str | Path):
        faults.append(f"studies is {study['studies']!r}: give text")
    if faults:
        raise SettingsError(*faults)
    if "studies" in study:
        study["studies"] = Path(study["studies"])
    match study.get("enqueue"):
        case str() | Path() as path:
            study["enqueue"] = read_enqueued(Path(path))
        case list() as trials:
            study["enqueue"] = tuple(trials)
    source = Source(fields=Fields(**{"labels_key": None, "batch_key": None, **reading}), **place)
    return StudySettings(source=source, space=space, **study)


def read_enqueued(path: Path) -> tuple[dict[str, object], ...]:
    """Settings of trials from a TOML file: an array of tables [[trial]].

    Raises
    ------
    SettingsError
        If there is no such file, or it holds anything else.
    """
    content = _read(path)
    trials = content.get("trial")
    if list(content) != ["trial"] or not isinstance(trials, list) or not all(isinstance(t, dict) for t in trials):
        raise SettingsError(f"{path} does not list trials: write the settings of each under [[trial]]")
    return tuple(trials)


def to_document(settings: StudySettings) -> dict[str, Any]:
    """The settings as the tables of a TOML file, readable by `read_study`."""
    source = settings.source
    data = {key: getattr(source, key) for key in _SOURCE}
    data |= asdict(source.fields)
    leave = ("source", "space", "sampler", "sampler_options", "pruner", "pruner_options")
    study = {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name not in leave}
    if settings.storage is not None:
        study["storage"] = without_secret(settings.storage)
    if settings.checkpoints is not None:
        study["checkpoints"] = without_password(settings.checkpoints, settings.checkpoints)
    return {
        "study": _plain(study),
        "data": _plain(data),
        "space": _plain(settings.space),
        "sampler": {"name": settings.sampler, **settings.sampler_options},
        "pruner": {"name": settings.pruner, **settings.pruner_options},
    }


def from_document(document: Mapping[str, Any]) -> StudySettings:
    """The inverse of `to_document`; files that are not found from here are looked for from where the study was begun.

    Raises
    ------
    DataError
        If it is no such document.
    """
    tables = {name: document.get(name, {}) for name in TABLES}
    loose = [f"{name} is no table" for name, table in tables.items() if not isinstance(table, Mapping)]
    try:
        if loose:
            raise SettingsError(*loose)
        settings = _from_tables(tables, {}, [])
        record = document.get("record", {})
        return replace(settings, source=_found_from(settings.source, str(record.get("folder", "."))))
    except SettingsError as error:
        raise DataError(
            f"the study.toml of the study {document['study']['name']!r} is damaged ({error}): restore it, or set the "
            "study aside with --fresh"
        ) from error


def _found_from(source: Source, folder: str) -> Source:
    """The same source, with relative paths that lead nowhere from here taken from that folder."""

    def found(path: Path) -> Path:
        there = Path(folder) / path
        return there if not path.exists() and there.exists() else path

    changes: dict[str, Any] = {key: found(getattr(source, key)) for key in _PATHS if getattr(source, key)}
    if source.split is not None:
        file, colon, name = source.split.rpartition(":")
        changes["split"] = f"{found(Path(file))}{colon}{name}"
    if source.query is not None and is_file(source.query):
        changes["query"] = str(found(Path(source.query)))
    return replace(source, **changes)


def leaves(settings: StudySettings, batches: tuple[str, ...] = ()) -> list[StudySettings]:
    """The studies that a command runs: one per test batch (with `each`), repeat and method.

    Parameters
    ----------
    settings
        What the user asked for.
    batches
        All batches of the data, for `each`.
    """
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
        slug = name = _slug(batch) or "batch"
        number = 1
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found[name] = batch
    return found


def _slug(text: str) -> str:
    """A text as the name of a folder; empty where nothing of it can be one."""
    return re.sub(r"[^\w.+-]", "_", text).lstrip(".+-")


_PATHS = ("data", "path", "obs")
_SOURCE = tuple(entry.name for entry in fields(Source) if entry.name != "fields")
_FIELDS = tuple(entry.name for entry in fields(Fields) if entry.name != "like")  # which no user says


def _among(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values.pop(key) for key in keys if key in values}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as TOML has them; None is left out."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        plain[key] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    tables = _read(path)
    if loose := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise SettingsError(f"{', '.join(loose)} in {path} stands outside a table: put it under [study] or [data]")
    return tables


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): give a TOML file") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML ({error}): mend it") from None

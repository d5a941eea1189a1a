"""Settings of a study as files: study.toml, --config, and what a command says beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from scdgn.cells.fields import NO_TEXTS, Fields
from scdgn.cells.formats import is_file
from scdgn.cells.several import one_or_several
from scdgn.cells.sources import Source
from scdgn.commands.settings import assignment
from scdgn.errors import DataError, SettingsError, nearest
from scdgn.files import new_file, read_tables, read_toml
from scdgn.search.credentials import without_password, without_secret
from scdgn.search.folder import StudyFolder, is_name
from scdgn.search.study.settings import EACH, METHODS, TEXTS, StudySettings, slug

_TABLES_OF_THEIR_OWN = ("source", "space", "sampler_options", "pruner_options")

TABLES = ("study", "data", "space", "sampler", "pruner")

_HOMES = "[study] or [data]"

COMMAND = "command.toml"
"""What a command of several studies was asked, in the folder that holds theirs."""


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
    tables = {} if config is None else read_tables(config, _HOMES)
    faults = [f"unknown table [{name}] in {config}: {nearest(name, TABLES)}" for name in tables if name not in TABLES]
    return _from_tables(tables, flags, faults)


def of_the_study(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options of a command that are settings of a study, as `read_study` takes them."""
    known = {*_SOURCE, *_FIELDS, *(entry.name for entry in fields(StudySettings))}
    space = dict(assignment(change) for change in options["changes"] or [])
    given = {key: value for key, value in options.items() if key in known and value not in (None, [])}
    return {**given, "space": space}


def named_cells(config: Path | None, flags: Mapping[str, Any]) -> Source:
    """The cells that file and flags name, as far as looking at their columns takes it, whatever is wrong otherwise."""
    data = {} if config is None else read_tables(config, _HOMES).get("data", {})
    said = {**data, **{key: value for key, value in flags.items() if value is not None}}
    texts = {key: str(value) for key, value in said.items() if isinstance(value, str | Path)}
    paths = {key: Path(texts[key]) for key in _PATHS if key in texts}
    fields = Fields(texts.get("labels_key"), texts.get("batch_key"), group_key=texts.get("group_key"))
    batches = _batches(said.get("test_batch"))
    return Source(
        _files(said.get("data")),
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


def _files(given: object) -> Path | tuple[Path, ...] | None:
    """Files of cells: a single one as a path, as every study.toml has it."""
    listed = given if isinstance(given, list | tuple) else [given]
    return one_or_several([Path(one) for one in listed if isinstance(one, str | Path)])


def keep_command(settings: StudySettings) -> None:
    """Write down what a command of several studies was asked, beside these: its name alone then goes on with it."""
    place = settings.folder / COMMAND
    place.parent.mkdir(parents=True, exist_ok=True)
    with new_file(place) as new:
        new.write_text(tomli_w.dumps(to_document(settings)), encoding="utf-8")


def read_begun(folders: Sequence[StudyFolder], name: str, flags: Mapping[str, Any]) -> StudySettings:
    """The settings of a study begun under a name, or of the several studies of one command, changed by further flags.

    Raises
    ------
    SettingsError, DataError
        With every fault, if a study is damaged, or if nothing tells what was asked of these studies together.
    """
    documents = [folder.read_settings() for folder in folders]
    first = from_document(documents[0])
    names = [document["study"]["name"] for document in documents]
    command = folders[0].studies(names[0]).joinpath(*name.split("/"), COMMAND)
    if names == [name]:
        tables = to_document(first)
    elif command.exists():
        tables = read_tables(command, _HOMES)
    else:  # of before commands were kept
        if {*names} != {f"{name}/{method}" for method in METHODS}:  # each knows of the space what its method needs
            begun = ", ".join(names)
            raise SettingsError(f"of {name!r} there are {begun} so far: name one of these, or give the whole command")
        space = {key: value for document in documents for key, value in document.get("space", {}).items()}
        tables = to_document(replace(first, name=name, method="all", space=space))
    settings = _from_tables(tables, {**flags, "name": name}, [])
    return replace(settings, source=_found_from(settings.source, str(documents[0]["record"].get("folder", "."))))


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
        files = _files(place.get("data"))
        first = files[0] if isinstance(files, tuple) else files
        of_cells = str(place.get("dataset") or (first.stem if first else ""))
        if is_name(of_cells := of_cells if is_name(of_cells) else slug(of_cells)):
            study["name"] = of_cells
        else:
            faults.append("the study has no name: give --name NAME")
            study["name"] = "unnamed"
    for key in _PATHS:
        if isinstance(place.get(key), str):
            place[key] = Path(place[key])
    if isinstance(place.get("data"), list | tuple):
        faults += [f"data has {one!r}: give text" for one in place["data"] if not isinstance(one, str | Path)]
        place["data"] = _files(place["data"])
    if isinstance(place.get("test_batch"), list | tuple):
        place["test_batch"] = _batches(place["test_batch"])
        if EACH in place["test_batch"] and place["test_batch"] != EACH:
            faults.append(f"--test-batch {EACH} holds out every batch in turn: leave the others out")
    faults += [
        f"{key} is {value!r}: give text"
        for key, value in (place | reading).items()
        if not (key in ("data", "test_batch") and isinstance(value, tuple))
        and key not in ("adapt", *NO_TEXTS)
        and not isinstance(value, str | Path)
    ]
    faults += [f"{key} is {study[key]!r}: give text" for key in TEXTS
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
    content = read_toml(path)
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

    changes: dict[str, Any] = {
        key: tuple(map(found, given)) if isinstance(given, tuple) else found(given)
        for key in _PATHS
        if (given := getattr(source, key))
    }
    if source.split is not None:
        file, colon, name = source.split.rpartition(":")
        changes["split"] = f"{found(Path(file))}{colon}{name}"
    if source.query is not None and is_file(source.query):
        changes["query"] = str(found(Path(source.query)))
    return replace(source, **changes)


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
        if isinstance(value, tuple):
            value = [str(one) if isinstance(one, Path) else one for one in value]
        plain[key] = str(value) if isinstance(value, Path) else value
    return plain

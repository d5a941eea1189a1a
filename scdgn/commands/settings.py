"""From a preset, a TOML file and KEY=VALUE options to settings, every fault of them at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.core.config import Method, Settings, preset
from scdgn.errors import SettingsError
from scdgn.files import read_tables

TABLES = ("model", "preprocess")


def read_settings(
    method: Method,
    preset_name: str,
    config: Path | None = None,
    changes: Sequence[str] = (),
    prepare: Mapping[str, object] | None = None,
) -> tuple[Settings, PreprocessSettings]:
    """The settings of a preset, changed by a file with the tables [model] and [preprocess], changed by options.

    Parameters
    ----------
    changes
        KEY=VALUE, the value as in TOML or a bare string, by the names of `config.Settings`.
    prepare
        Values by the names of `preprocess.PreprocessSettings`.

    Raises
    ------
    SettingsError
        With every fault.
    """
    tables = {} if config is None else read_tables(config, "[model] or [preprocess]")
    unknown = [name for name in tables if name not in TABLES]
    faults = [f"unknown table [{name}] in {config}: use [model] and [preprocess]" for name in unknown]
    model = {**tables.get("model", {}), **dict(assignment(change) for change in changes)}
    if model.get("method", method) != method:
        faults.append(f"method is {model['method']!r} in the settings and {method!r} on the command line: use --method")
    settings, preprocess = Settings(), PreprocessSettings()
    try:
        settings = Settings.from_mapping(model, preset(preset_name, method))
    except SettingsError as error:
        faults += error.faults
    try:
        given = {**tables.get("preprocess", {}), **(prepare or {})}
        preprocess = PreprocessSettings.from_mapping(given, INPUT_PRESETS.get(preset_name))
    except SettingsError as error:
        faults += error.faults
    if faults:
        raise SettingsError(*faults)
    return settings, preprocess


def assignment(text: str) -> tuple[str, object]:
    """`key=value` as a pair, the value as TOML would read it, or a string.

    Raises
    ------
    SettingsError
        For anything else.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"--set {text!r} is not of the form KEY=VALUE: write, for example, --set margin=2")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        if "," in value or ":" in value:  # no setting is a text that has one
            raise SettingsError(
                f"--set {text!r}: write a list as --set '{key}=[32, 64]' and a range as "
                f"--set '{key}={{low = 32, high = 64}}', which a search chooses from"
            ) from None
        return key.strip(), value.strip()

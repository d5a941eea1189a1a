"""Summaries of real studies, as they were written before these had a version, and others made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scdgn.search.summary import AnySummary, from_json

WRITTEN = {
    "search": Path(__file__).parents[1] / "studies" / "before" / "summary.json",
    "seed-best-of-10": Path(__file__).with_name("oracle.json"),
}
"""By protocol."""

NAMES = ("settings", "folds", "recall", "trials", "cells_by_type", "confirmed", "unscored_recall", "auroc")
"""Parts with names of the study's own: those of a real study do not fill them up."""


def summary_with(**told: Any) -> Any:
    """The summary of a real study but for what is told: parts of parts, as they are in JSON."""
    real = json.loads(WRITTEN[told.get("protocol", "search")].read_text())
    del real["checksum"]
    made: AnySummary = from_json(_with({"version": 1, **real}, told))
    return made


def _with(real: Any, told: Any, name: str = "") -> Any:
    if isinstance(real, dict) and isinstance(told, Mapping) and name not in NAMES:
        return real | {key: _with(real.get(key), value, key) for key, value in told.items()}
    if isinstance(real, list) and isinstance(told, list | tuple) and real:
        return [_with(real[0], one) for one in told]
    return told

"""Hyper-parameter studies of scDGN, DANN and NN. Imports scdgn; scdgn never imports it.

`scdgn.search.run(StudySettings(...))` is `scdgn search`. Names resolve on first use: torch and Optuna take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scdgn.cells.fields import Fields as Fields
    from scdgn.cells.sources import Source as Source
    from scdgn.search.studies import run as run
    from scdgn.search.study.settings import StudySettings as StudySettings

_HOME = {
    "Fields": "scdgn.cells.fields",
    "Source": "scdgn.cells.sources",
    "StudySettings": "scdgn.search.study.settings",
    "run": "scdgn.search.studies",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scdgn.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)

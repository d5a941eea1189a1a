"""Tests, which find out what happens and not how long it takes: machines are slow, and others use them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scdgn.search.folder import StudyFolder

LONGEST = 300
"""Seconds after which something hangs."""


def find_parent_run(folder: StudyFolder) -> str | None:
    """Id of the run of a study; None if it is not tracked."""
    from scdgn.search.tracking.tracker import find_study_run

    found = find_study_run(folder)
    return None if found is None else found.id

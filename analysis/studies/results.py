"""Finished studies as the analysis sees them: settings, trials and what came out, from the study folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scdgn.core.config import Method
from scdgn.errors import DataError
from scdgn.search.choices import Metric
from scdgn.search.folder import StudyFolder, find_study
from scdgn.search.records import TrialRecord
from scdgn.search.shown.overview import best_of
from scdgn.search.study.documents import from_document
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import read_records
from scdgn.search.summary import AnySummary, OracleSummary, Spread, Summary


@dataclass(frozen=True, eq=False)
class Results:
    """A finished study: what it was asked, what came out, and all trials by number.

    Attributes
    ----------
    made
        The record of study.toml: id, time, versions, machine, fingerprints.
    folder
        Where it lies; None where it was read from MLflow alone.
    """

    name: str
    settings: StudySettings
    made: Mapping[str, Any]
    summary: AnySummary
    records: tuple[TrialRecord, ...]
    folder: StudyFolder | None = None

    @property
    def method(self) -> Method:
        """What was searched."""
        return self.summary.method

    @property
    def metric(self) -> Metric:
        """What the search maximised."""
        return self.summary.metric

    @property
    def is_search(self) -> bool:
        """Whether its winner was selected honestly: not by seed-best-of-10."""
        return isinstance(self.summary, Summary)

    @property
    def search(self) -> Summary:
        """What came out of it, where it is a search."""
        assert isinstance(self.summary, Summary)
        return self.summary

    @property
    def oracle(self) -> OracleSummary:
        """What came out of it, where it is none."""
        assert isinstance(self.summary, OracleSummary)
        return self.summary

    @property
    def final_test(self) -> Spread | None:
        """What its final seeds score on the test cells by its metric; None where it has none, or no cell is scored."""
        test = self.summary.final.test if isinstance(self.summary, Summary) else None
        return None if test is None else test.of(self.metric)

    @property
    def winner(self) -> TrialRecord:
        """The trial that was selected; of a study that is no search, the best there is."""
        number = self.search.winner.number if self.is_search else None
        found = next((record for record in self.records if record.number == number), best_of(self.records))
        if found is None:
            raise DataError(f"the study {self.name!r} has no trial: restore its folder, or search again")
        return found

    @property
    def data(self) -> tuple[str, str]:
        """Fingerprints of training and test cells: studies that agree in them compare."""
        return self.summary.data.fingerprint, self.summary.data.test_fingerprint


@dataclass(frozen=True, eq=False)
class Group:
    """Studies of the same training and test cells, in the order nn, dann, scdgn, then by name.

    It is called what the names of its studies begin with, or as the one study.
    """

    name: str
    results: tuple[Results, ...]

    @property
    def best(self) -> Results:
        """The study that is selected among them: by the score of its winner, as the registered model is.

        Studies that were chosen by test labels are not among those asked, unless there are no others.
        """
        searches = [one for one in self.results if one.is_search] or list(self.results)
        return max(searches, key=lambda one: one.search.exported_score if one.is_search else 0.0)

    def of(self, method: str) -> Results | None:
        """The first search of that method."""
        return next((one for one in self.results if one.method == method and one.is_search), None)


METHODS = ("nn", "dann", "scdgn")
TITLES = {"nn": "NN", "dann": "DANN", "scdgn": "scDGN"}


def read(folder: StudyFolder) -> Results:
    """A study from its folder.

    Raises
    ------
    DataError
        If it is not finished, or cannot be read.
    """
    document = folder.read_settings()
    settings = from_document(document)
    summary = folder.read_summary()
    if summary is None:
        raise DataError(f"the study {settings.name!r} is not finished: run `scdgn search` again, which goes on with it")
    return Results(settings.name, settings, document["record"], summary, tuple(read_records(folder, settings)), folder)


def read_all(studies: Path, names: Iterable[str]) -> tuple[list[Results], list[str]]:
    """The finished studies of these names, each once, and the names of those that are not finished.

    Raises
    ------
    DataError
        If a name is not known, or none of the studies is finished.
    """
    folders = {folder.path: folder for name in names for folder in find_study(studies, name)}
    finished = [folder for folder in folders.values() if folder.read_summary() is not None]
    left = [str(path.relative_to(studies)) for path, folder in folders.items() if folder not in finished]
    if not finished:
        raise DataError(f"none of {', '.join(left)} is finished: run `scdgn search` again, which goes on with it")
    return [read(folder) for folder in finished], left


def grouped(results: Sequence[Results]) -> list[Group]:
    """Studies by the cells that they worked on, in the order of their first names."""
    found: dict[tuple[str, str], list[Results]] = {}
    for one in results:
        found.setdefault(one.data, []).append(one)
    return [
        Group(_common([one.name for one in members]), tuple(sorted(members, key=_order))) for members in found.values()
    ]


def _order(one: Results) -> tuple[bool, int, str]:
    return not one.is_search, METHODS.index(one.method), one.name


def _common(names: Sequence[str]) -> str:
    """The folder that all names have in common; else all of them."""
    if len(names) == 1:
        parts = names[0].split("/")
        return "/".join(parts[:-1]) if len(parts) > 1 and parts[-1] in METHODS else names[0]
    shared: list[str] = []
    for level in zip(*(name.split("/") for name in names), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "/".join(shared) or ", ".join(names)

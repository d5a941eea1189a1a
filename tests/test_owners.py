"""Who owns trials writes to the study while it may, tells who watches, and keeps what is asked of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdgn.errors import OutputError
from scdgn.search.folder import Lease, LeaseError, StudyFolder, owned
from scdgn.search.records import Confirmation, Outcome, Proposal, State, TrialRecord, UnitScores
from scdgn.search.shown.watching import Watcher
from scdgn.search.stages.owners import Again, Watched
from scdgn.search.study.study import Study
from tests.faults import tree
from tests.test_study import opened, packs, train

FLEET: dict[str, Any] = {"updated": 1.0, "nodes": [], "workers": [], "trials": {"a": 2}, "slots": 1, "retries": 0}


class Watching(Watcher):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int, float]] = []
        self.records: list[TrialRecord] = []
        self.notes: list[str] = []
        self.fleets: list[Mapping[str, Any]] = []

    def reported(self, number: int, step: int, value: float) -> None:
        self.reports.append((number, step, value))

    def ended(self, record: TrialRecord) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def workers(self, fleet: Mapping[str, Any]) -> None:
        self.fleets.append(fleet)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return opened(tmp_path)


@pytest.fixture
def folder(study: Study) -> StudyFolder:
    return study._folder


@pytest.fixture
def lease(folder: StudyFolder) -> Iterator[Lease]:
    with owned(folder) as found:
        yield found


@pytest.fixture
def watch() -> Watching:
    return Watching()


@pytest.fixture
def told(study: Study, folder: StudyFolder, lease: Lease, watch: Watching) -> Watched:
    return Watched(study, folder, lease, watch)


def scores(value: float) -> UnitScores:
    return UnitScores(value, 0.9, 0.8, 10, {"B": value})


def ended(number: int, state: State = "complete", **folds: float) -> Outcome:
    return Outcome(TrialRecord(number, state, folds={name: scores(value) for name, value in folds.items()}))


# The study with somebody listening


def test_it_is_the_study(told: Watched, study: Study) -> None:
    proposals, left = told.next_pack(2)
    assert [proposal.number for proposal in proposals] == [0, 1] and left
    assert told.report(0, 1, 0.5) is False
    told.finished(Outcome(TrialRecord(0, "complete"), np.zeros(3, dtype=np.uint16)))
    told.finished(ended(1, "fail"))
    assert [record.state for record in study.records()] == ["complete", "fail"]
    assert study._folder.predictions(0).exists()
    for pack in packs(study, 2):
        train(study, pack)
    assert told.next_pack(2) == ([], False)


def test_who_watches_hears_what_the_study_has(told: Watched, study: Study, watch: Watching) -> None:
    told.next_pack(1)
    told.report(0, 1, 0.25)
    told.report(0, 2, 0.75)
    told.finished(ended(0, a=0.75))
    told.note("a word")
    told.workers(FLEET)
    assert watch.reports == [(0, 1, 0.25), (0, 2, 0.75)]
    assert watch.records == [study.record(0)]
    (record,) = watch.records
    assert (record.value, record.steps, record.folds["a"].macro_f1) == (0.75, {1: 0.25, 2: 0.75}, 0.75)
    assert record.settings and record.ended > 0  # with what Optuna knows, and not as it was handed in
    assert (watch.notes, watch.fleets) == (["a word"], [FLEET])


def test_the_verdict_is_the_study_s(tmp_path: Path, watch: Watching) -> None:
    study = opened(tmp_path, pruner="ThresholdPruner", pruner_options={"lower": 0.5}, space={"schedule": "constant"})
    with owned(study._folder) as lease:
        told = Watched(study, study._folder, lease, watch)
        numbers = [proposal.number for proposal in told.next_pack(3)[0]]
        assert [told.report(number, 1, 0.1) for number in numbers] == [False, False, True]  # but for these
    assert len(watch.reports) == 3


def test_once_the_lease_is_lost_nothing_is_written(
    told: Watched, study: Study, folder: StudyFolder, lease: Lease, watch: Watching
) -> None:
    told.next_pack(2)
    told.report(0, 1, 0.5)
    told.workers(FLEET)
    lease.lost = True
    before = tree(folder.path)
    calls: list[Callable[[], object]] = [
        lambda: told.next_pack(1),
        lambda: told.report(0, 2, 0.5),
        lambda: told.finished(ended(0)),
        lambda: told.finished(Outcome(TrialRecord(1, "complete"), np.zeros(3, dtype=np.uint16))),
    ]
    for call in calls:
        with pytest.raises(LeaseError, match=r"another process took over the study .*: leave it to that one"):
            call()
    assert tree(folder.path) == before
    assert len(watch.reports) == 1 and watch.records == []
    assert [record.state for record in study.records()] == ["running", "running"]


def test_once_the_lease_is_lost_the_new_owner_says_who_works(told: Watched, folder: StudyFolder, lease: Lease) -> None:
    lease.lost = True
    folder.write_fleet({**FLEET, "retries": 7})  # as the new owner does
    told.workers(FLEET)
    assert folder.read_fleet() == {**FLEET, "retries": 7}


# Trials that are scored again


@pytest.fixture
def proposals(study: Study) -> list[Proposal]:
    found: list[Proposal] = []
    for pack in packs(study, 3):
        found += pack
        train(study, pack)
    return found[:5]


@pytest.fixture
def again(proposals: list[Proposal], study: Study, folder: StudyFolder, lease: Lease, watch: Watching) -> Again:
    return Again(proposals, "balanced_accuracy", study, folder, lease, watch)


def test_trials_are_handed_out_again_in_packs_each_once(again: Again, proposals: list[Proposal]) -> None:
    assert again.next_pack(2) == (proposals[:2], True)
    assert again.next_pack(2) == (proposals[2:4], True)
    assert again.next_pack(2) == (proposals[4:], True)
    assert again.next_pack(2) == ([], False)


def test_the_last_score_is_kept_and_that_of_every_fold(again: Again, study: Study) -> None:
    for step, value in ((7, 0.125), (8, 0.5)):
        assert again.report(3, step, value) is False
    assert again.report(1, 8, 0.0) is False  # nothing is pruned, however bad
    outcome = ended(3, a=0.25, b=0.75)
    again.finished(outcome)
    assert study.confirmed() == {3: Confirmation(0.5, {"a": 0.8, "b": 0.8})}  # by the metric asked for
    assert opened(study._folder.path.parent).confirmed() == study.confirmed()


def test_a_trial_that_fails_again_is_known_to_have_failed(again: Again, study: Study) -> None:
    """It would be scored again at every start otherwise."""
    again.report(2, 1, 0.5)
    again.finished(ended(2, "fail", a=0.5))
    again.finished(ended(4, "fail"))
    assert study.confirmed() == {2: None, 4: None}


def test_the_trials_themselves_stay_as_they_were(again: Again, study: Study, watch: Watching) -> None:
    before = study.records()
    again.next_pack(5)
    again.report(0, 8, 0.5)
    again.finished(ended(0, a=0.5))
    again.finished(ended(1, "fail"))
    assert study.records() == before
    assert (watch.reports, watch.records) == ([], [])  # they would be counted twice


def test_once_the_lease_is_lost_no_score_is_kept(again: Again, folder: StudyFolder, lease: Lease) -> None:
    again.report(0, 8, 0.5)
    lease.lost = True
    before = tree(folder.path)
    with pytest.raises(LeaseError):
        again.finished(ended(0))
    assert tree(folder.path) == before


# Who works on it


def test_who_works_is_kept_for_others_to_read(told: Watched, folder: StudyFolder) -> None:
    assert folder.read_fleet() is None
    told.workers(FLEET)
    told.workers({**FLEET, "slots": 2})
    assert StudyFolder(folder.path).read_fleet() == {**FLEET, "slots": 2}


def test_a_full_disk_is_no_reason_to_stop(
    told: Watched, folder: StudyFolder, watch: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.workers(FLEET)
    names = sorted(path.name for path in folder.path.iterdir())

    def full(path: Path, *content: Any, **more: Any) -> int:
        with path.open("w") as file:
            file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        told.workers({**FLEET, "slots": 2})
    assert folder.read_fleet() == FLEET  # whole, as it was
    assert sorted(path.name for path in folder.path.iterdir()) == names
    assert len(watch.fleets) == 2
    told.workers({**FLEET, "slots": 3})
    assert folder.read_fleet() == {**FLEET, "slots": 3}


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OutputError("cannot write")])
def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(
    told: Watched, folder: StudyFolder, watch: Watching, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    told.workers(FLEET)
    assert folder.read_fleet() is None and watch.fleets == [FLEET]


def test_where_something_else_has_its_place_nothing_is_harmed(folder: StudyFolder) -> None:
    folder.fleet.mkdir()
    folder.write_fleet(FLEET)
    assert folder.fleet.is_dir() and list(folder.fleet.iterdir()) == []
    assert folder.read_fleet() is None

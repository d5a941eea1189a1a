"""The journal is Optuna's own, whoever writes it, and its end may be lost."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from scdgn.search.study import journal
from scdgn.search.study.journal import Journal
from scdgn.search.study.study import quiet


def opened(path: Path, owner: Journal | None = None) -> optuna.Study:
    """The study in the journal: the owner's, or as anybody else sees it."""
    with quiet():
        storage = JournalStorage(owner or JournalFileBackend(str(path)))
        return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


def test_others_read_what_the_owner_has(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    owner = Journal(path)
    study = opened(path, owner)
    study.enqueue_trial({"x": 0.25}, user_attrs={"origin": "published"})
    for _ in range(3):
        trial = study.ask()
        with owner.together():
            trial.suggest_float("x", 0, 1)
            trial.suggest_categorical("y", ("a", None, True))
            trial.set_user_attr("record", {"values": (1, 2.5), "5": None})
        trial.report(0.5, 3)
        with owner.together(sync=True):
            study.tell(trial, 1.0)
    study.set_user_attr("confirmed", {"1": 2})
    other = opened(path)
    assert other.trials == study.trials and len(study.trials) == 3
    assert other.user_attrs == study.user_attrs == {"confirmed": {"1": 2}}
    assert study.trials[0].user_attrs["record"]["values"] == [1, 2.5]  # as it will be read
    assert not Path(f"{path}.lock").is_symlink()


def test_a_block_is_written_at_its_end_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    owner = Journal(path)
    study = opened(path, owner)
    trial = study.ask()
    before = path.read_bytes()
    with owner.together():
        trial.suggest_float("x", 0, 1)
        with owner.together(sync=True):
            trial.suggest_float("y", 0, 1)
        assert path.read_bytes() == before and set(study.trials[0].params) == {"x", "y"}
    assert path.read_bytes().count(b"\n") == before.count(b"\n") + 2
    with pytest.raises(KeyboardInterrupt), owner.together():
        trial.suggest_float("z", 0, 1)
        raise KeyboardInterrupt
    assert path.read_bytes().count(b"\n") == before.count(b"\n") + 3
    assert set(opened(path).trials[0].params) == {"x", "y", "z"}


def test_what_is_not_urgent_waits_for_the_next_writing_but_not_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.journal"
    owner = Journal(path)
    study = opened(path, owner)
    trial = study.ask()
    for step in (1, 2):
        with owner.together(urgent=False):
            trial.report(0.5, step)
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.5}
    assert opened(path).trials[0].intermediate_values == {}
    trial.set_user_attr("a", 1)
    assert opened(path).trials == study.trials
    monkeypatch.setattr(journal, "REST", 0.0)
    with owner.together(urgent=False):
        trial.report(0.5, 3)
    assert opened(path).trials == study.trials


def test_the_disk_is_waited_for_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    owner = Journal(path)
    study = opened(path, owner)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for _ in range(5):
        trial = study.ask()
        with owner.together():
            trial.suggest_float("x", 0, 1)
        assert len(synced) <= 1
        with owner.together(sync=True):
            study.tell(trial, 1.0)
    assert len(synced) == 1


def test_others_may_write_between(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    owner = Journal(path)
    study, other = opened(path, owner), opened(path)
    mine = study.ask()
    with owner.together():
        mine.suggest_float("x", 0, 1)
        other.set_user_attr("note", "seen in the dashboard")
        theirs = other.ask()
        mine.suggest_float("y", 0, 1)
    theirs.suggest_float("x", 0, 1)
    other.tell(theirs, 0.5)
    mine.set_user_attr("written", "without a look at the file before")
    last = study.ask()
    assert (mine.number, theirs.number, last.number) == (0, 1, 2)
    study.tell(mine, 0.25)
    assert study.trials == other.trials == opened(path).trials
    assert study.user_attrs == {"note": "seen in the dashboard"}
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("left", [b"", b'{"op_code": 5, "work', b"\0" * 4096, b'{"op_code": 5,' + b"\0" * 512])
def test_what_an_owner_left_is_mended(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "study.journal"
    study = opened(path, Journal(path))
    study.tell(study.ask(), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole + left)
    Path(f"{path}.lock").symlink_to(path)
    again = Journal(path)
    assert path.read_bytes() == whole
    study = opened(path, again)
    study.tell(study.ask(), 2.0)
    assert [trial.value for trial in opened(path).trials] == [1.0, 2.0]


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = opened(path, Journal(path))
    study.tell(study.ask(), 1.0)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], b"\0" * 40, lines[-1]]))
    with pytest.raises(ValueError):
        opened(path, Journal(path))

"""The study draws, prunes and remembers: scores are made up here, nothing is trained."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from optuna.trial import TrialState

from scdgn.errors import DataError, SettingsError
from scdgn.search.folder import StudyFolder
from scdgn.search.records import RUNGS, Confirmation, Outcome, Proposal, State, TrialRecord, UnitScores
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import Study, check, open_storage, quiet, read_predictions, read_records
from tests.test_folder import written

# Four settings are drawn, one of them under a condition; all others are fixed, so that a draw is quick.
SPACE: dict[str, object] = {
    "hidden": [8, 100, 1136],
    "latent": 100,
    "domain_code": 64,
    "epochs": 8,
    "weight_decay": 0.01,
    "dropout": 0.0,
    "class_weights": "none",
    "balance_domains": False,
    "scaling": "none",
    "lambda_max": 0.1,
    "lambda_enters": "loss",
    "schedule": ["constant", "linear"],
    "margin": 1.0,
    "pairing": "batch",
}
CONTRADICTION = {**SPACE, "pairing": "epoch", "query_weight": [0.0, 1.0]}

Score = Callable[[Proposal, int], float]


def settings_of(place: Path, **changes: Any) -> StudySettings:
    return StudySettings(**{"name": "s", "studies": place, "space": SPACE, "trials": 6, "portfolio": False, **changes})


def opened(place: Path, **changes: Any) -> Study:
    """A study as a process finds it that has just begun to own it."""
    settings = settings_of(place, **changes)
    folder = StudyFolder(settings.folder)
    if not folder.exists:
        folder.write_settings(written(settings.name))
    study = Study(folder, settings, settings.spaces()[0])
    study.enqueue()
    return study


def made_up(proposal: Proposal, step: int) -> float:
    """A score that depends on the settings and crosses that of others as training goes on."""
    lr = math.log10(proposal.settings.lr)
    return 0.5 - 0.05 * (lr + 3) ** 2 + 0.01 * step * math.sin(17 * lr)


def packs(study: Study, size: int) -> Iterator[list[Proposal]]:
    """What the study wants to be run, as `scdgn.search.engines.local` asks for it."""
    while True:
        proposals, left = study.next_pack(size)
        if proposals:
            yield proposals
        elif not left:
            return


def train(study: Study, proposals: list[Proposal], score: Score = made_up) -> None:
    """Report all rungs of a pack side by side, as if it were trained."""
    going = list(proposals)
    for step in range(1, RUNGS + 1):
        for proposal in list(going):
            if study.report(proposal.number, step, score(proposal, step)):
                going.remove(proposal)
                study.finished(Outcome(TrialRecord(proposal.number, "pruned")))
            elif step == RUNGS:
                study.finished(Outcome(TrialRecord(proposal.number, "complete")))


def drive(study: Study, size: int = 1, score: Score = made_up) -> None:
    for proposals in packs(study, size):
        train(study, proposals, score)


def test_the_score_has_its_name_where_other_programs_show_it(tmp_path: Path) -> None:
    opened(tmp_path, metric="accuracy")
    study = opened(tmp_path, metric="accuracy")  # by the next process
    (found,) = optuna.get_all_study_summaries(open_storage(study._folder, None))
    name = found.study_name
    assert optuna.load_study(study_name=name, storage=open_storage(study._folder, None)).metric_names == ["accuracy"]
    assert study._folder.journal.read_text().count("study:metric_names") == 1


def contents(study: Study) -> list[dict[str, Any]]:
    """All that the storage holds of the trials, but when they ran."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value,
            "params": trial.params,
            "steps": trial.intermediate_values,
            "attributes": {key: value for key, value in trial.user_attrs.items() if key != "record"},
        }
        for trial in study._study.get_trials()
    ]


def states(study: Study) -> list[State]:
    return [record.state for record in study.records()]


def test_the_budget_counts_every_trial_that_ended(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=9, enqueue=({"lr": 1e-3},))
    ends: list[State] = ["complete", "pruned", "fail"]
    for proposals in packs(study, 2):
        for proposal in proposals:
            study.report(proposal.number, 1, 0.5)
            study.finished(Outcome(TrialRecord(proposal.number, ends[proposal.number % 3])))
    assert states(study) == ends * 3
    assert [record.number for record in study.records()] == list(range(9))


def test_more_trials_continue_the_same_study(tmp_path: Path) -> None:
    drive(opened(tmp_path / "a", trials=4))
    longer = opened(tmp_path / "a", trials=8)
    drive(longer)
    at_once = opened(tmp_path / "b", trials=8)
    drive(at_once)
    assert contents(longer) == contents(at_once)


def test_trials_cut_off_run_again_under_their_own_number(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=6)
    first, _ = study.next_pack(3)
    train(study, first)
    second, _ = study.next_pack(3)
    study.report(second[0].number, 1, 0.1)
    study.finished(Outcome(TrialRecord(second[1].number, "fail", reason="of its own")))

    again = opened(tmp_path, trials=6)
    assert states(again) == ["complete"] * 3 + ["running", "fail", "running"]
    proposals, _ = again.next_pack(3)
    assert proposals == [second[0], second[2]]
    train(again, proposals)
    assert again.next_pack(3) == ([], False)
    assert len(again.records()) == 6


def test_what_is_enqueued_is_enqueued_once(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "trials": 7,
        "reference": True,
        "enqueue": ({"lr": 1e-3, "schedule": "linear"}, {"hidden": 8}),
    }
    opened(tmp_path, **wanted)
    for _ in range(2):
        drive(opened(tmp_path, **wanted))
    records = opened(tmp_path, **wanted).records()
    assert [record.origin for record in records] == ["enqueued", "enqueued", "published", "reference", "", "", ""]
    assert (records[0].settings["lr"], records[0].settings["schedule"]) == (1e-3, "linear")
    assert records[1].settings["hidden"] == 8
    assert (records[2].settings["hidden"], records[2].settings["lambda_max"]) == (1136, 0.1)
    assert (records[3].settings["optimizer"], records[3].settings["epochs"]) == ("sgd", 250)


def test_enqueueing_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: dict[str, Any] = {"reference": True, "enqueue": ({"lr": 1e-3},)}
    enqueue = optuna.Study.enqueue_trial
    calls = []

    def once(study: optuna.Study, *args: Any, **more: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        enqueue(study, *args, **more)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", once)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, **wanted)
    monkeypatch.undo()
    assert [record.origin for record in opened(tmp_path, **wanted).records()] == ["enqueued", "published", "reference"]


def test_the_published_settings_are_left_out_aloud(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, space={**SPACE, "hidden": [8, 16]})
    (note,) = check(settings, settings.spaces()[0])
    assert "published" in note and "hidden = 1136 is outside 8 or 16" in note
    assert opened(tmp_path, space=settings.space).records() == []
    assert check(settings_of(tmp_path), settings_of(tmp_path).spaces()[0]) == []


@pytest.mark.parametrize(
    "wrong", [{"sampler": "TPE"}, {"pruner": "Median"}, {"sampler_options": {"x": 1}}, {"enqueue": ({"lr": 1.0},)}]
)
def test_what_a_study_cannot_be_run_with_is_told_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    settings = settings_of(tmp_path, **wrong)
    with pytest.raises(SettingsError):
        check(settings, settings.spaces()[0])
    assert list(tmp_path.iterdir()) == []


def test_a_trial_to_enqueue_that_the_space_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        opened(tmp_path, enqueue=({"lr": 1e-3}, {"lr": 1.0, "hiden": 8}))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["trial 2 to enqueue"] * 2
    assert "lr = 1.0 is outside" in str(caught.value) and "did you mean hidden" in str(caught.value)


@pytest.mark.parametrize("size", [1, 3])
def test_settings_that_contradict_each_other_fail_their_trial_alone(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdgn.search.study.space._contradictions", lambda *_: [])  # as if they had not been foreseen
    study = opened(tmp_path, space=CONTRADICTION, trials=9)
    drive(study, size)
    records = study.records()
    assert len(records) == 9
    for record in records:
        drawn = study._study.trials[record.number].params["query_weight"]
        assert record.state == ("fail" if drawn else "complete" if record.state != "pruned" else "pruned")
        assert ("query_weight" in record.reason) == bool(drawn)
    assert {"complete", "fail"} <= {record.state for record in records}


def test_a_pack_of_contradictions_is_not_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.search.study.space._contradictions", lambda *_: [])
    space = {**CONTRADICTION, "query_weight": [0.5, 1.0]}
    study = opened(tmp_path, space=space, trials=4)
    assert study.next_pack(3) == ([], True)
    assert list(packs(study, 3)) == []
    assert states(study) == ["fail"] * 4


def test_records_tell_all_of_a_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    (proposal,), _ = study.next_pack(1)
    for step in range(1, RUNGS + 1):
        study.report(proposal.number, step, step / 10)
    scores = UnitScores(0.8, 0.9, 0.7, 12, {"B": 1.0, "T": 0.5})
    record = TrialRecord(
        proposal.number,
        "complete",
        epoch=8,
        folds={"a": scores, "b+c": scores},
        training_domain=scores,
        curves={"epoch": [4, 8], "label_loss": [0.5, 0.25]},
        seconds=1.5,
    )
    study.finished(Outcome(record, np.array([0, 2, 1], dtype=np.uint16)))
    kept = study.record(proposal.number)
    assert kept == opened(tmp_path).records()[0]
    assert kept.to_json() == record.to_json()
    assert kept.settings == proposal.to_mapping()
    assert (kept.state, kept.value, kept.origin) == ("complete", 0.8, "published")
    assert kept.steps == {step: step / 10 for step in range(1, RUNGS + 1)}
    assert 0 < kept.started <= kept.ended

    settings = settings_of(tmp_path)
    folder = StudyFolder(settings.folder)
    assert read_records(folder, settings)[0] == kept
    predictions = read_predictions(folder, study.records())
    assert predictions[0].tolist() == [0, 2, 1]


def test_predictions_count_for_complete_trials_alone(tmp_path: Path) -> None:
    study = opened(tmp_path)
    (proposal,), _ = study.next_pack(1)
    study.report(0, 1, 0.5)
    folder = StudyFolder(settings_of(tmp_path).folder)
    folder.predictions(0).parent.mkdir()
    np.savez_compressed(folder.predictions(0), predicted=np.zeros(3, dtype=np.uint16))
    assert read_predictions(folder, study.records()) == {}
    study.finished(Outcome(TrialRecord(proposal.number, "pruned")))
    assert read_predictions(folder, study.records()) == {}


def test_a_study_is_read_while_it_is_written_and_nothing_changes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    folder = StudyFolder(settings.folder)
    assert read_records(folder, settings) == []
    assert not folder.path.exists()
    study = opened(tmp_path)
    train(study, study.next_pack(1)[0])
    study.next_pack(2)
    with folder.journal.open("ab") as file:
        file.write(b'{"op_code": 5, "work')  # the owner is about to write the rest
    before = folder.journal.read_bytes()
    assert [record.state for record in read_records(folder, settings)] == ["complete", "running", "running"]
    assert folder.journal.read_bytes() == before
    assert {path.name for path in folder.path.iterdir()} == {"study.journal", "study.toml"}


def test_a_study_that_is_not_in_its_storage_yet_has_no_trials(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    folder = StudyFolder(settings.folder)
    folder.path.mkdir(parents=True)
    folder.journal.touch()
    assert read_records(folder, settings) == []


def test_what_a_killed_owner_left_is_mended(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=2)
    train(study, study.next_pack(1)[0])
    folder = StudyFolder(settings_of(tmp_path).folder)
    whole = folder.journal.read_bytes()
    folder.journal.write_bytes(whole + whole.splitlines()[-1][:20])
    lock = Path(f"{folder.journal}.lock")
    lock.symlink_to(folder.journal)  # as Optuna locks
    drive(opened(tmp_path, trials=2))
    assert not lock.is_symlink()
    assert all(json.loads(line) for line in folder.journal.read_text().splitlines())
    assert states(opened(tmp_path, trials=2)) == ["complete"] * 2


def test_a_study_in_a_database(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    study = opened(tmp_path / "database", storage=storage)
    train(study, study.next_pack(2)[0])
    study.next_pack(2)
    other = opened(tmp_path / "other", storage=storage)  # of the same name in another place, or from before --fresh
    assert states(other) == ["waiting"]
    again = opened(tmp_path / "database", storage=storage)
    drive(again, 2)
    journal = opened(tmp_path / "journal")
    drive(journal, 2)
    assert contents(again) == contents(journal)
    settings = settings_of(tmp_path / "database", storage=storage)
    assert read_records(StudyFolder(settings.folder), settings) == again.records()
    assert not StudyFolder(settings.folder).journal.exists()


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////no/such/folder/studies.db", "redis+x://nowhere"])
def test_a_storage_that_cannot_be_opened(tmp_path: Path, storage: str) -> None:
    with pytest.raises(SettingsError, match=r"storage .* cannot be opened"):
        opened(tmp_path, storage=storage)


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    folder = StudyFolder(settings_of(tmp_path).folder)
    folder.path.mkdir(parents=True)
    folder.journal.write_bytes(b"not a journal\n{}\n")
    with pytest.raises(DataError, match="cannot be opened"):
        opened(tmp_path)


def worse_and_worse(proposal: Proposal, step: int) -> float:
    return 0.9 - 0.1 * proposal.number


def test_no_trial_is_pruned_before_lambda_has_grown(tmp_path: Path) -> None:
    space = {**SPACE, "hidden": 8, "schedule": "linear", "warmup": [0.3, 0.6]}
    study = opened(tmp_path, space=space, trials=12, pruner_options={"n_startup_trials": 1})
    drive(study, score=worse_and_worse)
    last = {
        record.settings["warmup"]: max(record.steps) for record in reversed(study.records()) if record.state == "pruned"
    }
    # lambda is at 0.95 of its end after 0.285 and 0.57 of the training
    assert last == {0.3: 3, 0.6: 5}


def test_without_a_ramp_a_trial_is_pruned_at_its_first_rung(tmp_path: Path) -> None:
    space = {**SPACE, "hidden": 8, "schedule": "constant"}
    study = opened(tmp_path, space=space, pruner_options={"n_startup_trials": 1})
    drive(study, score=worse_and_worse)
    assert [record.state for record in study.records()] == ["complete"] + ["pruned"] * 5
    assert all(list(record.steps) == [1] for record in study.records()[1:])
    assert study.records()[1].value == pytest.approx(0.8)


def test_the_published_trial_is_never_pruned(tmp_path: Path) -> None:
    options = {"lower": 0.5}
    study = opened(tmp_path, pruner="ThresholdPruner", pruner_options=options, trials=3)
    drive(study, score=lambda proposal, step: 0.1)
    assert states(study) == ["complete", "pruned", "pruned"]


def test_a_trial_is_compared_with_networks_about_as_wide(tmp_path: Path) -> None:
    widths = (8, 64, 100, 256, 257, 1136)
    space = {**SPACE, "hidden": list(widths), "schedule": "constant"}
    queue = tuple({"hidden": width, "lr": 1e-3} for width in (*widths, *widths))
    study = opened(tmp_path, space=space, trials=13, enqueue=queue, pruner_options={"n_startup_trials": 2})

    def score(proposal: Proposal, step: int) -> float:
        """Wide networks are far better; of each width the second is a little worse than the first."""
        return 0.1 * sum(proposal.settings.hidden > limit for limit in (64, 256)) - 0.001 * proposal.number

    drive(study, score=score)
    # The first two of every band are complete, what follows is worse than its peers alone, the published one is spared.
    assert states(study) == ["complete"] * 6 + ["pruned"] * 6 + ["complete"]

    better = opened(tmp_path / "better", space=space, trials=13, enqueue=queue, pruner_options={"n_startup_trials": 2})
    drive(better, score=lambda proposal, step: score(proposal, step) + 0.002 * proposal.number)
    assert states(better) == ["complete"] * 13  # though the narrow ones are far below the median of all


def test_a_trial_cut_off_passes_the_rungs_again_that_it_had_passed(tmp_path: Path) -> None:
    space = {**SPACE, "hidden": 8, "schedule": "constant"}
    more: dict[str, Any] = {"space": space, "trials": 3, "pruner_options": {"n_startup_trials": 1}}
    study = opened(tmp_path, **more)
    pack, _ = study.next_pack(3)
    for step in (1, 2):
        assert not any(study.report(proposal.number, step, worse_and_worse(proposal, step)) for proposal in pack)
    for step in range(3, RUNGS + 1):  # one of them is ahead, and complete when the process dies
        study.report(0, step, 0.9)
    study.finished(Outcome(TrialRecord(0, "complete")))

    again = opened(tmp_path, **more)
    rest, _ = again.next_pack(3)
    assert [proposal.number for proposal in rest] == [1, 2]
    assert not again.report(1, 1, 0.8)  # it had passed this one
    assert again.report(1, 2, 0.8) and again.report(2, 2, 0.7)  # of this one the verdict may have been lost


def test_the_score_reported_first_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.search.study.journal.REST", 0.0)  # every report is written at once
    study = opened(tmp_path)
    study.next_pack(1)
    study.report(0, 1, 0.25)
    again = opened(tmp_path)
    again.next_pack(1)
    again.report(0, 1, 0.75)
    assert again.records()[0].steps == {1: 0.25}


def test_trials_carry_their_settings_while_they_run(tmp_path: Path) -> None:
    study = opened(tmp_path)
    (proposal,), _ = study.next_pack(1)
    (record,) = study.records()[:1]
    assert record.state == "running" and record.settings == proposal.to_mapping()
    assert study._study.trials[0].state is TrialState.RUNNING


def test_scores_with_other_seeds_are_kept(tmp_path: Path) -> None:
    study = opened(tmp_path)
    assert study.confirmed() == {}
    kept = Confirmation(0.5, {"a": 0.25, "b": 0.75})
    study.confirm(3, kept)
    study.confirm(12, None)
    assert study.confirmed() == {3: kept, 12: None} == opened(tmp_path).confirmed()


# Several packs at once


def numbers_of(pack: list[Proposal]) -> list[int]:
    return [proposal.number for proposal in pack]


def end(study: Study, number: int, state: State = "complete") -> None:
    study.report(number, RUNGS, 0.5)
    study.finished(Outcome(TrialRecord(number, state)))


def test_packs_in_flight_are_disjoint_and_spend_the_budget_exactly(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=10)
    flying = [study.next_pack(size)[0] for size in (3, 1, 4)]
    assert list(map(numbers_of, flying)) == [[0, 1, 2], [3], [4, 5, 6, 7]]
    end(study, 5, "fail")
    last, left = study.next_pack(4)
    assert (numbers_of(last), left) == ([8, 9], True)
    assert study.next_pack(1) == ([], False)
    for number in (0, 8, 3):
        end(study, number)
        assert study.next_pack(1) == ([], False)  # though trials are still out
    for number in (1, 2, 4, 6, 7, 9):
        end(study, number, "pruned")
    assert study.next_pack(4) == ([], False)
    assert [record.number for record in study.records()] == list(range(10))
    assert set(states(study)) == {"complete", "pruned", "fail"}


def test_a_trial_that_failed_is_not_handed_out_again_but_its_pack_s_others_are(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=4)
    pack, _ = study.next_pack(4)
    end(study, 2, "fail")
    assert study.next_pack(4) == ([], False)
    again = opened(tmp_path, trials=4)
    assert again.next_pack(1) == ([pack[0], pack[1], pack[3]], True)


@pytest.mark.parametrize("size", [1, 5])
def test_packs_cut_off_are_handed_out_as_they_were_with_the_trials_left(tmp_path: Path, size: int) -> None:
    """Whatever the pack size now is: a checkpoint may lie there of just these trials."""
    study = opened(tmp_path, trials=12)
    packs = [study.next_pack(3)[0] for _ in range(3)]
    end(study, 1)
    end(study, 6, "pruned")
    end(study, 8, "fail")

    again = opened(tmp_path, trials=12)
    handed = [again.next_pack(size)[0] for _ in range(4)]
    assert handed[:3] == [[packs[0][0], packs[0][2]], packs[1], [packs[2][1]]]
    assert numbers_of(handed[3]) == list(range(9, 9 + min(size, 3)))
    while (more := again.next_pack(size))[1]:
        handed.append(more[0])
    assert sorted(number for pack in handed for number in numbers_of(pack)) == [0, 2, 3, 4, 5, 7, 9, 10, 11]
    for pack in handed:
        train(again, pack)
    assert again.next_pack(size) == ([], False)
    assert len(again.records()) == 12 and states(again).count("running") == 0


def test_a_pack_that_ended_while_others_were_cut_off_is_not_handed_out(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=8)
    packs = [study.next_pack(2)[0] for _ in range(3)]
    for number in numbers_of(packs[1]):
        end(study, number)
    again = opened(tmp_path, trials=8)
    assert [again.next_pack(2)[0] for _ in range(2)] == [packs[0], packs[2]]
    assert numbers_of(again.next_pack(2)[0]) == [6, 7]


def moments(journal: Path, before: int) -> list[bytes]:
    """What a process leaves that is killed between two lines of what it has written since, or in one of them."""
    content = journal.read_bytes()
    ends = [at + 1 for at, letter in enumerate(content) if at >= before and letter == ord("\n")]
    return [content[:at] for end in [before, *ends] for at in (end, end + 7) if at <= len(content)]


@pytest.mark.parametrize("flying", [0, 2], ids=["alone", "with others cut off"])
def test_a_pack_killed_in_its_drawing_is_drawn_as_it_would_have_been(tmp_path: Path, flying: int) -> None:
    """At every moment: trials asked for and not entered, entered in part, drawn in part."""
    more: dict[str, Any] = {"trials": 4 + 2 * flying, "sampler_options": {"n_startup_trials": 1}}
    study = opened(tmp_path, **more)
    train(study, study.next_pack(2)[0])
    others = [study.next_pack(2)[0] for _ in range(flying)]
    journal = study._folder.journal
    before = journal.stat().st_size
    drawn = study.next_pack(2)[0]
    whole, kills = contents(study), moments(journal, before)
    assert len(kills) > 20
    for killed in kills:
        journal.write_bytes(killed)
        again = opened(tmp_path, **more)
        assert [again.next_pack(2)[0] for _ in range(flying)] == others
        assert again.next_pack(2) == (drawn, True)
        assert again.next_pack(2) == ([], False)
        assert contents(again) == whole


def test_a_pack_killed_in_its_drawing_waits_for_those_that_were_cut_off_before(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=9)
    others = [study.next_pack(2)[0] for _ in range(2)]
    journal = study._folder.journal
    before = journal.stat().st_size
    drawn = study.next_pack(4)[0]
    for killed in moments(journal, before)[::5]:
        journal.write_bytes(killed)
        again = opened(tmp_path, trials=9)
        handed = [again.next_pack(4)[0] for _ in range(4)]
        assert handed[:3] == [*others, drawn]
        assert numbers_of(handed[3]) == [8]


Step = tuple[Literal["pack", "end", "die", "die drawing"], int, float]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(["pack", "pack", "end", "end", "die", "die drawing"]), st.integers(1, 5), st.floats(0, 1)
    ),
    max_size=24,
)


@examples(max_examples=60, deadline=None)
@given(STEPS)
def test_whenever_the_owner_dies_no_trial_is_lost_or_doubled_and_packs_stay_together(steps: list[Step]) -> None:
    budget = 14
    first: dict[int, Proposal] = {}  # every trial as it was first handed out
    packs: list[list[int]] = []
    done: set[int] = set()
    out: set[int] = set()  # handed out by the owner that lives

    with TemporaryDirectory() as place:

        def reopened() -> Study:
            out.clear()
            return opened(Path(place), trials=budget, sampler="RandomSampler")

        def hand_out(size: int) -> bool:
            pack, left = study.next_pack(size)
            numbers = numbers_of(pack)
            cut = [found for found in packs if set(found) - done - out]
            if cut:
                assert numbers == [number for number in min(cut) if number not in done]
            elif numbers:
                assert not set(numbers) & set(first)
                packs.append(numbers)
                first.update(zip(numbers, pack, strict=True))
            assert left == bool(numbers) and (left or len(first) == budget)
            assert pack == [first[number] for number in numbers]
            assert not set(numbers) & out
            out.update(numbers)
            return left

        def end_one(place: int) -> None:
            number = sorted(out)[place % len(out)]
            end(study, number, ("complete", "pruned", "fail")[place % 3])
            out.remove(number)
            done.add(number)

        study = reopened()
        for kind, size, share in steps:
            if kind == "pack":
                hand_out(size)
            elif kind == "end" and out:
                end_one(int(share * 100))
            elif kind == "die":
                study = reopened()
            elif kind == "die drawing":
                journal = study._folder.journal
                before = journal.stat().st_size
                study.next_pack(size)
                content = journal.read_bytes()
                journal.write_bytes(content[: before + int(share * (len(content) - before))])
                study = reopened()
        while hand_out(3) or out:
            while out:
                end_one(0)
        assert [record.number for record in study.records()] == list(range(budget))
        assert set(states(study)) <= {"complete", "pruned", "fail"}
        kept = [trial.user_attrs["pack"] for trial in study._study.get_trials()]
        assert packs == [[number for number in range(budget) if kept[number] == pack] for pack in sorted(set(kept))]


def test_what_is_quiet_is_so_where_our_own_modules_call_optuna() -> None:
    """Optuna's warnings are of whoever calls it: a module of this package."""
    with quiet():
        warnings.warn_explicit("a repeated report", UserWarning, "study.py", 1, module=Study.__module__)
    with quiet(), pytest.warns(UserWarning, match="another's"):
        warnings.warn_explicit("another's", UserWarning, "other.py", 1, module="other")

"""Which trial wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from scdgn.search.records import State, TrialRecord, UnitScores
from scdgn.search.stages.selection import (
    FAILED_RECALL,
    fails,
    leave_one_domain_out,
    oracle,
    ranked,
    score_test,
    training_domain,
)


def scores(macro_f1: float, accuracy: float = 0.5, **recall: float) -> UnitScores:
    return UnitScores(macro_f1, accuracy, 0.5, 10, recall)


def record(number: int, *folds: float, state: State = "complete", within: float = 0.5, **recall: float) -> TrialRecord:
    return TrialRecord(
        number,
        state,
        folds={f"fold {place}": scores(value, 1 - value) for place, value in enumerate(folds)},
        training_domain=scores(within, **recall),
    )


def numbers(*winners: Any) -> list[int | None]:
    return [None if winner is None else winner.number for winner in winners]


def test_the_protocols_go_by_their_own_scores() -> None:
    records = [record(0, 0.2, 0.6, within=0.9), record(1, 0.5, 0.5, within=0.1), record(2, 0.1, 0.1, within=0.2)]
    one, two = leave_one_domain_out(records, "macro_f1"), training_domain(records, "macro_f1")
    assert one is not None and (one.protocol, one.number, one.note) == ("leave-one-domain-out", 1, "")
    assert one.score == pytest.approx(0.5)
    assert two is not None and (two.protocol, two.number, two.score) == ("training-domain", 0, 0.9)
    three = oracle({0: 0.1, 1: 0.2, 2: 0.3})
    assert three is not None and (three.protocol, three.number, three.score) == ("test-domain oracle", 2, 0.3)
    assert numbers(leave_one_domain_out(records, "accuracy")) == [2]


@pytest.mark.parametrize("state", ["waiting", "running", "pruned", "fail"])
def test_only_complete_trials_win(state: State) -> None:
    records = [record(0, 0.1, within=0.1), record(1, 0.9, state=state, within=0.9)]
    assert numbers(leave_one_domain_out(records, "macro_f1"), training_domain(records, "macro_f1")) == [0, 0]
    assert (
        numbers(leave_one_domain_out(records[1:], "macro_f1"), training_domain(records[1:], "macro_f1")) == [None] * 2
    )
    for protocol in ("leave-one-domain-out", "training-domain"):
        assert ranked(records, protocol, "macro_f1", ()) == [0]


def test_without_folds_there_is_no_winner_by_them() -> None:
    assert leave_one_domain_out([record(0)], "macro_f1") is None
    assert numbers(training_domain([record(0)], "macro_f1")) == [0]
    assert leave_one_domain_out([], "macro_f1") is training_domain([], "macro_f1") is oracle({}) is None


def test_of_equals_the_first_wins() -> None:
    records = [record(2, 0.5), record(0, 0.5), record(1, 0.5)]
    assert numbers(leave_one_domain_out(records, "macro_f1"), training_domain(records, "macro_f1")) == [0, 0]
    assert numbers(oracle({3: 0.5, 1: 0.5})) == [1]
    assert ranked(records, "leave-one-domain-out", "macro_f1", ()) == [0, 1, 2]


def test_a_winner_knows_the_types_that_no_fold_scores() -> None:
    records = [record(0, 0.9, A=0.1, B=1.0), record(1, 0.5, A=0.8, B=0.0)]
    assert numbers(leave_one_domain_out(records, "macro_f1")) == [0]
    assert numbers(leave_one_domain_out(records, "macro_f1", ["A"])) == [1]
    assert numbers(leave_one_domain_out(records, "macro_f1", ["A", "B"])) == [0]  # 0.55 on average
    assert numbers(leave_one_domain_out(records, "macro_f1", ["C"])) == [0]  # of which none was set aside
    assert ranked(records, "leave-one-domain-out", "macro_f1", ["A"]) == [1, 0]


def test_where_all_fail_them_the_best_wins_and_it_is_said() -> None:
    records = [record(0, 0.5, A=0.1), record(1, 0.9, A=0.2)]
    winner = leave_one_domain_out(records, "macro_f1", ["A"])
    assert winner is not None and winner.number == 1
    assert winner.note == "every trial fails the types that no fold scores: A"


def test_failing_is_by_the_mean_recall() -> None:
    assert not fails(record(0, A=FAILED_RECALL), ["A"])
    assert fails(record(0, A=FAILED_RECALL - 0.01), ["A"])
    assert not fails(TrialRecord(0, "complete"), ["A"])


def test_scores_with_other_seeds_choose_alone_where_there_are_any() -> None:
    records = [record(0, 0.9, A=0.0), record(1, 0.8, A=1.0), record(2, 0.7, A=1.0), record(3, 0.1, A=1.0)]
    assert numbers(leave_one_domain_out(records, "macro_f1", (), {1: 0.6, 2: 0.65})) == [2]
    assert numbers(leave_one_domain_out(records, "macro_f1", (), {})) == [0]
    # a trial that cannot win does not win by being confirmed
    assert numbers(leave_one_domain_out(records, "macro_f1", ["A"], {0: 0.99, 1: 0.5})) == [1]
    pruned = [record(0, 0.9), record(1, 0.95, state="pruned")]
    assert numbers(leave_one_domain_out(pruned, "macro_f1", (), {0: 0.1, 1: 0.9})) == [0]
    assert numbers(training_domain(records, "macro_f1", {3: 0.9})) == [3]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 4)), max_size=6))
def test_ranking_is_taking_winners_away(drawn: list[tuple[int, bool, int]]) -> None:
    records = [
        record(number, value / 4, state="complete" if complete else "pruned", A=recall / 4)
        for number, (value, complete, recall) in enumerate(drawn)
    ]
    order = ranked(records, "leave-one-domain-out", "macro_f1", ["A"])
    assert sorted(order) == [one.number for one in records if one.state == "complete"]
    keys = [(fails(records[number], ["A"]), -drawn[number][0], number) for number in order]
    assert keys == sorted(keys)


def test_stored_predictions_are_scored_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    scored = rng.random(60) < 0.7
    labels[~scored] = -1
    predictions = {number: rng.integers(0, 4, 60).astype(np.uint16) for number in (3, 7)}
    for metric, reference in (
        ("macro_f1", lambda a, b: f1_score(a, b, labels=np.unique(a), average="macro")),
        ("accuracy", accuracy_score),
        ("balanced_accuracy", balanced_accuracy_score),
    ):
        found = score_test(predictions, labels, scored, metric)  # type: ignore[arg-type]
        for number, predicted in predictions.items():
            assert found[number] == pytest.approx(reference(labels[scored], predicted[scored]))

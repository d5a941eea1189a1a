"""The end of a search in plain words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scdgn.search.shown.overview import composition
from scdgn.search.shown.verdict import next_steps, verdict
from scdgn.search.summary import Part, Summary
from tests.summaries import summary_with


def summary(method: str, folds: dict[str, float], score: float) -> Summary:
    found: dict[str, Any] = {
        "study": f"cells/{method}",
        "protocol": "search",
        "method": method,
        "metric": "macro_f1",
        "folds": [{"name": name} for name in folds],
        "winner": {"score": score, "folds": folds},
        "data": {"training_domains": list(folds), "test_batches": ["new"]},
        "model": {
            "path": "model", "models": 3, "kind": "ensemble", "score": score, "corrects": True,
            "parts": [{"trial": 4, "models": 3}], "test": {"plain": {"macro_f1": 0.5}, "corrected": {"macro_f1": 0.61}},
        },
        "final": {"test": {"cells": 1200, "recall": {"B": 0.99, "T": 0.7, "DC": 0.4}, "macro_f1": {"ensemble": 0.6}}},
        "unscored_types": [],
        "registered": {"name": "cells", "version": "1", "alias": "champion", "uri": "models:/cells/1", "reason": ""},
    }  # fmt: skip
    made: Summary = summary_with(**found)
    return made


NN = summary("nn", {"a": 0.7, "b": 0.8, "c": 0.9}, 0.80)


def test_it_says_what_was_chosen_how_good_it_is_and_where_it_is_weak() -> None:
    chosen, held_out, weak = verdict([NN])
    assert chosen == (
        "Chosen: the plain network (NN), macro-F1 0.800 on 3 training batches left out in turn. The model exported: 3 "
        "models of trial 4, corrected for the query."
    )
    assert held_out == "On new, which was held out (1,200 cells): macro-F1 0.610 by the model exported."
    assert weak == "Weak, by the share of a type's cells that its winner found there: DC (0.40), T (0.70)."


@pytest.mark.parametrize(
    ("folds", "told"),
    [({"a": 0.6, "b": 0.9, "c": 0.8}, "within the noise"), ({"a": 0.5, "b": 0.6, "c": 0.7}, "beyond the noise")],
)
def test_a_lead_is_told_with_its_noise(folds: dict[str, float], told: str) -> None:
    other = summary("scdgn", folds, 0.78)
    for order in ([NN, other], [other, NN]):
        assert "Chosen: the plain network (NN)" in verdict(order)[0]
        assert f"0.020 ahead of scDGN, {told}" in verdict(order)[0]


def test_without_a_test_batch_or_weak_types_it_says_so() -> None:
    final = replace(NN.final, test=None, validation=replace(NN.final.validation, recall={"B": 0.95}))
    data = replace(NN.data, test_batches=())
    told = verdict([replace(NN, final=final, unscored_types=("Mk",), data=data)])
    assert verdict([replace(NN, final=final)])[1] == (
        "On new, which was held out, no cell is of a type that was trained."
    )
    assert told[1] == "No batch was held out: that score is the estimate for a new one."
    assert told[2] == "No type is weak: its winner found at least 95% of each among cells set aside."
    assert told[3] == "Not judged by batches left out, because one training batch alone has them: Mk."


def test_of_studies_that_are_not_to_be_compared_nothing_is_said() -> None:
    assert verdict([]) == [] and verdict([NN, NN]) == [] and verdict([summary_with(protocol="seed-best-of-10")]) == []


def test_the_next_commands_name_paths_that_exist_and_are_quoted() -> None:
    assert next_steps([NN], Path("studies"), "cells") == [
        "scdgn report cells",
        "scdgn predict CELLS.h5ad --model studies/cells/nn/model -o ANNOTATED.h5ad",
        "scdgn ui",
    ]
    (report, predict) = next_steps([replace(NN, registered=None)], Path("my studies"), "cells")
    assert report.endswith("--studies 'my studies'") and "--model 'my studies/cells/nn/model'" in predict


def test_it_says_of_which_trials_the_exported_model_is() -> None:
    model = replace(
        NN.model, models=4, parts=(Part(trial=4, models=2), Part(trial=0, models=1), Part(trial=7, models=1))
    )
    assert composition(model) == "4 models of trials 4 (2), 0, 7, corrected for the query"
    assert (
        composition(replace(model, models=1, parts=(Part(trial=4, models=1),), corrects=False)) == "1 model of trial 4"
    )

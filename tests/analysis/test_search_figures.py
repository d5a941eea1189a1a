"""Figures of a search: the numbers behind them, what they leave out, and that odd studies can be drawn at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from scdgn.analysis.chapters import protocols, search_figures
from scdgn.analysis.chapters.search_figures import (
    draw_history,
    draw_learning,
    draw_margin_lambda,
    draw_parallel,
    section,
)
from scdgn.analysis.page.sections import Picture, Section, Table, Text
from scdgn.analysis.page.style import styled
from scdgn.analysis.studies.results import Results
from scdgn.analysis.studies.trials import Axis, axes, curves, importances, of_the_space, rungs, survival, trials
from scdgn.core.config import Method
from scdgn.search.records import RUNGS, TrialRecord
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.space import Choice, Real, Whole
from tests.summaries import summary_with

METRICS = ("macro_f1", "accuracy", "balanced_accuracy")
SPACE: dict[str, object] = {
    "hidden": 16, "latent": 8, "epochs": 8, "weight_decay": 0.1, "class_weights": "none", "balance_domains": False,
    "scaling": ["none", "standard"], "domain_code": 8, "lambda_enters": "loss", "schedule": "constant",
    "pairing": "batch",
}  # fmt: skip
"""Searched are lr, dropout, scaling, lambda_max and margin."""

BASE = {
    "method": "scdgn", "hidden": 16, "latent": 8, "epochs": 8, "lr": 1e-3, "dropout": 0.4, "scaling": "none",
    "lambda_max": 0.1, "margin": 1.0, "schedule": "constant",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones say the same and take four times as long."""
    monkeypatch.setattr("scdgn.analysis.studies.trials.TREES", 16)


def a_trial(number: int, value: float, last: int = RUNGS, state: str = "complete", **changes: Any) -> TrialRecord:
    """A trial whose score rises to its value."""
    settings = {**BASE, **{name: changes.pop(name) for name in list(changes) if name in BASE}}
    epochs = list(range(1, last + 1))
    return TrialRecord(
        number,
        state,  # type: ignore[arg-type]
        settings,
        value=value,
        steps={rung: value * rung / last for rung in epochs},
        epoch=last,
        curves={
            "epoch": epochs,
            "label_loss": [1.0 / epoch for epoch in epochs],
            "domain_loss": [2.0] * last,
            "lambda": [0.1] * last,
        },
        seconds=1.0,
        started=100.0 + number,
        ended=101.0 + number,
        **changes,
    )


def final(value: float) -> dict[str, Any]:
    part = {"mean": value, "std": 0.01, "picked": value + 0.01, "ensemble": value + 0.02, "best_oracle": value + 0.05}
    return {"cells": 50, "recall": {}, **dict.fromkeys(METRICS, part)}


def a_study(
    records: Sequence[TrialRecord],
    method: Method = "scdgn",
    space: Mapping[str, object] = SPACE,
    test: float | None = 0.6,
    **changes: Any,
) -> Results:
    """The results of a search; of the protocols leave-one-domain-out takes trial 0, training-domain 1, the oracle 2."""
    summary: dict[str, Any] = {
        "method": method,
        "selection": "leave-one-domain-out",
        "metric": "macro_f1",
        "data": {
            "test_batches": ["b <&_% $^$"] if test is not None else [],
            "test_cells": 50 if test is not None else 0,
        },
        "asked": {"confirm": [5, 4]},
        "winner": {"number": 0, "score": 0.7},
        "confirmed": {},
        "protocols": [
            {"protocol": "leave-one-domain-out", "trial": 0, "score": 0.7, "test": test},
            {"protocol": "training-domain", "trial": 1, "score": 0.9, "test": None if test is None else test - 0.1},
        ],
        "final": {"seeds": list(range(10)), "test": None if test is None else final(test)},
        "model": {"kind": "ensemble"},
        **changes,
    }
    if test is not None:
        oracle = {"protocol": "test-domain oracle", "trial": 2, "score": test + 0.15, "test": test + 0.15}
        summary["protocols"] = [*summary["protocols"], oracle]
    return Results("s", StudySettings("s", method=method, space=space), {}, summary_with(**summary), tuple(records))


def a_search(count: int = 24, seed: int = 0, **changes: Any) -> Results:
    """Trials drawn from the whole space; a third are pruned at their second rung."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(count):
        u = generator.random(4)
        drawn = {
            "lr": 10 ** (-4 + np.log10(50) * u[0]),
            "dropout": 0.8 * u[1],
            "lambda_max": 10 ** (-2 + np.log10(300) * u[2]),
            "margin": 10 ** (-1 + 2 * u[3]),
            "scaling": ("none", "standard")[number % 2],
        }
        pruned = number % 3 == 2
        records.append(
            a_trial(number, 0.5 + 0.2 * u[3], 2 if pruned else RUNGS, "pruned" if pruned else "complete", **drawn)
        )
    return a_study(records, **changes)


def laid_out(figure: Figure) -> bool:
    """Whether a figure can be drawn: what matplotlib cannot draw, a formula of the user's say, shows only then."""
    with styled():
        figure.draw_without_rendering()
    return True


def pictures(found: Section | None) -> list[str]:
    """Keys of the pictures of a section."""
    assert found is not None
    return [item.key for item in found.items if isinstance(item, Picture)]


class TestTrials:
    def test_the_best_so_far_counts_complete_trials_alone(self) -> None:
        records = [a_trial(0, 0.5), a_trial(1, 0.9, 3, "pruned"), a_trial(2, 0.4), a_trial(3, 0.7), a_trial(4, 0.6)]
        frame = trials(a_study(records[::-1]))
        assert frame["trial"].tolist() == [0, 1, 2, 3, 4]
        assert frame["best so far"].tolist() == [0.5, 0.5, 0.5, 0.7, 0.7]
        assert frame["winner"].tolist() == [True, False, False, False, False]

    def test_no_best_before_a_trial_completes(self) -> None:
        frame = trials(a_study([a_trial(0, 0.9, 3, "pruned"), a_trial(1, 0.4)]))
        assert np.isnan(frame["best so far"].iloc[0])
        assert frame["best so far"].iloc[1] == 0.4

    def test_scores_with_new_seeds_stand_beside_their_trials(self) -> None:
        again = {"1": {"score": 0.65, "folds": {}}}
        frame = trials(a_study([a_trial(0, 0.5), a_trial(1, 0.7)], confirmed=again))
        assert np.isnan(frame["scored again"].iloc[0])
        assert frame["scored again"].iloc[1] == 0.65

    def test_what_is_not_finished_or_not_searched_is_not_told(self) -> None:
        frame = trials(a_study([a_trial(0, 0.5), TrialRecord(1, "running"), TrialRecord(2, "waiting")]))
        assert frame["trial"].tolist() == [0]
        assert {"lr", "dropout", "scaling", "lambda_max", "margin"} <= set(frame)
        assert not {"hidden", "latent", "pairing"} & set(frame)

    def test_a_setting_that_a_trial_did_not_draw_has_no_value(self) -> None:
        space = {**SPACE, "schedule": ["constant", "sigmoid"]}
        settings = {**BASE, "gamma": 10.0}
        records = [
            replace(a_trial(n, 0.5), settings={**settings, "schedule": s})
            for n, s in enumerate(["constant", "sigmoid"])
        ]
        assert trials(a_study(records, space=space))["gamma"].isna().tolist() == [True, False]


class TestAxis:
    def test_places_are_on_the_scale_of_the_draw(self) -> None:
        log, even = Axis("margin", Real(0.1, 10.0, log=True)), Axis("dropout", Real(0.0, 0.8))
        np.testing.assert_allclose(log.places([0.1, 1.0, 10.0]), [0.0, 0.5, 1.0])
        np.testing.assert_allclose(even.places([0.0, 0.2, None]), [0.0, 0.25, np.nan])
        np.testing.assert_allclose(Axis("hidden", Whole(2, 32, log=True)).places([2, 8, 32]), [0.0, 0.5, 1.0])
        choice = Axis("scaling", Choice(("none", "sqrt", "standard")))
        np.testing.assert_allclose(choice.places(["standard", None, "none"]), [1.0, np.nan, 0.0])

    @pytest.mark.parametrize(
        ("dimension", "words"),
        [
            (Real(0.1, 10.0, log=True), ["0.1", "1", "10"]),
            (Real(0.02, 0.4, log=True), ["0.03", "0.1", "0.3"]),
            (Real(0.03, 0.3, log=True), ["0.03", "0.1", "0.3"]),
            (Real(0.21, 0.22, log=True), ["0.21", "0.22"]),
            (Whole(40, 60, log=True), ["40", "50", "60"]),
            (Real(0.0, 0.8), ["0", "0.2", "0.4", "0.6", "0.8"]),
            (Choice((False, True)), ["False", "True"]),
        ],
    )
    def test_ticks_are_round_and_inside(self, dimension: Real | Whole | Choice, words: list[str]) -> None:
        places, written = Axis("x", dimension).ticks()
        assert written == words
        assert min(places) >= 0.0
        assert max(places) <= 1.0

    def test_what_is_fixed_or_never_drawn_has_no_axis(self) -> None:
        names = [axis.name for axis in axes(a_study([a_trial(0, 0.5)]))]
        assert sorted(names) == ["dropout", "lambda_max", "lr", "margin", "scaling"]


class TestSurvival:
    def test_by_hand(self) -> None:
        """Two complete, one pruned at rung 1, one at 3, one failed on its way to rung 3, one before any."""
        records = [
            a_trial(0, 0.8), a_trial(1, 0.4), a_trial(2, 0.1, 1, "pruned"), a_trial(3, 0.6, 3, "pruned"),
            a_trial(4, 0.2, 2, "fail"), TrialRecord(5, "fail"),
        ]  # fmt: skip
        frame = survival(a_study(records))
        assert frame["reached"].tolist() == [5, 4, 3, 2, 2, 2, 2, 2]
        assert frame["pruned"].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
        assert frame["failed"].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
        # At rung 3 of 8: 0.3, 0.15, and 0.6 of the one pruned there.
        assert frame["median score"].iloc[2] == pytest.approx(0.3)
        assert frame["median score"].iloc[7] == pytest.approx(0.6)

    def test_whoever_reaches_a_rung_leaves_or_reaches_the_next(self) -> None:
        frame = survival(a_search())
        left = frame["reached"] - frame["pruned"]
        assert (left.to_numpy()[:-1] - frame["failed"].to_numpy()[1:]).tolist() == frame["reached"].tolist()[1:]

    def test_counts_agree_with_the_scores_by_rung(self) -> None:
        results = a_search()
        counts = rungs(results).groupby("rung").size()
        assert counts.tolist() == survival(results)["reached"].tolist()


class TestCurves:
    def test_one_row_per_epoch_and_no_adversary_for_nn(self) -> None:
        records = [a_trial(0, 0.8), a_trial(1, 0.5, 3, "pruned"), TrialRecord(2, "fail")]
        frame = curves(a_study(records))
        assert frame.groupby("trial").size().to_dict() == {0: RUNGS, 1: 3}
        assert list(frame.columns) == ["trial", "state", "epoch", "label loss", "domain loss", "lambda"]
        assert list(curves(a_study(records, "nn")).columns) == ["trial", "state", "epoch", "label loss"]


def additive(weights: Mapping[str, float], count: int = 150) -> Results:
    """Complete trials whose score is a weighted sum of the places of their settings."""
    study = a_search(count)
    searched = {axis.name: axis for axis in axes(study)}
    records = []
    for record in study.records:
        score = sum(weight * searched[name].places([record.settings[name]])[0] for name, weight in weights.items())
        records.append(replace(record, state="complete", value=float(score), steps={RUNGS: float(score)}))
    return replace(study, records=tuple(records))


class TestImportances:
    def test_of_a_sum_they_are_the_shares_of_its_variance(self) -> None:
        """Var(2u + v) = (4 + 1) / 12 for independent u and v, uniform on 0 to 1: shares 0.8 and 0.2."""
        frame, words = importances(additive({"margin": 2.0, "dropout": 1.0}))
        found = frame.set_index("setting")["importance"]
        assert found.index[:2].tolist() == ["margin", "dropout"]
        assert found["margin"] == pytest.approx(0.8, abs=0.06)
        assert found["dropout"] == pytest.approx(0.2, abs=0.06)
        assert found.drop(["margin", "dropout"]).max() < 0.02
        assert "150 complete trials" in words
        assert "relied on" in words

    def test_a_choice_counts_as_a_range_does(self) -> None:
        """A fair choice of 0 and 1 has three times the variance of a uniform number: shares 0.75 and 0.25."""
        found = importances(additive({"scaling": 1.0, "lr": 1.0}))[0].set_index("setting")["importance"]
        assert found["scaling"] == pytest.approx(0.75, abs=0.06)
        assert found["lr"] == pytest.approx(0.25, abs=0.06)

    def test_the_same_every_time(self) -> None:
        first, second = importances(a_search())[0], importances(a_search())[0]
        pd.testing.assert_frame_equal(first, second)

    def test_scores_by_chance_are_not_to_be_believed(self) -> None:
        study = a_search(40)
        scores = np.random.default_rng(1).random(40).tolist()
        records = [
            replace(one, value=value, state="complete") for one, value in zip(study.records, scores, strict=True)
        ]
        assert "next to nothing" in importances(replace(study, records=tuple(records)))[1]

    @pytest.mark.parametrize(
        ("records", "reason"),
        [
            ([a_trial(n, 0.5 + n / 100) for n in range(9)], r"too few complete trials \(9\)"),
            ([a_trial(n, 0.5, 3, "pruned") for n in range(30)], r"too few complete trials \(0\)"),
            ([], r"too few complete trials \(0\)"),
            ([a_trial(n, 0.7, dropout=n / 20) for n in range(12)], "do not differ in score"),
            ([a_trial(n, n / 20) for n in range(12)], "do not differ in their settings"),
        ],
    )
    def test_where_there_are_none_it_says_why(self, records: list[TrialRecord], reason: str) -> None:
        frame, words = importances(a_study(records))
        assert frame.empty
        assert pd.Series([words]).str.contains(reason).all()

    def test_neither_conditional_settings_nor_trials_outside_the_space(self) -> None:
        study = a_search(space={**SPACE, "schedule": ["constant", "sigmoid"]})
        some = [
            replace(one, settings={**one.settings, "schedule": "sigmoid", "gamma": 5.0 + one.number})
            for one in study.records[:12]
        ]
        study = replace(study, records=(*some, *study.records[12:]))
        outside = replace(a_trial(99, 0.99, lr=0.5), origin="reference")
        with_one = replace(study, records=(*study.records, outside))
        frame = importances(with_one)[0]
        assert "gamma" in trials(with_one)
        assert "schedule" in set(frame["setting"])
        assert "gamma" not in set(frame["setting"])
        pd.testing.assert_frame_equal(frame, importances(study)[0])
        assert 99 in set(trials(with_one)["trial"])
        assert 99 not in set(of_the_space(trials(with_one))["trial"])


class TestProtocols:
    def test_regret_is_what_was_lost_against_the_oracle(self) -> None:
        frame = protocols.protocols(a_study([], test=0.6)).set_index("model")
        assert frame["regret"].round(6).to_dict() == {
            "leave-one-domain-out": 0.15,
            "training-domain": 0.25,
            "test-domain oracle": 0.0,
            "mean of 10 final seeds": 0.15,
            "final seed picked by validation": 0.14,
            "ensemble of 10 final seeds": 0.13,
            "best of 10 final seeds": 0.1,
        }

    def test_what_saw_test_labels_is_marked_and_nothing_of_it_is_used(self) -> None:
        frame = protocols.protocols(a_study([])).set_index("model")
        assert frame.index[frame["oracle"]].tolist() == ["test-domain oracle", "best of 10 final seeds"]
        assert frame.index[frame["used"]].tolist() == ["leave-one-domain-out", "ensemble of 10 final seeds"]
        assert np.isnan(frame.loc["test-domain oracle", "selection score"])

    def test_a_single_model_and_another_selection_are_marked_as_used(self) -> None:
        frame = protocols.protocols(a_study([], selection="training-domain", model={"kind": "single"}))
        assert frame.loc[frame["used"], "model"].tolist() == ["training-domain", "final seed picked by validation"]

    def test_without_test_cells_there_is_a_table_and_no_picture(self) -> None:
        study = a_study([a_trial(0, 0.5)], test=None)
        assert protocols.protocols(study)["regret"].isna().all()
        assert protocols.draw(study) is None
        (table,) = protocols.items(study)
        assert isinstance(table, Table)
        assert "no oracle" in table.caption

    def test_one_final_seed_has_no_spread(self) -> None:
        part = {name: {**final(0.6)[name], "std": None} for name in METRICS}
        study = a_study([], final={"seeds": [100], "test": {**final(0.6), **part}}, test=None)
        assert protocols.protocols(study)["standard deviation"].isna().all()
        figure = protocols.draw(study)
        assert figure is not None
        assert laid_out(figure)

    def test_regrets_of_several_searches(self) -> None:
        studies = [a_study([]), a_study([], "dann"), a_study([], test=None), best_of_ten("scdgn")]
        frame = protocols.regrets(studies)
        assert frame.groupby("method").size().to_dict() == {"dann": 2, "scdgn": 2}
        assert frame["regret"].round(6).tolist() == [0.15, 0.25] * 2
        found = protocols.section(studies)
        assert pictures(found) == ["regrets"]
        assert protocols.section(studies[:1]) is None
        assert protocols.section([]) is None


def best_of_ten(method: Method, **changes: float) -> Results:
    runs = [
        {"seed": 100 + n, "margin": 1.0 + n, "lambda_max": 0.1 * (n + 1), "accuracy": 0.5 + (n == 3) / 10, **changes}
        for n in range(10)
    ]
    data = {"test_batches": ["t"]}
    summary = summary_with(protocol="seed-best-of-10", method=method, data=data, runs=runs, best_oracle=runs[3])
    return Results("ten", StudySettings("ten", method=method), {}, summary, ())


class TestBestOfTen:
    @pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
    def test_the_best_is_said_to_be_an_oracles(self, method: Method) -> None:
        found = section(best_of_ten(method))
        assert pictures(found) == ["best-of-ten"]
        assert found is not None
        picture, table = found.items
        assert isinstance(picture, Picture)
        assert laid_out(picture.figure)
        assert "chosen by the test labels" in picture.caption
        assert "0.600; the mean is 0.510" in picture.caption
        assert isinstance(table, Table)
        assert table.frame.loc[table.frame["best (oracle)"], "seed"].tolist() == [103]

    def test_a_lambda_of_zero_has_no_logarithm(self) -> None:
        assert pictures(section(best_of_ten("dann", lambda_max=0.0))) == ["best-of-ten"]


ALL = ["search-history", "search-learning", "search-settings", "search-lambda", "search-parallel", "protocols"]


class TestSection:
    def test_pictures_tables_and_nothing_of_the_user_is_taken_for_a_formula(self) -> None:
        found = section(a_search(confirmed={"0": {"score": 0.6, "folds": {}}}))
        assert pictures(found) == ALL
        assert found is not None
        assert all(laid_out(item.figure) for item in found.items if isinstance(item, Picture))
        tables = [item.key for item in found.items if isinstance(item, Table)]
        assert tables == ["trials", "rungs", "search-curves", "importances", "protocols"]

    def test_nn_has_no_adversary_to_show(self) -> None:
        found = pictures(section(a_search(method="nn")))
        assert found == [key for key in ALL if key != "search-lambda"]

    def test_dann_has_a_lambda_and_no_contour(self) -> None:
        figure = draw_margin_lambda(a_search(method="dann"))
        assert figure is not None
        assert [ax.get_xlabel() for ax in figure.axes] == ["lambda_max"]

    def test_scdgn_has_both_and_a_contour(self) -> None:
        figure = draw_margin_lambda(a_search())
        assert figure is not None
        assert [ax.get_xlabel() for ax in figure.axes] == ["lambda_max", "margin", "margin", ""]
        assert len(figure.axes[2].collections) == 4  # the surface, complete trials, pruned ones, the winner

    def test_a_fixed_margin_leaves_lambda(self) -> None:
        figure = draw_margin_lambda(a_search(space={**SPACE, "margin": 1.0}))
        assert figure is not None
        assert [ax.get_xlabel() for ax in figure.axes] == ["lambda_max"]

    def test_without_trials_it_says_so(self) -> None:
        found = section(a_study([]))
        assert found is not None
        assert isinstance(found.items[0], Text)
        assert pictures(found) == ["protocols"]

    def test_one_trial(self) -> None:
        assert pictures(section(a_study([a_trial(0, 0.5)]))) == ["search-history", "search-learning", "protocols"]

    def test_no_importances_are_explained(self) -> None:
        found = section(a_search(12))
        assert found is not None
        caption = next(
            item.caption for item in found.items if isinstance(item, Picture) and item.key == "search-settings"
        )
        assert "too few complete trials (8)" in caption

    @pytest.mark.parametrize(
        "changes",
        [
            {"value": 0.5},  # all scores the same
            {"curves": {}, "steps": {}},  # nothing known of their course
            {"settings": {**BASE}},  # all settings the same, all points of the contour in one place
        ],
    )
    def test_trials_that_are_alike(self, changes: dict[str, Any]) -> None:
        study = a_search()
        records = tuple(replace(one, **changes) for one in study.records)
        assert "search-history" in pictures(section(replace(study, records=records)))

    def test_points_on_a_line_have_no_surface(self) -> None:
        records = [a_trial(n, 0.5 + n / 50, margin=0.1 * 1.5**n) for n in range(11)]
        figure = draw_margin_lambda(a_study(records))
        assert figure is not None
        assert laid_out(figure)

    def test_failed_and_unfinished_trials_and_those_outside_the_space(self) -> None:
        study = a_search()
        more = (
            TrialRecord(50, "fail", reason="x"),
            a_trial(51, 0.3, 2, "fail"),
            TrialRecord(52, "running", BASE),
            replace(a_trial(53, 0.6, lr=0.5), origin="reference", settings={**BASE, "lr": 0.5, "scaling": "else"}),
        )
        assert pictures(section(replace(study, records=study.records + more))) == ALL

    def test_every_setting_fixed(self) -> None:
        space = {**SPACE, "lr": 1e-3, "dropout": 0.4, "scaling": "none", "lambda_max": 0.1, "margin": 1.0}
        records = [a_trial(n, 0.5 + n / 50) for n in range(12)]
        assert pictures(section(a_study(records, space=space))) == ["search-history", "search-learning", "protocols"]

    def test_numbers_as_choices(self) -> None:
        space = {**SPACE, "margin": [0.5, 1.0, 2.0], "lambda_max": [0.1, 1.0]}
        records = [
            a_trial(n, 0.5 + n / 50, margin=[0.5, 1.0, 2.0][n % 3], lambda_max=[0.1, 1.0][n % 2]) for n in range(12)
        ]
        study = a_study(records, space=space)
        assert pictures(section(study)) == ALL
        figure = draw_margin_lambda(study)
        assert figure is not None
        assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0.5", "1", "2"]

    def test_the_lines_of_hundreds_of_trials_are_pixels(self) -> None:
        none = pd.DataFrame({"setting": []})
        for count, pixels in ((20, False), (search_figures.MANY + 1, True)):
            study = a_search(count)
            for figure in (draw_learning(study), draw_parallel(study, none)):
                assert figure is not None
                faded = [ax.collections[0].get_rasterized() for ax in figure.axes[:1]]
                assert faded == [pixels]


def test_trials_far_below_the_others_stay_in_the_picture() -> None:
    records = [a_trial(n, 0.7 + n / 1000) for n in range(11)] + [a_trial(11, 0.1)]
    ax = draw_history(a_study(records)).axes[0]
    points = [np.asarray(one.get_offsets()) for one in ax.collections if isinstance(one, PathCollection)]
    heights = np.concatenate(points)[:, 1]
    assert len(heights) == 13  # the winner twice: as a point and as a star
    assert heights.min() >= ax.get_ylim()[0]
    assert ax.get_ylim()[0] > 0.5


def test_parallel_coordinates_begin_with_the_methods_own_settings_and_go_on_with_the_most_important() -> None:
    found = pd.DataFrame({"setting": ["margin", "dropout", "lr"], "importance": [0.5, 0.3, 0.1]})
    figure = draw_parallel(a_search(), found)
    assert figure is not None
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[-1] == "macro-F1" and set(labels[:2]) == {"margin", "lambda_max"}  # those that NN lacks
    assert labels[2:4] == ["dropout", "lr"]


def test_the_winner_is_strong_and_the_pruned_are_faded() -> None:
    figure = draw_learning(a_search())
    ax = figure.axes[0]
    (winner,) = ax.lines
    assert winner.get_color() == search_figures.WINNER
    faint = {lines.get_alpha() for lines in ax.collections if lines.get_alpha()}
    assert len(faint) > 1

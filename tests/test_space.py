"""The search space: what is drawn, under which condition, and what a user may change of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast, get_args

import optuna
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial

from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.core.config import Method, Settings, preset
from scdgn.errors import SettingsError
from scdgn.search.study.portfolio import PORTFOLIO
from scdgn.search.study.space import PUBLISHED, Choice, Fixed, Real, Space, Whole, describe

METHODS: tuple[Method, ...] = get_args(Method)
EVERYONE = {
    "hidden", "latent", "epochs", "lr", "weight_decay", "dropout", "class_weights", "balance_domains", "scaling",
    "gene_selection", "shift_probability",
}  # fmt: skip
ADVERSARY = EVERYONE | {"domain_code", "lambda_max", "lambda_enters", "schedule"}
SOMETIMES = {"gamma", "warmup", "pseudo_confidence", "markers_per_type", "shift_relabel"}
ALWAYS: dict[Method, set[str]] = {"nn": EVERYONE, "dann": ADVERSARY, "scdgn": ADVERSARY | {"margin", "pairing"}}


class Drawn:
    """As much of a trial as a space needs: it answers with what hypothesis chooses, and remembers what it was asked."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.asked: dict[str, object] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        assert low <= high and not (log and low <= 0)
        return self._draw(name, st.floats(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        assert low <= high and not (log and low < 1)
        return self._draw(name, st.integers(low, high))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._draw(name, st.sampled_from(choices))

    def _draw(self, name: str, values: st.SearchStrategy[Any]) -> Any:
        assert name not in self.asked, f"{name} is drawn twice"
        self.asked[name] = self._data.draw(values, label=name)
        return self.asked[name]


def drawn_from(space: Space, seed: int = 0) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """What the space gives for a trial, and what Optuna was asked for."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return space.suggest(trial), trial.distributions


@given(st.data(), st.sampled_from(METHODS))
@hypothesis_settings(max_examples=100, deadline=None)
def test_whatever_is_drawn_is_valid_and_concerns_the_method(data: st.DataObject, method: Method) -> None:
    trial = Drawn(data)
    space = Space.of(method, {})
    drawn = space.suggest(cast(BaseTrial, trial))
    settings, preprocess = space.settings(drawn)
    for name, value in drawn.items():
        assert getattr(settings if hasattr(settings, name) else preprocess, name) == value
    assert settings.method == method

    expected = set(ALWAYS[method])
    if method != "nn":
        if drawn["schedule"] == "sigmoid":
            expected.add("gamma")
        if drawn["schedule"] in ("linear", "cosine"):
            expected.add("warmup")
    if drawn["gene_selection"] == "markers":
        expected.add("markers_per_type")
    if method != "nn" and drawn["shift_probability"]:
        expected.add("shift_relabel")
    assert set(drawn) == expected
    fixed = set()
    if drawn.get("pairing") == "epoch":  # no cell moves after its pair was drawn
        assert drawn["shift_probability"] == 0.0
        fixed.add("shift_probability")
    assert set(trial.asked) == expected - fixed


def test_what_is_not_drawn_is_the_preset() -> None:
    for method in METHODS:
        space = Space.of(method, {})
        settings, preprocess = space.settings({})
        assert settings == preset("default", method) and preprocess == INPUT_PRESETS["default"]


def test_fix_narrow_widen_choose_and_add() -> None:
    space = Space.of(
        "scdgn",
        {
            "latent": 32,
            "hidden": {"low": 64, "high": 128},
            "margin": {"low": 0.01, "high": 100.0, "log": True},
            "dropout": [0.0, 0.5],
            "batch_size": [32, 64],
            "n_top_genes": {"low": 500, "high": 2000, "log": True},
            "gene_selection": ["variable", "markers"],
            "markers_per_type": [25, 50],
            "clip_norm": 5,
        },
    )
    dimensions = space.dimensions()
    assert dimensions["latent"] == Fixed(32)
    assert dimensions["hidden"] == Whole(64, 128)
    assert dimensions["margin"] == Real(0.01, 100.0, log=True)
    assert dimensions["dropout"] == Choice((0.0, 0.5))
    assert dimensions["lr"] == Space.of("scdgn", {}).dimensions()["lr"]
    for seed in range(5):
        drawn, asked = drawn_from(space, seed)
        settings, preprocess = space.settings(drawn)
        assert settings.latent == 32 and "latent" not in asked
        assert 64 <= settings.hidden <= 128
        assert settings.dropout in (0.0, 0.5)
        assert settings.batch_size in (32, 64) and "batch_size" in asked
        assert ("n_top_genes" in drawn) == (preprocess.gene_selection == "variable")
        assert 500 <= drawn.get("n_top_genes", 500) <= 2000
        assert preprocess.gene_selection == drawn["gene_selection"]
        assert ("markers_per_type" in drawn) == (preprocess.gene_selection == "markers")
        assert drawn.get("markers_per_type") in (None, 25, 50)
        assert settings.clip_norm == 5.0 and "clip_norm" not in asked


def test_a_changed_setting_is_drawn_under_its_condition_still() -> None:
    space = Space.of("scdgn", {"gamma": [5.0, 10.0], "warmup": 0.25, "schedule": ["sigmoid", "linear"]})
    found = set()
    for seed in range(8):
        drawn, _ = drawn_from(space, seed)
        found.add(drawn["schedule"])
        assert ("gamma" in drawn) == (drawn["schedule"] == "sigmoid")
        assert ("warmup" in drawn) == (drawn["schedule"] == "linear")
        if drawn["schedule"] == "linear":
            assert space.settings(drawn)[0].warmup == 0.25
    assert found == {"sigmoid", "linear"}


def test_a_condition_that_is_fixed_decides_for_all_trials() -> None:
    for schedule, wanted in (("sigmoid", {"gamma"}), ("cosine", {"warmup"}), ("constant", set())):
        drawn, _ = drawn_from(Space.of("dann", {"schedule": schedule}))
        assert set(drawn) & SOMETIMES & {"gamma", "warmup"} == wanted


def test_a_range_of_one_value_is_fixed() -> None:
    assert Space.of("nn", {"hidden": {"low": 8, "high": 8}}).dimensions()["hidden"] == Fixed(8)
    assert Space.of("nn", {"scaling": ["none"]}).dimensions()["scaling"] == Fixed("none")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hiden": 8}, "'hiden', which is no setting to search: did you mean hidden"),
        ({"method": "nn"}, "'method', which is no setting to search: use --method"),
        ({"hidden": 0}, "hidden is 0: give a value of at least 1"),
        ({"hidden": 8.5}, "hidden is 8.5: give a whole number"),
        ({"hidden": True}, "hidden is True: give a whole number"),
        ({"hidden": [8, "wide"]}, "hidden is 'wide': give a whole number"),
        ({"hidden": []}, "hidden has no values to choose from"),
        ({"hidden": {"low": 8}}, "hidden = {'low': 8} is no range"),
        ({"hidden": {"low": 8, "hgh": 16}}, "hidden has 'hgh' beside low, high and log"),
        ({"hidden": {"low": 16, "high": 8}}, "hidden has low 16 above high 8: exchange them"),
        ({"hidden": {"low": 8.5, "high": 16}}, "hidden is 8.5: give a whole number"),
        ({"hidden": {"low": 8, "high": 16, "log": "yes"}}, "is no range"),
        ({"dropout": {"low": 0.0, "high": 1.5}}, "dropout is 1.5: give a value of at least 0 and at most 0.95"),
        ({"dropout": {"low": 0.0, "high": 0.5, "log": True}}, "dropout has low 0.0 on a logarithmic scale"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": {"low": 0.1, "high": float("inf")}}, "lr is inf"),
        ({"schedule": {"low": 0, "high": 1}}, "schedule has choices, not a range"),
        ({"balance_domains": {"low": 0, "high": 1}}, "balance_domains has choices, not a range"),
        ({"schedule": ["constant", "step"]}, "schedule is 'step': choose one of"),
        ({"balance_domains": 1}, "balance_domains is 1: give true or false"),
        ({"scaling": "minmax"}, "scaling is 'minmax'"),
    ],
)
def test_a_change_that_is_wrong(change: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Space.of("scdgn", change)
    (fault,) = caught.value.faults
    assert told in fault


def test_every_fault_is_told_at_once() -> None:
    wrong = {"hiden": 8, "latent": 0, "dropout": [0.5, 2.0, "much"], "lr": {"low": 1, "high": 0}, "epochs": 10}
    with pytest.raises(SettingsError) as caught:
        Space.of("scdgn", wrong)
    assert len(caught.value.faults) == 5


def test_a_change_that_does_not_concern_the_method_is_left_out() -> None:
    """One file serves all methods."""
    changes: dict[str, object] = {"margin": 2.0, "lambda_max": 0.1, "hidden": 8}
    nn, dann, scdgn = (Space.of(method, changes) for method in METHODS)
    assert (set(nn.changes), nn.left_out) == ({"hidden"}, ("lambda_max", "margin"))
    assert (set(dann.changes), dann.left_out) == ({"hidden", "lambda_max"}, ("margin",))
    assert (set(scdgn.changes), scdgn.left_out) == (set(changes), ())
    assert nn.written == {"hidden": 8}
    for method in METHODS:  # what is wrong is wrong for all of them
        with pytest.raises(SettingsError, match="margin is -1"):
            Space.of(method, {"margin": -1})


@pytest.mark.parametrize("name", ["query_weight", "pseudo_confidence"])
def test_a_search_has_no_cells_without_a_label_to_weigh(name: str) -> None:
    with pytest.raises(SettingsError, match=f"names {name}, of cells without a label, and a search trains on none"):
        Space.of("scdgn", {name: 0.5})


@pytest.mark.parametrize("method", METHODS)
def test_the_published_settings_are_in_the_default_space(method: Method) -> None:
    space = Space.of(method, {})
    draws, reasons = space.published()
    assert reasons == []
    settings, _ = space.settings(space.suggest(FixedTrial(draws)))
    for name, value in PUBLISHED.items():
        if name in space.dimensions():
            assert getattr(settings, name) == value
    base = preset("default", method)
    assert (settings.lr, settings.epochs, settings.dropout) == (base.lr, base.epochs, base.dropout)
    assert not settings.uses_unlabeled


@pytest.mark.parametrize("method", METHODS)
def test_the_preset_is_a_point_of_the_default_space(method: Method) -> None:
    space = Space.of(method, {})
    settings = space.settings(space.suggest(FixedTrial(space.presets())))
    assert settings == (preset("default", method), INPUT_PRESETS["default"])


def test_a_space_without_the_preset_does_not_start_from_it() -> None:
    assert Space.of("nn", {"hidden": 8}).presets() == {}
    assert Space.of("scdgn", {"margin": {"low": 0.1, "high": 1.0}}).presets() == {}


def test_a_start_comes_as_near_as_the_space_allows() -> None:
    start = {"hidden": 128, "lr": 0.001, "dropout": 0.2, "scaling": "standard", "shift_probability": 0.5}
    space = Space.of("nn", {"hidden": {"low": 8, "high": 64}, "lr": 0.01, "scaling": ["none"]})
    draws = space.start(start)
    assert draws["hidden"] == 64 and draws["dropout"] == 0.2 and draws["shift_probability"] == 0.5
    assert not {"lr", "scaling"} & set(draws)  # fixed
    assert space.settings(space.suggest(FixedTrial(draws)))[0].lr == 0.01
    other = Space.of("nn", {"class_weights": ["none", "sqrt"]}).start({"class_weights": "balanced"})
    assert "class_weights" not in other  # the sampler's
    whole = Space.of("scdgn", {})
    settings, _ = whole.settings(whole.suggest(FixedTrial(whole.start({**start, "shift_relabel": True}))))
    assert settings.shifts == (0.5, 0.7, True) and settings.hidden == 128


def test_cells_that_move_and_pairs_that_were_drawn_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="set pairing to 'batch', or shift_probability to 0"):
        Space.of("scdgn", {"pairing": "epoch", "shift_probability": 0.5})
    Space.of("scdgn", {"pairing": "epoch", "shift_probability": [0.0, 0.5]})
    drawn, _ = drawn_from(Space.of("scdgn", {"pairing": "epoch"}))
    assert drawn["shift_probability"] == 0.0


def test_the_published_settings_are_told_where_the_space_does_not_hold_them() -> None:
    space = Space.of("scdgn", {"hidden": {"low": 8, "high": 64}, "schedule": "linear", "lambda_max": [0.3, 1.0]})
    _, reasons = space.published()
    assert len(reasons) == 3
    assert "hidden = 1136 is outside 8 to 64" in reasons
    assert "schedule = 'constant' is outside 'linear' (fixed)" in reasons
    assert "lambda_max = 0.1 is outside 0.3 or 1.0" in reasons


def test_other_settings_do_not_keep_the_published_ones_out() -> None:
    space = Space.of("scdgn", {"epochs": 8, "lr": {"low": 1e-2, "high": 1e-1}, "schedule": "constant"})
    draws, reasons = space.published()
    assert reasons == []
    assert draws["hidden"] == 1136 and "lr" not in draws and "epochs" not in draws  # lr is the sampler's


def test_settings_to_enqueue() -> None:
    space = Space.of("dann", {"latent": 32})
    draws, reasons = space.complete({"hidden": 64, "latent": 32, "margin": 2.0, "batch_size": 64})
    # 32 is fixed, 64 is the preset's, and a margin is scdgn's business: one file serves all methods
    assert draws == {"hidden": 64} and reasons == []
    _, reasons = space.complete({"hidden": 5, "latent": 16, "hiden": 1, "batch_size": 32, "scaling": "minmax"})
    assert reasons[0] == "hidden = 5 is outside 32 to 1136 (log)"
    assert reasons[1] == "latent = 16 is outside 32 (fixed)"
    assert "'hiden' is no setting: did you mean hidden" in reasons[2]
    assert reasons[3] == "batch_size is not searched and is 64, not 32"
    assert reasons[4] == "scaling = 'minmax' is outside none or standard"


@pytest.mark.parametrize(
    "wrong",
    [{"balance_domains": 1}, {"balance_domains": 0.0}, {"hidden": True}, {"hidden": "64"}, {"dropout": True}],
)
def test_a_value_to_enqueue_of_another_kind(wrong: dict[str, object]) -> None:
    _, reasons = Space.of("nn", {}).complete(wrong)
    assert len(reasons) == 1


@pytest.mark.parametrize("change", [0, 1.0, "0"])
def test_a_fixed_value_holds_no_other_kind(change: object) -> None:
    assert not Fixed(True).holds(change)
    assert not Fixed(False).holds(change)


def test_a_number_is_a_number() -> None:
    assert Fixed(1.0).holds(1) and Choice((0.0, 1.0)).holds(1) and Real(0.0, 1.0).holds(1)
    assert not Real(0.0, 1.0).holds(True) and not Whole(0, 1).holds(True) and not Choice((0.0, 1.0)).holds(True)


def test_dimensions_in_words() -> None:
    assert describe(Fixed("batch")) == "'batch' (fixed)"
    assert describe(Choice((True, False))) == "True or False"
    assert describe(Real(1e-4, 0.5, log=True)) == "0.0001 to 0.5 (log)"
    assert describe(Whole(8, 16)) == "8 to 16"


def test_every_setting_named_in_a_space_is_one() -> None:
    known = {*asdict(Settings()), *asdict(PreprocessSettings())}
    for method in METHODS:
        assert set(Space.of(method, {}).dimensions()) <= known


@pytest.mark.parametrize("method", METHODS)
def test_every_entry_of_the_portfolio_is_a_point_of_the_default_space(method: Method) -> None:
    space = Space.of(method, {})
    for entry in PORTFOLIO[method]:
        settings, preprocess = space.settings(space.suggest(FixedTrial(space.start(entry))))
        for name, value in entry.items():
            assert getattr(settings if hasattr(settings, name) else preprocess, name) == value

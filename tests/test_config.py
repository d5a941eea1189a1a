"""Settings: every fault at once, and back and forth between mappings."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scdgn.core.config import PRESETS, Method, Settings, preset
from scdgn.errors import ScdgnError, SettingsError
from tests.conftest import shared_file


def faults(**values: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping(values)
    return caught.value.faults


def test_every_fault_is_reported_at_once_with_key_value_and_remedy() -> None:
    found = faults(
        hiden=64, method="svm", lr=-1.0, epochs=2.5, dropout=0.99, balance_domains=1, margin="wide", gamma=float("nan")
    )
    expected = {
        "hiden": "did you mean hidden",
        "method": "choose one of nn, dann, scdgn",
        "lr": "at least 0",
        "epochs": "a whole number",
        "dropout": "at most 0.95",
        "balance_domains": "true or false",
        "margin": "a number",
        "gamma": "give a value",
    }
    assert len(found) == len(expected)
    for key, remedy in expected.items():
        (fault,) = (fault for fault in found if key in fault.split(":")[0])
        assert remedy in fault
    assert "'svm'" in " ".join(found) and "-1" in " ".join(found)


def test_the_constructor_refuses_what_a_mapping_may_not_hold() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(lr=-1.0, warmup=2.0)
    assert len(caught.value.faults) == 2
    assert isinstance(caught.value, ScdgnError)
    with pytest.raises(SettingsError):
        replace(Settings(), batch_size=1)


@pytest.mark.parametrize("value", [True, "3", None, [3], 3.0])
def test_a_whole_number_is_nothing_else(value: object) -> None:
    (fault,) = faults(hidden=value)
    assert fault.startswith(f"hidden is {value!r}")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), True, "1"])
def test_a_number_is_finite(value: object) -> None:
    (fault,) = faults(margin=value)
    assert fault.startswith("margin is")


def test_whole_numbers_are_numbers_and_bounds_are_allowed() -> None:
    chosen = Settings.from_mapping({"lambda_max": 1, "margin": 0, "dropout": 0.95, "warmup": 1, "pseudo_confidence": 1})
    assert (chosen.lambda_max, chosen.margin, chosen.warmup) == (1, 0, 1)


@pytest.mark.parametrize("pairing", ["published", "epoch", "unconditional"])
def test_unlabelled_cells_of_scdgn_need_pairs_inside_the_mini_batch(pairing: str) -> None:
    (fault,) = faults(method="scdgn", query_weight=0.5, pairing=pairing)
    assert pairing in fault and "'batch'" in fault and "query_weight" in fault
    assert Settings.from_mapping({"method": "scdgn", "query_weight": 0.5, "pairing": "batch"}).uses_unlabeled
    assert Settings.from_mapping({"method": "dann", "query_weight": 0.5, "pairing": pairing}).uses_unlabeled


def test_unlabelled_cells_take_no_part_without_weight_or_adversary() -> None:
    assert not Settings(method="scdgn", query_weight=0).uses_unlabeled
    assert not Settings(method="nn", query_weight=1).uses_unlabeled


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Settings,
        method=st.sampled_from(["nn", "dann", "scdgn"]),
        hidden=st.integers(1, 5000),
        margin=st.floats(0, 100),
        lr=st.floats(0, 1),
        balance_domains=st.booleans(),
    )
)
def test_settings_survive_json(settings: Settings) -> None:
    assert Settings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings


def test_what_a_mapping_does_not_give_comes_from_the_base() -> None:
    base = preset("reference")
    assert Settings.from_mapping({"lr": 0.5}, base) == replace(base, lr=0.5)
    assert Settings.from_mapping({}) == Settings()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
def test_methods_share_all_of_a_preset_but_the_adversary(name: str, method: Method) -> None:
    mine, plain = preset(name, method).to_mapping(), preset(name, "nn").to_mapping()
    assert mine["method"] == method
    adversary = {"method", "lambda_max", "schedule", "warmup", "lambda_enters", "margin", "pairing", "shift_relabel"}
    assert {key for key in mine if mine[key] != plain[key]} <= adversary


def test_the_reference_preset_is_the_published_training() -> None:
    published = json.loads(shared_file("reference", "paper_tables.json").read_text())["published_training"]
    chosen = preset("reference").to_mapping()
    for key in ("lr", "momentum", "weight_decay", "epochs", "batch_size", "domain_code", "margin"):
        assert chosen[key] == published[key], key
    assert [chosen["hidden"], chosen["latent"]] == published["hidden"]
    assert (chosen["optimizer"], chosen["bias_init"], chosen["pairing"]) == ("sgd", "normal", "published")
    assert (chosen["schedule"], chosen["lambda_max"], chosen["lambda_enters"]) == ("constant", 0.1, "loss")


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean reference"):
        preset("referense")


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().lr = 1.0  # type: ignore[misc]
    assert len({field.name for field in fields(Settings)}) == len(Settings().to_mapping())


def test_a_contradiction_is_reported_beside_other_faults() -> None:
    found = faults(method="scdgn", pairing="epoch", query_weight=1.0, lr=-1.0)
    assert len(found) == 2
    assert any("pairing" in fault for fault in found) and any(fault.startswith("lr") for fault in found)


def test_a_number_too_large_for_the_machine_is_compared_as_it_is() -> None:
    (fault,) = faults(margin=10**400)
    assert fault.startswith("margin is")

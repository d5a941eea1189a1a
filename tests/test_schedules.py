"""Lambda by its formulas, its ends, and where its ramp counts as done."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scdgn.core.config import Schedule, Settings
from scdgn.core.schedules import lambda_at, ramp_end

settings = st.builds(
    Settings,
    schedule=st.sampled_from(["constant", "sigmoid", "linear", "cosine"]),
    lambda_max=st.floats(0.01, 5),
    gamma=st.floats(0.1, 50),
    warmup=st.floats(0.01, 1),
)


def lam(settings: Settings, *progress: float) -> list[float]:
    return lambda_at(settings, np.array(progress)).tolist()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("sigmoid", [0.0, 2 * math.tanh(0.5), 2 * math.tanh(2.0), 2 * math.tanh(5.0)]),
        ("linear", [0.0, 0.5, 2.0, 2.0]),
        ("cosine", [0.0, 1 - math.sqrt(0.5), 2.0, 2.0]),
    ],
)
def test_lambda_by_the_formula(schedule: Schedule, expected: list[float]) -> None:
    # 2 / (1 + exp(-x)) - 1 is tanh(x / 2).
    chosen = Settings(schedule=schedule, lambda_max=2.0, gamma=10.0, warmup=0.4)
    assert lam(chosen, 0.0, 0.1, 0.4, 1.0) == pytest.approx(expected)


@hypothesis_settings(max_examples=50, deadline=None)
@given(settings)
def test_lambda_never_falls_and_never_exceeds_its_maximum(settings: Settings) -> None:
    values = lambda_at(settings, np.linspace(0, 1, 201))
    assert (np.diff(values) >= 0).all()
    assert values[0] == (settings.lambda_max if settings.schedule == "constant" else 0)
    assert values[-1] <= settings.lambda_max * (1 + 1e-12)
    if settings.schedule != "sigmoid":
        assert values[-1] == pytest.approx(settings.lambda_max)


@hypothesis_settings(max_examples=50, deadline=None)
@given(settings)
def test_the_ramp_ends_where_lambda_reaches_95_percent_of_its_end(settings: Settings) -> None:
    end = ramp_end(settings)
    (last,) = lam(settings, 1.0)
    after = lambda_at(settings, np.linspace(end, 1, 50))
    assert (after >= 0.95 * last * (1 - 1e-9)).all()
    if settings.schedule == "constant":
        assert end == 0
    else:
        assert lam(settings, end - 1e-3)[0] < 0.95 * last


def test_the_ramp_of_a_linear_schedule_ends_at_95_percent_of_its_warm_up() -> None:
    assert ramp_end(Settings(schedule="linear", warmup=0.4)) == pytest.approx(0.38, abs=1e-4)


def test_without_an_adversary_there_is_no_ramp_to_wait_for() -> None:
    assert ramp_end(Settings(method="nn", schedule="linear")) == 0
    assert ramp_end(Settings(lambda_max=0, schedule="linear")) == 0


def test_lambda_keeps_the_shape_of_progress() -> None:
    assert lambda_at(Settings(), np.zeros((3, 4))).shape == (3, 4)

"""How lambda grows with the fraction of training done."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scdgn.core.config import Settings

RAMPED = 0.95  # of its end: from here on a schedule counts as having finished its ramp


def lambda_at(settings: Settings, progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lambda after each fraction p in [0, 1] of the planned optimizer steps, in the shape of `progress`.

    `sigmoid` is 2 / (1 + exp(-gamma p)) - 1, Ganin et al. 2016, section 5.2.
    """
    return settings.lambda_max * _shape(settings, progress)


def ramp_end(settings: Settings) -> float:
    """The fraction of training from which lambda stays at or above 0.95 of its final value."""
    if settings.method == "nn" or settings.schedule == "constant" or settings.lambda_max == 0:
        return 0.0
    progress = np.linspace(0, 1, 10_001)
    shape = _shape(settings, progress)
    return float(progress[np.argmax(shape >= RAMPED * shape[-1])])


def _shape(settings: Settings, progress: NDArray[np.float64]) -> NDArray[np.float64]:
    match settings.schedule:
        case "constant":
            return np.ones_like(progress)
        case "sigmoid":
            return 2 / (1 + np.exp(-settings.gamma * progress)) - 1
        case "linear":
            return np.minimum(1, progress / settings.warmup)
        case "cosine":
            return (1 - np.cos(np.pi * np.minimum(1, progress / settings.warmup))) / 2

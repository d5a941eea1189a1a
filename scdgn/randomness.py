"""Random draws that depend on a model's own seed and on nothing else.

Every draw names its seed, its purpose and its place in time, so that a model draws the same numbers alone, in any pack,
on any device, and when it continues from a checkpoint: there is no generator state to carry.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for; each purpose has its own stream of numbers."""

    INIT = 0
    ORDER = 1
    PAIRS = 2
    UNLABELED_ORDER = 3
    DROPOUT = 4


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> torch.Generator:
    """A generator on the CPU for one purpose of one seed in one epoch."""
    return torch.Generator().manual_seed(_key(seed, purpose, epoch))


def _key(seed: int, purpose: Purpose, *time: int) -> int:
    return int(np.random.SeedSequence([seed, int(purpose), *time]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def dropout_scale(seeds: list[int], epoch: int, step: int, rates: Tensor, units: int, places: Tensor) -> Tensor:
    """Inverted-dropout factors: 0 with probability `rate`, else 1 / (1 - rate).

    The number for a unit and a cell is a hash of its coordinates (Weyl sequences through the finalizer of splitmix64,
    Steele et al. 2014), so that a unit's draw does not depend on how many units or models stand beside it.

    Parameters
    ----------
    seeds
        One per model.
    epoch, step
        Time, the step counted within the epoch.
    rates
        (models,) on the device of the result.
    units
        Units of the widest model.
    places
        (cells,) int64: the place of each cell in a full mini-batch.

    Returns
    -------
    (models, units, cells)
    """
    device = rates.device
    keys = torch.tensor([_key(seed, Purpose.DROPOUT, epoch, step) for seed in seeds], device=device)
    unit = torch.arange(units, device=device) * -7046029254386353131  # the golden ratio in 64 bits
    cell = places * -4417276706812531889
    bits = keys[:, None, None] + unit[None, :, None] + cell[None, None, :]
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    uniform = ((bits >> 40) & 0xFFFFFF).to(rates.dtype) / 2**24  # (models, units, cells) in [0, 1)
    keep = 1 - rates[:, None, None]
    return (uniform < keep) / keep

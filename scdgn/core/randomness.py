"""Random draws that depend on a model's own seed and on nothing else.

Every draw names its seed, its purpose and its place in time, so that a model draws the same numbers alone, in any pack,
on any device, and when it continues from a checkpoint: there is no generator state to carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

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
    SHIFTS = 5


def generator(seed: int, purpose: Purpose, epoch: int = 0) -> torch.Generator:
    """A generator on the CPU for one purpose of one seed in one epoch."""
    return torch.Generator().manual_seed(_key(seed, purpose, epoch))


@lru_cache(maxsize=1 << 16)  # the models of a search share a few seeds, and draw anew for every step
def _key(seed: int, purpose: Purpose, *time: int) -> int:
    return int(np.random.SeedSequence([seed, int(purpose), *time]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def dropout_keys(seeds: Sequence[int], epoch: int, steps: int) -> Tensor:
    """Where the draws of dropout start, for each step of an epoch and each seed: (steps, seeds) int32."""
    keys = [[_key(seed, Purpose.DROPOUT, epoch, step) & 0x7FFFFFFF for seed in seeds] for step in range(steps)]
    return torch.tensor(keys, dtype=torch.int32).view(steps, len(seeds))


def dropout_scale(keys: Tensor, rates: Tensor, units: Tensor, places: Tensor) -> Tensor:
    """Inverted-dropout factors: 0 with probability `rate`, else 1 / (1 - rate).

    The number for a unit and a cell is a hash of its coordinates (Weyl sequences through the finalizer of MurmurHash3,
    Appleby 2011), so that a unit's draw does not depend on how many units or models stand beside it. In 32 bits, since
    the 64 bits of a better hash cost a sixth of a training step of small layers.

    Parameters
    ----------
    keys, rates
        (units,) int32, from `dropout_keys`, and floating point: those of each unit's model.
    units
        (units,) int64: the number of each unit in its model.
    places
        (cells,) int64: the place of each cell in a full mini-batch.

    Returns
    -------
    (units, cells)
    """
    unit = keys + units.int() * -1640531527  # the golden ratio in 32 bits
    cell = places.int() * 668265263
    bits = unit[:, None] + cell
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    keep = 1 - rates[:, None]
    highest = (keep.double() * 2.0**31 - 1).round().int()  # of the draws that are kept
    return (bits.bitwise_and_(0x7FFFFFFF) <= highest) / keep

"""The optimizer's kernels for a GPU: one launch updates a parameter of all models of a block, each with its own rates.

Written in Triton, which torch for CUDA brings with it. An update goes through all weights once, in chunks that each
belong to one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU brings none
    triton = None

THERE = triton is not None

CHUNK = 1024
"""Weights of one model that a program of a kernel updates."""

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Chunks:
    """The weights of all models of a block in one parameter, cut into chunks.

    Parameters
    ----------
    bounds
        Where the weights of each model begin in the memory of the parameter, and where all end.
    device
        Of the parameter.
    """

    def __init__(self, bounds: Sequence[int], device: torch.device) -> None:
        begins = [range(start, stop, CHUNK) for start, stop in pairwise(bounds)]
        self._counts = [0, *accumulate(map(len, begins))]
        rows = [(begin, bounds[model + 1], model) for model, each in enumerate(begins) for begin in each]
        self._table = torch.tensor(rows).T.contiguous().to(device)  # where chunks begin, where their models end; models

    def launch(self, kernel: Any, models: int, *arguments: Tensor) -> None:
        """Run a kernel on the weights of the first models."""
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            # Products are fused with additions: Triton warns where nobody says whether they are.
            kernel[(self._counts[models],)](*self._table, *arguments, CHUNK=CHUNK, enable_fp_fusion=True)


if THERE:

    @triton.jit  # type: ignore[untyped-decorator]
    def adamw(begins, ends, models, weight, gradient, mean, square, scale, decay, size, root, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
        """AdamW with `BETAS` and `EPSILON`.

        Of each model: `scale` of its gradient, `decay` 1 - rate * weight decay, `size` the rate over the first bias
        correction, `root` the square root of the second one.
        """
        chunk = tl.program_id(0)
        model = tl.load(models + chunk)
        at = tl.load(begins + chunk) + tl.arange(0, CHUNK)
        own = at < tl.load(ends + chunk)
        g = tl.load(gradient + at, own) * tl.load(scale + model)
        m = tl.load(mean + at, own)
        v = tl.load(square + at, own)
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
        w = tl.load(weight + at, own) * tl.load(decay + model)
        w -= tl.load(size + model) * m / (tl.sqrt(v) / tl.load(root + model) + 1e-8)
        tl.store(mean + at, m, own)
        tl.store(square + at, v, own)
        tl.store(weight + at, w, own)

    @triton.jit  # type: ignore[untyped-decorator]
    def sgd(begins, ends, models, weight, gradient, momentum, scale, decay, rate, share, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
        """SGD with Nesterov's momentum.

        Of each model: `scale` of its gradient, `decay` the weight decay, `rate`, and the `share` of momentum kept.
        """
        chunk = tl.program_id(0)
        model = tl.load(models + chunk)
        at = tl.load(begins + chunk) + tl.arange(0, CHUNK)
        own = at < tl.load(ends + chunk)
        kept = tl.load(share + model)
        w = tl.load(weight + at, own)
        g = tl.load(gradient + at, own) * tl.load(scale + model) + tl.load(decay + model) * w
        m = kept * tl.load(momentum + at, own) + g
        tl.store(momentum + at, m, own)
        tl.store(weight + at, w - tl.load(rate + model) * (g + kept * m), own)

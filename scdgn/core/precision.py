"""How exactly matrix products are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scdgn.core.config import Precision


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Let torch use TF32 on GPUs inside the block, or not; as it was afterwards."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before

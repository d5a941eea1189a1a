"""Threads of the process, which some dependencies change behind the user's back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_threads() -> Iterator[None]:
    """Leave torch with as many threads as it had, whatever the block does to them.

    The numba inside scanpy gives the whole process all cores when it is first used. Against the user's OMP_NUM_THREADS,
    on cores that are taken, a training of small layers was ten times slower for it.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)

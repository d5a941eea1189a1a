"""Threads of the process: how many it should have, and keeping them so."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may keep busy: those of the machine, fewer by affinity or by a container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control groups version 2
        pass
    return max(1, cores)


def share_cores(workers: int = 1) -> int:
    """Give torch the share of the cores that one of several workers on this machine should take; how many threads.

    Two pools of as many threads as there are cores slow each other down by 3 to 10 times: each waits for threads that
    the other one has displaced. A number that the user has set (OMP_NUM_THREADS) is left alone.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // workers))
    return torch.get_num_threads()


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the linear algebra of the block to one thread: for many small fits, which a second one does not shorten.

    On cores that others use too, each fit waits for threads that are displaced: logistic regressions on 600 cells took
    nine times as long with two threads as with one (two cores, load 8).
    """
    with threadpool_limits(1):
        yield

"""How much memory there is, and what to do when there is no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from scdgn.errors import TrainingError

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where that cannot be told.

    On a CPU what the system has available, or what the limit of a container leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has taken from the device and does not use at present.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [each for each in (_available(), _left_in_container()) if each is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:  # not Linux
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def _left_in_container() -> int | None:
    """Of control groups version 2; the pages of files count as free, since they give way."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or in what this error came from, as while a CUDA graph is recorded."""
    if error is None:
        return False
    # torch's CPU allocator raises a plain RuntimeError.
    here = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return here or out_of_memory(error.__cause__ or error.__context__)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, which is not waited for, as it would be for memory that can be paged out."""
    if device.type == "cuda" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def release(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_parts(
    work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Do the work for all items at once; where memory runs out, for one half and then for the other.

    Raises
    ------
    TrainingError
        If there is not enough memory for one item.
    """
    try:
        return work(items)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if len(items) == 1:
        raise TrainingError(
            f"the memory of {device} does not suffice for one model: train smaller layers, fewer genes or smaller "
            "mini-batches, or elsewhere"
        )
    release(device)
    half = -(-len(items) // 2)
    return in_parts(work, items[:half], device) + in_parts(work, items[half:], device)

"""Steps as CUDA graphs: the kernels of a step are launched as one, and the host is free.

A small network's step is a hundred kernels of a few microseconds, each of which costs the host as much to launch. So a
step is written to depend on nothing but tensors that stay where they are; it is then recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import cycle

import torch

Step = Callable[[], None]

AT_ONCE = 4
"""Tasks on a GPU at the same time; sixteen trained no faster than four (docs/performance.md)."""


class CudaGraphs:
    """Records steps as CUDA graphs.

    Graphs replay one after another and leave nothing behind in the memory of their own, so those of one recorder share
    it. Not those of a whole process: with its last graph torch gives such a memory up, and refuses it ever after.
    """

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Record a step that has run before (what it needs on first use has been made); call the result to run it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            step()
        replay: Step = graph.replay
        return replay


class Replayed:
    """Runs steps of several shapes: the first of a shape as it is, later ones as recorded.

    Parameters
    ----------
    record
        Makes of a step what runs it again; None to run all of them as they are.
    """

    def __init__(self, record: Callable[[Step], Step] | None) -> None:
        self._record = record
        self._recorded: dict[Hashable, Step | None] = {}

    def __call__(self, shape: Hashable, step: Step) -> None:
        """Run a step. All steps of a shape do the same to the same tensors."""
        if self._record is None or shape not in self._recorded:
            self._recorded[shape] = None
            step()
            return
        recorded = self._recorded[shape]
        if recorded is None:
            recorded = self._recorded[shape] = self._record(step)
        recorded()


def side_by_side(tasks: Sequence[Step], device: torch.device) -> None:
    """Run tasks that touch nothing of each other: one by one, but on a GPU, which none of them fills, at the same time.

    In a step that is recorded they become branches of the graph.
    """
    if device.type != "cuda" or len(tasks) == 1:
        for task in tasks:
            task()
        return
    here, streams = torch.cuda.current_stream(device), _streams(device, min(AT_ONCE, len(tasks)))
    for stream in streams:
        stream.wait_stream(here)
    for task, stream in zip(tasks, cycle(streams)):
        with torch.cuda.stream(stream):
            task()
    for stream in streams:
        here.wait_stream(stream)


@cache
def _streams(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(count)]  # type: ignore[no-untyped-call]

"""Steps as CUDA graphs: the kernels of a step are launched as one, and the host is free.

A small network's step is a hundred kernels of a few microseconds, each of which costs the host as much to launch. So a
step is written to depend on nothing but tensors that stay where they are; it is then recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch

Step = Callable[[], None]


def cuda_graph(step: Step) -> Step:
    """Record a step that has run before (what it needs on first use has been made); call the result to run it."""
    graph = torch.cuda.CUDAGraph()
    # Graphs replay one after another and leave nothing behind in the memory of their own, so they share it.
    with torch.cuda.graph(graph, pool=_memory()):
        step()
    replay: Step = graph.replay
    return replay


@cache
def _memory() -> Any:
    return torch.cuda.graph_pool_handle()


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

"""A step can be recorded and replayed: what a CUDA graph asks of it, held on the CPU.

A tape stands in for the graph: it keeps the tensors that each operation of a step reads and writes, and runs the same
operations on the same tensors again. A step that depended on a number of the host, or on a tensor made outside of it,
would go on with what it was at the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scdgn.core import training
from scdgn.core.config import Settings
from scdgn.core.pack.graphs import Replayed, Step
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Member
from scdgn.core.training import Trained, train
from tests.test_pack import POOL

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Keeps every operation with the tensors it was given and those it made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "the step asks the device for a number"
        made = function(*arguments, **(named or {}))
        self.operations.append((function, arguments, named or {}, _tensors(made)))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        for function, arguments, named, places in self.operations:
            for place, again in zip(places, _tensors(function(*arguments, **named)), strict=True):
                if place.data_ptr() != again.data_ptr():
                    place.copy_(again)


def _tensors(made: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


class Recorder:
    """Counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Step) -> Step:
        """As `graphs.CudaGraphs` does: the step is recorded, not run."""
        kept = [tensor.clone() for tensor in _state(step)]
        with Tape() as tape:
            step()
        for tensor, before in zip(_state(step), kept, strict=True):  # a graph computes nothing while it is recorded
            tensor.detach().copy_(before)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay


def _state(step: Step) -> list[Tensor]:
    """What a step changes for good."""
    lane = next(cell.cell_contents for cell in step.__closure__ or () if isinstance(cell.cell_contents, Lane))
    block = lane.block
    counters = block._optimizer.counters
    moments = [tensor for moment in block._moments for tensor in moment.values()]
    return [*block.stored.values(), *moments, *counters, lane._sums, lane._now]


def trained(members: Sequence[Member], record: Callable[[Step], Step] | None) -> list[Trained]:
    class Recording(Lane):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, record=record)

    before = training.Lane
    training.Lane = Recording  # type: ignore[misc]
    try:
        return train(members, groups=[range(len(members))])
    finally:
        training.Lane = before  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "nn", "optimizer": "sgd"},
        {"method": "dann", "query_weight": 0.8, "dropout": 0.3},
        {"method": "dann", "query_weight": 0.8, "shift_probability": 0.7, "shift_relabel": True},
        {"method": "scdgn", "pairing": "epoch", "lambda_enters": "loss", "optimizer": "sgd"},
        {"method": "scdgn", "pairing": "batch", "query_weight": 0.8, "pseudo_confidence": 0.3, "clip_norm": 0.1},
    ],
)
def test_replayed_steps_train_the_same_models(changes: dict[str, object]) -> None:
    base = Settings.from_mapping(changes, Settings(hidden=6, latent=5, domain_code=4, epochs=5, batch_size=16))
    # Unequal cells, so that steps are of several shapes; a member that leaves, so that the tensors shrink on the way.
    members = [
        Member(base, POOL[3], 0),
        Member(replace(base, hidden=8, lr=0.01, schedule="linear"), POOL[4], 1),
        Member(replace(base, epochs=3), POOL[3], 2, 0),
    ]
    recorder = Recorder()
    for plain, replayed in zip(trained(members, None), trained(members, recorder), strict=True):
        assert replayed.history == plain.history
        assert plain.model is not None and replayed.model is not None
        for name, weight in plain.model.weights.items():
            assert torch.equal(replayed.model.weights[name], weight)
    assert recorder.replayed > 2 * recorder.recorded > 0


def test_the_first_step_of_a_shape_runs_as_it_is_and_later_ones_as_recorded() -> None:
    ran: list[str] = []

    def record(step: Step) -> Step:
        ran.append("recorded")
        return lambda: ran.append("replayed")

    steps = Replayed(record)
    for shape in ("full", "full", "full", "short", "short"):
        steps(shape, lambda: ran.append("as it is"))
    assert ran == ["as it is", "recorded", "replayed", "replayed", "as it is", "recorded", "replayed"]

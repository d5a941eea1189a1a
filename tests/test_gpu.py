"""What is claimed of a GPU, on one: recorded steps, packs, sparse input, checkpoints, and memory that runs out.

Skipped where there is none. `tests/test_graphs.py` holds on a CPU what recording asks of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from scdgn.core.config import Settings
from scdgn.core.expression import compressed
from scdgn.core.memory import in_parts, out_of_memory
from scdgn.core.pack.graphs import Replayed, Step
from scdgn.core.pack.members import Cells, Member, fused_groups
from scdgn.core.training import Report, Trained, TrainingState, train
from tests.test_pack import POOL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

GPU = torch.device("cuda")

CHANGES: list[dict[str, Any]] = [
    {"method": "nn", "optimizer": "sgd"},
    {"method": "dann", "query_weight": 0.8, "dropout": 0.3},
    {"method": "scdgn", "pairing": "published", "lambda_enters": "loss", "optimizer": "sgd"},
    {"method": "scdgn", "pairing": "batch", "query_weight": 0.8, "pseudo_confidence": 0.3, "clip_norm": 0.1},
]


def members(changes: dict[str, Any]) -> list[Member]:
    """Of unequal cells, sizes, rates and length: steps come in several shapes, and the tensors shrink on the way."""
    base = Settings.from_mapping(changes, Settings(hidden=6, latent=5, domain_code=4, epochs=5, batch_size=16))
    return [
        Member(base, POOL[3], 0),
        Member(replace(base, hidden=8, lr=0.01, schedule="linear"), POOL[4], 1),
        Member(replace(base, epochs=3), POOL[3], 2, 0),
    ]


def fused(pack: Sequence[Member], device: torch.device = GPU, **more: Any) -> list[Trained]:
    return train(pack, device, groups=[range(len(pack))], precision="float32", **more)


def differences(ones: Sequence[Trained], others: Sequence[Trained]) -> Iterator[float]:
    """The largest difference of every weight of every model."""
    for one, other in zip(ones, others, strict=True):
        assert one.state == other.state == "finished"
        assert one.model is not None and other.model is not None
        for name, weight in one.model.weights.items():
            yield float((weight - other.model.weights[name]).abs().max())


@pytest.mark.parametrize("changes", CHANGES)
def test_recorded_steps_train_what_steps_as_they_are_train(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = fused(members(changes))
    with monkeypatch.context() as patch:
        patch.setattr(Replayed, "__call__", lambda self, shape, step: step())
        as_they_are = fused(members(changes))
    assert max(differences(recorded, as_they_are)) < 1e-9  # in double precision, as the cells are


@pytest.mark.parametrize("changes", CHANGES)
def test_a_pack_equals_its_models_trained_alone_and_on_the_cpu(changes: dict[str, Any]) -> None:
    pack = members(changes)
    together = fused(pack)
    assert max(differences(together, [train([member], GPU)[0] for member in pack])) < 1e-9
    assert max(differences(together, fused(pack, torch.device("cpu")))) < 1e-9


@pytest.mark.parametrize("changes", CHANGES)
def test_the_same_seeds_give_the_same_bits_also_from_a_checkpoint(changes: dict[str, Any]) -> None:
    pack, kept = members(changes), []

    def keep(state: Any) -> None:
        made: TrainingState = state()
        if made.epoch == 2:
            kept.append(made)

    undisturbed = fused(pack, between=keep)
    assert set(differences(undisturbed, fused(pack))) == {0.0}
    assert set(differences(undisturbed, fused(pack, state=kept[0]))) == {0.0}


def test_sparse_input_trains_what_dense_input_trains() -> None:
    base = Settings(hidden=6, latent=5, domain_code=4, epochs=3, batch_size=16)
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(60, 12, generator=draws, dtype=torch.float64)
    x *= torch.rand(x.shape, generator=draws) < 0.3
    dense = Cells(x, torch.arange(60) % 3, torch.arange(60) // 20, types=3, domain_count=3)
    sparse = replace(dense, x=compressed(x))
    alike = [[Member(base, cells, seed, 0) for seed in range(3)] for cells in (dense, sparse)]
    assert max(differences(*(fused(pack) for pack in alike))) < 1e-9


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_coarser_products_train_nearly_the_same(precision: Any) -> None:
    """TF32 keeps ten bits of a factor, bfloat16 seven."""
    pack = [Member(replace(each.settings, lr=1e-3), in_float32(each.cells), each.seed) for each in members({})]
    coarse = train(pack, GPU, groups=[range(len(pack))], precision=precision)
    assert 0 < max(differences(coarse, fused(pack))) < 0.05


def in_float32(cells: Cells) -> Cells:
    return replace(cells, x=cells.x.float())


@contextmanager
def limited(bytes_more: int) -> Iterator[None]:
    """Of the GPU's memory so much may be taken beyond what is."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + bytes_more) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("megabytes", [30, 40, 60, 80, 100, 140])
def test_where_memory_runs_out_half_of_the_models_trains_at_a_time(megabytes: int) -> None:
    """In whatever it runs out: the upload, a first step, its recording, a copy of a model for the callback."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(300, 500, generator=draws)
    cells = Cells(x, torch.arange(300) % 4, torch.arange(300) // 100, types=4, domain_count=3)
    settings = Settings(hidden=256, latent=32, domain_code=16, epochs=2, batch_size=128)
    pack = [Member(settings, cells, seed, 0) for seed in range(48)]
    sizes: list[int] = []

    def work(part: Sequence[Member]) -> list[Trained]:
        sizes.append(len(part))
        return fused(part, on_epoch=predicted)

    def predicted(report: Report) -> list[int]:
        for index in report.losses:
            report.model(index).probabilities(cells.x.to(GPU))
        return []

    ample = fused(pack)
    fused(pack[:1])  # what the libraries take once is taken
    with limited(megabytes * 1_000_000):
        found = in_parts(work, pack, GPU)
    assert sizes[0] == len(pack) and len(sizes) > 1
    assert max(differences(found, ample)) < 1e-4


def test_memory_that_runs_out_in_a_recording_is_told_as_such_and_leaves_the_device_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = Replayed.__call__

    def crowded(self: Replayed, shape: Any, step: Step) -> None:
        def greedy() -> None:
            step()
            if torch.cuda.is_current_stream_capturing():
                torch.empty(1 << 40, dtype=torch.uint8, device=GPU)

        before(self, shape, greedy)

    pack = members(CHANGES[3])
    with monkeypatch.context() as patch:
        patch.setattr(Replayed, "__call__", crowded)
        with pytest.raises(RuntimeError) as raised:
            fused(pack)
    assert out_of_memory(raised.value)
    assert max(differences(fused(pack), fused(pack, torch.device("cpu")))) < 1e-9


def test_models_of_like_size_are_fused() -> None:
    """Wide ones too: they do not keep a GPU busy alone."""
    pack = [Member(Settings(hidden=1136), POOL[0], seed) for seed in range(3)]
    assert fused_groups(pack, GPU) == [[0, 1, 2]]

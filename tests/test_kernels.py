"""The optimizer's kernels for a GPU, run by Triton's interpreter on a CPU: what torch's own optimizers compute."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scdgn.core.config import Settings
from scdgn.core.pack import kernels, optimizer
from scdgn.core.pack.block import Block
from scdgn.core.pack.members import Member
from scdgn.core.training import Trained, train
from tests.test_pack import POOL, assert_equal

pytestmark = pytest.mark.skipif(not kernels.THERE, reason="there is no Triton here")

CHANGES: list[dict[str, Any]] = [
    {"optimizer": "adamw"},
    {"optimizer": "sgd"},
    {"optimizer": "adamw", "clip_norm": 0.1},
    {"optimizer": "sgd", "clip_norm": 0.1},
]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels as numpy runs them, in chunks so small that models have several of them."""
    from triton.runtime.interpreter import InterpretedFunction

    for name in ("adamw", "sgd"):
        monkeypatch.setattr(kernels, name, InterpretedFunction(getattr(kernels, name).fn))
    monkeypatch.setattr(kernels, "CHUNK", 16)


def members(changes: dict[str, Any]) -> list[Member]:
    """Of unequal cells, sizes, rates and length."""
    base = Settings.from_mapping(changes, Settings(hidden=6, latent=5, domain_code=4, epochs=3, batch_size=16))
    return [
        Member(base, POOL[3], 0),
        Member(replace(base, hidden=8, lr=0.01, weight_decay=0.1, momentum=0.0), POOL[4], 1),
        Member(replace(base, epochs=2, clip_norm=0.0), POOL[3], 2, 0),
    ]


def fused(pack: list[Member]) -> list[Trained]:
    return train(pack, groups=[range(len(pack))])


@pytest.mark.parametrize("changes", CHANGES)
def test_models_are_trained_as_by_torch(
    changes: dict[str, Any], interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_torch = fused(members(changes))
    monkeypatch.setattr("scdgn.core.pack.block.optimizer", optimizer.Whole)
    for one, other in zip(by_torch, fused(members(changes)), strict=True):
        assert_equal(one, other)


def test_padding_and_models_that_have_left_are_not_touched(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.core.pack.block.optimizer", optimizer.Whole)
    block = Block(members({}), range(3), torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in block.stored.items()}
    active = 2

    def gradient(name: str, tensor: Tensor) -> Tensor:
        return tensor[block.layout.span(name, 0, active)].sign()  # nothing where there is padding

    block.update({name: gradient(name, tensor) for name, tensor in block.stored.items()}, active)
    for name, tensor in block.stored.items():
        own, others = block.layout.span(name, 0, active), block.layout.span(name, active, 3)
        assert torch.equal(tensor[others], before[name][others])
        assert torch.equal(tensor[own] == before[name][own], before[name][own] == 0)
    assert [block._optimizer.done(place) for place in range(3)] == [1, 1, 0]


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are not compiled where they are interpreted")
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", ["fp32", "fp64"])
def test_kernels_compile_for_an_h100(name: str, kind: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    tables = {"begins": "*i64", "ends": "*i64", "models": "*i64", "CHUNK": "constexpr"}
    signature = {argument: tables.get(argument, f"*{kind}") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, {"CHUNK": kernels.CHUNK})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    assert compiled.asm["cubin"] and compiled.metadata.shared == 0  # nothing passes between its threads

"""A pack equals its models trained alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.core.config import Settings
from scdgn.core.pack.block import Block
from scdgn.core.pack.members import (
    MOST_PADDING,
    UNLABELED,
    WIDEST_FUSED_ON_CPU,
    Cells,
    Member,
    fused_groups,
    pack_memory,
    padding,
)
from scdgn.core.training import Report, Trained, train

TYPES, DOMAINS = 4, 3


def make_cells(seed: int, cells: int = 30, genes: int = 7, unlabeled: int = 0) -> Cells:
    """Cells in double precision, so that the tests see every error but rounding."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(TYPES, (cells,), generator=draws)
    labels[:TYPES] = torch.arange(TYPES)
    domains = torch.randint(DOMAINS, (cells,), generator=draws)
    domains[:DOMAINS] = torch.arange(DOMAINS)
    labels[cells - unlabeled :] = UNLABELED
    domains[cells - unlabeled :] = DOMAINS
    x = torch.randn(cells, genes, generator=draws, dtype=torch.float64) + labels[:, None]
    return Cells(x, labels, domains, types=TYPES, domain_count=DOMAINS + 1)


def without_type(cells: Cells, type_: int) -> Cells:
    keep = cells.labels != type_
    return Cells(cells.x[keep], cells.labels[keep], cells.domains[keep], cells.types, cells.domain_count)


POOL = [
    make_cells(0),
    make_cells(1, cells=41, genes=5),
    without_type(make_cells(2, cells=55), 3),
    make_cells(3, cells=48, unlabeled=13),
    make_cells(4, cells=30, genes=9, unlabeled=3),
]

sizes = st.integers(1, 9)


@st.composite
def packs(draw: st.DrawFn) -> list[tuple[Settings, int, int, int]]:
    """Settings, place of the cells in the pool, seed and order seed of members that may be fused.

    Method, batch size, pairing and optimizer agree; all else differs.
    """
    method = draw(st.sampled_from(["nn", "dann", "scdgn"]))
    pairing = draw(st.sampled_from(["published", "epoch", "batch", "unconditional"]))
    in_batch = method != "scdgn" or pairing == "batch"
    adapts = method != "nn" and in_batch
    shared = Settings(
        method=method,
        pairing=pairing,
        optimizer=draw(st.sampled_from(["sgd", "adamw"])),
        batch_size=draw(st.sampled_from([8, 16, 64])),
    )
    members = []
    for _ in range(draw(st.integers(2, 4))):
        own = replace(
            shared,
            hidden=draw(sizes),
            latent=draw(sizes),
            domain_code=draw(sizes),
            bias_init=draw(st.sampled_from(["zero", "normal"])),
            dropout=draw(st.sampled_from([0.0, 0.4])),
            margin=draw(st.sampled_from([0.0, 0.7, 3.0])),
            lambda_max=draw(st.sampled_from([0.0, 0.5, 2.0])),
            schedule=draw(st.sampled_from(["constant", "sigmoid", "linear", "cosine"])),
            lambda_enters=draw(st.sampled_from(["loss", "reversal"])),
            lr=draw(st.sampled_from([0.003, 0.02])),
            momentum=draw(st.sampled_from([0.0, 0.9])),
            weight_decay=draw(st.sampled_from([0.0, 0.1])),
            epochs=draw(st.integers(1, 4)),
            balance_domains=draw(st.booleans()),
            class_weights=draw(st.sampled_from(["none", "sqrt", "balanced"])),
            clip_norm=draw(st.sampled_from([0.0, 0.1])),
            query_weight=draw(st.sampled_from([0.0, 0.8])) if adapts else 0.0,
            pseudo_confidence=0.3,
            shift_probability=draw(st.sampled_from([0.0, 0.6])) if in_batch else 0.0,
            shift_strength=draw(st.sampled_from([0.5, 1.0])),
            shift_relabel=draw(st.booleans()),
        )
        members.append((own, draw(st.integers(0, len(POOL) - 1)), draw(st.integers(0, 3)), draw(st.integers(0, 1))))
    return members


def build(pack: list[tuple[Settings, int, int, int]]) -> list[Member]:
    return [Member(settings, POOL[place], seed, order_seed) for settings, place, seed, order_seed in pack]


def assert_equal(one: Trained, other: Trained) -> None:
    assert (one.state, one.reason) == (other.state, other.reason)
    assert one.model is not None and other.model is not None
    for name, weight in one.model.weights.items():
        torch.testing.assert_close(other.model.weights[name], weight, atol=1e-9, rtol=1e-7)
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert mine.label_loss == pytest.approx(theirs.label_loss, abs=1e-9)
        assert mine.domain_loss == pytest.approx(theirs.domain_loss, abs=1e-9)
        assert mine.lam == theirs.lam


@settings(max_examples=60, deadline=None)
@given(packs())
def test_a_pack_equals_its_models_trained_alone(pack: list[tuple[Settings, int, int, int]]) -> None:
    members = build(pack)
    together = train(members, groups=[range(len(members))])
    for member, fused in zip(members, together, strict=True):
        (alone,) = train([member])
        assert_equal(alone, fused)


@settings(max_examples=20, deadline=None)
@given(packs(), st.integers(0, 3))
def test_a_model_that_stops_leaves_its_neighbours_as_they_were(
    pack: list[tuple[Settings, int, int, int]], victim: int
) -> None:
    members = build(pack)
    victim %= len(members)

    def stop(report: Report) -> list[int]:
        return [victim] if report.epoch == 1 else []

    stopped = train(members, on_epoch=stop, groups=[range(len(members))])
    assert len(stopped[victim].history) == 1
    for index, (undisturbed, survivor) in enumerate(zip(train(members), stopped, strict=True)):
        if index != victim:
            assert_equal(undisturbed, survivor)


def test_a_model_that_stops_frees_its_work() -> None:
    members = [Member(Settings(hidden=8 * (1 + i), epochs=3), POOL[0], seed=i) for i in range(3)]
    block = Block(members, range(3), torch.device("cpu"))
    block.keep([0, 1])
    assert block.parameters["hidden.weight"].shape[:2] == (2, 16)


def test_nothing_in_the_first_layer_is_padding() -> None:
    """Units of all sizes and genes of all numbers, three models on one stream and one on its own."""
    shapes = ((9, 0), (2, 0), (5, 0), (7, 4))
    members = [Member(Settings(hidden=hidden), POOL[place], i, 0) for i, (hidden, place) in enumerate(shapes)]
    block = Block(members, range(4), torch.device("cpu"))
    assert block.stored["hidden.weight"].numel() == sum(hidden * POOL[place].x.shape[1] for hidden, place in shapes)
    assert block.stored["hidden.bias"].numel() == 9 + 2 + 5 + 7
    products = sorted((slab.streams, slab.units, slab.genes) for slab in block.layout.slabs)
    assert products == [(1, 7, 9), (1, 9 + 2 + 5, 7)]
    alike = [Member(Settings(hidden=4), POOL[0], seed) for seed in range(3)]
    assert [slab.streams for slab in Block(alike, range(3), torch.device("cpu")).layout.slabs] == [3]


def test_a_model_that_diverges_fails_alone() -> None:
    base = Settings(hidden=6, latent=5, domain_code=4, epochs=4, batch_size=16, optimizer="sgd", clip_norm=0)
    wild = replace(base, lr=1e200, momentum=0.0)
    members = [Member(base, POOL[0], seed=0), Member(wild, POOL[0], seed=1), Member(base, POOL[1], seed=2)]
    good, bad, also_good = train(members, groups=[range(3)])
    assert bad.state == "failed"
    assert bad.model is None
    assert "not finite" in bad.reason
    for member, outcome in ((members[0], good), (members[2], also_good)):
        assert_equal(train([member])[0], outcome)


def test_unlabeled_cells_of_weight_zero_change_nothing() -> None:
    with_query = make_cells(3, cells=48, unlabeled=13)
    kept = with_query.labels != UNLABELED
    without = Cells(with_query.x[kept], with_query.labels[kept], with_query.domains[kept], TYPES, DOMAINS + 1)
    for method in ("dann", "scdgn"):
        base = Settings(method=method, hidden=6, latent=5, domain_code=4, epochs=3, batch_size=16)
        companion = Member(replace(base, query_weight=1.0), with_query, seed=1)
        fused, _ = train([Member(base, with_query, seed=0), companion], groups=[[0, 1]])
        assert_equal(train([Member(base, without, seed=0)])[0], fused)
        (adapted,) = train([Member(replace(base, query_weight=1.0, pseudo_confidence=0.3), with_query, seed=0)])
        assert adapted.history[0].domain_loss != fused.history[0].domain_loss


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    member = Member(Settings(hidden=6, latent=5, domain_code=4, epochs=2, dropout=0.2), POOL[0], seed=5)
    first, again, other = (train([m])[0].model for m in (member, member, replace(member, seed=6)))
    assert first is not None and again is not None and other is not None
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert not torch.equal(first.weights["hidden.weight"], other.weights["hidden.weight"])


def test_on_a_cpu_wide_models_take_turns_and_narrow_ones_of_like_size_are_fused() -> None:
    cells = [make_cells(seed, genes=60) for seed in range(3)]
    narrow = [Member(Settings(hidden=hidden), cells[i], seed=i) for i, hidden in enumerate((64, 50, 60))]
    wide = [Member(Settings(hidden=WIDEST_FUSED_ON_CPU + 1, latent=64), cells[0], i, 0) for i in range(2)]
    narrower = Member(Settings(hidden=16, latent=8), cells[0], seed=9)
    other_program = Member(Settings(hidden=64, method="nn"), cells[0], seed=0, order_seed=0)
    members = [*narrow, *wide, narrower, other_program]
    assert fused_groups(members, torch.device("cpu")) == [[0, 1, 2], [3], [4], [5], [6]]
    assert fused_groups(members, torch.device("cuda")) == [[0, 3, 4], [1, 2, 5], [6]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1200), min_size=1, max_size=12), st.sampled_from(["cpu", "cuda"]))
def test_padding_costs_no_more_than_allowed_and_everyone_trains_once(widths: list[int], kind: str) -> None:
    members = [
        Member(Settings(hidden=width, latent=1 + width // 8), POOL[0], seed) for seed, width in enumerate(widths)
    ]
    groups = fused_groups(members, torch.device(kind))
    assert sorted(index for group in groups for index in group) == list(range(len(members)))
    for group in groups:
        assert 1 <= padding([members[index] for index in group]) <= MOST_PADDING[kind] + 1e-9


def test_models_of_one_size_are_never_parted() -> None:
    """A trial's folds share their mini-batches with the folds of other trials, or with none."""
    members = [Member(Settings(hidden=hidden), POOL[i], 0) for hidden in (70, 64, 40, 39) for i in range(3)]
    for group in fused_groups(members, torch.device("cpu")):
        assert len({index // 3 for index in group}) * 3 == len(group)


def test_memory_grows_with_models_and_covers_their_weights() -> None:
    one, two = ([Member(Settings(), POOL[0], seed) for seed in range(count)] for count in (1, 2))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    weights = sum(tensor.numel() for tensor in Block(one, [0], cpu).stored.values())
    assert 4 * 4 * weights < pack_memory(one, cpu) < pack_memory(two, cpu) < 3 * pack_memory(one, cpu)
    assert pack_memory(one, gpu) == pack_memory(one, cpu) + POOL[0].x.numel() * 8


def test_models_that_take_turns_equal_their_trainings_alone() -> None:
    """They write their gradients to one place."""
    sizes = (WIDEST_FUSED_ON_CPU + 1, WIDEST_FUSED_ON_CPU + 40, WIDEST_FUSED_ON_CPU + 9)
    members = [
        Member(Settings(hidden=hidden, latent=5, epochs=2, batch_size=16), POOL[i], i) for i, hidden in enumerate(sizes)
    ]
    assert len(fused_groups(members, torch.device("cpu"))) == 3
    for member, outcome in zip(members, train(members), strict=True):
        assert_equal(train([member])[0], outcome)

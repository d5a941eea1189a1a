"""Training that goes on from a state is training that was never interrupted, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.core.config import Precision, Settings
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import WIDEST_FUSED_ON_CPU, Cells, Member, fused_groups
from scdgn.core.training import Report, Trained, TrainingState, train
from tests.test_expression import both
from tests.test_graphs import Recorder
from tests.test_pack import POOL, assert_equal, build, packs

SINGLE = [Cells(cells.x.float(), cells.labels, cells.domains, cells.types, cells.domain_count) for cells in POOL]

Stops = dict[int, int]
"""By member: the epoch after which the callback stops it."""


class Cut(Exception):
    """Training ends here."""


def stopping(stops: Stops) -> Callable[[Report], list[int]]:
    return lambda report: [index for index in report.losses if stops.get(index) == report.epoch]


def uninterrupted(
    members: Sequence[Member],
    stops: Stops | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    precision: Precision = "tf32",
) -> tuple[list[Trained], list[TrainingState]]:
    """What comes of the members, and the state after every epoch but the last."""
    states: list[TrainingState] = []
    outcomes = train(
        members, "cpu", stopping(stops or {}), groups, precision, between=lambda make: states.append(make())
    )
    return outcomes, states


def left_after(outcomes: Sequence[Trained], epoch: int) -> list[int]:
    return [index for index, outcome in enumerate(outcomes) if len(outcome.history) > epoch]


def continued(
    members: Sequence[Member],
    state: TrainingState,
    indices: Sequence[int],
    stops: Stops | None = None,
    precision: Precision = "tf32",
) -> list[Trained]:
    own = {number: (stops or {})[index] for number, index in enumerate(indices) if index in (stops or {})}
    return train([members[index] for index in indices], "cpu", stopping(own), precision=precision, state=state)


def assert_same_bits(one: Trained, other: Trained) -> None:
    assert (one.state, one.reason) == (other.state, other.reason)
    # As text, since the loss of a member that failed is no number and so unlike itself.
    assert repr(one.history) == repr(other.history)
    assert (one.model is None) == (other.model is None)
    if one.model is not None and other.model is not None:
        assert torch.equal(one.model.types, other.model.types)
        for name, weight in one.model.weights.items():
            assert torch.equal(weight, other.model.weights[name]), name


def assert_every_cut_heals(
    members: Sequence[Member],
    stops: Stops | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    precision: Precision = "tf32",
) -> list[Trained]:
    outcomes, states = uninterrupted(members, stops, groups, precision)
    assert [state.epoch for state in states] == list(range(1, max(len(outcome.history) for outcome in outcomes)))
    for state in states:
        left = left_after(outcomes, state.epoch)
        for index, again in zip(left, continued(members, state, left, stops, precision), strict=True):
            assert_same_bits(outcomes[index], again)
    return outcomes


@settings(max_examples=15, deadline=None)
@given(packs(), st.dictionaries(st.integers(0, 3), st.integers(1, 3), max_size=2), st.booleans())
def test_any_pack_goes_on_as_if_it_had_not_been_cut(
    pack: list[tuple[Settings, int, int, int]], stops: Stops, double: bool
) -> None:
    """Methods, pairings, optimizers, sizes, cells, epochs and all other settings; members that leave at any time."""
    cells = POOL if double else SINGLE
    members = [Member(own, cells[place], seed, order_seed) for own, place, seed, order_seed in pack]
    assert_every_cut_heals(members, stops, groups=[range(len(members))])


VARIANTS = [
    {"method": "nn", "dropout": 0.0},
    {"method": "dann", "optimizer": "sgd", "momentum": 0.9, "query_weight": 0.5},
    {"method": "scdgn", "pairing": "published"},
    {"method": "scdgn", "pairing": "epoch", "optimizer": "sgd"},
    {"method": "scdgn", "pairing": "batch", "query_weight": 0.5, "pseudo_confidence": 0.3},
]
BASE = Settings(
    hidden=12, latent=5, domain_code=4, epochs=4, batch_size=16, bias_init="normal", dropout=0.2, clip_norm=0.5
)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("multiplied", [True, False])
def test_so_does_one_on_sparse_cells(
    changes: dict[str, object], shared: bool, multiplied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdgn.core.pack.lane.sparse_pays", lambda *_: multiplied)
    _, stored = both(unlabeled=9)
    base = Settings.from_mapping(changes, BASE)
    sizes = [base, replace(base, hidden=9, lr=3e-3), replace(base, hidden=14, epochs=2)]
    members = [Member(each, stored, seed, 0 if shared else seed) for seed, each in enumerate(sizes)]
    assert_every_cut_heals(members, groups=[[0, 1, 2]])


def test_how_a_pack_reads_sparse_cells_is_not_decided_anew_when_it_has_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model alone would be too small for sparse products, which round differently."""
    monkeypatch.setattr("scdgn.core.pack.lane.sparse_pays", lambda _, units: units > 20)
    _, stored = both()
    members = [Member(replace(BASE, epochs=epochs), stored, seed, 0) for seed, epochs in enumerate((4, 2))]
    outcomes, states = uninterrupted(members, groups=[[0, 1]])
    assert [(len(lane.indices), lane.sparse) for state in states for lane in state.lanes] == [
        (2, True),
        (1, True),
        (1, True),
    ]
    (again,) = continued(members, states[1], [0])
    assert_same_bits(outcomes[0], again)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_that_take_turns_go_on_in_every_precision(precision: Precision) -> None:
    wide = WIDEST_FUSED_ON_CPU + 1
    sizes = [(wide, 3), (8, 4), (wide + 40, 2), (8, 2), (64, 3)]
    members = [
        Member(Settings(hidden=hidden, latent=5, epochs=epochs, batch_size=16), SINGLE[i % 3], i)
        for i, (hidden, epochs) in enumerate(sizes)
    ]
    assert len(fused_groups(members, torch.device("cpu"))) > 3
    assert_every_cut_heals(members, precision=precision)


def test_so_do_steps_that_are_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("scdgn.core.training.Lane", partial(Lane, record=recorder))
    sizes = [BASE, replace(BASE, hidden=9, lr=3e-3), replace(BASE, hidden=14, epochs=2)]
    assert_every_cut_heals([Member(each, POOL[3 + i % 2], i, 0) for i, each in enumerate(sizes)], groups=[[0, 1, 2]])
    assert recorder.replayed > recorder.recorded > 0


def test_members_that_failed_before_the_cut_are_not_missed() -> None:
    base = Settings(hidden=6, latent=5, domain_code=4, epochs=4, batch_size=16, optimizer="sgd", clip_norm=0)
    wild = replace(base, lr=1e200, momentum=0.0)
    members = [Member(wild, POOL[1], seed=1), Member(base, POOL[0], seed=0), Member(base, POOL[1], seed=2)]
    failed, *_ = assert_every_cut_heals(members, groups=[[0, 1, 2]])
    assert failed.state == "failed" and len(failed.history) < 4


def test_one_that_fails_after_the_cut_fails_as_it_would_have() -> None:
    base = Settings(hidden=6, latent=5, epochs=6, batch_size=64, optimizer="sgd", momentum=0.0, clip_norm=0)
    growing = replace(base, lr=1e5, weight_decay=1e5)
    members = [Member(base, SINGLE[0], 0), Member(growing, SINGLE[0], 1)]
    outcomes = assert_every_cut_heals(members, groups=[[0, 1]])
    assert outcomes[1].state == "failed" and 2 < len(outcomes[1].history) < 6


def test_a_state_stands_still_while_training_goes_on() -> None:
    members = [Member(BASE, SINGLE[0], seed) for seed in range(2)]
    kept: list[tuple[TrainingState, list[torch.Tensor]]] = []

    def between(make: Callable[[], TrainingState]) -> None:
        state = make()
        kept.append((state, [tensor.clone() for lane in state.lanes for tensor in lane.tensors.values()]))

    train(members, between=between)
    first, last = kept[0], kept[-1]
    assert len(kept) == BASE.epochs - 1
    assert all(len(history) == 1 for history in first[0].histories)
    for state, tensors in (first, last):
        now = [tensor for lane in state.lanes for tensor in lane.tensors.values()]
        assert all(torch.equal(one, other) for one, other in zip(now, tensors, strict=True))
    # Nor does going on from it change it.
    train(members, state=first[0])
    now = [tensor for lane in first[0].lanes for tensor in lane.tensors.values()]
    assert all(torch.equal(one, other) for one, other in zip(now, first[1], strict=True))


def test_a_pack_that_is_cut_again_and_again_ends_as_one_that_is_not() -> None:
    members = build([(replace(BASE, hidden=6 + i, epochs=3 + i), i, i, 0) for i in range(3)])
    expected = train(members, groups=[[0, 1, 2]])
    state: list[TrainingState] = []

    def cut(make: Callable[[], TrainingState]) -> None:
        state[:] = [make()]
        raise Cut

    ended: dict[int, Trained] = {}
    going, before = list(range(3)), None
    for _ in range(10):
        # What ends in an epoch is told to the callback, as a search hears of it.
        def watch(report: Report) -> list[int]:
            for number, index in enumerate(going):  # noqa: B023 called at once
                if report.epoch == members[index].settings.epochs:
                    history = expected[index].history
                    assert report.losses[number] == history[-1]
                    ended[index] = Trained(members[index], model=report.model(number))
            return []

        try:
            train([members[i] for i in going], on_epoch=watch, groups=[range(3)], between=cut, state=before)
            break
        except Cut:
            going = [index for index in going if index not in ended]
            before = state[0]
    assert sorted(ended) == [0, 1, 2]
    for index, outcome in ended.items():
        assert outcome.model is not None and (model := expected[index].model) is not None
        assert all(torch.equal(weight, model.weights[name]) for name, weight in outcome.model.weights.items())


@settings(max_examples=10, deadline=None)
@given(packs(), st.permutations(range(4)), st.integers(1, 3))
def test_a_part_of_a_pack_goes_on_as_in_the_whole(
    pack: list[tuple[Settings, int, int, int]], order: list[int], count: int
) -> None:
    """In any order of its members, and without those that were the largest."""
    members = build(pack)
    outcomes, states = uninterrupted(members, groups=[range(len(members))])
    for state in states:
        left = left_after(outcomes, state.epoch)
        chosen = [number for number in order if number < len(left)][:count]
        part = [left[number] for number in chosen]
        for index, again in zip(part, continued(members, state.keep(chosen), part), strict=True):
            assert_equal(outcomes[index], again)


def test_a_part_is_no_larger_than_its_members() -> None:
    members = [Member(replace(BASE, hidden=8 * (1 + i)), POOL[0], i) for i in range(3)]
    _, states = uninterrupted(members, groups=[[0, 1, 2]])
    sizes = []

    def between(make: Callable[[], TrainingState]) -> None:
        sizes.append(make().lanes[0].tensors["parameters.hidden.weight"].shape[:2])

    train(members[:2], between=between, state=states[0].keep([0, 1]))
    assert sizes == [(2, 16)] * 2


def test_lanes_without_a_member_left_are_gone() -> None:
    members = [Member(replace(BASE, hidden=hidden), POOL[0], 0) for hidden in (8, WIDEST_FUSED_ON_CPU + 1)]
    _, states = uninterrupted(members)
    assert len(states[0].lanes) == 2
    part = states[0].keep([1])
    assert [lane.indices for lane in part.lanes] == [(0,)] and len(part.histories) == 1

"""Which cells an epoch visits, and how much they weigh."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scdgn.core.config import Settings
from scdgn.core.pack.batches import EpochPlan, Stream, balanced_order, class_weights, plan_epoch
from scdgn.core.pack.members import UNLABELED, Cells, Member


def make_cells(cells: int, unlabeled: int = 0, seed: int = 0) -> Cells:
    """The expression of a cell is its row, so that a plan can be followed; unlabelled cells are scattered."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (cells,), generator=draws)
    labels[torch.randperm(cells, generator=draws)[:unlabeled]] = UNLABELED
    domains = torch.randint(2, (cells,), generator=draws)
    return Cells(torch.arange(cells).float()[:, None], labels, domains, types=3, domain_count=2)


def stream(cells: Cells, seed: int = 0, **changes: object) -> Stream:
    return replace(Stream(cells, seed, batch_size=8, balanced=False, pairing=None), **changes)


def visited(plan: EpochPlan, place: int) -> Tensor:
    return plan.labeled[place][plan.real[place] == 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 100))
def test_a_balanced_order_gives_every_domain_an_equal_share(domains: list[int], seed: int) -> None:
    order = balanced_order(torch.tensor(domains), torch.Generator().manual_seed(seed)).tolist()
    assert len(order) == len(domains)
    count = len(set(domains))
    share = -(-len(domains) // count)
    visits = Counter(domains[cell] for cell in order)
    assert all(share - count < visits[domain] <= share for domain in set(domains))
    # A cell comes round again only after its domain has been gone through.
    times = Counter(order)
    for domain, size in Counter(domains).items():
        assert max(times[cell] for cell in range(len(domains)) if domains[cell] == domain) <= -(-share // size)


def test_a_balanced_order_mixes_domains_and_visits_another_part_of_a_large_one_every_epoch() -> None:
    cells = Cells(torch.zeros(120, 1), torch.zeros(120).long(), (torch.arange(120) < 20).long(), 1, 2)
    first, second = (stream(cells, balanced=True).order(epoch) for epoch in (0, 1))
    assert set(range(20)) <= set(first.tolist())
    assert 15 < (first[:60] < 20).sum() < 45
    assert set(first[first >= 20].tolist()) != set(second[second >= 20].tolist())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=3), st.integers(2, 16), st.data()
)
def test_an_epoch_visits_every_labelled_cell_once_and_padding_does_not_count(
    sizes: list[tuple[int, int]], batch_size: int, data: st.DataObject
) -> None:
    pool = [make_cells(labeled + unlabeled, unlabeled, seed) for seed, (labeled, unlabeled) in enumerate(sizes)]
    pool.sort(key=lambda cells: -len(cells.labeled))
    pairing = data.draw(st.sampled_from([None, "published", "epoch", "unconditional"]))
    streams = [stream(cells, seed=i, batch_size=batch_size, pairing=pairing) for i, cells in enumerate(pool)]
    plan = plan_epoch(streams, data.draw(st.integers(0, 3)), with_unlabeled=False)
    assert plan.unlabeled.shape[2] == 0
    assert sum(plan.widths) == len(pool[0].labeled)
    for place, cells in enumerate(pool):
        rows = visited(plan, place)
        assert sorted(rows.tolist()) == cells.labeled.tolist()
        real = plan.real[place] == 1
        assert torch.equal(plan.labels[place][real], cells.labels[rows])
        assert torch.equal(plan.domains[place][real], cells.domains[rows])
        assert set(plan.real.unique().tolist()) <= {0, 1}
        takes_part = [place < streams for streams in plan.streams]
        assert real.any(dim=1).tolist() == takes_part
        # What a step reads holds all that counts.
        assert all(not real[step, width:].any() for step, width in enumerate(plan.widths))


@pytest.mark.parametrize("pairing", ["published", "epoch"])
def test_partners_are_labelled_and_legal(pairing: str) -> None:
    cells = make_cells(50, unlabeled=15)
    plan = plan_epoch([stream(cells, pairing=pairing)], 1, with_unlabeled=False)
    assert plan.partners is not None and plan.same is not None and plan.use is not None
    counted = (plan.real * plan.use == 1).nonzero().tolist()
    assert len(counted) > 20
    for where in counted:
        anchor, partner = plan.labeled[tuple(where)], plan.partners[tuple(where)]
        assert cells.labels[partner] != UNLABELED
        same = bool(plan.same[tuple(where)])
        assert same == bool(cells.domains[anchor] == cells.domains[partner])
        assert same != bool(cells.labels[anchor] == cells.labels[partner])


def test_published_pairs_are_drawn_once_and_epoch_pairs_every_epoch() -> None:
    def partners(pairing: str, epoch: int) -> Tensor:
        pairs = stream(make_cells(40), pairing=pairing).pairs(epoch)
        assert pairs is not None
        return pairs.partner

    for pairing in ("published", "unconditional"):
        assert torch.equal(partners(pairing, 0), partners(pairing, 1))
    assert not torch.equal(partners("epoch", 0), partners("epoch", 1))
    assert torch.equal(partners("epoch", 1), partners("epoch", 1))
    assert stream(make_cells(40)).pairs(0) is None


def test_only_scdgn_with_drawn_pairs_draws_pairs() -> None:
    def pairing(**changes: object) -> str | None:
        cells = make_cells(10)
        return Stream.of(Member(Settings.from_mapping(changes), cells, seed=0), cells).pairing

    assert pairing(method="scdgn", pairing="epoch") == "epoch"
    assert pairing(method="scdgn", pairing="batch") is None
    assert pairing(method="dann", pairing="epoch") is None
    assert pairing(method="nn", pairing="published") is None


def test_unlabelled_cells_come_round_again_when_all_have_been_visited() -> None:
    cells = make_cells(50, unlabeled=10)  # 40 labelled cells: 5 steps of 8
    plan = plan_epoch([stream(cells)], 0, with_unlabeled=True)
    assert plan.unlabeled.shape == (1, 5, 8)
    assert (plan.unlabeled_real == 1).all()
    rows = plan.unlabeled.flatten().tolist()
    for start in range(0, 40, 10):
        assert sorted(rows[start : start + 10]) == cells.unlabeled.tolist()
    assert torch.equal(cells.unlabeled[plan.unlabeled_place], plan.unlabeled)
    assert torch.equal(cells.domains[plan.unlabeled], plan.unlabeled_domains)


def test_fewer_unlabelled_cells_than_a_batch_are_all_in_every_step() -> None:
    cells = make_cells(43, unlabeled=3)
    plan = plan_epoch([stream(cells)], 0, with_unlabeled=True)
    assert all(sorted(rows) == cells.unlabeled.tolist() for rows in plan.unlabeled[0].tolist())


def test_a_stream_with_fewer_unlabelled_cells_counts_only_its_own() -> None:
    streams = [stream(make_cells(40)), stream(make_cells(36, unlabeled=4)), stream(make_cells(30, unlabeled=10))]
    plan = plan_epoch(streams, 0, with_unlabeled=True)
    assert plan.unlabeled_real.sum(dim=2).tolist() == [[0] * 5, [4] * 4 + [0], [8] * 3 + [0] * 2]


def test_a_plan_depends_on_seed_and_epoch_and_not_on_its_neighbours() -> None:
    cells, other = make_cells(40, unlabeled=6), make_cells(55, unlabeled=9, seed=1)

    def order(*, seed: int = 0, epoch: int = 0, company: bool = False) -> tuple[list[int], ...]:
        own = stream(cells, seed=seed, pairing="epoch")
        streams = [stream(other, seed=9, pairing="epoch"), own] if company else [own]
        plan = plan_epoch(streams, epoch, with_unlabeled=True)
        assert plan.partners is not None
        real = plan.real[-1] == 1
        seen = plan.unlabeled_real[-1] == 1
        return plan.labeled[-1][real].tolist(), plan.partners[-1][real].tolist(), plan.unlabeled[-1][seen].tolist()

    assert order() == order() == order(company=True)
    for mine, later, theirs in zip(order(), order(epoch=1), order(seed=1), strict=True):
        assert mine != later and mine != theirs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.sampled_from(["none", "sqrt", "balanced"]))
def test_class_weights_average_one_over_the_cells(labels: list[int], kind: str) -> None:
    weights = class_weights(kind, torch.tensor(labels), types=6)
    assert weights[torch.tensor(labels)].mean().item() == pytest.approx(1)
    assert [weight > 0 for weight in weights.tolist()] == [type_ in labels for type_ in range(6)]


def test_class_weights_by_the_formula() -> None:
    labels = torch.tensor([0] * 16 + [2] * 4)
    assert class_weights("none", labels, 3).tolist() == [1, 0, 1]
    # sqrt: in the ratio 1/4 to 1/2; balanced (scikit-learn's): cells / (types present * cells of the type).
    assert class_weights("sqrt", labels, 3).tolist() == pytest.approx([20 / 24, 0, 2 * 20 / 24])
    assert class_weights("balanced", labels, 3).tolist() == pytest.approx([20 / (2 * 16), 0, 20 / (2 * 4)])

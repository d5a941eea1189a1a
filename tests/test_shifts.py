"""Cells are moved by what tells the same type apart in two training domains."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scdgn.core.config import UNLABELED, Method, Settings
from scdgn.core.expression import compressed
from scdgn.core.pack.batches import Stream, plan_epoch
from scdgn.core.pack.members import Cells, Member
from scdgn.core.shifts import LEAST_CELLS, Shifts
from scdgn.core.training import train
from scdgn.errors import SettingsError

TYPES, DOMAINS, GENES = 3, 4, 6
COUNTS = torch.tensor([[8, 9, 5, 0], [6, 4, 7, 0], [0, 0, 9, 0]])  # (types, domains): one has too few, one has none
OFF, ON = Settings(method="nn"), Settings(method="nn", shift_probability=0.7)


def made(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Cells as counted, in a random order, non-negative and mostly zero."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(TYPES).repeat_interleave(COUNTS.sum(dim=1))
    domains = torch.cat([torch.arange(DOMAINS).repeat_interleave(row) for row in COUNTS])
    x = torch.rand(len(labels), GENES, generator=draws) * (torch.rand(len(labels), GENES, generator=draws) < 0.5)
    order = torch.randperm(len(labels), generator=draws)
    return x[order], labels[order], domains[order]


def shifts_of(x: Tensor, labels: Tensor, domains: Tensor) -> Shifts:
    return Shifts.of(x, labels, domains, (TYPES, DOMAINS))


def with_unlabelled() -> Cells:
    x, labels, domains = made()
    return Cells(
        torch.cat([x, 100 + x[:7]]),
        torch.cat([labels, torch.full((7,), UNLABELED)]),
        torch.cat([domains, torch.full((7,), 3)]),
        TYPES,
        DOMAINS,
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_means_and_floor_are_those_of_the_cells(sparse: bool) -> None:
    x, labels, domains = made()
    found = Shifts.of(compressed(x) if sparse else x, labels, domains, (TYPES, DOMAINS))
    for type_ in range(TYPES):
        for domain in range(DOMAINS):
            own = x[(labels == type_) & (domains == domain)]
            if len(own) >= LEAST_CELLS:
                torch.testing.assert_close(found.means(type_ * DOMAINS + domain), own.mean(dim=0))
    assert torch.equal(found.floor, x.amin(dim=0))
    assert torch.equal(found.held, COUNTS >= LEAST_CELLS)
    assert len(found.rows) == found.held.sum()  # and none for what hundreds of domains lack


def test_unlabelled_cells_shape_no_shift() -> None:
    cells = with_unlabelled()
    plain = shifts_of(*made())
    assert torch.equal(cells.shifts.rows, plain.rows) and torch.equal(cells.shifts.floor, plain.floor)


def test_a_cell_is_moved_evenly_by_any_shift_from_its_own_domain_and_by_no_other() -> None:
    shifts = shifts_of(*made())
    domains = torch.arange(DOMAINS).repeat(20_000)
    moves = shifts.draw(domains, 1.0, 1.0, True, torch.Generator().manual_seed(0))
    seen: dict[int, Counter[tuple[int, int]]] = {domain: Counter() for domain in range(DOMAINS)}
    for domain, target, origin, factor, now in zip(domains.tolist(), *(part.tolist() for part in moves), strict=True):
        if factor:
            assert origin % DOMAINS == domain and target // DOMAINS == origin // DOMAINS and now == target % DOMAINS
            seen[domain][target // DOMAINS, now] += 1
        else:
            assert now == domain
    # Type 0 is held by domains 0, 1 and 2, type 1 by 0 and 2, type 2 by one alone, which leads nowhere.
    assert set(seen[0]) == {(0, 1), (0, 2), (1, 2)}
    assert set(seen[1]) == {(0, 0), (0, 2)}
    assert set(seen[2]) == {(0, 0), (0, 1), (1, 0)}
    assert not seen[3]
    for domain in (0, 1, 2):
        numbers = np.array(list(seen[domain].values()))
        assert numbers.sum() == 20_000 and numbers.min() > 0.95 * numbers.mean()


def test_probability_strength_and_relabelling() -> None:
    shifts, domains = shifts_of(*made()), torch.zeros(40_000, dtype=torch.int64)
    plain = shifts.draw(domains, 0.3, 2.0, False, torch.Generator().manual_seed(1))
    moved = plain.factor > 0
    assert moved.float().mean() == pytest.approx(0.3, abs=0.01)
    assert plain.factor.max() <= 2 and plain.factor[moved].mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(plain.domains, domains)
    relabelled = shifts.draw(domains, 0.3, 2.0, True, torch.Generator().manual_seed(1))
    assert torch.equal(relabelled.factor > 0, moved) and set(relabelled.factor.tolist()) == {0.0, 2.0}
    assert torch.equal(relabelled.domains != 0, moved)


def test_where_no_two_domains_share_a_type_no_cell_is_moved() -> None:
    x, labels, _ = made()
    alone = Shifts.of(x, labels, labels, (TYPES, DOMAINS))
    assert not alone.draw(labels, 1.0, 1.0, True, torch.Generator().manual_seed(0)).factor.any()


def test_moved_cells_of_a_confounded_set_look_like_their_new_domain() -> None:
    """A type that a domain lacks, moved there, gets the mean that it would have there."""
    draws = torch.Generator().manual_seed(3)
    of_type, of_domain = 3 + torch.rand(TYPES, GENES, generator=draws), torch.rand(2, GENES, generator=draws)
    labels, domains = torch.tensor([0, 0, 1, 1, 2]).repeat(50), torch.tensor([0, 1, 0, 1, 0]).repeat(50)
    x = of_type[labels] + of_domain[domains]
    shifts = Shifts.of(x, labels, domains, (TYPES, 2))
    moves = shifts.draw(domains, 1.0, 1.0, True, draws)
    there = x + moves.factor[:, None] * (shifts.means(moves.target) - shifts.means(moves.origin))
    torch.testing.assert_close(there.float(), of_type[labels] + of_domain[moves.domains])


@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
@pytest.mark.parametrize("off", [{"shift_probability": 0.0}, {"shift_probability": 0.7, "shift_strength": 0.0}])
def test_off_is_off_to_the_last_bit_beside_a_neighbour_that_moves(method: Method, off: dict[str, float]) -> None:
    cells = with_unlabelled()
    settings = Settings(method=method, hidden=8, latent=4, domain_code=3, epochs=3, batch_size=16)
    (alone,) = train([Member(settings, cells, 0)])
    neighbour = Member(replace(settings, shift_probability=1.0), cells, 1)
    beside = train([Member(replace(settings, **off), cells, 0), neighbour], groups=[[0], [1]])[0]
    assert alone.model is not None and beside.model is not None
    assert all(torch.equal(alone.model.weights[name], weight) for name, weight in beside.model.weights.items())
    assert alone.history == beside.history


def test_on_is_on() -> None:
    cells = with_unlabelled()
    off, on = train([Member(replace(one, hidden=8, latent=4, epochs=2), cells, 0) for one in (OFF, ON)])
    assert off.model is not None and on.model is not None
    assert not torch.equal(off.model.weights["hidden.weight"], on.model.weights["hidden.weight"])


def test_sparse_and_dense_cells_train_alike() -> None:
    dense = with_unlabelled()
    sparse = replace(dense, x=compressed(dense.x))
    settings = replace(
        ON, method="dann", shift_relabel=True, hidden=8, latent=4, domain_code=3, epochs=3, batch_size=16
    )
    one, other = (train([Member(settings, cells, 0)])[0].model for cells in (dense, sparse))
    assert one is not None and other is not None
    for name, weight in one.weights.items():
        torch.testing.assert_close(other.weights[name], weight)


def test_the_plan_of_a_stream_says_where_its_cells_go_and_another_stream_moves_none() -> None:
    cells = with_unlabelled()
    moving = Stream(cells, 0, 16, False, None, (1.0, 1.0, True))
    plan = plan_epoch([moving, replace(moving, shifts=None)], 0, with_unlabeled=False)
    assert plan.target is not None and plan.origin is not None and plan.factor is not None
    own = cells.domains[plan.labeled]
    assert torch.equal(plan.origin[0] % DOMAINS, own[0])
    assert torch.equal(plan.domains[0], torch.where(plan.factor[0] > 0, plan.target[0] % DOMAINS, own[0]))
    assert (plan.domains[0] != own[0]).float().mean() > 0.8
    assert not plan.factor[1].any() and torch.equal(plan.domains[1], own[1])
    assert torch.equal(plan.labeled[0], plan.labeled[1])  # the order of the cells is drawn by itself
    assert plan_epoch([replace(moving, shifts=None)], 0, with_unlabeled=False).factor is None


def test_no_moved_cell_falls_below_the_lowest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from scdgn.core.pack import lane

    monkeypatch.setattr(
        lane.DenseLayer, "forward", lambda self, models, forward=lane.DenseLayer.forward: (
            seen.append(self.x[0].clone()), forward(self, models))[1]
    )  # fmt: skip
    cells = with_unlabelled()
    train([Member(replace(ON, hidden=4, latent=3, epochs=1, batch_size=16, shift_strength=3.0), cells, 0)])
    read = torch.cat([x[0] for x in seen])
    assert (read >= cells.shifts.floor).all() and not set(read[:, 0].tolist()) <= set(cells.x[:, 0].tolist())


def test_drawn_pairs_and_shifts_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="pairs would be drawn before cells move"):
        Settings(pairing="epoch", shift_probability=0.5)
    Settings(pairing="epoch", shift_probability=0.5, shift_strength=0.0)
    Settings(method="dann", pairing="epoch", shift_probability=0.5)

"""Sparse expression reads as its dense form does, and trains the same models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scdgn.core import expression
from scdgn.core.config import Settings
from scdgn.core.expression import Scale, Sparse, chunks, join, transposed
from scdgn.core.networks import Model
from scdgn.core.pack.first_layer import sparse_pays
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import UNLABELED, Cells, Member
from scdgn.core.training import train

CPU = torch.device("cpu")
CELLS, GENES = 60, 9


def counts(seed: int = 0, cells: int = CELLS, genes: int = GENES, density: float = 0.15) -> np.ndarray:
    draws = np.random.default_rng(seed)
    return (draws.poisson(3, (cells, genes)) * (draws.random((cells, genes)) < density)).astype(np.float64)


def sparse(x: np.ndarray) -> Sparse:
    csr = sp.csr_matrix(x)
    starts = torch.from_numpy(csr.indptr[:-1].astype(np.int64))
    stored = torch.from_numpy(np.diff(csr.indptr).astype(np.int64))
    return Sparse(starts, stored, torch.from_numpy(csr.indices), torch.from_numpy(csr.data), x.shape[1])


def normalized(x: np.ndarray, factors: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log1p(x * factors[:, None]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_view_is_what_its_definition_says(seed: int, select: bool, normalize: bool, scale: bool, group: bool) -> None:
    draws = np.random.default_rng(seed)
    x, expected = counts(seed), torch.from_numpy(counts(seed))
    view = sparse(x)
    if normalize:
        factors = draws.random(CELLS) + 0.5
        view, expected = replace(view, factors=torch.from_numpy(factors)), normalized(x, factors)
    if select:
        chosen = np.sort(draws.choice(GENES, 4, replace=False))
        place = np.full(GENES, -1, dtype=np.int32)
        place[chosen] = np.arange(4)
        view, expected = replace(view, selected=torch.from_numpy(place), genes=4), expected[:, chosen]
    if scale:
        mean, std = (torch.from_numpy(draws.random((2, view.genes)) + 0.1) for _ in range(2))
        code = torch.from_numpy(draws.integers(0, 2, CELLS)) if group else None
        view = replace(view, scale=Scale(mean, std, 2.0, code))
        of = torch.zeros(CELLS, dtype=torch.int64) if code is None else code
        expected = ((expected - mean[of]) / std[of]).clamp(-2, 2)
    torch.testing.assert_close(view.dense(), expected)
    rows = torch.from_numpy(draws.permutation(CELLS)[:17])
    torch.testing.assert_close(view[rows].dense(), expected[rows])
    mask = torch.from_numpy(draws.random(CELLS) < 0.3)
    torch.testing.assert_close(view[mask].dense(), expected[mask])
    alone = view[rows].copy(CPU)
    assert alone.selected is None and alone.factors is None
    torch.testing.assert_close(alone.dense(), expected[rows])
    torch.testing.assert_close(torch.cat(list(chunks(view, 7))), expected)
    assert view.shape == expected.shape and view.dtype == expected.dtype and len(view) == CELLS


def test_portions_of_a_large_matrix_make_the_same_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    view = replace(sparse(counts()), factors=torch.rand(CELLS, dtype=torch.float64))
    whole = view.copy(CPU)
    monkeypatch.setattr(expression, "ENTRIES_AT_ONCE", 11)
    torch.testing.assert_close(view.copy(CPU).dense(), whole.dense())


def test_nothing_is_copied_for_a_selection_of_cells() -> None:
    view = sparse(counts())
    part = view[torch.arange(5)]
    assert part.values.data_ptr() == view.values.data_ptr() and part.columns.data_ptr() == view.columns.data_ptr()


@pytest.mark.parametrize("genes", [GENES, 70_000])
def test_transposed_rows_are_the_columns(genes: int) -> None:
    x = counts(genes=GENES)
    rows = sparse(np.pad(x, ((0, 0), (genes - GENES, 0)))).rows(torch.arange(CELLS))
    by_gene = transposed(rows, genes)
    expected = sp.csr_matrix(x.T)
    starts = by_gene.starts[genes - GENES :].numpy()
    np.testing.assert_array_equal(starts, expected.indptr[:-1])
    np.testing.assert_array_equal(by_gene.columns.numpy(), expected.indices)
    np.testing.assert_array_equal(by_gene.values.numpy(), expected.data)


def both(unlabeled: int = 0, **kinds: object) -> tuple[Cells, Cells]:
    """The same cells, dense and sparse."""
    x = counts(1, cells=71, density=0.1)
    draws = torch.Generator().manual_seed(0)
    labels, domains = (torch.randint(3, (len(x),), generator=draws) for _ in range(2))
    labels[len(x) - unlabeled :] = UNLABELED
    dense, stored = (
        Cells(kind, labels, domains, 3, 3) for kind in (torch.from_numpy(np.log1p(x)), sparse(np.log1p(x)))
    )
    return dense, stored


SETTINGS = Settings(
    hidden=12, latent=5, domain_code=4, epochs=3, batch_size=16, bias_init="normal", dropout=0.2, clip_norm=0.5
)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "nn", "dropout": 0.0},
        {"method": "dann", "optimizer": "sgd", "query_weight": 0.5},
        {"method": "scdgn", "pairing": "published"},
        {"method": "scdgn", "pairing": "batch", "query_weight": 0.5, "pseudo_confidence": 0.3},
    ],
)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("multiplied", [True, False])
def test_sparse_cells_train_the_models_that_dense_ones_do(
    changes: dict[str, object], shared: bool, multiplied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sparse products or made dense at every step: in double precision, so that nothing but rounding is forgiven."""
    monkeypatch.setattr("scdgn.core.pack.lane.sparse_pays", lambda *_: multiplied)
    dense, stored = both(unlabeled=9)
    base = Settings.from_mapping(changes, SETTINGS)
    sizes = [base, replace(base, hidden=9, lr=3e-3), replace(base, hidden=10, epochs=2)]

    def trained(cells: Cells) -> list[Model]:
        members = [Member(each, cells, seed, 0 if shared else seed) for seed, each in enumerate(sizes)]
        lane = Lane(members, [0, 1, 2], CPU, {id(cells): cells})
        assert lane.block.sparse == (multiplied and isinstance(cells.x, Sparse))
        models = [outcome.model for outcome in train(members, groups=[[0, 1, 2]])]
        return [model for model in models if model is not None]

    for expected, model in zip(trained(dense), trained(stored), strict=True):
        for name, weight in expected.weights.items():
            torch.testing.assert_close(model.weights[name], weight, atol=1e-9, rtol=1e-7)
        assert model.weights["hidden.weight"].is_contiguous()
        torch.testing.assert_close(model.probabilities(stored.x), expected.probabilities(dense.x))


def test_a_sparse_pack_equals_its_models_trained_alone() -> None:
    _, stored = both()
    members = [Member(replace(SETTINGS, hidden=300 + 8 * seed), stored, seed, 0) for seed in range(3)]
    together = train(members, groups=[[0, 1, 2]])
    for member, fused in zip(members, together, strict=True):
        (alone,) = train([member])
        assert alone.model is not None and fused.model is not None
        for name, weight in alone.model.weights.items():
            torch.testing.assert_close(fused.model.weights[name], weight, atol=1e-9, rtol=1e-7)


def test_a_model_that_diverges_on_sparse_cells_fails_alone() -> None:
    _, stored = both()
    base = replace(SETTINGS, hidden=300, optimizer="sgd", clip_norm=0.0)
    members = [Member(base, stored, 0, 0), Member(replace(base, lr=1e200, momentum=0.0), stored, 1, 0)]
    good, bad = train(members, groups=[[0, 1]])
    assert bad.state == "failed" and good.state == "finished"


def test_sparse_products_pay_for_many_units_and_few_values() -> None:
    assert sparse_pays(0.05, 1136) and sparse_pays(0.1, 256)
    assert not sparse_pays(0.1, 32) and not sparse_pays(0.5, 10_000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sampled_from(["dense", "whole", "shuffled", "some", "selected"]), min_size=2))
def test_parts_are_joined_however_they_lie(seed: int, kinds: list[str]) -> None:
    draws = np.random.default_rng(seed)
    parts: list[Tensor | Sparse] = []
    for place, kind in enumerate(kinds):
        view, order = sparse(counts(seed + place)), torch.from_numpy(draws.permutation(CELLS))
        if kind == "selected":
            view = replace(view, selected=torch.arange(GENES, dtype=torch.int32).flip(0))
        rows = {"shuffled": order, "some": order[:7]}.get(kind)
        view = view if rows is None else view[rows]
        parts.append(view.dense() if kind == "dense" else view)
    expected = torch.cat([part.dense() if isinstance(part, Sparse) else part for part in parts])
    joined = join(parts)
    rows = torch.from_numpy(draws.integers(0, len(expected), 20))
    for cells, dense in ((joined, expected), (joined[rows], expected[rows])):
        assert torch.equal(cells.dense() if isinstance(cells, Sparse) else cells, dense)

"""What the models of a trial are given: which cells, as what, and made how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from scdgn.cells import preprocess as preprocess_module
from scdgn.cells.dataset import Dataset
from scdgn.cells.preprocess import fit
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.expression import Expression, Sparse
from scdgn.core.pack.members import Cells
from scdgn.search import left_out
from scdgn.search.trials import inputs as module
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.inputs import ALL_DOMAINS, KEPT, VALIDATED, OwnInputs, Prepared, normalized, prepare
from scdgn.search.trials.objective import Objective
from tests.test_objective import CPU, PREPROCESS, Told, inputs, sealed, trial

PLAIN = PreprocessSettings()
"""All genes: scanpy, which ranks them otherwise, takes its time."""


def as_dense(cells: SearchCells) -> SearchCells:
    """The same cells as a file has them that keeps the zeros; they are made in compressed rows."""

    def filled(dataset: Dataset) -> Dataset:
        assert isinstance(dataset.x, sp.csr_matrix)
        return replace(dataset, x=dataset.x.toarray())

    return replace(
        cells,
        dataset=filled(cells.dataset),
        test=None if cells.test is None else filled(cells.test),
        unlabeled=tuple(filled(query) for query in cells.unlabeled),
    )


def dense(x: Expression | None) -> Tensor:
    assert x is not None
    return x.dense() if isinstance(x, Sparse) else x


def assert_same(one: Sequence[Prepared], other: Sequence[Prepared]) -> None:
    """The same cells, bit by bit, kept in the same form."""
    for mine, theirs in zip(one, other, strict=True):
        for name in ("labels", "domains"):
            assert torch.equal(getattr(mine.cells, name), getattr(theirs.cells, name))
        assert (mine.cells.types, mine.cells.domain_count) == (theirs.cells.types, theirs.cells.domain_count)
        assert np.array_equal(mine.labels, theirs.labels) and mine.labels.dtype == theirs.labels.dtype
        assert (mine.test is None) == (theirs.test is None)
        pairs = [(mine.cells.x, theirs.cells.x), (mine.x, theirs.x)]
        pairs += [] if mine.test is None or theirs.test is None else [(mine.test, theirs.test)]
        for x, y in pairs:
            assert type(x) is type(y) and x.dtype == y.dtype
            assert torch.equal(dense(x), dense(y))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[PreprocessSettings]:
    """What was fitted, once per unit."""
    seen: list[PreprocessSettings] = []

    def counted(dataset: Dataset, rows: Any, settings: PreprocessSettings) -> Any:
        seen.append(settings)
        return fit(dataset, rows, settings)

    monkeypatch.setattr(module, "fit", counted)
    return seen


# Units


def test_there_is_a_unit_for_every_fold_and_one_of_all_domains() -> None:
    cells = sealed()
    units = inputs(cells, seed=3, fold_seeds=2).units
    assert [unit.name for unit in units] == ["a", "b", "c", ALL_DOMAINS]
    assert [unit.seeds for unit in units] == [(3, 4)] * 3 + [(3,)]
    for unit, fold in zip(units, cells.folds, strict=False):
        for name in ("train", "scored", "held_out"):
            assert np.array_equal(getattr(unit, name), getattr(fold, name))


def test_the_unit_of_all_domains_sets_a_share_of_every_type_of_every_domain_aside() -> None:
    cells = sealed()
    everywhere = inputs(cells).units[-1]
    assert np.array_equal(np.sort(np.concatenate([everywhere.train, everywhere.scored])), cells.rows)
    assert len(everywhere.held_out) == 0
    dataset = cells.dataset
    for code in range(len(dataset.cell_types)):
        aside = np.mean(dataset.labels[everywhere.scored] == code)
        assert aside == pytest.approx(np.mean(dataset.labels == code), abs=0.05)
    assert set(dataset.batches[everywhere.scored]) == set(dataset.batches)
    assert len(everywhere.scored) == pytest.approx(VALIDATED * len(dataset), abs=len(dataset.cell_types) * 3)


def test_the_seed_decides_what_is_set_aside() -> None:
    once, again, other = (inputs(seed=seed).units[-1].scored for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_selected_by_all_domains_their_unit_has_every_seed() -> None:
    given = inputs(selection="training-domain", fold_seeds=3)
    assert [len(unit.seeds) for unit in given.units] == [3, 3, 3, 3]
    assert given.models == 12


def test_without_folds_selection_is_by_all_domains() -> None:
    given = inputs(replace(sealed(), folds=()), fold_seeds=2)
    assert given.selection == "training-domain"
    assert [(unit.name, unit.seeds) for unit in given.units] == [(ALL_DOMAINS, (0, 1))]


# Prepared


@pytest.mark.parametrize("settings", [PLAIN, PREPROCESS, PreprocessSettings(scaling="standard-per-batch")])
def test_dense_and_sparse_cells_become_the_same_input(settings: PreprocessSettings) -> None:
    cells = sealed()
    pairs = zip(
        inputs(cells).prepared(settings, CPU),
        inputs(as_dense(cells)).prepared(settings, CPU),
        strict=True,
    )
    for one, other in pairs:
        assert torch.equal(one.cells.labels, other.cells.labels) and torch.equal(one.cells.domains, other.cells.domains)
        assert torch.allclose(dense(one.cells.x), dense(other.cells.x), atol=1e-5)
        assert torch.allclose(dense(one.x), dense(other.x), atol=1e-5)


def test_only_the_unit_of_all_domains_has_test_cells() -> None:
    cells = sealed()
    prepared = inputs(cells).prepared(PLAIN, CPU)
    assert [each.test is None for each in prepared] == [True, True, True, False]
    assert cells.test is not None and prepared[-1].test is not None
    assert prepared[-1].test.shape == (len(cells.test), 40)
    assert [each.test for each in inputs(replace(cells, test=None)).prepared(PLAIN, CPU)] == [None] * 4


@pytest.mark.parametrize("settings", [PLAIN, PREPROCESS])
def test_where_a_gpu_will_read_small_input_is_dense(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """What is kept sparse for a CPU saves it work; a GPU would have to expand every mini-batch."""
    monkeypatch.setattr(preprocess_module, "sparse_pays", lambda *_: True)
    cells = normalized(sealed(), settings.target_sum)
    units = inputs().units
    for kind in ("cpu", "cuda"):
        for each in prepare(cells, units, settings, kind):
            expected = Sparse if kind == "cpu" and settings.scaling == "none" else Tensor
            assert isinstance(each.cells.x, expected)
            assert isinstance(each.x, Tensor) and isinstance(each.test, Tensor | None)
            assert each.cells.x.device == CPU


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_large_input_is_a_view_of_the_cells_for_either(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    cells = normalized(sealed(), PREPROCESS.target_sum)
    assert cells.test is not None
    for each in prepare(cells, inputs().units, PREPROCESS, kind):
        for x, dataset in ((each.cells.x, cells.dataset), (each.x, cells.dataset), (each.test, cells.test)):
            if x is not None:
                assert isinstance(x, Sparse) and isinstance(dataset.x, sp.csr_matrix)
                assert x.values.data_ptr() == dataset.x.data.__array_interface__["data"][0]


def test_the_kind_of_device_is_what_inputs_are_prepared_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(*given: Any) -> list[Prepared]:
        seen.append(given[-1])
        return prepare(*given)

    monkeypatch.setattr(module, "prepare", noted)
    monkeypatch.setattr(Prepared, "on", lambda self, device: self)  # there may be no such device
    given = inputs()
    for device in ("cpu", "cuda:1", "cuda:0"):
        given.prepared(PLAIN, torch.device(device))
    assert seen == ["cpu", "cuda", "cuda"]


def test_prepared_goes_to_a_device_with_all_that_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory stands in for a GPU."""
    *_, everywhere = inputs().prepared(PREPROCESS, CPU)
    there = everywhere.on(torch.device("meta"))
    assert there.test is not None
    assert {x.device.type for x in (there.cells.x, there.x, there.test)} == {"meta"}
    assert there.cells.labels.device == there.cells.domains.device == CPU
    here = everywhere.on(CPU)
    assert here.cells is everywhere.cells and here.x is everywhere.x and here.test is everywhere.test


# Made once


def test_input_is_made_once_and_shared(fitted: list[PreprocessSettings]) -> None:
    given = inputs()
    once, again = given.prepared(PLAIN, CPU), given.prepared(PLAIN, CPU)
    assert [one.cells for one in once] == [one.cells for one in again]  # the same objects: mini-batches are shared
    assert len(fitted) == len(given.units)


def test_a_few_preprocessings_are_kept_the_last_ones_used(fitted: list[PreprocessSettings]) -> None:
    given = inputs()
    wanted = [PreprocessSettings(clip=1.0 + number) for number in range(KEPT + 1)]
    for settings in [*wanted[:KEPT], wanted[0], wanted[KEPT], wanted[0]]:
        given.prepared(settings, CPU)
    assert fitted[:: len(given.units)] == wanted
    given.prepared(wanted[1], CPU)
    assert fitted[-1] == wanted[1]


def test_large_inputs_are_kept_as_far_as_there_is_room(
    fitted: list[PreprocessSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs()
    wanted = [PreprocessSettings(clip=1.0 + number) for number in range(3)]
    monkeypatch.setattr(module, "KEPT_BYTES", 2 * given.bytes(wanted[0], CPU))
    for settings in [wanted[1], wanted[0], wanted[2], wanted[0], wanted[1]]:
        given.prepared(settings, CPU)
    assert fitted[:: len(given.units)] == [*wanted, wanted[1]]
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    given.prepared(wanted[2], CPU)
    given.prepared(wanted[2], CPU)
    assert fitted[:: len(given.units)] == [*wanted, *wanted[1:]]


def test_cells_are_normalised_once_for_all_preprocessings_of_a_target_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(cells: SearchCells, target_sum: float) -> SearchCells:
        seen.append(target_sum)
        return normalized(cells, target_sum)

    monkeypatch.setattr(module, "normalized", noted)
    given = inputs()
    for settings in (PLAIN, PREPROCESS, replace(PLAIN, target_sum=300.0), replace(PLAIN, target_sum=300.0, clip=5.0)):
        given.prepared(settings, CPU)
    assert seen == [1e4, 300.0]
    once, other = (given.prepared(replace(PLAIN, target_sum=total), CPU)[0] for total in (1e4, 300.0))
    assert not torch.equal(dense(once.cells.x), dense(other.cells.x))


@pytest.mark.parametrize("make", [sealed, lambda: as_dense(sealed())], ids=["sparse", "dense"])
def test_normalising_leaves_the_cells_as_they_are(make: Callable[[], SearchCells]) -> None:
    cells = make()
    before = cells.dataset.fingerprint()
    after = normalized(cells, 300.0)
    assert cells.dataset.fingerprint() == before and cells.dataset.values == "counts"
    assert after.test is not None and after.dataset.values == after.test.values == "log"
    totals = np.expm1(after.dataset.x.toarray() if sp.issparse(after.dataset.x) else after.dataset.x).sum(axis=1)
    assert totals == pytest.approx(300.0, rel=1e-4)
    assert after.folds is cells.folds and after.dataset.labels is cells.dataset.labels


def test_bytes_are_those_of_every_unit() -> None:
    cells = sealed()
    given = inputs(cells)
    assert cells.test is not None
    read = sum(len(unit.train) + len(unit.scored) for unit in given.units) + len(cells.test)
    assert given.bytes(PREPROCESS, CPU) == 4 * 20 * read
    assert given.bytes(PreprocessSettings(n_top_genes=10, scaling="standard"), CPU) == 4 * 10 * read


def test_bytes_of_views_are_those_that_they_would_have_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    given = OwnInputs(sealed(), "leave-one-domain-out", 0, 1)
    stored = 0
    for each in given.prepared(PREPROCESS, CPU):
        for x in (each.cells.x, each.x, each.test):
            stored += 8 * int(x.counts.sum()) if isinstance(x, Sparse) else 0
    assert given.bytes(PREPROCESS, CPU) == stored > 0


def test_cells_of_a_unit_are_told_apart_from_those_of_another() -> None:
    prepared = inputs().prepared(PLAIN, CPU)
    assert len({id(each.cells) for each in prepared}) == len(prepared)
    assert all(isinstance(each.cells, Cells) for each in prepared)


def test_models_of_trials_train_on_some_cells_and_are_scored_on_all() -> None:
    cells = sealed()
    full, some = (OwnInputs(cells, "leave-one-domain-out", 0, 1, most=most) for most in (0, 30))
    for one, other in zip(full.units, some.units, strict=True):
        codes = np.stack([cells.dataset.labels[one.train], cells.dataset.batches[one.train]])
        assert len(other.train) <= max(30, np.unique(codes, axis=1).shape[1])
        assert set(other.train) < set(one.train) and np.array_equal(other.scored, one.scored)
        assert set(cells.dataset.labels[other.train]) == set(cells.dataset.labels[one.train])
    assert OwnInputs(cells, "leave-one-domain-out", 0, 1, most=10**6).units[0].train is full.units[0].train


def test_units_of_many_cells_are_scored_on_some_that_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = sealed()
    full, whole = (OwnInputs(cells, "leave-one-domain-out", 0, 1, whole, 10**6) for whole in (False, True))
    monkeypatch.setattr(module, "SCORED", 12)
    monkeypatch.setattr(left_out, "MOST_KEPT", 7)
    some, kept, unlimited = (
        OwnInputs(cells, "leave-one-domain-out", 0, 1, whole, most)
        for whole, most in ((False, 10**6), (True, 10**6), (True, 0))
    )
    labels = cells.dataset.labels
    for one, other in zip(full.units, some.units, strict=True):
        assert set(other.scored) < set(one.scored) and other.weights is not None and other.kept is None
        found = np.bincount(labels[other.scored], other.weights)
        np.testing.assert_allclose(found, np.bincount(labels[one.scored]))
    for one, other, all_of_them in zip(whole.units, kept.units, unlimited.units, strict=True):
        assert other.kept is not None
        assert np.array_equal(other.kept, one.scored[left_out.drawn(len(one.scored)).numpy()])
        assert set(other.kept) <= set(other.scored) < set(one.scored)
        assert all_of_them.weights is None and np.array_equal(all_of_them.scored, one.scored)


def test_what_is_kept_of_some_cells_is_what_is_kept_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw of cells left out that choose at the end does not depend on which are scored."""
    monkeypatch.setattr(left_out, "MOST_KEPT", 7)
    found = []
    for scored in (10**6, 12):
        monkeypatch.setattr(module, "SCORED", scored)
        told = Told()
        given = OwnInputs(sealed(), "leave-one-domain-out", 0, 1, whole=True, most=10**6)
        Objective(given, "macro_f1", CPU)([trial(0)], told)
        found.append(told.outcomes[0].left_out)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.rows, other.rows) and torch.equal(one.labels, other.labels)
        assert torch.allclose(one.logits, other.logits, atol=1e-5)

"""Adaptation: a query's cells that can be told take part in training, and what they carry as a label does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.splits import hold_out
from scdgn.core import adaptation
from scdgn.core.adaptation import CONFIDENCE, ROUNDS, joined
from scdgn.core.config import UNLABELED, Settings
from scdgn.core.correction import corrected_logits
from scdgn.core.expression import Sparse, compressed
from scdgn.core.pack.members import Cells
from scdgn.model.fitting import fit
from scdgn.search.stages import calibration
from tests.faults import tiny
from tests.test_calibration import PREPROCESS, SETTINGS, fold_units, sealed
from tests.test_correction import TYPES, drawn, trained

FITTED = Settings(method="nn", hidden=16, latent=8, epochs=25, batch_size=32, lr=0.01)


def query(shift: float = 0.0, seed: int = 7, label: int = UNLABELED) -> tuple[Cells, torch.Tensor]:
    """150 cells of a fourth domain, and what they are."""
    x, types = drawn(np.arange(150) % TYPES, shift, seed)
    domains = torch.full((150,), 3)
    return Cells(x, torch.full((150,), label), domains, TYPES, 4), torch.from_numpy(types)


def test_the_cells_that_can_be_told_join_with_their_types_and_their_domain() -> None:
    models, reference, cells = trained()
    asked, types = query()
    more = joined(cells, asked, models, reference)
    count = len(more.labels) - len(cells.labels)
    _, logits = corrected_logits(models, asked.x, reference)
    sure = logits.softmax(dim=2).mean(dim=0).amax(dim=1) >= CONFIDENCE
    assert count == int(sure.sum()) and 100 < count < 150
    assert torch.equal(more.x[:600], cells.x) and torch.equal(more.x[600:], asked.x[sure])
    assert torch.equal(more.labels[:600], cells.labels) and (more.domains[600:] == 3).all() and more.domain_count == 4
    assert (more.labels[600:] == types[sure]).float().mean() > 0.95


def test_a_query_that_is_far_is_corrected_before_it_teaches() -> None:
    models, reference, cells = trained()
    asked, types = query(shift=1.5)
    right = []
    for known in (None, reference):
        more = joined(cells, asked, models, known)
        told = more.labels[600:]
        places = (more.x[600:, None] == asked.x[None]).all(dim=2).nonzero()[:, 1]
        right.append(int((told == types[places]).sum()))
    assert right[1] > right[0] + 20


def test_labels_that_a_query_carries_are_not_looked_at() -> None:
    models, reference, cells = trained()
    one, other = (joined(cells, query(label=label)[0], models, reference) for label in (UNLABELED, 2))
    assert torch.equal(one.labels, other.labels)


def test_where_nothing_can_be_told_the_training_cells_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    models, reference, cells = trained()
    monkeypatch.setattr(adaptation, "CONFIDENCE", 1.1)
    assert joined(cells, query()[0], models, reference) is cells


def test_sparse_cells_are_joined_alike() -> None:
    models, reference, cells = trained()
    asked, _ = query()
    dense = joined(cells, asked, models, reference)
    sparse = joined(replace(cells, x=compressed(cells.x)), replace(asked, x=compressed(asked.x)), models, reference)
    assert isinstance(sparse.x, Sparse) and torch.equal(sparse.labels, dense.labels)
    assert torch.allclose(sparse.x[torch.arange(len(sparse.labels))].dense(), dense.x)


def test_a_fit_adapts_for_its_rounds_and_says_how_many_cells_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: Dataset = from_anndata(tiny(depth=2000.0), Fields("celltype", "tech"))
    split = hold_out(dataset, "c")
    query = dataset.take(split.test)
    taught: list[bool] = []

    def spy(cells: Cells, query: Cells, models: object, reference: object) -> Cells:
        taught.append(reference is not None)
        return joined(cells, query, models, reference)  # type: ignore[arg-type]

    monkeypatch.setattr("scdgn.model.fitting.joined", spy)
    prepare = PreprocessSettings(n_top_genes=20)
    bundle = fit(dataset, split.train, FITTED, prepare, [0, 1], device="cpu", query=[query])
    assert taught == [True] + [False] * (ROUNDS - 1)
    assert bundle.provenance["unlabeled_cells"] == len(query) >= bundle.provenance["adapted_cells"] > 0
    assert bundle.provenance["transductive"] and bundle.provenance["training_cells"] == len(split.train)
    plain = fit(dataset, split.train, FITTED, prepare, [0, 1], device="cpu")
    assert plain.provenance["adapted_cells"] == 0 and not plain.provenance["transductive"]
    one, other = (each.parts[0].reference for each in (plain, bundle))
    assert one is not None and other is not None
    assert torch.equal(one.means, other.means)  # a query is compared with known cells alone


def test_models_that_are_sure_of_nothing_any_more_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: Dataset = from_anndata(tiny(depth=2000.0), Fields("celltype", "tech"))
    split = hold_out(dataset, "c")

    def once(cells: Cells, query: Cells, models: object, reference: object) -> Cells:
        return cells if reference is None else joined(cells, query, models, reference)  # type: ignore[arg-type]

    monkeypatch.setattr("scdgn.model.fitting.joined", once)
    prepare, query = PreprocessSettings(n_top_genes=20), [dataset.take(split.test)]
    bundle = fit(dataset, split.train, FITTED, prepare, [0], device="cpu", query=query)
    assert bundle.provenance["adapted_cells"] > 0


def test_in_a_fold_the_domain_left_out_is_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = sealed()
    units = fold_units(cells, [3, 4])
    seen: list[Cells] = []

    def spy(own: Cells, query: Cells, models: object, reference: object) -> Cells:
        seen.append(query)
        return joined(own, query, models, reference)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration, "joined", spy)
    monkeypatch.setattr(adaptation, "CONFIDENCE", 0.4)
    adapted = calibration.predict_left_out(cells, units, SETTINGS, PREPROCESS, "cpu", adapting=True)
    plain = calibration.predict_left_out(cells, units, SETTINGS, PREPROCESS, "cpu")
    assert len(seen) == ROUNDS * len(units)
    for unit, query, one, other in zip(units, seen, adapted, plain, strict=False):
        assert len(query.labels) == len(unit.held_out) and (query.labels == UNLABELED).all()
        assert set(query.domains.tolist()) == set(cells.dataset.batches[unit.held_out].tolist())
        assert torch.equal(one.rows, other.rows) and not torch.equal(one.logits, other.logits)

"""Genes that speak for the labels of a query: against the axioms, captum's own way and markers that were put there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from captum.attr import IntegratedGradients
from torch.nn import functional

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.model import attribution
from scdgn.model.annotate import predictions
from scdgn.model.attribution import Explanation, integrated_gradients
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from tests.faults import SETTINGS, tiny


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return from_anndata(tiny(depth=4000.0, marker_strength=4.0), Fields("celltype", "tech"))


@pytest.fixture(scope="module", params=["none", "standard"])
def bundle(request: pytest.FixtureRequest, dataset: Dataset) -> Bundle:
    settings = Settings.from_mapping({**SETTINGS, "epochs": 30})
    return fit(dataset, np.arange(len(dataset)), settings, PreprocessSettings(scaling=request.param), [0, 1])


def test_over_all_genes_they_sum_to_what_the_cells_differ_by(bundle: Bundle, dataset: Dataset) -> None:
    model, x = bundle.models[0], bundle.input(dataset).leading
    mean = torch.from_numpy(bundle.preprocessing.silent)
    assert torch.allclose(mean, x.mean(dim=0), atol=1e-3)  # of these cells, on which it was trained
    for code in range(3):
        found = integrated_gradients(model, x, mean, code)
        logits = model.forward(torch.cat([x, mean[None]]))[1]
        centred = logits[:, code] - logits.mean(dim=1)
        assert found.sum() == pytest.approx(float((centred[:-1] - centred[-1]).mean()), abs=2e-3)


def test_the_way_by_the_first_layer_is_the_way_by_the_genes(bundle: Bundle, dataset: Dataset) -> None:
    model, x = bundle.models[0], bundle.input(dataset).leading[:20]
    mean = torch.from_numpy(bundle.preprocessing.silent)

    def centred(at: torch.Tensor) -> torch.Tensor:
        for layer in ("hidden", "latent"):
            at = torch.tanh(
                functional.linear(at, model.weights[f"{layer}.weight"], model.weights[f"{layer}.bias"][:, 0])
            )
        logits = functional.linear(at, model.weights["label.weight"], model.weights["label.bias"][:, 0])
        return logits - logits.mean(dim=1, keepdim=True)

    expected = IntegratedGradients(centred).attribute(x, mean[None], target=1, n_steps=attribution.STEPS)
    assert np.allclose(integrated_gradients(model, x, mean, 1), expected.mean(dim=0).detach(), atol=1e-4)


def explained(bundle: Bundle, dataset: Dataset, at_once: int) -> pd.DataFrame:
    explanation = Explanation(bundle)
    for start in range(0, len(dataset), at_once):
        rows = np.arange(start, min(start + at_once, len(dataset)))
        predictions(dataset.take(rows), bundle, explanation=explanation)
    return explanation.table()


def test_some_cells_at_a_time_as_all_at_once(bundle: Bundle, dataset: Dataset) -> None:
    whole = explained(bundle, dataset, len(dataset)).set_index(["label", "gene"])
    parts = explained(bundle, dataset, 33).set_index(["label", "gene"])
    assert whole.index.equals(parts.index)
    assert np.allclose(whole, parts, atol=1e-5)
    assert (whole.groupby("label")["attribution"].diff().dropna() <= 0).all() and (whole["attribution"] > 0).all()


def test_many_cells_of_a_label_are_told_by_some_of_them_and_count_by_their_number(
    bundle: Bundle, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "CELLS_PER_LABEL", 5)
    x, mean = bundle.input(dataset).leading, torch.from_numpy(bundle.preprocessing.silent)
    explanation = Explanation(bundle)
    explanation.add(x[:41], np.zeros(41, dtype=np.int64))
    explanation.add(x[41:50], np.zeros(9, dtype=np.int64))

    def told(rows: list[int]) -> np.ndarray:
        return np.mean([integrated_gradients(model, x[rows], mean, 0) for model in bundle.models], axis=0)

    expected = (41 * told([0, 10, 20, 30, 40]) + 9 * told([41, 43, 45, 47, 49])) / 50
    found = explanation.table().set_index("gene")["attribution"]
    assert np.allclose(found, pd.Series(expected, index=bundle.preprocessing.genes)[found.index], atol=1e-6)


def test_the_first_gene_is_the_one_that_marks_the_type() -> None:
    codes = np.arange(120) % 3
    x = np.random.default_rng(0).poisson(5, (120, 12))
    x[np.arange(120), codes] += 40
    genes = pd.DataFrame(index=[f"g{place}" for place in range(12)])
    obs = pd.DataFrame({"type": np.array(list("abc"))[codes], "batch": np.array(["x", "y"])[np.arange(120) // 60]})
    marked = from_anndata(
        AnnData(x.astype(np.float32), obs.set_index(obs.index.astype(str)), genes), Fields("type", "batch")
    )
    trained = fit(
        marked,
        np.arange(120),
        Settings.from_mapping({**SETTINGS, "epochs": 300, "method": "nn"}),
        PreprocessSettings(),
        [0],
    )
    table = explained(trained, marked, 120)
    assert table.loc[table["rank"] == 1, ["label", "gene"]].to_numpy().tolist() == [
        ["a", "g0"],
        ["b", "g1"],
        ["c", "g2"],
    ]
    assert (table.loc[table["rank"] == 1, "shift"] > 0).all()


def test_a_label_that_the_leading_part_does_not_know_has_no_genes(bundle: Bundle, dataset: Dataset) -> None:
    part = bundle.parts[0]
    model = replace(part.models[0], types=torch.tensor([True, True, False]))
    explanation = Explanation(replace(bundle, parts=(replace(part, models=(model,), history=()),)))
    explanation.add(bundle.input(dataset).leading, dataset.labels)
    assert set(explanation.table()["label"]) == set(bundle.cell_types[:2])
    assert Explanation(bundle).table().empty

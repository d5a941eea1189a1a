"""Attributions against their axioms, the whole path through captum and the authors' loop; markers by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import read_h5ad
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from scdgn.analysis.chapters.genes import ASCENT_STEPS, attribution, heat_map, marker_summary, markers, section
from scdgn.analysis.chapters.markers import known_markers
from scdgn.analysis.page.sections import Picture, Table, Text
from scdgn.analysis.page.style import plain
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, Described
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.preprocess import Preprocessing
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import UNLABELED, Settings
from scdgn.core.networks import Model, initial_parameters, layer_sizes
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.model.parts import Part

TYPES = ("alpha", "b $x$ <i>&_%", "gamma")
GENES = tuple(f"g{number}" for number in range(12))


def model(seed: int, types: int, genes: int, scale: float = 1.0) -> Model:
    settings = Settings.from_mapping({"method": "nn", "hidden": 7, "latent": 5})
    weights = initial_parameters(layer_sizes(settings, genes, types, 2), "normal", seed, torch.float32)
    return Model({name: scale * weight for name, weight in weights.items()}, torch.ones(types, dtype=torch.bool))


def bundle(models: Sequence[Model], types: Sequence[str], genes: Sequence[str] = GENES) -> Bundle:
    settings = Settings.from_mapping({"method": "nn", "hidden": 7, "latent": 5})
    size = len(genes)
    names = np.array(genes)
    preprocessing = Preprocessing(
        names, names, np.zeros(size, np.float32), np.ones(size, np.float32), PreprocessSettings()
    )
    return Bundle((Part(tuple(models), settings, preprocessing, ("one", "two")),), tuple(types))


def example(
    labels: Sequence[int], parts: Sequence[str] | None = None, models: Sequence[Model] | None = None, seed: int = 0
) -> Described:
    """Cells with random log-normalised values; label i has much of gene i."""
    types = TYPES[: max(3, max(labels, default=0) + 1)]
    codes = np.array(labels, dtype=np.int64)
    x = np.random.default_rng(seed).random((len(codes), len(GENES))).astype(np.float32)
    x[np.arange(len(codes)), codes] += 3
    dataset = Dataset(
        x,
        "log",
        np.array(GENES),
        np.array([f"c{number}" for number in range(len(codes))]),
        codes,
        types,
        np.arange(len(codes), dtype=np.int64) % 2,
        ("one", "two"),
    )
    whole = bundle(models or [model(0, len(types), len(GENES)), model(1, len(types), len(GENES))], types)
    part = np.array(parts if parts is not None else [TRAINING] * len(codes), dtype=str)
    latent, probabilities = whole.outputs(whole.input(dataset)) if len(codes) else (np.zeros((0, 5)), np.zeros((0, 3)))
    return Described(dataset, part, whole, codes, probabilities, latent)


def network(one: Model) -> nn.Sequential:
    """The same network as a user of torch would write it."""
    layers: list[nn.Module] = []
    for name in ("hidden", "latent", "label"):
        weight = one.weights[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.clone(), one.weights[f"{name}.bias"][:, 0].clone()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def centred(net: nn.Module, x: Tensor) -> Tensor:
    """Logits against their mean."""
    logits: Tensor = net(x)
    return logits - logits.mean(dim=1, keepdim=True)


def of(frame: pd.DataFrame, name: str, column: str = "Integrated gradient") -> pd.Series:
    """A column of one type, by gene."""
    return frame[frame["Type"] == name].set_index("Gene")[column].loc[list(GENES)]


LABELS = [0] * 9 + [1] * 6 + [2] * 5


def test_contributions_sum_to_what_tells_the_type_from_the_mean_cell() -> None:
    cells = example(LABELS)
    frame = attribution(cells)
    x = torch.from_numpy(cells.dataset.x)
    for code, name in enumerate(TYPES):
        own, mean = x[cells.labels == code], x.mean(dim=0, keepdim=True)
        gaps = [
            centred(net, own)[:, code].mean() - centred(net, mean)[0, code] for net in map(network, cells.bundle.models)
        ]
        assert of(frame, name).sum() == pytest.approx(float(torch.stack(gaps).mean().detach()), abs=2e-4)


def test_attributions_are_those_of_captum_on_the_whole_network() -> None:
    from captum.attr import IntegratedGradients

    cells = example(LABELS)
    frame = attribution(cells)
    x = torch.from_numpy(cells.dataset.x)
    for code, name in enumerate(TYPES):
        each = []
        for net in map(network, cells.bundle.models):
            own = x[cells.labels == code].requires_grad_()
            found = IntegratedGradients(lambda at, net=net: centred(net, at)).attribute(
                own, baselines=x.mean(dim=0, keepdim=True), target=code, n_steps=64
            )
            each.append(found.detach().mean(dim=0))
        np.testing.assert_allclose(of(frame, name), torch.stack(each).mean(dim=0), atol=1e-4)


def test_a_nearly_linear_network_attributes_weight_times_difference() -> None:
    small = model(0, 3, len(GENES), scale=1e-2)
    cells = example(LABELS, models=[small])
    x = cells.dataset.x
    chain = small.weights["label.weight"] @ small.weights["latent.weight"] @ small.weights["hidden.weight"]
    slopes = (chain - chain.mean(dim=0, keepdim=True)).numpy()
    frame = attribution(cells)
    for code, name in enumerate(TYPES):
        expected = slopes[code] * (x[cells.labels == code].mean(axis=0) - x.mean(axis=0))
        np.testing.assert_allclose(of(frame, name), expected, rtol=2e-3, atol=1e-11)
        np.testing.assert_allclose(
            of(frame, name, "Shift"), x[cells.labels == code].mean(axis=0) - x.mean(axis=0), atol=1e-5
        )


def test_the_ascent_is_that_of_the_authors_loop() -> None:
    cells = example(LABELS)
    frame = attribution(cells)
    for code, name in enumerate(TYPES):
        moved = []
        for net in map(network, cells.bundle.models):
            at = torch.zeros(1, len(GENES))
            for _ in range(ASCENT_STEPS):
                at = at.clone().requires_grad_()
                net(at)[:, code : code + 1].backward()
                assert at.grad is not None
                at = at.data + at.grad.data
            moved.append(at[0])
        expected = torch.stack(moved).mean(dim=0).numpy()
        np.testing.assert_allclose(of(frame, name, "Ascent"), expected, rtol=1e-3, atol=1e-4)
        order = np.array(GENES)[np.argsort(-np.abs(expected))]
        own = frame[frame["Type"] == name].sort_values("Ascent rank")
        assert own["Gene"].tolist() == order.tolist()


def test_ranks_begin_with_the_gene_that_speaks_most() -> None:
    frame = attribution(example(LABELS))
    for _, own in frame.groupby("Type"):
        assert own["Rank"].tolist() == list(range(1, len(GENES) + 1))
        assert own["Integrated gradient"].is_monotonic_decreasing


def test_training_cells_alone_are_asked() -> None:
    parts = [TRAINING] * len(LABELS) + [TEST] * 4 + [VALIDATION] * 4
    more = example([*LABELS, 0, 0, 1, 2, 0, 1, 2, 2], parts)
    alone = more.take(np.arange(len(LABELS)))
    pd.testing.assert_frame_equal(attribution(more), attribution(alone))


def test_types_without_a_training_cell_are_left_out_and_one_cell_is_enough() -> None:
    cells = example([0, 0, 0, 2], [TRAINING, TRAINING, TRAINING, TRAINING])
    assert attribution(cells)["Type"].unique().tolist() == [TYPES[0], TYPES[2]]
    unlabelled = replace(cells, labels=np.full(4, UNLABELED))
    assert attribution(unlabelled).empty and section(unlabelled) is None
    query = replace(cells, part=np.array([TEST] * 4))
    assert attribution(query).empty and section(query) is None


def test_a_model_that_does_not_know_a_type_has_no_say_in_it() -> None:
    first, second = model(0, 3, len(GENES)), model(1, 3, len(GENES))
    partial = Model(second.weights, torch.tensor([True, False, True]))
    frame = attribution(example(LABELS, models=[first, partial]))
    alone = attribution(example(LABELS, models=[first]))
    assert of(frame, TYPES[1]).tolist() == pytest.approx(of(alone, TYPES[1]).tolist())
    assert of(frame, TYPES[0]).tolist() != pytest.approx(of(alone, TYPES[0]).tolist())


def test_many_cells_are_drawn_the_same_way_every_time() -> None:
    cells = example([0] * 40 + [1] * 40)
    first, again, all_of_them = attribution(cells, per_type=5), attribution(cells, per_type=5), attribution(cells)
    pd.testing.assert_frame_equal(first, again)
    assert of(first, TYPES[0]).tolist() != of(all_of_them, TYPES[0]).tolist()


def ranking() -> pd.DataFrame:
    """Five genes of one type; e moved farthest, downwards."""
    return pd.DataFrame(
        {
            "Type": ["T"] * 5,
            "Gene": list("abcde"),
            "Integrated gradient": [5.0, 4.0, 3.0, 2.0, 1.0],
            "Rank": [1, 2, 3, 4, 5],
            "Ascent": [0.1, 0.2, 0.3, 0.4, -0.9],
            "Ascent rank": [5, 4, 3, 2, 1],
            "Shift": [1.0, 2.0, 0.0, 3.0, 4.0],
        }
    )


def test_markers_by_hand() -> None:
    known = {"T": ("a", "c", "absent"), "other": ("b",)}
    each = markers(ranking(), known)
    assert each["Gene"].tolist() == ["a", "c"]
    assert each["Percentile"].tolist() == [100, 50] and each["Ascent percentile"].tolist() == [0, 50]
    row = marker_summary(ranking(), known).iloc[0]
    assert (row["Known"], row["Present"], row["Median percentile"]) == (3, 2, 75)
    # Of the six pairs of a marker with another gene: a wins 3 and c 2; by ascent, c wins over b; by shift, none.
    assert row["AUROC"] == pytest.approx(5 / 6)
    assert row["Ascent AUROC"] == pytest.approx(1 / 6)
    assert row["Expression AUROC"] == 0


def test_auroc_is_that_of_scikit_learn() -> None:
    frame = attribution(example(LABELS))
    frame["Shift"] = frame["Shift"].round(1)  # with equal values
    known = dict.fromkeys(TYPES, ("g0", "g3", "g7"))
    for _, row in marker_summary(frame, known).iterrows():
        own = frame[frame["Type"] == row["Type"]]
        chosen = own["Gene"].isin(known[row["Type"]])
        assert row["AUROC"] == pytest.approx(roc_auc_score(chosen, own["Integrated gradient"]))
        assert row["Ascent AUROC"] == pytest.approx(roc_auc_score(chosen, own["Ascent"].abs()))
        assert row["Expression AUROC"] == pytest.approx(roc_auc_score(chosen, own["Shift"]))


def test_no_marker_among_the_genes_and_no_other_gene() -> None:
    assert markers(ranking(), {"T": ("z",)}).empty and marker_summary(ranking(), {"T": ("z",)}).empty
    assert markers(ranking(), {}).empty
    assert np.isnan(marker_summary(ranking(), {"T": tuple("abcde")})["AUROC"].iloc[0])


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("CD4 T", "IL7R"),
        ("CD14+ Monocytes", "S100A8"),
        ("FCGR3A+ Mono", "FCGR3A"),
        ("Natural killer cells", "GNLY"),
        ("B cells", "MS4A1"),
        ("Platelets", "PPBP"),
        ("CD8 T cell", "CD8A"),
    ],
)
def test_names_of_types_are_understood_as_people_write_them(name: str, gene: str) -> None:
    assert gene in known_markers([name])[name]


def test_types_of_another_tissue_have_no_markers() -> None:
    assert set(known_markers(["alpha", "beta", "quiescent_stellate"])) == {"alpha", "beta", "quiescent_stellate"}
    assert known_markers(["alpha", "neuron", "astrocyte"]) == {}
    assert known_markers([]) == {}


def test_a_section_says_what_it_shows() -> None:
    found = section(example(LABELS))
    assert found is not None
    assert [item.key for item in found.items if isinstance(item, Picture | Table)] == ["genes", "genes-top"]
    assert any(isinstance(item, Text) and "No known marker gene" in item.words for item in found.items)


def test_of_many_types_those_with_the_most_cells_are_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.analysis.chapters.genes.MOST_TYPES", 2)
    found = section(example([0, 1, 1, 2, 2, 2]))
    assert found is not None
    picture = next(item for item in found.items if isinstance(item, Picture))
    assert picture.caption.endswith("Of 3 types the 2 with the most training cells.")
    assert [label.get_text() for label in picture.draw().axes[0].get_xticklabels()] == list(map(plain, TYPES[1:3]))
    table = next(item for item in found.items if isinstance(item, Table))
    assert set(table.frame["Type"]) == set(TYPES[:3])


def test_forty_types_fit_a_picture() -> None:
    draws = np.random.default_rng(0)
    names = [f"type ${number} _ with a long name" for number in range(40)]
    frame = pd.DataFrame(
        [(name, f"g{gene}", draws.normal(), gene + 1, 0.0, gene + 1, -1.0) for name in names for gene in range(3)],
        columns=ranking().columns,
    )
    figure = heat_map(frame)
    figure.draw_without_rendering()
    assert len(figure.axes[0].get_xticklabels()) == 40


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of anndata, for the file's old form
def test_known_markers_of_blood_rank_high_in_a_network_trained_on_real_cells(pbmc_file: Path) -> None:
    dataset = from_anndata(read_h5ad(pbmc_file), Fields("celltype", "tech"))
    rows = np.flatnonzero(dataset.batches != dataset.batch_names.index("kang10xV1_STIM"))
    settings = Settings.from_mapping({"method": "nn", "hidden": 32, "latent": 16, "epochs": 8})
    trained = fit(dataset, rows, settings, PreprocessSettings(scaling="standard"), [0])
    own = dataset.take(rows)
    latent, probabilities = trained.outputs(trained.input(own))
    cells = Described(own, np.array([TRAINING] * len(rows)), trained, own.labels, probabilities, latent)
    summary = marker_summary(attribution(cells), known_markers(cells.cell_types))
    assert len(summary) == 8
    assert summary["AUROC"].mean() > 0.85 and summary["Median percentile"].median() > 95

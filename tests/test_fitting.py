"""From labelled cells to a bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.preprocess import fit as fit_preprocessing
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.splits import hold_out
from scdgn.core.config import UNLABELED, Method, Settings
from scdgn.core.pack.members import Member
from scdgn.core.training import Report, Trained, train
from scdgn.errors import DataError, DeviceError, SettingsError, TrainingError
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import evaluate
from scdgn.model.fitting import StopEarly, adapting, find_device, fit, training_cells
from tests.faults import SETTINGS, TYPES, tiny

METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")
PREPROCESS = PreprocessSettings(n_top_genes=20, scaling="standard")


@pytest.fixture
def dataset() -> Dataset:
    return from_anndata(tiny(), Fields("celltype", "tech"))


def fitted(dataset: Dataset, rows: Any = None, method: Method = "scdgn", **more: Any) -> Bundle:
    rows = np.arange(len(dataset)) if rows is None else rows
    changes = {key: more.pop(key) for key in list(more) if key in Settings().to_mapping()}
    settings = Settings.from_mapping({"method": method, **SETTINGS, **changes})
    return fit(dataset, rows, settings, PREPROCESS, more.pop("seeds", [0]), **more)


def same(one: Bundle, two: Bundle) -> bool:
    return all(
        torch.equal(a.weights[name], b.weights[name])
        for a, b in zip(one.models, two.models, strict=True)
        for name in a.weights
    )


@pytest.mark.parametrize("method", METHODS)
def test_cells_that_do_not_train_are_not_looked_at(dataset: Dataset, method: Method) -> None:
    split = hold_out(dataset, "c")
    bundle = fitted(dataset, split.train, method)
    other = dataset.x.toarray()
    other[split.test] = np.random.default_rng(0).poisson(100, other[split.test].shape)
    labels = dataset.labels.copy()
    labels[split.test] = 0
    assert same(bundle, fitted(replace(dataset, x=other, labels=labels), split.train, method))
    other[split.train[0]] += 5
    assert not same(bundle, fitted(replace(dataset, x=other), split.train, method))


@pytest.mark.parametrize("method", METHODS)
def test_a_pack_of_seeds_is_its_models_trained_alone(dataset: Dataset, method: Method) -> None:
    pack = fitted(dataset, method=method, seeds=[5, 2, 9])
    for place, seed in enumerate((5, 2, 9)):
        (alone,) = fitted(dataset, method=method, seeds=[seed]).models
        for name, weight in alone.weights.items():
            assert torch.allclose(pack.models[place].weights[name], weight, rtol=0, atol=1e-5)
    assert len(pack.history) == 3 and pack.provenance["seeds"] == [5, 2, 9]


@pytest.mark.parametrize("stop_early", [None, StopEarly(0.3, patience=1)])
def test_seeds_that_do_not_fit_into_memory_together_train_apart(
    dataset: Dataset, stop_early: StopEarly | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def small(members: Sequence[Member], *rest: Any, **more: Any) -> list[Trained]:
        sizes.append(len(members))
        outcomes = train(members, *rest, **more)  # what was trained until then must leave no trace
        if len(members) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return outcomes

    together = fitted(dataset, seeds=[5, 2, 9], stop_early=stop_early)
    monkeypatch.setattr("scdgn.model.fitting.train", small)
    most = 1
    apart = fitted(dataset, seeds=[5, 2, 9], stop_early=stop_early)
    assert sizes == [3, 2, 1, 1, 1]
    assert apart.provenance["epochs"] == together.provenance["epochs"] and len(apart.history) == 3
    for mine, other in zip(apart.models, together.models, strict=True):
        assert all(torch.allclose(mine.weights[name], other.weights[name], atol=1e-5) for name in mine.weights)
    most = 0
    with pytest.raises(TrainingError, match="the memory of cpu does not suffice for one model: train smaller layers"):
        fitted(dataset, seeds=[5, 2], stop_early=stop_early)


def test_types_of_held_out_cells_shape_no_network(dataset: Dataset) -> None:
    rows = np.flatnonzero(dataset.labels != TYPES.index("NK"))
    bundle = fitted(dataset, rows)
    assert bundle.cell_types == ("B", "T")
    assert bundle.models[0].weights["label.weight"].shape[0] == 2
    assert bundle.probabilities(bundle.input(dataset)).shape == (140, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_unlabelled_cells_join_with_their_weight(dataset: Dataset, method: Method, weight: float) -> None:
    split = hold_out(dataset, "c")
    query = dataset.take(split.test)
    more = {"query_weight": weight, "pseudo_confidence": 0.0}
    alone = fitted(dataset, split.train, method, **more)
    joined = fitted(dataset, split.train, method, **more, unlabeled=[query])
    relabelled = replace(query, labels=np.zeros(len(query), dtype=np.int64))
    assert same(joined, fitted(dataset, split.train, method, **more, unlabeled=[relabelled]))
    takes_part = method != "nn" and weight > 0
    assert same(alone, joined) is not takes_part
    assert joined.provenance["transductive"] is takes_part
    assert joined.provenance["unlabeled_cells"] == (len(query) if takes_part else 0)


def test_adapting_gives_weight_to_cells_that_have_none() -> None:
    assert adapting(Settings()).query_weight == 1
    assert adapting(Settings(query_weight=0.3)).query_weight == 0.3


def test_batches_of_a_query_are_matched_by_name(dataset: Dataset) -> None:
    split = hold_out(dataset, "c")
    preprocessing = fit_preprocessing(dataset, split.train, PREPROCESS)
    known, new = dataset.take(split.test), tiny(cells={"b": 10, "d": 12, "a": 8})
    other = from_anndata(new, Fields(None, "tech"))
    cells, names = training_cells(preprocessing, dataset, split.train, [known, other], torch.device("cpu"), units=128)
    assert names == ("a", "b", "c", "d")
    assert cells.x.shape == (100 + 40 + 30, 20)
    assert [names[code] for code in cells.domains[140:].tolist()] == new.obs["tech"].tolist()
    assert (cells.labels[:100] >= 0).all() and (cells.labels[100:] == UNLABELED).all()


def test_early_stopping_sets_cells_of_every_type_aside(dataset: Dataset) -> None:
    reports: list[Report] = []
    bundle = fitted(
        dataset, epochs=40, schedule="constant", stop_early=StopEarly(0.2, 2), seeds=[0, 1], on_epoch=reports.append
    )
    assert bundle.provenance["training_cells"] == pytest.approx(112, abs=2)
    ran = [len(columns["validation_macro_f1"]) for columns in bundle.history]
    assert max(ran) == len(reports) <= 40
    for columns, kept, epochs in zip(bundle.history, bundle.provenance["epochs"], ran, strict=True):
        assert epochs == min(kept + 2, 40)
        assert columns["validation_macro_f1"][kept - 1] == max(columns["validation_macro_f1"])


def test_stopping_early_out_of_range() -> None:
    with pytest.raises(SettingsError) as caught:
        StopEarly(1.5, 0)
    assert len(caught.value.faults) == 2


def test_every_epoch_is_told(dataset: Dataset) -> None:
    epochs: list[int] = []
    fitted(dataset, epochs=3, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"rows": np.arange(0)}, "has a label"),
        ({"rows": np.arange(50)}, "scdgn needs two training batches"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [3, -1]}, "whole numbers from 0"),
        ({"device": "cuda:77"}, "is not there"),
        ({"lr": 1e30, "optimizer": "sgd", "bias_init": "normal"}, "the model of seed 0 diverged"),
    ],
)
def test_what_cannot_be_fitted(dataset: Dataset, more: dict[str, Any], told: str) -> None:
    with pytest.raises((DataError, SettingsError, DeviceError, TrainingError), match=told):
        fitted(dataset, **more)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps", "meta", "cpu:x", "", "CUDA"):
        with pytest.raises(DeviceError, match="choose"):
            find_device(name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="there are 2 GPUs"):
        find_device("cuda:2")


def test_the_number_of_threads_is_the_users() -> None:
    """Selecting genes uses scanpy, whose numba takes all cores when it is first used in a process."""
    code = (
        "import torch\nfrom tests.test_fitting import *\n"
        "fitted(from_anndata(tiny(), Fields('celltype', 'tech')))\nprint(torch.get_num_threads())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        **{"capture_output": True, "text": True, "timeout": 100, "check": True},
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )
    assert ran.stdout == "1\n"


# --- evaluation


def test_scores_are_those_of_the_predictions(dataset: Dataset) -> None:
    split = hold_out(dataset, "c")
    bundle = fitted(dataset, split.train, seeds=[0, 1])
    found = evaluate(bundle, dataset, split, torch.device("cpu"))
    assert found is not None
    probabilities = bundle.probabilities(bundle.input(dataset.take(split.test)))
    truth = dataset.labels[split.test]
    assert found.ensemble.accuracy == pytest.approx((probabilities.argmax(axis=1) == truth).mean())
    record = found.to_json()
    assert record["accuracy_mean"] == pytest.approx(np.mean([scores.accuracy for scores in found.models]))
    assert (record["scored_cells"], record["unscored_cells"]) == (40, 0)


def test_cells_of_types_never_trained_are_left_out_of_the_score(dataset: Dataset) -> None:
    labels = dataset.labels.copy()
    trained = (dataset.batches != 2) & (labels != TYPES.index("B"))
    labels[(dataset.batches != 2) & ~trained] = UNLABELED
    labels[-1] = UNLABELED
    changed = replace(dataset, labels=labels)
    split = hold_out(changed, "c")
    bundle = fitted(changed, split.train)
    found = evaluate(bundle, changed, split, torch.device("cpu"))
    assert found is not None and bundle.cell_types == ("NK", "T")
    left_out = int((labels[split.test] <= 0).sum())
    assert found.unscored == left_out > 1
    names = np.array(TYPES)[labels[split.scored]]
    predicted = np.array(bundle.cell_types)[
        bundle.probabilities(bundle.input(changed.take(split.scored))).argmax(axis=1)
    ]
    assert found.ensemble.accuracy == pytest.approx((names == predicted).mean())


def test_scaling_per_batch_prepares_the_whole_test_batch(dataset: Dataset) -> None:
    """Which cells are scored must not change what the others are."""
    labels = dataset.labels.copy()
    labels[(dataset.batches == 2) & (np.arange(140) % 2 == 0)] = UNLABELED
    split, partly = hold_out(dataset, "c"), replace(dataset, labels=labels)
    bundle = fit(
        dataset,
        split.train,
        Settings.from_mapping(SETTINGS),
        PreprocessSettings(scaling="standard-per-batch"),
        [0],
    )
    found = evaluate(bundle, partly, hold_out(partly, "c"), torch.device("cpu"))
    assert found is not None and found.unscored == 20
    best = bundle.probabilities(bundle.input(dataset.take(split.test))).argmax(axis=1)
    scored = labels[split.test] != UNLABELED
    assert found.ensemble.accuracy == pytest.approx((best == labels[split.test])[scored].mean())


def test_no_score_without_a_cell_to_score(dataset: Dataset) -> None:
    split = hold_out(dataset, "c")
    bundle = fitted(dataset, split.train)
    assert evaluate(bundle, dataset, replace(split, scored=split.scored[:0]), torch.device("cpu")) is None


@pytest.mark.parametrize("scaling", ["none", "standard", "standard-per-batch"])
@pytest.mark.parametrize("adapt", [False, True])
def test_cells_that_stay_sparse_train_the_same_model(
    dataset: Dataset, scaling: Any, adapt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below and above the size that is made dense; queries may lack genes that the model knows."""
    rows = hold_out(dataset, "c").train
    query = dataset.take(dataset.batches == 2)
    query = replace(query, x=query.x[:, 2:], genes=query.genes[2:])
    settings = Settings.from_mapping({**SETTINGS, "method": "dann", "query_weight": 0.5 if adapt else 0.0})

    def trained() -> Bundle:
        return fit(dataset, rows, settings, PreprocessSettings(n_top_genes=20, scaling=scaling), [0, 1], [query])

    usual = trained()
    monkeypatch.setattr("scdgn.cells.preprocess.DENSE_BYTES", 0)
    for one, other in zip(usual.models, trained().models, strict=True):
        for name, weight in one.weights.items():
            torch.testing.assert_close(other.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_bfloat16_is_near_and_another_precision(dataset: Dataset) -> None:
    plain, coarse = fitted(dataset), fitted(dataset, precision="bf16")
    assert not same(plain, coarse)
    x = plain.input(dataset)
    assert np.abs(plain.probabilities(x) - coarse.probabilities(x)).max() < 0.1
    assert coarse.provenance["precision"] == "bf16"
    # On a CPU nothing else changes the products.
    assert same(plain, fitted(dataset, precision="float32"))

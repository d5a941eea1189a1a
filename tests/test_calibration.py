"""What left-out cells teach a model about its certainty, and that it goes with the model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import Settings
from scdgn.core.metrics import calibration_error
from scdgn.core.rejection import KNOWN_KEPT, SCORES, Calibration, Score, strangeness
from scdgn.errors import BundleError
from scdgn.model.annotate import UNKNOWN, annotate
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT, WEIGHTS
from scdgn.search import left_out as left_out_module
from scdgn.search.folder import StudyFolder
from scdgn.search.left_out import LeftOut
from scdgn.search.records import Proposal
from scdgn.search.stages import calibration as module
from scdgn.search.stages.calibration import FOLDS, calibrate, predict_left_out, summarize
from scdgn.search.stages.finalists import train_finalists
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import ALL_DOMAINS, OwnInputs, Unit
from scdgn.search.trials.objective import Objective
from tests.faults import KEYS, done, run, tiny
from tests.test_bundle import reseal
from tests.test_objective import Told

SETTINGS = Settings(method="dann", hidden=8, latent=4, domain_code=4, epochs=6, batch_size=32, lr=0.01)
PREPROCESS = PreprocessSettings(n_top_genes=20, scaling="standard")
CELLS = {"a": 50, "b": 50, "c": 100, "d": 40}
PRESENT = {"a": ("B", "T"), "b": ("B", "T"), "c": ("B", "NK", "T")}  # NK is unknown where c is left out


@cache
def cells_of(shuffled: bool = False) -> TrainingCells:
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells=CELLS, present=PRESENT), reading)
    split = hold_out(dataset, "d")
    if shuffled:
        labels = dataset.labels.copy()
        labels[split.test] = np.random.default_rng(0).permutation(labels[split.test])
        dataset = replace(dataset, labels=labels)
    return TrainingCells(dataset, split, reading, ("d",), (), ())


def sealed(shuffled: bool = False) -> SearchCells:
    return seal(cells_of(shuffled), 5, False)


def fold_units(cells: SearchCells, seeds: list[int]) -> list[Unit]:
    return [Unit(fold.name, fold.train, fold.held_out, fold.held_out, tuple(seeds)) for fold in cells.folds]


@cache
def left_out(shuffled: bool = False) -> list[LeftOut]:
    cells = sealed(shuffled)
    return predict_left_out(cells, fold_units(cells, [3, 4]), SETTINGS, PREPROCESS, "cpu")


def part(name: str, certain: list[float], labels: list[int], known_types: int = 2) -> LeftOut:
    """Cells of three types that one model gives `certain` as the logit of type 0, and 0 as that of the others."""
    logits = torch.zeros(1, len(certain), 3)
    logits[0, :, 0] = torch.tensor(certain, dtype=torch.float32)
    logits[:, :, known_types:] = -torch.inf
    distances = torch.tensor([certain], dtype=torch.float32).abs()
    return LeftOut(name, torch.arange(len(labels)), torch.tensor(labels), logits, distances, None)


def test_every_fold_predicts_all_cells_of_its_domain_with_models_that_never_saw_it() -> None:
    cells = sealed()
    found = left_out()
    assert [one.name for one in found] == ["a", "b", "c"]
    for fold, one in zip(cells.folds, found, strict=True):
        assert one.logits.shape == (2, len(fold.held_out), 3)
        assert one.rows.tolist() == fold.held_out.tolist()
        assert one.labels.tolist() == cells.dataset.labels[fold.held_out].tolist()
        trained = np.unique(cells.dataset.labels[fold.train])
        assert np.flatnonzero(one.logits[0, 0].isfinite()).tolist() == trained.tolist()
        assert one.known.tolist() == np.isin(one.labels, trained).tolist()
    assert [int((~one.known).sum()) for one in found] == [0, 0, int((cells.dataset.labels == 1).sum())]


def test_models_and_distances_of_a_fold_are_those_of_its_cells_trained_alone() -> None:
    cells = sealed()
    unit = fold_units(cells, [3, 4])[2]
    (alone,) = predict_left_out(cells, [unit], SETTINGS, PREPROCESS, "cpu")
    together = left_out()[2]
    assert torch.allclose(alone.logits, together.logits, atol=1e-4)
    assert torch.allclose(alone.distances, together.distances, rtol=1e-3)


def test_test_labels_take_no_part() -> None:
    one, two = (calibrate(left_out(shuffled), False, FOLDS) for shuffled in (False, True))
    assert one == two


@pytest.mark.parametrize("single", [False, True])
def test_the_threshold_keeps_95_percent_of_the_known_cells(single: bool) -> None:
    found = calibrate(left_out(), single, FOLDS)
    parts = [one for each in left_out() for one in (each.each() if single else [each])]
    scores = np.concatenate([one.score(found.score, found.temperature)[one.known] for one in parts])
    assert found.threshold is not None and found.threshold in scores
    assert KNOWN_KEPT <= np.mean(scores <= found.threshold) < KNOWN_KEPT + 0.03
    assert found.known == sum(int(one.known.sum()) for one in left_out())
    assert found.unknown == int((sealed().dataset.labels == 1).sum())


def test_scores_are_compared_within_each_domain_and_the_best_is_taken() -> None:
    found = calibrate(left_out(), False, FOLDS)
    last = left_out()[2]  # the only one with both kinds
    assert found.auroc == {
        score: pytest.approx(roc_auc_score(~last.known, last.score(score, found.temperature))) for score in SCORES
    }
    assert found.auroc[found.score] == max(found.auroc.values())


def test_a_score_that_only_tells_batches_apart_is_worth_nothing() -> None:
    """One batch is uncertain throughout, and has all the unknown cells."""
    rng = np.random.default_rng(0)
    sure = part("sure", list(rng.uniform(5, 6, 200)), [0] * 200)
    unsure = part("unsure", list(rng.uniform(1, 2, 200)), [0] * 100 + [2] * 100)
    found = calibrate([sure, unsure], False, FOLDS)
    assert found.auroc["max_probability"] == pytest.approx(0.5, abs=0.1)


def test_unknown_cells_are_weighed_alike_whatever_their_batch() -> None:
    told = part("told", [5.0] * 50 + [1.0] * 10, [0] * 50 + [2] * 10)
    reversed_ = part("reversed", [1.0] * 5 + [5.0] * 30, [0] * 5 + [2] * 30)
    assert calibrate([told, reversed_], False, FOLDS).auroc["energy"] == pytest.approx(10 / 40)


def test_few_cells_teach_nothing() -> None:
    few = part("few", [1.0] * 19, [0] * 19)
    assert calibrate([few], False, FOLDS) == Calibration()
    summary = summarize(Calibration(), [few], False)
    assert summary.threshold is None and summary.parts[0].kept == 1
    no_comparison = calibrate([part("", [3.0] * 30 + [0.0] * 19, [0] * 30 + [2] * 19)], False, FOLDS)
    assert no_comparison.auroc == {} and no_comparison.score == "max_probability"
    assert no_comparison.threshold is not None


def test_the_threshold_is_of_probabilities_at_the_temperature() -> None:
    cells = part("", [3.0] * 30, [0] * 15 + [1] * 15)  # certain, and right as often as not
    found = calibrate([cells], False, FOLDS)
    assert found.temperature > 10 and found.score == "max_probability"
    assert found.threshold == pytest.approx(1 / (1 + np.exp(3 / found.temperature)), rel=1e-3)


def test_the_summary_judges_a_domain_by_what_the_others_teach() -> None:
    found = left_out()
    summary = summarize(calibrate(found, False, FOLDS), found, False)
    json.dumps(asdict(summary), allow_nan=False)
    assert summary.apart
    for one, told in zip(found, summary.parts, strict=True):
        others = calibrate([other for other in found if other is not one], False, FOLDS)
        assert others.threshold is not None
        kept = one.score(others.score, others.temperature) <= others.threshold
        assert told.kept == pytest.approx(np.mean(kept[one.known]))
        assert (told.told is None) == bool(one.known.all())
    labels = np.concatenate([one.labels[one.known] for one in found])
    plain = np.concatenate([one.logits.softmax(dim=2).mean(dim=0)[one.known] for one in found])
    assert summary.calibration_error.before == pytest.approx(calibration_error(labels, plain), abs=1e-5)


def test_without_folds_the_cells_set_aside_teach() -> None:
    inputs = OwnInputs(sealed(), "training-domain", 0, 2, whole=True)
    told = Told()
    Objective(inputs, "accuracy", torch.device("cpu"))([Proposal(0, SETTINGS, PREPROCESS)], told)
    (one,) = told.outcomes[0].left_out
    unit = inputs.units[-1]
    assert one.name == unit.name == ALL_DOMAINS and one.known.all() and one.corrected is None
    assert one.rows.tolist() == unit.scored.tolist() and not set(unit.scored) & set(unit.train)
    right = (one.logits.argmax(dim=2) == one.labels).double().mean(dim=1)
    assert told.reports[0][-1][1] == pytest.approx(float(right.mean()))


def test_many_cells_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out_module, "MOST_KEPT", 10)
    monkeypatch.setattr(left_out_module, "ANCHORING", 3)
    cells = sealed()
    found = predict_left_out(cells, fold_units(cells, [3]), replace(SETTINGS, epochs=1), PREPROCESS, "cpu")
    assert all(len(one.labels) == one.logits.shape[1] == 10 for one in found)
    labels = np.array([2, -1, 0, 2, 2, 2, 0, -1])
    chosen = left_out_module.some_of_each(labels)
    assert np.bincount(labels[chosen]).tolist() == [2, 0, 3] and len(set(chosen.tolist())) == 5


# --- in the bundle


def calibrated(score: Score = "latent_distance", threshold: float = 1.5, temperature: float = 2.0) -> Bundle:
    cells = sealed()
    bundle = train_finalists(cells, SETTINGS, PREPROCESS, "macro_f1", 0, 2, "cpu").bundle
    found = Calibration(temperature, score, threshold, auroc={"energy": 0.75}, known=100, unknown=30, source=FOLDS)
    return module.attach(bundle, found, cells.dataset, cells.rows)


def test_the_temperature_changes_no_label_and_scales_the_ensemble() -> None:
    bundle = calibrated()
    plain = replace(bundle, calibration=Calibration())
    x = bundle.input(sealed().dataset)
    before, after = plain.probabilities(x), bundle.probabilities(x)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    roots = np.sqrt(before.astype(np.float64))
    assert np.allclose(after, roots / roots.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_a_calibration_is_saved_and_loaded(score: Score, tmp_path: Path) -> None:
    bundle = calibrated(score)
    bundle.save(tmp_path / "model")
    loaded = Bundle.load(tmp_path / "model")
    assert loaded.calibration.to_json() == bundle.calibration.to_json()
    assert len(loaded.calibration.anchors) == (2 if score == "latent_distance" else 0)
    x = bundle.input(sealed().dataset)
    for one, two in zip(loaded.all_outputs(x), bundle.all_outputs(x), strict=True):
        assert np.array_equal(one, two)
    logits = torch.stack([model.forward(x.leading)[1] for model in bundle.models])
    latents = [model.forward(x.leading)[0] for model in bundle.models]
    expected = strangeness(score, logits, latents, 2.0, bundle.calibration.anchors)
    assert np.array_equal(loaded.all_outputs(x).strangeness, expected.numpy())


def test_a_bundle_of_before_has_temperature_1_and_no_threshold(tmp_path: Path) -> None:
    calibrated("energy").save(tmp_path / "model")
    document = json.loads((tmp_path / "model" / DOCUMENT).read_text())
    del document["calibration"]
    reseal(tmp_path / "model", document)
    bundle = Bundle.load(tmp_path / "model")
    assert bundle.calibration == Calibration()
    x = bundle.input(sealed().dataset)
    mean = torch.stack([model.probabilities(x.leading) for model in bundle.models]).mean(dim=0)
    assert np.allclose(bundle.probabilities(x), mean, atol=1e-6)
    assert not bundle.unknown(bundle.all_outputs(x).strangeness).any()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0),
        ("temperature", 1e9),
        ("temperature", True),
        ("temperature", "hot"),
        ("score", "entropy"),
        ("score", ["energy"]),
        ("score", "energy"),  # which has no anchors
        ("threshold", "low"),
        ("threshold", False),
        ("auroc", {"luck": 1}),
        ("auroc", {"energy": None}),
        ("source", 3),
        ("known", None),
        ("spreads", [1.0]),
        ("spreads", [1.0, 0.0]),
        ("more", 1),
    ],
)
def test_a_calibration_that_contradicts_itself_is_refused(key: str, value: object, tmp_path: Path) -> None:
    calibrated().save(tmp_path / "model")
    document = json.loads((tmp_path / "model" / DOCUMENT).read_text())
    document["calibration"][key] = value
    reseal(tmp_path / "model", document)
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.load(tmp_path / "model")


def test_centroids_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bundle = calibrated()
    bundle.calibration.anchors[1].centroids[0, 0] = torch.nan
    bundle.save(tmp_path / "model")
    with pytest.raises(BundleError, match="centroids are not finite"):
        Bundle.load(tmp_path / "model")


def test_the_centroids_are_under_the_checksum(tmp_path: Path) -> None:
    bundle = calibrated()
    bundle.save(tmp_path / "model")
    bundle.calibration.anchors[1].centroids[0, 0] += 1
    bundle.save(tmp_path / "other")
    (tmp_path / "model" / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(BundleError, match="checksum"):
        Bundle.load(tmp_path / "model")


# --- from the search to the annotated file

STUDY = """
[study]
trials = 1
final_seeds = 2
confirm = 0
[space]
hidden = 8
latent = 4
domain_code = 4
epochs = 6
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study, and its cells."""
    folder = tmp_path_factory.mktemp("calibrated")
    write_h5ad(tiny(cells=CELLS, present=PRESENT), folder / "cells.h5ad")
    (folder / "study.toml").write_text(STUDY)
    assert search(folder).status == 0
    return folder


def search(place: Path, *words: str):  # type: ignore[no-untyped-def]
    return run(
        *("search", place / "cells.h5ad", *KEYS, "--name", "study", "--studies", place / "studies"),
        *("--config", place / "study.toml", "--no-track", "--test-batch", "d", *words),
    )


def test_a_search_ends_with_a_calibrated_model(place: Path) -> None:
    folder = StudyFolder(place / "studies" / "study")
    summary = folder.read_summary()
    assert summary is not None
    told, bundle = summary.calibration, Bundle.load(folder.model)
    assert told.source == FOLDS and [one.name for one in told.parts] == ["a", "b", "c"]
    assert bundle.calibration.to_json() == {key: getattr(told, key) for key in bundle.calibration.to_json()}
    assert told.test.known == 40
    # The scores of the final seeds are those of the networks' own probabilities.
    assert told.test.calibration_error.before == pytest.approx(summary.final.test.calibration_error.ensemble, abs=1e-4)


def test_a_study_finished_without_is_brought_up_to_date_with_the_same_trials(place: Path) -> None:
    folder = StudyFolder(place / "studies" / "study")
    summary = folder.read_summary()
    assert summary is not None
    model = (folder.model / WEIGHTS).read_bytes()
    folder.write_summary(replace(summary, calibration=None, asked=replace(summary.asked, calibration=None)))
    assert search(place).status == 0
    again = folder.read_summary()
    assert again is not None
    assert replace(again, trained=summary.trained) == summary  # but for the times, of a training done again
    assert (folder.model / WEIGHTS).read_bytes() == model


@pytest.mark.parametrize("way", [(), ("--over-clustering", "tech")])
def test_predict_tells_unknown_cells_on_both_ways(place: Path, way: tuple[str, ...], tmp_path: Path) -> None:
    bundle = Bundle.load(place / "studies" / "study" / "model")
    dataset = from_anndata(anndata.read_h5ad(place / "cells.h5ad"), Fields(None, None))
    strange = bundle.all_outputs(bundle.input(dataset)).strangeness
    threshold = float(np.median(strange))  # of the cells as they are: the study may have chosen to correct them
    bundle = replace(bundle, corrects=False, calibration=replace(bundle.calibration, threshold=threshold))
    assert bundle.calibration.threshold is not None
    model = tmp_path / "model"
    bundle.save(model)
    ran = done("predict", place / "cells.h5ad", "--model", model, "-o", tmp_path / "out.h5ad", "--json", *way)
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    away = np.abs(strange - bundle.calibration.threshold) > 1e-5  # chunks round otherwise
    assert out.obs[UNKNOWN].dtype == bool
    assert (out.obs[UNKNOWN].to_numpy() == (strange > bundle.calibration.threshold))[away].all()
    assert ran.record["unknown"] == int(out.obs[UNKNOWN].sum()) > 0
    said = done("predict", place / "cells.h5ad", "--model", model, "-o", tmp_path / "out.h5ad", *way)
    assert f"{ran.record['unknown']} of them may be of a type that was never trained" in said.out + said.err


@pytest.mark.parametrize("way", [(), ("--over-clustering", "tech")])
def test_a_model_without_a_threshold_takes_the_column_of_another_away(
    place: Path, way: tuple[str, ...], tmp_path: Path
) -> None:
    replace(calibrated(), calibration=Calibration()).save(tmp_path / "plain")
    model = place / "studies" / "study" / "model"
    done("predict", place / "cells.h5ad", "--model", model, "-o", tmp_path / "out.h5ad", "-q")
    words = ("predict", tmp_path / "out.h5ad", "--model", tmp_path / "plain", "-o", tmp_path / "again.h5ad", "--json")
    assert done(*words, *way).record["unknown"] is None
    with h5py.File(tmp_path / "again.h5ad") as file:  # anndata itself reads no column that is not listed
        assert UNKNOWN not in file["obs"] and UNKNOWN not in file["obs"].attrs["column-order"]


def test_annotate_writes_the_column() -> None:
    adata = tiny(cells=CELLS)
    dataset = from_anndata(adata, Fields(None, None))
    bundle = calibrated()
    strange = bundle.all_outputs(bundle.input(dataset)).strangeness
    limit = float(np.sort(strange)[100])  # a cell at the threshold is kept
    annotate(adata, dataset, replace(bundle, calibration=replace(bundle.calibration, threshold=limit)))
    assert adata.obs[UNKNOWN].tolist() == (strange > limit).tolist()

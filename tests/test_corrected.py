"""Correction where users meet it: the model class, files, the command line and the served model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anndata
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scdgn import SCDGN
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.splits import Split
from scdgn.errors import SettingsError
from scdgn.model.annotate import CORRECTED, LABEL, LATENT, PROBABILITY, annotate
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import evaluate
from scdgn.model.stored import annotate_file, open_stored
from scdgn.search.tracking.served import save_pyfunc
from tests.faults import done, run
from tests.shifted import cells, query, trained
from tests.test_bundle import VERSION_1

BY_BATCH = Fields(None, "tech", values="log")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return trained()


@pytest.fixture
def place(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models that correct by default and that do not, and with cells."""
    monkeypatch.chdir(tmp_path)
    bundle.save("plain")
    replace(bundle, corrects=True).save("corrects")
    query().write_h5ad("query.h5ad")
    return tmp_path


def annotated(adata: AnnData, bundle: Bundle, correct: bool | None, fields: Fields = BY_BATCH) -> AnnData:
    adata = adata.copy()
    annotate(adata, from_anndata(adata, fields), bundle, correct)
    return adata


def right(adata: AnnData) -> pd.Series:
    """Share of right labels by batch."""
    return (adata.obs[LABEL].astype(str) == adata.obs["celltype"].astype(str)).groupby(adata.obs["tech"]).mean()


def test_batches_far_away_gain_and_the_others_stay_as_they_are(bundle: Bundle) -> None:
    plain, corrected = (annotated(query(), bundle, correct) for correct in (False, True))
    assert (right(corrected)[["far", "other"]] > right(plain)[["far", "other"]] + 0.05).all()
    assert right(corrected).min() > 0.95
    near = (query().obs["tech"] == "near").to_numpy()
    assert corrected.obs[CORRECTED].tolist() == (~near).tolist() and CORRECTED not in plain.obs
    assert np.mean(plain.obs[LABEL][near] == corrected.obs[LABEL][near]) > 0.98
    assert np.array_equal(plain.obsm[LATENT][near], corrected.obsm[LATENT][near])
    assert not np.allclose(plain.obsm[LATENT][~near], corrected.obsm[LATENT][~near])


def test_without_a_column_of_batches_the_query_is_one(bundle: Bundle) -> None:
    one = cells({"far": 1.3}, seed=7)
    expected = annotated(one, bundle, True)
    found = annotated(one, bundle, True, Fields(None, None, values="log"))
    assert np.array_equal(found.obsm[PROBABILITY], expected.obsm[PROBABILITY])


def test_the_bundle_says_whether_it_corrects_unless_it_is_told(bundle: Bundle) -> None:
    both = {corrects: replace(bundle, corrects=corrects) for corrects in (False, True)}
    expected = {correct: annotated(query(), bundle, correct).obsm[PROBABILITY] for correct in (False, True)}
    for corrects, own in both.items():
        for correct in (None, False, True):
            wanted = expected[corrects if correct is None else correct]
            assert np.array_equal(annotated(query(), own, correct).obsm[PROBABILITY], wanted)


def test_some_cells_at_a_time_and_a_file_give_the_same(
    bundle: Bundle, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = query()[np.random.default_rng(0).permutation(360)].copy()
    shuffled.write_h5ad("query.h5ad")
    whole = annotated(shuffled, bundle, True)
    monkeypatch.setattr("scdgn.model.at_once.INPUT_AT_ONCE", 32 * 48)
    parts = annotated(shuffled, bundle, True)
    stored = open_stored(place / "query.h5ad")
    assert stored is not None
    counts = annotate_file(stored.check(BY_BATCH), bundle, place / "out.h5ad", correct=True)
    found = anndata.read_h5ad("out.h5ad")
    for other in (parts, found):
        pd.testing.assert_frame_equal(other.obsm[PROBABILITY], whole.obsm[PROBABILITY], rtol=1e-3, atol=1e-5)
        assert np.allclose(other.obsm[LATENT], whole.obsm[LATENT], atol=1e-4)
        assert other.obs[CORRECTED].tolist() == whole.obs[CORRECTED].tolist()
        assert other.obs[LABEL].tolist() == whole.obs[LABEL].tolist()
    assert counts.correction is not None
    assert [not reason for reason in counts.correction.reasons] == [True, False, True]


def test_the_model_class_corrects_when_asked_or_when_its_bundle_does(place: Path) -> None:
    plain, corrects = SCDGN.load("plain"), SCDGN.load("corrects")
    adata = query()
    expected = {correct: annotated(adata, plain.bundle, correct) for correct in (False, True)}
    for model, default in ((plain, False), (corrects, True)):
        for correct in (None, False, True):
            wanted = expected[default if correct is None else correct]
            soft = model.predict(adata, soft=True, correct=correct).to_numpy()
            assert np.array_equal(soft, wanted.obsm[PROBABILITY].to_numpy())
            assert model.predict(adata, correct=correct).tolist() == wanted.obs[LABEL].tolist()
            latent = model.get_latent_representation(adata, correct=correct)
            assert np.array_equal(latent, wanted.obsm[LATENT])
    without = adata[adata.obs["tech"] == "far"].copy()
    expected_far = plain.predict(without, soft=True, correct=True)
    del without.obs["tech"]
    assert plain.predict(without, soft=True, correct=True).equals(expected_far)


@pytest.mark.parametrize("way", [(), ("--over-clustering", "tech")])
def test_predict_corrects_by_the_model_or_as_told(place: Path, way: tuple[str, ...], bundle: Bundle) -> None:
    wanted = {correct: annotated(query(), bundle, correct) for correct in (False, True)}
    for model, words, correct in (
        ("plain", (), False),
        ("plain", ("--correct",), True),
        ("corrects", (), True),
        ("corrects", ("--no-correct",), False),
    ):
        record = done("predict", "query.h5ad", "--model", model, "-o", "out.h5ad", "--json", *words, *way).record
        found = anndata.read_h5ad("out.h5ad")
        assert found.obs[LABEL].tolist() == wanted[correct].obs[LABEL].tolist()
        assert (CORRECTED in found.obs) is record["transductive"] is correct
        if correct:
            assert found.obs[CORRECTED].tolist() == wanted[True].obs[CORRECTED].tolist()
            assert record["corrected"]["far"] is record["corrected"]["other"] is True
            assert "no further" in record["corrected"]["near"]
        else:
            assert record["corrected"] is None


def test_the_column_of_an_earlier_correction_goes(place: Path) -> None:
    done("predict", "query.h5ad", "--model", "corrects", "-o", "one.h5ad", "-q")
    for way in ((), ("--over-clustering", "tech")):
        done("predict", "one.h5ad", "--model", "plain", "-o", "two.h5ad", "-q", *way)
        assert CORRECTED not in anndata.read_h5ad("two.h5ad").obs


def test_predict_says_in_one_line_what_was_corrected(place: Path) -> None:
    ran = done("predict", "query.h5ad", "--model", "corrects", "-o", "out.h5ad")
    told = " ".join((ran.out + ran.err).split())
    assert "2 of 3 batches corrected; left as it is: near (no further from the training cells than" in told


def test_a_model_of_before_cannot_correct(tmp_path: Path) -> None:
    query().write_h5ad(tmp_path / "query.h5ad")
    words = ("predict", tmp_path / "query.h5ad", "--model", VERSION_1, "-o", tmp_path / "out.h5ad", "--correct")
    ran = run(*words)
    assert ran.status == 2 and not (tmp_path / "out.h5ad").exists()
    model = SCDGN.load(VERSION_1)
    genes = model.bundle.preprocessing.panel
    adata = AnnData(np.ones((40, len(genes)), dtype=np.float32), var=pd.DataFrame(index=genes))
    with pytest.raises(SettingsError, match="train it again"):
        model.predict(adata, correct=True)


def test_test_cells_are_scored_as_they_would_be_predicted(bundle: Bundle) -> None:
    adata = query()
    dataset: Dataset = from_anndata(adata, Fields("celltype", "tech", values="log"))
    rows = np.arange(len(dataset))
    split = Split(rows[:0], rows, rows, rows[:0])
    for correct in (False, True):
        found = evaluate(replace(bundle, corrects=correct), dataset, split, torch.device("cpu"))
        labels = annotated(adata, bundle, correct).obs[LABEL]
        assert found is not None
        assert found.ensemble.accuracy == np.mean(labels.astype(str) == adata.obs["celltype"])


# --- served


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.pyfunc.PyFuncModel]:
    import sys

    folder = tmp_path_factory.mktemp("served")
    replace(bundle, corrects=True).save(folder / "bundle")
    save_pyfunc(folder / "bundle", folder / "model")
    before = list(sys.path)
    yield mlflow.pyfunc.load_model(str(folder / "model"))
    sys.path[:] = before


def test_a_request_is_corrected_as_one_batch_and_a_small_one_is_not(
    served: mlflow.pyfunc.PyFuncModel, bundle: Bundle
) -> None:
    far = cells({"far": 1.3}, seed=7)
    frame = pd.DataFrame(far.X, columns=far.var_names)
    many, few = served.predict(frame), served.predict(frame[:10])
    assert many["corrected"].all() and not few["corrected"].any()
    expected = annotated(far, bundle, True)
    assert many["label"].tolist() == expected.obs[LABEL].tolist()
    assert few["label"].tolist() == annotated(far, bundle, False).obs[LABEL].tolist()[:10]
    assert served.metadata.get_output_schema().input_names() == many.columns.tolist()

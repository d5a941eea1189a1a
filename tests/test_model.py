"""The model class, as a user of scvi-tools would call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn import SCDGN
from scdgn.cells.settings import PreprocessSettings, Scaling
from scdgn.core import adaptation
from scdgn.core.config import Method, Settings
from scdgn.errors import DataError, DeviceError, OutputError, SettingsError
from tests.faults import SETTINGS, TYPES, done, tiny

METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")
SCALINGS: tuple[Scaling, ...] = ("none", "standard", "standard-per-batch")
CLOSE = {"rtol": 0, "atol": 1e-5}


def model_of(adata: AnnData, method: Method = "scdgn", **more: Any) -> SCDGN:
    return SCDGN(adata, method=method, settings=SETTINGS, preprocess=PreprocessSettings(n_top_genes=30, **more))


def trained(adata: AnnData | None = None, method: Method = "scdgn", **more: Any) -> SCDGN:
    adata = tiny() if adata is None else adata
    SCDGN.setup_anndata(adata, labels_key="celltype", batch_key="tech")
    model = model_of(adata, method, **more)
    model.train()
    return model


@pytest.fixture(scope="module", params=SCALINGS)
def model(request: pytest.FixtureRequest) -> SCDGN:
    """Trained on tiny(), under every scaling; not to be changed."""
    return trained(scaling=request.param)


def same(one: pd.DataFrame, two: pd.DataFrame) -> bool:
    return list(one.columns) == list(two.columns) and np.allclose(one, two, **CLOSE)


# --- train, predict, save, load


@pytest.mark.parametrize("method", METHODS)
def test_from_setup_to_load(method: Method, tmp_path: Path) -> None:
    adata = tiny()
    model = trained(adata, method)
    labels, soft = model.predict(), model.predict(soft=True)
    latent = model.get_latent_representation()
    assert labels.shape == (140,) and set(labels) <= set(TYPES)
    assert soft.shape == (140, 3) and list(soft.columns) == list(TYPES) and list(soft.index) == list(adata.obs_names)
    assert np.allclose(soft.sum(axis=1), 1, **CLOSE)
    assert (soft.idxmax(axis=1).to_numpy() == labels).all()
    assert latent.shape == (140, 4) and latent.dtype == np.float32 and (abs(latent) <= 1).all()

    model.save(tmp_path / "model")
    loaded = SCDGN.load(tmp_path / "model")
    assert loaded.settings == model.settings and loaded.preprocess == model.preprocess
    assert (loaded.predict(adata) == labels).all()
    assert loaded.predict(adata, soft=True).equals(soft)
    assert np.array_equal(loaded.get_latent_representation(adata), latent)
    assert all(loaded.history[name].equals(table) for name, table in model.history.items())
    loaded.save(tmp_path / "again")
    assert SCDGN.load(tmp_path / "again").predict(adata, soft=True).equals(soft)


def test_types_that_differ_are_told_apart() -> None:
    adata = tiny(genes=200, depth=4000.0, marker_strength=3.0)
    SCDGN.setup_anndata(adata, labels_key="celltype", batch_key="tech")
    model = SCDGN(adata, settings={**SETTINGS, "hidden": 32, "epochs": 60, "lr": 0.01, "weight_decay": 0})
    model.train()
    assert (model.predict() == adata.obs["celltype"].astype(str)).mean() > 0.9


def test_the_history_has_a_row_per_epoch_and_a_column_per_model() -> None:
    adata = tiny()
    SCDGN.setup_anndata(adata, "celltype", "tech")
    model = model_of(adata)
    model.train(n_models=3)
    assert set(model.history) == {"label_loss", "domain_loss", "lambda"}
    for table in model.history.values():
        assert list(table.index) == [1, 2] and list(table.columns) == [0, 1, 2]
        assert np.isfinite(table.to_numpy()).all()
    model.train(early_stopping=True, patience=1)
    assert set(model.history) == {"label_loss", "domain_loss", "lambda", "validation_macro_f1"}


def test_the_seed_decides_the_model_and_an_ensemble_is_its_seeds() -> None:
    adata = tiny()
    SCDGN.setup_anndata(adata, "celltype", "tech")
    model = model_of(adata)
    soft = []
    for seed in (3, 4, 3):
        model.train(seed=seed)
        soft.append(model.predict(soft=True))
    assert soft[0].equals(soft[2]) and not same(soft[0], soft[1])
    model.train(seed=3, n_models=2)
    assert same(model.predict(soft=True), (soft[0] + soft[1]) / 2)


def test_a_model_of_the_command_line(tmp_path: Path) -> None:
    adata = tiny()
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.ones(adata.shape, dtype=np.float32)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ("--labels-key", "celltype", "--batch-key", "tech", "--layer", "raw", "--set", "epochs=1", "-q")
    done("train", tmp_path / "cells.h5ad", *words, "-o", tmp_path / "model")
    done("predict", tmp_path / "cells.h5ad", "--model", tmp_path / "model", "-o", tmp_path / "out.h5ad", "-q")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    loaded = SCDGN.load(tmp_path / "model")
    assert (loaded.predict(adata) == out.obs["scdgn_label"].astype(str)).all()
    assert np.array_equal(loaded.get_latent_representation(adata), out.obsm["X_scDGN"])


def test_settings_differ_from_the_preset_or_are_all_given() -> None:
    adata = tiny()
    SCDGN.setup_anndata(adata, "celltype", "tech")
    assert SCDGN(adata, settings={"margin": 3.5}, preset="reference").settings.epochs == 250
    assert SCDGN(adata, settings={"margin": 3.5}, preset="reference").settings.margin == 3.5
    assert SCDGN(adata, settings=Settings(hidden=9)).settings == Settings(hidden=9)
    assert SCDGN(adata, settings=Settings(method="nn")).settings.method == "nn"
    assert SCDGN(adata, settings={"method": "nn"}).settings.method == "nn"
    assert SCDGN(adata, method="dann").settings.method == "dann"
    assert SCDGN(adata).settings.method == "scdgn"


@pytest.mark.parametrize("method", METHODS)
def test_a_query_is_adapted_to_without_its_labels(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "CONFIDENCE", 0.4)
    adata = tiny()
    query = adata[adata.obs["tech"] == "c"].copy()
    rest = adata[adata.obs["tech"] != "c"].copy()
    SCDGN.setup_anndata(rest, "celltype", "tech")
    soft = {}
    for name in ("labels", "other labels", "no labels", "no query"):
        query.obs["celltype"] = "Z" if name == "other labels" else adata.obs["celltype"][query.obs_names]
        if name == "no labels":
            del query.obs["celltype"]
        model = model_of(rest, "dann")
        model.train(query=None if name == "no query" else query)
        soft[name] = model.predict(adata, soft=True)
        assert model.bundle.provenance["transductive"] is (name != "no query")
    assert soft["labels"].equals(soft["other labels"]) and soft["labels"].equals(soft["no labels"])
    assert not soft["labels"].equals(soft["no query"])


# --- what cells are predicted must not depend on


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_permuting_cells_permutes_predictions(model: SCDGN, seed: int) -> None:
    adata = tiny()
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    assert same(model.predict(adata[order].copy(), soft=True), model.predict(adata, soft=True).iloc[order])
    latent = model.get_latent_representation(adata)
    assert np.allclose(model.get_latent_representation(adata[order].copy()), latent[order], **CLOSE)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), extra=st.integers(0, 60))
def test_other_genes_and_their_order_change_nothing(model: SCDGN, seed: int, extra: int) -> None:
    """Not even through the total to which counts are normalised."""
    adata = tiny()
    rng = np.random.default_rng(seed)
    more = AnnData(
        sp.csr_matrix(rng.poisson(50, (adata.n_obs, extra)).astype(np.float32)),
        obs=adata.obs,
        var=pd.DataFrame(index=[f"extra{i}" for i in range(extra)]),
    )
    wide = anndata.concat([adata, more], axis=1, merge="same")
    wide = wide[:, rng.permutation(wide.n_vars)].copy()
    assert same(model.predict(wide, soft=True), model.predict(adata, soft=True))


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asarray, np.asfortranarray])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_storage_changes_nothing(model: SCDGN, form: Any, dtype: type) -> None:
    expected, adata = tiny(), tiny()
    dense = adata.X.toarray().astype(dtype)
    adata.X = form(dense)
    assert same(model.predict(adata, soft=True), model.predict(expected, soft=True))
    if model.preprocess.scaling == "standard":
        assert same(trained(adata, scaling="standard").predict(soft=True), model.predict(soft=True))
    assert np.array_equal(adata.X.toarray() if sp.issparse(adata.X) else adata.X, dense)


def test_one_cell_at_a_time_is_predicted_as_all_at_once() -> None:
    adata = tiny()
    for scaling in ("none", "standard"):
        model = trained(scaling=scaling)
        assert not model.bundle.preprocessing.transductive
        together = model.predict(adata, soft=True)
        SCDGN.setup_anndata(adata, "celltype", "tech", values="counts")  # the range of a single cell may tell nothing
        model = model_of(adata, scaling=scaling)
        model.train()
        assert same(pd.concat([model.predict(adata[i].copy(), soft=True) for i in range(10)]), together[:10])


def test_batches_matter_to_scaling_per_batch_alone(model: SCDGN) -> None:
    adata, without = tiny(), tiny()
    without.obs["tech"] = None
    if model.bundle.preprocessing.transductive:
        with pytest.raises(DataError, match="140 of 140 cells have no batch"):
            model.predict(without)
    else:
        assert same(model.predict(without, soft=True), model.predict(adata, soft=True))
    del without.obs["tech"], without.obs["celltype"]
    assert model.predict(without).shape == (140,)  # as one batch


def test_training_and_prediction_leave_the_data_alone(model: SCDGN) -> None:
    adata = tiny()
    before = adata.copy()
    model.predict(adata)
    model.get_latent_representation(adata)
    trained(adata)
    assert (adata.X != before.X).nnz == 0
    assert adata.obs.equals(before.obs) and adata.var.equals(before.var)
    assert list(adata.obsm) == list(adata.layers) == []
    assert list(adata.uns) == ["scdgn_setup"]


# --- where the data keep what is needed


def test_a_layer_gene_names_of_a_column_and_written_settings(tmp_path: Path) -> None:
    expected = trained().predict(soft=True)
    adata = tiny()
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.full(adata.shape, -1.0)
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{i:011}" for i in range(adata.n_vars)]
    SCDGN.setup_anndata(adata, "celltype", "tech", layer="raw", gene_key="symbol")
    adata.write_h5ad(tmp_path / "cells.h5ad")  # the setup goes with the file
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    model = model_of(adata)
    model.train()
    assert same(model.predict(soft=True), expected)
    model.save(tmp_path / "model")
    assert same(SCDGN.load(tmp_path / "model").predict(adata, soft=True), expected)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (lambda codes: codes, ("0", "1", "2")),
        (lambda codes: codes.astype(float), ("0", "1", "2")),
        (lambda codes: codes > 0, ("False", "True")),
        (lambda codes: pd.Categorical(codes + 1, categories=range(6)), ("1", "2", "3")),
        (lambda codes: pd.Categorical.from_codes(codes, ["x", "y", "z", "never"]), ("x", "y", "z")),
        (lambda codes: pd.array([TYPES[code] for code in codes], dtype="string"), TYPES),
    ],
)
def test_labels_and_batches_of_any_type(column: Any, names: tuple[str, ...]) -> None:
    adata = tiny()
    for key in ("celltype", "tech"):
        adata.obs[key] = column(adata.obs[key].cat.codes.to_numpy().astype(int))
    model = trained(adata)
    assert model.bundle.cell_types == model.bundle.batch_names == names
    assert set(model.predict()) <= set(names)
    assert list(model.predict(soft=True).columns) == list(names)


def test_a_type_of_a_single_cell_and_cells_without_counts() -> None:
    adata = tiny()
    adata.obs["celltype"] = adata.obs["celltype"].cat.add_categories("rare")
    adata.obs.loc[adata.obs_names[0], "celltype"] = "rare"
    x = adata.X.toarray()
    x[::9] = 0
    adata.X = x
    for early_stopping in (False, True):
        model = trained(adata)
        model.train(early_stopping=early_stopping)
        assert model.bundle.cell_types == ("B", "NK", "T", "rare")
        assert np.isfinite(model.predict(soft=True).to_numpy()).all()


@pytest.mark.parametrize("mark", ["Unknown", ""])
def test_cells_without_a_label_are_predicted_and_train_nothing(mark: str) -> None:
    adata = tiny()
    labels = adata.obs["celltype"].astype(object)
    labels.iloc[::10] = mark
    adata.obs["celltype"] = labels
    SCDGN.setup_anndata(adata, "celltype", "tech", unlabeled_category=mark)
    model = model_of(adata)
    model.train()
    assert model.bundle.cell_types == TYPES
    assert model.bundle.provenance["training_cells"] == 126
    assert model.predict().shape == (140,)
    labeled = adata[labels.to_numpy() != mark].copy()
    assert same(trained(labeled).predict(adata, soft=True), model.predict(soft=True))


@pytest.mark.parametrize(("unlabeled", "cells", "joined"), [("drop", 126, 0), ("domain", 140, 14)])
def test_cells_whose_label_is_missing(unlabeled: Any, cells: int, joined: int) -> None:
    adata = tiny()
    labels = adata.obs["celltype"].astype(object)
    labels.iloc[::10] = None
    adata.obs["celltype"] = labels
    with pytest.raises(DataError, match="14 of 140 cells have no label"):
        SCDGN.setup_anndata(adata, "celltype", "tech")
    SCDGN.setup_anndata(adata, "celltype", "tech", unlabeled=unlabeled)
    model = model_of(adata)
    model.train()
    assert len(model.predict()) == cells
    assert model.bundle.provenance["unlabeled_cells"] == joined


# --- mistakes


def test_in_the_wrong_order(tmp_path: Path) -> None:
    adata = tiny()
    with pytest.raises(DataError, match=r"call SCDGN\.setup_anndata"):
        SCDGN(adata)
    SCDGN.setup_anndata(adata, "celltype", "tech")
    model = model_of(adata)
    for call in (model.predict, model.get_latent_representation, lambda: model.history, lambda: model.save("model")):
        with pytest.raises(SettingsError, match=r"call train\(\) first"):
            call()
    model.train()
    model.save(tmp_path / "model")
    with pytest.raises(OutputError, match="exists: choose another name"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    loaded = SCDGN.load(tmp_path / "model")
    with pytest.raises(DataError, match="holds no training cells"):
        loaded.train()
    with pytest.raises(DataError, match="give the adata to predict"):
        loaded.predict()


def test_settings_that_do_not_exist() -> None:
    adata = tiny()
    SCDGN.setup_anndata(adata, "celltype", "tech")
    with pytest.raises(SettingsError, match=r"unknown setting 'margins'.*epochs is 0"):
        SCDGN(adata, settings={"margins": 1, "epochs": 0})
    with pytest.raises(SettingsError, match="there is no preset 'best'"):
        SCDGN(adata, preset="best")
    with pytest.raises(SettingsError, match="method is 'scgdn': choose one of nn, dann, scdgn"):
        SCDGN(adata, method="scgdn")  # type: ignore[arg-type]
    model = model_of(adata)
    with pytest.raises(SettingsError, match="n_models is 0"):
        model.train(n_models=0)
    with pytest.raises(SettingsError, match=r"seeds are \[-1\]"):
        model.train(seed=-1)
    with pytest.raises(SettingsError, match=r"validation fraction is 2.*patience is 0"):
        model.train(early_stopping=True, validation_fraction=2, patience=0)
    with pytest.raises(DeviceError, match="'tpu'"):
        model.train(device="tpu")


def test_settings_of_another_method_than_asked_for() -> None:
    adata = tiny()
    SCDGN.setup_anndata(adata, "celltype", "tech")
    for given_settings in ({"method": "nn"}, Settings(method="nn")):
        with pytest.raises(SettingsError, match="method is 'nn' in the settings and 'dann'"):
            SCDGN(adata, method="dann", settings=given_settings)


def test_a_failed_training_keeps_the_model_of_the_last_one() -> None:
    adata = tiny()
    model = trained(adata)
    before = model.predict(soft=True)
    with pytest.raises(DeviceError):
        model.train(seed=1, device="cuda:99")
    assert model.predict(soft=True).equals(before)

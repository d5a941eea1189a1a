"""The command line, as a user types it."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from scdgn import cli
from scdgn.cells.datasets import DATASETS
from scdgn.cells.datasets import load as load_dataset
from scdgn.commands.terminal import BEST, LEFT_OUT, print_table
from scdgn.model import annotate
from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT, WEIGHTS
from tests import LONGEST
from tests.faults import FAST, KEYS, TYPES, done, run, tiny

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
TRAINED = {
    *("method", "preset", "seeds", "test_batches", "training_cells", "mutual_information_bits", "test_cells"),
    *("epochs", "transductive", "unlabeled_cells", "seconds"),
}
SCORED = {"scored_cells", "unscored_cells", "scored_by_type", "recall", *SCORES}


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory's cells.h5ad."""
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    return Path("cells.h5ad")


@pytest.fixture
def model(cells: Path) -> Path:
    done("train", cells, *KEYS, *FAST, "--gene-selection", "variable", "-o", "model", "-q")
    return Path("model")


def document(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / DOCUMENT).read_text())
    return found


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / WEIGHTS).read_bytes()


# --- train


def test_real_training_prints_scores(pancreas_file: Path) -> None:
    words = ("train", pancreas_file, *KEYS, "--test-batch", "fluidigmc1", *FAST, "--set", "epochs=3")
    ran = done(*words)
    assert "scdgn on fluidigmc1: 42 cells scored" in ran.out
    for name in ("accuracy", "balanced accuracy", "macro-F1", "expected calibration error", "recall", "alpha"):
        assert name in ran.out
    assert "values read as counts" in ran.err
    record = done(*words, "--json").record
    assert set(record) == TRAINED | SCORED
    assert record["scored_cells"] == record["test_cells"] == 42
    assert (record["training_cells"], record["epochs"]) == (958, [3])
    assert all(0 <= record[name] <= 1 for name in SCORES)


@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
def test_every_method_trains_and_its_bundle_scores_the_same(cells: Path, method: str) -> None:
    tiny(genes=200, depth=4000.0, marker_strength=3.0, response=0.0, platform_bias=0.2).write_h5ad(cells)
    words = (
        "train",
        cells,
        *KEYS,
        "--test-batch",
        "c",
        "--method",
        method,
        *FAST,
        "--set",
        "epochs=100",
        "--set",
        "lr=0.01",
    )
    record = done(*words, "-o", "model", "--json").record
    assert set(record) == TRAINED | SCORED | {"model"}
    assert (record["method"], record["model"], record["transductive"]) == (method, "model", False)
    done("predict", cells, "--model", "model", "-o", "out.h5ad", "-q")
    out = anndata.read_h5ad("out.h5ad")
    held_out = out.obs[out.obs["tech"] == "c"]
    accuracy = (held_out["scdgn_label"].astype(str) == held_out["celltype"].astype(str)).mean()
    assert accuracy == pytest.approx(record["accuracy"])
    assert accuracy > 0.6  # the most frequent type is 0.475


def test_json_is_all_of_stdout_and_quiet_all_of_stderr(cells: Path) -> None:
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c")
    ran = done(*words, "--json", "-q", "-o", "model")
    assert ran.err == ""
    assert ran.out.count("\n") == 1 and set(ran.record) == TRAINED | SCORED | {"model"}
    quiet = done(*words, "-q")
    assert quiet.err == "" and "macro-F1" in quiet.out
    kept = done("train", cells, *KEYS, *FAST, "-o", "kept", "-q")
    assert kept.out == kept.err == ""
    assert "model written to other" in done("train", cells, *KEYS, *FAST, "-o", "other").err


def test_without_a_test_batch_all_cells_train(cells: Path) -> None:
    record = done("train", cells, *KEYS, *FAST, "-o", "model", "--json").record
    assert (record["training_cells"], record["test_cells"], record["test_batches"]) == (140, 0, [])
    assert not set(record) & SCORED


def test_several_test_batches_are_held_out_together(cells: Path) -> None:
    tiny(cells={"a": 50, "b": 50, "c": 40, "d": 30}).write_h5ad(cells)
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c", "--test-batch", "a", "--json")
    record = done(*words).record
    assert (record["training_cells"], record["test_cells"], record["test_batches"]) == (80, 90, ["c", "a"])


def test_the_seed_decides_the_weights(cells: Path) -> None:
    for folder, seed in (("one", 3), ("two", 3), ("three", 4)):
        done("train", cells, *KEYS, *FAST, "--seed", str(seed), "-o", folder, "-q")
    assert weights("one") == weights("two") != weights("three")


def test_seeds_make_an_ensemble(cells: Path) -> None:
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c")
    ran = done(*words, "--seeds", "3", "--seed", "5", "-o", "model", "--json")
    record = ran.record
    assert record["seeds"] == [5, 6, 7] and record["epochs"] == [2, 2, 2]
    assert len(Bundle.load("model").models) == 3
    for name in SCORES:
        assert record[f"{name}_mean"] == pytest.approx(np.mean(record[f"{name}_by_seed"]))
        assert record[f"{name}_std"] == pytest.approx(np.std(record[f"{name}_by_seed"], ddof=1))
    alone = done(*words, "--seed", "6", "--json").record
    assert alone["accuracy"] == pytest.approx(record["accuracy_by_seed"][1])
    assert "3 seeds, mean ± sd" in done(*words, "--seeds", "3").out


def test_early_stopping_validates_on_training_cells(cells: Path) -> None:
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c", "--set", "epochs=60", "--set", "schedule=constant")
    record = done(*words, "--early-stopping", "--patience", "2", "-o", "model", "--json").record
    assert record["training_cells"] < 100
    history = document("model")["parts"][0]["history"][0]
    # What is kept is the best epoch; what was run is `patience` epochs more, unless the epochs ended first.
    assert len(history["validation_macro_f1"]) == min(record["epochs"][0] + 2, 60)
    assert max(history["validation_macro_f1"]) == history["validation_macro_f1"][record["epochs"][0] - 1]


def test_options_win_over_the_file_which_wins_over_the_preset(cells: Path) -> None:
    Path("settings.toml").write_text(
        "[model]\nhidden = 6\nlatent = 5\nepochs = 1\nbatch_size = 32\n"
        "[preprocess]\nn_top_genes = 30\nscaling = 'none'\nclip = 5\n"
    )
    words = ("--config", "settings.toml", "--set", "hidden=7", "--set", "schedule=linear", "--n-top-genes", "20")
    done("train", cells, *KEYS, *words, "--markers-per-type", "7", "-o", "model", "-q")
    settings = document("model")["parts"][0]["settings"]
    named = {key: settings[key] for key in ("hidden", "latent", "epochs", "batch_size", "schedule", "domain_code")}
    assert named == {
        **{"hidden": 7, "latent": 5, "epochs": 1, "batch_size": 32, "schedule": "linear"},
        "domain_code": Bundle.load("model").settings.domain_code,
    }
    assert document("model")["preprocessing"][0]["settings"] == {
        **{"n_top_genes": 20, "scaling": "none", "clip": 5},
        "target_sum": 10000.0,
        **{"gene_selection": "variable", "markers_per_type": 7},
    }


def test_genes_that_mark_types_are_selected(cells: Path) -> None:
    words = (*KEYS, *FAST, "--gene-selection", "markers", "--markers-per-type", "2")
    done("train", cells, *words, "-o", "model", "-q")
    (found,) = document("model")["preprocessing"]
    assert (found["settings"]["gene_selection"], found["settings"]["markers_per_type"]) == ("markers", 2)
    assert 1 <= len(found["genes"]) <= 2 * len(document("model")["cell_types"])
    done("predict", cells, "--model", "model", "-o", "annotated.h5ad", "-q")


def test_the_reference_preset_is_the_published_training(cells: Path) -> None:
    done("train", cells, *KEYS, "--preset", "reference", "--set", "epochs=1", "--set", "hidden=8", "-o", "model", "-q")
    settings = document("model")["parts"][0]["settings"]
    assert (settings["optimizer"], settings["pairing"], settings["schedule"]) == ("sgd", "published", "constant")
    assert (settings["lambda_max"], settings["latent"], settings["epochs"]) == (0.1, 100, 1)


@pytest.mark.parametrize("name", ["simulated-pancreas", "simulated-pancreas3"])
def test_data_sets_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(wanted: str, path: Path | None = None) -> Any:
        loaded = load_dataset(wanted, path)
        return type(loaded)(loaded.adata[::25, :100].copy(), loaded.test_batches)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scdgn.cells.sources.load", few)  # the whole of it, as `make test-all` trains, takes a minute
    record = done("train", "--dataset", name, *FAST, "-o", "model", "--json").record
    assert record["test_batches"] == ["fluidigmc1"] and record["test_cells"] == 25


def test_splits_from_a_file(pbmc_file: Path, splits_file: Path) -> None:
    wanted = json.loads(splits_file.read_text())["splits"]
    for name in ("split1", "split2"):
        record = done("train", pbmc_file, "--split", f"{splits_file}:{name}", *FAST, "--json").record
        assert record["training_cells"] == wanted[name]["train_cells"]
        assert record["test_batches"] == ["kang10xV1_STIM"]
        assert record["scored_cells"] + record["unscored_cells"] == record["test_cells"]


def test_types_never_trained_are_left_out_and_counted(cells: Path) -> None:
    adata = tiny(present={"a": ("B", "T"), "b": ("B", "T")})
    adata.write_h5ad(cells)
    unknown = int(((adata.obs["tech"] == "c") & (adata.obs["celltype"] == "NK")).sum())
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c")
    record = done(*words, "--json", "-o", "model").record
    assert record["unscored_cells"] == unknown > 0
    assert set(record["recall"]) == {"B", "T"}
    assert document("model")["cell_types"] == ["B", "T"]
    assert f"{unknown} of types never trained" in " ".join(done(*words).out.split())


def test_no_score_where_no_test_cell_is_of_a_trained_type(cells: Path) -> None:
    tiny(present={"a": ("B", "T"), "b": ("B", "T"), "c": ("NK",)}).write_h5ad(cells)
    words = ("train", cells, *KEYS, *FAST, "--test-batch", "c")
    assert "there is no score" in done(*words).err
    assert set(done(*words, "--json").record) == TRAINED


# --- adaptation


SURE = ("--set", "epochs=40", "--set", "lr=0.02")
"""Settings under which some cells of the query can be told."""


@pytest.mark.parametrize("method", ["nn", "dann", "scdgn"])
def test_adapting_to_the_test_batch_never_looks_at_its_labels(cells: Path, method: str) -> None:
    words = (*KEYS, *FAST, *SURE, "--method", method, "--test-batch", "c", "--adapt")
    plain = (*KEYS, *FAST, *SURE, "--method", method, "--test-batch", "c")
    adata = tiny()
    held_out = (adata.obs["tech"] == "c").to_numpy()
    labels = adata.obs["celltype"].astype(str).to_numpy()
    shuffled, other, none = labels.copy(), labels.copy(), labels.astype(object)
    shuffled[held_out] = np.random.default_rng(0).permutation(labels[held_out])
    other[held_out], none[held_out] = "A type of its own", None
    for name, column in (("true", labels), ("shuffled", shuffled), ("other", other), ("none", none)):
        adata.obs["celltype"] = pd.Categorical(column)
        adata.write_h5ad("cells.h5ad")
        more = ("--unlabeled", "domain") if name == "none" else ()
        record = done("train", cells, *words, *more, "-o", name, "--json").record
        assert record["transductive"] is True
    assert weights("true") == weights("shuffled") == weights("other") == weights("none")
    tiny().write_h5ad("cells.h5ad")
    done("train", cells, *plain, "-o", "alone", "-q")
    assert weights("alone") != weights("true")
    assert "transductive" in " ".join(done("train", cells, *words).out.split())


@pytest.mark.parametrize("method", ["dann", "scdgn"])
def test_a_batch_a_file_and_the_test_batch_are_the_same_query(cells: Path, method: str) -> None:
    adata = tiny()
    adata[adata.obs["tech"] != "c"].copy().write_h5ad("rest.h5ad")
    query = adata[adata.obs["tech"] == "c"].copy()
    del query.obs["celltype"], query.obs["tech"]
    query.write_h5ad("query.h5ad")
    words = (*KEYS, *FAST, "--method", method, "--adapt", "-q")
    done("train", cells, *words, "--query", "c", "-o", "batch")
    told = done("train", cells, *words, "--test-batch", "c", "-o", "test").out
    assert "transductive: 40 cells joined training without their labels" in " ".join(told.split())
    done("train", cells, *words, "--test-batch", "c", "--query", "c", "-o", "both")
    done("train", "rest.h5ad", *words, "--query", "query.h5ad", "-o", "file")
    assert weights("batch") == weights("file")
    assert weights("test") == weights("both")
    assert document("batch")["provenance"]["unlabeled_cells"] == 40
    assert document("batch")["provenance"]["training_cells"] == 100
    adata.obs["celltype"] = adata.obs["celltype"].astype(object)
    adata.obs.loc[adata.obs["tech"] == "c", "celltype"] = None
    adata.write_h5ad("cells.h5ad")  # a batch without labels needs no --unlabeled to be the query
    done("train", cells, *words, "--query", "c", "-o", "unlabeled")
    assert weights("unlabeled") == weights("batch")


@pytest.mark.parametrize("method", ["dann", "scdgn"])
def test_one_labelled_batch_is_enough_beside_a_query(cells: Path, method: str) -> None:
    adata = tiny()
    adata[adata.obs["tech"] != "b"].copy().write_h5ad(cells)
    assert run("train", cells, *KEYS, *FAST, "--method", method, "--test-batch", "c").status == 2
    done("train", cells, *KEYS, *FAST, "--method", method, "--test-batch", "c", "--adapt", "-q")


def test_unlabeled_cells_join_dropped_or_marked(cells: Path) -> None:
    adata = tiny()
    labels = adata.obs["celltype"].astype(object)
    labels.iloc[::10] = None
    adata.obs["celltype"] = labels
    adata.obs["marked"] = labels.fillna("Unknown")
    adata.write_h5ad(cells)

    def provenance(*words: str) -> dict[str, Any]:
        done("train", cells, *KEYS, *FAST, *words, "-o", "model", "-q", "--overwrite")
        found: dict[str, Any] = document("model")["provenance"]
        return found

    for words, joined in (
        (("--unlabeled", "drop"), 0),
        (("--unlabeled", "domain"), 14),
        (("--labels-key", "marked", "--unlabeled-category", "Unknown"), 0),
        (("--labels-key", "marked", "--unlabeled-category", "Unknown", "--set", "query_weight=0.5"), 14),
    ):
        found = provenance(*words)
        assert (found["training_cells"], found["unlabeled_cells"]) == (126, joined)


# --- predict


def test_predict_writes_what_it_documents_and_changes_nothing_else(cells: Path, model: Path) -> None:
    adata = tiny()
    adata.obs["note"] = [f"cell {i}" for i in range(adata.n_obs)]  # strings, which AnnData would make a category
    adata.obs["flag"] = np.arange(adata.n_obs) % 2 == 0
    adata.layers["raw"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.obsp["graph"] = adata.X @ adata.X.T
    adata.uns["info"] = {"a": np.arange(3)}
    adata.raw = adata[:, :20]
    adata.write_h5ad(cells, convert_strings_to_categoricals=False)
    before = {}
    with h5py.File(cells) as file:
        file.visititems(lambda name, item: before.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    done("predict", cells, "--model", model, "-o", "out.h5ad", "-q")
    out = anndata.read_h5ad("out.h5ad")
    assert set(out.obs) - set(adata.obs) == {"scdgn_label", "scdgn_confidence"}
    assert set(out.obsm) - set(adata.obsm) == {"X_scDGN", "scdgn_probability"}
    with h5py.File("out.h5ad") as file:
        for name, value in before.items():
            assert np.array_equal(file[name][()], value), name
    assert list(out.obs["scdgn_label"].cat.categories) == list(TYPES)
    table = out.obsm["scdgn_probability"]
    assert list(table.columns) == list(TYPES) and list(table.index) == list(out.obs_names)
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    assert (table.idxmax(axis=1) == out.obs["scdgn_label"].astype(str)).all()
    assert np.allclose(table.max(axis=1), out.obs["scdgn_confidence"])
    assert out.obsm["X_scDGN"].shape == (140, 4)


def test_predict_in_place_and_again(cells: Path, model: Path) -> None:
    first = done("predict", cells, "--model", model, "-o", "out.h5ad", "--json").record
    assert first["cells"] == 140 and first["missing_genes"] == 0 and sum(first["labels"].values()) == 140
    for _ in range(2):
        again = done("predict", cells, "--model", model, "-o", cells, "--json").record
        assert {**again, "output": "out.h5ad"} == first
    one, two = anndata.read_h5ad("out.h5ad"), anndata.read_h5ad(cells)
    assert one.obs.equals(two.obs)
    assert sorted(map(str, Path().iterdir())) == ["cells.h5ad", "model", "out.h5ad"]


def test_predict_tells_the_labels_and_the_missing_genes(cells: Path, model: Path) -> None:
    adata = tiny()
    adata[:, 5:].copy().write_h5ad(cells)
    ran = done("predict", cells, "--model", model, "-o", "out.h5ad")
    assert "5 of the model's 40 genes are not in the data" in ran.err
    assert "140 cells annotated in out.h5ad" in ran.err
    assert "label" in ran.out
    quiet = done("predict", cells, "--model", model, "-o", "out.h5ad", "-q")
    assert quiet.out == quiet.err == ""


def test_majority_voting(cells: Path, model: Path) -> None:
    adata = tiny()
    adata.obs["cluster"] = [f"c{i % 4}" for i in range(adata.n_obs)]
    adata.write_h5ad(cells)
    done("predict", cells, "--model", model, "-o", "out.h5ad", "-q", "--over-clustering", "cluster")
    out = anndata.read_h5ad("out.h5ad")
    for _, group in out.obs.groupby("cluster", observed=True):
        (winner,) = set(group["scdgn_majority_voting"])
        assert (group["scdgn_label"] == winner).sum() == group["scdgn_label"].value_counts().max()
    done("predict", cells, "--model", model, "-o", "out.h5ad", "-q", "--majority-voting")
    out = anndata.read_h5ad("out.h5ad")
    assert out.obs.groupby(annotate.CLUSTER, observed=True)["scdgn_majority_voting"].nunique().max() == 1
    assert out.obs[annotate.CLUSTER].nunique() > 1


def test_cells_are_told_the_same_in_the_file_and_in_memory(cells: Path, model: Path) -> None:
    disk = done("predict", cells, "--model", model, "-o", "disk.h5ad")
    memory = done("predict", cells, "--model", model, "-o", "memory.h5ad", "--majority-voting")
    assert disk.out == memory.out and disk.err.replace("disk", "memory") == memory.err
    one, two = anndata.read_h5ad("disk.h5ad"), anndata.read_h5ad("memory.h5ad")
    assert list(set(two.obs) - set(one.obs)) and one.obs.equals(two.obs[list(one.obs)])
    assert one.obsm["scdgn_probability"].equals(two.obsm["scdgn_probability"])


def test_names_that_files_do_not_allow(cells: Path) -> None:
    types = ("T/NK", "T_NK", "_index", "CD4+ [memory]")
    adata = tiny(cell_types=types)
    adata.write_h5ad(cells)
    done("train", cells, *KEYS, *FAST, "-o", "model", "-q", "--test-batch", "c")
    ran = done("predict", cells, "--model", "model", "-o", "out.h5ad")
    out = anndata.read_h5ad("out.h5ad")
    assert list(out.obs["scdgn_label"].cat.categories) == sorted(types)
    assert len(set(out.obsm["scdgn_probability"].columns)) == 4
    assert out.obsm["scdgn_probability"].to_numpy().argmax(axis=1).tolist() == out.obs["scdgn_label"].cat.codes.tolist()
    for name in set(out.obs["scdgn_label"]):
        assert str(name) in ran.out


# --- look around


def test_datasets() -> None:
    listed = done("datasets").out
    record = done("datasets", "--json").record
    assert list(record) == list(DATASETS)
    assert all(set(entry) == {"description", "test", "source"} for entry in record.values())
    assert all(name in listed for name in ("pancreas6", "pbmc", "scquery", "simulated-pancreas1"))


def test_simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("simulate", "out.h5ad", "--cells", "200", "--genes", "30", "--seed", "3")
    record = done(*words, "--json").record
    adata = anndata.read_h5ad("out.h5ad")
    assert record == {"output": "out.h5ad", "cells": adata.n_obs, "genes": 30}
    assert 190 <= adata.n_obs <= 200
    assert set(adata.obs["tech"]) == {"celseq", "celseq2", "smartseq2", "fluidigmc1"}
    assert "30 genes written to" in done(*words).err
    assert done(*words, "-q").err == ""
    assert (anndata.read_h5ad("out.h5ad").X != adata.X).nnz == 0
    done(*words, "--blocks", "pancreas1", "-q")
    kept = anndata.read_h5ad("out.h5ad").obs
    assert set(kept.loc[kept["tech"] == "celseq", "celltype"]) <= set(DATASETS["pancreas1"].blocks.keep["celseq"])  # type: ignore[union-attr]


def test_doctor() -> None:
    record = done("doctor", "--json").record
    assert {"python", "scdgn", "torch", "anndata", "GPUs", "data set cache", "MLflow store"} <= set(record)
    text = done("doctor").out
    assert all(name in text for name in ("python", "torch", "GPUs", "cache"))


HELP = """
import json, sys
sys.argv = ["scdgn", "--help"]
import scdgn.cli
try:
    scdgn.cli.main()
except SystemExit as end:
    assert end.code == 0
print(json.dumps(list(sys.modules)))
"""
HEAVY = {
    *("anndata", "captum", "fsspec", "h5py", "igraph", "jinja2", "matplotlib", "mlflow", "numba", "numpy", "optuna"),
    *("pandas", "pooch", "pydantic", "ray", "safetensors", "scanpy", "scipy", "sklearn", "sqlalchemy", "torch"),
}


def test_help_imports_nothing_heavy() -> None:
    """So that it is there at once: `python -m benchmarks.startup`."""
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=LONGEST, check=True)
    shown, _, imported = ran.stdout.rstrip().rpartition("\n")
    assert "predict" in shown
    modules = json.loads(imported)
    assert not HEAVY & set(modules)
    assert len(modules) < 500  # 336 counted, 68 of them Python's own start


COMMANDS: dict[str, Any] = cli._commands().commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_can_be_typed(name: str) -> None:
    shown = done(name, "--help").out
    assert f"scdgn {name}" in shown and done("help", name).out == shown
    start, words = COMMANDS[name].epilog.split(": ", maxsplit=1)
    program, command, *rest = shlex.split(words)
    assert (start, program, command) == ("Example", "scdgn", name)
    assert " ".join(words.split()) in " ".join(shown.split())
    assert COMMANDS[name].make_context(name, rest).params  # no word of it is unknown


def test_help_lists_the_commands_and_knows_one_that_is_nearly_meant() -> None:
    listed = done("help").out
    assert all(name in listed for name in COMMANDS)
    ran = run("help", "serach")
    assert ran.status == 2 and "Did you mean 'search'?" in ran.err


@pytest.mark.parametrize("name", ("search", "train", "predict", "reproduce", "peers"))
def test_options_of_commands_with_many_are_in_panels(name: str) -> None:
    general = {"name", "studies", "fresh", "dry_run", "track", "as_json", "verbose", "quiet", "notify", "output"}
    general |= {"model", "overwrite", "help", "timeout", "explain", "plots"}
    options = [one for one in COMMANDS[name].params if one.param_type_name == "option"]
    assert {one.name for one in options if one.rich_help_panel is None} <= general
    assert "─ Data ─" in done(name, "--help").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SCDGN_COMPLETE", f"complete_{shell}")
    for name, value in {"COMP_WORDS": "scdgn pre", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "scdgn pre"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "predict" in run().out


def test_colours_and_styles_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stdout", stream)
        print_table("", ["", "macro-F1"], [["a ★", "0.5"], ["b", "0.4"]], quiet=False, styles=[BEST, LEFT_OUT])
        return stream.getvalue()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in printed(io.StringIO())
    assert "\x1b[1;32m" in printed(Terminal())  # bold and green
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in printed(Terminal())


def test_no_command_shows_the_help() -> None:
    ran = run()
    assert ran.status == 2 and "Usage:" in ran.out and ran.err == ""


def test_a_closed_pipe_is_no_error() -> None:
    ran = subprocess.run(
        f"{sys.executable} -c 'from scdgn.cli import main; main()' --help | true",
        **{"shell": True, "capture_output": True, "text": True, "timeout": LONGEST, "check": False},
    )
    assert ran.stderr == ""


def test_bugs_keep_their_traceback(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("scdgn.model.fitting.fit", bug)
    with pytest.raises(ZeroDivisionError):
        run("train", cells, *KEYS, *FAST, "-o", "model")


def test_interrupted(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scdgn.model.fitting.fit", interrupt)
    ran = run("train", cells, *KEYS, *FAST, "-o", "model", "-q")
    assert ran.status == 130
    assert ran.err.splitlines()[-1] == "error: interrupted"
    assert list(Path().iterdir()) == [cells]


@pytest.mark.parametrize(("confidence", "paired"), [("0", "14 of 14"), ("1", "0 of 14")])
def test_cells_of_the_domain_loss_are_counted_that_were_confident_enough(
    cells: Path, confidence: str, paired: str
) -> None:
    adata = tiny()
    labels = adata.obs["celltype"].astype(object)
    labels.iloc[::10] = None
    adata.obs["celltype"] = labels
    adata.write_h5ad(cells)
    words = (*KEYS, *FAST, "--unlabeled", "domain", "--set", f"pseudo_confidence={confidence}", "-o", "model")
    assert f"{paired} unlabelled cells are predicted" in done("train", cells, *words).err
    again = done("train", cells, *words, "--method", "dann", "--overwrite")
    assert "unlabelled cells are predicted" not in again.err

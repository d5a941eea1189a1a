"""Bad input: one line with the remedy, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scdgn.model.bundle import Bundle
from scdgn.model.bundle_files import DOCUMENT, WEIGHTS
from tests.faults import FAST, KEYS, done, run, tiny, tree

Change = Callable[[AnnData], object]
HOLD_OUT = ("--test-batch", "c")


def refused(told: str, *words: str | Path) -> None:
    """The command ends with exit code 2 and one line that says `told`, and leaves the working directory alone.

    What the values were taken for may have been told before.
    """
    before = tree(Path())
    ran = run(*words)
    assert ran.status == 2, ran
    assert "Traceback" not in ran.err
    *notes, error = ran.err.splitlines()
    assert error.startswith("error: ")
    assert told in error
    assert all(note.removeprefix("query: ").startswith("values read as ") for note in notes), notes
    assert ran.out == ""
    assert tree(Path()) == before


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory's cells.h5ad."""
    monkeypatch.chdir(tmp_path)
    tiny().write_h5ad("cells.h5ad")
    return Path("cells.h5ad")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    tiny().write_h5ad(folder / "cells.h5ad")
    done("train", folder / "cells.h5ad", *KEYS, *FAST, "--gene-selection", "variable", "-o", folder / "model", "-q")
    return folder / "model"


@pytest.fixture
def model(trained: Path, cells: Path) -> Path:
    """The working directory's model, of cells.h5ad."""
    return Path(shutil.copytree(trained, "model"))


# --- the data: what is done to them, more options, what is told


def put(value: float) -> Change:
    def change(adata: AnnData) -> None:
        adata.X = adata.X.toarray()
        adata.X[3, 4] = value

    return change


def twice(adata: AnnData) -> None:
    adata.var_names = pd.Index(["gene1", *adata.var_names[:-1]])


def column(key: str, values: object) -> Change:
    def change(adata: AnnData) -> None:
        adata.obs[key] = values

    return change


def some_missing(key: str) -> Change:
    def change(adata: AnnData) -> None:
        values = adata.obs[key].astype(object)
        values.iloc[::10] = None
        adata.obs[key] = values

    return change


def only(**kept: str) -> Callable[[AnnData], AnnData]:
    (key, value), *_ = kept.items()
    return lambda adata: adata[adata.obs[key] == value].copy()


def types_of_one_cell(adata: AnnData) -> AnnData:
    few = adata[:60].copy()
    column("celltype", [f"type{place}" for place in range(60)])(few)
    return few


def nothing(_: AnnData) -> None:
    pass


ANY_DATA: dict[str, tuple[Callable[[AnnData], object], str]] = {
    "NaN": (put(np.nan), "X holds 1 NaN value, the first at cell a-4, gene gene5: replace them"),
    "infinite": (put(np.inf), "X holds 1 infinite value, the first at cell a-4, gene gene5: find the step"),
    "negative": (put(-1), "X holds 1 negative value, the first at cell a-4, gene gene5: they look scaled"),
    "duplicate genes": (twice, "gene name more than once (gene1): call adata.var_names_make_unique()"),
    "no cells": (lambda adata: adata[:0].copy(), "the data hold no cells: check the file"),
    "no genes": (lambda adata: adata[:, :0].copy(), "the data hold no genes: check the file"),
    "no X": (lambda adata: AnnData(obs=adata.obs, var=adata.var), "X is empty: choose a layer with --layer"),
}
TRAINING_DATA: dict[str, tuple[Callable[[AnnData], object], tuple[str, ...], str]] = {
    "labels missing": (some_missing("celltype"), (), "14 of 140 cells have no label in obs['celltype']: drop them"),
    "the choices: drop": (some_missing("celltype"), (), "--unlabeled drop"),
    "the choices: domain": (some_missing("celltype"), (), "--unlabeled domain"),
    "the choices: category": (some_missing("celltype"), (), "--unlabeled-category"),
    "batches missing": (some_missing("tech"), (), "14 of 140 cells have no batch in obs['tech']: fill the values in"),
    "no labels at all": (column("celltype", ""), ("--unlabeled", "drop"), "holds no label, two types are needed"),
    "measurements": (column("celltype", np.linspace(0.25, 2, 140)), (), "obs['celltype'] holds measurements (0.25)"),
    "names of cells": (column("celltype", [f"cell {i}" for i in range(140)]), (), "holds 140 types for 140 cells"),
    "names of cells as batches": (column("tech", [f"cell {i}" for i in range(140)]), (), "holds 140 batches for 140"),
    "types as batches": (nothing, ("--batch-key", "celltype"), "obs['celltype'] cannot be both cell type and batch"),
    "one type": (column("celltype", "B"), (), "obs['celltype'] holds one cell type only ('B'), two types are needed"),
    "one type left": (
        lambda adata: adata[(adata.obs["tech"] == "c") | (adata.obs["celltype"] == "B")].copy(),
        HOLD_OUT,
        "all training cells are of one type ('B'), two are needed",
    ),
    "one batch": (only(tech="a"), (), "scdgn needs two training batches, there is one ('a'): check --batch-key"),
    "one batch, remedy": (only(tech="a"), (), "or use --method nn"),
    "one batch for dann": (only(tech="a"), ("--method", "dann"), "dann needs two training batches, there is one ('a')"),
    "one batch left": (
        lambda adata: adata[adata.obs["tech"] != "b"].copy(),
        HOLD_OUT,
        "scdgn needs two training batches, there is one ('a')",
    ),
    "one batch dropped to": (
        lambda adata: column("celltype", adata.obs["celltype"].astype(object).where(adata.obs["tech"] == "a"))(adata),
        ("--unlabeled", "drop"),
        "scdgn needs two training batches, there is one ('a')",
    ),
    "only the test batch": (only(tech="c"), HOLD_OUT, "no labelled cell is left for training: hold out fewer"),
    "single cells cannot validate": (
        types_of_one_cell,
        ("--early-stopping",),
        "every type has a single cell, so none can validate: leave out --early-stopping",
    ),
    "logarithms beyond any count": (nothing, ("--values", "log"), "so its values are not logarithms"),
}


def rewrite(change: Callable[[AnnData], object]) -> None:
    adata = tiny()
    changed = change(adata)
    (changed if isinstance(changed, AnnData) else adata).write_h5ad("cells.h5ad")


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(("change", "told"), ANY_DATA.values(), ids=ANY_DATA)
def test_data_that_neither_train_nor_predict(change: Callable[[AnnData], object], told: str, model: Path) -> None:
    rewrite(change)
    refused(told, "train", "cells.h5ad", *KEYS, *FAST, "-o", "new")
    refused(told, "predict", "cells.h5ad", "--model", model, "-o", "out.h5ad")
    refused(told, "predict", "cells.h5ad", "--model", model, "-o", "cells.h5ad")


@pytest.mark.parametrize(("change", "words", "told"), TRAINING_DATA.values(), ids=TRAINING_DATA)
def test_data_that_do_not_train(
    change: Callable[[AnnData], object], words: tuple[str, ...], told: str, cells: Path
) -> None:
    rewrite(change)
    refused(told, "train", cells, *KEYS, *FAST, *words, "-o", "new")


def test_all_faults_at_once(cells: Path) -> None:
    adata = tiny()
    put(np.nan)(adata)
    some_missing("tech")(adata)
    adata.write_h5ad(cells)
    for told in ("NaN", "have no batch", "no column 'cell_type'"):
        refused(told, "train", cells, "--labels-key", "cell_type", "--batch-key", "tech", "-o", "new")


# --- files that are not what they should be


def text(path: Path) -> None:
    path.write_text("cells, genes")


def other_hdf5(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["matrix"] = np.zeros(3)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def headless(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def without_index(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["obs"].attrs["_index"]


def garbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.rename("cell.h5ad"), "cells.h5ad does not exist: did you mean cell.h5ad"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cells.h5ad is a directory: name the .h5ad file itself"),
    "empty": (lambda path: path.write_bytes(b""), "cells.h5ad is not an AnnData file (.h5ad, HDF5)"),
    "text": (text, "cells.h5ad is not an AnnData file (.h5ad, HDF5): write it with adata.write_h5ad"),
    "other HDF5": (other_hdf5, "cells.h5ad is HDF5 but not AnnData (it has no obs and var)"),
    "truncated": (truncated, "cells.h5ad is truncated: copy or download it again"),
    "headless": (headless, "copy it again"),
    "without index": (without_index, "cells.h5ad cannot be read as AnnData"),
    "garbled": (garbled, "cells.h5ad cannot be"),
}


@pytest.mark.parametrize(("spoil", "told"), FILES.values(), ids=FILES)
def test_files_that_cannot_be_read(spoil: Callable[[Path], object], told: str, cells: Path, model: Path) -> None:
    spoil(cells)
    refused(told, "train", cells, *KEYS, *FAST, "-o", "new")
    refused(told, "predict", cells, "--model", model, "-o", "out.h5ad")
    done("simulate", "other.h5ad", "--cells", "100", "--genes", "20", "-q")
    refused(told, "train", "other.h5ad", *KEYS, *FAST, "--query", cells, "--adapt", "-o", "new")


# --- train: what is typed

TRAIN: dict[str, tuple[tuple[str, ...], str]] = {
    "labels key": (
        ("cells.h5ad", "--labels-key", "cell_type", "--batch-key", "tech"),
        "obs has no column 'cell_type' (--labels-key): did you mean celltype? (found: celltype, tech)",
    ),
    "batch key": (
        ("cells.h5ad", "--labels-key", "celltype", "--batch-key", "techs"),
        "obs has no column 'techs' (--batch-key): did you mean tech? (found: celltype, tech)",
    ),
    "no keys": (("cells.h5ad",), "give --labels-key and --batch-key"),
    "layer": (("cells.h5ad", *KEYS, "--layer", "counts"), "no layer is called 'counts'"),
    "gene key": (("cells.h5ad", *KEYS, "--gene-key", "symbol"), "var has no column 'symbol' (--gene-key)"),
    "test batch": (("cells.h5ad", *KEYS, "--test-batch", "d"), "test batch 'd' does not exist"),
    "no data": ((), "give either a file DATA.h5ad or --dataset NAME"),
    "both data": (("cells.h5ad", "--dataset", "pbmc", *KEYS), "give either a file DATA.h5ad or --dataset NAME"),
    "data set": (("--dataset", "pancreas7"), "did you mean pancreas"),
    "path alone": (("cells.h5ad", *KEYS, "--path", "."), "--path says where the files of --dataset are"),
    "method": (("cells.h5ad", *KEYS, "--method", "scgdn"), "'scgdn' is not one of 'nn', 'dann', 'scdgn'"),
    "preset": (("cells.h5ad", *KEYS, "--preset", "published"), "there is no preset 'published'"),
    "unknown setting": (("cells.h5ad", *KEYS, "--set", "margins=2"), "unknown setting 'margins': did you mean margin"),
    "setting out of range": (("cells.h5ad", *KEYS, "--set", "epochs=0"), "epochs is 0: give a value of at least 1"),
    "setting of a wrong type": (("cells.h5ad", *KEYS, "--set", "margin=wide"), "margin is 'wide': give a number"),
    "setting that is not finite": (("cells.h5ad", *KEYS, "--set", "lr=nan"), "lr is nan"),
    "setting without value": (("cells.h5ad", *KEYS, "--set", "margin"), "--set 'margin' is not of the form KEY=VALUE"),
    "method as setting": (("cells.h5ad", *KEYS, "--set", "method=nn"), "use --method"),
    "two settings": (("cells.h5ad", *KEYS, "--set", "margin=-1", "--set", "gamma=0"), "gamma is 0"),
    "scaling": (("cells.h5ad", *KEYS, "--scaling", "zscore"), "scaling is 'zscore': choose one of none, standard"),
    "genes": (("cells.h5ad", *KEYS, "--n-top-genes", "0"), "Invalid value for '--n-top-genes'"),
    "seed": (("cells.h5ad", *KEYS, "--seed", "-1"), "Invalid value for '--seed'"),
    "seeds": (("cells.h5ad", *KEYS, "--seeds", "0"), "Invalid value for '--seeds'"),
    "no config": (("cells.h5ad", *KEYS, "--config", "none.toml"), "none.toml cannot be read (No such file"),
    "config not TOML": (("cells.h5ad", *KEYS, "--config", "cells.h5ad"), "cells.h5ad is not TOML"),
    "config table": (("cells.h5ad", *KEYS, "--config", "table.toml"), "unknown table [training] in table.toml"),
    "config without table": (("cells.h5ad", *KEYS, "--config", "loose.toml"), "margin in loose.toml stands outside"),
    "config value": (("cells.h5ad", *KEYS, "--config", "value.toml"), "clip is 0: give a value of at least 1e-06"),
    "validation fraction": (
        ("cells.h5ad", *KEYS, "--early-stopping", "--validation-fraction", "1"),
        "validation fraction is 1: give a value between 0 and 1",
    ),
    "patience": (("cells.h5ad", *KEYS, "--early-stopping", "--patience", "0"), "patience is 0: give at least 1 epoch"),
    "split form": (("cells.h5ad", "--split", "splits.json"), "is not of the form FILE:NAME"),
    "split file": (("cells.h5ad", "--split", "none.json:one"), "split file none.json cannot be read"),
    "split name": (("cells.h5ad", "--split", "splits.json:two"), "splits.json has no split 'two'"),
    "split type": (("cells.h5ad", "--split", "splits.json:one"), "keeps cell type 'D', which does not exist"),
    "split and test batch": (
        ("cells.h5ad", "--split", "splits.json:one", "--test-batch", "c"),
        "--split names its own test domain: leave out --test-batch",
    ),
    "query alone": (("cells.h5ad", *KEYS, "--query", "c"), "add --adapt, or leave --query out"),
    "adapt alone": (("cells.h5ad", *KEYS, "--adapt"), "name them with --query BATCH or FILE"),
    "unlabelled cells with drawn pairs": (
        ("cells.h5ad", *KEYS, *HOLD_OUT, "--unlabeled", "domain", "--preset", "reference"),
        "set pairing to 'batch'",
    ),
    "query": (("cells.h5ad", *KEYS, "--query", "d", "--adapt"), "query 'd' is neither a batch of the data nor a file"),
    "device": (("cells.h5ad", *KEYS, "--device", "gpu"), "device 'gpu' is unknown: choose auto, cpu, cuda or cuda:N"),
    "device unsupported": (("cells.h5ad", *KEYS, "--device", "mps"), "device 'mps' is not supported: choose auto, cpu"),
    "device absent": (("cells.h5ad", *KEYS, "--device", "cuda:99"), "device 'cuda:99' is not there"),
    "unknown option": (("cells.h5ad", *KEYS, "--epoch", "3"), "No such option: --epoch"),
    "name too long": (("n" * 300, *KEYS), "File name too long"),
}


@pytest.fixture
def settings_files(cells: Path) -> None:
    Path("table.toml").write_text("[training]\nmargin = 2")
    Path("loose.toml").write_text("margin = 2")
    Path("value.toml").write_text("[preprocess]\nclip = 0")
    split = {
        "test_domain": "c",
        "labels_key": "celltype",
        "batch_key": "tech",
        "splits": {"one": {"keep": {"a": ["D"]}}},
    }
    Path("splits.json").write_text(json.dumps(split))


@pytest.mark.usefixtures("settings_files")
@pytest.mark.parametrize(("words", "told"), TRAIN.values(), ids=TRAIN)
def test_training_as_it_cannot_be_asked_for(words: tuple[str, ...], told: str) -> None:
    refused(told, "train", *words, "-o", "new")


def test_training_whose_model_nobody_wants(cells: Path) -> None:
    refused("give -o MODEL_DIR to keep it, or --test-batch to score it", "train", cells, *KEYS)


def test_a_device_that_is_not_there(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    told = "device 'cuda' is not there (there is no GPU): choose --device cpu, or see `scdgn doctor`"
    refused(told, "train", cells, *KEYS, "--device", "cuda", "-o", "new")


def test_training_that_diverges(cells: Path) -> None:
    words = ("--set", "optimizer=sgd", "--set", "lr=1e30", "--set", "bias_init=normal")
    refused("lower lr or lambda_max, or set clip_norm", "train", cells, *KEYS, *FAST, *words, "-o", "new")


# --- where the model goes


def model_taken(model: Path) -> str:
    return str(model)


def folder_taken(_: Path) -> str:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").touch()
    return "thesis"


MODEL_PLACES: dict[str, tuple[Callable[[Path], str], tuple[str, ...], str]] = {
    "another model": (model_taken, (), "model exists: choose another name, or replace it with --overwrite"),
    "other things": (folder_taken, ("--overwrite",), "thesis holds other things than a model, as 'chapter1.tex'"),
    "a file": (lambda _: "cells.h5ad", ("--overwrite",), "cells.h5ad is a file: give the name of a folder"),
    "under a file": (lambda _: "cells.h5ad/model", (), "cells.h5ad is no folder): choose another output"),
    "no name": (lambda _: "..", (), ".. is no name for a new folder: give one"),
    "name too long": (lambda _: "n" * 300, (), "File name too long): choose another output"),
}


@pytest.mark.parametrize(("place", "words", "told"), MODEL_PLACES.values(), ids=MODEL_PLACES)
def test_places_where_a_model_cannot_go(
    place: Callable[[Path], str], words: tuple[str, ...], told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdgn.model.fitting.fit", lambda *_: pytest.fail("this has to be found before training"))
    refused(told, "train", "cells.h5ad", *KEYS, *FAST, *words, "-o", place(model))


@pytest.mark.parametrize("output", ["model", "new"])
def test_a_disk_that_is_full_when_the_model_is_written(
    output: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    told = "No space left on device): free some space there, or choose another output"
    refused(told, "train", "cells.h5ad", *KEYS, *FAST, "-o", output, "--overwrite")


# --- predict: what is typed, and the model

PREDICT: dict[str, tuple[tuple[str, ...], str]] = {
    "no model": (
        ("--model", "none", "-o", "out.h5ad"),
        "none is neither a folder nor a study in studies (--studies): there are none",
    ),
    "a name too long for a model": (("--model", "n" * 300, "-o", "out.h5ad"), "File name too long"),
    "a file for a model": (("--model", "cells.h5ad", "-o", "out.h5ad"), "cells.h5ad is not a folder"),
    "any folder": (("--model", "/usr", "-o", "out.h5ad"), "holds no model.json: give "),
    "layer": (("--model", "model", "-o", "out.h5ad", "--layer", "counts"), "no layer is called 'counts'"),
    "gene key": (("--model", "model", "-o", "out.h5ad", "--gene-key", "symbol"), "var has no column 'symbol'"),
    "batch key": (("--model", "model", "-o", "out.h5ad", "--batch-key", "teck"), "did you mean tech?"),
    "clusters": (("--model", "model", "-o", "out.h5ad", "--over-clustering", "leiden"), "obs has no column 'leiden'"),
    "values": (("--model", "model", "-o", "out.h5ad", "--values", "log"), "say --values counts"),
    "onto a folder": (("--model", "model", "-o", "model"), "model is a directory: give the name of a file"),
    "under a file": (("--model", "model", "-o", "cells.h5ad/out.h5ad"), "cells.h5ad is no folder)"),
    "no model option": (("-o", "out.h5ad"), "Missing option '--model'"),
    "no output option": (("--model", "model"), "Missing option '--output'"),
}


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(("words", "told"), PREDICT.values(), ids=PREDICT)
def test_prediction_as_it_cannot_be_asked_for(words: tuple[str, ...], told: str) -> None:
    refused(told, "predict", "cells.h5ad", *words)


@pytest.mark.parametrize("output", ["model", "cells.h5ad/out.h5ad"])
def test_places_where_cells_cannot_go_are_found_before_the_work(
    output: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "scdgn.model.annotate.annotate", lambda *_: pytest.fail("this has to be found before predicting")
    )
    refused("", "predict", "cells.h5ad", "--model", model, "-o", output)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another version": (
        lambda model: edit(model / DOCUMENT, "version", 99),
        "model is a bundle of version 99, this scdgn reads up to version 2: install the scdgn that wrote it, or train",
    ),
    "a flipped bit": (lambda model: flip(model / WEIGHTS), "model is damaged"),
    "another type": (lambda model: edit(model / DOCUMENT, "cell_types", ["x", "y", "z"]), "model is damaged"),
    "truncated weights": (lambda model: truncated(model / WEIGHTS), "model is damaged"),
    "truncated document": (lambda model: truncated(model / DOCUMENT), "copy or train the model again"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), "copy or train the model again"),
    "no document": (lambda model: (model / DOCUMENT).unlink(), "model holds no model.json"),
    "weights a folder": (
        lambda model: ((model / WEIGHTS).unlink(), (model / WEIGHTS).mkdir()),
        "copy or train the model again",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used(spoil: Callable[[Path], object], told: str, model: Path) -> None:
    spoil(model)
    refused(told, "predict", "cells.h5ad", "--model", model, "-o", "out.h5ad")


def renamed(name: Callable[[int], str]) -> Change:
    return lambda adata: setattr(adata, "var_names", [name(i) for i in range(adata.n_vars)])


GENES: dict[str, tuple[Change, str]] = {
    "none in common": (
        renamed(lambda i: f"other{i}"),
        "0 of the 40 genes of the model are in the data, 5 are needed: check that the data are of the model's species",
    ),
    "Ensembl": (
        renamed(lambda i: f"ENSG{i:011}"),
        "the data name their genes by Ensembl identifiers, the model by symbols; name the column of var",
    ),
    "upper case": (renamed(lambda i: f"GENE{i + 1}"), "40 would match but for upper and lower case"),
    "too few": (
        renamed(lambda i: f"gene{i + 1}" if i < 3 else f"other{i}"),
        "3 of the 40 genes of the model are in the data, 5 are needed",
    ),
}


@pytest.mark.parametrize(("change", "told"), GENES.values(), ids=GENES)
def test_genes_that_do_not_match(change: Change, told: str, model: Path) -> None:
    adata = tiny()
    change(adata)
    adata.write_h5ad("query.h5ad")
    refused(told, "predict", "query.h5ad", "--model", model, "-o", "out.h5ad")
    refused(
        told,
        "train",
        "cells.h5ad",
        *KEYS,
        *FAST,
        "--gene-selection",
        "variable",
        "--query",
        "query.h5ad",
        "--adapt",
        "-o",
        "new",
    )


@pytest.mark.parametrize("output", ["out.h5ad", "cells.h5ad", "new/folder/out.h5ad"])
def test_a_disk_that_is_full_when_the_cells_are_written(
    output: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, place: Path) -> None:
        place.write_bytes(b"half of the cells")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scdgn.cells.h5ad.write_h5ad", full)
    monkeypatch.setattr("shutil.copyfile", full)  # predict adds to a copy
    told = "No space left on device): free some space there, or choose another output"
    refused(told, "predict", "cells.h5ad", "--model", model, "-o", output)
    refused(told, "simulate", output, "--cells", "20", "--genes", "20")


# --- simulate, and words that are no command

OTHER: dict[str, tuple[tuple[str, ...], str]] = {
    "command": (("trian",), "No such command 'trian'"),
    "shape": (("simulate", "out.h5ad", "--shape", "heart"), "'heart' is not one of"),
    "blocks": (("simulate", "out.h5ad", "--blocks", "pancreas9"), "did you mean pancreas"),
    "blocks of another shape": (
        ("simulate", "out.h5ad", "--shape", "pbmc", "--blocks", "pancreas1"),
        "blocks 'pancreas1' are not of the shape 'pbmc'",
    ),
    "genes": (("simulate", "out.h5ad", "--genes", "1"), "genes is 1: set at least 2"),
    "cells": (("simulate", "out.h5ad", "--cells", "0"), "Invalid value for '--cells'"),
    "output": (("simulate", "cells.h5ad/out.h5ad"), "cells.h5ad is no folder)"),
}


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize(("words", "told"), OTHER.values(), ids=OTHER)
def test_other_commands(words: tuple[str, ...], told: str) -> None:
    refused(told, *words)


def test_the_process_ends_with_code_2_and_no_traceback(cells: Path) -> None:
    code = "from scdgn.cli import main; main()"
    words = ("train", str(cells), "--labels-key", "cell_type", "--batch-key", "tech", "-o", "new")
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1 and ran.stderr.startswith("error: obs has no column 'cell_type'")


# --- not errors


def single_cell(adata: AnnData) -> None:
    labels = adata.obs["celltype"].astype(str)
    labels.iloc[0] = "rare"
    adata.obs["celltype"] = labels.to_numpy()


def types_of_one_batch(adata: AnnData) -> None:
    types = adata.obs["celltype"].astype(str) + np.where(adata.obs["tech"] == "a", " of a", "")
    adata.obs["celltype"] = types.to_numpy()


def numbered(key: str, dtype: type) -> Change:
    def change(adata: AnnData) -> None:
        adata.obs[key] = adata.obs[key].cat.codes.to_numpy().astype(dtype)

    return change


def unused_levels(adata: AnnData) -> None:
    for key in ("celltype", "tech"):
        adata.obs[key] = adata.obs[key].cat.add_categories(["never", "seen"])


def cells_without_counts(adata: AnnData) -> None:
    x = adata.X.toarray()
    x[::7] = 0
    adata.X = sp.csr_matrix(x)


def a_batch_without_counts(adata: AnnData) -> None:
    adata.X = sp.csr_matrix(adata.X.multiply((adata.obs["tech"] != "b").to_numpy()[:, None]))


def fractional(adata: AnnData) -> None:
    adata.X = adata.X * 0.3


def gene_without_counts(adata: AnnData) -> None:
    x = adata.X.toarray()
    x[:, 0] = 0
    adata.X = x


FINE: dict[str, tuple[Change, set[str]]] = {
    "a type with a single cell": (single_cell, {"B", "NK", "T", "rare"}),
    "types in one batch only": (types_of_one_batch, {"B", "NK", "T", "B of a", "NK of a", "T of a"}),
    "integer labels": (numbered("celltype", int), {"0", "1", "2"}),
    "float labels": (numbered("celltype", float), {"0", "1", "2"}),
    "boolean labels": (numbered("celltype", bool), {"False", "True"}),
    "numbered batches": (numbered("tech", float), {"B", "NK", "T"}),
    "categories with unused levels": (unused_levels, {"B", "NK", "T"}),
    "cells without counts": (cells_without_counts, {"B", "NK", "T"}),
    "a batch without counts": (a_batch_without_counts, {"B", "NK", "T"}),
    "a gene without counts": (gene_without_counts, {"B", "NK", "T"}),
    "fractional counts": (fractional, {"B", "NK", "T"}),
}


@pytest.mark.parametrize("scaling", ["none", "standard", "standard-per-batch"])
@pytest.mark.parametrize(("change", "types"), FINE.values(), ids=FINE)
def test_data_that_are_unusual_and_fine(change: Change, types: set[str], scaling: str, cells: Path) -> None:
    adata = tiny()
    change(adata)
    adata.write_h5ad(cells)
    held_out = adata.obs["tech"].iloc[-1]
    words = (*KEYS, *FAST, "--scaling", scaling, "--n-top-genes", "30")
    batch = f"{held_out:.0f}" if isinstance(held_out, float) else str(held_out)
    ran = done("train", cells, *words, "--test-batch", batch, "-o", "model")
    assert "values read as counts" in ran.err
    assert set(json.loads(Path("model", DOCUMENT).read_text())["cell_types"]) == types
    done("predict", cells, "--model", "model", "-o", "out.h5ad", "-q", "--majority-voting")
    out = anndata.read_h5ad("out.h5ad")
    assert set(out.obs["scdgn_label"].astype(str)) <= types
    assert np.isfinite(out.obs["scdgn_confidence"]).all()
    assert np.isfinite(out.obsm["X_scDGN"]).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_cells_is_annotated(count: int, model: Path) -> None:
    tiny()[:count].copy().write_h5ad("few.h5ad")
    done("predict", "few.h5ad", "--model", model, "-o", "out.h5ad", "-q", "--majority-voting", "--values", "counts")
    assert anndata.read_h5ad("out.h5ad").n_obs == count


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_duplicate_names_of_cells_are_fine(model: Path) -> None:
    adata = tiny()
    adata.obs_names = ["cell"] * adata.n_obs
    adata.write_h5ad("cells.h5ad")
    done("predict", "cells.h5ad", "--model", model, "-o", "out.h5ad", "-q", "--majority-voting")
    out = anndata.read_h5ad("out.h5ad")
    assert set(out.obs_names) == {"cell"} and out.obs["scdgn_label"].notna().all()
    assert done("train", "cells.h5ad", *KEYS, *FAST, *HOLD_OUT, "--json").record["scored_cells"] > 0


def test_nn_trains_on_one_batch(cells: Path) -> None:
    tiny(cells={"a": 60}).write_h5ad(cells)
    done("train", cells, *KEYS, *FAST, "--method", "nn", "-o", "new", "-q")
    assert Bundle.load("new").batch_names == ("a",)


@pytest.mark.parametrize("query", ["1", "2"])
def test_a_numbered_batch_is_a_query_by_the_name_it_has_as_a_test_batch(query: str, cells: Path) -> None:
    adata = tiny()
    adata.obs["tech"] = adata.obs["tech"].cat.codes.to_numpy().astype(float)
    adata.write_h5ad(cells)
    alike = ("--method", "nn", "--set", "shift_probability=0")  # else the order of the batches decides the draws
    for option in ("--query", "--test-batch"):
        done("train", cells, *KEYS, *FAST, *alike, "--adapt", option, query, "-o", option.strip("-"), "-q")
    assert Path("query", WEIGHTS).read_bytes() == Path("test-batch", WEIGHTS).read_bytes()


def test_a_shallow_batch_is_read_as_the_rest_of_the_data(cells: Path) -> None:
    """Told from its own range it would be taken for log-normalised, and not be normalised."""
    adata = tiny()
    x = adata.X.toarray()
    shallow = (adata.obs["tech"] == "c").to_numpy()
    x[shallow] = np.minimum(x[shallow], 5)
    adata.X = x
    adata.write_h5ad(cells)
    for option in ("--query", "--test-batch"):
        ran = done("train", cells, *KEYS, *FAST, "--adapt", option, "c", "-o", option.strip("-"))
        assert ran.err.count("values read as counts") == 1
    assert Path("query", WEIGHTS).read_bytes() == Path("test-batch", WEIGHTS).read_bytes()

"""Input that looks wrong and is not: it was always read right, and is never to be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from tests.faults import FAST, KEYS, done, tiny

TRAINED = (*KEYS, *FAST, "--method", "nn", "-q")


def renamed(names: dict[str, str]) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.obs["celltype"] = adata.obs["celltype"].astype(str).replace(names)

    return change


def ordered(adata: AnnData) -> None:
    adata.obs["celltype"] = pd.Categorical(adata.obs["celltype"].astype(str), ["T", "NK", "B", "unused"], ordered=True)


def nullable(adata: AnnData) -> None:
    adata.obs["celltype"] = pd.array(adata.obs["celltype"].astype(str), dtype="string")
    adata.obs["tech"] = pd.array(adata.obs["tech"].astype("category").cat.codes.astype(int), dtype="Int64")


def many_types(adata: AnnData) -> None:
    adata.obs["celltype"] = [f"type {number % 70:03d}" for number in range(adata.n_obs)]


def a_cell_alone(adata: AnnData) -> None:
    names = adata.obs["tech"].astype(str).to_numpy().astype(object)
    names[0] = "alone"
    adata.obs["tech"] = names


def foreign_genes(adata: AnnData) -> None:
    adata.var_names = [f"遺伝子$ {number}/a" for number in range(adata.n_vars)]


def blank_cells(adata: AnnData) -> None:
    x = adata.X.tolil()
    x[::9] = 0
    adata.X = sp.csr_matrix(x)


def same_cell_names(adata: AnnData) -> None:
    adata.obs_names = ["cell"] * adata.n_obs


FINE: dict[str, Callable[[AnnData], None]] = {
    "a slash": renamed({"B": "B/plasma"}),
    "dollars and CJK": renamed({"B": "$B", "T": "T細胞", "NK": "NK +/- ü"}),
    "ordered, with an unused level": ordered,
    "nullable": nullable,
    "70 types of two cells": many_types,
    "a batch of one cell": a_cell_alone,
    "genes in another script": foreign_genes,
    "cells without counts": blank_cells,
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_it_trains_and_predicts_every_cell(change: Callable[[AnnData], None], tmp_path: Path) -> None:
    place = tmp_path / "a folder with blanks"
    place.mkdir()
    adata = tiny()
    change(adata)
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(place / "my cells.h5ad")
    types = from_anndata(adata, Fields("celltype", "tech")).cell_types
    done("train", place / "my cells.h5ad", *TRAINED, "-o", place / "the model")
    done("predict", place / "my cells.h5ad", "--model", place / "the model", "-o", place / "out.h5ad", "-q")
    out = anndata.read_h5ad(place / "out.h5ad")
    assert tuple(out.obs["scdgn_label"].cat.categories) == types
    assert np.isfinite(out.obs["scdgn_confidence"]).all() and out.obs["celltype"].notna().all()


def test_byte_strings_and_line_ends_of_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R writes byte strings of a fixed length; spreadsheets end lines with CR and LF."""
    monkeypatch.chdir(tmp_path)
    adata = tiny()
    adata.write_h5ad("cells.h5ad")
    with h5py.File("cells.h5ad", "r+") as file:
        for name in ("obs", "var"):
            table = file[name]
            index = table.attrs["_index"]
            names = table[index].asstr()[:]
            attributes = dict(table[index].attrs)
            del table[index]
            table[index] = np.array(names, dtype="S")
            table[index].attrs.update(attributes)
    done("train", "cells.h5ad", *TRAINED, "-o", "model")
    table = adata.obs.to_csv(lineterminator="\r\n")
    Path("table.csv").write_bytes(table.encode())
    del adata.obs["celltype"], adata.obs["tech"]
    adata.write_h5ad("bare.h5ad")
    done("train", "bare.h5ad", "--obs", "table.csv", *TRAINED, "-o", "other")
    labels = []
    for model in ("model", "other"):
        done("predict", "bare.h5ad", "--model", model, "-o", "out.csv", "-q")
        labels.append(pd.read_csv("out.csv")["label"].tolist())
    assert labels[0] == labels[1]

"""Other files than .h5ad, other objects than AnnData in memory, and messages that name the reason they saw."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from scdgn import SCDGN
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.errors import DataError
from tests.faults import FAST, KEYS, done, run, tiny

TRAINED = (*KEYS, *FAST, "--method", "nn", "-q")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(*words: str) -> str:
    ran = run(*words)
    assert ran.status == 2 and "Traceback" not in ran.err
    return ran.err


# --- other files


def ten_x_folder(adata: AnnData, folder: Path) -> None:
    """As 10x writes it: genes by cells, three compressed files."""
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.csc_matrix(adata.X.T).astype(int))
    ids = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    genes = pd.DataFrame({"id": ids, "name": adata.var_names, "type": "Gene Expression"})
    genes.to_csv(folder / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(folder / "barcodes.tsv.gz", sep="\t", header=False, index=False)


def ten_x_file(adata: AnnData, path: Path) -> None:
    """As 10x writes it: compressed columns of cells."""
    x = sp.csr_matrix(adata.X).astype(np.int32)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, value in {"data": x.data, "indices": x.indices, "indptr": x.indptr,
                            "shape": np.array([adata.n_vars, adata.n_obs])}.items():  # fmt: skip
            group[name] = value
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        features = group.create_group("features")
        features["name"] = np.array(adata.var_names, dtype="S")
        features["id"] = np.array([f"ENSG{number:011d}" for number in range(adata.n_vars)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")


def one_modality(adata: AnnData, path: Path, *more: str) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        for name in ("rna", *more):
            anndata.io.write_elem(file, f"mod/{name}", adata)
        file.create_group("obs")
        file.create_group("var")


def as_zarr(adata: AnnData, path: Path) -> None:
    adata.write_zarr(path)


@pytest.mark.filterwarnings("ignore")  # of zarr, about the form that it will write one day
@pytest.mark.parametrize(
    ("name", "write"),
    [("folder", ten_x_folder), ("cells.h5", ten_x_file), ("cells.zarr", as_zarr), ("cells.h5mu", one_modality)],
)
def test_what_people_have_gives_the_labels_of_the_same_cells_in_h5ad(name: str, write: Any) -> None:
    adata = tiny()
    adata.X = sp.csr_matrix(np.rint(adata.X.toarray()))
    adata.write_h5ad("cells.h5ad")
    write(adata, Path(name))
    adata.obs.to_csv("table.csv")
    with_labels = () if name in ("cells.zarr", "cells.h5mu") else ("--obs", "table.csv")
    done("train", "cells.h5ad", *TRAINED, "-o", "model")
    done("train", name, *with_labels, *TRAINED, "-o", "other")
    labels = []
    for data, model in (("cells.h5ad", "model"), (name, "other")):
        done("predict", data, "--model", model, "-o", "out.h5ad", "-q")
        labels.append(anndata.read_h5ad("out.h5ad").obs["scdgn_label"].astype(str).tolist())
    assert labels[0] == labels[1]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cells.csv.gz", 'anndata.io.read_csv("cells.csv.gz").write_h5ad("cells.h5ad")'),
        ("cells.rds", 'readRDS("cells.rds")'),
        ("cells.mtx", "or give the folder itself"),
    ],
)
def test_what_is_not_read_is_refused_with_the_line_that_converts_it(name: str, told: str) -> None:
    Path(name).write_bytes(b"some,bytes")
    assert told in refused("train", name, *TRAINED, "-o", "model")


def test_several_modalities_are_refused_with_the_line_that_takes_one() -> None:
    one_modality(tiny(), Path("cells.h5mu"), "atac")
    told = refused("train", "cells.h5mu", *TRAINED, "-o", "model")
    assert 'of atac, rna: write one of these by itself, mudata.read_h5mu("cells.h5mu").mod["rna"]' in told


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("cell,celltype,tech\nx,B,a\n", "lacks 140 of 140 cells, the first 'a-1'"),
        ("cell,celltype\na-0,B\na-0,T\n", "holds 1 cell more than once"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: str, told: str) -> None:
    tiny().write_h5ad("cells.h5ad")
    Path("table.csv").write_text(table)
    assert told in refused("train", "cells.h5ad", "--obs", "table.csv", *TRAINED, "-o", "model")


def test_a_search_reads_them_too_and_goes_on_with_them() -> None:
    adata = tiny(cells={"a": 30, "b": 30, "c": 30, "d": 30})
    adata.X = sp.csr_matrix(np.rint(adata.X.toarray()))
    ten_x_folder(adata, Path("folder"))
    adata.obs.to_csv("table.tsv", sep="\t")
    words = ("search", "folder", "--obs", "table.tsv", *TRAINED, "--test-batch", "d", "--name", "one", "--no-track")
    done(*words, "--trials", "2", "--final-seeds", "2")
    done(*words, "--trials", "3", "--final-seeds", "2")
    assert "3 complete" in done("status", "one").out


# --- other objects


def test_a_column_that_is_there_twice_is_told() -> None:
    for column in ("celltype", "tech"):
        adata = tiny()
        adata.obs = pd.concat([adata.obs, adata.obs[[column]]], axis=1)
        with pytest.raises(DataError, match=f"obs has several columns called '{column}': rename all but one"):
            SCDGN.setup_anndata(adata, "celltype", "tech")


@pytest.mark.parametrize("given", ["cells.h5ad", pd.DataFrame(np.ones((3, 2))), np.ones((3, 2)), None])
def test_what_is_no_anndata_is_told(given: Any) -> None:
    with pytest.raises(DataError, match=r"not as AnnData: read a file with anndata\.read_h5ad"):
        SCDGN.setup_anndata(given, "celltype", "tech")
    with pytest.raises(DataError, match="not as AnnData"):
        SCDGN(given)


def test_a_view_is_set_up_without_a_warning() -> None:
    adata = tiny()[:100]
    SCDGN.setup_anndata(adata, "celltype", "tech")
    assert "scdgn_setup" in adata.uns


def test_what_is_read_lazily_or_in_chunks_is_read() -> None:
    array = pytest.importorskip("dask.array", reason="dask is not installed")
    adata = tiny()
    expected = from_anndata(adata, Fields("celltype", "tech")).fingerprint()
    adata.X = array.from_array(adata.X.toarray(), chunks=50).map_blocks(sp.csr_matrix)
    assert from_anndata(adata, Fields("celltype", "tech")).fingerprint() == expected
    pytest.importorskip("xarray", reason="xarray is not installed")
    tiny().write_h5ad("cells.h5ad")
    lazy = anndata.experimental.read_lazy("cells.h5ad")
    assert from_anndata(lazy, Fields("celltype", "tech")).fingerprint() == expected


# --- the reason that was seen


def test_a_file_that_is_being_written_is_told_as_that() -> None:
    tiny().write_h5ad("cells.h5ad")
    code = "import h5py, sys; file = h5py.File('cells.h5ad', 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        told = refused("train", "cells.h5ad", *TRAINED, "-o", "model")
        process.stdin.close()
    assert "another program has it open to write): close it there" in told and "permissions" not in told


def test_a_storage_that_is_locked_is_told_as_that() -> None:
    tiny().write_h5ad("cells.h5ad")
    with closing(sqlite3.connect("trials.db")) as holder:
        holder.execute("CREATE TABLE x(a)")
        holder.commit()
        holder.execute("BEGIN EXCLUSIVE")
        told = refused(
            "search", "cells.h5ad", *TRAINED, "--name", "x", "--storage", "sqlite:///trials.db", "--no-track"
        )
    assert "database is locked): another program holds it; wait until it is done" in told and "give a URL" not in told


def test_a_way_to_compress_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().write_h5ad("cells.h5ad")
    for error in ("required filter 'zstd' is not registered", "can't open directory (/usr/local/hdf5/lib/plugin)"):

        def fails(*_: object, error: str = error, **__: object) -> None:
            raise OSError(f"Can't synchronously read data ({error})")

        monkeypatch.setattr(anndata, "read_h5ad", fails)
        with pytest.raises(DataError, match="pip install hdf5plugin"):
            read_h5ad("cells.h5ad")


def test_a_terminal_that_knows_ascii_alone_is_no_reason_to_end() -> None:
    tiny().write_h5ad("cells.h5ad")
    words = ("train", "cells.h5ad", *TRAINED[:-1], "--test-batch", "c", "--seeds", "2")
    ran = subprocess.run(
        [sys.executable, "-m", "scdgn.cli", *words], capture_output=True, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert b"0." in ran.stdout and b"?" in ran.stdout

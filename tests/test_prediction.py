"""`scdgn predict`: pictures, genes, where models are found, and which values of a file are read."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scdgn import SCDGN
from scdgn.model.annotate import CLUSTER, GENES, LABEL, VOTED
from tests.faults import FAST, KEYS, done, run, tiny

PICTURES = {"umap.png", "clusters.png"}


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory's cells.h5ad."""
    monkeypatch.chdir(tmp_path)
    tiny(depth=4000.0, marker_strength=3.0).write_h5ad("cells.h5ad")
    return Path("cells.h5ad")


@pytest.fixture
def model(cells: Path) -> Path:
    done("train", cells, *KEYS, *FAST, "-o", "model", "-q")
    return Path("model")


def shape_of(picture: Path) -> tuple[int, int]:
    """Width and height, from the header of a .png."""
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


# --- --explain


def test_the_genes_of_the_labels_are_told_and_kept(cells: Path, model: Path) -> None:
    ran = done("predict", cells, "--model", model, "-o", "disk.h5ad", "--explain")
    table = anndata.read_h5ad("disk.h5ad").uns[GENES]
    assert list(table) == ["label", "gene", "rank", "attribution", "shift"]
    assert set(table["gene"]) <= set(tiny().var_names)
    for label, own in table.groupby("label"):
        assert str(label) in ran.out and ", ".join(own["gene"].head(5)) in ran.out
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
    told = done("predict", cells, "--model", model, "-o", "memory.h5ad", "--explain", "--majority-voting", "--json")
    assert told.record["genes"]["B"] == table.loc[table["label"] == "B", "gene"].head(5).tolist()
    pd.testing.assert_frame_equal(anndata.read_h5ad("memory.h5ad").uns[GENES], table, rtol=1e-4)


def test_what_was_explained_before_does_not_stay(cells: Path, model: Path) -> None:
    done("predict", cells, "--model", model, "-o", "out.h5ad", "--explain", "-q")
    done("predict", "out.h5ad", "--model", model, "-o", "out.h5ad", "-q")
    assert GENES not in anndata.read_h5ad("out.h5ad").uns


def test_colours_are_the_same_on_disk_and_in_memory(cells: Path, model: Path) -> None:
    done("predict", cells, "--model", model, "-o", "disk.h5ad", "-q")
    done("predict", cells, "--model", model, "-o", "memory.h5ad", "-q", "--majority-voting")
    disk, memory = anndata.read_h5ad("disk.h5ad"), anndata.read_h5ad("memory.h5ad")
    assert disk.uns[f"{LABEL}_colors"].tolist() == memory.uns[f"{LABEL}_colors"].tolist()
    assert memory.uns[f"{VOTED}_colors"].tolist() == memory.uns[f"{LABEL}_colors"].tolist()
    order = memory.obs[CLUSTER].cat.categories.astype(int)
    assert list(order) == sorted(order)


# --- --top-k


def test_the_first_types_by_the_command_line(cells: Path, model: Path) -> None:
    done("predict", cells, "--model", model, "-o", "out.h5ad", "--top-k", 2)
    voted = done("predict", cells, "--model", model, "-o", "voted.h5ad", "--top-k", 2, "--majority-voting", "--json")
    disk, memory = anndata.read_h5ad("out.h5ad"), anndata.read_h5ad("voted.h5ad")
    for adata in (disk, memory):
        shares = adata.obsm["scdgn_probability"]
        assert (np.diff(shares.indptr) == 2).all()
        best = shares.toarray().argmax(axis=1)
        assert np.array_equal(np.array(adata.uns["scdgn"]["cell_types"])[best], adata.obs["scdgn_label"].astype(str))
    assert voted.record["cells"] == disk.n_obs
    done("predict", cells, "--model", model, "-o", "out.csv", "--top-k", 1)
    table = pd.read_csv("out.csv")
    assert not table["top_types"].str.contains(";").any()
    assert (table["top_types"].str.rsplit(n=1).str[0] == table["label"]).all()
    refused = run("predict", cells, "--model", model, "-o", "out.h5ad", "--top-k", 0)
    assert refused.status == 2 and "top-k" in refused.err


# --- --plots


@pytest.mark.parametrize("options", [(), ("--majority-voting",), ("--over-clustering", "tech")])
def test_pictures(cells: Path, model: Path, options: tuple[str, ...]) -> None:
    ran = done("predict", cells, "--model", model, "-o", "out.h5ad", "--plots", "new/plots", *options)
    assert "pictures in new/plots/umap.png and new/plots/clusters.png" in ran.err
    assert {path.name for path in Path("new/plots").iterdir()} == PICTURES
    for name in PICTURES:
        assert min(shape_of(Path("new/plots", name))) > 300
    assert set(anndata.read_h5ad("out.h5ad").obsm) == {"X_scDGN", "scdgn_probability"}


def test_pictures_of_cells_that_are_replaced(cells: Path, model: Path) -> None:
    told = done("predict", cells, "--model", model, "-o", cells, "--plots", "plots", "--json").record
    assert told["plots"] == ["plots/umap.png", "plots/clusters.png"] and all(map(Path.exists, map(Path, told["plots"])))


def test_a_table_takes_neither_pictures_nor_genes(cells: Path, model: Path) -> None:
    for option in (("--plots", "plots"), ("--explain",)):
        ran = run("predict", cells, "--model", model, "-o", "out.csv", *option)
        assert ran.status == 2 and f"{option[0]} needs the annotated cells, not a table: give -o out.h5ad" in ran.err
    assert not Path("out.csv").exists() and not Path("plots").exists()


def test_a_file_is_no_folder_for_pictures(cells: Path, model: Path) -> None:
    ran = run("predict", cells, "--model", model, "-o", "out.h5ad", "--plots", cells)
    assert ran.status == 2 and "--plots cells.h5ad is a file" in ran.err and not Path("out.h5ad").exists()


def test_too_few_cells_for_pictures(cells: Path, model: Path) -> None:
    tiny()[:5].copy().write_h5ad("few.h5ad")
    ran = run("predict", "few.h5ad", "--model", model, "-o", "out.h5ad", "--plots", "plots")
    assert ran.status == 2 and "5 cells" in ran.err and "too few for --plots" in ran.err
    assert not Path("plots").exists()


# --- where the model is


def test_studies_in_another_folder(cells: Path, model: Path) -> None:
    Path("elsewhere/mine").mkdir(parents=True)
    for ran in (
        run("predict", cells, "--model", "mine", "-o", "out.h5ad"),
        run("predict", cells, "--model", "mine", "-o", "out.h5ad", "--studies", "elsewhere"),
    ):
        assert ran.status == 2
    assert "there is no study 'mine' in elsewhere" in ran.err


# --- which values are read


def with_raw(adata: AnnData) -> AnnData:
    """Counts put aside, their genes in another order and under other names of a column; X scaled."""
    counts = adata[:, ::-1].copy()
    counts.var["symbol"] = [f"s-{name}" for name in counts.var_names]
    scaled = adata.copy()
    scaled.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    scaled.raw = counts
    return scaled


@pytest.mark.parametrize("gene_key", [(), ("--gene-key", "symbol")])
@pytest.mark.parametrize("rows", [True, False])
def test_a_model_of_raw_reads_raw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gene_key: tuple[str, ...], rows: bool
) -> None:
    """On disk as in memory, and as the cells of which nothing was put aside."""
    monkeypatch.chdir(tmp_path)
    adata = with_raw(tiny(depth=4000.0, marker_strength=3.0))
    adata.write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "--layer", "raw", *gene_key, "-o", "model", "-q")
    done("predict", "cells.h5ad", "--model", "model", "-o", "out.h5ad", "-q", *(() if rows else ("--majority-voting",)))
    found = anndata.read_h5ad("out.h5ad").obs[LABEL].astype(str).tolist()
    assert found == SCDGN.load("model").predict(adata).tolist()
    plain = adata.raw.to_adata()
    plain.write_h5ad("plain.h5ad")
    done("predict", "plain.h5ad", "--model", "model", "-o", "plain-out.h5ad", "-q", "--layer", "X")
    assert found == anndata.read_h5ad("plain-out.h5ad").obs[LABEL].astype(str).tolist()


def test_a_model_of_raw_refuses_cells_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adata = with_raw(tiny())
    adata.write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *KEYS, *FAST, "--layer", "raw", "-o", "model", "-q")
    tiny().write_h5ad("plain.h5ad")
    for options in ((), ("--majority-voting",)):
        ran = run("predict", "plain.h5ad", "--model", "model", "-o", "out.h5ad", *options)
        assert ran.status == 2 and "the model was trained on .raw" in ran.err and "--layer" in ran.err
    assert not Path("out.h5ad").exists()


def test_a_model_of_x_by_its_name(cells: Path) -> None:
    done("train", cells, *KEYS, *FAST, "--layer", "X", "-o", "model", "-q")
    done("predict", cells, "--model", "model", "-o", "out.h5ad", "-q")
    with h5py.File("out.h5ad") as file:
        assert LABEL in file["obs"]

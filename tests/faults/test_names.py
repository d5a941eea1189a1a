"""Names that look right and are not: of genes, of types, of batches. Right labels, or a refusal that says why."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData

from scdgn import SCDGN
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata, read_cells
from scdgn.cells.splits import leave_one_domain_out
from scdgn.commands.terminal import print_table
from scdgn.errors import DataError
from scdgn.model.bundle import Bundle
from tests.faults import FAST, KEYS, done, run, tiny

TRAINED = (*KEYS, *FAST, "--method", "nn", "--set", "epochs=30", "--set", "lr=0.01")
ENSEMBL = [f"ENSG{number:011d}" for number in range(100, 140)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(adata: AnnData, **fields: str) -> str:
    with pytest.raises(DataError) as told:
        from_anndata(adata, Fields(**{"labels_key": "celltype", "batch_key": "tech", **fields}))  # type: ignore[arg-type]
    return str(told.value)


def labels(adata: AnnData, name: str = "query") -> tuple[list[str], str]:
    """What the model says of these cells, and what it says beside."""
    adata.write_h5ad(f"{name}.h5ad")
    ran = done("predict", f"{name}.h5ad", "--model", "model", "-o", f"{name}-out.h5ad")
    return anndata.read_h5ad(f"{name}-out.h5ad").obs["scdgn_label"].astype(str).tolist(), ran.err


# --- genes


@pytest.mark.parametrize("first", [0, 1])
def test_row_numbers_are_no_gene_names(first: int) -> None:
    """They would match by position, whatever gene stands there."""
    adata = tiny()
    adata.var["symbol"] = adata.var_names
    adata.var_names = [str(first + number) for number in range(adata.n_vars)]
    told = refusal(adata)
    assert "var has no gene names, only row numbers" in told and "with --gene-key (found: symbol)" in told
    assert "row numbers" in refusal(adata[:, ::3].copy())  # of which some were taken
    assert "row numbers" in refusal(adata[:, ::-1].copy())
    assert (
        from_anndata(adata, Fields("celltype", "tech", gene_key="symbol")).genes.tolist()
        == adata.var["symbol"].tolist()
    )


def test_row_numbers_are_refused_at_prediction_too() -> None:
    tiny().write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *TRAINED, "-o", "model", "-q")
    adata = tiny()
    adata.var_names = [str(number) for number in range(adata.n_vars)]
    adata.write_h5ad("query.h5ad")
    ran = run("predict", "query.h5ad", "--model", "model", "-o", "out.h5ad")
    assert ran.status == 2 and "only row numbers (0, 1, 2, ...)" in ran.err and not Path("out.h5ad").exists()


def test_entrez_identifiers_are_gene_names() -> None:
    adata = tiny()
    adata.var_names = [str(number) for number in np.random.default_rng(0).integers(1, 10**6, adata.n_vars)]
    assert len(from_anndata(adata, Fields("celltype", "tech")).genes) == 40


@pytest.mark.parametrize(
    "decorate",
    [
        lambda name: f"{name}.17",
        lambda name: f"GRCh38_{name}",
        lambda name: f"GRCh38______{name}.3",
        lambda name: f"hg19_{name}",
    ],
)
def test_versions_and_genome_prefixes_are_no_other_genes(decorate: object) -> None:
    adata = tiny()
    adata.var_names = ENSEMBL
    adata.write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *TRAINED, "-o", "model", "-q")
    plain, silent = labels(adata)
    assert "without the version" not in silent
    adata.var_names = [decorate(name) for name in ENSEMBL]  # type: ignore[operator]
    decorated, told = labels(adata, "decorated")
    assert decorated == plain and "genes are matched without the version, or the genome's prefix" in told
    assert "not in the data" not in told


def test_a_model_of_versions_reads_data_without_and_two_genomes_are_not_mixed_up() -> None:
    adata = tiny()
    adata.var_names = [f"{name}.4" for name in ENSEMBL]
    adata.write_h5ad("cells.h5ad")
    done("train", "cells.h5ad", *TRAINED, "-o", "model", "-q")
    plain, _ = labels(adata)
    adata.var_names = ENSEMBL
    assert labels(adata, "without")[0] == plain
    both = {genome: adata.copy() for genome in ("GRCh38", "mm10")}
    for genome, one in both.items():
        one.var_names = [f"{genome}_{name}" for name in ENSEMBL]
    twice = anndata.concat(both, axis=1, merge="first")
    twice.write_h5ad("twice.h5ad")
    ran = run("predict", "twice.h5ad", "--model", "model", "-o", "out.h5ad")
    assert ran.status == 2 and "0 of the" in ran.err


@pytest.mark.filterwarnings("ignore:.*without encoding metadata")
@pytest.mark.parametrize("index", ["_index", "features", None])
def test_tables_of_conversions_from_seurat_have_their_index_and_their_categories(index: str | None) -> None:
    """Without the marks of AnnData: the index a column `_index`, labels as codes into `__categories`."""
    adata = tiny()
    labels = adata.obs["celltype"].astype("category")
    with h5py.File("seurat.h5ad", "w") as file:
        x = file.create_group("X")
        x.attrs["h5sparse_format"], x.attrs["h5sparse_shape"] = "csr", np.array(adata.shape)
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(adata.X.tocsr(), name)
        for name, names in (("obs", adata.obs_names), ("var", adata.var_names)):
            table = file.create_group(name)
            table["_index" if name == "obs" or index == "_index" else "features"] = np.array(names, dtype="S")
        if index == "features":
            file["var"].attrs["_index"] = "features"
        file["obs/tech"] = np.array(adata.obs["tech"], dtype="S")
        file["obs/celltype"] = labels.cat.codes.to_numpy()
        file["obs/__categories/celltype"] = np.array(labels.cat.categories, dtype="S")
    if index is None:
        ran = run("train", "seurat.h5ad", *TRAINED, "-o", "model")
        assert ran.status == 2 and "with --gene-key (found: features)" in ran.err
    key = () if index else ("--gene-key", "features")
    done("train", "seurat.h5ad", *TRAINED, *key, "-o", "model", "-q")
    model = Bundle.load("model")
    assert model.cell_types == ("B", "NK", "T") and model.preprocessing.panel.tolist() == adata.var_names.tolist()
    done("predict", "seurat.h5ad", "--model", "model", "-o", "out.h5ad")
    out = anndata.read_h5ad("out.h5ad")
    assert out.obs_names.tolist() == adata.obs_names.tolist()
    assert out.obs["celltype"].astype(str).tolist() == labels.astype(str).tolist()


# --- types and batches


@pytest.mark.parametrize("word", ["NA", "NaN", "N/A", "null", "#N/A", " ", "Unassigned", "unknown", "Unknown ", "nan"])
def test_a_word_for_no_type_is_never_trained(word: str) -> None:
    adata = tiny()
    column = adata.obs["celltype"].astype(object)
    column.iloc[::7] = word
    adata.obs["celltype"] = column
    told = refusal(adata)
    assert "20 of 140 cells have no label" in told and "--unlabeled drop" in told
    if word.strip().casefold() not in ("", "nan"):  # which is also how no value is written
        assert repr(word) in told and "--keep-label keeps one that is a type" in told
    for how in ("drop", "domain"):
        found = from_anndata(adata, Fields("celltype", "tech", unlabeled=how))  # type: ignore[arg-type]
        assert found.cell_types == ("B", "NK", "T")
    marked = from_anndata(adata, Fields("celltype", "tech", unlabeled_category=word))
    assert (marked.labels < 0).sum() == 20


def test_types_like_a_word_for_none_are_types() -> None:
    adata = tiny()
    adata.obs["celltype"] = adata.obs["celltype"].astype(str).replace({"B": "Unknown B", "NK": "NK/NA", "T": "nankeen"})
    assert from_anndata(adata, Fields("celltype", "tech")).cell_types == ("NK/NA", "Unknown B", "nankeen")


@pytest.mark.parametrize("word", ["NA", "NaN", "null", " "])
def test_a_word_for_no_batch_is_no_batch(word: str) -> None:
    adata = tiny()
    adata.obs["tech"] = adata.obs["tech"].astype(str).replace({"c": word})
    assert "40 of 140 cells have no batch" in refusal(adata)


@pytest.mark.parametrize("other", ["NK ", " NK", "nk"])
def test_types_that_differ_by_blanks_or_case_alone_are_told(other: str) -> None:
    adata = tiny()
    column = adata.obs["celltype"].astype(object)
    column.iloc[np.flatnonzero(column == "NK")[::2]] = other
    adata.obs["celltype"] = column
    told = refusal(adata)
    assert "obs['celltype'] writes 1 name in several ways" in told and repr(other) in told


def test_batches_may_differ_by_case_and_not_by_blanks() -> None:
    adata = tiny()
    column = adata.obs["tech"].astype(str)
    adata.obs["tech"] = column.replace({"b": "A"})
    assert from_anndata(adata, Fields("celltype", "tech")).batch_names == ("A", "a", "c")
    adata.obs["tech"] = column.replace({"b": "a "})
    assert "obs['tech'] writes 1 name in several ways ('a' and 'a ')" in refusal(adata)


def test_a_search_refuses_what_a_training_refuses() -> None:
    adata = tiny(cells={"a": 30, "b": 30, "c": 30})
    adata.obs["celltype"] = adata.obs["celltype"].astype(str).replace({"B": "NA"})
    adata.write_h5ad("cells.h5ad")
    for command in (("train", "-o", "model"), ("search", "--name", "new", "--no-track")):
        ran = run(command[0], "cells.h5ad", *KEYS, *command[1:])
        assert ran.status == 2 and "among them those called 'NA'" in ran.err
    assert os.listdir() == ["cells.h5ad"]  # noqa: PTH208


def test_words_for_no_type_can_be_added_and_kept() -> None:
    adata = tiny()
    column = adata.obs["celltype"].astype(object)
    column.iloc[::7], column.iloc[3::7] = "Unknown", "low quality"
    adata.obs["celltype"] = column
    assert "'Unknown'; --keep-label keeps one that is a type" in refusal(adata)
    found = from_anndata(
        adata, Fields("celltype", "tech", kept_labels=("Unknown",), missing_labels=("low quality",), unlabeled="drop")
    )
    assert found.cell_types == ("B", "NK", "T", "Unknown") and len(found) == 120
    adata.write_h5ad("cells.h5ad")
    done(
        "train",
        "cells.h5ad",
        *TRAINED,
        "-o",
        "model",
        "-q",
        "--keep-label",
        "Unknown",
        "--missing-label",
        "low quality",
        "--unlabeled",
        "drop",
    )
    assert "Unknown" in labels(adata)[0]
    adata.uns["scdgn_setup"] = {"labels_key": "celltype", "batch_key": "tech", "kept_labels": np.array(["Unknown"])}
    assert SCDGN(adata)._fields.kept_labels == ("Unknown",)  # as it comes back from a file


def test_small_batches_are_taken_together_where_that_is_asked_for() -> None:
    adata = tiny(cells={"a": 110, "b": 60, "c": 60})
    draws = np.random.default_rng(0)
    column = adata.obs["tech"].astype(str).to_numpy().astype(object)
    column[:110] = [f"donor {number}" for number in draws.permutation(110)]
    adata.obs["tech"] = column
    fields = Fields("celltype", "tech", min_batch_cells=20)
    dataset, reading = read_cells(adata, fields)
    assert dataset.batch_names == ("b", "c", "small batches")
    assert "; 110 batches of fewer than 20 cells are taken together, as 'small batches'" in reading.sentence
    adata.obs["tech"] = [f"donor {number % 150}" for number in range(adata.n_obs)]
    assert "take small ones together with --min-batch-cells" in refusal(adata)
    done_with = from_anndata(adata, fields)
    assert done_with.batch_names == ("small batches",)


# --- names without end


def test_long_names_leave_the_numbers_of_a_table_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "CD8-positive, alpha-beta memory T cell, CD45RO-positive, " + "of the lamina propria"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    print_table("", ["type", "recall", "cells"], [[long, "0.912", "12,345"], ["B", "1.000", "7"]], quiet=False)
    shown = capsys.readouterr().out
    assert "0.912" in shown and "12,345" in shown
    monkeypatch.delenv("FORCE_COLOR")
    print_table("", ["type", "recall", "cells"], [[long, "0.912", "12,345"]], quiet=False)
    assert long in capsys.readouterr().out  # piped: whole


def test_hundreds_of_donors_make_names_that_can_be_read() -> None:
    adata = tiny(cells={"a": 400, "b": 400, "c": 400})
    adata.obs["tech"] = [f"donor_{number % 300:03d}" for number in range(adata.n_obs)]
    dataset = from_anndata(adata, Fields("celltype", "tech"))
    folds = leave_one_domain_out(dataset.labels, dataset.batches, np.arange(len(dataset)), dataset.batch_names)
    names = [fold.name for fold in folds]
    assert len(set(names)) == 5 and all(len(name) < 60 and "and" in name for name in names)

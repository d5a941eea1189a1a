"""Labels as a table, models by their names, and what the annotated cells say of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdgn.search.stages import identity
from tests.faults import FAST, KEYS, done, run, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells, a model, and a study with another one."""
    folder = tmp_path_factory.mktemp("labels")
    adata = tiny(cells={"a": 40, "b": 40, "c": 40, "d": 40})
    adata.write_h5ad(folder / "cells.h5ad")
    done("train", folder / "cells.h5ad", *KEYS, *FAST, "--method", "nn", "-o", folder / "model", "-q")
    done("search", folder / "cells.h5ad", *KEYS, *FAST, "--method", "nn", "--trials", "2", "--final-seeds", "2", "-q",
         "--test-batch", "d", "--name", "one", "--no-track", "--studies", folder / "studies")  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
def test_a_table_says_what_the_annotated_cells_say(suffix: str, form: type, tmp_path: Path) -> None:
    adata = tiny(cells={"a": 40, "b": 40, "c": 40, "d": 40})
    adata.X = form(adata.X)
    adata.write_h5ad(tmp_path / "query.h5ad")
    done("predict", tmp_path / "query.h5ad", "--model", "one", "-o", tmp_path / "out.h5ad", "-q")
    told = done("predict", tmp_path / "query.h5ad", "--model", "one", "-o", tmp_path / f"out{suffix}", "--json").record
    expected = anndata.read_h5ad(tmp_path / "out.h5ad")
    path = tmp_path / f"out{suffix}"
    read = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path, sep=None, engine="python", index_col=0)
    assert read.index.tolist() == expected.obs_names.tolist()
    assert read["label"].tolist() == expected.obs["scdgn_label"].astype(str).tolist()
    assert np.allclose(read["confidence"], expected.obs["scdgn_confidence"], atol=1e-5)
    assert read["unknown"].tolist() == expected.obs["scdgn_unknown"].tolist()
    assert all(top.startswith(label) for top, label in zip(read["top_types"], read["label"], strict=True))
    assert told["labels"] == read["label"].value_counts().to_dict()


def test_a_table_holds_the_votes_too() -> None:
    done("predict", "cells.h5ad", "--model", "model", "-o", "votes.csv", "--over-clustering", "tech", "-q")
    table = pd.read_csv("votes.csv", index_col=0)
    assert (
        table.groupby(anndata.read_h5ad("cells.h5ad").obs["tech"].astype(str))["majority_voting"].nunique().max() == 1
    )


@pytest.mark.parametrize("name", ["labels.txt", "labels", "labels.h5", "labels.xlsx"])
def test_an_output_that_is_neither_is_refused(name: str) -> None:
    ran = run("predict", "cells.h5ad", "--model", "model", "-o", name)
    assert ran.status == 2 and "end it in .h5ad for the cells with their labels" in ran.err and not Path(name).exists()


def test_a_model_is_found_by_its_folder_or_its_studys_name() -> None:
    labels = []
    for model in ("studies/one/model", "studies/one", "one"):
        done("predict", "cells.h5ad", "--model", model, "-o", "found.csv", "-q")
        labels.append(Path("found.csv").read_text())
    assert labels[0] == labels[1] == labels[2]
    ran = run("predict", "cells.h5ad", "--model", "two", "-o", "found.csv")
    assert ran.status == 2 and "two is neither a folder nor a study" in ran.err


@pytest.mark.parametrize("words", [(), ("--majority-voting",)])
def test_the_annotated_cells_name_the_model(words: tuple[str, ...]) -> None:
    done("predict", "cells.h5ad", "--model", "one", "-o", "named.h5ad", "-q", "--no-correct", *words)
    told = anndata.read_h5ad("named.h5ad").uns["scdgn"]
    assert told["models"] == 2 and list(told["methods"]) == ["nn"] and list(told["cell_types"]) == ["B", "NK", "T"]
    assert not told["transductive"] and len(str(told["model_data"])) == 64 and 0 < float(told["threshold"]) <= 1
    done(
        "predict", "named.h5ad", "--model", "model", "-o", "again.h5ad", "-q", *words
    )  # in the place of the earlier one
    assert anndata.read_h5ad("again.h5ad").uns["scdgn"]["models"] == 1


def test_settings_by_other_names_are_told_what_they_are_called() -> None:
    for word, told in {
        "learning_rate=0.1": "it is called lr here",
        "n_hidden=32": "it is called hidden here",
        "n_layers=3": "the encoder has two layers",
        "hidden=32,64": "write a list as --set 'hidden=[32, 64]'",
    }.items():
        for command in (("train", "cells.h5ad", "-o", "x"), ("search", "cells.h5ad", "--name", "x")):
            ran = run(*command, *KEYS, "--set", word)
            assert ran.status == 2 and told in ran.err


def test_the_version_is_told() -> None:
    assert run("--version").out.startswith("scdgn ")


def test_a_search_is_called_after_its_file_and_goes_on_by_its_name(tmp_path: Path) -> None:
    words = ("--no-track", "-q", "--final-seeds", "2", "--studies", tmp_path / "studies")
    done("search", "cells.h5ad", *KEYS, *FAST, "--test-batch", "d", "--method", "nn", "--trials", "2", *words)
    told = done("status", "cells", "--studies", tmp_path / "studies").out
    assert "2 complete, of 2 trials of nn" in told and "Chosen: the plain network (NN)" in told
    done("search", "--name", "cells", "--trials", "3", *words)
    assert "3 complete, of 3 trials of nn" in done("status", "cells", "--studies", tmp_path / "studies").out
    ran = run("search", "--name", "cell", *words)
    assert ran.status == 2 and "give either a file DATA.h5ad or --dataset NAME" in ran.err


def test_all_methods_go_on_by_their_name(tmp_path: Path) -> None:
    words = ("--no-track", "-q", "--final-seeds", "2", "--studies", tmp_path / "studies")
    first = ("search", "cells.h5ad", *KEYS, *FAST, "--test-batch", "d", "--trials", "1", *words)
    done(*first, "--name", "x/nn", "--method", "nn")
    ran = run("search", "--name", "x", *words)
    assert ran.status == 2 and "of 'x' there are x/nn so far: name one of these, or give the whole command" in ran.err
    done(*first, "--name", "y", "--method", "all", "--set", "margin=[0.5, 2]")
    done("search", "--name", "y", "--trials", "2", *words)
    told = done("status", "--studies", tmp_path / "studies").out
    assert [line for line in told.splitlines() if line.startswith("y/")] == [
        f"y/{method}: 2 complete, of 2 trials of {method}; done" for method in ("dann", "nn", "scdgn")
    ]


def test_a_study_that_goes_on_with_other_versions_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--no-track", "--final-seeds", "2", "--studies", tmp_path / "studies")
    done("search", "cells.h5ad", *KEYS, *FAST, "--test-batch", "d", "--method", "nn", "--trials", "2", *words)
    now = identity.versions()
    monkeypatch.setattr(identity, "versions", lambda: {**now, "torch": "9.9"})
    changed = f"after 2 trials this study went on with torch 9.9 in place of {now['torch']}"
    said = done("search", "--name", "cells", "--trials", "3", *words).err
    assert f"{changed}: trials of both are ranked together" in said
    assert "this study went on" not in done("search", "--name", "cells", "--trials", "4", *words).err  # said once
    assert changed in done("status", "cells", "--studies", tmp_path / "studies").out
    done("report", "cells", "--no-cells", "--studies", tmp_path / "studies", "-o", tmp_path / "report")
    assert "After 2 trials this study went on with torch 9.9" in (tmp_path / "report" / "report.html").read_text()


def test_a_name_alone_goes_on_with_all_methods_of_its_command() -> None:
    """As after Ctrl-C in the first one."""
    words = ("--final-seeds", "1", "--confirm", "0", "--no-track", "-q")
    asked = ("--test-batch", "d", "--name", "whole", "--method", "all", "--trials", "1")
    done("search", "cells.h5ad", *KEYS, *FAST, *asked, *words)
    for method in ("dann", "scdgn"):
        shutil.rmtree(Path("studies", "whole", method))
    done("search", "--name", "whole", "--trials", "2", *words)
    told = done("status", "whole").out
    assert all(f"whole/{method}: 2 complete" in told for method in ("nn", "dann", "scdgn"))


def test_a_name_that_no_study_has_is_told_with_those_that_are_like_it() -> None:
    ran = run("search", "--name", "onne")
    assert ran.status == 2 and "no study in studies is called 'onne': did you mean one" in ran.err


def test_a_damaged_command_is_told_in_a_line() -> None:
    words = ("--final-seeds", "1", "--confirm", "0", "--no-track", "-q")
    asked = ("--test-batch", "d", "--name", "twice", "--method", "all", "--trials", "1")
    done("search", "cells.h5ad", *KEYS, *FAST, *asked, *words)
    for content in ("[[", "loose = 1", "[study]\nnothing = 2", ""):
        Path("studies", "twice", "command.toml").write_text(content)
        ran = run("search", "--name", "twice", "--trials", "2", *words)
        assert ran.status == 2 and ran.err.startswith("error: ") and ran.err.count("\n") == 1

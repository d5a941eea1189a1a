import dataclasses
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from scdgn.cells import datasets
from scdgn.cells.dataset import Dataset
from scdgn.cells.datasets import DATASETS, PANCREAS_CELLS, LoadedDataset, load
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.splits import Split, hold_out
from scdgn.errors import DataError

REFERENCE = Path(__file__).resolve().parents[1].parent / "shared" / "reference"
PANCREAS = REFERENCE.parent / "data" / "pancreas_panc8_subset.h5ad"
TYPES = sorted({name for kept in DATASETS["pancreas1"].blocks.keep.values() for name in kept})


def split_of(loaded: LoadedDataset) -> tuple[Dataset, Split]:
    dataset = from_anndata(loaded.adata, Fields(loaded.labels_key, loaded.batch_key))
    return dataset, hold_out(dataset, loaded.test_batches, loaded.validation_batches)


def collection(cells: dict[str, int]) -> anndata.AnnData:
    """Log-normalised values in the form of the benchmark's file, which has more technologies than the paper."""
    technologies = np.repeat(list(cells), list(cells.values()))
    types = np.resize(TYPES, len(technologies))
    x = np.random.default_rng(0).exponential(1, (len(types), 3)).astype(np.float32)
    obs = pd.DataFrame({"tech": technologies, "celltype": types}, index=[f"c{i}" for i in range(len(types))])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=["INS", "GCG", "SST"]))


def save_npz(path: Path, batches: list[str], **changes: object) -> Path:
    cells = len(batches)
    rng = np.random.default_rng(0)
    arrays = {
        "features": rng.exponential(1, (cells, 4)),
        "labels": np.arange(cells) % 3,
        "accessions": np.array(batches),
    }
    arrays = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_blocks_are_those_of_the_paper() -> None:
    if not REFERENCE.is_dir():
        pytest.skip("the paper's tables (shared/reference) are not there")
    published = json.loads((REFERENCE / "paper_tables.json").read_text())["pancreas_splits"]
    for name, assignment in published["assignment"].items():
        for prefix in ("", "simulated-"):
            blocks = DATASETS[prefix + name].blocks
            assert blocks.test_domain == published["test_domain"]
            assert blocks.keep == {domain: tuple(published["blocks"][block]) for domain, block in assignment.items()}
        assert DATASETS[name].reported_training_cells == published["reported_cells"][name]["train"]


def test_pancreas_collection_is_cut_to_the_papers_technologies_and_blocks(tmp_path: Path) -> None:
    collection({**PANCREAS_CELLS, "smarter": 20}).write_h5ad(tmp_path / datasets.PANCREAS_FILE)
    everything = load("pancreas", path=tmp_path)
    assert everything.notes == ()
    assert everything.adata.obs["tech"].value_counts().to_dict() == PANCREAS_CELLS
    assert from_anndata(everything.adata, Fields("celltype", "tech")).values == "log"

    loaded = load("pancreas3", path=tmp_path / datasets.PANCREAS_FILE)
    dataset, split = split_of(loaded)
    for domain, kept in DATASETS["pancreas3"].blocks.keep.items():
        rows = split.train[dataset.batches[split.train] == dataset.batch_names.index(domain)]
        assert {dataset.cell_types[code] for code in dataset.labels[rows]} == set(kept)
    assert len(split.test) == 638 and split.unscored == 0
    assert loaded.notes == (f"{len(split.train)} training cells, where 1978 were reported for the paper",)


def test_other_totals_are_noted_and_absent_technologies_refused(tmp_path: Path) -> None:
    file = tmp_path / "cells.h5ad"
    collection({**PANCREAS_CELLS, "celseq": 1000}).write_h5ad(file)
    assert load("pancreas", path=file).notes[0].startswith("celseq has 1000 cells where the collection has 1004")
    collection({"celseq": 50, "smarter": 20}).write_h5ad(file)
    with pytest.raises(DataError, match=r"no cells of celseq2, smartseq2, fluidigmc1 \(it has celseq, smarter\)"):
        load("pancreas1", path=file)
    del (cells := collection({"celseq": 3})).obs["tech"]
    cells.write_h5ad(file)
    with pytest.raises(DataError, match=r"no obs\['tech'\]"):
        load("pbmc", path=file)


@pytest.mark.skipif(not PANCREAS.exists(), reason="the shared pancreas subset (shared/data) is not there")
def test_another_collection_of_the_same_technologies_can_be_given() -> None:
    loaded = load("pancreas1", path=PANCREAS)
    dataset, split = split_of(loaded)
    assert "indrop" not in dataset.batch_names and "fluidigmc1 has 42 cells" in "".join(loaded.notes)
    assert len(split.test) == 42 and len(split.train) == 37 + 106 + 64


def test_pancreas_npz_tests_on_its_last_638_rows(tmp_path: Path) -> None:
    save_npz(tmp_path / "pancreas1.npz", ["GSE1"] * 30 + ["GSE2"] * 30 + ["GSE3"] * 638)
    loaded = load("pancreas1", path=tmp_path)
    dataset, split = split_of(loaded)
    assert loaded.test_batches == ("GSE3",) and loaded.notes == ()
    assert split.train.tolist() == list(range(60)) and split.test.tolist() == list(range(60, 698))
    assert dataset.cell_types == ("0", "1", "2") and dataset.genes.tolist() == ["gene0", "gene1", "gene2", "gene3"]


def test_pbmc_npz_tests_on_its_first_2992_rows_even_of_a_shared_batch(tmp_path: Path) -> None:
    file = save_npz(tmp_path / "any.npz", ["a"] * 3000 + ["b"] * 10)
    loaded = load("pbmc", path=file)
    _, split = split_of(loaded)
    assert split.test.tolist() == list(range(2992)) and split.train.tolist() == list(range(2992, 3010))
    assert loaded.test_batches == ("a (test)",) and "'a' has test cells and others" in loaded.notes[0]


@pytest.mark.parametrize("suffix", [".npz", ".h5ad"])
def test_scquery_is_three_files(tmp_path: Path, suffix: str) -> None:
    for part, accessions in (("train", ["s1", "s2"] * 5), ("valid", ["s3"] * 4), ("test", ["s4", "s1", "s3"] * 2)):
        file = save_npz(tmp_path / f"{part}_scquery.npz", accessions)
        if suffix == ".h5ad":
            datasets._read_npz(file).write_h5ad(file.with_suffix(suffix))
            file.unlink()
    loaded = load("scquery", path=tmp_path)
    dataset, split = split_of(loaded)
    assert loaded.test_batches == ("s1 (test)", "s3 (test)", "s4") and loaded.validation_batches == ("s3",)
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [10, 4, 6]
    assert len(set(dataset.cells)) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accessions": None}, "has no array 'accessions'"),
        ({"labels": np.arange(3)}, "do not fit"),
        ({"features": np.zeros(700)}, "do not fit"),
        ({"accessions": np.array(["a"] * 700, dtype=object)}, "Python objects.*convert it once"),
    ],
)
def test_npz_of_another_form_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = save_npz(tmp_path / "cells.npz", ["a"] * 700, **changes)
    with pytest.raises(DataError, match=message):
        load("pancreas2", path=file)


def test_the_remedy_for_python_objects_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accessions = np.array(["a"] * 50 + ["b"] * 638, dtype=object)
    file = save_npz(tmp_path / "cells.npz", list(accessions), accessions=accessions)
    with pytest.raises(DataError) as error:
        load("pancreas2", path=file)
    monkeypatch.chdir(tmp_path)
    exec(str(error.value).partition("convert it once with ")[2], {"numpy": np})
    assert load("pancreas2", path="converted.npz").test_batches == ("b",)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "cells.npz"
    damaged.write_bytes(save_npz(tmp_path / "whole.npz", ["a"] * 700).read_bytes()[:500])
    for path, message in (
        (damaged, "cannot be read as .npz"),
        (tmp_path / "absent.npz", "does not exist"),
        (tmp_path / "absent.h5ad", "does not exist"),
        (tmp_path, "holds none of pancreas1.npz"),
        (save_npz(tmp_path / "short.npz", ["a"] * 638), "the test set alone is as many"),
    ):
        with pytest.raises(DataError, match=message):
            load("pancreas1", path=path)
    with pytest.raises(DataError, match="no folder"):
        load("scquery", path=damaged)


def test_download_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.h5ad"
    collection(PANCREAS_CELLS).write_h5ad(source)
    asked: list[Path] = []

    def retrieve(url: str, known_hash: str | None, fname: str, path: Path) -> str:
        asked.append(Path(path) / fname)
        return str(source)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    monkeypatch.setenv("SCDGN_CACHE", str(tmp_path / "environment"))
    assert load("pancreas").adata.n_obs == 6321
    load("pancreas", cache=tmp_path / "given")
    assert asked == [tmp_path / folder / datasets.PANCREAS_FILE for folder in ("environment", "given")]


def test_failed_download_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = dataclasses.replace(DATASETS["pancreas1"], url="http://127.0.0.1:9/nothing-listens-here")
    monkeypatch.setitem(DATASETS, "pancreas1", unreachable)
    with pytest.raises(DataError, match="--path FILE"):
        load("pancreas1", cache=tmp_path)


@pytest.mark.parametrize("name", ["pbmc", "scquery"])
def test_sets_without_a_download_say_where_they_are(name: str) -> None:
    with pytest.raises(DataError, match=r"github\.com/SongweiGe/scDGN"):
        load(name)


def test_unknown_name_and_useless_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean pancreas"):
        load("pancrea")
    with pytest.raises(DataError, match="leave out --path"):
        load("simulated-pancreas", path=tmp_path)


def test_simulated_pancreas_keeps_the_blocks() -> None:
    loaded = load("simulated-pancreas1")
    dataset, split = split_of(loaded)
    assert dataset.values == "counts" and len(split.test) == 638
    types = {
        domain: {dataset.cell_types[c] for c in dataset.labels[split.train][dataset.batches[split.train] == code]}
        for code, domain in enumerate(dataset.batch_names)
        if domain != "fluidigmc1"
    }
    assert types == {domain: set(kept) for domain, kept in DATASETS["simulated-pancreas1"].blocks.keep.items()}


def test_simulated_scquery_has_the_published_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = datasets.paper_shape("scquery")
    small = dataclasses.replace(shape, genes=20, cells=dict.fromkeys(shape.cells, 5))
    monkeypatch.setattr(datasets, "paper_shape", lambda name: small)
    loaded = load("simulated-scquery")
    _, split = split_of(loaded)
    assert len(loaded.test_batches) == 30 and len(loaded.validation_batches) == 26
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [5 * 99, 5 * 26, 5 * 30]

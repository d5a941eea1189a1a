"""Several files as one data set."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_values
from scdgn.cells.several import FILE, files_of, joined
from scdgn.cells.sources import Source, read
from scdgn.errors import DataError
from scdgn.search.folder import StudyFolder
from tests.faults import FAST, KEYS, done, run, tiny

FIELDS = Fields("celltype", "tech")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Batch a; b; and c with d: of one and the same simulation, cut to other genes in another order."""
    monkeypatch.chdir(tmp_path)
    adata = tiny(cells={"a": 50, "b": 50, "c": 40, "d": 40})
    parts = {"one": ("a", slice(0, 38)), "two": ("b", slice(None, None, -1)), "more/three": ("cd", slice(4, 40))}
    for name, (batches, genes) in parts.items():
        place = Path(name).with_suffix(".h5ad")
        place.parent.mkdir(exist_ok=True)
        adata[adata.obs["tech"].isin(list(batches))][:, np.arange(40)[genes]].copy().write_h5ad(place)
    adata.write_h5ad("whole.h5ad")
    return Path("one.h5ad"), Path("two.h5ad"), Path("more")


def values_of(file: Path) -> AnnData:
    return read_values(file)


def test_cells_are_those_of_an_inner_join(files: tuple[Path, ...]) -> None:
    found, told = joined(files_of(files), FIELDS, values_of)
    expected = anndata.concat([anndata.read_h5ad(file) for file in files_of(files)], join="inner")
    assert list(found.var_names) == list(expected.var_names) and list(found.obs_names) == list(expected.obs_names)
    assert sp.issparse(found.X) and (found.X != expected.X).nnz == 0
    assert told == "3 files, 34 genes that all have: one loses 4, two loses 6, three loses 2"
    assert found.obs[FILE].value_counts().to_dict() == {"three": 80, "one": 50, "two": 50}
    whole = read(Source(data=Path("whole.h5ad"), fields=FIELDS, test_batch="d"))
    cells = read(Source(data=files, fields=FIELDS, test_batch="d"))
    assert np.array_equal(cells.dataset.labels, whole.dataset.labels)
    assert cells.dataset.batch_names == whole.dataset.batch_names and told in cells.notes
    columns = [list(whole.dataset.genes).index(gene) for gene in cells.dataset.genes]
    assert (cells.dataset.x != whole.dataset.x[:, columns]).nnz == 0


def test_a_layer_a_column_of_names_and_versions_of_genes(files: tuple[Path, ...]) -> None:
    for number, file in enumerate(files[:2]):
        adata = anndata.read_h5ad(file)
        adata.layers["counts"] = adata.X.toarray() if number else adata.X
        adata.X = np.full(adata.shape, 7.5, dtype=np.float32)
        names = [f"ENSG{int(name.removeprefix('gene')):011d}" for name in adata.var_names]
        adata.var["id"] = [f"{name}.{number + 1}" for name in names]
        adata.var_names = [f"row{place}" for place in range(adata.n_vars)]
        adata.write_h5ad(file)
    fields = Fields("celltype", "tech", layer="counts", gene_key="id")
    cells = read(Source(data=files[:2], fields=fields))
    assert len(cells.dataset.genes) == 38 and cells.dataset.genes[0].endswith(".1")
    plain = anndata.read_h5ad("whole.h5ad")
    assert np.array_equal(cells.dataset.x.toarray(), plain[plain.obs["tech"].isin(["a", "b"]), :38].X.toarray())


def test_each_file_can_be_a_batch_or_a_group(files: tuple[Path, ...]) -> None:
    cells = read(Source(data=files, fields=Fields("celltype", FILE), test_batch="three"))
    assert cells.dataset.batch_names == ("one", "three", "two") and len(cells.split.test) == 80
    cells = read(Source(data=files, fields=Fields("celltype", "tech", group_key=FILE), test_batch="three"))
    assert cells.test_batches == ("c", "d") and cells.groups == ("one", "two", "three", "three")


def test_a_batch_in_several_files_is_told(files: tuple[Path, ...]) -> None:
    again = anndata.read_h5ad(files[0])
    again.write_h5ad("again.h5ad")
    cells = read(Source(data=(files[0], files[1], Path("again.h5ad")), fields=FIELDS))
    (note,) = (note for note in cells.notes if "several files" in note)
    assert note.startswith("'a' of obs['tech'] is in several files") and f"--batch-key {FILE}" in note


def test_columns_may_stand_in_a_table(files: tuple[Path, ...]) -> None:
    whole = anndata.read_h5ad("whole.h5ad")
    pd.DataFrame({"kind": whole.obs["celltype"].astype(str)}, index=whole.obs_names).to_csv("table.csv")
    cells = read(Source(data=files, fields=Fields("kind", "tech"), obs=Path("table.csv")))
    assert np.array_equal(cells.dataset.labels, read(Source(data=files, fields=FIELDS)).dataset.labels)


def test_what_is_wrong_names_the_file(files: tuple[Path, ...]) -> None:
    other = anndata.read_h5ad(files[1])
    other.var_names = [f"ENSG{place:011}" for place in range(other.n_vars)]
    other.write_h5ad("other.h5ad")
    with pytest.raises(DataError, match=r"the 2 files have 0 genes in common .*ENSG00000000000.*--gene-key"):
        read(Source(data=(files[0], Path("other.h5ad")), fields=FIELDS))
    with pytest.raises(DataError, match=r"one\.h5ad: no layer is called 'counts'"):
        read(Source(data=files, fields=Fields("celltype", "tech", layer="counts")))
    other.var_names = ["twice"] * 2 + list(other.var_names[2:])
    other.write_h5ad("other.h5ad")
    with pytest.raises(DataError, match=r"other\.h5ad: .*more than once"):
        read(Source(data=(files[0], Path("other.h5ad")), fields=FIELDS))
    with pytest.raises(DataError, match=r"none\.h5ad does not exist"):
        read(Source(data=(files[0], Path("none.h5ad")), fields=FIELDS))


def test_the_command_line_takes_several(files: tuple[Path, ...]) -> None:
    trained = done("train", *files, *KEYS, *FAST, "--method", "nn", "--test-batch", "d", "-o", "model", "--json")
    assert "3 files, 34 genes that all have" in trained.err and trained.record["test_cells"] == 40
    assert done("predict", "whole.h5ad", "--model", "model", "-o", "out.csv", "--json").record["cells"] == 180
    search = ("search", *files, *KEYS, *FAST, "--method", "nn", "--test-batch", "d", "--no-track", "-q")
    few = ("--trials", 1, "--confirm", 0, "--final-seeds", 1, "--no-ensemble")
    refused = run(*search, "--batch-key", "donor", *few)
    assert refused.status == 2 and "obs has no column 'donor' (--batch-key)" in refused.err
    done(*search, *few, "--name", "joined")
    assert StudyFolder(Path("studies/joined")).read_settings()["data"]["data"] == ["one.h5ad", "two.h5ad", "more"]
    done("search", "--name", "joined", "--no-track", "-q")  # the same cells
    done("report", "joined", "-o", "report")

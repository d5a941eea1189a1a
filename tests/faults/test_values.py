"""One matrix in every form in which people have it: the same labels, or a refusal, or a word of doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray

from scdgn import SCDGN
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata, read_cells
from scdgn.cells.simulate import Simulation, simulate
from scdgn.cells.splits import Split
from scdgn.cells.values import parse
from scdgn.errors import DataError, SettingsError
from scdgn.model.annotate import LABEL, annotate
from scdgn.model.bundle import Bundle
from scdgn.model.query import Agreement, fewer_genes, fields_for, missing_genes
from tests.faults import KEYS, done, run, tally

KEPT = 0.97
"""Share of labels that no change of scale may change."""

EACH = 50
"""Transformations in one test; `make test-faults` has ten times as many."""

Array = NDArray[np.float64]

TOTALS = {"raw": None, "size 1": 1.0, "thousand": 1e3, "ten thousand": 1e4, "million": 1e6, "median": 0.0}
FORMS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "log1p": np.log1p,
    "log2": lambda x: np.log2(x + 1),
    "log10": lambda x: np.log10(x + 1),
    "sqrt": np.sqrt,
}
LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "dense": np.ascontiguousarray, "CSR": sp.csr_matrix, "CSC": sp.csc_matrix, "sparse array": sp.csr_array,
}  # fmt: skip
NAMES: dict[str, Callable[[str], str]] = {
    "as they are": lambda name: name,
    "versions": lambda name: f"{name}.11",
    "genome": lambda name: f"GRCh38_{name}",
}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Two halves, to train and to predict, of four types in three batches."""
    adata = simulate(
        Simulation(cells={"a": 240, "b": 240, "c": 240}, cell_types=("B", "NK", "Mono", "T"), genes=300, depth=2000.0)
    )
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    adata.X = np.asarray(adata.X.todense(), dtype=np.float64)
    return adata


@pytest.fixture(scope="module")
def bundle(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return trained(cells[::2].copy(), tmp_path_factory.mktemp("model"))


def trained(adata: AnnData, folder: Path) -> Bundle:
    SCDGN.setup_anndata(adata, "celltype", "tech")
    model = SCDGN(adata, "nn", {"hidden": 32, "latent": 8, "epochs": 40, "lr": 0.01})
    model.train()
    model.save(folder / "model")
    return Bundle.load(folder / "model")


def scaled(x: Array, total: float | None) -> Array:
    """Counts normalised to a total, that of the median cell for 0."""
    if total is None:
        return x
    sums = np.maximum(x.sum(axis=1, keepdims=True), 1)
    return x / sums * (np.median(sums) if total == 0 else total)


def said(adata: AnnData, bundle: Bundle) -> tuple[NDArray[np.str_], list[str]]:
    """Labels of all cells, and what is said beside."""
    dataset, reading = read_cells(adata, fields_for(bundle, adata))
    agreement = Agreement(bundle)
    annotated = AnnData(obs=adata.obs.copy())
    annotate(annotated, dataset, bundle, agreement=agreement)
    words = [*agreement.warnings(), *missing_genes(bundle, dataset.genes)[1], reading.sentence]
    return annotated.obs[LABEL].astype(str).to_numpy(), words


def query(cells: AnnData) -> AnnData:
    return cells[1::2].copy()


def test_the_model_is_worth_asking(cells: AnnData, bundle: Bundle) -> None:
    labels, words = said(query(cells), bundle)
    assert (labels == query(cells).obs["celltype"].astype(str)).mean() > 0.6
    assert not [word for word in words if "training cells" in word]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("total", TOTALS)
def test_a_change_of_scale_changes_no_label(cells: AnnData, bundle: Bundle, total: str, form: str) -> None:
    """Not even confidence: it is undone."""
    plain = query(cells)
    expected = bundle.probabilities(bundle.input(from_anndata(plain, fields_for(bundle, plain))))
    for cut in (False, True):
        adata = plain.copy()
        adata.X = FORMS[form](scaled(adata.X, TOTALS[total]))
        if cut:
            adata = adata[:, ::2].copy()
        found = from_anndata(adata, fields_for(bundle, adata))
        if not cut:
            assert np.allclose(bundle.probabilities(bundle.input(found)), expected, atol=2e-3)
        else:
            half = plain[:, ::2].copy()
            wanted = bundle.probabilities(bundle.input(from_anndata(half, fields_for(bundle, half))))
            assert np.allclose(bundle.probabilities(bundle.input(found)), wanted, atol=0.03)


@pytest.mark.parametrize("part", [0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, 10))])
def test_random_transformations_keep_the_labels_or_say_why_not(cells: AnnData, bundle: Bundle, part: int) -> None:
    draws = np.random.default_rng(part)
    for _ in range(EACH):
        story: list[str] = []

        def pick(what: Any, story: list[str] = story) -> str:
            story.append(str(draws.choice(list(what))))
            return story[-1]

        # What is lost is lost to counts as well: to the labels of these those of the other forms are compared.
        plain = query(cells)
        if draws.random() < 0.3:
            plain.X = draws.binomial(plain.X.astype(int), 0.6).astype(float)
            story.append("thinned")
        genes = np.arange(plain.n_vars)
        if draws.random() < 0.3:
            genes = np.sort(draws.permutation(genes)[: int(draws.uniform(0.3, 1) * len(genes))])
            story.append(f"{len(genes)} genes")
        rows = np.arange(plain.n_obs)
        if draws.random() < 0.3:
            rows = draws.permutation(rows)[: int(draws.integers(1, len(rows)))]
            story.append(f"{len(rows)} cells")

        x = FORMS[pick(FORMS)](scaled(plain.X, TOTALS[pick(TOTALS)]))
        if draws.random() < 0.3:
            one = (plain.obs["tech"] == pick("abc")).to_numpy()
            x[one] = FORMS[pick(FORMS)](scaled(plain.X[one], TOTALS[pick(TOTALS)]))
        kind = pick(["float64", "float32", *(["float16"] if x.max() < 6e4 else [])])
        x = x.astype(kind).astype(np.float32 if kind == "float16" else kind)
        adata = AnnData(LAYOUTS[pick(LAYOUTS)](x), obs=plain.obs, var=plain.var)[rows, genes].copy()
        adata.var_names = list(map(NAMES[pick(NAMES)], adata.var_names))
        if draws.random() < 0.5:
            adata = adata[:, draws.permutation(adata.n_vars)].copy()
        if draws.random() < 0.2:
            del adata.obs["tech"]
            story.append("batches unknown")

        expected, _ = said(plain[rows, genes].copy(), bundle)
        try:
            labels, words = said(adata, bundle)
        except DataError as error:
            assert "--values" in str(error) or "different kinds" in str(error), (story, error)
            tally["transformation refused"] += 1
            continue
        kept = float((labels == expected).mean())
        doubted = any("training cells" in word or "no longer tells" in word for word in words)
        tally["transformation " + ("kept" if kept >= KEPT else "doubted")] += 1
        few = 1.5 / len(rows)  # a cell of few may change its mind
        assert kept >= KEPT - few or doubted, (story, kept, words)


def test_few_of_the_transformations_are_refused(cells: AnnData, bundle: Bundle) -> None:
    """Of every total and form, with all genes and cells, none."""
    for total in TOTALS.values():
        for form in FORMS.values():
            for rows in (slice(None), slice(0, 40), slice(0, 5)):
                adata = query(cells)[rows].copy()
                adata.X = form(scaled(adata.X, total))
                labels, _ = said(adata, bundle)
                assert len(labels) == adata.n_obs


# --- batches by themselves


def test_a_batch_of_logarithms_beside_counts_is_read_as_what_it_is(cells: AnnData, tmp_path: Path) -> None:
    adata = cells.copy()
    expected = from_anndata(adata, Fields("celltype", "tech"))
    one = (adata.obs["tech"] == "b").to_numpy()
    adata.X[one] = np.log1p(scaled(adata.X[one], 1e4))
    dataset, reading = read_cells(adata, Fields("celltype", "tech"))
    assert dataset.values == "counts"
    assert reading.sentence == "values read batch by batch: counts in a, c; log-normalised in b"
    shares = dataset.x / dataset.x.sum(axis=1, keepdims=True)
    assert np.allclose(shares, expected.x / expected.x.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_batch_of_unknown_logarithms_beside_counts_is_refused(cells: AnnData) -> None:
    adata = cells.copy()
    one = (adata.obs["tech"] == "b").to_numpy()
    draws = np.random.default_rng(0)
    adata.X[one] = np.log1p(scaled(adata.X[one], 1e4) * draws.lognormal(0, 0.5, adata.X[one].shape))  # as imputed
    with pytest.raises(DataError, match=r"unknown base in b, while those of a, c are counts .* --values b=log1p"):
        from_anndata(adata, Fields("celltype", "tech"))
    told = from_anndata(adata, Fields("celltype", "tech", values="b=log1p"))
    assert told.values == "counts" and told.x.max() > 1000
    with pytest.raises(DataError, match="no batch is called 'd'"):
        from_anndata(adata, Fields("celltype", "tech", values="d=log1p"))


def test_counts_among_unknown_logarithms_of_one_batch_are_refused(cells: AnnData) -> None:
    adata = cells.copy()
    draws = np.random.default_rng(0)
    imputed = np.log1p(scaled(adata.X, 1e4) * draws.lognormal(0, 0.5, adata.shape))
    adata.X = np.where((np.arange(adata.n_obs) % 3 == 0)[:, None], adata.X, imputed)
    with pytest.raises(DataError, match="unknown base in query, while some cells hold counts"):
        from_anndata(adata, Fields(None, None))


def test_what_is_said_of_values_is_checked() -> None:
    assert parse("counts,a=b=log1p,c=log2") == ("counts", {"a=b": "log1p", "c": "log2"})
    with pytest.raises(SettingsError, match="values is 'tpm': choose one of auto, counts, linear"):
        Fields(None, None, values="tpm")


def test_a_model_of_logarithms_that_were_cut_reads_counts_of_all_genes(cells: AnnData, tmp_path: Path) -> None:
    """Its cells were normalised before they were cut, so that their totals are no total of the query's."""
    reference = cells[::2].copy()
    reference.X = np.log1p(scaled(reference.X, 1e4))
    bundle = trained(reference[:, ::3].copy(), tmp_path)
    assert bundle.values == "log"
    same = query(cells)
    same.X = np.log1p(scaled(same.X, 1e4))
    expected, _ = said(same, bundle)
    counted, words = said(query(cells), bundle)
    assert (counted == expected).mean() > 0.9 and not [word for word in words if "scale" in word]


# --- what was said of one matrix


def test_a_layer_that_the_query_lacks_is_asked_for(cells: AnnData, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    reference = cells[::2].copy()
    reference.layers["counts"] = reference.X.copy()
    reference.X = np.log1p(scaled(reference.X, 1e4))
    reference.write_h5ad("reference.h5ad")
    done("train", "reference.h5ad", *KEYS, "--layer", "counts", "--values", "counts", "--method", "nn",
         "--set", "epochs=20", "--set", "hidden=16", "-o", "model", "-q")  # fmt: skip
    normalised, counted = query(cells), query(cells)
    counted.layers["counts"] = counted.X.copy()
    normalised.X = np.log1p(scaled(normalised.X, 1e4))
    normalised.write_h5ad("normalised.h5ad")
    counted.write_h5ad("counted.h5ad")
    ran = run("predict", "normalised.h5ad", "--model", "model", "-o", "out.h5ad")
    assert ran.status == 2 and "trained on layer 'counts', which is not in these data" in ran.err
    assert "choose one that exists (found: X), and name it with --layer" in ran.err
    done("predict", "counted.h5ad", "--model", "model", "-o", "counted-out.h5ad")
    ran = done("predict", "normalised.h5ad", "--model", "model", "--layer", "X", "-o", "out.h5ad")
    assert "read as log-normalised, every cell's total 10,000" in ran.err  # not "counts, as told" of the other matrix
    one, other = (anndata.read_h5ad(name).obs for name in ("out.h5ad", "counted-out.h5ad"))
    assert one[LABEL].astype(str).tolist() == other[LABEL].astype(str).tolist()
    assert np.allclose(one["scdgn_confidence"], other["scdgn_confidence"], atol=1e-3)


def test_search_train_predict_and_the_class_read_one_file_alike(
    cells: AnnData, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    cells[::2].copy().write_h5ad("reference.h5ad")
    adata = query(cells)
    adata.X = np.log1p(scaled(adata.X, 1e6))
    del adata.obs["celltype"]
    adata.write_h5ad("query.h5ad")
    done("search", "reference.h5ad", *KEYS, "--test-batch", "c", "--query", "query.h5ad", "--name", "one",
         "--values", "counts", "--method", "nn", "--trials", "2", "--final-seeds", "2", "--no-track", "-q",
         "--set", "hidden=16", "--set", "epochs=10")  # fmt: skip
    done("predict", "query.h5ad", "--model", "studies/one/model", "-o", "out.h5ad", "-q")
    (annotated,) = Path("studies/one").glob("*.h5ad")
    labels = [anndata.read_h5ad(path).obs[LABEL].astype(str).tolist() for path in (annotated, "out.h5ad")]
    assert labels[0] == labels[1]
    assert SCDGN.load("studies/one/model").predict(anndata.read_h5ad("query.h5ad")).tolist() == labels[0]


def test_raw_is_a_layer(cells: AnnData, tmp_path: Path, monkeypatch: Any) -> None:
    """Scaled values in X, all genes and their counts in .raw."""
    monkeypatch.chdir(tmp_path)
    counts = cells[::2].copy()
    for form in (sp.csr_matrix, np.asarray):
        adata = counts[:, ::2].copy()
        adata.X = (adata.X - adata.X.mean(axis=0)) / (adata.X.std(axis=0) + 1)
        kept = counts.copy()
        kept.X = form(kept.X)
        adata.raw = kept
        adata.write_h5ad("scaled.h5ad")
        for command in (("train", "-o", "model", *KEYS, "--overwrite", "--method", "nn", "--set", "epochs=2"),):
            ran = run(command[0], "scaled.h5ad", *command[1:])
            assert ran.status == 2 and "or --layer raw for .raw" in ran.err
            ran = done(command[0], "scaled.h5ad", *command[1:], "--layer", "raw")
        assert Bundle.load("model").preprocessing.panel.tolist() == counts.var_names.tolist()
        assert from_anndata(anndata.read_h5ad("scaled.h5ad"), Fields("celltype", "tech", "raw")).x.shape == counts.shape
        done("predict", "scaled.h5ad", "--model", "model", "-o", "out.h5ad")  # the layer of the training cells
        counts.write_h5ad("counts.h5ad")
        done("predict", "counts.h5ad", "--model", "model", "--layer", "X", "-o", "plain.h5ad")
        one, other = (anndata.read_h5ad(name).obs[LABEL].astype(str).tolist() for name in ("out.h5ad", "plain.h5ad"))
        assert one == other


# --- what is counted


def test_antibodies_are_no_genes(cells: AnnData, bundle: Bundle) -> None:
    expected, _ = said(query(cells), bundle)
    draws = np.random.default_rng(0)
    adata = query(cells)
    antibodies = AnnData(draws.poisson(400, (adata.n_obs, 20)).astype(float), obs=adata.obs)
    antibodies.var_names = [f"CD{number}" for number in range(20)]
    adata.var["feature_types"], antibodies.var["feature_types"] = "Gene Expression", "Antibody Capture"
    both = anndata.concat([adata, antibodies], axis=1, merge="first")
    assert from_anndata(both, Fields("celltype", "tech")).genes.tolist() == adata.var_names.tolist()
    assert said(both, bundle)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("how", ["first", "sum"])
def test_genes_of_the_same_name(cells: AnnData, how: Any) -> None:
    adata = query(cells)
    adata.var["symbol"] = adata.var_names.to_numpy()
    adata.var.iloc[7, 0] = adata.var.iloc[3, 0]
    fields = Fields("celltype", "tech", gene_key="symbol")
    with pytest.raises(DataError, match=r"var\['symbol'\] holds 1 gene name more than once") as told:
        from_anndata(adata, fields)
    assert "var_names_make_unique" not in str(told.value) and "--duplicate-genes sum or first" in str(told.value)
    dataset = from_anndata(adata, replace(fields, duplicate_genes=how))
    kept = np.delete(np.arange(adata.n_vars), 7)
    assert dataset.genes.tolist() == adata.var_names[kept].tolist()
    expected = adata.X[:, kept].copy()
    if how == "sum":
        expected[:, 3] += adata.X[:, 7]
    assert np.allclose(dataset.x, expected)


# --- a word of doubt


def test_other_genes_in_the_same_columns_are_told(cells: AnnData, bundle: Bundle) -> None:
    adata = query(cells)
    adata.var_names = np.random.default_rng(0).permutation(adata.var_names)
    assert any("are not expressed as in the training cells" in word for word in said(adata, bundle)[1])


def test_values_on_another_scale_that_cannot_be_undone_are_told(cells: AnnData, bundle: Bundle) -> None:
    adata = query(cells)
    draws = np.random.default_rng(0)
    adata.X = np.log2(scaled(adata.X, 1e6) * draws.lognormal(0, 0.3, adata.shape) + 1)
    adata = adata[:, :200].copy()
    with pytest.warns(UserWarning, match="of its weight"), pytest.warns(UserWarning, match="another scale"):
        loaded(bundle).predict(adata)


def loaded(bundle: Bundle) -> SCDGN:
    model = SCDGN.__new__(SCDGN)
    model._bundle, model._dataset, model._fields = bundle, None, Fields(None, None)
    return model


def test_genes_without_which_a_type_cannot_be_told_are_named(cells: AnnData, bundle: Bundle) -> None:
    adata = query(cells)
    (few,) = [word for word in said(adata[:, :40].copy(), bundle)[1] if "not in the data" in word]
    assert "of its weight" in few and "without them it no longer tells" in few


def test_what_missing_genes_cost_is_measured_and_told_or_refused(cells: AnnData, bundle: Bundle) -> None:
    """As a search does with its final seeds: measured on known cells that train nothing."""
    dataset = from_anndata(cells, Fields("celltype", "tech"))
    rows = np.arange(len(dataset))
    aside = Split(rows[::2], rows[1::2], rows[1::2], rows[:0])
    tried = fewer_genes(bundle, dataset, aside, torch.device("cpu"))
    shares, scores = np.array(tried).T
    assert shares[0] == 1 and (np.diff(shares) < 0).all() and scores[0] == scores.max() and scores[-1] < scores[0] / 2
    telling = replace(bundle, provenance={**bundle.provenance, "fewer_genes": tried})
    adata = query(cells)
    (most,) = [word for word in said(adata[:, :250].copy(), telling)[1] if "not in the data" in word]
    assert f"of macro-F1 {scores[0]:.2f} on cells of the training batches that were set aside" in most
    few = adata[:, :40].copy()
    with pytest.raises(DataError, match=r"--gene-key.*var_names\.isin"):
        said(few, telling)
    with pytest.raises(DataError, match="which cost"):
        loaded(telling).predict(few)
    with pytest.raises(DataError, match="which cost"):
        loaded(telling).annotate(few.copy())
    with pytest.warns(UserWarning, match="of its weight"):
        loaded(bundle).predict(few)


def test_some_cells_of_a_batch_of_two_kinds_are_read_again_as_they_were(cells: AnnData) -> None:
    """As those of a query among the training cells are: no one word is true of their batch."""
    adata = cells.copy()
    adata.X = np.where((np.arange(adata.n_obs) % 3 == 0)[:, None], adata.X, np.log1p(scaled(adata.X, 1e4)))
    dataset, reading = read_cells(adata, Fields("celltype", "tech"))
    some = np.arange(0, adata.n_obs, 2)
    again = from_anndata(adata[some].copy(), Fields(None, "tech", values=reading.declared, like=dataset.values))
    assert np.allclose(again.x, dataset.x[some])

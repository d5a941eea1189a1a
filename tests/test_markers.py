"""Genes that mark a type in its worst domain: against a plain loop, and the laws of what may have a say."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scdgn.cells import markers as module
from scdgn.cells.dataset import Dataset
from scdgn.cells.markers import marker_genes
from scdgn.cells.normalize import log_normalize, log_normalized
from scdgn.cells.preprocess import Preprocessing, fit
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.variable import highly_variable_genes
from scdgn.errors import SettingsError

seeds = st.integers(0, 2**32 - 1)


def cells_of(x: Any, labels: Any, batches: Any) -> Dataset:
    """Log-normalised values as cells of types a, b, c, ... in batches 0, 1, ..."""
    x, labels, batches = np.asarray(x, dtype=np.float32), np.asarray(labels), np.asarray(batches)
    return Dataset(
        x,
        "log",
        np.array([f"gene{i}" for i in range(x.shape[1])]),
        np.array([f"cell{i}" for i in range(len(x))]),
        labels,
        tuple("abcdefghijklmnopqrstuvwxyz"[: max(1, labels.max() + 1)]),
        batches,
        tuple(map(str, range(batches.max() + 1))),
    )


def simulated(seed: int, cells: int = 90, genes: int = 25) -> Dataset:
    """Counts of four types in three batches; some blocks empty, some small, some cells without a type."""
    rng = np.random.default_rng(seed)
    labels, batches = rng.integers(4, size=cells), rng.integers(3, size=cells)
    labels[rng.random(cells) < 0.1] = -1
    labels[(labels == 3) & (batches > 0)] = 0
    means = rng.gamma(1, 2, (5, genes)) * rng.gamma(2, 1, (3, 1, genes))
    dataset = cells_of(rng.poisson(means[batches, labels]), labels, batches)
    x = dataset.x.copy()
    x[:, rng.integers(genes)] = 0
    return replace(dataset, x=x, values="counts", cell_types=("a", "b", "c", "d"), batch_names=("0", "1", "2"))


def all_rows(dataset: Dataset) -> np.ndarray:
    return np.arange(len(dataset))


def as_they_are(x: Any) -> Any:
    return x


def markers_of(dataset: Dataset, per_type: int) -> list[int]:
    return marker_genes(dataset, all_rows(dataset), per_type, as_they_are).tolist()


def selected(dataset: Dataset, rows: np.ndarray, per_type: int = 3) -> list[str]:
    chosen = PreprocessSettings(gene_selection="markers", markers_per_type=per_type)
    names: list[str] = fit(dataset, rows, chosen).genes.tolist()
    return names


# --- the definition


def plain(x: np.ndarray, labels: np.ndarray, batches: np.ndarray, per_type: int) -> list[int]:
    """The same by loops over types, domains and genes."""
    found: set[int] = set()

    def statistic(mine: np.ndarray, theirs: np.ndarray) -> float:
        return float((mine.mean() - theirs.mean()) / np.sqrt(mine.var() + theirs.var() + 0.1))

    for code in np.unique(labels[labels >= 0]):
        scores = []
        inside, others = labels == code, (labels != code) & (labels >= 0)
        sides = [(inside & (batches == batch), others & (batches == batch)) for batch in np.unique(batches)]
        sides = [(mine, theirs) for mine, theirs in sides if mine.sum() >= 5 and theirs.sum() >= 5]
        if not sides and inside.sum() >= 2:
            theirs = others & np.isin(batches, batches[inside])
            sides = [(inside, theirs if theirs.sum() >= 5 else others)]
        for gene in range(x.shape[1]):
            values = [statistic(x[mine, gene], x[theirs, gene]) for mine, theirs in sides]
            agree = values and (min(values) > 0 or max(values) < 0)
            scores.append(min(map(abs, values)) if agree else 0)
        order = sorted(range(len(scores)), key=lambda gene: (-scores[gene], gene))[:per_type]
        found |= {gene for gene in order if scores[gene] > 1e-6}
    return sorted(found)


@given(seed=seeds, per_type=st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_it_is_what_plain_loops_find(seed: int, per_type: int) -> None:
    dataset = log_normalized(simulated(seed))
    x = dataset.x.astype(np.float64)
    assert markers_of(dataset, per_type) == plain(x, dataset.labels, dataset.batches, per_type)


def test_the_worst_domain_decides() -> None:
    labels, batches = np.tile(np.repeat([0, 1], 10), 2), np.repeat([0, 1], 20)
    x = np.zeros((40, 4))
    x[(labels == 0) & (batches == 0), 0] = 9  # marks a in one domain, strongly
    x[labels == 0, 1] = 2  # in both
    x[(labels == 0) & (batches == 0), 2] = 9
    x[(labels == 1) & (batches == 1), 2] = 9  # the other way round in the other domain
    x[:, 3] = 7.3  # constant
    assert markers_of(cells_of(x, labels, batches), 1) == [1]
    assert markers_of(cells_of(x, labels, batches), 4) == [1]  # no gene is taken to fill the number
    assert markers_of(cells_of(x, labels, 0 * batches), 1) == [1]
    assert markers_of(cells_of(x, labels, 0 * batches), 4) == [0, 1]
    assert markers_of(cells_of(x[:20], labels[:20], batches[:20]), 4) == [0, 1, 2]


def test_a_gene_that_is_lower_in_a_type_marks_it_too() -> None:
    labels = np.repeat([0, 1, 2], 10)
    x = np.zeros((30, 3))
    x[labels != 0, 0] = 3
    assert markers_of(cells_of(x, labels, 0 * labels), 1) == [0]


def test_a_domain_with_few_of_either_has_no_say() -> None:
    labels = np.concatenate([np.tile(np.repeat([0, 1], 10), 2), [0] * 4 + [1] * 10])
    batches = np.repeat([0, 1, 2], [20, 20, 14])
    x = np.zeros((54, 2))
    x[(labels == 0) & (batches < 2), 0] = 1
    x[(labels == 1) & (batches == 2), 0] = 1  # against, where a has four cells
    assert markers_of(cells_of(x, labels, batches), 2) == [0]
    labels[45] = 0  # now five
    x[45] = 0
    assert markers_of(cells_of(x, labels, batches), 2) == []


def test_a_type_of_one_domain_is_marked_by_that() -> None:
    labels = np.concatenate([np.repeat([0, 1], 10), np.repeat([0, 2], 10)])
    batches = np.repeat([0, 1], 20)
    x = np.zeros((40, 3))
    x[labels == 1, 0] = 2
    x[labels == 2, 1] = 2
    x[batches == 1, 2] = 5  # a domain's gene, no type's
    assert markers_of(cells_of(x, labels, batches), 3) == [0, 1]


def test_a_rare_type_is_compared_over_its_domains_together() -> None:
    labels = np.tile(np.repeat([0, 1, 2], [3, 20, 20]), 2)  # three cells in either of two domains
    batches = np.repeat([0, 1], 43)
    x = np.zeros((86, 6))
    x[labels == 0, 4] = 3
    assert markers_of(cells_of(x, labels, batches), 1) == [4]
    # A third domain, which does not hold the type, is not asked: there the gene is high in all cells.
    x = np.vstack([x, np.tile([0, 0, 0, 0, 99, 0], (20, 1))])
    labels, batches = np.append(labels, np.tile([1, 2], 10)), np.append(batches, np.full(20, 2))
    assert markers_of(cells_of(x, labels, batches), 1) == [4]


def test_a_type_alone_in_its_domain_is_compared_with_the_others() -> None:
    labels = np.repeat([0, 1, 2], 10)
    x = np.zeros((30, 3))
    x[labels == 0, 2] = 1
    assert 2 in markers_of(cells_of(x, labels, np.repeat([0, 1, 1], 10)), 1)


def test_a_single_cell_of_a_type_marks_nothing() -> None:
    labels, batches = np.array([0] * 10 + [1] * 10 + [2]), np.array([0] * 20 + [1])
    x = np.zeros((21, 3))
    x[20, 2] = 9
    x[:10, 0] = 1
    assert markers_of(cells_of(x, labels, batches), 3) == [0]
    labels = np.append(labels, 2)  # two are compared, with the others of the other domain
    assert markers_of(cells_of(np.vstack([x, x[20:]]), labels, np.append(batches, 1)), 3) == [0, 2]


def test_neither_nan_nor_a_constant_gene_nor_rounding_is_chosen() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    x = np.column_stack([np.full(60, 9.3), np.full(60, np.nan), 5 + 1e-6 * rng.random((60, 3)), rng.random(60)])
    x[labels == 1, 5] += 0.2
    for form in (np.asarray, sp.csr_matrix):
        dataset = cells_of(x, labels, 0 * labels)
        assert markers_of(replace(dataset, x=form(dataset.x)), 6) == [5]


def test_equal_genes_go_by_their_order() -> None:
    dataset = log_normalized(simulated(1))
    ordered = replace(dataset, x=np.repeat(dataset.x, 2, axis=1), genes=np.arange(50).astype(str))
    best = markers_of(dataset, 1)
    assert markers_of(ordered, 1) == [2 * gene for gene in best]


# --- laws


@given(seed=seeds)
@settings(deadline=None, max_examples=10)
def test_other_cells_are_not_seen(seed: int) -> None:
    dataset = simulated(seed)
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(dataset))[:50]
    others = np.setdiff1d(all_rows(dataset), train)
    x, labels, batches = dataset.x.copy(), dataset.labels.copy(), dataset.batches.copy()
    x[others] = rng.permutation(x[others].ravel()).reshape(len(others), -1) * 50
    labels[others], batches[others] = rng.permutation(labels[others]), 2 - batches[others]
    assert selected(replace(dataset, x=x, labels=labels, batches=batches), train) == selected(dataset, train)
    # Types that only other cells have are none.
    wider = replace(dataset, cell_types=(*dataset.cell_types, "z"), batch_names=(*dataset.batch_names, "9"))
    assert selected(wider, train) == selected(dataset, train)


@given(seed=seeds)
@settings(deadline=None, max_examples=10)
def test_cells_without_a_type_do_not_count(seed: int) -> None:
    dataset = simulated(seed)
    known = np.flatnonzero(dataset.labels >= 0)
    assert selected(dataset, all_rows(dataset)) == selected(dataset, known)


@given(seed=seeds)
@settings(deadline=None, max_examples=10)
def test_order_and_storage_and_earlier_normalisation_change_nothing(seed: int) -> None:
    dense = simulated(seed)
    order = np.random.default_rng(seed).permutation(len(dense))
    expected = selected(dense, all_rows(dense))
    assert 3 <= len(expected) <= 12
    assert selected(dense, order) == expected
    assert selected(dense.take(order), all_rows(dense)) == expected
    sparse = replace(dense, x=sp.csr_matrix(dense.x))
    for other in (sparse, log_normalized(dense), log_normalized(sparse), sparse.take(order)):
        assert selected(other, all_rows(dense)) == expected


def test_blocks_of_cells_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = simulated(0)
    expected = selected(dataset, all_rows(dataset))
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert selected(dataset, all_rows(dataset)) == expected


def test_many_domains_need_no_more_memory_than_few() -> None:
    cells, genes, types = 6_000, 3_000, 20
    rng = np.random.default_rng(0)
    stored = rng.integers(genes, size=(cells, 20))
    x = sp.csr_matrix((rng.random(stored.size).astype(np.float32), stored.ravel(), np.arange(cells + 1) * 20))
    x.resize(cells, genes)
    x.sum_duplicates()
    labels = rng.integers(types, size=cells)

    def peak(domains: int) -> int:
        dataset = cells_of(np.zeros((cells, 1)), labels, np.arange(cells) % domains)
        dataset = replace(dataset, x=x, genes=np.arange(genes).astype(str))
        tracemalloc.start()
        markers_of(dataset, 5)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(50) < 1.2 * peak(2)


# --- in the preprocessing


def test_the_number_of_variable_genes_has_no_say() -> None:
    dataset = simulated(0)
    one, two = (
        fit(dataset, all_rows(dataset), PreprocessSettings(top, gene_selection="markers", markers_per_type=3))
        for top in (1, 3000)
    )
    assert one.genes.tolist() == two.genes.tolist()
    normalize = lambda x: log_normalize(x, "counts")  # noqa: E731
    assert one.genes.tolist() == dataset.genes[marker_genes(dataset, all_rows(dataset), 3, normalize)].tolist()
    assert one.transform(dataset).shape == (90, len(one.genes))


def test_variable_genes_are_taken_where_nothing_can_be_compared() -> None:
    dataset = simulated(0, genes=40)
    chosen = PreprocessSettings(12, gene_selection="markers")
    rows = np.flatnonzero(dataset.labels == 1)
    expected = dataset.genes[highly_variable_genes(dataset, rows, chosen)].tolist()
    assert len(expected) == 12
    assert fit(dataset, rows, chosen).genes.tolist() == expected
    unlabeled = np.flatnonzero(dataset.labels < 0)
    assert len(fit(dataset, unlabeled, chosen).genes) == 12
    silent = replace(dataset, x=0 * dataset.x)
    assert len(fit(silent, all_rows(silent), chosen).genes) == 12


@given(seed=seeds, cells=st.integers(1, 12), genes=st.integers(1, 8), per_type=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_tiny_data_are_handled_without_a_warning(seed: int, cells: int, genes: int, per_type: int) -> None:
    dataset = simulated(seed, cells, genes)
    chosen = PreprocessSettings(gene_selection="markers", markers_per_type=per_type)
    preprocessing = fit(dataset, all_rows(dataset), chosen)
    assert 1 <= len(preprocessing.genes) <= genes
    assert np.isfinite(preprocessing.transform(dataset)).all()


def test_settings() -> None:
    with pytest.raises(SettingsError) as caught:
        PreprocessSettings(gene_selection="marker", markers_per_type=0)  # type: ignore[arg-type]
    assert len(caught.value.faults) == 2
    assert "choose one of variable, markers" in str(caught.value)
    assert PreprocessSettings().gene_selection == "variable"


def test_json_round_trip_and_a_document_of_before() -> None:
    dataset = simulated(0)
    chosen = PreprocessSettings(gene_selection="markers", markers_per_type=3)
    preprocessing = fit(dataset, all_rows(dataset), chosen)
    document = json.loads(json.dumps(preprocessing.to_json()))
    again = Preprocessing.from_json(document, preprocessing.mean, preprocessing.std)
    assert again.settings == chosen
    assert np.array_equal(again.transform(dataset), preprocessing.transform(dataset))
    before = fit(dataset, all_rows(dataset), PreprocessSettings(12))
    document = json.loads(json.dumps(before.to_json()))
    del document["settings"]["gene_selection"], document["settings"]["markers_per_type"]
    again = Preprocessing.from_json(document, before.mean, before.std)
    assert again.settings == before.settings
    assert np.array_equal(again.transform(dataset), before.transform(dataset))

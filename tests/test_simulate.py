import dataclasses
import json
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from scdgn.cells.datasets import DATASETS
from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY, Simulation, paper_shape, simulate
from scdgn.errors import SettingsError

REFERENCE = Path(__file__).resolve().parents[1].parent / "shared" / "reference"
TYPES = ("alpha", "beta", "delta", "gamma")
SMALL = Simulation(cells={"a": 40, "b": 30, "c": 20}, cell_types=TYPES, genes=50, depth=200)


def occurring(adata: anndata.AnnData, domain: str) -> set[str]:
    return set(adata.obs.loc[adata.obs[BATCH_KEY] == domain, LABELS_KEY])


@settings(max_examples=20, deadline=None)
@given(
    present=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.lists(st.sampled_from(TYPES), min_size=1, unique=True).map(tuple)
    ),
    seed=st.integers(0, 2**32),
)
def test_each_domain_has_its_types_and_no_other(present: dict[str, tuple[str, ...]], seed: int) -> None:
    adata = simulate(dataclasses.replace(SMALL, present=present, seed=seed))
    for domain in SMALL.cells:
        assert occurring(adata, domain) == set(present.get(domain, TYPES))
    assert adata.obs[BATCH_KEY].value_counts().to_dict() == dict(SMALL.cells)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.floats(1, 1e4), dispersion=st.floats(0.01, 5))
def test_values_are_counts(seed: int, depth: float, dispersion: float) -> None:
    adata = simulate(dataclasses.replace(SMALL, seed=seed, depth=depth, dispersion=dispersion))
    assert sparse.issparse(adata.X) and adata.X.dtype == np.float32
    assert (adata.X.data >= 1).all() and (adata.X.data == np.round(adata.X.data)).all()


def test_the_seed_decides_the_cells() -> None:
    once, again, other = (simulate(dataclasses.replace(SMALL, seed=seed)) for seed in (3, 3, 4))
    assert (once.X != again.X).nnz == 0 and once.obs.equals(again.obs)
    assert (once.X != other.X).nnz > 0


def test_memory_is_that_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.cells.simulate._ENTRIES_AT_A_TIME", 20_000)
    settings = dataclasses.replace(SMALL, cells={"a": 5000}, genes=1000, depth=20)
    simulate(SMALL)  # what is imported does not count
    tracemalloc.start()
    adata = simulate(settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 5000 * 1000 / 2  # half of the cells as a dense float32 matrix
    assert adata.X.nnz > 50_000


def test_counts_have_the_mean_and_variance_of_a_negative_binomial() -> None:
    one_type = Simulation(
        cells={"a": 4000}, cell_types=("alpha",), genes=20, depth=400, dispersion=0.5, platform_bias=0, lost_genes=0
    )
    counts = simulate(one_type).X.toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    # Depth is lognormal with standard deviation 0.4 and adds (1 + 0.5) * (exp(0.4**2) - 1) to the dispersion.
    expected = mean + mean**2 * (1.5 * np.exp(0.4**2) - 1)
    assert np.median(variance / expected) == pytest.approx(1, abs=0.1)


def test_domains_differ_in_depth_and_in_the_genes_they_lose() -> None:
    adata = simulate(dataclasses.replace(SMALL, cells={"a": 200, "b": 200, "c": 200}, depth=1000, lost_genes=0.3))
    depths, lost = [], []
    for domain in "abc":
        counts = adata[adata.obs[BATCH_KEY] == domain].X.toarray()
        depths.append(np.median(counts.sum(axis=1)))
        lost.append(frozenset(np.flatnonzero(counts.sum(axis=0) == 0)))
    assert sorted(depths)[2] / sorted(depths)[0] == pytest.approx(SMALL.depth_range, rel=0.3)
    assert len(set(lost)) == 3 and min(map(len, lost)) > 0


def test_only_the_response_changes_a_type_between_platforms_without_bias() -> None:
    plain = dataclasses.replace(
        SMALL, cells={"a": 500, "b": 500}, depth=5000, platform_bias=0, lost_genes=0, ambient=0, dispersion=0.1
    )

    def distance(response: float) -> float:
        adata = simulate(dataclasses.replace(plain, response=response))
        shares = []
        for domain in plain.cells:
            counts = adata[(adata.obs[BATCH_KEY] == domain) & (adata.obs[LABELS_KEY] == "alpha")].X.toarray()
            shares.append(counts.sum(axis=0) / counts.sum())
        return float(np.abs(shares[0] - shares[1]).sum())

    assert distance(0) < 0.05 < 0.15 < distance(2)


def test_a_platform_never_loses_all_its_genes() -> None:
    adata = simulate(dataclasses.replace(SMALL, genes=2, lost_genes=0.99))
    for domain in SMALL.cells:
        assert adata[adata.obs[BATCH_KEY] == domain].X.nnz > 0


def test_rare_types_are_rare_and_present() -> None:
    adata = simulate(dataclasses.replace(SMALL, cells={"a": 2000}, frequencies=(1000, 100, 10, 0.001)))
    sizes = adata.obs[LABELS_KEY].value_counts()
    assert list(sizes.index) == list(TYPES) and sizes["gamma"] >= 1


def test_all_faults_of_the_settings_are_named() -> None:
    with pytest.raises(SettingsError) as error:
        Simulation(cells={"celseq": 5}, cell_types=("alpha",), present={"celsec": ("alpa",)}, depth=0, ambient=1.0)
    assert len(error.value.faults) == 4
    assert "did you mean celseq" in str(error.value) and "did you mean alpha" in str(error.value)


@pytest.mark.parametrize("name", ["pancreas", "pbmc", "scquery"])
def test_shapes_are_those_of_the_paper(name: str) -> None:
    if not REFERENCE.is_dir():
        pytest.skip("the paper's tables (shared/reference) are not there")
    statistics = json.loads((REFERENCE / "paper_tables.json").read_text())["dataset_statistics"][name]
    shape = paper_shape(name)
    parts = [part for part in ("train", "validation", "test") if part in statistics]
    # The paper's training cells of the pancreas include its test cells.
    total = sum(statistics[part]["cells"] for part in parts if not (name == "pancreas" and part == "test"))
    assert sum(shape.cells.values()) == total
    assert len(shape.cells) == sum(statistics[part]["domains"] for part in parts)
    assert len(shape.cell_types) == statistics["train"]["cell_types"]
    assert shape.genes == statistics["genes"]
    assert set(shape.cell_types) == {t for domain in shape.cells for t in shape.present.get(domain, shape.cell_types)}


@pytest.mark.parametrize("name", ["pbmc", "scquery"])
def test_shapes_are_as_confounded_as_the_paper_says(name: str) -> None:
    if not REFERENCE.is_dir():
        pytest.skip("the paper's tables (shared/reference) are not there")
    published = json.loads((REFERENCE / "paper_tables.json").read_text())["test_accuracy"][name]["mi_bits"]
    obs = simulate(dataclasses.replace(paper_shape(name), genes=2)).obs
    training = obs[~obs[BATCH_KEY].str.match("domain9|valid|test")]
    bits = mutual_info_score(training[LABELS_KEY], training[BATCH_KEY]) / np.log(2)
    assert bits == pytest.approx(published, rel=0.15)


def test_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean pancreas"):
        paper_shape("pancrea")


def test_difficulty() -> None:
    """Confounding costs accuracy on a technology never seen, and neither task is hopeless or trivial."""
    adata = simulate(paper_shape("pancreas"))
    x = np.log1p(adata.X.multiply(1e4 / adata.X.sum(axis=1)).toarray()).astype(np.float32)
    types, domains = adata.obs[LABELS_KEY].to_numpy(str), adata.obs[BATCH_KEY].to_numpy(str)
    test = domains == "fluidigmc1"

    def accuracy(train: np.ndarray) -> float:
        rows = np.random.default_rng(0).choice(np.flatnonzero(train), 1500, replace=False)
        model = LogisticRegression(C=0.1, max_iter=60, tol=1e-3).fit(x[rows], types[rows])
        return float(model.score(x[test], types[test]))

    def of_blocks(name: str) -> np.ndarray:
        keep = DATASETS[name].blocks.keep
        return np.array([kind in keep.get(domain, ()) for kind, domain in zip(types, domains, strict=True)])

    confounded = [accuracy(of_blocks(f"pancreas{i}")) for i in (1, 2, 3, 4)]
    assert all(0.6 < value < 0.9 for value in confounded)
    assert 0.9 < accuracy(~test) < 0.99

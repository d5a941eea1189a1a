"""Predictions written into an AnnData."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scanpy.plotting.palettes import default_20, default_28, default_102

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.model.annotate import (
    CLUSTER,
    CONFIDENCE,
    GENES,
    LABEL,
    LATENT,
    PROBABILITY,
    VOTED,
    annotate,
    highest,
    over_cluster,
    vote,
)
from scdgn.model.attribution import Explanation
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.model.palettes import type_colours
from tests.faults import SETTINGS, TYPES, tiny

FIELDS = Fields(None, None)


def trained(adata: AnnData) -> Bundle:
    dataset = from_anndata(adata, Fields("celltype", "tech"))
    return fit(dataset, np.arange(len(dataset)), Settings.from_mapping(SETTINGS), PreprocessSettings(), [0])


def labelled(labels: list[str], clusters: list[str]) -> tuple[AnnData, np.ndarray]:
    """Cells with predicted labels and the clusters to vote in."""
    adata = AnnData(np.ones((len(labels), 2), dtype=np.float32), var=pd.DataFrame(index=["g1", "g2"]))
    adata.obs[LABEL] = pd.Categorical(labels, categories=list(TYPES))
    return adata, np.array(clusters, dtype=object)


def test_what_is_written() -> None:
    adata = tiny()
    bundle = trained(adata)
    dataset = from_anndata(adata, FIELDS)
    columns, values = list(adata.obs), adata.X.copy()
    annotate(adata, dataset, bundle)
    assert list(adata.obs) == [*columns, LABEL, CONFIDENCE] and list(adata.obsm) == [LATENT, PROBABILITY]
    assert np.array_equal(adata.X.toarray(), values.toarray())
    table = adata.obsm[PROBABILITY]
    assert list(table.columns) == list(adata.obs[LABEL].cat.categories) == list(TYPES)
    assert np.array_equal(table.to_numpy(), bundle.probabilities(bundle.input(dataset)))
    assert (table.idxmax(axis=1) == adata.obs[LABEL].astype(str)).all()
    assert (table.max(axis=1) == adata.obs[CONFIDENCE]).all()
    assert adata.obsm[LATENT].shape == (140, 4)


@settings(max_examples=50)
@given(
    shares=arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 7)), elements=st.sampled_from([0, 0.25, 1])),
    most=st.integers(1, 9),
)
def test_the_highest_probabilities_are_kept_and_no_other(shares: np.ndarray, most: int) -> None:
    kept = highest(shares, most)
    assert kept.dtype == np.float32 and kept.has_canonical_format and kept.shape == shares.shape
    assert (np.diff(kept.indptr) == min(most, shares.shape[1])).all()
    for cell, row in enumerate(shares):
        places = kept.indices[kept.indptr[cell] : kept.indptr[cell + 1]]
        assert (kept[cell].toarray()[0, places] == row[places]).all()
        left_out = np.delete(row, places)
        assert left_out.max(initial=0) <= row[places].min() and row.argmax() in places


def test_the_first_types_alone() -> None:
    whole, few = tiny(), tiny()
    bundle = trained(whole)
    annotate(whole, from_anndata(whole, FIELDS), bundle)
    annotate(few, from_anndata(few, FIELDS), bundle, top_k=2)
    expected = whole.obsm[PROBABILITY].to_numpy().copy()
    np.put_along_axis(expected, expected.argmin(axis=1)[:, None], 0, axis=1)
    assert np.array_equal(few.obsm[PROBABILITY].toarray(), expected)
    pd.testing.assert_frame_equal(few.obs, whole.obs)
    assert few.uns["scdgn"]["cell_types"] == list(TYPES)  # what the columns are


def test_types_never_predicted_keep_their_level_and_column() -> None:
    adata = tiny()
    bundle = trained(adata)
    few = adata[:1].copy()
    annotate(few, from_anndata(few, Fields(None, None, values="counts")), bundle)
    assert list(few.obs[LABEL].cat.categories) == list(TYPES) == list(few.obsm[PROBABILITY].columns)


def test_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tiny(), tiny()
    bundle = trained(whole)
    annotate(whole, from_anndata(whole, FIELDS), bundle)
    monkeypatch.setattr("scdgn.model.at_once.INPUT_AT_ONCE", 32 * 40)
    annotate(parts, from_anndata(parts, FIELDS), bundle)
    pd.testing.assert_frame_equal(parts.obs, whole.obs)
    pd.testing.assert_frame_equal(parts.obsm[PROBABILITY], whole.obsm[PROBABILITY])
    assert np.allclose(parts.obsm[LATENT], whole.obsm[LATENT], atol=1e-6)


def test_annotating_again_replaces() -> None:
    adata = tiny()
    bundle = trained(adata)
    for _ in range(2):
        annotate(adata, from_anndata(adata, FIELDS), bundle)
    assert list(adata.obs) == ["celltype", "tech", LABEL, CONFIDENCE]


def test_a_type_has_the_same_colour_whatever_cells_are_labelled() -> None:
    bundle = trained(tiny())
    colours = []
    for rows in (slice(0, 140), slice(0, 1)):
        adata = tiny()[rows].copy()
        annotate(adata, from_anndata(adata, Fields(None, None, values="counts")), bundle)
        found = adata.uns[f"{LABEL}_colors"].tolist()
        colours.append(dict(zip(adata.obs[LABEL].cat.categories, found, strict=True)))
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 3


@pytest.mark.parametrize("types", [1, 20, 21, 28, 29, 102])
def test_types_have_the_colours_that_scanpy_gives_as_many_categories(types: int) -> None:
    palette = {1: default_20, 20: default_20, 21: default_28, 28: default_28}.get(types, default_102)
    found = type_colours([str(place) for place in range(types)]).tolist()
    assert found == [colour.lower() for colour in palette[:types]] and len(set(found)) == types
    assert len(type_colours([""] * 150)) == 150


def test_the_explanation_goes_with_its_labels() -> None:
    adata = tiny()
    bundle = trained(adata)
    annotate(adata, from_anndata(adata, FIELDS), bundle, explanation=Explanation(bundle))
    assert set(adata.uns[GENES]["label"]) == set(adata.obs[LABEL])
    annotate(adata, from_anndata(adata, FIELDS), bundle)
    assert GENES not in adata.uns


@pytest.mark.parametrize("types", [("T/NK", "T_NK", "B"), ("_index", "_index_", "B"), ("a/b", "a_b", "a/b_", "a_b_")])
def test_columns_are_as_many_as_types_and_fit_for_a_file(types: tuple[str, ...], tmp_path: object) -> None:
    adata = tiny(cell_types=types)
    bundle = trained(adata)
    annotate(adata, from_anndata(adata, FIELDS), bundle)
    names = list(adata.obsm[PROBABILITY].columns)
    assert len(set(names)) == len(types)
    assert not any("/" in name or name == "_index" for name in names)
    for name, cell_type in zip(names, bundle.cell_types, strict=True):
        assert name == cell_type or "/" in cell_type or cell_type == "_index"
    adata.write_h5ad(f"{tmp_path}/out.h5ad")


# --- majority voting


def test_every_cell_gets_the_most_frequent_label_of_its_cluster() -> None:
    adata, clusters = labelled(["B", "B", "T", "NK", "T", "T", "B"], ["1", "1", "1", "2", "3", "3", "3"])
    vote(adata, from_anndata(adata, FIELDS), clusters)
    assert adata.obs[VOTED].tolist() == ["B", "B", "B", "NK", "T", "T", "T"]
    assert adata.obs[CLUSTER].tolist() == clusters.tolist()
    assert list(adata.obs[VOTED].cat.categories) == list(TYPES)
    assert adata.obs[LABEL].tolist() == ["B", "B", "T", "NK", "T", "T", "B"]


def test_clusters_come_in_natural_order() -> None:
    adata, clusters = labelled(["B"] * 12, [str(place) for place in (10, 2, 1, 0, 11, 3, 4, 5, 6, 7, 8, 9)])
    vote(adata, from_anndata(adata, FIELDS), clusters)
    assert list(adata.obs[CLUSTER].cat.categories) == [str(place) for place in range(12)]
    assert adata.uns[f"{VOTED}_colors"].tolist() == type_colours(TYPES).tolist()


@pytest.mark.parametrize("labels", [["T", "B"], ["B", "T"]])
def test_ties_go_to_the_first_type(labels: list[str]) -> None:
    adata, clusters = labelled(labels, ["1", "1"])
    vote(adata, from_anndata(adata, FIELDS), clusters)
    assert adata.obs[VOTED].tolist() == ["B", "B"]


def expressed(values: np.ndarray) -> Dataset:
    genes = pd.DataFrame(index=[f"g{place}" for place in range(values.shape[1])])
    return from_anndata(AnnData(values.astype(np.float32), var=genes), Fields(None, None, values="counts"))


def test_clusters_part_cells_that_differ() -> None:
    groups = np.repeat([0, 1, 2], 60)
    profile = np.where(np.arange(30) // 10 == np.arange(3)[:, None], 100, 2)
    clusters = over_cluster(expressed(np.random.default_rng(0).poisson(profile[groups])))
    assert clusters.shape == (180,)
    assert pd.crosstab(clusters, groups).gt(0).sum(axis=1).max() == 1
    again = over_cluster(expressed(np.random.default_rng(0).poisson(profile[groups])))
    assert (clusters == again).all()


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (3, 5), (12, 1), (12, 2)])
@pytest.mark.parametrize("value", [0, 3])
def test_clusters_of_cells_that_are_few_or_alike(shape: tuple[int, int], value: int) -> None:
    assert len(over_cluster(expressed(np.full(shape, value)))) == shape[0]


@pytest.mark.parametrize("profiles", [2, 3])
def test_clusters_of_many_cells_with_few_profiles(profiles: int) -> None:
    values = np.random.default_rng(0).poisson(20, (profiles, 30))[np.arange(40) % profiles]
    clusters = over_cluster(expressed(values))
    assert pd.crosstab(clusters, np.arange(40) % profiles).gt(0).sum(axis=1).max() == 1

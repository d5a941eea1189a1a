"""The scores against scikit-learn, loops, cases by hand and, where it is installed, scib-metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

from scdgn.analysis.chapters.integration import (
    MOST_BATCHES,
    a_distance,
    alignment,
    distance_map,
    section,
    tradeoff,
)
from scdgn.analysis.chapters.integration_metrics import (
    ALL,
    BATCH,
    BIOLOGY,
    EXPRESSION,
    MOST_SCORED,
    UNTRAINED,
    draw_points,
    expression,
    graph_connectivity,
    lisi,
    pcr_comparison,
    sets_of_cells,
    silhouette_batch,
)
from scdgn.analysis.page.sections import Picture, Table, Text
from scdgn.analysis.studies.cells import TEST, TRAINING, VALIDATION, Described
from scdgn.cells.dataset import Dataset
from scdgn.cells.preprocess import Preprocessing
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import UNLABELED, Settings
from scdgn.core.networks import Model
from scdgn.model.bundle import Bundle
from scdgn.model.parts import Part
from tests.analysis.scib_reference import scores

GENES = 12


def cells_of(
    types: Sequence[int],
    batches: Sequence[int],
    latent: np.ndarray,
    parts: Sequence[str] | None = None,
    batch_names: Sequence[str] = (),
) -> Described:
    """Cells with this output of an encoder; their expression holds types and batches alike."""
    types_of, batches_of = np.array(types, dtype=np.int64), np.array(batches, dtype=np.int64)
    names = tuple(f"type {code}" for code in range(max(types_of.max(initial=0) + 1, 2)))
    batch_names = tuple(batch_names) or tuple(f"batch {code}" for code in range(batches_of.max(initial=0) + 1))
    x = np.random.default_rng(1).random((len(types_of), GENES)).astype(np.float32)
    x[np.arange(len(x)), types_of % 6] += 2
    x[np.arange(len(x)), 6 + batches_of % 6] += 2
    genes = np.array([f"g{number}" for number in range(GENES)])
    ids = np.array([f"c{number}" for number in range(len(x))])
    dataset = Dataset(x, "log", genes, ids, types_of, names, batches_of, batch_names)
    preprocessing = Preprocessing(
        genes, genes, np.zeros(GENES, np.float32), np.ones(GENES, np.float32), PreprocessSettings()
    )
    model = Model({}, torch.ones(len(names), dtype=torch.bool))  # never asked here
    bundle = Bundle((Part((model,), Settings.from_mapping({"method": "nn"}), preprocessing, batch_names),), names)
    part = np.array([TRAINING] * len(x) if parts is None else parts, dtype=str)
    probabilities = np.eye(len(names), dtype=np.float32)[types_of]
    return Described(dataset, part, bundle, types_of, probabilities, latent.astype(np.float32))


def grid(types: int, batches: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    codes = np.repeat(np.arange(types * batches), each)
    return codes // batches, codes % batches


def clouds(
    by_type: float, by_batch: float, types: int = 3, batches: int = 2, each: int = 40, seed: int = 0
) -> Described:
    """Gaussian clouds whose centres lie so far apart."""
    type_of, batch_of = grid(types, batches, each)
    draws = np.random.default_rng(seed)
    latent = draws.normal(size=(len(type_of), 4))
    latent[:, 0] += by_type * type_of
    latent[:, 1] += by_batch * batch_of
    parts = draws.choice([TRAINING, VALIDATION], len(type_of))
    parts[batch_of == 0] = TEST
    return cells_of(type_of.tolist(), batch_of.tolist(), latent, parts.tolist())


def test_types_apart_and_batches_mixed_score_one_and_batches_apart_score_low() -> None:
    good, bad = (alignment(clouds(100, by_batch)).iloc[0] for by_batch in (0, 100))
    assert good["NMI"] == good["ARI"] == 1 and good["cLISI"] == pytest.approx(1)
    assert good["Silhouette label"] > 0.95 and good["Silhouette batch"] > 0.9 and good["iLISI"] > 0.7
    assert good["PCR comparison"] > 0.95 and good["Graph connectivity"] > 0.95
    assert bad["iLISI"] == pytest.approx(0, abs=1e-6) and bad["Silhouette batch"] < 0.05
    assert bad["Graph connectivity"] == pytest.approx(0.5)  # one batch of two is the largest part of a type
    assert bad["PCR comparison"] < good["PCR comparison"]
    assert bad["cLISI"] == pytest.approx(1)


def test_the_overall_score_is_that_of_the_paper() -> None:
    row = alignment(clouds(3, 1)).iloc[0]
    biology, batch = row[list(BIOLOGY)].mean(), row[list(BATCH)].mean()
    assert row["Biology kept"] == pytest.approx(biology) and row["Batch removed"] == pytest.approx(batch)
    assert row["Overall"] == pytest.approx(0.6 * biology + 0.4 * batch)


def test_cells_that_the_model_was_not_trained_on_have_a_row_of_their_own() -> None:
    cells = clouds(3, 1)
    frame = alignment(cells)
    assert frame["Cells"].tolist() == [ALL, UNTRAINED]
    alone = alignment(cells.take(cells.part != TRAINING))
    pd.testing.assert_series_equal(frame.iloc[1].drop("Cells"), alone.iloc[0].drop("Cells"), check_names=False)
    assert alone["Cells"].tolist() == [ALL]


def test_unlabelled_cells_and_types_of_one_cell_are_left_out() -> None:
    cells = clouds(3, 1)
    labels = cells.labels.copy()
    labels[:5] = UNLABELED
    labels[cells.labels == 2] = UNLABELED
    labels[-1] = 2
    frame = alignment(replace(cells, labels=labels))
    assert frame["n"].iloc[0] == (labels >= 0).sum() - 1 and frame["Types"].iloc[0] == 2
    nothing = replace(cells, labels=np.full(len(labels), UNLABELED))
    assert alignment(nothing).empty and section({"nn": nothing}) is None and section({}) is None


def test_one_batch_has_no_score_of_batches_and_one_type_none_of_types() -> None:
    one_batch = alignment(clouds(3, 0, batches=1)).iloc[0]
    assert one_batch[list(BATCH)].isna().all() and not one_batch[list(BIOLOGY)].isna().any()
    assert np.isnan(one_batch["Overall"])
    one_type = alignment(clouds(0, 1, types=1)).iloc[0]
    assert one_type[list(BIOLOGY)].isna().all() and not one_type[list(BATCH)].isna().any()


def test_few_identical_cells_raise_nothing() -> None:
    cells = cells_of([0, 0, 1, 1], [0, 1, 0, 1], np.zeros((4, 3)))
    row = alignment(cells).iloc[0]
    assert np.isnan(row["NMI"]) and np.isnan(row["iLISI"]) and row["PCR comparison"] == 1


def test_many_cells_are_drawn_the_same_way_every_time() -> None:
    cells = clouds(3, 1)
    frame = alignment(cells, most=100)
    assert frame["n"].tolist() == [100, 100]
    pd.testing.assert_frame_equal(frame, alignment(cells, most=100))


def test_clusters_and_silhouettes_are_those_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    cells = clouds(2.5, 1)
    row = alignment(cells).iloc[0]
    clusters = KMeans(3, n_init=10, random_state=0).fit_predict(cells.latent)
    assert row["NMI"] == pytest.approx(normalized_mutual_info_score(cells.labels, clusters))
    assert row["ARI"] == pytest.approx(adjusted_rand_score(cells.labels, clusters))
    assert row["Silhouette label"] == pytest.approx((silhouette_samples(cells.latent, cells.labels).mean() + 1) / 2)


def test_silhouette_of_batches_by_a_loop_over_the_cells() -> None:
    draws = np.random.default_rng(0)
    latent = draws.normal(size=(40, 3)).astype(np.float32)
    types, batches = draws.integers(3, size=40), draws.integers(2, size=40)
    batches[types == 2] = 0  # a type in one batch has no say
    means = []
    for code in (0, 1):
        own = np.flatnonzero(types == code)
        values = []
        for cell in own:
            same = [np.linalg.norm(latent[cell] - latent[o]) for o in own if o != cell and batches[o] == batches[cell]]
            other = [np.linalg.norm(latent[cell] - latent[o]) for o in own if batches[o] != batches[cell]]
            values.append(1 - abs(np.mean(other) - np.mean(same)) / max(np.mean(other), np.mean(same)))
        means.append(np.mean(values))
    assert silhouette_batch(latent, types, batches) == pytest.approx(np.mean(means), abs=1e-5)
    assert np.isnan(silhouette_batch(latent, types, types))


def test_lisi_counts_codes_among_equally_near_neighbours() -> None:
    codes = np.array([0, 1, 0, 1, 0, 0])
    distances = np.ones((2, 4))
    neighbours = np.array([[0, 1, 2, 3], [0, 2, 4, 1]])
    # Two and two: 1 / (1/4 + 1/4). Three and one: 1 / (9/16 + 1/16).
    assert lisi(distances, neighbours, codes, 2).tolist() == pytest.approx([2, 1.6])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 1.0, 500.0]))
def test_lisi_by_a_root_finder(seed: int, scale: float) -> None:
    draws = np.random.default_rng(seed)
    distances = np.sort(draws.random((5, 30)) * scale, axis=1)
    neighbours, codes = draws.integers(40, size=(5, 30)), draws.integers(3, size=40)

    def weights(beta: float, row: np.ndarray) -> np.ndarray:
        raw = np.exp(-beta * (row - row[0]))
        return raw / raw.sum()

    def excess(beta: float, row: np.ndarray) -> float:
        share = weights(beta, row)
        return float(-np.sum(share * np.log(np.maximum(share, 1e-300))) - np.log(10))

    for row, near, found in zip(distances, neighbours, lisi(distances, neighbours, codes, 10), strict=True):
        share = weights(brentq(excess, 1e-9 / scale, 1e4 / scale, args=(row,), xtol=1e-14), row)
        sums = [share[codes[near] == code].sum() for code in range(3)]
        assert found == pytest.approx(1 / np.square(sums).sum(), rel=1e-4)


def test_graph_connectivity_by_hand() -> None:
    # Type 0: 0-1-2 hang together, 3 looks to type 1 alone. Type 1: 4 and 5 are joined from one side.
    neighbours = np.array([[1], [2], [1], [4], [0], [4]])
    assert graph_connectivity(neighbours, np.array([0, 0, 0, 0, 1, 1])) == pytest.approx((3 / 4 + 1) / 2)


def test_pcr_comparison_by_components_and_regressions() -> None:
    draws = np.random.default_rng(0)
    batches = draws.integers(3, size=80)
    before = draws.normal(size=(80, 6)) + np.eye(6)[batches] * 3
    after = draws.normal(size=(80, 4)) + np.eye(4)[batches]

    def explained(x: np.ndarray) -> float:
        fitted = PCA().fit(x)
        scores, indicators = fitted.transform(x), np.eye(3)[batches]
        shares = [
            LinearRegression().fit(indicators, scores[:, [k]]).score(indicators, scores[:, [k]])
            for k in range(x.shape[1])
        ]
        return float(np.dot(shares, fitted.explained_variance_ratio_))

    expected = (explained(before) - explained(after)) / explained(before)
    assert pcr_comparison(before, after, batches) == pytest.approx(expected)
    assert pcr_comparison(after, before, batches) == 0
    assert np.isnan(pcr_comparison(np.ones((80, 2)), after, batches))


def test_expression_removes_nothing_from_itself() -> None:
    cells = expression(clouds(3, 1))
    assert cells.latent.shape == (240, GENES)
    assert alignment(cells)["PCR comparison"].iloc[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("types", "batches"), [(3, 2), (4, 3)])
def test_scib_metrics_says_the_same(types: int, batches: int) -> None:
    metrics = pytest.importorskip("scib_metrics", reason="needs scdgn[integration]")
    cells = clouds(6, 1, types, batches)  # far enough apart for every k-means to end at the same clusters
    found = pd.DataFrame([scores(metrics, draw_points(chosen, MOST_SCORED)) for _, chosen in sets_of_cells(cells)])
    ours = alignment(cells)
    for name in ("Silhouette label", "Silhouette batch", "cLISI", "iLISI", "PCR comparison"):
        np.testing.assert_allclose(found[name].astype(float), ours[name].astype(float), atol=2e-3)
    for name in ("NMI", "ARI"):
        np.testing.assert_allclose(found[name].astype(float), ours[name].astype(float), atol=0.1)
    assert (found["Graph connectivity"] <= ours["Graph connectivity"] + 1e-6).all()


def test_batches_far_apart_are_always_told_apart_and_mixed_ones_never() -> None:
    apart, mixed = (a_distance(clouds(0, by_batch, each=100)).iloc[0] for by_batch in (100, 0))
    assert apart["All types"] == apart["Within types"] == 2
    assert mixed["All types"] < 0.4 and mixed["Within types"] < 0.4
    assert (apart["Batch"], apart["Other batch"], apart["n"], apart["Types"]) == ("batch 0", "batch 1", 300, 3)


def test_composition_alone_tells_batches_apart_but_not_within_types() -> None:
    types = [0] * 90 + [1] * 10 + [0] * 10 + [1] * 90
    batches = [0] * 100 + [1] * 100
    latent = np.random.default_rng(0).normal(size=(200, 3))
    latent[:, 0] += 50 * np.array(types)
    row = a_distance(cells_of(types, batches, latent)).iloc[0]
    # The best guess is the type: one cell of ten is wrong, 2 (1 - 2/10).
    assert row["All types"] == pytest.approx(1.6, abs=0.05)
    assert row["Within types"] < 0.5 and row["Types"] == 2


def test_too_few_cells_have_no_distance() -> None:
    types, batches = [0] * 5 + [0] * 20 + [1] * 20, [0] * 5 + [1] * 20 + [2] * 20
    frame = a_distance(cells_of(types, batches, np.random.default_rng(0).normal(size=(45, 2))))
    assert frame["All types"].isna().tolist() == [True, True, False]
    assert frame["n"].tolist() == [0, 0, 20]
    assert frame["Within types"].isna().all()  # the last two have no type in common
    assert a_distance(clouds(1, 0, batches=1)).empty


def test_of_ninety_nine_batches_the_test_batch_and_the_largest_are_shown() -> None:
    batches = [*range(99)] * 2 + [*range(50, 57)] * 3  # too few cells for distances, which are not asked for here
    parts = [TEST if code == 3 else TRAINING for code in batches]
    frame = a_distance(cells_of([0] * len(batches), batches, np.zeros((len(batches), 2)), parts))
    shown = set(frame["Batch"]) | set(frame["Other batch"])
    assert shown == {"batch 3", *(f"batch {code}" for code in range(50, 57))} and len(shown) == MOST_BATCHES


def test_a_section_for_several_methods() -> None:
    cells = clouds(3, 1)
    found = section({"scdgn": cells, "nn": clouds(2, 2)})
    assert found is not None
    tables = {item.key: item for item in found.items if isinstance(item, Table)}
    pictures = [item.key for item in found.items if isinstance(item, Picture)]
    assert list(tables) == ["alignment", "a-distance"] and pictures == ["alignment-tradeoff", "a-distance-map"]
    assert list(tables["alignment"].frame)[:5] == ["Method", "Cells", "Overall", "Biology kept", "Batch removed"]
    assert tables["alignment"].frame["Method"].tolist() == ["Expression", "scDGN", "NN"] * 2
    assert set(tables["a-distance"].frame["Between batches"]) == {"training and test"}
    # Two batches of 120: the ceiling of iLISI is 1.
    assert isinstance(found.items[0], Text) and "iLISI would be 1.00" in found.items[0].words


def test_a_single_batch_still_has_a_table() -> None:
    found = section({"nn": clouds(3, 0, batches=1)})
    assert found is not None
    assert [type(item) for item in found.items] == [Text, Table, Text]


def test_pictures_of_any_names_are_drawn() -> None:
    types, batches = grid(1, 9, 12)
    names = [f"$\\frac{{$ _<&% batch with a very long name {code}" for code in range(9)]
    cells = cells_of(types.tolist(), batches.tolist(), np.random.default_rng(0).normal(size=(108, 3)), None, names)
    distances = a_distance(cells)
    for figure in (
        distance_map({EXPRESSION: distances, "dann": distances}, names[:1]),
        tradeoff({"dann": alignment(cells)}),
    ):
        figure.draw_without_rendering()
        assert figure.axes and all(ax.has_data() for ax in figure.axes[:1])

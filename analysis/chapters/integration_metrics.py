"""The measures of Luecken et al. (2022) of how well batches are mixed and types are kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdgn.analysis.studies.cells import TRAINING, Described
from scdgn.cells.normalize import log_normalized

Codes = NDArray[np.int64]  # (cells,)

Array = NDArray[np.float32]

BIOLOGY = ("NMI", "ARI", "Silhouette label", "cLISI")

BATCH = ("Silhouette batch", "iLISI", "Graph connectivity", "PCR comparison")

BIOLOGY_WEIGHT = 0.6
"""Of the overall score; batch removal has the rest (Luecken et al. 2022)."""

MOST_SCORED = 5_000
"""Cells that are scored; of more, this many are drawn."""

PERPLEXITY, NEAREST = 30, 15
"""Of LISI, whose neighbours are three times as many (Korsunsky et al. 2019), and neighbours in the graph; both with the
cell itself."""

COMPONENTS = 50
"""Of the expression before it is encoded."""

ALL, UNTRAINED = "all labelled", "not trained on"

EXPRESSION = "expression"


def expression(cells: Described) -> Described:
    """The same cells, with principal components of their expression in the place of the encoder's output.

    Log-normalised values of the model's genes: what its batches and types look like before it does anything.
    """
    return replace(cells, latent=components_of(cells))


class Points(NamedTuple):
    """Cells to be scored: (cells, latent), (cells,), (cells,), (cells, components)."""

    latent: Array
    types: Codes
    batches: Codes
    expression: Array


def sets_of_cells(cells: Described) -> Iterator[tuple[str, Described]]:
    """All labelled cells, and those that trained nothing, by name."""
    yield ALL, cells
    untrained = cells.part != TRAINING
    if 0 < untrained.sum() < len(untrained) and (cells.labels[untrained] >= 0).any():
        yield UNTRAINED, cells.take(untrained)


def draw_points(cells: Described, most: int) -> Points:
    """Cells that are scored: `most` at most, of types with several."""
    counts = np.bincount(cells.labels[cells.labels >= 0], minlength=len(cells.cell_types))
    rows = np.flatnonzero((cells.labels >= 0) & (counts[cells.labels] > 1))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        counts = np.bincount(cells.labels[rows], minlength=len(cells.cell_types))
        rows = rows[counts[cells.labels[rows]] > 1]
    chosen = cells.take(rows)
    return Points(chosen.latent, chosen.labels, chosen.dataset.batches, components_of(chosen))


def components_of(cells: Described) -> Array:
    """Principal components of the log-normalised values of the model's genes, (cells, components)."""
    from scipy import sparse
    from sklearn.decomposition import PCA

    genes = cells.bundle.preprocessing.genes
    column_of = {name: column for column, name in enumerate(cells.dataset.genes.tolist())}
    columns = [column_of[name] for name in genes.tolist() if name in column_of]
    logs = log_normalized(cells.dataset, cells.bundle.preprocessing.settings.target_sum).matrix[:, columns]
    dense = np.asarray(logs.toarray() if sparse.issparse(logs) else logs, dtype=np.float32)
    components = min(COMPONENTS, *dense.shape)
    if not len(dense) or np.ptp(dense, axis=0).max() == 0:  # nothing to decompose
        return dense[:, :components]
    return np.asarray(PCA(components, svd_solver="randomized", random_state=0).fit_transform(dense), dtype=np.float32)


def score_points(points: Points) -> dict[str, float]:
    """All measures of some cells."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    latent, types, batches, before = points
    distances, neighbours = _neighbours(latent)
    found = dict.fromkeys((*BIOLOGY, *BATCH), np.nan)
    type_count, batch_count = len(np.unique(types)), len(np.unique(batches))
    if type_count > 1 and len(np.unique(latent, axis=0)) >= type_count:
        clusters = KMeans(type_count, n_init=10, random_state=0).fit_predict(latent)
        found["NMI"] = float(normalized_mutual_info_score(types, clusters))
        found["ARI"] = float(adjusted_rand_score(types, clusters))
        found["Silhouette label"] = (float(silhouette_score(latent, types)) + 1) / 2
        found["cLISI"] = (type_count - _median_lisi(distances, neighbours, types)) / (type_count - 1)
    if batch_count > 1:
        found["Silhouette batch"] = silhouette_batch(latent, types, batches)
        mixed = max(_median_lisi(distances, neighbours, batches) - 1, 0.0)
        found["iLISI"] = round(mixed, 9) / (batch_count - 1)  # 0, not what rounding makes of it
        found["Graph connectivity"] = graph_connectivity(neighbours[:, : NEAREST - 1], types)
        found["PCR comparison"] = pcr_comparison(before, latent, batches)
    return {name: float(value) for name, value in found.items()}


def silhouette_batch(latent: Array, types: Codes, batches: Codes) -> float:
    """1 - |silhouette of the batches| within each type, mean over its cells, then over the types in two batches."""
    from sklearn.metrics import silhouette_samples

    means = []
    for code in np.unique(types):
        rows = types == code
        if 1 < len(np.unique(batches[rows])) < rows.sum():
            means.append(np.mean(1 - np.abs(silhouette_samples(latent[rows], batches[rows]))))
    return float(np.mean(means)) if means else np.nan


def lisi(distances: NDArray[np.floating], neighbours: Codes, codes: Codes, perplexity: float) -> NDArray[np.float64]:
    """Local inverse Simpson's index of each cell (Korsunsky et al. 2019): how many codes there are around it.

    Parameters
    ----------
    distances, neighbours
        (cells, neighbours) of each cell to the nearest others, and which they are.
    codes
        (cells,) batches or types.
    perplexity
        Of the weights exp(-beta distance) of the neighbours: beta is chosen by cell, so that their entropy is the
        logarithm of it.

    Returns
    -------
    (cells,) from 1 (all of one code) to the number of codes (all equally frequent).
    """
    shifted = distances - distances.min(axis=1, keepdims=True)  # the same weights, and none of them underflows
    beta = np.ones((len(shifted), 1))
    low, high = np.zeros_like(beta), np.full_like(beta, np.inf)
    for _ in range(50):
        weights = np.exp(-beta * shifted)
        total = weights.sum(axis=1, keepdims=True)
        entropy = np.log(total) + beta * (shifted * weights).sum(axis=1, keepdims=True) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + high) / 2)
    weights /= total
    shares = [np.where(codes[neighbours] == code, weights, 0.0).sum(axis=1) for code in np.unique(codes)]
    simpson: NDArray[np.float64] = np.sum(np.square(shares), axis=0)
    return 1 / simpson


def graph_connectivity(neighbours: Codes, types: Codes) -> float:
    """Share of a type's cells in the largest connected part of the graph of its cells, mean over the types."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    cells, count = neighbours.shape
    rows = np.repeat(np.arange(cells), count)
    graph = sparse.csr_matrix((np.ones(cells * count), (rows, neighbours.ravel())), shape=(cells, cells))
    largest = []
    for code in np.unique(types):
        members = np.flatnonzero(types == code)
        _, part = connected_components(graph[members][:, members], directed=False)
        largest.append(np.bincount(part).max() / len(members))
    return float(np.mean(largest))


def pcr_comparison(before: Array, after: Array, batches: Codes) -> float:
    """Share of the variance between batches that the encoder removed, (before - after) / before; not below 0.

    Principal component regression (Buettner et al. 2019) weights by its variance how much of each component the batches
    explain. Over all components that is the variance between batches as a share of all variance, and no axis needs to
    be found.
    """
    explained = [np.nan_to_num(between(values, batches)) for values in (before, after)]
    return max(0.0, (explained[0] - explained[1]) / explained[0]) if explained[0] > 0 else np.nan


def between(values: Array, groups: NDArray[Any]) -> float:
    """Share of the variance that lies between the means of groups: 0 where they agree, 1 where nothing else differs.

    Of values (cells, dimensions) and groups (cells,), names or codes; NaN where there are no two groups, or no
    variance.
    """
    names, codes = np.unique(groups, return_inverse=True)
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    total = float((centred**2).sum())
    if len(names) < 2 or total == 0:
        return float("nan")
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, centred)
    return float((sums**2 / np.bincount(codes)[:, None]).sum() / total)


def _neighbours(latent: Array) -> tuple[NDArray[np.float64], Codes]:
    """Distances to the nearest other cells and which they are, (cells, neighbours)."""
    from sklearn.neighbors import NearestNeighbors

    count = min(3 * PERPLEXITY, len(latent)) - 1  # without the cell itself
    distances, neighbours = NearestNeighbors(n_neighbors=count).fit(latent).kneighbors()
    return distances, neighbours


def _median_lisi(distances: NDArray[np.float64], neighbours: Codes, codes: Codes) -> float:
    perplexity = (neighbours.shape[1] + 1) // 3
    return float(np.median(lisi(distances, neighbours, codes, perplexity))) if perplexity > 1 else np.nan


def counts_of(points: Points) -> dict[str, int]:
    """Cells, types and batches that were scored."""
    return {
        "n": len(points.types),
        "Types": len(np.unique(points.types)),
        "Batches": len(np.unique(points.batches)),
    }


def overall_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Means of the scores that there are, and of these the overall score."""
    biology, batch = (_mean([scores[name] for name in names]) for names in (BIOLOGY, BATCH))
    overall = BIOLOGY_WEIGHT * biology + (1 - BIOLOGY_WEIGHT) * batch
    return {"Biology kept": biology, "Batch removed": batch, "Overall": overall}


def _mean(values: Sequence[float]) -> float:
    """The means of biology and batch removal, and their weighted mean."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else np.nan

"""The scores of alignment by the package scib-metrics: what the built-in ones are held to, where it is installed.

They differ in that graph connectivity is of directed edges, that neighbours are approximate (pynndescent), and that the
k-means behind NMI and ARI starts from other draws.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from scdgn.analysis.chapters.integration_metrics import Points

NEIGHBOURS, NEAREST = 90, 15
"""Of a cell, itself among them, for LISI and for the graph: as `scib_metrics.benchmark.Benchmarker` has them."""


def scores(metrics: Any, points: Points) -> dict[str, float]:
    """The scores by name; those of batches only where there are two."""
    latent, types, batches, expression = points
    nearest = import_module("scib_metrics.nearest_neighbors")
    neighbours = nearest.pynndescent(latent, n_neighbors=min(NEIGHBOURS, len(latent) - 1), random_state=0)
    graph = neighbours.subset_neighbors(n=min(NEAREST, neighbours.n_neighbors))
    found = {"Graph connectivity": metrics.graph_connectivity(graph, types)}
    if len(np.unique(types)) > 1:
        clusters = metrics.nmi_ari_cluster_labels_kmeans(latent, types)
        found |= {
            "NMI": clusters["nmi"],
            "ARI": clusters["ari"],
            "Silhouette label": metrics.silhouette_label(latent, types),
            "cLISI": metrics.clisi_knn(neighbours, types),
        }
    if len(np.unique(batches)) > 1:
        found |= {
            "iLISI": metrics.ilisi_knn(neighbours, batches),
            "PCR comparison": metrics.pcr_comparison(expression, latent, batches, categorical=True),
        }
        if any(1 < len(np.unique(batches[types == code])) < np.sum(types == code) for code in np.unique(types)):
            found["Silhouette batch"] = metrics.silhouette_batch(latent, types, batches)
    return {name: float(value) if math.isfinite(value) else np.nan for name, value in found.items()}

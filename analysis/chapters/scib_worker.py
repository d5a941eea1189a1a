"""Runs by its path in a Python that has scib-metrics: arrays from .npz files, their scores to one JSON file.

Not a part of the package that anything imports: the Python that runs it need not have this package.
"""

from __future__ import annotations

import json
import math
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS, NEAREST = 90, 15
"""Of a cell, itself among them, for LISI and for the graph: as `scib_metrics.benchmark.Benchmarker` has them."""


def main(target: str, *sources: str) -> None:
    """Score the arrays in each of `sources`, write to `target`."""
    metrics = import_module("scib_metrics")
    found = []
    for source in sources:
        with np.load(source, allow_pickle=False) as arrays:
            values = scores(metrics, **arrays)
        found.append({name: float(value) if math.isfinite(value) else None for name, value in values.items()})
    document = {"version": metadata.version("scib-metrics"), "scores": found}
    Path(target).write_text(json.dumps(document), encoding="utf-8")


def scores(
    metrics: Any,
    latent: NDArray[np.float32],
    expression: NDArray[np.float32],
    types: NDArray[np.int64],
    batches: NDArray[np.int64],
) -> dict[str, float]:
    """The scores by name; those of batches only where there are two."""
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
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

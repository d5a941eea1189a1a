"""A model, and cells of a batch that lies far from its training cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from anndata import AnnData

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit

TYPES = 4


def cells(batches: dict[str, float], each: int = 120, seed: int = 0) -> AnnData:
    """Log-normalised values of four types; a batch by name is shifted by so much in half of the genes."""
    draws = np.random.default_rng(seed)
    parts, names = [], []
    for name, shift in batches.items():
        types = np.arange(each) % TYPES
        x = draws.normal(1.5, 0.4, (each, 24))
        for place in range(4):
            x[np.arange(each), types * 4 + place] += 1.2
        x[:, :12] += shift
        parts.append(np.maximum(x, 0))
        names += [name] * each
    adata = AnnData(np.concatenate(parts).astype(np.float32))
    adata.var_names = [f"g{number}" for number in range(24)]
    adata.obs_names = [f"c{number}" for number in range(len(names))]
    adata.obs["celltype"] = np.array([f"t{code}" for code in np.tile(np.arange(each) % TYPES, len(batches))])
    adata.obs["tech"] = np.array(names)
    return adata


def trained(corrects: bool = False) -> Bundle:
    """Two parts, one of standardised input."""
    dataset = from_anndata(cells({"a": -0.1, "b": 0.0, "c": 0.1}), Fields("celltype", "tech"))
    settings = Settings.from_mapping({"method": "nn", "hidden": 12, "latent": 6, "epochs": 40, "lr": 5e-3})
    rows = np.arange(len(dataset))
    one, two = (
        fit(dataset, rows, settings, PreprocessSettings(scaling=scaling), [0, 1], device="cpu")
        for scaling in ("none", "standard")
    )
    fields = {"labels_key": "celltype", "batch_key": "tech", "values": "log"}
    provenance = {**one.provenance, "fields": fields}
    return replace(one, parts=one.parts + two.parts, corrects=corrects, provenance=provenance)


def query() -> AnnData:
    """Two batches far away in different directions, and one that is not."""
    return cells({"far": 1.3, "near": 0.0, "other": -1.0}, seed=7)

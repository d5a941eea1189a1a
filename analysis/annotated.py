"""Pictures of annotated cells, drawn by scanpy: where labels lie, and which clusters hold them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure

from scdgn.cells.dataset import Dataset
from scdgn.cells.normalize import log_normalized
from scdgn.errors import DataError, OutputError
from scdgn.files import new_file
from scdgn.model.annotate import CLUSTER, CONFIDENCE, LABEL, LATENT, clusters, in_natural_order
from scdgn.threads import same_threads

if TYPE_CHECKING:
    from anndata import AnnData

MOST_PICTURED = 10_000
"""Cells that are drawn; of more, so many are chosen at random."""

FEWEST_CELLS = 10
"""Below which there is nothing to see."""

NEIGHBOURS = 15
"""Of the UMAP: scanpy's default."""

RESOLUTION = 1.0
"""Of Leiden: scanpy's default. Majority voting wants more and smaller clusters, which no picture could show."""


def draw(annotated: Path, cells: Iterable[Dataset], over_clustering: str | None, folder: Path) -> list[Path]:
    """Write umap.png and clusters.png of a file that `scdgn predict` wrote into a folder, which is made where it is not
    there.

    Parameters
    ----------
    annotated, cells
        The file, and its cells in their order, some at a time.
    over_clustering
        Column of obs with clusters; made from the cells' expression by default.

    Raises
    ------
    DataError, OutputError
        If there are fewer than FEWEST_CELLS, or the folder cannot be written to.
    """
    adata = sample(annotated, cells)
    if over_clustering is None:
        add_clusters(adata)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error
    figures = {"umap.png": umap(adata), "clusters.png": labels_by_cluster(adata, over_clustering or CLUSTER)}
    for name, figure in figures.items():
        with new_file(folder / name) as place:
            figure.savefig(place, dpi=150, bbox_inches="tight")
    return [folder / name for name in figures]


def sample(annotated: Path, cells: Iterable[Dataset], most: int = MOST_PICTURED) -> AnnData:
    """Some cells of an annotated file, the same ones every time: log-normalised values, obs, `X_scDGN` and colours.

    Raises
    ------
    DataError
        If there are fewer than FEWEST_CELLS.
    """
    import anndata
    import h5py

    with h5py.File(annotated) as file:
        obs, latent, colours = (
            anndata.io.read_elem(file[key]) for key in ("obs", f"obsm/{LATENT}", f"uns/{LABEL}_colors")
        )
    if len(obs) < FEWEST_CELLS:
        raise DataError(f"there are {len(obs)} cells in {annotated}, too few for --plots: leave it out")
    rows = np.sort(np.random.default_rng(0).choice(len(obs), min(most, len(obs)), replace=False))
    done, parts = 0, []
    for chunk in cells:
        own = rows[(rows >= done) & (rows < done + len(chunk))] - done
        parts.append(sp.csr_matrix(log_normalized(chunk.take(own)).matrix))
        done += len(chunk)
    x = sp.vstack(parts, format="csr")
    return anndata.AnnData(x, obs.iloc[rows], obsm={LATENT: latent[rows]}, uns={f"{LABEL}_colors": colours})


def add_clusters(adata: AnnData) -> None:
    """Cluster cells by their log-normalised expression, not by what the model makes of it; into obs."""
    adata.obs[CLUSTER] = in_natural_order(clusters(adata.X, RESOLUTION))


def umap(adata: AnnData) -> Figure:
    """A UMAP of the encoder's output, by label and by confidence; its places are added as obsm["X_umap"] if there are
    none.
    """
    import scanpy as sc

    if "X_umap" not in adata.obsm:
        with same_threads(), _without_noise():
            neighbours = min(NEIGHBOURS, adata.n_obs - 1)
            sc.pp.neighbors(adata, neighbours, use_rep=LATENT, random_state=0, key_added=LATENT)
            sc.tl.umap(adata, random_state=0, neighbors_key=LATENT)
    titles = ["label", "confidence (probability of the label)"]
    with _without_noise():
        return _closed(sc.pl.umap(adata, color=[LABEL, CONFIDENCE], title=titles, ncols=1, show=False, return_fig=True))


def labels_by_cluster(adata: AnnData, by: str) -> Figure:
    """A dot for each label in each cluster, by a column of obs: its share of the cluster's cells, and the mean
    confidence of these.
    """
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    labels = adata.obs[LABEL].cat.remove_unused_categories()
    # As scanpy has it, a "gene" for each label, "expressed" by the cells of that label as much as the model is sure.
    sure = (adata.obs[CONFIDENCE].to_numpy(), (np.arange(adata.n_obs), labels.cat.codes.to_numpy()))
    x = sp.csr_matrix(sure, shape=(adata.n_obs, len(labels.cat.categories)))
    groups = in_natural_order(adata.obs[by].astype(str))
    told = AnnData(
        x, obs=pd.DataFrame({"cluster": groups}, index=adata.obs_names), var=pd.DataFrame(index=labels.cat.categories)
    )
    with _without_noise():
        plot = sc.pl.dotplot(
            told, list(told.var_names), groupby="cluster", mean_only_expressed=True, vmin=0, vmax=1, return_fig=True,
            size_title="share of cluster (%)", colorbar_title="mean confidence",
        )  # fmt: skip
        plot.make_figure()
    return _closed(plot.fig)


@contextmanager
def _without_noise() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        warnings.filterwarnings("ignore", message="Changing the sparsity structure")  # where cells are identical
        yield


def _closed(figure: Any) -> Figure:
    """The figure, no longer pyplot's, which would keep it for ever and show it a second time in a notebook."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    assert isinstance(figure, Figure)
    return figure

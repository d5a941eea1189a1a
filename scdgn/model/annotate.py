"""What a model says of cells, and how an AnnData holds it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

import scdgn
from scdgn.cells.dataset import Dataset
from scdgn.cells.normalize import log_normalized
from scdgn.cells.values import Matrix
from scdgn.core.correction import Correction
from scdgn.model.at_once import portions
from scdgn.model.attribution import Explanation
from scdgn.model.bundle import Bundle
from scdgn.model.palettes import type_colours
from scdgn.model.query import Agreement
from scdgn.threads import same_threads

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LABEL, CONFIDENCE, VOTED, CLUSTER = "scdgn_label", "scdgn_confidence", "scdgn_majority_voting", "scdgn_over_clustering"
UNKNOWN, CORRECTED = "scdgn_unknown", "scdgn_corrected"
LATENT, PROBABILITY = "X_scDGN", "scdgn_probability"
MADE_BY, GENES = "scdgn", "scdgn_genes"  # in uns


class Predictions(NamedTuple):
    """What a model says of some cells, (cells,): codes of the most probable types, their probabilities, and whether the
    cell is of a type never trained (of none where the bundle has no threshold); (cells, latent) the encoder's output,
    and (cells, types) all probabilities.
    """

    codes: NDArray[np.int64]
    confidence: NDArray[np.float32]
    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    unknown: NDArray[np.bool_]


def predictions(
    dataset: Dataset, bundle: Bundle, correction: Correction | None = None, explanation: Explanation | None = None
) -> Predictions:
    """Predict cells at once: all of them where a cell's input depends on the others, else `cells_at_once` at most.

    The correction is taken away from their batches; the explanation looks at the cells and their labels.

    Raises
    ------
    DataError
        If too few of the model's genes are in the data.
    """
    x = bundle.input(dataset, correction)
    latent, probabilities, strangeness = bundle.all_outputs(x)
    best = probabilities.argmax(axis=1)
    if explanation is not None:
        explanation.add(x.leading, best)
    confidence = probabilities[np.arange(len(best)), best]
    return Predictions(best, confidence, latent, probabilities, bundle.unknown(strangeness))


def annotate(
    adata: AnnData,
    dataset: Dataset,
    bundle: Bundle,
    correct: bool | None = None,
    agreement: Agreement | None = None,
    explanation: Explanation | None = None,
    top_k: int | None = None,
) -> Correction | None:
    """Write the predictions of a bundle into an AnnData.

    Parameters
    ----------
    adata
        Gets obs["scdgn_label"], obs["scdgn_confidence"] (probability of the label), obs["scdgn_unknown"] (whether the
        cell is of a type never trained; of a bundle with a threshold only), obs["scdgn_corrected"] (whether its batch
        was corrected, so that what is said of the cell depends on the others; where that was to be done only),
        obsm["X_scDGN"] (the encoder's output) and obsm["scdgn_probability"] (a table with one column per cell type, in
        the order of the categories of the labels; a slash in a name becomes an underscore; sparse, without names, with
        `top_k`), and what `notes` has in uns.
    dataset
        The same cells, in the same order.
    bundle
        The model.
    correct
        Whether to correct the batches of the dataset (`scdgn.core.correction`); by default as the bundle has it.
    agreement, explanation
        Look at the cells.
    top_k
        Probabilities of a cell to keep, the highest ones (`highest`); all by default.

    Returns
    -------
    What was done to the batches; None where nothing was to be corrected.

    Raises
    ------
    DataError, SettingsError
        If too few of the model's genes are in the data, or the model cannot correct.
    """
    import pandas as pd

    correction = bundle.correction(dataset, lambda: portions(dataset, bundle), correct)
    if agreement is not None:
        for chunk in portions(dataset, bundle):
            agreement.add(chunk)
    parts: list[Predictions] = []
    probabilities: list[Any] = []
    for chunk in portions(dataset, bundle):
        part = predictions(chunk, bundle, correction, explanation)
        probabilities.append(part.probabilities if top_k is None else highest(part.probabilities, top_k))
        parts.append(part._replace(probabilities=part.probabilities[:0]))
    whole = parts[0] if len(parts) == 1 else Predictions(*map(np.concatenate, zip(*parts, strict=True)))
    adata.obs[LABEL] = pd.Categorical.from_codes(whole.codes, categories=pd.Index(list(bundle.cell_types)))
    adata.obs[CONFIDENCE] = whole.confidence
    unknown = None if bundle.calibration.threshold is None else whole.unknown
    corrected = None if correction is None else correction.corrected(dataset.batches)
    for name, column in ((UNKNOWN, unknown), (CORRECTED, corrected)):
        if column is not None:
            adata.obs[name] = column
        elif name in adata.obs:  # of another model
            del adata.obs[name]
    adata.uns.pop(GENES, None)  # of another model
    adata.uns.update(notes(bundle, correction, explanation))
    adata.obsm[LATENT] = whole.latent
    adata.obsm[PROBABILITY] = (
        pd.DataFrame(np.concatenate(probabilities), index=adata.obs_names, columns=column_names(bundle.cell_types))
        if top_k is None
        else sp.vstack(probabilities, format="csr")
    )
    return correction


def highest(probabilities: NDArray[np.float32], most: int) -> sp.csr_matrix:
    """The highest probabilities of each cell, as many of all cells, of types by their places.

    Parameters
    ----------
    probabilities
        (cells, types).
    most
        To keep of a cell, from 1; all where there are fewer types. Of equal ones the first types stay.

    Returns
    -------
    (cells, types) float32, the others not stored.
    """
    cells, types = probabilities.shape
    kept = min(most, types)
    places = np.sort(np.argsort(-probabilities, axis=1, kind="stable")[:, :kept], axis=1)
    ends = np.arange(0, cells * kept + 1, kept)
    values = np.take_along_axis(probabilities, places, axis=1)
    return sp.csr_matrix((values.ravel(), places.ravel().astype(np.int32), ends), shape=(cells, types))


def notes(bundle: Bundle, correction: Correction | None, explanation: Explanation | None) -> dict[str, Any]:
    """What `adata.uns` is told of labels, by key.

    Returns
    -------
    `scdgn` (`made_by`), `scdgn_label_colors` (`type_colours`) and, where there is an explanation, `scdgn_genes` (its
    table).
    """
    told = {MADE_BY: made_by(bundle, correction), f"{LABEL}_colors": type_colours(bundle.cell_types)}
    return told if explanation is None else {**told, GENES: explanation.table()}


def made_by(bundle: Bundle, correction: Correction | None) -> dict[str, Any]:
    """Which model labelled cells, and how, as plain values for `adata.uns`."""
    calibration = bundle.calibration
    told = {
        "scdgn": scdgn.__version__,
        "model_data": bundle.provenance.get("data"),
        "model_created": bundle.provenance.get("created"),
        "models": len(bundle.models),
        "methods": sorted({part.settings.method for part in bundle.parts}),
        "cell_types": list(bundle.cell_types),
        "threshold": calibration.threshold,
        "temperature": calibration.temperature,
        "transductive": bundle.transductive or (correction is not None and correction.transductive),
    }
    return {key: value for key, value in told.items() if value is not None}


def vote(adata: AnnData, dataset: Dataset, over_clustering: NDArray[np.object_] | None = None) -> None:
    """Give every cell the most frequent predicted label of its cluster, as CellTypist does.

    An AnnData annotated by `annotate` gets obs["scdgn_over_clustering"] and obs["scdgn_majority_voting"], with its
    colours. The clusters are given, (cells,), or made from the expression of the same cells: not from the model's own
    representation, whose mistakes they are to mend.
    """
    import pandas as pd

    adata.obs[CLUSTER] = in_natural_order(over_cluster(dataset) if over_clustering is None else over_clustering)
    # Ties go to the label that comes first in the model's order of types.
    votes = adata.obs.groupby(CLUSTER, observed=True)[LABEL].agg(
        lambda labels: labels.value_counts(sort=False).idxmax()
    )
    winners = adata.obs[CLUSTER].map(dict(votes)).astype(str)
    types = list(adata.obs[LABEL].cat.categories)
    adata.obs[VOTED] = pd.Categorical(winners, categories=types)
    adata.uns[f"{VOTED}_colors"] = type_colours(types)


def in_natural_order(names: Iterable[str]) -> pd.Categorical[str]:
    """Names of clusters, as categories in the order in which people count: 10 after 9."""
    import pandas as pd
    from natsort import natsorted

    found = list(names)
    return pd.Categorical(found, categories=natsorted(set(found)))


def column_names(cell_types: Sequence[str]) -> list[str]:
    """The types as different names that an .h5ad file allows for columns: without a slash, and not `_index`."""
    names: list[str] = []
    for cell_type in cell_types:
        name = cell_type.replace("/", "_")
        while name == "_index" or name in names or (name != cell_type and name in cell_types):
            name += "_"
        names.append(name)
    return names


def over_cluster(dataset: Dataset) -> NDArray[np.object_]:
    """Many small clusters of cells by expression; (cells,) names.

    The resolutions are CellTypist's (Dominguez Conde et al. 2022).
    """
    limits = ((5_000, 5), (20_000, 10), (40_000, 15), (100_000, 20), (200_000, 25))
    resolution = next((value for limit, value in limits if len(dataset) < limit), 30)
    return clusters(log_normalized(dataset).matrix, resolution)


def clusters(x: Matrix, resolution: float) -> NDArray[np.object_]:
    """Clusters by log-normalised expression, (cells, genes): PCA, neighbour graph, Leiden; (cells,) names."""
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(x)
    components = min(50, cells.n_obs - 1, cells.n_vars - 1)
    spread = cells.X.max(axis=0) - cells.X.min(axis=0)  # (genes,)
    if components < 1 or spread.max() == 0:  # PCA fails where all cells are the same
        return np.full(cells.n_obs, "0", dtype=object)
    sc.pp.pca(cells, n_comps=components)
    with same_threads(), warnings.catch_warnings():
        # scanpy's own doing, where cells are identical, as those without counts
        warnings.filterwarnings("ignore", message="Changing the sparsity structure")
        sc.pp.neighbors(cells, n_neighbors=min(10, cells.n_obs))
    sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=0)
    return np.asarray(cells.obs["leiden"].astype(str), dtype=object)

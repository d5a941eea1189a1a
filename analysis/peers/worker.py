"""Peers at work: run as a script, in any Python that has the peer's package; it knows nothing of the rest of scdgn.

Usage: python worker.py PEER FOLDER. FOLDER/cells.npz holds the cells: `indptr`, `indices`, `log` (and `counts`, where
they are known) of a CSR matrix of cells by genes, the `batches` of the cells, and for the unit of number N the rows
`train_N`, their types `labels_N` and the rows `query_N`, which have none. Each line of standard input asks for a fit:
`{"unit": N, "settings": {...}, "seed": 0, "device": "cpu"}`. Each line of standard output answers: `{"seconds": 1.5}`,
with FOLDER/answer.npz (`probabilities` of the query's cells, a column for each of `types`), or `{"error": "..."}`. The
first line says that the peer is ready (`{"versions": {...}}`) or what it lacks (`{"missing": "package"}`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Probabilities = NDArray[np.float64]
    Fit = Callable[["Task", Mapping[str, Any]], Probabilities]

CLIP = 10.0
"""Largest absolute value after standardisation, as scanpy's tutorials and CellTypist have it."""


@dataclass(frozen=True)
class Task:
    """What a peer is given for one fit.

    Attributes
    ----------
    train, query
        (cells, genes) log1p of counts per 10,000, CSR.
    labels
        (training cells,) codes 0, 1, ... of the types that occur among them: two or more.
    counts
        The same of both, training cells first, as counts; None where they are not known.
    batches
        Of both, training cells first.
    seed, device
        For methods that draw, and for those that train on a GPU.
    """

    train: sp.csr_matrix
    query: sp.csr_matrix
    labels: NDArray[np.int64]
    counts: sp.csr_matrix | None
    batches: NDArray[np.int64]
    seed: int
    device: str


def logistic(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=settings["C"], class_weight=_none(settings["class_weight"]), max_iter=1000)
    train, query = task.train, task.query
    if settings["scaling"] == "standard":
        train, query = _standardized(task.train, task.train, task.query)
    model.fit(train, task.labels)
    return _array(model.predict_proba(query))


def harmony(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """Nearest neighbours among Harmony-corrected principal components (Korsunsky et al. 2019) of all cells."""
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.decomposition import PCA

    genes = _variable_genes(task.train, settings["n_top_genes"])
    both = vstack([task.train[:, genes], task.query[:, genes]]).tocsr()
    (scaled,) = _standardized(both, both)
    components = min(settings["components"], min(scaled.shape) - 1)
    space = PCA(components, random_state=task.seed).fit_transform(scaled)
    if len(np.unique(task.batches)) > 1:
        space = _corrected(space, task, settings["theta"])
    return _nearest(space, task, settings["neighbours"], settings["weights"])


def celltypist(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """CellTypist (Domínguez Conde et al. 2022) trained on the cells, without majority voting."""
    import numpy as np
    from anndata import AnnData

    package: Any = import_module("celltypist")
    names = np.array([f"gene{column}" for column in range(task.train.shape[1])])
    # The check wants sums of 10,000 over all genes, which log-normalised input need not have.
    try:
        model = package.train(
            task.train.toarray(),
            labels=[_name(code) for code in task.labels],
            genes=names,
            check_expression=False,
            C=settings["C"],
            feature_selection=settings["feature_selection"],
            top_genes=min(300, task.train.shape[1] - 1),
        )
    except TypeError as error:
        if "multi_class" not in str(error):
            raise
        raise ValueError(
            f"CellTypist {version('celltypist')} does not go with scikit-learn {version('scikit-learn')}: give it a "
            "Python with an older one (--python celltypist=...)"
        ) from error
    query = AnnData(task.query)
    query.var_names = names
    scores = package.annotate(query, model=model).decision_matrix  # a column per type, in the order of the names
    odds = 1 / (1 + np.exp(-_array(scores.to_numpy())))
    return _array(odds / odds.sum(axis=1, keepdims=True).clip(1e-300))


def xgboost(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """Gradient-boosted trees (Chen and Guestrin 2016)."""
    package: Any = import_module("xgboost")
    own = {key: value for key, value in settings.items() if key != "class_weight"}
    model = package.XGBClassifier(**own, tree_method="hist", random_state=task.seed)
    weights = None
    if settings["class_weight"] == "balanced":
        from sklearn.utils.class_weight import compute_sample_weight

        weights = compute_sample_weight("balanced", task.labels)
    model.fit(task.train, task.labels, sample_weight=weights)
    return _array(model.predict_proba(task.query))


def castle(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """CaSTLe (Lieberman et al. 2018): genes by mean and by mutual information, in bins, to boosted trees.

    As published but for three things: genes are chosen by the training cells alone (the published code asks that the
    query express them too); of two genes correlated above 0.9 one is dropped, as the paper says (in the published code
    that step drops nothing); and all training cells train (there 80 % of them, the others for a check).
    """
    import numpy as np

    package: Any = import_module("xgboost")
    # The bins are for logarithms to base 2.
    train, query = (matrix.toarray() / np.log(2) for matrix in (task.train, task.query))
    expressed = np.flatnonzero((train > 0).sum(axis=0) > 10)
    if not len(expressed):
        raise ValueError("no gene is expressed in more than 10 training cells")
    count = settings["genes"]
    by_mean = expressed[np.argsort(-train[:, expressed].mean(axis=0), kind="stable")[:count]]
    shared = np.array([_normalized_information(_binned(train[:, gene]), task.labels) for gene in expressed])
    by_information = expressed[np.argsort(-shared, kind="stable")[:count]]
    genes = np.array(list(dict.fromkeys([*by_mean.tolist(), *by_information.tolist()])))
    genes = genes[_uncorrelated(train[:, genes], 0.9)]
    bins = [np.unique(_binned(train[:, gene]))[1:] for gene in genes]  # as in R, the first level is the base

    def dummies(x: Any) -> Any:
        columns = [_binned(x[:, gene]) == level for gene, levels in zip(genes, bins, strict=True) for level in levels]
        return np.column_stack(columns).astype(np.float32)

    if not any(len(levels) for levels in bins):
        raise ValueError("no gene falls into two of CaSTLe's bins")
    model = package.XGBClassifier(
        n_estimators=settings["rounds"],
        learning_rate=settings["eta"],
        max_depth=settings["max_depth"],
        min_child_weight=settings["min_child_weight"],
        gamma=0.001,
        tree_method="hist",
        random_state=task.seed,
    )
    model.fit(dummies(train), task.labels)
    return _array(model.predict_proba(dummies(query)))


def scvi(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """Nearest neighbours in the latent space of scVI (Lopez et al. 2018), trained on all cells without their types."""
    model, _ = _trained_scvi(task)
    return _nearest(model.get_latent_representation(), task, settings["neighbours"], "uniform")


def scanvi(task: Task, settings: Mapping[str, Any]) -> Probabilities:
    """scANVI (Xu et al. 2021) on all cells, those of the query without a type."""
    package: Any = import_module("scvi")
    base, adata = _trained_scvi(task)

    def trained(**how: Any) -> Any:
        model = package.model.SCANVI.from_scvi_model(base, unlabeled_category=UNKNOWN)
        model.train(**_trainer(task.device), **how)
        return model

    try:
        model = trained()
    except ValueError as error:  # in the first epoch: the last mini-batch has one cell, of which no variance is known
        if "more than 1 value per channel" not in str(error):
            raise
        model = trained(datasplitter_kwargs={"drop_last": True})
    query = adata[len(task.labels) :].copy()
    soft = model.predict(query, soft=True)
    return _array(soft[sorted(soft.columns)].to_numpy())


UNKNOWN = "unknown"

METHODS: dict[str, tuple[Fit, tuple[str, ...]]] = {
    "logistic": (logistic, ("sklearn",)),
    "harmony": (harmony, ("sklearn", "scanpy", "harmonypy")),
    "celltypist": (celltypist, ("anndata", "celltypist")),
    "xgboost": (xgboost, ("sklearn", "xgboost")),
    "castle": (castle, ("sklearn", "xgboost")),
    "scvi": (scvi, ("sklearn", "scanpy", "scvi")),
    "scanvi": (scanvi, ("scanpy", "scvi")),
}
"""By name: the function, and the packages that it needs."""

DISTRIBUTIONS = {"sklearn": "scikit-learn", "scvi": "scvi-tools"}


def main(peer: str, folder: Path) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    # The modules beside this one are no packages of the peer's.
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

    def say(**words: Any) -> None:
        print(json.dumps(words), file=answers, flush=True)

    fit, packages = METHODS[peer]
    for package in ("numpy", "scipy", *packages):
        try:
            import_module(package)
        except ImportError as error:
            say(missing=DISTRIBUTIONS.get(package, package), error=str(error))
            return
    cells = _read(folder / "cells.npz")
    say(versions={name: version(name) for name in (DISTRIBUTIONS.get(package, package) for package in packages)})
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        try:
            _answer(cells, job, fit, folder)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}".partition("\n")[0])
        else:
            say(seconds=round(time.perf_counter() - start, 3))


def _read(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _answer(cells: Mapping[str, Any], job: Mapping[str, Any], fit: Fit, folder: Path) -> None:
    import numpy as np
    import scipy.sparse as sp

    def matrix(values: str) -> sp.csr_matrix:
        shape = (len(cells["indptr"]) - 1, int(cells["genes"]))
        return sp.csr_matrix((cells[values], cells["indices"], cells["indptr"]), shape=shape)

    train, labels, query = (cells[f"{name}_{job['unit']}"] for name in ("train", "labels", "query"))
    types, codes = np.unique(labels, return_inverse=True)
    if len(types) == 1:
        probabilities = np.ones((len(query), 1))
    else:
        log, rows = matrix("log"), np.concatenate([train, query])
        counts = matrix("counts")[rows] if "counts" in cells else None
        task = Task(log[train], log[query], codes, counts, cells["batches"][rows], job["seed"], job["device"])
        probabilities = fit(task, job["settings"])
    np.savez(folder / "answer.npz", probabilities=probabilities, types=types)


def _array(values: Any) -> Probabilities:
    import numpy as np

    return np.asarray(values, dtype=np.float64)


def _none(word: str) -> str | None:
    return None if word == "none" else word


def _name(code: int) -> str:
    """A type's code as text that sorts as the codes do."""
    return f"{code:06d}"


def _standardized(reference: sp.csr_matrix, *matrices: sp.csr_matrix) -> list[Any]:
    """Dense, with mean 0 and deviation 1 in the reference, clipped."""
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(reference.toarray())
    return [np.clip(scaler.transform(matrix.toarray()), -CLIP, CLIP) for matrix in matrices]


def _variable_genes(x: sp.csr_matrix, count: int) -> NDArray[np.int64]:
    """The most variable genes, as scanpy finds them by default; all where there are no more."""
    import numpy as np

    if count >= x.shape[1]:
        return np.arange(x.shape[1])
    import scanpy
    from anndata import AnnData

    found = scanpy.pp.highly_variable_genes(AnnData(x), n_top_genes=count, inplace=False)
    return np.flatnonzero(found["highly_variable"].to_numpy())


def _corrected(space: Any, task: Task, theta: float) -> Any:
    import pandas as pd

    package: Any = import_module("harmonypy")
    batches = pd.DataFrame({"batch": [str(code) for code in task.batches]})
    cores = int(os.environ.get("OMP_NUM_THREADS", 0))  # it asks nobody else; 0 is all
    return package.run_harmony(
        space, batches, ["batch"], theta=theta, random_state=task.seed, verbose=False, ncores=cores
    ).Z_corr


def _nearest(space: Any, task: Task, neighbours: int, weights: str) -> Probabilities:
    """Types of the training cells nearest to the query's; `space` holds both, training cells first."""
    from sklearn.neighbors import KNeighborsClassifier

    cells = len(task.labels)
    model = KNeighborsClassifier(min(neighbours, cells), weights=weights).fit(space[:cells], task.labels)
    return _array(model.predict_proba(space[cells:]))


def _binned(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """CaSTLe's bins: none, up to 1, up to 6, more."""
    import numpy as np

    return np.searchsorted([0.0, 1.0, 6.0], values, side="left")


def _normalized_information(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mutual information of two codings against the mean of their entropies; 0 where neither varies."""
    import numpy as np

    joint = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(joint, (one, other), 1 / len(one))

    def entropy(share: Any) -> float:
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())

    single = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))
    return 2 * (single - entropy(joint)) / single if single else 0.0


def _uncorrelated(x: NDArray[np.floating], most: float) -> NDArray[np.bool_]:
    """Columns that correlate with no column kept before them by as much."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):  # of constant columns
        correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(x, rowvar=False)))
    kept = np.zeros(x.shape[1], dtype=bool)
    for column in range(x.shape[1]):
        kept[column] = not (correlation[column, kept] >= most).any()
    return kept


def _trained_scvi(task: Task) -> tuple[Any, Any]:
    """scVI with its defaults on the 2,000 most variable genes of all cells, batches given; and the cells."""
    from anndata import AnnData

    package: Any = import_module("scvi")
    if task.counts is None:
        raise ValueError("scVI models counts, and the data are log-normalised")
    package.settings.seed = task.seed
    genes = _variable_genes(task.train, 2000)
    adata = AnnData(task.counts[:, genes].copy())
    adata.obs["batch"] = [str(code) for code in task.batches]
    unknown = [UNKNOWN] * task.query.shape[0]
    adata.obs["label"] = [*(_name(code) for code in task.labels), *unknown]
    package.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="label")
    model = package.model.SCVI(adata)
    model.train(**_trainer(task.device))
    return model, adata


def _trainer(device: str) -> dict[str, Any]:
    kind, _, index = device.partition(":")
    where = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[kind]
    return {
        "accelerator": where,
        "devices": [int(index)] if index else "auto",
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": False,
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

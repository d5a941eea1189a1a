"""What people use instead, at work: run as a script, in any Python that has the packages; it knows nothing of scdgn.

    python instead_worker.py WHAT FOLDER TRIALS NARROWEST WIDEST

WHAT is `optuna` (a loop over a plain torch module), `ray` (the same trainings, a process per trial), `autotune`
(scVI-tools' own, of scANVI) or `celltypist`. FOLDER/cells.npz holds the cells as `scdgn.analysis.peers.worker` has
them, with `folds`, the number of units that are left out to be scored, and of each the types of the query's cells,
`truth_N` (-1: not scored). The unit `last` trains on all training cells and predicts the test cells.

Each line of standard output is a trial that ended, `{"score": 0.7, "at": 1700000000.0}`; the last one is `{"settings":
{...}, "versions": {...}}`, when FOLDER/answer.npy holds the types of the test cells by the winner's model.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import scipy.sparse as sp

Settings = Mapping[str, Any]
Say = Callable[..., None]

BATCH = 256
CLIP = 10.0


class Cells:
    """Units of cells, of which the last one ends with the test cells; and the widths that are searched."""

    def __init__(self, folder: Path, hidden: tuple[int, int] = (0, 0)) -> None:
        self.hidden = hidden
        with np.load(folder / "cells.npz", allow_pickle=False) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.folder = folder
        self.folds = int(self.arrays["folds"])
        self.last = int(self.arrays["last"])

    def matrix(self, values: str) -> sp.csr_matrix:
        """`log` or `counts` of all cells."""
        arrays = self.arrays
        shape = (len(arrays["indptr"]) - 1, int(arrays["genes"]))
        return sp.csr_matrix((arrays[values], arrays["indices"], arrays["indptr"]), shape=shape)

    def unit(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows trained on, their types, and the rows left out."""
        return tuple(self.arrays[f"{name}_{number}"] for name in ("train", "labels", "query"))

    def score(self, number: int, predicted: np.ndarray) -> float:
        """Macro-F1 over the types of a fold."""
        from sklearn.metrics import f1_score

        truth = self.arrays[f"truth_{number}"]
        scored = truth >= 0
        present = np.unique(truth[scored])
        return float(f1_score(truth[scored], predicted[scored], labels=present, average="macro", zero_division=0))

    def mean_score(self, fit: Callable[[Cells, int, Settings], np.ndarray], settings: Settings) -> float:
        """Of the folds, each trained and predicted."""
        return float(np.mean([self.score(number, fit(self, number, settings)) for number in range(self.folds)]))


def perceptron(cells: Cells, number: int, settings: Settings) -> np.ndarray:
    """Train a plain network as tutorials do, and predict the cells left out: their types."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    train, labels, query = cells.unit(number)
    log = cells.matrix("log")
    x, unseen = (torch.from_numpy(log[rows].toarray()).float() for rows in (train, query))
    mean, std = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x, unseen = (((one - mean) / std).clamp(-CLIP, CLIP) for one in (x, unseen))
    types, codes = np.unique(labels, return_inverse=True)
    model = nn.Sequential(
        nn.Linear(x.shape[1], settings["hidden"]),
        nn.ReLU(),
        nn.Dropout(settings["dropout"]),
        nn.Linear(settings["hidden"], settings["latent"]),
        nn.ReLU(),
        nn.Linear(settings["latent"], len(types)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    for _ in range(settings["epochs"]):
        for batch, wanted in DataLoader(TensorDataset(x, torch.from_numpy(codes)), BATCH, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), wanted).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return types[model(unseen).argmax(dim=1).numpy()]


def optuna_loop(cells: Cells, trials: int, say: Say) -> tuple[Settings, np.ndarray]:
    """TPE over the plain network: ranges as in scdgn's default space."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        settings = {
            "hidden": trial.suggest_int("hidden", *cells.hidden, log=True),
            "latent": trial.suggest_int("latent", 16, 128, log=True),
            "epochs": trial.suggest_int("epochs", 8, 120, log=True),
            "lr": trial.suggest_float("lr", 1e-4, 5e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 10, log=True),
            "dropout": trial.suggest_float("dropout", 0, 0.8),
        }
        return cells.mean_score(perceptron, settings)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, trials, callbacks=[lambda _, trial: say(score=trial.value, at=time())])
    return study.best_params, perceptron(cells, cells.last, study.best_params)


def ray_tune(cells: Cells, trials: int, say: Say) -> tuple[Settings, np.ndarray]:
    """The same by Ray Tune: a process and a core for every trial."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    folder = cells.folder

    def trainable(settings: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        tune.report({"score": Cells(folder).mean_score(perceptron, settings)})

    space = {
        "hidden": tune.lograndint(cells.hidden[0], cells.hidden[1] + 1),
        "latent": tune.lograndint(16, 129),
        "epochs": tune.lograndint(8, 121),
        "lr": tune.loguniform(1e-4, 5e-3),
        "weight_decay": tune.loguniform(1e-3, 10),
        "dropout": tune.uniform(0, 0.8),
    }
    searcher = OptunaSearch(metric="score", mode="max", seed=0)
    config = tune.TuneConfig(search_alg=searcher, num_samples=trials)
    run = tune.RunConfig(storage_path=str(folder / "ray"), verbose=0)
    found = tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run).fit()
    told(found, "score", say)
    best = found.get_best_result("score", "max").config
    return best, perceptron(cells, cells.last, best)


def autotune(cells: Cells, trials: int, say: Say) -> tuple[Settings, np.ndarray]:
    """scANVI by scVI-tools' autotune, defaults of its scheduler (ASHA, 100 epochs) and searcher (hyperopt).

    It is given all training cells and chooses by random cells of the same batches: a batch left out has no place in it.
    The winner is trained once more, with the test cells among those without a type.
    """
    import pandas as pd
    import scvi
    import scvi.autotune
    from anndata import AnnData
    from ray import tune

    scvi.settings.seed = 0
    number = cells.last
    train, labels, query = cells.unit(number)

    def prepared(rows: np.ndarray, names: list[str]) -> AnnData:
        adata = AnnData(cells.matrix("counts")[rows].astype(np.float32))
        adata.obs["batch"] = pd.Categorical([str(code) for code in cells.arrays["batches"][rows]])
        adata.obs["label"] = pd.Categorical(names)
        scvi.model.SCANVI.setup_anndata(adata, "label", "unknown", batch_key="batch")
        return adata

    known = [str(code) for code in labels]
    space = {
        "model_params": {
            "n_hidden": tune.lograndint(cells.hidden[0], cells.hidden[1] + 1),
            "n_latent": tune.choice([10, 20, 30]),
            "n_layers": tune.choice([1, 2]),
        },
        "train_params": {"max_epochs": 100, "plan_kwargs": {"lr": tune.loguniform(1e-4, 1e-2)}},
    }
    found = scvi.autotune.run_autotune(
        scvi.model.SCANVI, prepared(train, known), "validation_f1_score", "max", space, trials, seed=0,
        resources={"cpu": 1}, logging_dir=str(cells.folder / "autotune"),
    ).result_grid  # fmt: skip
    told(found, "validation_f1_score", say)
    best = found.get_best_result("validation_f1_score", "max").config
    model = scvi.model.SCANVI(
        prepared(np.concatenate([train, query]), known + ["unknown"] * len(query)), **best["model_params"]
    )
    model.train(**best["train_params"], accelerator="cpu", enable_progress_bar=False, logger=False)
    return best, model.predict()[len(train) :].astype(np.int64)


def told(found: Any, metric: str, say: Say) -> None:
    """Tell the trials of Ray Tune, which ended when they reported last."""
    for result in found:
        say(score=float(result.metrics[metric]), at=float(result.metrics["timestamp"]))


def celltypist(cells: Cells, trials: int, say: Say) -> tuple[Settings, np.ndarray]:
    """CellTypist's own training, which has no search: its defaults, once."""
    import celltypist as package
    from anndata import AnnData

    names = np.array([f"gene{column}" for column in range(int(cells.arrays["genes"]))])

    def fit(cells: Cells, number: int, settings: Settings) -> np.ndarray:
        train, labels, query = cells.unit(number)
        log = cells.matrix("log")
        model = package.train(
            log[train].toarray(), labels=[str(code) for code in labels], genes=names, check_expression=False
        )
        unseen = AnnData(log[query])
        unseen.var_names = names
        return package.annotate(unseen, model=model).predicted_labels["predicted_labels"].to_numpy().astype(np.int64)

    say(score=cells.mean_score(fit, {}), at=time())
    return {}, fit(cells, cells.last, {})


WHAT: dict[str, tuple[Callable[[Cells, int, Say], tuple[Settings, np.ndarray]], tuple[str, ...]]] = {
    "optuna": (optuna_loop, ("optuna", "torch")),
    "ray": (ray_tune, ("ray", "optuna", "torch")),
    "autotune": (autotune, ("scvi-tools", "ray", "torch")),
    "celltypist": (celltypist, ("celltypist", "scikit-learn")),
}
"""By name: the function, and the packages whose versions are told."""


def main(what: str, folder: Path, trials: int, hidden: tuple[int, int]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**words: Any) -> None:
        print(json.dumps(words), file=answers, flush=True)

    search, packages = WHAT[what]
    versions = {name: version(name) for name in packages}
    settings, predicted = search(Cells(folder, hidden), trials, say)
    np.save(folder / "answer.npy", predicted)
    say(settings=dict(settings), versions=versions)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), (int(sys.argv[4]), int(sys.argv[5])))

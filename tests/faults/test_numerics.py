"""Numbers that break a training: data at their extremes, rates that explode, memory that is too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Method, Settings
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.search.folder import StudyFolder
from tests.faults import KEYS, SETTINGS, done, run, tally, tiny

METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")
Change = Callable[[AnnData], AnnData]


def cells_without_counts(adata: AnnData) -> AnnData:
    """In every batch, a type and the test batch alike."""
    x = adata.X.tolil()
    x[::3] = 0
    adata.X = x.tocsr()
    return adata


def constant_genes(adata: AnnData) -> AnnData:
    """Some without a count, some with the same in all cells, one huge."""
    x = adata.X.toarray()
    x[:, :10] = 0
    x[:, 10:20] = 7
    x[:, 20] = 1e6
    adata.X = sp.csr_matrix(x)
    return adata


def types_of_one_cell(adata: AnnData) -> AnnData:
    """Two, in different batches."""
    labels = adata.obs["celltype"].astype(str).to_numpy().copy()
    for batch, name in (("a", "rare"), ("b", "rarer")):
        labels[np.flatnonzero(adata.obs["tech"] == batch)[0]] = name
    adata.obs["celltype"] = labels
    return adata


def ten_thousand_to_one(adata: AnnData) -> AnnData:
    """A type has one cell for every 10,000 of another."""
    common = adata[adata.obs["celltype"] != "T"]
    one = adata[adata.obs["celltype"] == "T"][:1]
    labels = ["B"] * 10_000 + ["T"]
    batches = [*common.obs["tech"].astype(str).to_numpy()[np.arange(10_000) % common.n_obs], one.obs["tech"].iloc[0]]
    x = sp.vstack([common.X[np.arange(10_000) % common.n_obs], one.X]).tocsr()
    obs = pd.DataFrame({"celltype": labels, "tech": batches}, index=[f"cell {number}" for number in range(10_001)])
    return AnnData(x, obs, adata.var)


EXTREMES: dict[str, Change] = {
    "cells without counts": cells_without_counts,
    "constant genes": constant_genes,
    "types of one cell": types_of_one_cell,
    "10,000 to 1": ten_thousand_to_one,
}


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("scaling", ["none", "standard", "standard-per-batch"])
@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES)
def test_extremes_train_to_finite_models(change: Change, scaling: str, weights: str) -> None:
    dataset = from_anndata(change(tiny(cells={"a": 60, "b": 60, "c": 60})), Fields("celltype", "tech"))
    preprocess = PreprocessSettings.from_mapping({"n_top_genes": 30, "scaling": scaling})
    for method in METHODS:
        settings = Settings.from_mapping({"method": method, **SETTINGS, "class_weights": weights})
        bundle = fit(dataset, np.arange(len(dataset)), settings, preprocess, [0, 1])
        probabilities = bundle.probabilities(bundle.input(dataset))
        assert probabilities.shape == (len(dataset), len(dataset.cell_types))
        assert np.isfinite(probabilities).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        tally["extremes trained"] += 1


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES)
def test_extremes_are_searched_to_the_end(change: Change, tmp_path: Path) -> None:
    """Folds, final seeds, calibration, bundle and the table of scores."""
    adata = change(tiny(cells={"a": 60, "b": 60, "c": 60, "d": 40}))
    write_h5ad(adata, tmp_path / "cells.h5ad")
    searched(tmp_path)
    Bundle.load(StudyFolder(tmp_path / "s" / "x").model)
    done("predict", tmp_path / "cells.h5ad", "--model", tmp_path / "s/x/model", "-o", tmp_path / "out.h5ad", "-q")
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert out.n_obs == adata.n_obs and np.isfinite(out.obs["scdgn_confidence"]).all()
    tally["extremes searched"] += 1


def words_of(place: Path, *words: str) -> list[str]:
    return [
        *("search", str(place / "cells.h5ad"), *KEYS, "--test-batch", "d", "--name", "x", "--no-track", "-q"),
        *("--studies", str(place / "s"), "--trials", "3", "--confirm", "1", "--final-seeds", "2", "--pack", "3"),
        "--no-portfolio",
        *("--set", "hidden=8", "--set", "latent=4", "--set", "domain_code=4", "--set", "epochs=4", *words),
    ]


def searched(place: Path, *words: str) -> None:
    ran = run(*words_of(place, *words))
    assert ran.status == 0, ran.err
    assert "Traceback" not in ran.err


def test_rates_that_explode_fail_their_trials_alone(tmp_path: Path) -> None:
    write_h5ad(tiny(cells={"a": 60, "b": 60, "c": 60, "d": 40}), tmp_path / "cells.h5ad")
    queue = "".join(f'[[trial]]\nlr = {lr}\noptimizer = "sgd"\n' for lr in (1e-3, 1e30, 1e-2, 1e25))
    (tmp_path / "queue.toml").write_text(queue)
    space = ("--set", "lr={low=1e-4, high=1e30, log=true}", "--set", "optimizer=sgd", "--set", "clip_norm=0")
    words = words_of(tmp_path, *space, "--trials", "5", "--pack", "5", "--enqueue", str(tmp_path / "queue.toml"))
    ran = run(*words, "--sampler", "RandomSampler")
    assert ran.status == 0, ran.err
    shown = json.loads(run("status", "x", "--studies", tmp_path / "s", "--json").out)
    states = {trial["settings"]["lr"]: (trial["state"], trial["reason"]) for trial in shown["trials"]}
    for lr, (state, reason) in states.items():
        if lr >= 1e25:
            assert state == "fail" and "not finite" in reason
    assert {states[1e-3][0], states[1e-2][0]} <= {"complete", "pruned"}
    tally["trials that exploded"] += sum(state == "fail" for state, _ in states.values())


def test_nothing_but_explosions_is_said_and_exports_nothing(tmp_path: Path) -> None:
    write_h5ad(tiny(cells={"a": 60, "b": 60, "c": 60, "d": 40}), tmp_path / "cells.h5ad")
    ran = run(*words_of(tmp_path, "--set", "lr=1e30", "--set", "optimizer=sgd", "--set", "clip_norm=0"))
    assert ran.status == 2 and "none of the 3 trials completed; the most frequent reason: " in ran.err
    assert "not finite" in ran.err and "Traceback" not in ran.err
    assert not StudyFolder(tmp_path / "s" / "x").model.exists()


LIMITED = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from scdgn import cli
import scdgn.search.trials.objective as objective
import scdgn.search.commands, scdgn.search.studies, scdgn.search.stages.pipeline, scdgn.model.scdgn
room = int(sys.argv.pop(1)) * 1024 * 1024
objective.free_memory = lambda _: None  # the estimate would halve the pack before anything has failed
sizes, train = [], objective.train
def counted(members, *rest):
    sizes.append(len(members))
    if len(sizes) == 1:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = used + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return train(members, *rest)
objective.train = counted
try:
    cli.main()
finally:
    print(json.dumps(sizes))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_that_is_too_small_halves_the_pack_and_changes_no_score(tmp_path: Path) -> None:
    """An address space that takes no more is what a full machine is to an allocator."""
    write_h5ad(tiny(cells={"a": 60, "b": 60, "c": 60, "d": 40}, genes=2000), tmp_path / "cells.h5ad")
    wide = (
        "--set",
        "hidden=[500, 600]",
        "--set",
        "gene_selection=variable",
        "--set",
        "epochs=2",
        "--pruner",
        "NopPruner",
    )

    def scores(studies: str, room: int) -> tuple[list[int], dict[int, float]]:
        words = words_of(tmp_path, *wide, "--trials", "4", "--pack", "4", "--studies", str(tmp_path / studies))
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", LIMITED, str(room), *words], capture_output=True, text=True, env=variables
        )
        assert ran.returncode == 0, ran.stderr
        shown = json.loads(run("status", "x", "--studies", tmp_path / studies, "--json").out)
        assert {trial["state"] for trial in shown["trials"]} == {"complete"}
        return json.loads(ran.stdout.splitlines()[-1]), {trial["number"]: trial["value"] for trial in shown["trials"]}

    sizes, whole = scores("whole", 1_000_000)
    assert sizes[0] == 16 and sizes.count(8) == 0
    halved_sizes, halved = scores("halved", 150)
    assert halved_sizes[:2] == [16, 8], "nothing was out of memory"
    assert halved == pytest.approx(whole, abs=0.02)
    tally["packs halved by a real limit"] += 1

"""What is equal to the last bit, and what within a tolerance: docs/reliability.md states it, each law has its test.

Other laws have theirs where their subject is: resumption in test_resume.py and faults/test_killed.py, Ray against this
process in test_cluster.py, packs in double precision in test_pack.py, sparse against dense cells in test_fitting.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Method, Settings
from scdgn.core.pack.members import Cells, Member
from scdgn.core.training import train
from scdgn.model.bundle_files import WEIGHTS
from scdgn.model.fitting import fit
from scdgn.search.folder import StudyFolder
from scdgn.search.study.documents import from_document
from scdgn.search.study.study import read_records
from tests.faults import KEYS, done, tiny

METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")

ACROSS_PACKS = 1e-4
"""Largest difference of a probability between a model in a pack and the same model alone, or in another pack."""

ACROSS_DEVICES = 1e-2
"""The same between a CPU and a GPU, in float32: their sums have other orders, and training amplifies the difference."""


@cache
def cells() -> Dataset:
    return from_anndata(tiny(), Fields("celltype", "tech"))


def words(place: Path, studies: str) -> list[str]:
    return [
        *("search", str(place / "cells.h5ad"), *KEYS, "--test-batch", "d", "--name", "x", "--no-track", "-q"),
        *("--studies", str(place / studies), "--trials", "8", "--confirm", "1", "--final-seeds", "2", "--pack", "2"),
        *("--set", "hidden={low=8, high=16}", "--set", "latent=4", "--set", "domain_code=4", "--set", "epochs=4"),
    ]


def digest(folder: StudyFolder) -> str:
    """Of the trials with all their numbers, and of the model."""
    trials = [
        replace(record, seconds=0.0, started=0.0, ended=0.0)
        for record in read_records(folder, from_document(folder.read_settings()))
    ]
    content = json.dumps([trial.to_json() for trial in trials], sort_keys=True).encode()
    return hashlib.sha256(content + (folder.model / WEIGHTS).read_bytes()).hexdigest()


def test_the_same_command_in_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    """The same seed, device, threads, versions and packs; whatever the order of Python's sets."""
    write_h5ad(tiny(cells={"a": 60, "b": 60, "c": 60, "d": 40}), tmp_path / "cells.h5ad")
    for number in ("1", "2"):
        variables = {**os.environ, "PYTHONHASHSEED": number, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "scdgn.cli", *words(tmp_path, number)]
        subprocess.run(command, env=variables, check=True, timeout=300, capture_output=True)
    one, two = (digest(StudyFolder(tmp_path / number / "x")) for number in ("1", "2"))
    assert one == two
    done(*words(tmp_path, "3"), "--seed", "1")
    assert digest(StudyFolder(tmp_path / "3" / "x")) != one


@pytest.mark.parametrize("method", METHODS)
def test_another_pack_changes_a_probability_by_rounding_alone(method: Method) -> None:
    """Alone, among equals, and padded among wider ones."""
    settings = Settings.from_mapping({"method": method, "hidden": 12, "latent": 6, "domain_code": 6, "epochs": 15})
    x = torch.from_numpy(np.log1p(cells().x.toarray()).astype(np.float32))  # (cells, genes)
    labels, domains = (torch.from_numpy(codes) for codes in (cells().labels, cells().batches))
    member = Member(settings, Cells(x, labels, domains, types=3, domain_count=3), seed=0)
    equal, wider = replace(member, seed=1), replace(member, seed=2, settings=replace(settings, hidden=17))
    found = []
    for pack in ([member], [member, equal], [wider, member, equal, replace(wider, seed=3)]):
        model = train(pack, groups=[range(len(pack))])[pack.index(member)].model
        assert model is not None
        found.append(model.probabilities(x))
    for one in found[1:]:
        assert torch.allclose(found[0], one, rtol=0, atol=ACROSS_PACKS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here to compare with")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(method: Method) -> None:
    settings = Settings.from_mapping({"method": method, "hidden": 12, "latent": 6, "domain_code": 6, "epochs": 15})
    preprocess = PreprocessSettings(n_top_genes=30)
    found = []
    for device in ("cpu", "cuda"):
        bundle = fit(cells(), np.arange(140), settings, preprocess, [0], device=device, precision="float32")
        found.append(bundle.probabilities(bundle.input(cells())))
    assert np.abs(found[0] - found[1]).max() < ACROSS_DEVICES

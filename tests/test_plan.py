"""The plan of a search: the same of a file that is read in part, but for what is estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from scdgn.cells import h5ad
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad, read_values
from scdgn.cells.sources import Source, read
from scdgn.errors import SettingsError
from scdgn.search import plan as module
from scdgn.search.plan import plan
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.cells import seal
from tests.faults import tiny

CELLS = {"a": 60, "b": 60, "c": 80, "d": 40}
SAMPLE = 40
SPACE = {"hidden": 8, "latent": 4, "epochs": 2, "gene_selection": "variable"}


@pytest.fixture
def settings(tmp_path: Path) -> StudySettings:
    file = tmp_path / "cells.h5ad"
    tiny(cells=CELLS).write_h5ad(file)
    source = Source(data=file, fields=Fields("celltype", "tech"), test_batch="d")
    return StudySettings(
        name="planned", source=source, method="nn", trials=1, space=SPACE, confirm=0, final_seeds=1,
        ensemble=False, correct="never", studies=tmp_path / "studies", device="cpu",
    )  # fmt: skip


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file is large."""
    monkeypatch.setattr(h5ad, "LARGE", 0)
    monkeypatch.setattr(module, "SAMPLE", SAMPLE)


def test_some_cells_of_a_large_file_are_read_and_the_others_empty(settings: StudySettings, large: None) -> None:
    assert settings.source.data is not None
    rows = np.array([0, 7, 8, 239])
    everything, some = (read_values(settings.source.data, None, each).X for each in (None, lambda _: rows))
    expected = sp.lil_matrix(everything.shape, dtype=np.float32)
    expected[rows] = everything[rows]
    assert (some != expected.tocsr()).nnz == 0 and some.dtype == everything.dtype
    assert read_h5ad(settings.source.data).n_obs == some.shape[0]


def test_every_batch_has_its_share_of_the_sample(settings: StudySettings, large: None) -> None:
    cells = read(settings.source, SAMPLE)
    assert np.bincount(cells.dataset.batches[cells.dataset.filled]).tolist() == [10, 10, 10, 10]
    assert read(settings.source).dataset.filled.tolist() == list(range(sum(CELLS.values())))


def test_some_of_the_cells_keep_their_folds(settings: StudySettings) -> None:
    sealed = seal(read(settings.source), 3, adapt=False)
    rows = np.arange(0, len(sealed.dataset), 3)
    few = sealed.among(rows, np.arange(5))
    assert few.test is not None and len(few.test) == 5
    assert [fold.name for fold in few.folds] == [fold.name for fold in sealed.folds]
    for own, fold in zip(few.folds, sealed.folds, strict=True):
        for name in ("train", "held_out", "scored"):
            assert rows[getattr(own, name)].tolist() == np.intersect1d(rows, getattr(fold, name)).tolist()
    alone = np.flatnonzero(sealed.dataset.batches != 1)
    assert [fold.name for fold in sealed.among(alone, alone[:0]).folds] == ["a", "c"]


def test_a_plan_from_a_part_tells_what_one_from_all_tells(
    settings: StudySettings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (whole,) = plan(settings)
    request.getfixturevalue("large")
    (part,) = plan(settings)
    estimates = ("  memory:", "  time:")
    (values,) = [line for line in part if line.startswith("values:")]
    assert "those of 30 cells" in values
    assert [line for line in part if line != values and not line.startswith(estimates)] == [
        line for line in whole if not line.startswith(estimates)
    ]


def test_a_study_that_exists_is_compared_by_all_its_cells(settings: StudySettings, large: None) -> None:
    run(settings, track=False)
    assert settings.source.data is not None
    assert not any(line.startswith("values:") for line in plan(settings)[0])
    adata = read_h5ad(settings.source.data)
    adata.X[239, 0] += 1
    adata.write_h5ad(settings.source.data)
    with pytest.raises(SettingsError, match="the test cells are not the same"):
        plan(settings)
    assert any(line.startswith("values:") for line in plan(settings, fresh=True)[0])
    assert any(line.startswith("values:") for line in plan(replace(settings, name="another"))[0])

"""Studies and models that earlier versions wrote open, go on, report and predict as they did."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scdgn.search.folder import StudyFolder
from tests.faults import done, tiny

STUDIES = Path(__file__).parent / "studies"
"""Written by d9d9710, the last commit before the folders: 2 trials of nn on the cells below, and its labels of them."""


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STUDIES / "before", tmp_path / "studies" / "old")
    tiny(cells={"a": 40, "b": 40, "c": 40, "d": 30}).write_h5ad("cells.h5ad")
    return StudyFolder(tmp_path / "studies" / "old")


def test_its_model_predicts_what_it_did(before: StudyFolder) -> None:
    done("predict", "cells.h5ad", "--model", before.model, "-o", "labels.csv", "-q")
    found, told = (pd.read_csv(path, index_col=0) for path in ("labels.csv", STUDIES / "before_labels.csv"))
    assert found["label"].tolist() == told["label"].tolist()
    assert np.allclose(found["confidence"], told["confidence"], atol=1e-5)


def test_it_is_looked_at_and_reported(before: StudyFolder) -> None:
    assert "2 complete" in done("status", "old").out
    assert "0.124" in done("compare", "old").out
    done("report", "old", "--no-cells", "-q")
    assert (before.path / "report.html").exists()


def test_it_goes_on(before: StudyFolder) -> None:
    done("search", "--name", "old", "--trials", "3", "--no-track", "-q")
    told = done("status", "old").out
    assert "3 complete" in told and "done" in told
    assert before.predictions(2).exists()

"""A study read from MLflow is the study that its folder holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from mlflow import MlflowClient

from scdgn.analysis.chapters.tables import table2, table2_wide
from scdgn.analysis.report import track
from scdgn.analysis.studies.results import Results, grouped, read
from scdgn.analysis.studies.tracked import read_tracked
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.search.folder import StudyFolder
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.tracking import store
from scdgn.search.tracking import tracker as tracking
from scdgn.search.tracking.store import Store, TrackingError, configure
from scdgn.search.tracking.tracker import sync
from tests import find_parent_run
from tests.faults import SETTINGS, tiny

# MLflow's own tables use what SQLAlchemy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

BATCH = "10x v2/3'+"
"""A name that no metric may have."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A search with folds, pruned trials and two methods, and the write-up's ten, tracked after they were run."""
    before, here = dict(os.environ), Path.cwd()
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    place = tmp_path_factory.mktemp("tracked")
    os.chdir(place)
    cells = {BATCH: 50, "b": 50, "c": 40, "test": 40}
    tiny(cells=cells, cell_types=("B", "NK/T", "T")).write_h5ad(place / "cells.h5ad")
    settings = StudySettings(
        name="group",
        source=Source(data=place / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="test"),
        method="scdgn", trials=8, confirm=0, final_seeds=2, studies=place / "studies", pack=2,
        space={**SETTINGS, "epochs": 16, "schedule": "constant", "batch_size": 32, "lr": [0.000001, 0.02]},
        pruner_options={"n_startup_trials": 1},
    )  # fmt: skip
    run(replace(settings, name="group/scdgn"), track=False)
    run(replace(settings, name="group/nn", method="nn", trials=1), track=False)
    run(replace(settings, name="group/best-of-10/scdgn", protocol="seed-best-of-10"), track=False)
    for name in ("scdgn", "nn", "best-of-10/scdgn"):
        sync(StudyFolder(place / "studies" / "group" / name))
    yield place / "studies"
    os.chdir(here)
    store._applied.clear()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def found(studies: Path) -> dict[str, Results]:
    return {one.name: one for one in read_tracked(configure(studies), ["group"])}


def test_everything_is_as_the_folder_has_it(studies: Path, found: dict[str, Results]) -> None:
    assert set(found) == {"group/scdgn", "group/nn", "group/best-of-10/scdgn"}
    for name, one in found.items():
        own = read(StudyFolder(studies.joinpath(*name.split("/"))))
        assert one.folder is None
        assert (one.settings, one.made, one.summary) == (own.settings, own.made, own.summary)
        assert one.records == own.records
    states = {record.state for record in found["group/scdgn"].records}
    assert states == {"complete", "pruned"}  # or this tests less than it means to
    fold = found["group/scdgn"].winner.folds
    assert BATCH in fold and "NK/T" in fold[BATCH].recall


def test_tables_from_mlflow_are_those_from_the_folders(studies: Path, found: dict[str, Results]) -> None:
    own = [read(StudyFolder(studies.joinpath(*name.split("/")))) for name in found]
    here, there = table2(grouped(own)), table2(grouped(list(found.values())))
    assert len(here) == 6 and here["best_of_ten"].notna().all()
    pd.testing.assert_frame_equal(here, there)
    pd.testing.assert_frame_equal(table2_wide(here), table2_wide(there))


def test_a_study_is_found_by_its_own_name(studies: Path) -> None:
    assert [one.name for one in read_tracked(configure(studies), ["group/nn", "group/nn"])] == ["group/nn"]


@pytest.mark.usefixtures("found")  # before this changes what there is to find
def test_the_study_that_was_begun_last_is_taken(studies: Path) -> None:
    folder = StudyFolder(studies / "group" / "nn")
    later = StudyFolder(studies / "group" / "later")
    shutil.copytree(folder.path, later.path)
    document = later.read_settings()
    document["record"] |= {"id": "later", "created": "2999-01-01T00:00:00+00:00"}
    later.write_settings(document)
    sync(later)
    shutil.rmtree(later.path)
    (one,) = read_tracked(configure(studies), ["group/nn"])
    assert one.made["id"] == "later"


def test_a_report_is_laid_beside_the_run_of_the_study_that_is_selected(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("a page")
    (tmp_path / "figures").mkdir()
    for name in ("confusion.png", "confusion.svg"):
        (tmp_path / "figures" / name).write_bytes(b"a picture")
    results = [read(StudyFolder(studies / "group" / name)) for name in ("scdgn", "nn")]
    best = grouped(results)[0].best
    said: list[str] = []
    track(page, results, said.append)
    assert said == [f"beside the run of {best.name} in MLflow too"]
    assert best.folder is not None
    run_id = find_parent_run(best.folder)
    assert run_id is not None
    client = MlflowClient(configure(studies).uri)
    assert "report.html" in {file.path for file in client.list_artifacts(run_id)}
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/confusion.png"]

    said.clear()
    untracked = Store(f"sqlite:///{tmp_path}/mlflow.db", "scdgn", None)
    with patch.object(tracking, "configure", lambda _: untracked):
        track(page, results, said.append)
    assert said == [] and not Path(tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    track(page, results, said.append)
    (told,) = said
    assert told.startswith("the report is not in MLflow: the MLflow store http://127.0.0.1:9 cannot be used")


def test_what_is_not_there_is_said(studies: Path, tmp_path: Path) -> None:
    place = configure(studies)
    with pytest.raises(TrackingError, match=r"no study 'grup'.*did you mean group"):
        read_tracked(place, ["grup"])
    with pytest.raises(TrackingError, match="no experiment 'other'"):
        read_tracked(replace(place, experiment="other"), ["group"])
    with pytest.raises(TrackingError, match="there is no MLflow store"):
        read_tracked(Store(f"sqlite:///{tmp_path}/mlflow.db", "scdgn", None), ["group"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot be used"):
        read_tracked(Store("http://127.0.0.1:9", "scdgn", None), ["group"])


def test_a_study_that_is_not_finished_is_left_out(studies: Path) -> None:
    folder = StudyFolder(studies / "group" / "nn")
    cut = StudyFolder(studies / "group" / "cut")
    shutil.copytree(folder.path, cut.path)
    document = cut.read_settings()
    document["record"]["id"] = document["study"]["name"] = "group/cut"
    cut.write_settings(document)
    cut.summary.unlink()
    sync(cut)
    shutil.rmtree(cut.path)
    with pytest.raises(TrackingError, match="none of group/cut is finished in MLflow"):
        read_tracked(configure(studies), ["group/cut"])
    assert [one.name for one in read_tracked(configure(studies), ["group/cut", "group/scdgn"])] == ["group/scdgn"]

"""The paper's comparison runs from a file to its tables, and goes on where it was cut off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scdgn.analysis.chapters.tables import table2, table2_wide
from scdgn.analysis.reproduction import paper_sources, plan, reproduce, split_sources
from scdgn.analysis.studies.results import grouped, read_all
from scdgn.cells.datasets import DATASETS, PANCREAS_CELLS
from scdgn.cells.fields import Fields
from scdgn.cells.simulate import Simulation, simulate
from scdgn.cells.sources import Source
from scdgn.errors import DataError, SettingsError
from scdgn.search.folder import StudyFolder
from scdgn.search.shown.watching import Watcher
from scdgn.search.study.settings import StudySettings
from scdgn.search.summary import AnySummary
from tests.faults import SETTINGS

SETS = [f"pancreas{number}" for number in range(1, 7)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of the form of the human pancreas collection: its technologies, one more, and its types."""
    blocks = DATASETS["pancreas1"].blocks
    assert blocks is not None
    types = tuple(sorted({name for kept in blocks.keep.values() for name in kept}))
    cells = dict.fromkeys((*PANCREAS_CELLS, "smarter"), 80)
    file = tmp_path_factory.mktemp("collection") / "human_pancreas.h5ad"
    simulate(Simulation(cells=cells, cell_types=types, genes=40, depth=500.0)).write_h5ad(file)
    return file


def small(studies: Path, **changes: Any) -> StudySettings:
    """A budget of seconds."""
    settings: dict[str, Any] = {"trials": 1, "confirm": 0, "final_seeds": 2, "max_folds": 2, "space": SETTINGS}
    return StudySettings(name="again", studies=studies, **{**settings, **changes})


class Trained(Watcher):
    """Which trials were run."""

    def __init__(self) -> None:
        self.studies: list[str] = []
        self.trials = 0

    def done(self, folder: StudyFolder, summary: AnySummary) -> None:
        self.studies.append(summary.study)

    def ended(self, record: Any) -> None:
        self.trials += 1


@pytest.fixture(scope="module")
def done(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All six sets, and the write-up's protocol on the first."""
    studies = tmp_path_factory.mktemp("reproduction") / "studies"
    sources = paper_sources("pancreas", collection)
    assert reproduce(small(studies), sources, track=False) == [f"again/{name}" for name in SETS]
    assert reproduce(small(studies), {"pancreas1": sources["pancreas1"]}, track=False, best_of_ten=True)
    return studies


def test_the_six_sets_come_out_beside_the_published_numbers(done: Path) -> None:
    results, left = read_all(done, ["again"])
    assert left == [] and len(results) == 6 * 3 + 2
    groups = grouped(results)
    assert [group.name for group in groups] == [f"again/{name}" for name in SETS]
    table = table2(groups)
    assert table["test"].unique().tolist() == ["fluidigmc1, 80 cells"]
    assert table["mutual_information"].between(0.3, 1.6).all()
    wide = table2_wide(table)
    assert wide["data set"].tolist()[-1] == "mean of 6"
    assert wide["NN, published"].tolist() == pytest.approx([0.72, 0.891, 0.545, 0.927, 0.928, 0.944, 0.826], abs=5e-4)
    assert wide[["NN", "DANN", "scDGN"]].notna().all(axis=None)
    accuracy = table[(table["metric"] == "accuracy") & (table["data_set"] == "again/pancreas1")]
    assert accuracy["best_of_ten"].notna().all()
    ten = json.loads((done / "again/pancreas1/best-of-10/scdgn/summary.json").read_text())
    assert accuracy.set_index("method")["best_of_ten"]["scdgn"] == max(run["accuracy"] for run in ten["runs"])


def test_what_is_done_is_not_done_again_and_what_was_cut_off_goes_on(done: Path, collection: Path) -> None:
    (done / "again/pancreas2/dann/summary.json").unlink()
    before = (done / "again/pancreas3/nn/summary.json").stat().st_mtime_ns
    watch = Trained()
    sources = {name: source for name, source in paper_sources("pancreas", collection).items() if name in SETS[1:3]}
    assert reproduce(small(done), sources, watch, track=False) == ["again/pancreas2", "again/pancreas3"]
    assert len(watch.studies) == 6 and watch.trials == 0
    assert (done / "again/pancreas2/dann/summary.json").exists()
    assert (done / "again/pancreas3/nn/summary.json").stat().st_mtime_ns == before


def test_every_method_gets_the_same_budget(tmp_path: Path) -> None:
    settings = small(tmp_path, trials=7, seed=3)
    searches, *draws = plan(settings, "set", Source(dataset="pancreas1"), best_of_ten=True)
    assert searches == replace(settings, name="again/set", source=Source(dataset="pancreas1"), method="all")
    assert [(one.name, one.method, one.protocol) for one in draws] == [
        ("again/set/best-of-10/dann", "dann", "seed-best-of-10"),
        ("again/set/best-of-10/scdgn", "scdgn", "seed-best-of-10"),
    ]
    adapting = plan(replace(settings, source=Source(adapt=True)), "set", Source(dataset="pancreas1"), best_of_ten=True)
    assert [one.source.adapt for one in adapting] == [True, False, False]


def test_faults_are_found_before_anything_is_trained(tmp_path: Path, collection: Path) -> None:
    sources = {"good": Source(dataset="pancreas1", path=collection), "no/&": Source(dataset="pancreas1")}
    with pytest.raises(SettingsError, match="no name for a folder"):
        reproduce(small(tmp_path / "studies"), sources, track=False)
    assert not (tmp_path / "studies").exists()


def test_the_papers_sets_have_names() -> None:
    assert list(paper_sources()) == SETS
    assert paper_sources("pancreas", Path("x"))["pancreas4"] == Source(dataset="pancreas4", path=Path("x"))
    assert list(paper_sources("simulated-pancreas")) == [f"simulated-{name}" for name in SETS]
    assert paper_sources("pbmc") == {"pbmc": Source(dataset="pbmc")}
    assert list(paper_sources("pancreas2")) == ["pancreas2"]
    with pytest.raises(DataError, match="data set 'pancreases' does not exist: did you mean"):
        paper_sources("pancreases")


def test_any_file_has_the_sets_of_its_splits(tmp_path: Path, splits_file: Path) -> None:
    data = Path("cells.h5ad")
    found = split_sources(data, splits_file, Fields("a", None))
    assert list(found) == [f"split{number}" for number in range(1, 7)]
    assert found["split2"] == Source(data=data, split=f"{splits_file}:split2", fields=Fields("a", None))
    broken = tmp_path / "broken.json"
    for text in ("{", "[]", '{"splits": {}}', '{"splits": 3}'):
        broken.write_text(text)
        with pytest.raises(DataError, match="holds no splits"):
            split_sources(data, broken)
    content = json.loads(splits_file.read_text())
    del content["splits"]["split4"]["keep"]
    broken.write_text(json.dumps(content))
    with pytest.raises(DataError, match="split4"):
        split_sources(data, broken)


def test_a_split_of_a_file_is_run(tmp_path: Path, collection: Path) -> None:
    keep = {"celseq": ["alpha", "beta", "delta"], "celseq2": ["beta", "delta", "mast"]}
    content = {
        "test_domain": "fluidigmc1", "labels_key": "celltype", "batch_key": "tech", "splits": {"one": {"keep": keep}}
    }  # fmt: skip
    (tmp_path / "splits.json").write_text(json.dumps(content))
    sources = split_sources(collection, tmp_path / "splits.json")
    assert reproduce(small(tmp_path), sources, track=False) == ["again/one"]
    results, _ = read_all(tmp_path, ["again/one"])
    assert [one.method for one in grouped(results)[0].results] == ["nn", "dann", "scdgn"]
    assert not np.isnan(table2(grouped(results))["mean"]).any()

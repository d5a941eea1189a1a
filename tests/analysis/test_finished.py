"""A finished study as a notebook has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import scdgn
from scdgn.analysis import annotated
from scdgn.analysis.finished import FinishedStudy, load_study
from scdgn.cells.fields import Fields
from scdgn.cells.sources import Source
from scdgn.errors import DataError
from scdgn.model.annotate import GENES, LABEL
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from tests.faults import SETTINGS, done, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of nn and dann with a test batch, and one of other cells."""
    place = tmp_path_factory.mktemp("finished")
    tiny(cells={"a": 60, "b": 60, "c": 60, "out": 50}).write_h5ad(place / "cells.h5ad")
    source = Source(data=place / "cells.h5ad", fields=Fields("celltype", "tech"), test_batch="out")
    settings = StudySettings(
        name="blood", source=source, trials=2, confirm=1, confirm_seeds=1, final_seeds=2, space=SETTINGS,
        studies=place / "studies",
    )  # fmt: skip
    for method in ("nn", "dann"):
        run(replace(settings, name=f"blood/{method}", method=method), track=False)
    other = replace(source, test_batch="c")
    run(replace(settings, name="both/one", method="nn", trials=1, confirm=0), track=False)
    run(replace(settings, name="both/two", method="nn", source=other, trials=1, confirm=0), track=False)
    return place


@pytest.fixture(scope="module")
def study(place: Path) -> FinishedStudy:
    return load_study("blood", place / "studies")


def test_the_best_method_is_loaded_and_labels_as_predict_does(study: FinishedStudy, place: Path) -> None:
    scores = {one: load_study(f"blood/{one}", place / "studies").summary.model.score for one in ("nn", "dann")}
    assert study.summary.model.score == max(scores.values())
    assert scdgn.load_study("blood/nn", str(place / "studies")).results.name == "blood/nn"
    new = anndata.read_h5ad(place / "cells.h5ad")
    study.model.annotate(new, explain=True)
    words = ("--model", study.results.name, "--studies", place / "studies", "--explain")
    done("predict", place / "cells.h5ad", *words, "-o", place / "out.h5ad")
    written = anndata.read_h5ad(place / "out.h5ad")
    assert written.obs[LABEL].tolist() == new.obs[LABEL].tolist()
    assert written.uns[f"{LABEL}_colors"].tolist() == new.uns[f"{LABEL}_colors"].tolist()
    pd.testing.assert_frame_equal(written.uns[GENES], new.uns[GENES], rtol=1e-4)


def test_what_it_tells(study: FinishedStudy) -> None:
    assert study.trials["trial"].tolist() == [0, 1] and study.trials["winner"].sum() == 1
    assert "lr" in study.trials and "hidden" not in study.trials  # which was held fixed
    told = repr(study)
    assert told.startswith(f"{study.results.name}: 2 trials\nChosen: ") and all(line in told for line in study.verdict)


@pytest.mark.parametrize(
    "name", ["history", "learning", "confusion", "recall", "reliability", "confidence", "pca", "umap", "genes"]
)
def test_figures(study: FinishedStudy, name: str) -> None:
    figure = getattr(study.pl, name)()
    assert isinstance(figure, Figure) and figure.axes


def test_figures_that_there_may_not_be(study: FinishedStudy, place: Path) -> None:
    assert isinstance(study.pl.settings(), Figure) and isinstance(study.pl.parallel(), Figure)
    assert isinstance(load_study("blood/dann", place / "studies").pl.margin_lambda(), Figure)
    assert load_study("blood/nn", place / "studies").pl.margin_lambda() is None


def test_studies_that_are_not_one(place: Path) -> None:
    with pytest.raises(DataError, match="have different cells: name one of both/one, both/two"):
        load_study("both", place / "studies")
    with pytest.raises(DataError, match=r"there is no study 'bloody'.*did you mean blood"):
        load_study("bloody", place / "studies")


def test_cells_that_have_moved(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.h5ad"
    moved.write_bytes((place / "cells.h5ad").read_bytes())
    assert len(load_study("blood", place / "studies", data=moved).cells.part) == 230
    tiny(cells={"a": 60, "b": 60, "c": 60, "out": 50}, seed=1).write_h5ad(moved)
    with pytest.raises(DataError, match="does not hold the cells"):
        _ = load_study("blood", place / "studies", data=moved).cells


def test_pictures_of_annotated_cells(study: FinishedStudy) -> None:
    cells = tiny(cells={"a": 60, "b": 60})
    study.model.annotate(cells)
    figure = annotated.umap(cells)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["label", "confidence (probability of the label)"]
    drawn = {to_hex(colour) for colour in figure.axes[0].collections[0].get_facecolors()}
    assert drawn <= set(cells.uns[f"{LABEL}_colors"]) and cells.obsm["X_umap"].shape == (120, 2)

    cells.obs["cluster"] = [str(place % 12) for place in range(120)]
    axes = next(ax for ax in annotated.labels_by_cluster(cells, "cluster").axes if ax.get_xticklabels())
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(place) for place in range(12)]
    assert {tick.get_text() for tick in axes.get_xticklabels()} == set(cells.obs[LABEL])
    assert not plt.get_fignums()  # nothing is shown twice, or kept

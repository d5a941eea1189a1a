"""A finished study in a notebook: its trials, its model, and the figures of its report one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scdgn.analysis.chapters import classification, embedding, genes, search_figures
from scdgn.analysis.studies.cells import Described, described, source_of
from scdgn.analysis.studies.results import Results, grouped, read_all
from scdgn.analysis.studies.trials import importances, trials
from scdgn.errors import DataError
from scdgn.model.scdgn import SCDGN
from scdgn.search.shown.verdict import verdict
from scdgn.search.summary import AnySummary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def load_study(name: str, studies: str | Path = "studies", data: str | Path | None = None) -> FinishedStudy:
    """A study that `scdgn search` has finished.

    Parameters
    ----------
    name
        Of the study; of several methods searched on the same cells (`--method all`) the one that was selected, unless
        it is named, as in `pbmc/nn`.
    studies
        Folder of all studies.
    data
        The file of the cells, where it is not any more where the search found it.

    Raises
    ------
    DataError
        If there is no such study, it is not finished, or the name stands for studies of different cells.
    """
    groups = grouped(read_all(Path(studies), [name])[0])
    if len(groups) > 1:
        names = ", ".join(group.name for group in groups)
        raise DataError(f"the studies under {name!r} have different cells: name one of {names}")
    return FinishedStudy(groups[0].best, None if data is None else Path(data))


@dataclass(frozen=True, eq=False)
class FinishedStudy:
    """What came of a study; made by `load_study`. Nothing is read before it is asked for.

    `results` has its settings, records, summary and folder; `data` is the file of the cells, where it has moved.
    """

    results: Results
    data: Path | None = None

    @property
    def summary(self) -> AnySummary:
        """summary.json: what was selected, and all scores."""
        return self.results.summary

    @property
    def verdict(self) -> list[str]:
        """What was chosen, how good it is and where it is weak, in sentences."""
        return verdict([self.summary])

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row for every trial (`scdgn.analysis.studies.trials.trials`): state, score, time, settings."""
        return trials(self.results)

    @cached_property
    def model(self) -> SCDGN:
        """The model exported: `study.model.annotate(adata)`."""
        if self.results.folder is None or not self.results.is_search:
            raise DataError(f"the study {self.results.name!r} has no model: it was chosen by the test labels")
        return SCDGN.load(self.results.folder.model)

    @cached_property
    def cells(self) -> Described:
        """The cells of the study, read again, and what the model says of them.

        Raises
        ------
        DataError
            If their file has moved, or has changed.
        """
        return described(self.results, source_of(self.results, self.data))

    @cached_property
    def pl(self) -> Figures:
        """The report's figures: `study.pl.history()`."""
        import matplotlib.pyplot as plt

        plt.switch_backend(
            plt.get_backend()
        )  # a notebook shows figures once pyplot's backend is there, whoever made them
        return Figures(self)

    def __repr__(self) -> str:
        return "\n".join([f"{self.results.name}: {len(self.results.records)} trials", *self.verdict])


class Figures:
    """The figures of the report, which docs/report.md explains, each made when it is asked for.

    Those from `confusion` on look at the cells, which are read then; they raise what `FinishedStudy.cells` does.
    """

    def __init__(self, study: FinishedStudy) -> None:
        self._study = study

    def history(self) -> Figure:
        """The score of every trial, and the best so far."""
        return search_figures.draw_history(self._study.results)

    def learning(self) -> Figure:
        """Losses and scores of every trial by epoch."""
        return search_figures.draw_learning(self._study.results)

    def settings(self) -> Figure | None:
        """Which settings mattered, and the score against them; None where none was searched."""
        results = self._study.results
        return search_figures.draw_settings(results, importances(results)[0])

    def parallel(self) -> Figure | None:
        """Every trial as a line through its settings; None where fewer than two were completed."""
        results = self._study.results
        return search_figures.draw_parallel(results, importances(results)[0])

    def margin_lambda(self) -> Figure | None:
        """The score against lambda and the margin; None where neither was searched."""
        return search_figures.draw_margin_lambda(self._study.results)

    def confusion(self) -> Figure:
        """What the model takes cells of each type for."""
        return classification.confusion_figure(classification.confusion(self._study.cells, self._part()))

    def recall(self) -> Figure:
        """The share of each type's cells that is found, by its training cells."""
        frame = classification.recall_by_training_cells(self._study.cells, self._part())
        return classification.recall_figure(frame)

    def reliability(self) -> Figure:
        """How far confidence can be believed."""
        return classification.reliability_figure(classification.reliability(self._study.cells, self._part()))

    def confidence(self) -> Figure:
        """Confidence where the model is right, and where it is wrong."""
        return classification.confidence_figure(classification.confidences(self._study.cells, self._part()))

    def pca(self) -> Figure:
        """Principal components of the encoder's output, by type and by batch."""
        return self._embedding("pca")

    def umap(self) -> Figure:
        """A UMAP of it."""
        return self._embedding("umap")

    def genes(self) -> Figure:
        """The genes that speak most for each type."""
        return genes.heat_map(genes.attribution(self._study.cells))

    def _embedding(self, kind: embedding.Kind) -> Figure:
        cells = self._study.cells
        return embedding.figure({self._study.results.method: embedding.coordinates(embedding.sampled(cells), kind)})

    def _part(self) -> str:
        part = classification.judged(self._study.cells)
        if part is None:
            raise DataError("no cell outside training has a label of a type that the model knows: nothing to judge by")
        return part

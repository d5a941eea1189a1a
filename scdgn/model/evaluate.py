"""How good a bundle is on cells whose types are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scdgn.cells.dataset import Dataset
from scdgn.cells.splits import Split
from scdgn.core.metrics import Scores, score
from scdgn.model.at_once import portions
from scdgn.model.bundle import Bundle

REPORTED = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")


@dataclass(frozen=True)
class Evaluation:
    """Scores on held-out cells, of every model of the bundle and of their mean probabilities; recalls are by
    `cell_types`.

    Left out are `unscored` cells: of types never trained, or without a label.
    """

    models: tuple[Scores, ...]
    ensemble: Scores
    unscored: int
    cell_types: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The ensemble's scores, and mean and standard deviation over the models where there are several."""
        summary: dict[str, Any] = {
            "scored_cells": self.ensemble.cells,
            "unscored_cells": self.unscored,
            **{name: getattr(self.ensemble, name) for name in REPORTED},
            "scored_by_type": {
                name: int(cells)
                for name, cells in zip(self.cell_types, self.ensemble.cells_by_type, strict=True)
                if cells
            },
            "recall": {
                name: float(recall)
                for name, recall in zip(self.cell_types, self.ensemble.recall, strict=True)
                if not np.isnan(recall)
            },
        }
        if len(self.models) > 1:
            for name in REPORTED:
                values = [getattr(scores, name) for scores in self.models]
                summary[f"{name}_mean"] = float(np.mean(values))
                summary[f"{name}_std"] = float(np.std(values, ddof=1))
                summary[f"{name}_by_seed"] = values
        return summary


def evaluate(bundle: Bundle, dataset: Dataset, split: Split, device: torch.device) -> Evaluation | None:
    """Score the test cells of types that were trained; None where there is no such cell.

    They are predicted as `scdgn predict` would: corrected by batch where the bundle corrects.
    """
    if not len(split.scored):
        return None
    test = dataset.take(split.test)
    correction = bundle.correction(test, lambda: portions(test, bundle))
    # Scaling per batch wants the whole batch, so all test cells are prepared and some of them scored.
    scored = np.isin(split.test, split.scored)
    found, done = [], 0
    for portion in portions(test, bundle):
        own = torch.from_numpy(scored[done : done + len(portion)])
        found.append(bundle.forward(bundle.input(portion, correction)[own].to(device))[1].softmax(dim=2).cpu())
        done += len(portion)
    labels = dataset.types_among(bundle.cell_types)[split.scored]
    each = torch.cat(found, dim=1).numpy()  # (models, cells, types)
    return Evaluation(
        models=tuple(score(labels, probabilities) for probabilities in each),
        ensemble=score(labels, np.mean(each, axis=0)),
        unscored=split.unscored,
        cell_types=bundle.cell_types,
    )

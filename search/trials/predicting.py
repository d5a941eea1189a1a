"""What the models of a trial say of the cells that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from scdgn.core.correction import corrected_both_ways, find_reference
from scdgn.core.expression import Expression
from scdgn.core.networks import Model
from scdgn.core.rejection import Anchors, distance, find_anchors
from scdgn.search.left_out import LeftOut, drawn, some_of_each

if TYPE_CHECKING:
    from scdgn.search.trials.inputs import Prepared, Unit


def by_models(unit: Unit, models: Sequence[Model], prepared: Prepared, correcting: bool) -> LeftOut:
    """What the trained models of a unit say of the cells that it leaves out, `MOST_KEPT` of them at most.

    Parameters
    ----------
    prepared
        The cells that they were trained on, and those left out.
    correcting
        Whether the cells left out are a query that the input may be corrected for, batch by batch.
    """
    cells, labels = prepared.cells, torch.from_numpy(prepared.labels)
    if unit.kept is None:
        rows = drawn(len(labels))
    else:
        rows = torch.from_numpy(np.flatnonzero(np.isin(unit.scored, unit.kept)))
    latents, logits = zip(*(model.forward(prepared.x[rows.to(prepared.x.device)]) for model in models), strict=True)
    corrected = learned = None
    if correcting:
        reference = find_reference(cells.x, cells.labels, cells.domains, cells.types)
        _, batches = np.unique(prepared.batches, return_inverse=True)
        both = corrected_both_ways(models, prepared.x, reference, batches)
        corrected, learned = (each.cpu()[:, rows] for each in both)
    anchors = [anchors_of(model, cells.x, cells.labels) for model in models]
    distances = [
        distance(latent.cpu(), one, model.types) for latent, one, model in zip(latents, anchors, models, strict=True)
    ]
    left_out = torch.from_numpy(unit.scored)[rows]
    return LeftOut(
        unit.name, left_out, labels[rows], torch.stack(logits).cpu(), torch.stack(distances), corrected, learned
    )


def anchors_of(model: Model, x: Expression, labels: torch.Tensor) -> Anchors:
    """Where the labelled cells among those that trained a model lie."""
    chosen = torch.from_numpy(some_of_each(labels.numpy()))
    return find_anchors(model.latent(x[chosen.to(x.device)]).cpu(), labels[chosen], len(model.types))

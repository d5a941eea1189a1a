"""Adapting to a query: train again with those of its cells that the models are sure of, under the types they predict.

Self-training with pseudo-labels (Lee 2013; on this task scNym, Kimmel and Kelley 2021), begun by models whose input is
corrected for the query (`scdgn.core.correction`): where a query is far away, what they say without is a poor teacher.
The cells that join are domains of their own, so that batch shifts lead to the query and back, and pairs are made with
it. What it gains, and where, is in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scdgn.core.correction import Reference, corrected_logits
from scdgn.core.networks import Model
from scdgn.core.pack.members import Cells

CONFIDENCE = 0.7
"""Probability from which a cell's predicted type counts."""

ROUNDS = 2
"""How often models are trained again: taught by themselves, corrected, and then by those that know the query."""


def joined(cells: Cells, query: Cells, models: Sequence[Model], reference: Reference | None) -> Cells:
    """The training cells, and those cells of a query that an ensemble is sure of, labelled by it.

    The query has the same types, and domains of the training cells or further ones; its labels are not looked at. The
    models were trained on these, or on what was `joined` before. With a reference their input is corrected for the
    query, batch by batch.

    Returns
    -------
    `cells` itself where the ensemble is sure of no cell of the query.
    """
    if reference is None:
        logits = torch.stack([model.forward(query.x)[1] for model in models])  # (models, cells, types)
    else:
        _, batches = np.unique(query.domains.numpy(), return_inverse=True)
        _, logits = corrected_logits(models, query.x, reference, batches)
    probability, types = torch.softmax(logits, dim=2).mean(dim=0).cpu().max(dim=1)
    sure = probability >= CONFIDENCE
    if not sure.any():
        return cells
    x = query.x[sure.to(query.x.device)]
    return cells.joined(Cells(x, types[sure], query.domains[sure], query.types, query.domain_count))

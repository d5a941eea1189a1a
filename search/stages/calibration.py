"""How sure a model may be: temperature and rejection threshold, from cells that took no part in training.

They are cells of training domains left out, since cells of the batches that trained a model look more certain than
those of a batch never seen. Test labels take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.core.adaptation import ROUNDS, joined
from scdgn.core.config import UNLABELED, Precision, Settings
from scdgn.core.correction import find_reference
from scdgn.core.memory import free_memory, in_parts
from scdgn.core.metrics import calibration_error
from scdgn.core.networks import Model
from scdgn.core.pack.members import Cells, Member, pack_memory
from scdgn.core.rejection import (
    KNOWN_KEPT,
    SCORES,
    Anchors,
    Calibration,
    auroc,
    find_anchors,
    fit_temperature,
    keeping,
    pooled,
)
from scdgn.core.training import Callback, Trained, train
from scdgn.model.at_once import portions
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import find_device
from scdgn.search.left_out import LeftOut, some_of_each
from scdgn.search.summary import CalibrationReport, Errors, HeldOutRejection, LeftOutRejection
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.inputs import Prepared, Unit, normalized, prepare
from scdgn.search.trials.objective import MOST_MEMORY
from scdgn.search.trials.predicting import by_models

LEAST_CELLS = 20
"""Fewer known cells make no threshold, and fewer unknown ones no comparison of the scores."""

FOLDS, SET_ASIDE = "left-out domains", "cells set aside of all training domains"
"""Where a calibration comes from."""


def predict_left_out(
    cells: SearchCells,
    units: Sequence[Unit],
    settings: Settings,
    preprocess: PreprocessSettings,
    device: str,
    on_epoch: Callback | None = None,
    precision: Precision = "tf32",
    adapting: bool = False,
) -> list[LeftOut]:
    """Train every seed of every unit, as one pack, and predict the cells that the units leave out.

    Parameters
    ----------
    units
        With all of the cells left out as those that are scored; each fits its preprocessing on its own training cells.
    adapting
        Whether the models of a unit adapt to the cells that it leaves out (`scdgn.core.adaptation`), which are all of
        one or more batches; what they say once these are corrected for is then found, too.

    Returns
    -------
    A unit's cells each, `MOST_KEPT` at most; models that diverged, and units left without a model, are not among them.
    """
    target = find_device(device)
    prepared = prepare(normalized(cells, preprocess.target_sum), units, preprocess, target.type)
    own = [one.on(target) for one in prepared]

    def trained_together(members: Sequence[Member]) -> list[Trained]:
        return train(members, target, on_epoch, precision=precision)

    def trained(each: Sequence[Cells]) -> list[list[Model]]:
        packs = [[Member(settings, on, seed) for seed in unit.seeds] for unit, on in zip(units, each, strict=True)]
        free, everything = free_memory(target), [member for pack in packs for member in pack]
        if free is None or pack_memory(everything, target) <= MOST_MEMORY * free:
            packs = [everything]
        outcomes = iter([outcome for pack in packs for outcome in in_parts(trained_together, pack, target)])
        models = [[next(outcomes).model for _ in unit.seeds] for unit in units]
        return [[model for model in some if model is not None] for some in models]

    models = trained([one.cells for one in own])
    for again in range(ROUNDS if adapting else 0):
        taught = [_taught(one, some, corrected=not again) if some else one.cells
                  for one, some in zip(own, models, strict=True)]  # fmt: skip
        models = trained(taught)
    return [
        by_models(unit, some, one, correcting=adapting)
        for unit, some, one in zip(units, models, own, strict=True)
        if some
    ]


def _taught(prepared: Prepared, models: Sequence[Model], corrected: bool) -> Cells:
    """The training cells of a unit, and the cells left out that its models are sure of."""
    cells = prepared.cells
    domains = torch.from_numpy(prepared.batches)
    query = Cells(prepared.x, torch.full_like(domains, UNLABELED), domains, cells.types, cells.domain_count)
    reference = find_reference(cells.x, cells.labels, cells.domains, cells.types) if corrected else None
    return joined(cells, query, models, reference)


def calibrate(left_out: Sequence[LeftOut], single: bool, source: str) -> Calibration:
    """Temperature, score and threshold from cells left out, at least one part, all together; `source` says what they
    are.

    For a `single` model each model counts by itself, and not the ensemble.
    """
    parts = [one for part in left_out for one in _several(part, single)]
    cells, known = (np.concatenate([part.known for part in some]) for some in (left_out, parts))
    if cells.sum() < LEAST_CELLS:
        return Calibration()
    temperature = fit_temperature(*_known(parts))
    scores = {score: [part.score(score, temperature) for part in parts] for score in SCORES}
    # Within each part: across them, a score that tells batches apart would seem to tell types.
    pairs = {score: _compared(parts, values) for score, values in scores.items()}
    enough = (~cells).sum() >= LEAST_CELLS
    compared: dict[str, float] = {score: one for score, one in pairs.items() if enough and one is not None}
    best = max(SCORES, key=lambda score: compared[score]) if compared else SCORES[0]
    return Calibration(
        temperature=temperature,
        score=best,
        threshold=keeping(np.concatenate(scores[best])[known], KNOWN_KEPT),
        auroc=compared,
        known=int(cells.sum()),
        unknown=int((~cells).sum()),
        source=source,
    )


def summarize(calibration: Calibration, left_out: Sequence[LeftOut], single: bool) -> CalibrationReport:
    """What a calibration is, and what it does to the cells left out."""
    apart = len(left_out) > 1
    others = [[other for other in left_out if other is not part] for part in left_out]
    taught = [calibrate(rest, single, calibration.source) if apart else calibration for rest in others]
    parts = [(_several(part, single), one) for part, one in zip(left_out, taught, strict=True)]
    labels = np.concatenate([_known(models)[1].numpy() for models, _ in parts])
    before, after = (
        np.concatenate(
            [(_known(models)[0] / (one.temperature if scaled else 1)).softmax(dim=1).numpy() for models, one in parts]
        )
        for scaled in (False, True)
    )  # (known cells, types)
    told: dict[str, Any] = calibration.to_json()
    return CalibrationReport(
        **told,
        calibration_error=Errors(before=calibration_error(labels, before), after=calibration_error(labels, after)),
        apart=apart,
        parts=tuple(
            _describe(part, models, one, calibration.temperature)
            for part, (models, one) in zip(left_out, parts, strict=True)
        ),
    )


def attach(bundle: Bundle, calibration: Calibration, dataset: Dataset, rows: NDArray[np.int64]) -> Bundle:
    """A bundle with a calibration, and with the anchors that this asks for, from the cells that it was trained on."""
    if calibration.score == "latent_distance":
        calibration = replace(calibration, anchors=find_bundle_anchors(bundle, dataset, rows))
    return replace(bundle, calibration=calibration)


def on_test(bundle: Bundle, cells: TrainingCells) -> HeldOutRejection | None:
    """How the calibration of a bundle does on test cells, whose labels are open: to be told, never to choose by.

    Returns
    -------
    None where no test cell can be scored.
    """
    split, dataset = cells.split, cells.dataset
    known = np.isin(split.test, split.scored)  # of the test cells
    unknown = ~known & (dataset.labels[split.test] != UNLABELED)
    if not known.any():
        return None
    test = dataset.take(split.test)
    labels = test.types_among(bundle.cell_types)
    correction = bundle.correction(test, lambda: portions(test, bundle))
    uncalibrated = replace(bundle, calibration=Calibration())
    found = []
    for portion in portions(test, bundle):
        x = bundle.input(portion, correction)
        _, *outputs = bundle.all_outputs(x)
        found.append((uncalibrated.probabilities(x), *outputs))
    plain, probabilities, strange = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    told = bundle.unknown(strange)
    return HeldOutRejection(
        calibration_error=Errors(
            before=calibration_error(labels[known], plain[known]),
            after=calibration_error(labels[known], probabilities[known]),
        ),
        known=int(known.sum()),
        unknown=int(unknown.sum()),
        kept=float(np.mean(~told[known])),
        told=float(np.mean(told[unknown])) if unknown.any() else None,
    )


def find_bundle_anchors(bundle: Bundle, dataset: Dataset, rows: NDArray[np.int64]) -> tuple[Anchors, ...]:
    """Where the training cells lie, of each model."""
    types = bundle.cell_types
    labels = dataset.types_among(types)[rows]
    chosen = some_of_each(labels)
    if bundle.transductive:  # scaling per batch wants whole batches
        each = [bundle.forward(bundle.input(dataset.take(rows))[chosen])[0]]
    else:
        each = [bundle.forward(bundle.input(one))[0] for one in portions(dataset.take(rows[chosen]), bundle)]
    latents = [torch.cat(parts) for parts in zip(*each, strict=True)]
    return tuple(find_anchors(latent, torch.from_numpy(labels[chosen]), len(types)) for latent in latents)


def _known(parts: Sequence[LeftOut]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the probabilities, (cells, types), and labels of the known cells of all parts."""
    masks = [torch.from_numpy(part.known) for part in parts]
    log_probabilities = [pooled(part.logits.double())[mask] for part, mask in zip(parts, masks, strict=True)]
    return torch.cat(log_probabilities), torch.cat([part.labels[mask] for part, mask in zip(parts, masks, strict=True)])


def _compared(parts: Sequence[LeftOut], scores: Sequence[NDArray[np.float32]]) -> float | None:
    """AUROC of the unknown cells against the known ones of the same part; None where no part has both."""
    found, unknown = [], []
    for part, values in zip(parts, scores, strict=True):
        known = part.known
        if known.any() and not known.all():
            found.append(auroc(values[known], values[~known]))
            unknown.append(int((~known).sum()))
    return float(np.average(found, weights=unknown)) if found else None


def _several(part: LeftOut, single: bool) -> list[LeftOut]:
    """The ensemble, or its models by themselves."""
    return list(part.each()) if single else [part]


def _describe(part: LeftOut, models: Sequence[LeftOut], taught: Calibration, temperature: float) -> LeftOutRejection:
    known = np.concatenate([one.known for one in models])
    limit = np.inf if taught.threshold is None else taught.threshold
    told = np.concatenate([one.score(taught.score, taught.temperature) for one in models]) > limit
    compared = {score: _compared(models, [one.score(score, temperature) for one in models]) for score in SCORES}
    return LeftOutRejection(
        name=part.name,
        known=int(part.known.sum()),
        unknown=int((~part.known).sum()),
        kept=float(np.mean(~told[known])) if known.any() else None,
        told=float(np.mean(told[~known])) if not known.all() else None,
        auroc={score: value for score, value in compared.items() if value is not None},
    )

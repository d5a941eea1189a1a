"""What is exported: chosen by the cells left out, trained on all training cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import UNLABELED, Settings
from scdgn.core.rejection import Calibration
from scdgn.errors import count
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import fit
from scdgn.search.engines import Result
from scdgn.search.left_out import LeftOut, read, together, write
from scdgn.search.records import TrialRecord, settings_of
from scdgn.search.stages import committee
from scdgn.search.stages.calibration import FOLDS, SET_ASIDE, attach, calibrate, predict_left_out
from scdgn.search.stages.calibration import summarize as describe_calibration
from scdgn.search.stages.confirmation import confirming
from scdgn.search.stages.finalists import Finalists, test_export
from scdgn.search.stages.job import Job
from scdgn.search.summary import CalibrationReport, ExportedModel, Part
from scdgn.search.trials.inputs import ALL_DOMAINS
from scdgn.search.trials.objective import Stopped


@dataclass(frozen=True, eq=False)
class Export:
    """What is to be exported, as the cells left out chose it.

    Attributes
    ----------
    models
        How many of each trial, the winner's first.
    score
        Of the ensemble on the cells left out, as it predicts.
    shrunk
        What the winner's own score would be on average; None where nothing tells the noise.
    prediction
        Whether it corrects by default; where the models adapt, as the adapted winner would.
    adaptation, adapts
        What adapting does to the winner's score, and whether the models adapt to the cells without a label.
    calibration, calibrated
        How sure the model may be, and what is to be told of it.
    """

    models: Mapping[int, int]
    score: float | None
    shrunk: float | None
    prediction: committee.Prediction
    adaptation: committee.Change
    adapts: bool
    calibration: Calibration
    calibrated: CalibrationReport


def adapted_winner(
    job: Job, winner: int, chosen: tuple[Settings, PreprocessSettings], left_out: Mapping[int, Sequence[LeftOut]]
) -> Sequence[LeftOut]:
    """What the winner says of the domains left out once it has adapted to them; nothing where it is not to adapt."""
    settings = job.settings
    if not job.sealed.unlabeled or winner not in left_out or not job.by_folds:
        return ()
    path = job.folder.adapted(winner)
    if (known := read(path)) is not None:
        return known
    inputs = confirming(settings, job.sealed)
    job.watch.stage(f"adapting trial {winner} to each domain left out", inputs.trained)
    units = [unit for unit in inputs.units if unit.name != ALL_DOMAINS]
    found: list[LeftOut] = where_it_trains(
        job, predict_left_out, job.sealed, units, *chosen, settings.device, precision=settings.precision, adapting=True
    )
    write(path, found)
    return found


def choose_export(
    job: Job, winner: int, left_out: Mapping[int, Sequence[LeftOut]], adapted: Sequence[LeftOut]
) -> Export:
    """The trials that are exported together, whether they adapt or correct, and how sure they may be."""
    settings = job.settings
    size = 1 if settings.single else settings.final_seeds
    models = {winner: size}
    if winner not in left_out:  # it failed with every other seed
        nothing = committee.Prediction(())
        return Export(models, None, None, nothing, committee.Change(False), False, Calibration(), CalibrationReport())
    if settings.ensemble and not settings.single:
        corrected = settings.correct != "never"  # as it will predict, unless the domains left out forbid it
        heard = {number: [part.as_predicted(corrected) for part in trial] for number, trial in left_out.items()}
        models = committee.members(heard, winner, size, settings.metric)
    chosen = committee.prediction(together(left_out, models), settings.correct, settings.metric)
    unadapted = committee.prediction(left_out[winner], settings.correct, settings.metric)
    by_adapted = committee.prediction(adapted, settings.correct, settings.metric)
    adaptation = committee.change(unadapted.left_out, by_adapted.left_out, settings.metric)
    # Without domains left out nothing speaks against what was asked for.
    adapts = bool(job.sealed.unlabeled) and (adaptation.harmless or not job.by_folds)
    if adapts and adapted:
        chosen = by_adapted
    shrunk = committee.shrunk(
        {number: committee.scores_by_seed(trial, settings.metric) for number, trial in left_out.items()}
    )
    calibration = calibrate(chosen.left_out, settings.single, FOLDS if job.sealed.folds else SET_ASIDE)
    return Export(
        models=models,
        score=float(np.mean(committee.scores(chosen.left_out, settings.metric))),
        shrunk=shrunk[winner],
        prediction=chosen,
        adaptation=adaptation,
        adapts=adapts,
        calibration=calibration,
        calibrated=describe_calibration(calibration, chosen.left_out, settings.single),
    )


def where_it_trains(job: Job, train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function that trains, where there is a device for it; it ends early when the study is stopped."""
    try:
        return job.engine.call(job.halting, train, *args, **kwargs)
    except Stopped:
        job.stop_if_asked()
        raise


def build(job: Job, export: Export, finalists: Finalists, records: Mapping[int, TrialRecord]) -> Bundle:
    """The bundle to export: the finalists that take part, with models of the other trials; or all of them trained again
    on all labelled cells; calibrated."""
    settings, cells = job.settings, job.cells
    dataset, rows, query = job.sealed.dataset, job.sealed.rows, job.sealed.unlabeled if export.adapts else ()
    if settings.refit_all:
        dataset, rows = cells.dataset, np.flatnonzero(cells.dataset.labels != UNLABELED)
        query = cells.unlabeled if settings.source.query is not None and export.adapts else ()
        job.watch.stage(
            f"training what is exported on all {rows.size:,} labelled cells", settings.final_seeds * rows.size
        )
    parts = []
    for place, (number, models) in enumerate(export.models.items()):
        keep = [finalists.picked] if settings.single else list(range(models))
        if place == 0 and not settings.refit_all:
            parts.append(finalists.bundle.take(keep))
            continue
        if place > 0:
            some = count(models, "model")
            job.watch.stage(f"training {some} of trial {number} for the ensemble", models * rows.size)
        parts.append(
            where_it_trains(
                job, fit, dataset, rows, *settings_of(records[number]), [finalists.seeds[place] for place in keep],
                device=settings.device, precision=settings.precision, query=query,
            )
        )  # fmt: skip
    bundle = replace(Bundle.joined(parts), corrects=export.prediction.corrects, moves=export.prediction.moves)
    return attach(bundle, export.calibration, dataset, rows)


def describe_model(job: Job, export: Export, bundle: Bundle) -> ExportedModel:
    """What is exported, and what it scores: on the cells left out, as it predicts, and on the test cells."""
    settings = job.settings
    return ExportedModel(
        path=job.folder.model.name,
        models=len(bundle.models),
        kind="single" if settings.single else "ensemble",
        parts=tuple(Part(trial=number, models=models) for number, models in export.models.items()),
        trained_on="all labelled cells" if settings.refit_all else "all training cells",
        score=export.score,
        corrects=export.prediction.corrects,
        moves=export.prediction.moves,
        correction_gains=export.prediction.correction.gains,
        adaptation_gains=export.adaptation.gains,
        # A model that was trained on the test cells is not scored on them.
        test=None if settings.refit_all else test_export(bundle, job.cells, settings.device),
    )

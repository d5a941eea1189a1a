"""What came out of a study, put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scdgn.core.metrics import mutual_information
from scdgn.core.rejection import KNOWN_KEPT
from scdgn.model.bundle import Bundle
from scdgn.model.evaluate import Evaluation
from scdgn.search.choices import Selection
from scdgn.search.records import FINISHED, Confirmation, TrialRecord
from scdgn.search.stages import selection
from scdgn.search.stages.calibration import on_test
from scdgn.search.stages.exporting import Export, describe_model
from scdgn.search.stages.finalists import Finalists, summarize
from scdgn.search.stages.job import Job
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import read_predictions
from scdgn.search.summary import Asked, Chosen, Data, Fold, Selected, Summary
from scdgn.search.trials.cells import test_labels


def mean_padding(records: Sequence[TrialRecord]) -> float:
    """Arithmetic of all trials against what their models alone would have taken, weighted by the trials' times."""
    seconds = sum(record.seconds for record in records)
    return sum(record.padding * record.seconds for record in records) / seconds if seconds else 1.0


def summarize_study(
    job: Job,
    selected_by: Selection,
    records: Sequence[TrialRecord],
    confirmed: Mapping[int, Confirmation],
    winners: Sequence[selection.Winner],
    export: Export,
    finalists: Finalists,
    trained: tuple[float, float],
    bundle: Bundle,
    test: Evaluation | None,
) -> Summary:
    """What came out, before cells are annotated and the model is registered."""
    settings, sealed = job.settings, job.sealed
    winner = next(one for one in winners if one.protocol == selected_by)
    record = next(record for record in records if record.number == winner.number)
    unscored = [sealed.dataset.cell_types[code] for code in sealed.unscored_types]
    oracle_scores = _test_scores(job, records)
    best = selection.oracle(oracle_scores)
    first_folds = {name: float(getattr(fold, settings.metric)) for name, fold in record.folds.items()}
    recalls = record.training_domain.recall if record.training_domain is not None else {}
    return Summary(
        **what_is_common(job),
        transductive=bundle.provenance["transductive"],
        trained=trained,
        asked=what_was_asked(settings, records),
        selection=selected_by,
        metric=settings.metric,
        adapt=settings.source.adapt,
        adapted=export.adapts if settings.source.adapt else None,
        folds=tuple(
            Fold(
                name=fold.name,
                scored_cells=len(fold.scored),
                coverage=fold.coverage,
                unseen_types=tuple(sealed.dataset.cell_types[code] for code in fold.unseen_types),
            )
            for fold in sealed.folds
        ),
        unscored_types=tuple(unscored),
        trials=Counter(record.state for record in records),
        padding=round(mean_padding(records), 4),
        winner=Chosen(
            number=winner.number,
            score=winner.score,
            first_score=record.value,
            note=winner.note,
            settings=record.settings,
            folds=confirmed[winner.number].folds if winner.number in confirmed else first_folds,
            training_domain=float(getattr(record.training_domain, settings.metric)),
            unscored_recall={name: recall for name, recall in recalls.items() if name in unscored},
            shrunk=export.shrunk,
        ),
        confirmed=confirmed,
        protocols=tuple(
            Selected(
                protocol=one.protocol,
                trial=one.number,
                score=one.score,
                test=oracle_scores.get(one.number),
                note=one.note,
            )
            for one in (*winners, *([best] if best is not None else []))
        ),
        final=summarize(finalists, test),
        # A model that was trained on the test cells would be too sure of them.
        calibration=replace(export.calibrated, test=None if settings.refit_all else on_test(bundle, job.cells)),
        model=describe_model(job, export, bundle),
    )


def _test_scores(job: Job, records: Sequence[TrialRecord]) -> dict[int, float]:
    """Scores of the stored predictions of all trials, now that the labels are open."""
    labels, scored = test_labels(job.cells, job.sealed.dataset.cell_types)
    if not scored.any():
        return {}
    return selection.score_test(read_predictions(job.folder, records), labels, scored, job.settings.metric)


def record_of(summary: Summary) -> dict[str, Any]:
    """What a model should tell of the study that it comes from."""
    left_out = ("version", "asked", "protocols", "registered", "annotated", "trials", "trained")
    return {key: value for key, value in summary.to_json().items() if key not in left_out}


def what_is_common(job: Job) -> dict[str, Any]:
    """What the summaries of both protocols have."""
    record = job.folder.read_settings()["record"]
    return {
        "study": job.settings.name,
        "id": record["id"],
        "method": job.settings.method,
        "data": _data_of(job, record["fingerprint"]),
    }


def what_was_asked(settings: StudySettings, records: Sequence[TrialRecord]) -> Asked:
    """What a finished study is compared with, to see whether there is anything left to do."""
    return Asked(
        finished=sum(record.state in FINISHED for record in records),
        final_seeds=settings.final_seeds,
        confirm=(settings.confirm, settings.confirm_seeds),
        ensemble=settings.ensemble,
        correct=settings.correct,
        single=settings.single,
        refit_all=settings.refit_all,
        calibration=KNOWN_KEPT,
    )


def _data_of(job: Job, fingerprint: Mapping[str, str]) -> Data:
    cells, training = job.cells, job.sealed.dataset
    counts = np.bincount(training.labels, minlength=len(training.cell_types)).tolist()
    return Data(
        training_cells=len(training),
        cells_by_type=dict(zip(training.cell_types, counts, strict=True)),
        genes=len(training.genes),
        mutual_information_bits=mutual_information(training.labels, training.batches),
        training_domains=tuple(sorted(training.batch_names[code] for code in np.unique(training.batches))),
        test_batches=tuple(cells.test_batches),
        test_cells=len(cells.split.test),
        query=job.settings.source.query,
        fingerprint=fingerprint["training"],
        test_fingerprint=fingerprint["test"],
    )

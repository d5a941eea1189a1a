"""What came out of a study, JSON-safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Settings
from scdgn.core.metrics import mutual_information
from scdgn.core.rejection import KEPT
from scdgn.model.evaluate import Evaluation
from scdgn.search.records import FINISHED, Confirmation, TrialRecord
from scdgn.search.stages import selection
from scdgn.search.stages.finalists import (
    Finalists,
    summarize,
)
from scdgn.search.stages.job import Job
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import read_predictions


def padding(records: Sequence[TrialRecord]) -> float:
    """Arithmetic of all trials against what their models alone would have taken, weighted by the trials' times."""
    seconds = sum(record.seconds for record in records)
    return sum(record.padding * record.seconds for record in records) / seconds if seconds else 1.0


def summarize_study(
    job: Job,
    selected_by: str,
    records: Sequence[TrialRecord],
    confirmed: Mapping[int, Confirmation],
    winners: Sequence[selection.Winner],
    finalists: Finalists,
    test: Evaluation | None,
) -> dict[str, Any]:
    """What came out, JSON-safe, but for the model."""
    settings, sealed = job.settings, job.sealed
    winner = next(one for one in winners if one.protocol == selected_by)
    record = next(record for record in records if record.number == winner.number)
    unscored = [sealed.dataset.cell_types[code] for code in sealed.unscored_types]
    oracle_scores = _test_scores(job, records)
    best = selection.oracle(oracle_scores)
    first_folds = {name: float(getattr(fold, settings.metric)) for name, fold in record.folds.items()}
    recalls = record.training_domain.recall if record.training_domain is not None else {}
    return {
        "study": settings.name,
        "id": job.folder.read_settings()["record"]["id"],
        "asked": what_was_asked(settings, records),
        "method": settings.method,
        "protocol": settings.protocol,
        "selection": selected_by,
        "metric": settings.metric,
        "adapt": settings.source.adapt,
        "data": data_of(job),
        "folds": [
            {
                "name": fold.name,
                "scored_cells": len(fold.scored),
                "coverage": fold.coverage,
                "unseen_types": [sealed.dataset.cell_types[code] for code in fold.unseen_types],
            }
            for fold in sealed.folds
        ],
        "unscored_types": unscored,
        "trials": dict(Counter(record.state for record in records)),
        "padding": round(padding(records), 4),
        "winner": {
            "number": winner.number,
            "score": winner.score,
            "first_score": record.value,
            "note": winner.note,
            "settings": dict(record.settings),
            "folds": dict(confirmed[winner.number].folds if winner.number in confirmed else first_folds),
            "training_domain": float(getattr(record.training_domain, settings.metric)),
            "unscored_recall": {name: recall for name, recall in recalls.items() if name in unscored},
        },
        "confirmed": {str(number): asdict(kept) for number, kept in confirmed.items()},
        "protocols": [
            {
                "protocol": one.protocol,
                "trial": one.number,
                "score": one.score,
                "test": oracle_scores.get(one.number),
                "note": one.note,
            }
            for one in (*winners, *([best] if best is not None else []))
        ],
        "final": summarize(finalists, test, settings.metric),
        "registered": None,
    }


def settings_of(record: TrialRecord) -> tuple[Settings, PreprocessSettings]:
    """The settings of a trial."""
    model = {name: value for name, value in record.settings.items() if name in Settings.__dataclass_fields__}
    prepare = {name: value for name, value in record.settings.items() if name not in model}
    return Settings.from_mapping(model), PreprocessSettings.from_mapping(prepare)


def _test_scores(job: Job, records: Sequence[TrialRecord]) -> dict[int, float]:
    """Scores of the stored predictions of all trials, now that the labels are open."""
    _, labels, scored = job.test_labels()
    if not scored.any():
        return {}
    return selection.score_test(read_predictions(job.folder, records), labels, scored, job.settings.metric)


def record_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a model should tell of the study that it comes from."""
    left_out = ("asked", "protocols", "registered", "annotated", "trials", "trained")
    return {key: value for key, value in summary.items() if key not in left_out}


def what_was_asked(settings: StudySettings, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """What a finished study is compared with, to see whether there is anything left to do."""
    return {
        "finished": sum(record.state in FINISHED for record in records),
        "final_seeds": settings.final_seeds,
        "confirm": [settings.confirm, settings.confirm_seeds],
        "ensemble": settings.ensemble,
        "correct": settings.correct,
        "single": settings.single,
        "refit_all": settings.refit_all,
        "calibration": KEPT,
    }


def data_of(job: Job) -> dict[str, Any]:
    """What the study works on, for its summary."""
    cells, fingerprint = job.cells, job.folder.read_settings()["record"]["fingerprint"]
    training = job.sealed.dataset
    counts = np.bincount(training.labels, minlength=len(training.cell_types)).tolist()
    return {
        "training_cells": len(training),
        "cells_by_type": dict(zip(training.cell_types, counts, strict=True)),
        "genes": len(training.genes),
        "mutual_information_bits": mutual_information(training.labels, training.batches),
        "training_domains": sorted(
            job.sealed.dataset.batch_names[code] for code in np.unique(job.sealed.dataset.batches)
        ),
        "test_batches": list(cells.test_batches),
        "test_cells": len(cells.split.test),
        "query": job.settings.source.query,
        "fingerprint": fingerprint["training"],
        "test_fingerprint": fingerprint["test"],
    }

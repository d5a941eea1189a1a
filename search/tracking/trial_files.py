"""Files beside a study's run in MLflow: its trials, to read back, and tables of their scores, to look at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from scdgn.search.records import TrialRecord, UnitScores
from scdgn.search.summary import AnySummary, Summary

TRIALS, SCORES, RECALLS = "trials.json", "scores.json", "recalls.json"

_SCORES = ("macro_f1", "accuracy", "balanced_accuracy")


def files(records: Sequence[TrialRecord], summary: AnySummary | None) -> dict[str, str]:
    """By name: all that is known of the trials, and two tables as MLflow writes its own."""
    return {
        TRIALS: json.dumps([asdict(record) for record in records]),
        SCORES: _table(("trial", "cells of", "cells", *_SCORES), _score_rows(records)),
        RECALLS: _table(("trial", "cells of", "type", "recall"), _recall_rows(records, summary)),
    }


def _units(record: TrialRecord) -> Iterator[tuple[str, UnitScores]]:
    """Scores by the cells that they are of."""
    yield from record.folds.items()
    if record.training_domain is not None:
        yield "all training domains, set aside", record.training_domain


def _score_rows(records: Sequence[TrialRecord]) -> Iterator[list[object]]:
    for record in records:
        for unit, scores in _units(record):
            yield [record.number, unit, scores.cells, *(getattr(scores, key) for key in _SCORES)]


def _recall_rows(records: Sequence[TrialRecord], summary: AnySummary | None) -> Iterator[list[object]]:
    if isinstance(summary, Summary):
        for part, final in summary.final.parts.items():
            for name, value in final.recall.items():
                yield [f"final seeds of {summary.winner.number}", part, name, value]
    for record in records:
        for unit, scores in _units(record):
            yield from ([record.number, unit, name, value] for name, value in scores.recall.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return json.dumps({"columns": columns, "data": list(rows)})


def read_trials(written: str) -> list[TrialRecord]:
    """The trials from the text of `TRIALS`, by number."""
    return sorted(map(TrialRecord.from_mapping, json.loads(written)), key=lambda record: record.number)

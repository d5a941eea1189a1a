"""The end of a search in plain words: what was chosen, by what lead, how good and where weak it is, what to do next.

One function says it to the terminal, to the report, to the registry and to `scdgn status`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scdgn.errors import listed
from scdgn.search.shown.overview import METRIC, chosen_of, composition, place_of, searches_of
from scdgn.search.summary import AnySummary, Summary

WEAK = 0.9
"""Recall below which a type is named as weak."""

NAMED = 3
"""Weak types named."""

NAMES = {"nn": "the plain network (NN)", "dann": "DANN", "scdgn": "scDGN"}


def verdict(summaries: Sequence[AnySummary]) -> list[str]:
    """Sentences about finished searches of the same cells, one per method; none where their models are not to be
    compared.
    """
    if (best := chosen_of(summaries)) is None:
        return []
    return [_chosen(best, searches_of(summaries)[1:]), _held_out(best), *_weak(best)]


def next_steps(summaries: Sequence[AnySummary], studies: Path, name: str) -> list[str]:
    """Commands that go on from here, of the best of finished searches; `name` is what the user called these."""
    searches = searches_of(summaries)
    if not searches:
        return []
    place = place_of(studies)
    served = any(summary.registered for summary in searches)
    return [
        shlex.join(["scdgn", "report", name, *place]),
        to_annotate(searches[0], studies),
        *([shlex.join(["scdgn", "ui", *place])] if served else []),
    ]


def to_annotate(summary: Summary, studies: Path) -> str:
    """The command that annotates cells with the model of a search."""
    model = studies / summary.study / summary.model.path
    return shlex.join(["scdgn", "predict", "CELLS.h5ad", "--model", str(model), "-o", "ANNOTATED.h5ad"])


def _chosen(best: Summary, others: Sequence[Summary]) -> str:
    sentence = f"Chosen: {NAMES[best.method]}, {METRIC[best.metric]} {best.exported_score:.3f} on {_where(best)}"
    if others:
        second = others[0]
        lead = best.exported_score - second.exported_score
        sentence += f", {lead:.3f} ahead of {NAMES[second.method]}"
        if (noise := _noise(best, second)) is not None:
            within = "within" if lead <= noise else "beyond"
            sentence += f", {within} the noise (one standard error over these batches is {noise:.3f})"
    return f"{sentence}. The model exported: {composition(best.model)}."


def _where(summary: Summary) -> str:
    if summary.winner.folds:
        single = len(summary.folds) == len(summary.data.training_domains)
        return f"{len(summary.folds)} {'training batches' if single else 'groups of training batches'} left out in turn"
    return "cells of the training batches set aside"


def _noise(one: Summary, other: Summary) -> float | None:
    """The standard error of the difference of the winners over the batches left out; None where that is not known."""
    folds, others = one.winner.folds, other.winner.folds
    if len(folds) < 2 or folds.keys() != others.keys():
        return None
    differences = np.array([folds[name] - others[name] for name in folds])
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def _held_out(best: Summary) -> str:
    held_out, metric, test, exported = listed(best.data.test_batches), best.metric, best.final.test, best.exported_test
    if test is None:
        if held_out:
            return f"On {held_out}, which was held out, no cell is of a type that was trained."
        return "No batch was held out: that score is the estimate for a new one."
    score = test.of(metric).ensemble if exported is None else exported.of(metric)
    of = "the winner's ensemble" if exported is None else "the model exported"
    return f"On {held_out}, which was held out ({test.cells:,} cells): {METRIC[metric]} {score:.3f} by {of}."


def _weak(best: Summary) -> list[str]:
    place = "among cells set aside" if best.final.test is None else "there"
    whose, recall = "its winner found", (best.final.test or best.final.validation).recall
    if (exported := best.exported_test) is not None and exported.recall:
        whose, recall = "it found", exported.recall
    weakest = sorted(recall, key=lambda name: recall[name])
    weak = [f"{name} ({recall[name]:.2f})" for name in weakest if recall[name] < WEAK]
    told = []
    if weak:
        told.append(f"Weak, by the share of a type's cells that {whose} {place}: {listed(weak, NAMED)}.")
    elif weakest:
        told.append(f"No type is weak: {whose} at least {recall[weakest[0]]:.0%} of each {place}.")
    if unscored := best.unscored_types:
        told.append(
            f"Not judged by batches left out, because one training batch alone has them: {listed(unscored, NAMED)}."
        )
    return told

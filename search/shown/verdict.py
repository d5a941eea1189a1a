"""The end of a search in plain words: what was chosen, by what lead, how good and where weak it is, what to do next.

One function says it to the terminal, to the report, to the registry and to `scdgn status`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scdgn.errors import listed
from scdgn.search.shown.overview import METRIC, chosen_of, composition, exported_score, exported_test, place_of

WEAK = 0.9
"""Recall below which a type is named as weak."""

NAMED = 3
"""Weak types named."""

NAMES = {"nn": "the plain network (NN)", "dann": "DANN", "scdgn": "scDGN"}


def verdict(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about the studies of one command, of the same cells; none where their models are not to be compared.

    Parameters
    ----------
    summaries
        Of finished searches, one per method.
    """
    if (best := chosen_of(summaries)) is None:
        return []
    others = [summary for summary in summaries if summary["protocol"] == "search" and summary is not best]
    others.sort(key=exported_score, reverse=True)
    return [_chosen(best, others), _held_out(best), *_weak(best)]


def next_steps(summaries: Sequence[Mapping[str, Any]], studies: Path, name: str) -> list[str]:
    """Commands that go on from here, of the best of the studies.

    Parameters
    ----------
    summaries
        Of finished searches.
    studies, name
        Folder of all studies, and what the user called these.
    """
    searches = [summary for summary in summaries if summary["protocol"] == "search"]
    if not searches:
        return []
    place = place_of(studies)
    served = any(summary.get("registered") for summary in searches)
    return [
        shlex.join(["scdgn", "report", name, *place]),
        to_annotate(max(searches, key=exported_score), studies),
        *([shlex.join(["scdgn", "ui", *place])] if served else []),
    ]


def to_annotate(summary: Mapping[str, Any], studies: Path) -> str:
    """The command that annotates cells with the model of a search."""
    model = studies / summary["study"] / summary["model"]["path"]
    return shlex.join(["scdgn", "predict", "CELLS.h5ad", "--model", str(model), "-o", "ANNOTATED.h5ad"])


def _chosen(best: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    metric = METRIC[best["metric"]]
    sentence = f"Chosen: {NAMES[best['method']]}, {metric} {exported_score(best):.3f} on {_where(best)}"
    if others:
        second = others[0]
        lead = exported_score(best) - exported_score(second)
        sentence += f", {lead:.3f} ahead of {NAMES[second['method']]}"
        if (noise := _noise(best, second)) is not None:
            within = "within" if lead <= noise else "beyond"
            sentence += f", {within} the noise (one standard error over these batches is {noise:.3f})"
    return f"{sentence}. The model exported: {composition(best['model'])}."


def _where(summary: Mapping[str, Any]) -> str:
    if summary["winner"]["folds"]:
        single = len(summary["folds"]) == len(summary["data"]["training_domains"])
        return (
            f"{len(summary['folds'])} {'training batches' if single else 'groups of training batches'} left out in turn"
        )
    return "cells of the training batches set aside"


def _noise(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The standard error of the difference of the winners over the batches left out; None where that is not known."""
    folds, others = one["winner"]["folds"], other["winner"]["folds"]
    if len(folds) < 2 or folds.keys() != others.keys():
        return None
    differences = np.array([folds[name] - others[name] for name in folds])
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def _held_out(best: Mapping[str, Any]) -> str:
    data, metric = best["data"], best["metric"]
    if "test" not in best["final"]:
        if data["test_batches"]:
            return f"On {listed(data['test_batches'])}, which was held out, no cell is of a type that was trained."
        return "No batch was held out: that score is the estimate for a new one."
    exported = exported_test(best)
    score = best["final"]["test"][metric]["ensemble"] if exported is None else exported[metric]
    of = "the winner's ensemble" if exported is None else "the model exported"
    held_out, cells = listed(data["test_batches"]), best["final"]["test"]["cells"]
    return f"On {held_out}, which was held out ({cells:,} cells): {METRIC[metric]} {score:.3f} by {of}."


def _weak(best: Mapping[str, Any]) -> list[str]:
    where = "test" if "test" in best["final"] else "validation"
    place = "there" if where == "test" else "among cells set aside"
    recall = {name: value for name, value in best["final"][where].get("recall", {}).items() if value is not None}
    weakest = sorted(recall, key=lambda name: recall[name])
    weak = [f"{name} ({recall[name]:.2f})" for name in weakest if recall[name] < WEAK]
    told = []
    if weak:
        told.append(f"Weak, by the share of a type's cells that its winner found {place}: {listed(weak, NAMED)}.")
    elif weakest:
        told.append(f"No type is weak: its winner found at least {recall[weakest[0]]:.0%} of each {place}.")
    if unscored := best["unscored_types"]:
        told.append(f"Without an estimate, being in one training batch alone: {listed(unscored, NAMED)}.")
    return told

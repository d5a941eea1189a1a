"""What the model registry shows of a version: what it is, how it was selected and what it scored."""

from __future__ import annotations

from collections.abc import Iterator

from scdgn.errors import listed, shortened
from scdgn.model.bundle import Bundle
from scdgn.search.shown.overview import composition
from scdgn.search.shown.verdict import verdict
from scdgn.search.summary import Summary

NAMED = 12
"""Types and batches named."""

LONGEST = 5000
"""Letters that PostgreSQL takes."""


def describe(summary: Summary, bundle: Bundle) -> str:
    """What the registry shows of a version: what it is, how it was selected and what it scored, in Markdown."""
    data, model, winner = summary.data, summary.model, summary.winner
    kind = "one model" if model.kind == "single" else f"an ensemble of {model.models} models"
    left_out = "" if model.score is None else f", {model.score:.3f} on training batches left out"
    tests = f"; held out as a test: {listed(data.test_batches, NAMED)}" if data.test_batches else ""
    note = f" ({winner.note})" if winner.note else ""
    transductive = (
        "**Transductive**: the cells to annotate take part in training or scaling. Not to be compared with models for "
        "which they do not."
        if summary.transductive
        else "Not transductive in training: the cells to annotate take no part in it."
    )
    if bundle.corrects:
        transductive += (
            " Its labels of a batch far from the training batches **are**: the input is corrected for the batch."
        )
    values = "counts" if bundle.provenance["values"] == "counts" else "log-normalised values"
    unknown = "" if bundle.calibration.threshold is None else "`unknown` (of a type never trained), "
    if bundle.corrects:
        unknown += "`corrected` (what the request's types share against the training cells was taken away), "
    text = "\n".join(
        [
            f"{summary.method} classifier of {len(bundle.cell_types)} cell types "
            f"({listed(bundle.cell_types, NAMED)}): {kind} ({composition(model)}) trained on {model.trained_on}"
            f"{left_out}. Study `{summary.study}`.",
            "",
            *verdict([summary]),
            "",
            f"- Data: {data.training_cells:,} training cells of {listed(data.training_domains, NAMED)} "
            f"(fingerprint `{data.fingerprint[:12]}`){tests}.",
            f"- Selection: {summary.selection}, {summary.metric} {winner.score:.3f} of trial "
            f"{winner.number}{note}. No test label took part.",
            f"- {transductive}",
            f"- Input: a row per cell, a column per gene by name, {values} as floating-point numbers; genes that were "
            f"not measured are left out. Output: `label`, `confidence`, {unknown}`probability: TYPE` of every type.",
            "",
            f"The winner's settings, trained again with {len(summary.final.seeds)} seeds, score (the cells set "
            "aside score twins of these models, trained on the others):",
            "",
            *_table(summary),
        ]
    )
    return shortened(text, LONGEST)


def _table(summary: Summary) -> Iterator[str]:
    metrics = tuple(dict.fromkeys((summary.metric, "macro_f1", "accuracy")))
    yield f"| cells | of the seeds | {' | '.join(metrics)} |"
    yield "|---" * (len(metrics) + 2) + "|"
    exported = summary.exported_test
    title = {"validation": "set aside of the training domains", "test": "test"}
    for name, part in summary.final.parts.items():
        rows = {
            "mean ± standard deviation": [str(part.of(metric)) for metric in metrics],
            "ensemble": [f"{part.of(metric).ensemble:.3f}" for metric in metrics],
            "the one whose twin validated best": [f"{part.of(metric).picked:.3f}" for metric in metrics],
        }
        if name == "test":
            oracle = "best: an **oracle**, chosen by the test labels"
            rows[oracle] = [f"{part.of(metric).best_oracle:.3f}" for metric in metrics]
            if exported is not None:
                rows["**the model exported**"] = [f"{exported.of(metric):.3f}" for metric in metrics]
        for words, cells in rows.items():
            yield f"| {title[name]}, {part.cells:,} | {words} | {' | '.join(cells)} |"

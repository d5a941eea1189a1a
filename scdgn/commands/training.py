"""`scdgn train`: a model from a file of cells; what is heavy is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdgn.commands import options
from scdgn.commands.options import DATA, EVALUATION, EXPERT, SEARCH
from scdgn.commands.terminal import print_json, print_table, say
from scdgn.core.config import Method
from scdgn.errors import SettingsError

if TYPE_CHECKING:
    from scdgn.cells.fields import Fields
    from scdgn.core.training import Callback, Report
    from scdgn.model.evaluate import Evaluation


def train(
    data: options.CellsFiles = None,
    obs: options.Obs = None,
    labels_key: options.LabelsKey = None,
    batch_key: options.BatchKey = None,
    group_key: options.GroupKey = None,
    test_batch: Annotated[
        list[str] | None, DATA(metavar="BATCH", help="Batch to hold out and score on (repeatable).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the model.")] = None,
    method: Annotated[Method, SEARCH(help="Which model.")] = "scdgn",
    preset: Annotated[str, SEARCH(help="default, or reference for the published training.")] = "default",
    changes: Annotated[
        list[str] | None, SEARCH("--set", metavar="KEY=VALUE", help="Change a setting (repeatable): margin=2.")
    ] = None,
    config: Annotated[
        Path | None, SEARCH(help="TOML file with the tables model and preprocess.", metavar="FILE.toml")
    ] = None,
    seed: Annotated[int, SEARCH(min=0, help="Seed of the (first) model.")] = 0,
    seeds: Annotated[int, EVALUATION(min=1, help="Train this many seeds as one pack; they make an ensemble.")] = 1,
    dataset: options.Dataset = None,
    path: options.DatasetPath = None,
    split: Annotated[
        str | None, DATA(metavar="FILE:NAME", help="Train on the blocks of a split, test on its test domain.")
    ] = None,
    query: Annotated[
        str | None, DATA(metavar="BATCH|FILE", help="Unlabelled cells: a batch of the data, or a file.")
    ] = None,
    adapt: Annotated[
        bool, SEARCH("--adapt", help="Train again with cells of the query (or test batch) that can be told.")
    ] = False,
    unlabeled: options.UnlabeledCells = "error",
    unlabeled_category: Annotated[str | None, DATA(help="Label of cells whose type is not known.")] = None,
    layer: options.Layer = None,
    gene_key: options.GeneKey = None,
    values: options.Values = None,
    duplicate_genes: options.DuplicateGenes = None,
    missing_labels: options.MissingLabels = None,
    kept_labels: options.KeptLabels = None,
    min_batch_cells: options.MinBatchCells = None,
    n_top_genes: Annotated[int | None, EXPERT(min=1, help="Highly variable genes to keep.")] = None,
    gene_selection: Annotated[
        str | None, EXPERT(help="variable, or markers: genes that tell types apart in every batch.")
    ] = None,
    markers_per_type: Annotated[int | None, EXPERT(min=1, help="Markers to keep of every type.")] = None,
    scaling: Annotated[str | None, EXPERT(help="none, standard or standard-per-batch (transductive).")] = None,
    early_stopping: Annotated[
        bool, EVALUATION("--early-stopping", help="Stop by a validation split of the training cells.")
    ] = False,
    validation_fraction: Annotated[float, EVALUATION(help="Its share of every type.")] = 0.1,
    patience: Annotated[int, EVALUATION(help="Epochs without a better score after which to stop.")] = 10,
    device: options.Device = "auto",
    precision: options.Products = "tf32",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model; with a test batch, score it there."""
    given = locals()  # by the names of the settings
    import time
    from dataclasses import fields, replace
    from functools import partial

    from scdgn.cells.fields import Fields
    from scdgn.cells.settings import PreprocessSettings
    from scdgn.cells.several import one_or_several
    from scdgn.cells.shelf import SHELF, Shelf
    from scdgn.cells.sources import Source, read, with_column_faults
    from scdgn.commands.settings import read_settings
    from scdgn.files import check_free
    from scdgn.model.bundle_files import FILES
    from scdgn.model.evaluate import evaluate
    from scdgn.model.fitting import StopEarly, adapting, find_device, fit
    from scdgn.threads import share_cores

    start = time.perf_counter()
    known = [one.name for one in fields(PreprocessSettings)]
    prepare = {name: value for name, value in given.items() if name in known and value is not None}
    held_out = tuple(dict.fromkeys(test_batch or ()))
    named = Fields(labels_key, batch_key, group_key=group_key)
    source = Source(one_or_several(data or ()), dataset, path, named, held_out, split, obs, query, adapt)
    with with_column_faults(source):
        settings, preprocess = read_settings(method, preset, config, changes or [], prepare)
        target = find_device(device)
    share_cores()
    if query is not None and not adapt:
        raise SettingsError("--query only serves --adapt in training: add --adapt, or leave --query out")
    if output is not None:
        check_free(output, overwrite, FILES)
    elif data and not held_out and split is None:
        raise SettingsError("nothing to do with the model: give -o MODEL_DIR to keep it, or --test-batch to score it")
    with Shelf((Path() if output is None else output.parent) / SHELF, partial(say, quiet=quiet)) as shelf:
        cells = read(replace(source, fields=options.fields_of(given)), shelf=shelf)
        for note in cells.notes:
            say(note, quiet)
        if unlabeled == "domain" and not adapt:
            settings = adapting(settings)
        with _progress(f"training {method}", settings.epochs, quiet or as_json) as on_epoch:
            bundle = fit(
                cells.dataset,
                cells.split.train,
                settings,
                preprocess,
                range(seed, seed + seeds),
                () if adapt else cells.unlabeled,
                StopEarly(validation_fraction, patience) if early_stopping else None,
                device,
                on_epoch,
                precision,
                cells.unlabeled if adapt else (),
            )
        if adapt:
            took = f"{bundle.provenance['adapted_cells']:,} of {bundle.provenance['unlabeled_cells']:,}"
            say(f"{took} cells without a label could be told, and took part in training again", quiet)
        confident = bundle.provenance["confident_unlabeled_cells"]
        if confident is not None:
            say(
                f"{confident:g} of {bundle.provenance['unlabeled_cells']:,} unlabelled cells are predicted with a "
                f"probability of {settings.pseudo_confidence:g}, from which they pair up (--set pseudo_confidence=...)",
                quiet,
            )
        evaluation = evaluate(bundle, cells.dataset, cells.split, target) if len(cells.split.test) else None
    record: dict[str, Any] = {
        "method": method,
        "preset": preset,
        "seeds": list(range(seed, seed + seeds)),
        "test_batches": list(cells.test_batches),
        "training_cells": bundle.provenance["training_cells"],
        "mutual_information_bits": bundle.provenance["mutual_information_bits"],
        "test_cells": len(cells.split.test),
        "epochs": bundle.provenance["epochs"],
        "transductive": bundle.provenance["transductive"],
        "unlabeled_cells": bundle.provenance["unlabeled_cells"],
        "seconds": round(time.perf_counter() - start, 2),
        **({} if evaluation is None else evaluation.to_json()),
    }
    if output is not None:
        record["model"] = str(output)
        _keep(bundle, cells.fields, record, output, overwrite)
    if as_json:
        print_json(record)
        return
    if len(cells.split.test) and evaluation is None:
        say("no test cell is of a type that was trained, so there is no score", quiet=False)
    if evaluation is not None:
        _print_scores(evaluation, record)
    say("the model is not kept: give -o MODEL_DIR" if output is None else f"model written to {output}", quiet)


def _keep(bundle: Any, fields: Fields, record: dict[str, Any], output: Path, overwrite: bool) -> None:
    from dataclasses import replace

    provenance = {**bundle.provenance, "fields": fields.to_mapping(), "record": record}
    replace(bundle, provenance=provenance).save(output, overwrite)


@contextmanager
def _progress(title: str, epochs: int, quiet: bool) -> Iterator[Callback | None]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=epochs)

        def show(report: Report) -> None:
            losses = list(report.losses.values())
            mean = sum(loss.label_loss for loss in losses) / len(losses)
            bars.update(task, completed=report.epoch, description=f"{title}, label loss {mean:.3f}")

        yield show
        bars.update(task, completed=epochs)


def _print_scores(evaluation: Evaluation, record: dict[str, Any]) -> None:
    held_out = ", ".join(record["test_batches"])
    several = len(evaluation.models) > 1
    title = f"{record['method']} on {held_out}: {evaluation.ensemble.cells:,} cells scored"
    if evaluation.unscored:
        title += f", {evaluation.unscored:,} of types never trained (or without a label) left out"
    if record["transductive"]:
        joined = f"{record['unlabeled_cells']:,} cells joined training without their labels"
        title += f"; transductive: {joined if record['unlabeled_cells'] else 'each batch is scaled by its own cells'}"
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro-F1",
        "calibration_error": "expected calibration error",
    }
    rows = []
    for key, name in names.items():
        row = [name, f"{getattr(evaluation.ensemble, key):.3f}"]
        if several:
            row += [f"{record[f'{key}_mean']:.3f} ± {record[f'{key}_std']:.3f}"]
        rows.append(row)
    header = ["", "ensemble", f"{len(evaluation.models)} seeds, mean ± sd"] if several else ["", "score"]
    print_table(title, header, rows, quiet=False)
    recalls = [
        [name, f"{recall:.3f}", f"{cells:,}"]
        for name, recall, cells in zip(
            evaluation.cell_types, evaluation.ensemble.recall, evaluation.ensemble.cells_by_type, strict=True
        )
        if cells
    ]
    print_table("", ["type", "recall", "cells"], recalls, quiet=False)

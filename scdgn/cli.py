"""The command line. Everything heavy is imported by the command that needs it, so that `--help` is immediate."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from scdgn import environment
from scdgn.analysis import commands as analysis_commands
from scdgn.commands.terminal import (
    DATA_HELP,
    STOPS,
    AsJson,
    BatchKey,
    Device,
    Duplicates,
    GeneKey,
    GroupKey,
    KeepLabel,
    LabelsKey,
    Layer,
    MethodName,
    MinBatchCells,
    MissingLabel,
    Obs,
    Overwrite,
    Precision,
    PrecisionName,
    Quiet,
    UnlabeledName,
    Values,
    example,
    in_panels,
    print_json,
    print_table,
    say,
)
from scdgn.errors import ScdgnError, SettingsError
from scdgn.search import commands as search_commands

if TYPE_CHECKING:
    from scdgn.cells.fields import Fields
    from scdgn.core.training import Report
    from scdgn.model.evaluate import Evaluation
    from scdgn.model.prediction import Labelled

app = typer.Typer(
    help="Cell-type classifiers that generalise to an unseen batch: train, predict, look around.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ShapeName(StrEnum):
    """Data sets of the paper that can be simulated."""

    pancreas = "pancreas"
    pbmc = "pbmc"
    scquery = "scquery"


PROGRAM = "scdgn"
_INTERRUPTED = 130

MANY_OPTIONS = ("search", "train", "predict", "reproduce", "peers")
"""Commands whose help is in panels."""


def _tell_version(wanted: bool) -> None:
    if wanted:
        from scdgn import __version__

        print(f"scdgn {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before the command."""


@app.command("help", epilog=example("scdgn help search"))
def help_(command: Annotated[str | None, typer.Argument(help="A command; without one, all are listed.")] = None) -> int:
    """Show the help of a command."""
    words = ["--help"] if command is None else [command, "--help"]
    _commands()(words, prog_name=PROGRAM, standalone_mode=False)
    return 0


search_commands.add_to(app)
analysis_commands.add_to(app)


def main() -> NoReturn:
    """Run the command line, as a process of its own.

    Its exit status: 0 done, 2 something the user can mend, 130 interrupted; bugs keep their traceback.
    """
    ending = _Ending()
    environment.prepare()
    try:
        status = _command()
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    finally:
        ending.over = True
    if status == _INTERRUPTED:  # typer, too, makes an exit status of the interrupt
        _told("interrupted")
    sys.exit(status)


@cache
def _commands() -> Callable[..., object]:
    """The commands as click has them. Made of their signatures, which takes longer than many a command itself."""
    found: Any = typer.main.get_command(app)
    for name in MANY_OPTIONS:
        in_panels(found.commands[name].params)
    return cast(Callable[..., object], found)


def _command() -> int:
    """Run the command that the words ask for, say what went wrong, and return the exit status."""
    try:
        status = _commands()(prog_name=PROGRAM, standalone_mode=False)
    except ScdgnError as error:
        return _told(str(error))
    except MemoryError as error:
        return _told(f"out of memory{f' ({error})' if str(error) else ''}: take fewer cells, genes or seeds")
    except BrokenPipeError:  # the reader of our output has gone, as in `scdgn datasets | head -1`
        sys.stderr.close()
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        mistake = error.format_message()  # on the command line, in typer's own words; none if it is empty
        return _told(f"{mistake}{_given(error)} (`scdgn COMMAND --help` lists its options)") if mistake else 2
    return status if isinstance(status, int) else 0


@app.command(
    epilog=example("scdgn train cells.h5ad --labels-key celltype --batch-key tech --test-batch new -o my_model")
)
def train(
    data: Annotated[list[Path] | None, typer.Argument(help=DATA_HELP, metavar="DATA.h5ad")] = None,
    obs: Obs = None,
    labels_key: LabelsKey = None,
    batch_key: BatchKey = None,
    group_key: GroupKey = None,
    test_batch: Annotated[
        list[str] | None, typer.Option(metavar="BATCH", help="Batch to hold out and score on (repeatable).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the model.")] = None,
    method: Annotated[MethodName, typer.Option(help="Which model.")] = MethodName.scdgn,
    preset: Annotated[str, typer.Option(help="default, or reference for the published training.")] = "default",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting (repeatable): margin=2.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with the tables model and preprocess.", metavar="FILE.toml")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the (first) model.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Train this many seeds as one pack; they make an ensemble.")] = 1,
    dataset: Annotated[str | None, typer.Option(help="A data set by name (`scdgn datasets`), not a file.")] = None,
    path: Annotated[Path | None, typer.Option(help="Where the files of --dataset are, instead of a download.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="FILE:NAME", help="Train on the blocks of a split, test on its test domain.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="BATCH|FILE", help="Unlabelled cells: a batch of the data, or a file.")
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Train again with cells of the query (or test batch) that can be told.")
    ] = False,
    unlabeled: Annotated[UnlabeledName, typer.Option(help="Cells whose label is missing.")] = UnlabeledName.error,
    unlabeled_category: Annotated[str | None, typer.Option(help="Label of cells whose type is not known.")] = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    values: Values = None,
    duplicate_genes: Duplicates = None,
    missing_label: MissingLabel = None,
    keep_label: KeepLabel = None,
    min_batch_cells: MinBatchCells = None,
    n_top_genes: Annotated[int | None, typer.Option(min=1, help="Highly variable genes to keep.")] = None,
    gene_selection: Annotated[
        str | None, typer.Option(help="variable, or markers: genes that tell types apart in every batch.")
    ] = None,
    markers_per_type: Annotated[int | None, typer.Option(min=1, help="Markers to keep of every type.")] = None,
    scaling: Annotated[str | None, typer.Option(help="none, standard or standard-per-batch (transductive).")] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop by a validation split of the training cells.")
    ] = False,
    validation_fraction: Annotated[float, typer.Option(help="Its share of every type.")] = 0.1,
    patience: Annotated[int, typer.Option(help="Epochs without a better score after which to stop.")] = 10,
    device: Device = "auto",
    precision: Precision = PrecisionName.tf32,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model; with a test batch, score it there."""
    import time
    from dataclasses import replace

    from scdgn.cells.fields import Fields
    from scdgn.cells.sources import Source, read, with_column_faults
    from scdgn.commands.options import read_settings
    from scdgn.files import check_free
    from scdgn.model.bundle_files import FILES
    from scdgn.model.evaluate import evaluate
    from scdgn.model.fitting import StopEarly, adapting, find_device, fit
    from scdgn.threads import share_cores

    start = time.perf_counter()
    given = {
        "n_top_genes": n_top_genes,
        "gene_selection": gene_selection,
        "markers_per_type": markers_per_type,
        "scaling": scaling,
    }
    prepare = {key: value for key, value in given.items() if value is not None}
    held_out = tuple(dict.fromkeys(test_batch or ()))
    files = tuple(data or ())
    of_file = files[0] if len(files) == 1 else files or None
    named = Fields(labels_key, batch_key, group_key=group_key)
    source = Source(of_file, dataset, path, named, held_out, split, obs, query, adapt)
    with with_column_faults(source):
        settings, preprocess = read_settings(method.value, preset, config, set_ or [], prepare)
        target = find_device(device)
    share_cores()
    if query is not None and not adapt:
        raise SettingsError("--query only serves --adapt in training: add --adapt, or leave --query out")
    if output is not None:
        check_free(output, overwrite, FILES)
    elif data and not held_out and split is None:
        raise SettingsError("nothing to do with the model: give -o MODEL_DIR to keep it, or --test-batch to score it")
    repeated: Any = "error" if duplicate_genes is None else duplicate_genes.value
    fields = Fields(
        labels_key,
        batch_key,
        layer,
        gene_key,
        unlabeled_category,
        unlabeled.value,
        values or "auto",
        repeated,
        tuple(missing_label or ()),
        tuple(keep_label or ()),
        min_batch_cells or 0,
        group_key=group_key,
    )
    cells = read(replace(source, fields=fields))
    for note in cells.notes:
        say(note, quiet)
    if unlabeled is UnlabeledName.domain and not adapt:
        settings = adapting(settings)
    with _progress(f"training {method.value}", settings.epochs, quiet or as_json) as on_epoch:
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
            precision.value,
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
        "method": method.value,
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


@app.command(epilog=example("scdgn predict new.h5ad --model islets -o labels.csv"))
def predict(
    data: Annotated[Path, typer.Argument(help="Cells to annotate, in a file as for training.", metavar="IN.h5ad")],
    model: Annotated[
        str, typer.Option(help="Folder of the model, a study's name, or models:/NAME@champion.", metavar="MODEL")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .h5ad, or a table (.csv, .tsv, .parquet).")
    ],
    layer: Layer = None,
    gene_key: GeneKey = None,
    batch_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with the batches; only scaling per batch and --correct need it."),
    ] = None,
    values: Values = None,
    duplicate_genes: Duplicates = None,
    correct: Annotated[
        bool | None,
        typer.Option(
            "--correct/--no-correct",
            help="Take away what all types of a batch share against the training cells [default: as the model has it].",
        ),
    ] = None,
    majority_voting: Annotated[
        bool,
        typer.Option(
            "--majority-voting", help="Give every cell the most frequent label of its cluster too; all cells in memory."
        ),
    ] = False,
    over_clustering: Annotated[
        str | None, typer.Option(help="Column of obs with the clusters for --majority-voting; made by default.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add the genes that speak most for each label, in uns['scdgn_genes'].")
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep the probabilities of a cell's N most probable types alone, sparse [default: all; 3 in a table].",
            metavar="N",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for pictures: a UMAP of the cells, and labels against clusters."),
    ] = None,
    studies: search_commands.Studies = search_commands.STUDIES,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Annotate cells: label, confidence, probabilities and latent representation.

    An .h5ad is a copy of the input with the results added; a table holds label, confidence and the first types. Cells
    are read some thousands at a time, so that any number of them fits into memory. Majority voting, a model that scales
    per batch, and values stored by columns (CSC) need all cells in memory at once. Pictures show at most 10,000 cells.
    """
    from scdgn.cells.fields import Fields
    from scdgn.model.bundle import Bundle
    from scdgn.model.labels import holds_table
    from scdgn.model.prediction import Asked, predict_file
    from scdgn.search.tracking.registry import find_model
    from scdgn.threads import share_cores

    if (explain or plots is not None) and holds_table(output):
        what = "--explain" if explain else "--plots"
        raise SettingsError(f"{what} needs the annotated cells, not a table: give -o {output.with_suffix('.h5ad')}")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise SettingsError(f"--plots {plots} is a file: give a folder")
    share_cores()
    bundle = Bundle.load(find_model(model, studies))
    repeated: Any = "error" if duplicate_genes is None else duplicate_genes.value
    fields = Fields(None, batch_key, layer, gene_key, values=values or "auto", duplicate_genes=repeated)
    votes = majority_voting or over_clustering is not None
    asked = Asked(fields, correct, votes, over_clustering, explain, top_k)
    found = predict_file(data, output, bundle, asked, lambda text: say(text, quiet))
    for sentence in found.warnings:
        say(f"warning: {sentence}", quiet=False)
    drawn = None
    if plots is not None:
        from scdgn.analysis.annotated import draw

        drawn = [str(path) for path in draw(output, found.query.chunks(bundle), over_clustering, plots)]
    if as_json:
        print_json({"output": str(output), **found.to_json(bundle), **({} if drawn is None else {"plots": drawn})})
        return
    _print_labels(found, output, quiet)
    if drawn is not None:
        say(f"pictures in {' and '.join(drawn)}", quiet)


@app.command(epilog=example("scdgn datasets --json"))
def datasets(as_json: AsJson = False) -> None:
    """List the data sets that `scdgn train --dataset` knows."""
    from scdgn.cells.datasets import DATASETS

    if as_json:
        print_json(
            {
                name: {"description": entry.description, "test": entry.test, "source": entry.source}
                for name, entry in DATASETS.items()
            }
        )
        return
    rows = [[name, entry.description, entry.test, entry.source] for name, entry in DATASETS.items()]
    print_table("", ["name", "cells", "held out", "source"], rows, quiet=False)


@app.command(epilog=example("scdgn simulate islets.h5ad --blocks pancreas1 --cells 1200 --genes 800"))
def simulate(
    output: Annotated[Path, typer.Argument(help="File to write.", metavar="OUT.h5ad")],
    shape: Annotated[ShapeName, typer.Option(help="Data set of the paper to resemble.")] = ShapeName.pancreas,
    blocks: Annotated[
        str | None, typer.Option(help="Confound batch and type as in pancreas1 to pancreas6.", metavar="NAME")
    ] = None,
    cells: Annotated[int | None, typer.Option(min=1, help="Cells in all; those of the data set by default.")] = None,
    genes: Annotated[int | None, typer.Option(min=1, help="Genes; those of the data set by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write simulated counts of several platforms, with the types in obs["celltype"], platforms in obs["tech"]."""
    from dataclasses import replace

    from scdgn.cells.datasets import DATASETS
    from scdgn.cells.h5ad import write_h5ad
    from scdgn.cells.simulate import paper_shape
    from scdgn.cells.simulate import simulate as draw
    from scdgn.errors import nearest
    from scdgn.files import new_file

    settings = paper_shape(shape.value, seed)
    if cells is not None:
        total = sum(settings.cells.values())
        settings = replace(settings, cells={name: max(1, n * cells // total) for name, n in settings.cells.items()})
    if genes is not None:
        settings = replace(settings, genes=genes)
    if blocks is not None:
        known = {name: entry.blocks for name, entry in DATASETS.items() if entry.blocks and entry.url}
        chosen = known.get(blocks)
        if chosen is None or shape is not ShapeName.pancreas:
            raise SettingsError(f"blocks {blocks!r} are not of the shape {shape.value!r}: {nearest(blocks, known)}")
        settings = replace(settings, present=dict(chosen.keep))
    with new_file(output) as place:
        adata = draw(settings)
        write_h5ad(adata, place)
    summary = {"output": str(output), "cells": adata.n_obs, "genes": adata.n_vars}
    if as_json:
        print_json(summary)
    else:
        say(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes written to {output}", quiet)


@app.command(epilog=example("scdgn doctor --json"))
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and where things are stored."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from scdgn.cells.datasets import cache_folder
    from scdgn.search.credentials import without_password
    from scdgn.search.tracking.store import configure
    from scdgn.threads import share_cores, usable_cores

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("scdgn", "torch", "numpy", "pandas", "anndata", "scanpy", "optuna", "ray", "mlflow", "safetensors")
    cache = cache_folder()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = {
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package: installed(package) for package in packages},
        "cores": str(usable_cores()),
        "threads": str(share_cores()),
        "GPUs": ", ".join(gpus) or "none: training uses the CPU",
        "data set cache": f"{cache} ({_state_of(cache)})",
        "MLflow store": without_password(configure(Path("studies")).uri),
    }
    if as_json:
        print_json(found)
    else:
        print_table("", ["", ""], [[name, value] for name, value in found.items()], quiet=False)


def _keep(bundle: Any, fields: Fields, record: dict[str, Any], output: Path, overwrite: bool) -> None:
    from dataclasses import replace

    provenance = {**bundle.provenance, "fields": fields.to_mapping(), "record": record}
    replace(bundle, provenance=provenance).save(output, overwrite)


@contextmanager
def _progress(title: str, epochs: int, quiet: bool) -> Iterator[Callable[[Report], object] | None]:
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


def _print_labels(found: Labelled, output: Path, quiet: bool) -> None:
    from scdgn.model.annotate import CORRECTED, UNKNOWN
    from scdgn.model.labels import holds_table

    genes = found.top_genes()
    header = ["label", "cells", *(["genes that speak most for it"] if genes else [])]
    rows = [
        [name, f"{cells:,}", *([", ".join(genes.get(name, ()))] if genes else [])]
        for name, cells in found.labels.items()
    ]
    print_table("", header, rows, quiet)
    as_table = holds_table(output)
    if found.unknown is not None:
        column = "unknown" if as_table else f"obs[{UNKNOWN!r}]"
        say(f"{found.unknown:,} of them may be of a type that was never trained ({column})", quiet)
    if found.correction is not None:
        column = "corrected" if as_table else f"obs[{CORRECTED!r}]"
        described = found.correction.describe(found.query.read.batch_names)
        say(f"{described} ({column}; transductive: by what their cells share)", quiet)
    say(f"{sum(found.labels.values()):,} cells annotated in {output}", quiet)


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


def _state_of(folder: Path) -> str:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return "writable" if os.access(existing, os.W_OK) else "not writable: set SCDGN_CACHE"


class _Ending:
    """What Ctrl-C, SIGTERM and SIGUSR1, as batch systems send them, do to this process from here to its very end.

    They end the command: what is half done is removed. Once it is `over`, all is written and the status is settled;
    but the interpreter with all these libraries takes its time to end, and must not die of a signal on the way, or be
    said to have. So the first one is late, and nothing; the second one insists.
    """

    def __init__(self) -> None:
        self.over = self._late = False
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            return
        for number in STOPS:
            signal.signal(number, self)
        # The interpreter gives its handlers up before it clears its modules. What is registered first is called last.
        atexit.register(_ignore_stops)

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self.over:
            raise KeyboardInterrupt
        if self._late:
            os._exit(_INTERRUPTED)
        self._late = True


def _ignore_stops() -> None:
    """Not before nothing is left that could start a process: this, unlike a handler, is inherited."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _given(error: Exception) -> str:
    """The value that typer refuses, where its own words leave it out."""
    found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    value = repr(found[0]["input"]) if found else ""
    return f", not {value}" if value not in str(error) else ""


def _told(message: str) -> int:
    """Say what is wrong; the exit status of what the user can mend."""
    say("error: " + " ".join(message.split()), quiet=False)
    return 2


if __name__ == "__main__":
    main()

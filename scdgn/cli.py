"""The command line. Everything heavy is imported by the command that needs it, so that `--help` is immediate."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from scdgn import environment
from scdgn.analysis import commands as analysis_commands
from scdgn.commands import data as data_commands
from scdgn.commands import options
from scdgn.commands.options import DATA, EVALUATION, EXPERT, example
from scdgn.commands.terminal import STOPS, print_json, print_table, say
from scdgn.commands.training import train
from scdgn.errors import ScdgnError, SettingsError
from scdgn.search import commands as search_commands

if TYPE_CHECKING:
    from scdgn.model.prediction import Labelled

app = typer.Typer(
    help="Cell-type classifiers that generalise to an unseen batch: train, predict, look around.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


PROGRAM = "scdgn"
_INTERRUPTED = 130


def _tell_version(wanted: bool) -> None:
    if wanted:
        from scdgn import __version__

        print(f"scdgn {__version__}")
        raise typer.Exit


@app.callback()
def before(
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
        _refused("interrupted")
    sys.exit(status)


@cache
def _commands() -> Callable[..., object]:
    """The commands as click has them. Made of their signatures, which takes longer than many a command itself."""
    return cast(Callable[..., object], typer.main.get_command(app))


def _command() -> int:
    """Run the command that the words ask for, say what went wrong, and return the exit status."""
    try:
        status = _commands()(prog_name=PROGRAM, standalone_mode=False)
    except ScdgnError as error:
        return _refused(str(error))
    except MemoryError as error:
        return _refused(f"out of memory{f' ({error})' if str(error) else ''}: take fewer cells, genes or seeds")
    except BrokenPipeError:  # the reader of our output has gone, as in `scdgn datasets | head -1`
        sys.stderr.close()
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        mistake = error.format_message()  # on the command line, in typer's own words; none if it is empty
        return _refused(f"{mistake}{_given(error)} (`scdgn COMMAND --help` lists its options)") if mistake else 2
    return status if isinstance(status, int) else 0


def predict(
    data: Annotated[Path, typer.Argument(help="Cells to annotate, in a file as for training.", metavar="IN.h5ad")],
    model: Annotated[
        str, typer.Option(help="Folder of the model, a study's name, or models:/NAME@champion.", metavar="MODEL")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .h5ad, or a table (.csv, .tsv, .parquet).")
    ],
    layer: options.Layer = None,
    gene_key: options.GeneKey = None,
    batch_key: Annotated[
        str | None,
        DATA(help="Column of obs with the batches; only scaling per batch and --correct need it."),
    ] = None,
    values: options.Values = None,
    duplicate_genes: options.DuplicateGenes = None,
    correct: Annotated[
        bool | None,
        EVALUATION(
            "--correct/--no-correct",
            help="Take away what all types of a batch share against the training cells [default: as the model has it].",
        ),
    ] = None,
    majority_voting: Annotated[
        bool,
        EVALUATION(
            "--majority-voting", help="Give every cell the most frequent label of its cluster too; all cells in memory."
        ),
    ] = False,
    over_clustering: Annotated[
        str | None, DATA(help="Column of obs with the clusters for --majority-voting; made by default.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add the genes that speak most for each label, in uns['scdgn_genes'].")
    ] = False,
    top_k: Annotated[
        int | None,
        EXPERT(
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
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Annotate cells: label, confidence, probabilities and latent representation.

    An .h5ad is a copy of the input with the results added; a table holds label, confidence and the first types. Cells
    are read some thousands at a time, so that any number of them fits into memory. Majority voting, a model that scales
    per batch, and values stored by columns (CSC) need all cells in memory at once. Pictures show at most 10,000 cells.
    """
    given = locals()  # by the names of the settings
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
    votes = majority_voting or over_clustering is not None
    asked = Asked(options.fields_of(given), correct, votes, over_clustering, explain, top_k)
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


def doctor(as_json: options.AsJson = False) -> None:
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


def _refused(message: str) -> int:
    """Say what is wrong; the exit status of what the user can mend."""
    say("error: " + " ".join(message.split()), quiet=False)
    return 2


EXAMPLES: dict[Callable[..., Any], str] = {
    **search_commands.EXAMPLES,
    **analysis_commands.EXAMPLES,
    train: "train cells.h5ad --labels-key celltype --batch-key tech --test-batch new -o my_model",
    predict: "predict new.h5ad --model islets -o labels.csv",
    **data_commands.EXAMPLES,
    doctor: "doctor --json",
}
"""The commands, and the example at the end of the help of each."""

for command, words in EXAMPLES.items():
    app.command(epilog=example(f"scdgn {words}"))(command)

if __name__ == "__main__":
    main()

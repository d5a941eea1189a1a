"""What the commands have in common: their options and how they print."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

STOPS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""Ctrl-C, and what batch systems send before the end: all of them stop a command alike."""


class MethodName(StrEnum):
    """The three methods."""

    nn = "nn"
    dann = "dann"
    scdgn = "scdgn"


class UnlabeledName(StrEnum):
    """What to do with cells whose label is missing."""

    error = "error"
    drop = "drop"
    domain = "domain"


class DuplicatesName(StrEnum):
    """Genes of the same name."""

    error = "error"
    first = "first"
    sum = "sum"


class PrecisionName(StrEnum):
    """How exactly matrix products are computed."""

    tf32 = "tf32"
    float32 = "float32"
    bf16 = "bf16"


PANELS = {
    "Data": (
        "obs", "labels_key", "batch_key", "group_key", "test_batch", "dataset", "path", "split", "splits", "data",
        "query", "layer", "gene_key", "values", "duplicate_genes", "missing_label", "keep_label", "min_batch_cells",
        "unlabeled", "unlabeled_category", "over_clustering",
    ),
    "Search": ("method", "trials", "timeout", "set_", "config", "adapt", "seed", "search_repeats", "preset", "peer"),
    "Evaluation": (
        "metric", "selection", "confirm", "final_seeds", "ensemble", "correct", "single", "refit_all", "promote",
        "protocol", "seeds", "early_stopping", "validation_fraction", "patience", "best_of_ten", "majority_voting",
    ),
    "Hardware": (
        "device", "precision", "engine", "address", "gpus_per_trial", "cpus_per_trial", "concurrency", "max_failures",
        "checkpoints", "checkpoint_every", "python",
    ),
    "Expert": (
        "fold_seeds", "max_folds", "search_cells", "sampler", "pruner", "pack", "reference", "portfolio", "enqueue",
        "storage", "n_top_genes", "gene_selection", "markers_per_type", "scaling",
    ),
}  # fmt: skip
"""Of the help of commands with many options: the options of each, by the names of the parameters."""


def in_panels(parameters: Iterable[Any]) -> None:
    """Sort the options of a command into `PANELS`; what is in none of them stays with the rest."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    for parameter in parameters:
        if parameter.param_type_name == "option":
            parameter.rich_help_panel = panels.get(parameter.name)


def example(words: str) -> str:
    """An example as the end of a command's help."""
    return f"Example: {words}"


DATA_HELP = (
    "Cells: .h5ad, .zarr, .h5 or a folder of 10x, .loom, .h5mu; several, or a folder of .h5ad, are joined by genes."
)
Obs = Annotated[
    Path | None,
    typer.Option(metavar="TABLE.csv", help="Columns of obs beside the data, by the cells' names in its first column."),
]
LabelsKey = Annotated[str | None, typer.Option(help="Column of obs with the cell types.")]
BatchKey = Annotated[str | None, typer.Option(help="Column of obs with the batches.")]
GroupKey = Annotated[
    str | None,
    typer.Option(help="Column of obs with groups of batches, such as studies: folds and --test-batch leave them out."),
]
Layer = Annotated[str | None, typer.Option(help="Layer with the values: X by default; raw for .raw.")]
GeneKey = Annotated[str | None, typer.Option(help="Column of var with the gene names; var_names by default.")]
Values = Annotated[
    str | None,
    typer.Option(
        metavar="KIND|BATCH=KIND,...",
        help="What the values are: counts, linear, log1p, log2, log10, sqrt, or log (of an unknown base). "
        "Told from the values of each batch by default.",
    ),
]
Duplicates = Annotated[
    DuplicatesName | None, typer.Option(help="Genes of the same name: refuse them, take the first, or their sum.")
]
MissingLabel = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL", help="A label that says that there is none (repeatable), beside NA, unknown, ..."),
]
KeepLabel = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL", help="A type whose name says that there is none, as Unknown does (repeatable)."),
]
MinBatchCells = Annotated[
    int | None, typer.Option(min=0, help="Take batches with fewer cells together, as one (of each group).")
]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
Precision = Annotated[PrecisionName, typer.Option(help="Of matrix products; bf16 is faster on a GPU, and coarser.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors alone.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]

WHOLE = 10_000
"""Width of what is piped."""

BEST, LEFT_OUT = "bold green", "dim"
"""Styles of the best and of what was pruned: they vanish where the output is no terminal, colours with NO_COLOR."""

STAR = "★"
"""Beside what was chosen."""


def print_table(title: str, header: list[str], rows: list[list[str]], quiet: bool, styles: Sequence[str] = ()) -> None:
    """A table on standard output, its title as a line above it.

    Parameters
    ----------
    title, header, rows
        What it says.
    quiet
        Whether to leave it out.
    styles
        One for each row; none by default.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if quiet:
        return
    console = Console()
    if not console.is_terminal:  # whoever reads it has all the width
        console.width = WHOLE
    if title:  # as a line of its own: a table would wrap it to its own width
        console.print(Text(title))
    table = Table(box=box.SIMPLE_HEAD, show_header=any(header))
    names, *others = ([header[place], *(row[place] for row in rows)] for place in range(len(header)))
    numbers = sum(max(map(len, column)) + 2 for column in others)
    # Names are there to be copied; but where one would take the place of the numbers, it is the name that is folded.
    crowded = max(map(len, names)) + 2 + numbers > console.width and numbers < 2 * console.width // 3
    for place, column in enumerate(header):
        table.add_column(column, no_wrap=crowded if place else not crowded, overflow="fold")
    for row, style in zip_longest(rows, styles):
        table.add_row(*(Text(cell) for cell in row), style=style)  # names are data: brackets in them are no markup
    console.print(table)


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(record))


def say(sentence: str, quiet: bool) -> None:
    """A remark, on standard error."""
    if not quiet:
        print(in_lines(sentence, sys.stderr), file=sys.stderr)


def say_command(words: str, quiet: bool) -> None:
    """A command to copy, in a line of its own, on standard error."""
    if not quiet:
        print(f"  {words}", file=sys.stderr)


def in_lines(sentence: str, stream: TextIO) -> str:
    """A sentence in lines of the terminal, which would cut words and numbers; whole where the stream is none."""
    return textwrap.fill(sentence, width_of(stream), break_long_words=False, break_on_hyphens=False)


def width_of(stream: TextIO) -> int:
    """Columns of a stream."""
    return shutil.get_terminal_size().columns if stream.isatty() else WHOLE


def folded(parts: Sequence[str], width: int) -> list[str]:
    """Parts with commas between them, as many in a line as fit in it, none of them divided."""
    lines: list[str] = []
    for place, part in enumerate(parts):
        written = part if place == len(parts) - 1 else f"{part},"
        if lines and len(lines[-1]) + 1 + len(written) <= width:
            lines[-1] += f" {written}"
        else:
            lines.append(written)
    return lines

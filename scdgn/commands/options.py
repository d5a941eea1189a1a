"""The options that several commands have, each with its type, its words and its panel of the help."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdgn.cells.settings import Duplicates, Unlabeled
from scdgn.core.config import Precision

if TYPE_CHECKING:
    from scdgn.cells.fields import Fields

DATA, SEARCH, EVALUATION, HARDWARE, EXPERT = (
    partial(typer.Option, rich_help_panel=name) for name in ("Data", "Search", "Evaluation", "Hardware", "Expert")
)
"""An option in a panel of the help, where a command has many."""

CellsFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Cells: .h5ad, .zarr, .h5 or a folder of 10x, .loom, .h5mu; several, or a folder of .h5ad, are joined by "
        "genes.",
        metavar="DATA.h5ad",
    ),
]
Obs = Annotated[
    Path | None,
    DATA(metavar="TABLE.csv", help="Columns of obs beside the data, by the cells' names in its first column."),
]
LabelsKey = Annotated[str | None, DATA(help="Column of obs with the cell types.")]
BatchKey = Annotated[str | None, DATA(help="Column of obs with the batches.")]
GroupKey = Annotated[
    str | None,
    DATA(help="Column of obs with groups of batches, such as studies: folds and --test-batch leave them out."),
]
Dataset = Annotated[str | None, DATA(help="A data set by name (`scdgn datasets`), not a file.")]
DatasetPath = Annotated[Path | None, DATA(help="Where the files of --dataset are, instead of a download.")]
Layer = Annotated[str | None, DATA(help="Layer with the values: X by default; raw for .raw.")]
GeneKey = Annotated[str | None, DATA(help="Column of var with the gene names; var_names by default.")]
Values = Annotated[
    str | None,
    DATA(
        metavar="KIND|BATCH=KIND,...",
        help="What the values are: counts, linear, log1p, log2, log10, sqrt, or log (of an unknown base). "
        "Told from the values of each batch by default.",
    ),
]
DuplicateGenes = Annotated[
    Duplicates | None, DATA(help="Genes of the same name: refuse them, take the first, or their sum.")
]
MissingLabels = Annotated[
    list[str] | None,
    DATA(
        "--missing-label",
        metavar="LABEL",
        help="A label that says that there is none (repeatable), beside NA, unknown, ...",
    ),
]
KeptLabels = Annotated[
    list[str] | None,
    DATA(
        "--keep-label",
        metavar="LABEL",
        help="A type whose name says that there is none, as Unknown does (repeatable).",
    ),
]
MinBatchCells = Annotated[
    int | None, DATA(min=0, help="Take batches with fewer cells together, as one (of each group).")
]
UnlabeledCells = Annotated[Unlabeled | None, DATA(help="Cells whose label is missing.")]
Device = Annotated[str, HARDWARE(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
Products = Annotated[Precision, HARDWARE(help="Of matrix products; bf16 is faster on a GPU, and coarser.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors alone.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]


def fields_of(options: Mapping[str, Any]) -> Fields:
    """Where the cells keep what is needed, from the options of a command by name."""
    from dataclasses import fields

    from scdgn.cells.fields import Fields

    given = {one.name: options[one.name] for one in fields(Fields) if options.get(one.name) is not None}
    return Fields(**{"labels_key": None, "batch_key": None, **given})


def example(words: str) -> str:
    """An example as the end of a command's help."""
    return f"Example: {words}"

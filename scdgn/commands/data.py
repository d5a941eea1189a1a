"""`scdgn datasets` and `scdgn simulate`: cells to try things on; what is heavy is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scdgn.commands import options
from scdgn.commands.terminal import print_json, print_table, say
from scdgn.errors import SettingsError

Shape = Literal["pancreas", "pbmc", "scquery"]
"""Data sets of the paper that can be simulated."""


def datasets(as_json: options.AsJson = False) -> None:
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


def simulate(
    output: Annotated[Path, typer.Argument(help="File to write.", metavar="OUT.h5ad")],
    shape: Annotated[Shape, typer.Option(help="Data set of the paper to resemble.")] = "pancreas",
    blocks: Annotated[
        str | None, typer.Option(help="Confound batch and type as in pancreas1 to pancreas6.", metavar="NAME")
    ] = None,
    cells: Annotated[int | None, typer.Option(min=1, help="Cells in all; those of the data set by default.")] = None,
    genes: Annotated[int | None, typer.Option(min=1, help="Genes; those of the data set by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write simulated counts of several platforms, with the types in obs["celltype"], platforms in obs["tech"]."""
    from dataclasses import replace

    from scdgn.cells.datasets import DATASETS
    from scdgn.cells.h5ad import write_h5ad
    from scdgn.cells.simulate import paper_shape
    from scdgn.cells.simulate import simulate as draw
    from scdgn.errors import nearest
    from scdgn.files import new_file

    settings = paper_shape(shape, seed)
    if cells is not None:
        total = sum(settings.cells.values())
        settings = replace(settings, cells={name: max(1, n * cells // total) for name, n in settings.cells.items()})
    if genes is not None:
        settings = replace(settings, genes=genes)
    if blocks is not None:
        known = {name: entry.blocks for name, entry in DATASETS.items() if entry.blocks and entry.url}
        chosen = known.get(blocks)
        if chosen is None or shape != "pancreas":
            raise SettingsError(f"blocks {blocks!r} are not of the shape {shape!r}: {nearest(blocks, known)}")
        settings = replace(settings, present=dict(chosen.keep))
    with new_file(output) as place:
        adata = draw(settings)
        write_h5ad(adata, place)
    summary = {"output": str(output), "cells": adata.n_obs, "genes": adata.n_vars}
    if as_json:
        print_json(summary)
    else:
        say(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes written to {output}", quiet)


EXAMPLES: dict[Callable[..., Any], str] = {
    datasets: "datasets --json",
    simulate: "simulate islets.h5ad --blocks pancreas1 --cells 1200 --genes 800",
}

"""The picture that the README opens with, and the numbers of the table that it is drawn from.

    python -m benchmarks.opening README.md -o docs/pictures/versus.png
    python -m benchmarks.opening STUDIES --name NAME

The first draws the means of the README's table of tuned methods: what each scores without a look at the batch that it
annotates, and with one. The second prints what stands there, of studies that `scdgn reproduce` and `scdgn peers` have
made: the means over the data sets, and those of the exported models, plain and corrected for the test batch.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from scdgn.analysis.page.style import METHOD_COLOURS, styled
from scdgn.analysis.peers import table
from scdgn.analysis.studies.results import grouped, read_all

INK = "#7d8590"
"""Grey that can be read on a page of either colour; the ground is transparent."""

OURS = {"scDGN": METHOD_COLOURS["scdgn"], "DANN": METHOD_COLOURS["dann"], "NN": METHOD_COLOURS["nn"]}

ROW = re.compile(r"^\| (\w+), tuned \|[^|]*\|([^|]*)\|([^|]*)\|")
PEER = re.compile(r"\| ([\w ]+), (?:tuned|defaults)( \\\*)?(?: \(of [\d-]+\))? \| (0\.\d+) \|$")


class Bar(NamedTuple):
    """A method's mean macro-F1 without sight of the cells that it annotates, and with it; None where there is none."""

    name: str
    blind: float | None
    seeing: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--name")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.name is not None:
        means(options.source, options.name)
    else:
        with styled():
            drawn([*bars(options.source.read_text(encoding="utf-8"))]).savefig(
                options.output, dpi=200, transparent=True
            )


def bars(readme: str) -> Iterator[Bar]:
    """The rows of the table of tuned methods."""
    for line in readme.splitlines():
        if ours := ROW.match(line):
            blind, seeing = (float(cell.strip(" *")) for cell in ours.groups()[1:])
            yield Bar(ours[1], blind, seeing)
        if peer := PEER.search(line):
            name, score = peer[1].strip().replace(" with kNN", " + kNN"), float(peer[3])
            yield Bar(name, *((None, score) if peer[2] else (score, None)))


def drawn(rows: list[Bar]) -> Figure:
    """A row per method, the best on top: a full dot without sight of the cells, a ring with it."""
    rows = sorted(rows, key=lambda one: max(one.blind or 0, one.seeing or 0))
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    ax = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = OURS.get(row.name, INK)
        known = [value for value in (row.blind, row.seeing) if value is not None]
        ax.plot([0.3, max(known)], [place] * 2, color=colour, linewidth=1.2, alpha=0.45, zorder=1)
        if row.blind is not None:
            ax.scatter(row.blind, place, s=80, color=colour, zorder=2)
        if row.seeing is not None:
            ax.scatter(row.seeing, place, s=80, facecolor="none", edgecolor=colour, linewidth=2, zorder=2)
        ax.annotate(f"{max(known):.2f}", (max(known), place), (9, 0), textcoords="offset points", va="center",
                    color=colour, fontsize=12, fontweight="bold" if row.name in OURS else "normal")  # fmt: skip
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=12)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set(color=OURS.get(row.name, INK), fontweight="bold" if row.name in OURS else "normal")
    ax.scatter([], [], s=80, color=INK, label="never saw the batch")
    ax.scatter([], [], s=80, facecolor="none", edgecolor=INK, linewidth=2, label="saw its cells, no labels")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=11, handletextpad=0.1,
                  columnspacing=1)  # fmt: skip
    ax.set(xlim=(0.3, 0.8))
    ax.set_xlabel("macro-F1 on a batch never trained on", color=INK, fontsize=12)
    ax.tick_params(axis="x", colors=INK, labelsize=11)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    return figure


def means(folder: Path, name: str) -> None:
    """Print them, of all studies of that name."""
    studies = read_all(folder, [name])[0]
    compared = table(grouped(studies))
    compared["method"] += compared["settings"].map({"tuned": "", "defaults": " (defaults)"})
    compared["method"] += compared["sees_test"].map({True: " *", False: ""})
    over = compared.groupby("method")[["macro_f1", "accuracy"]].agg(["mean", "count"]).round(3)
    print(over.sort_values(("macro_f1", "mean"), ascending=False).to_string())
    print("* trained on the test cells too, without their types")
    exported = pd.DataFrame(
        {"method": study.method} | {way: scores.macro_f1 for way, scores in vars(study.search.model.test).items()}
        for study in studies
    )
    print(f"exported\n{exported.groupby('method').mean().round(3).to_string()}")


if __name__ == "__main__":
    main()

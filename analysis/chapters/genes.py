"""Which genes speak for a cell type: integrated gradients, the authors' gradient ascent, known markers as a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scdgn.analysis.chapters.markers import known_markers
from scdgn.analysis.page.sections import Picture, Section, Table, Text
from scdgn.analysis.page.style import DIVERGING, canvas, short, styled
from scdgn.analysis.studies.cells import TRAINING, Described
from scdgn.analysis.studies.results import TITLES
from scdgn.core.networks import Model
from scdgn.core.rejection import auroc
from scdgn.model.attribution import STEPS, integrated_gradients, type_logits

CELLS_PER_TYPE = 200
"""Training cells of a type over which attributions are averaged; of more, so many are drawn."""

ASCENT_STEPS, ASCENT_RATE = 100, 1.0
"""Of the gradient ascent, as the authors' code has them."""

TOP = 10
"""Genes of a type in the table."""

MOST_ROWS = 60
"""Genes in the heat map."""

MOST_TYPES = 40
"""Types in the heat map; of more, those with the most training cells."""

MARKED = 0.2
"""Of the largest contribution: from it a gene that speaks by its absence is marked in the heat map."""


def attribution(cells: Described, per_type: int = CELLS_PER_TYPE, steps: int = STEPS) -> pd.DataFrame:
    """How much each gene speaks for each cell type, averaged over the models of the ensemble.

    Integrated gradients (`scdgn.model.attribution.integrated_gradients`) from the mean of the training cells, averaged
    over training cells of the type: `per_type` at most, the same ones every time, in `steps` of the quadrature.

    Gradient ascent as in the authors' code (Ge et al. 2020, feature_importance.ipynb): from an input of zeros (the mean
    cell where genes are standardised, else a cell without expression) ASCENT_STEPS steps of the gradient of the type's
    logit; genes are ranked by how far they moved, up or down.

    Returns
    -------
    A row for each type with training cells and each gene of the model, by type, then by rank: `Type`, `Gene`,
    `Integrated gradient`, `Rank` (1 speaks most for the type), `Ascent`, `Ascent rank` (1 moved farthest), `Shift`
    (mean input of the type's training cells minus that of all).
    """
    training = np.flatnonzero((cells.part == TRAINING) & (cells.labels >= 0))
    if not len(training):
        return pd.DataFrame(columns=_COLUMNS)
    x = cells.input(training).leading
    labels, genes = cells.labels[training], cells.bundle.preprocessing.genes
    mean = x.mean(dim=0)  # (genes,)
    generator = np.random.default_rng(0)
    rows = {}
    for code in np.unique(labels):
        found = np.flatnonzero(labels == code)
        rows[int(code)] = found if len(found) <= per_type else np.sort(generator.choice(found, per_type, replace=False))
    models = cells.bundle.parts[0].models
    ascents = [_ascent(model) for model in models]
    parts = []
    for code, own in rows.items():
        knowing = [place for place, model in enumerate(models) if model.types[code]]
        if not knowing:
            continue
        gradient = np.mean(
            [integrated_gradients(models[place], x[own], mean, code, steps) for place in knowing], axis=0
        )
        ascent = np.mean([ascents[place][code] for place in knowing], axis=0)
        part = pd.DataFrame(
            {
                "Type": cells.cell_types[code],
                "Gene": genes,
                "Integrated gradient": gradient,
                "Rank": _ranks(gradient),
                "Ascent": ascent,
                "Ascent rank": _ranks(np.abs(ascent)),
                "Shift": (x[own].mean(dim=0) - mean).numpy(),
            }
        )
        parts.append(part.sort_values("Rank", kind="stable"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


def markers(frame: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Where marker genes, known by type, come in the rankings of their types by `attribution`.

    Returns
    -------
    A row for each marker that is a gene of the model, by type, then by rank: `Type`, `Gene`, `Rank`, `Percentile` (the
    share of the other genes that come after it, in percent), `Ascent rank`, `Ascent percentile`.
    """
    parts = []
    for name, own in frame.groupby("Type", sort=False):
        found = own[own["Gene"].isin(list(known.get(str(name), ())))]
        others = len(own) - 1
        parts.append(
            pd.DataFrame(
                {
                    "Type": found["Type"],
                    "Gene": found["Gene"],
                    "Rank": found["Rank"],
                    "Percentile": 100 * (len(own) - found["Rank"]) / max(others, 1),
                    "Ascent rank": found["Ascent rank"],
                    "Ascent percentile": 100 * (len(own) - found["Ascent rank"]) / max(others, 1),
                }
            )
        )
    columns = ["Type", "Gene", "Rank", "Percentile", "Ascent rank", "Ascent percentile"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def marker_summary(frame: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How high the known markers of each type rank, in one row.

    The AUROC is the probability that a marker comes before a gene that is none (0.5: by chance). Beside the two
    rankings stands that by `Shift`, the genes that are higher in the type than in the mean training cell, in the
    network's input: no network, the plain difference of expression.

    Returns
    -------
    By type: `Type`, `Known` markers, `Present` among the genes, `Median percentile`, `AUROC`, `Ascent AUROC`,
    `Expression AUROC`.
    """
    ranked = markers(frame, known)
    rows = []
    for name, own in frame.groupby("Type", sort=False):
        genes = set(known.get(str(name), ()))
        is_marker = own["Gene"].isin(list(genes)).to_numpy()
        if is_marker.any():
            rows.append(
                {
                    "Type": name,
                    "Known": len(genes),
                    "Present": int(is_marker.sum()),
                    "Median percentile": ranked.loc[ranked["Type"] == name, "Percentile"].median(),
                    "AUROC": _of_markers(own["Integrated gradient"].to_numpy(), is_marker),
                    "Ascent AUROC": _of_markers(own["Ascent"].abs().to_numpy(), is_marker),
                    "Expression AUROC": _of_markers(own["Shift"].to_numpy(), is_marker),
                }
            )
    columns = ["Type", "Known", "Present", "Median percentile", "AUROC", "Ascent AUROC", "Expression AUROC"]
    return pd.DataFrame(rows, columns=columns)


def heat_map(frame: pd.DataFrame) -> Figure:
    """The first genes of each type by `attribution`, and how much they speak for or against every type."""
    types = list(dict.fromkeys(frame["Type"]))
    first = int(np.clip(MOST_ROWS // len(types), 1, 5))
    genes = list(dict.fromkeys(frame.loc[frame["Rank"] <= first, "Gene"]))[:MOST_ROWS]
    table, shift = (
        frame.pivot(index="Gene", columns="Type", values=values).loc[genes, types]
        for values in ("Integrated gradient", "Shift")
    )
    largest = table.abs().max(axis=0)
    shares = (table / largest.where(largest > 0, 1.0)).to_numpy()  # (genes, types)
    with styled():
        width = min(8.0, 2.6 + 0.42 * len(types))
        figure, axes = canvas(width, 1.5 + 0.155 * len(genes), least=width)
        ax = axes[0, 0]
        image = ax.imshow(shares, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        for row, column in np.argwhere((shares >= MARKED) & (shift.to_numpy() < 0)):
            shade = "white" if shares[row, column] > 0.6 else "black"
            ax.text(column, row, "\N{MINUS SIGN}", ha="center", va="center", color=shade)
        ax.set_xticks(range(len(types)), [short(name, 18) for name in types], rotation=90)
        ax.set_yticks(range(len(genes)), [short(gene, 18) for gene in genes], fontsize=7)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, label="against the type  |  for the type", shrink=0.5, ticks=[-1, 0, 1])
    return figure


def section(cells: Described) -> Section | None:
    """The part of the report on genes; None where there are no training cells."""
    frame = attribution(cells)
    if frame.empty:
        return None
    models = len(cells.bundle.parts[0].models)
    of = f"{TITLES[cells.bundle.settings.method]}, " + (f"mean over {models} models" if models > 1 else "one model")
    top = frame[frame["Rank"] <= TOP]
    training = Counter(cells.type_names[cells.part == TRAINING])
    types = sorted(frame["Type"].unique(), key=lambda name: -training[name])
    shown = frame[frame["Type"].isin(types[:MOST_TYPES])]
    cut = f" Of {len(types)} types the {MOST_TYPES} with the most training cells." if len(types) > MOST_TYPES else ""
    items: list[Text | Table | Picture] = [
        Picture("genes", _MAP_CAPTION.format(of=of) + cut, lambda: heat_map(shown)),
        Table("genes-top", _TOP_CAPTION.format(of=of, top=TOP, cells=CELLS_PER_TYPE), top),
    ]
    known = known_markers(cells.cell_types)
    summary = marker_summary(frame, known)
    if len(summary):
        genes, each = frame["Gene"].nunique(), markers(frame, known)
        items += [
            Text(_in_words(summary, each, genes)),
            Table("genes-markers", _SUMMARY_CAPTION.format(genes=genes), summary),
            Table("genes-markers-each", _MARKERS_CAPTION, each, decimals=1),
        ]
    elif known:
        items.append(Text("No known marker gene of these types is among the genes of the model."))
    else:
        items.append(
            Text("Whether known marker genes rank high is checked for types of human blood and pancreas only.")
        )
    return Section("Genes", tuple(items))


def _ascent(model: Model) -> NDArray[np.float32]:
    """Where an input of zeros has moved to, for each type; (types, genes)."""
    weight, bias = model.weights["hidden.weight"], model.weights["hidden.bias"][:, 0]
    x = torch.zeros(len(model.types), weight.shape[1])
    for _ in range(ASCENT_STEPS):
        x = x.requires_grad_()
        # The rows know nothing of each other: one sum has the gradient of each.
        (slope,) = torch.autograd.grad(type_logits(model, x @ weight.T + bias).diagonal().sum(), x)
        x = (x + ASCENT_RATE * slope).detach()
    return np.asarray(x.numpy())


def _ranks(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """1 for the largest; equal values in the order of the genes."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return ranks


def _of_markers(values: NDArray[np.floating], is_marker: NDArray[np.bool_]) -> float:
    """The AUROC of markers; NaN where there are no other genes."""
    return float("nan") if is_marker.all() else auroc(values[~is_marker], values[is_marker])


def _in_words(summary: pd.DataFrame, each: pd.DataFrame, genes: int) -> str:
    auroc, ascent, expression = (summary[f"{kind}AUROC"].mean() for kind in ("", "Ascent ", "Expression "))
    return (
        f"A check with what is known: {int(summary['Present'].sum())} markers of {len(summary)} types are among the "
        f"{genes} genes. In the ranking of its type by integrated gradients the median marker comes before "
        f"{each['Percentile'].median():.1f} % of the other genes, and the mean AUROC over the types is "
        f"{auroc:.2f} (0.5 would be chance); by gradient ascent {ascent:.2f}, and by the plain difference of "
        f"expression, with no network, {expression:.2f}."
    )


_COLUMNS = ["Type", "Gene", "Integrated gradient", "Rank", "Ascent", "Ascent rank", "Shift"]

_MAP_CAPTION = (
    "Genes that speak most for each cell type by integrated gradients ({of}), on training cells: red speaks for the "
    "type, blue against it, each column divided by its largest amount. A minus marks genes that speak for the type by "
    "being lower in it than in the mean training cell."
)
_TOP_CAPTION = (
    "The {top} genes that speak most for each type ({of}). Integrated gradient: contribution to the type's logit "
    "against the mean of all logits, mean over at most {cells} training cells of the type, from the mean training "
    "cell; over all genes they sum to the difference between the two. Ascent rank: place in the authors' ranking by "
    "gradient ascent. Shift: mean input of the type minus that of all training cells; a gene with a negative one "
    "speaks by its absence."
)
_SUMMARY_CAPTION = (
    "Known marker genes among the {genes} genes of the model, by type. Median percentile: of the markers present, in "
    "the ranking by integrated gradients, best at 100. AUROC: probability that a marker comes before another gene, "
    "best at 1, by chance 0.5; by integrated gradients, by gradient ascent, and by the plain difference of "
    "expression, which needs no network. Markers: Azimuth references of blood (Hao et al. 2021) and pancreas; "
    "PanglaoDB (Franzén et al. 2019). With few markers present a row says little."
)
_MARKERS_CAPTION = (
    "Each known marker: its rank among the genes of the model (1 speaks most for the type), and the share of the "
    "other genes that come after it, in percent."
)

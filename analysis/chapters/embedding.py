"""Pictures of what the encoder makes of cells: PCA and UMAP, of all of them and within a type or a batch."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from numpy.typing import NDArray

from scdgn.analysis.chapters.integration_metrics import between
from scdgn.analysis.page import style
from scdgn.analysis.page.sections import Item, Picture, Section
from scdgn.analysis.studies.cells import TEST, Described
from scdgn.analysis.studies.results import METHODS, TITLES
from scdgn.errors import DataError
from scdgn.threads import same_threads

Kind = Literal["pca", "umap"]
By = Literal["type", "batch"]

MOST_POINTS = 3_000
"""Cells that are drawn; of more, so many that every type of every batch keeps its share."""

NEIGHBOURS, FEWEST_FOR_UMAP = 15, 30
"""Of each cell in a UMAP, itself among them; and the cells below which they say nothing."""

MOST_GROUPS = 6
"""Types, or batches, that get panels of their own."""

MOST_NAMED = 16
"""Types, or batches, that get a colour of their own; smaller ones are grey together."""

BY: tuple[By, ...] = ("type", "batch")

OTHERS = style.Look(style.GREY, "o")
"""Of cells without a label, or of types or batches that are too many to tell apart."""


def coordinates(cells: Described, kind: Kind) -> pd.DataFrame:
    """The encoder's output in two dimensions, of all cells.

    Parameters
    ----------
    kind
        `pca`: the two directions in which these cells differ most. `umap`: McInnes et al. (2018), begun at the PCA and
        seeded, so the same every time on the same machine.

    Returns
    -------
    `cell`, `x`, `y`, `type` (empty without a label), `batch` and `part`. Of a PCA, attrs["explained"] has the shares of
    variance of both axes.

    Raises
    ------
    DataError
        If a UMAP of fewer than FEWEST_FOR_UMAP cells is asked for.
    """
    places, explained = _principal(cells.latent)
    if kind == "umap":
        if len(places) < FEWEST_FOR_UMAP:
            raise DataError(f"there are {len(places)} cells, too few for a UMAP: use the PCA")
        places = _umap(cells.latent, places)
    table = _table(cells, places)
    if kind == "pca":
        table.attrs["explained"] = explained
    return table


def within_groups(cells: Described, by: By, groups: Sequence[str]) -> pd.DataFrame:
    """A PCA of the cells of each type, which batches may divide, or of each batch, which types should divide, alone.

    Returns
    -------
    As `coordinates`, group after group, with `group` and with `between`: the share of the variance of the group's
    cells, over all dimensions of the encoder's output, that lies between the means of its batches (of its types); NaN
    where there is one only.
    """
    tables = []
    names = cells.type_names if by == "type" else cells.batch_names
    for group in groups:
        own = cells.take((names == group) & (cells.type_names != ""))
        table = _table(own, _principal(own.latent)[0])
        table.insert(0, "group", group)
        table["between"] = between(own.latent, own.batch_names if by == "type" else own.type_names)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Cells by `coordinates`, methods side by side, of the same cells: coloured by type above, by batch below; test
    cells have edges.
    """
    first = next(iter(tables.values()))
    with style.styled():
        drawing, axes = style.canvas(8.0, 5.6, rows=2, columns=len(tables))
        for row, by in zip(axes, ("type", "batch"), strict=True):
            entries = _entries(first[by])
            for panel, (method, table) in zip(row, tables.items(), strict=True):
                _scatter(panel, table, table[by].to_list(), entries)
                _name_axes(panel, table)
                panel.set_title(f"{TITLES[method]}, by {by}")
            style.legend_beside(row[-1], entries, by)
    return drawing


def figure_of_groups(tables: Mapping[str, pd.DataFrame], by: By) -> Figure:
    """Cells by `within_groups`, each type coloured by batch, or each batch by type; methods side by side, of the same
    cells and groups.
    """
    first = next(iter(tables.values()))
    divided: By = "batch" if by == "type" else "type"
    entries = _entries(first[divided])
    groups = list(dict.fromkeys(first["group"]))
    beside = min(len(groups), 4 // len(tables))
    rows = -(-len(groups) // beside)
    with style.styled():
        drawing, axes = style.canvas(
            8.0, max(1.9 * rows, 0.6 + 0.17 * len(entries)), rows=rows, columns=beside * len(tables)
        )
        panels = axes.reshape(-1, len(tables))  # (groups, methods)
        style.leave_empty(panels[len(groups) :].ravel())
        for group, row in zip(groups, panels, strict=False):
            for panel, (method, table) in zip(row, tables.items(), strict=True):
                own = table[table["group"] == group]
                _scatter(panel, own, own[divided].to_list(), entries)
                share = own["between"].iloc[0]
                number = "no variance" if np.isnan(share) else f"{share:.2f}"
                panel.set_title(f"{style.short(group, 18)}\n{TITLES[method]}: {number}", fontsize=8)
        style.legend(drawing, entries, divided)
    return drawing


def section(cells_by_method: Mapping[str, Described], chosen: str = "scdgn") -> Section | None:
    """Pictures of the encoders' outputs, side by side; None where there is no method.

    Parameters
    ----------
    cells_by_method
        The same cells as the models of `nn`, `dann` and `scdgn` see them; those that are there.
    chosen
        The method that is shown group by group, beside the plain network; scDGN where that was chosen itself.
    """
    methods = [method for method in METHODS if method in cells_by_method]
    if not methods:
        return None
    drawn = {method: sampled(cells_by_method[method]) for method in methods}
    some = drawn[methods[0]]
    of = f"the encoder's output, {_in_words(some, len(cells_by_method[methods[0]].part))}"
    good = (
        "Above, cells of one type (the true one) should lie together, and apart from other types; below, batches "
        "should mix wherever they share types. Two dimensions hide most of the output: let the numbers of alignment "
        "judge, not the eye."
    )
    components = {method: coordinates(cells, "pca") for method, cells in drawn.items()}
    items: list[Item] = [
        Picture(
            "pca",
            f"Principal components of {of}. Axes are the two directions in which all these cells differ most, with "
            f"their shares of the variance. {good}",
            lambda: figure(components),
        )
    ]
    if len(some.part) >= FEWEST_FOR_UMAP:
        neighbours = {method: coordinates(cells, "umap") for method, cells in drawn.items()}
        items.append(
            Picture(
                "umap",
                f"UMAP of {of}. Near cells are alike to the encoder; the distances between groups, and how large they "
                f"are, mean little. {good}",
                lambda: figure(neighbours),
            )
        )
    beside = chosen if chosen in methods[1:] else methods[-1]
    two = {method: drawn[method] for method in (methods[0], beside)}
    items += [_within(two, by) for by in BY if _groups(some, by)]
    return Section("What the encoders make of the cells", tuple(items))


def _within(cells_by_method: Mapping[str, Described], by: By) -> Picture:
    some = next(iter(cells_by_method.values()))
    groups = _groups(some, by)
    divided, better = ("batches", "lower is better") if by == "type" else ("types", "higher is better")
    several = sum(len(set(others)) > 1 for others in _divided(some, by).values())
    kinds = {"type": "types", "batch": "batches"}[by]
    which = f"the {len(groups)} largest of {several} {kinds}" if several > len(groups) else f"all {kinds}"
    tables = {method: within_groups(cells, by, groups) for method, cells in cells_by_method.items()}
    return Picture(
        f"pca-per-{by}",
        f"Principal components of the encoder's output of each {by} alone ({which} that have cells of several "
        f"{divided}), coloured by {divided}; {_in_words(some)}. Each panel has its own axes. Its number is the share "
        f"of the variance of its cells, over all dimensions, that lies between the means of {divided}: {better}.",
        lambda: figure_of_groups(tables, by),
    )


def _in_words(cells: Described, whole: int | None = None) -> str:
    """How many cells, and which of them are test cells."""
    test = cells.part == TEST
    batches = sorted(set(cells.batch_names[test]))
    count = f"{len(test):,} cells" + (f" drawn from {whole:,}" if whole is not None and whole > len(test) else "")
    if not len(batches):
        return f"{count}, none of them for the test"
    held_out = f"batch {batches[0]}" if len(batches) == 1 else f"{len(batches)} batches"
    return f"{count}; the {int(test.sum()):,} test cells ({held_out}) have an edge"


def sampled(cells: Described) -> Described:
    """At most MOST_POINTS cells, evenly from parts, batches and types; the same whatever the model."""
    if len(cells.part) <= MOST_POINTS:
        return cells
    order = np.lexsort((cells.dataset.labels, cells.dataset.batches, cells.part))
    return cells.take(np.sort(order[np.linspace(0, len(order) - 1, MOST_POINTS).astype(np.int64)]))


def _divided(cells: Described, by: By) -> dict[str, NDArray[np.str_]]:
    """The batches of the cells of each type, or the types of those of each batch, of the largest first."""
    labelled = cells.type_names != ""
    names, others = (cells.type_names, cells.batch_names)[:: 1 if by == "type" else -1]
    counts = Counter(sorted(names[labelled].tolist()))
    return {name: others[labelled & (names == name)] for name, _ in counts.most_common()}


def _groups(cells: Described, by: By) -> list[str]:
    """The largest types (batches) that have cells of several batches (types), sorted."""
    several = [name for name, others in _divided(cells, by).items() if len(set(others)) > 1]
    return sorted(several[:MOST_GROUPS])


def _table(cells: Described, places: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cell": cells.dataset.cells,
            "x": places[:, 0],
            "y": places[:, 1],
            "type": cells.type_names,
            "batch": cells.batch_names,
            "part": cells.part,
        }
    )


def _principal(latent: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """(cells, 2) scores and shares of variance of the first two components; zeros where there are fewer."""
    centred = latent.astype(np.float64) - latent.mean(axis=0, dtype=np.float64)
    # Of the covariance, (latent, latent): cells are many.
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :2]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    places = np.zeros((len(latent), 2))
    places[:, : directions.shape[1]] = centred @ directions
    total = variances.sum()
    shares = np.zeros(2)
    shares[: directions.shape[1]] = variances[::-1][:2] / total if total > 0 else 0.0
    return places, (float(shares[0]), float(shares[1]))


def _umap(latent: NDArray[np.float32], start: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.ptp(latent, axis=0).max() == 0:  # no two cells differ: nothing to spread
        return np.zeros_like(start)
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obsm={"latent": latent})
    with same_threads(), warnings.catch_warnings():
        # Said on import without TensorFlow, of a part that is not used.
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        # scanpy's own doing, where cells are identical.
        warnings.filterwarnings("ignore", message="Changing the sparsity structure")
        # Not by umap-learn's own fit, which takes ten times as long to find the neighbours of few cells.
        sc.pp.neighbors(cells, n_neighbors=NEIGHBOURS, use_rep="latent", random_state=0)
        sc.tl.umap(cells, init_pos=start.astype(np.float32), random_state=0)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float64)


def _entries(names: pd.Series[str]) -> dict[str, style.Look]:
    """Looks of the largest types or batches by name, and a grey one for each kind of others there are."""
    counts = Counter(sorted(name for name in names if name))
    largest = sorted(name for name, _ in counts.most_common(MOST_NAMED))
    # Points are too small for a marker each: colours alone, as far as they go.
    entries = {
        name: style.Look(style.COLOURS[place % len(style.COLOURS)], style.MARKERS[place // len(style.COLOURS)])
        for place, name in enumerate(largest)
    }
    if len(counts) > len(largest):
        entries[f"{len(counts) - len(largest)} smaller ones"] = OTHERS
    if (names == "").any():
        entries["no label"] = OTHERS
    return entries


def _scatter(panel: Axes, table: pd.DataFrame, names: list[str], entries: Mapping[str, style.Look]) -> None:
    """Points in one random order, so that no type, batch or part covers another; test cells have edges."""
    order = np.random.default_rng(0).permutation(len(table))
    found = [entries.get(names[row], OTHERS) for row in order]
    test = table["part"].to_numpy()[order] == TEST
    small = min(1.5 * style.point_size(len(table)), 8.0)
    # rasterized: pixels in .svg files too, where thousands of paths would be slow to show.
    points = panel.scatter(
        table["x"].to_numpy()[order],
        table["y"].to_numpy()[order],
        s=np.where(test, 2 * small, small),
        c=[look.colour for look in found],
        edgecolors=np.where(test, "#222222", "none").tolist(),
        linewidths=0.3,
        rasterized=True,
    )
    shapes = {marker: MarkerStyle(marker) for marker in {look.marker for look in found}}
    outlines = {marker: shape.get_path().transformed(shape.get_transform()) for marker, shape in shapes.items()}
    points.set_paths([outlines[look.marker] for look in found])  # a marker each, and still one order
    panel.set_xticks([])
    panel.set_yticks([])


def _name_axes(panel: Axes, table: pd.DataFrame) -> None:
    explained = table.attrs.get("explained")
    names = (
        ("UMAP 1", "UMAP 2") if explained is None else [f"PC {n} ({share:.0%})" for n, share in enumerate(explained, 1)]
    )
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])

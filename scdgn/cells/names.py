"""Names of genes, cell types and batches: which columns hold them, and what is none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import as_matrix
from scdgn.cells.fields import QUERY, Annotated, Fields
from scdgn.cells.values import Matrix
from scdgn.core.config import UNLABELED
from scdgn.errors import count, listed, nearest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MOST_GROUPS = 100
"""So many types, or batches, are taken for what they are, however few cells each has."""

ROWS_PER_GENE = 10
"""Numbers below so many times their count are those of rows. Entrez identifiers of as many genes go far beyond it."""

NAMED = 3
"""Names told as examples."""

EXPRESSION = "Gene Expression"
"""What 10x calls genes, beside antibodies and peaks, in var["feature_types"]."""

_MISSING_NAMES = frozenset(["", "nan", "none", "<na>", "na", "n/a", "#n/a", "null"])
"""What str() makes of the missing values of Python, NumPy and pandas, what tables write for them, an empty field: in
lower case, without blanks at the ends."""

_NO_TYPE = _MISSING_NAMES | {
    "unknown", "unassigned", "unlabeled", "unlabelled", "unannotated", "unclassified", "undetermined", "undefined",
    "not available", "missing", "?", "-",
}  # fmt: skip
"""Of a label, also the words by which data say that a type is not known."""


@dataclass(frozen=True, eq=False)
class Genes:
    """Which genes of a matrix are taken: (genes,) unique names.

    Attributes
    ----------
    read
        (columns,) names of those that are read, before those of the same name are summed.
    columns
        Where these are among all; None for all of them.
    repeated
        (columns,) code of each that is read into `names`; None where no name is repeated.
    """

    names: NDArray[np.str_]
    read: NDArray[np.str_]
    columns: NDArray[np.int64] | None = None
    repeated: NDArray[np.int64] | None = None

    @classmethod
    def of_all(cls, cells: Annotated) -> Genes:
        """All of them by the names of var, where the names wanted are not there."""
        names = np.asarray(cells.var.index, dtype=str)
        return cls(names, names)

    def take(self, x: Matrix) -> Matrix:
        """The columns that are read."""
        return x if self.columns is None else as_matrix(x[:, self.columns])

    def united(self, x: Matrix) -> Matrix:
        """Genes of the same name added up."""
        if self.repeated is None:
            return x
        places = (np.ones(len(self.repeated), dtype=np.float32), (np.arange(len(self.repeated)), self.repeated))
        return as_matrix(x @ sp.csr_matrix(places, shape=(len(self.repeated), len(self.names))))


def genes_of(cells: Annotated, fields: Fields, faults: list[str]) -> Genes | None:
    """The genes to read, those that are no antibodies or the like; None, and a fault, without the column.

    Their names are unique unless a fault says otherwise.
    """
    key = fields.gene_key
    if key is None:
        names, missing = np.asarray(cells.var.index, dtype=str), np.zeros(cells.n_vars, dtype=bool)
    elif key in cells.var:
        if _is_twice(cells.var[key], f"var has several columns called {key!r}: rename all but one", faults):
            return None
        names, missing = _names(cells.var[key])
    else:
        faults.append(f"var has no column {key!r} (--gene-key): {nearest(key, cells.var)}")
        return None
    place = "var" if key is None else f"var[{key!r}]"
    kept = _are_genes(cells.var)
    if (missing & kept).any():
        faults.append(f"{(missing & kept).sum()} genes have no name in {place}: remove them, or fill the names in")
        kept &= ~missing
    names = names[kept]
    if _are_row_numbers(names):
        others = found_instead(name for name in cells.var if name != key)
        holds = "has" if key is None else "holds"
        faults.append(
            f"{place} {holds} no gene names, only row numbers ({', '.join(names[:NAMED])}, ...), which other data have "
            f"for other genes: name the column of var that holds the names with --gene-key {others}"
        )
    columns = None if kept.all() else np.flatnonzero(kept)
    unique, first, codes, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    if len(unique) == len(names):
        return Genes(names, names, columns)
    if fields.duplicate_genes == "error":
        twice = unique[counts > 1]
        shown = ", ".join(twice[:NAMED]) + (", ..." if len(twice) > NAMED else "")
        remedy = "call adata.var_names_make_unique(), " if key is None else ""
        faults.append(
            f"{place} holds {count(len(twice), 'gene name')} more than once ({shown}): {remedy}choose another "
            "column of var with --gene-key, or --duplicate-genes sum or first"
        )
        return Genes(names, names, columns)
    if fields.duplicate_genes == "first":
        first = np.sort(first)
        return Genes(names[first], names[first], np.flatnonzero(kept)[first])
    order = np.argsort(np.argsort(first))  # names keep the order of the file
    return Genes(names[np.sort(first)], names, columns, order[codes])


def _are_genes(var: pd.DataFrame) -> NDArray[np.bool_]:
    """(columns,) which are genes: all, unless var has them beside antibodies or peaks, whose counts are others."""
    if "feature_types" not in var:
        return np.ones(len(var), dtype=bool)
    found = (var["feature_types"].astype(str) == EXPRESSION).to_numpy()
    return found if found.any() else np.ones(len(var), dtype=bool)


def _are_row_numbers(genes: NDArray[np.str_]) -> bool:
    """Whether names are the numbers of rows, all of them or some; unlike Entrez identifiers these are small."""
    if len(genes) == 0 or not all(name.isdecimal() and name.isascii() for name in genes.tolist()):
        return False
    return max(map(int, genes.tolist())) < ROWS_PER_GENE * len(genes)


@dataclass(frozen=True)
class Labels:
    """The labels of cells, before they are codes."""

    names: NDArray[np.str_]
    unlabeled: NDArray[np.bool_]  # by the chosen category or for want of a name
    lost: NDArray[np.bool_]  # for want of a name


def labels_of(adata: AnnData, fields: Fields, faults: list[str]) -> Labels | None:
    """Labels as strings; None, and a fault, without the column."""
    key = fields.labels_key
    if key is None:
        return Labels(np.full(adata.n_obs, ""), np.ones(adata.n_obs, dtype=bool), np.zeros(adata.n_obs, dtype=bool))
    if key in adata.obs and key == fields.batch_key:
        faults.append(f"obs[{key!r}] cannot be both cell type and batch: choose another --labels-key or --batch-key")
        return None
    if not _has_column(adata, key, "--labels-key", faults):
        return None
    if (measure := _measured(adata.obs[key])) is not None:
        faults.append(f"obs[{key!r}] holds measurements ({measure:g}), not types: choose another --labels-key")
        return None
    names, missing = _names(adata.obs[key], _NO_TYPE - {name.strip().casefold() for name in fields.kept_labels})
    missing |= np.isin(names, list(fields.missing_labels))
    chosen = np.isin(names, [] if fields.unlabeled_category is None else [fields.unlabeled_category])
    lost = missing & ~chosen
    if fields.unlabeled == "error" and lost.any():
        written = _NO_TYPE - {"", "nan", "none", "<na>"}  # which str() makes of no value
        words = [word for word in np.unique(names[lost]).tolist() if word.strip().casefold() in written]
        called = (
            f" (among them those called {', '.join(map(repr, words))}; --keep-label keeps one that is a type)"
            if words
            else ""
        )
        faults.append(
            f"{lost.sum()} of {len(lost)} cells have no label in obs[{key!r}]{called}: drop them with --unlabeled "
            "drop, use them in the domain loss alone with --unlabeled domain, or name the label that marks them with "
            "--unlabeled-category"
        )
    faults += _alike(np.unique(names[~(missing | chosen)]), key, lambda name: " ".join(name.split()).casefold())
    types = np.unique(names[~(missing | chosen)])
    if adata.n_obs and len(types) < 2:
        held = f"one cell type only ({str(types[0])!r})" if len(types) else "no label"
        faults.append(f"obs[{key!r}] holds {held}, two types are needed: choose another column with --labels-key")
    if _too_many(len(types), adata.n_obs):
        faults.append(f"obs[{key!r}] holds {len(types):,} types for {adata.n_obs:,} cells: choose another --labels-key")
    return Labels(names, missing | chosen, lost)


def batches_of_cells(cells: Annotated, key: str | None, faults: list[str], least: int = 0) -> NDArray[np.str_] | None:
    """The batch of every cell, `QUERY` without a key; None, and a fault, without the column.

    Any number of them is right where those of fewer cells than `least` are taken together.
    """
    if key is None:
        return np.full(cells.n_obs, QUERY)
    if not _has_column(cells, key, "--batch-key", faults):
        return None
    names, missing = _names(cells.obs[key])
    if missing.any():
        faults.append(
            f"{missing.sum()} of {len(missing)} cells have no batch in obs[{key!r}]: fill the values in, or remove "
            "those cells"
        )
    faults += _alike(np.unique(names[~missing]), key, lambda name: " ".join(name.split()))
    if not least and _too_many(found := cells.obs[key].nunique(), len(names)):
        faults.append(
            f"obs[{key!r}] holds {found:,} batches for {len(names):,} cells: choose another --batch-key, or take small "
            "ones together with --min-batch-cells"
        )
    return names


SMALL = "small batches"
"""The batch of the cells of batches that are too small to be one; of a group, `SMALL` of that group."""


def groups_of(cells: Annotated, fields: Fields, faults: list[str]) -> dict[str, str] | None:
    """The group of every batch, by name, and of the small ones of each group; None without a key, or with a fault."""
    key, batch_key = fields.group_key, fields.batch_key
    if key is None or batch_key is None or batch_key not in cells.obs:
        return None
    if not _has_column(cells, key, "--group-key", faults):
        return None
    names, missing = _names(cells.obs[key])
    if missing.any():
        faults.append(f"{missing.sum()} of {len(missing)} cells have no group in obs[{key!r}]: fill the values in")
    batches, nowhere = _names(cells.obs[batch_key])
    known = ~(missing | nowhere)
    pairs = np.unique(np.stack([batches[known], names[known]]), axis=1)  # (2, pairs that occur)
    found, groups = np.unique(pairs[0], return_counts=True)
    if len(torn := found[groups > 1].tolist()):
        held = listed([repr(name) for name in pairs[1][pairs[0] == torn[0]].tolist()])
        others = f", and so do {len(torn) - 1:,} more" if len(torn) > 1 else ""
        faults.append(
            f"batch {torn[0]!r} lies in several groups of obs[{key!r}] ({held}){others}: choose another --group-key, "
            "or a --batch-key whose batches lie in one group each"
        )
        return None
    return dict(pairs.T.tolist()) | {small_batches(group): group for group in np.unique(pairs[1]).tolist()}


def small_batches(group: str | None) -> str:
    """The batch of the small ones of a group; of all without groups."""
    return SMALL if group is None else f"{SMALL} of {group}"


def _has_column(cells: Annotated, key: str, option: str, faults: list[str]) -> bool:
    """Whether the table of cells has one such column, which an option names; else a fault."""
    if key not in cells.obs:
        faults.append(f"obs has no column {key!r} ({option}): {nearest(key, cells.obs)}")
        return False
    return not _is_twice(cells.obs[key], f"obs has several columns called {key!r}: rename all but one", faults)


def _is_twice(column: object, fault: str, faults: list[str]) -> bool:
    """Whether a table has several columns of that name, which pandas gives as a table."""
    if getattr(column, "ndim", 1) == 1:
        return False
    faults.append(fault)
    return True


def _too_many(names: int, cells: int) -> bool:
    """Whether so many names are those of cells rather than of groups of cells."""
    return names > max(MOST_GROUPS, cells / 2)


def _measured(column: pd.Series[Any]) -> float | None:
    """A value that is no name of a type, as a column of scores has; None where there is none."""
    if column.dtype.kind != "f":
        return None
    values = column.to_numpy()
    fractions = values[np.isfinite(values) & (values != np.floor(values))]
    return float(fractions[0]) if fractions.size else None


def _names(
    column: pd.Series[Any], no_value: Collection[str] = _MISSING_NAMES
) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """A column of any type as strings, and where it has no value, or a word for none.

    Whole numbers stored as floats, as pandas does beside missing values, are written without the decimal point.
    """
    entries = column.astype(object)
    names = np.array([_name(entry) for entry in entries], dtype=str)
    words = [name for name in np.unique(names).tolist() if name.strip().casefold() in no_value]
    return names, entries.isna().to_numpy(dtype=bool) | np.isin(names, words)


def _alike(names: NDArray[np.str_], key: str, plain: Callable[[str], str]) -> list[str]:
    """A fault where several names become one when they are written plainly: they are meant to be the same."""
    groups: dict[str, list[str]] = {}
    for name in names.tolist():
        groups.setdefault(plain(name), []).append(name)
    if not (several := [group for group in groups.values() if len(group) > 1]):
        return []
    shown = "; ".join(" and ".join(map(repr, group)) for group in several[:NAMED])
    return [
        f"obs[{key!r}] writes {count(len(several), 'name')} in several ways ({shown}), told apart by blanks or case "
        "alone: write each in one way"
    ]


def _name(entry: object) -> str:
    return str(int(entry)) if isinstance(entry, float | np.floating) and entry.is_integer() else str(entry)


def encode(names: NDArray[np.str_], missing: NDArray[np.bool_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Codes into the sorted names, `UNLABELED` where one is missing; and the names."""
    codes = np.full(len(names), UNLABELED, dtype=np.int64)
    levels, codes[~missing] = np.unique(names[~missing], return_inverse=True)
    return codes, tuple(levels.tolist())


def found_instead(names: Iterable[object]) -> str:
    """What there is, in brackets, for the end of a sentence about what there is not."""
    listed = ", ".join(str(name) for name in names)
    return f"(found: {listed})" if listed else "(there are none)"

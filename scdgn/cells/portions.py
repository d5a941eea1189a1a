"""A matrix in an .h5ad file, some cells at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import as_matrix
from scdgn.cells.formats import format_of
from scdgn.cells.h5ad import check_h5ad, matrix_key, same_names_allowed, tables_of, told_as_damage, with_sound_indices
from scdgn.cells.values import NUMERIC, Matrix

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData

_KINDS = {"csr_matrix": "csr", "csc_matrix": "csc"}

_ENTRY = np.dtype([("row", "<i4"), ("gene", "<i4"), ("value", "<f4")])

VALUES_AT_ONCE = 16_000_000
"""Stored values of a portion, 128 MB as float32 CSR."""

CELLS_SURVEYED = 65_536
"""Cells of a portion, if they have no more values than that."""


@dataclass(frozen=True)
class StoredMatrix:
    """Values that stay in their file.

    Attributes
    ----------
    path, key
        The file, and the place in it.
    stored
        How many there are; of a dense matrix all.
    kind
        How they are stored.
    shape
        Cells and genes.
    """

    path: Path
    key: str
    stored: int
    kind: Literal["dense", "csr", "csc"]
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        """What they take in memory, with their genes where these are not all."""
        return self.stored * (4 if self.kind == "dense" else 8)

    def portions(self, scratch: Path, start: int = 0) -> Iterator[tuple[slice, Matrix]]:
        """Rows, and their values in memory, from a row on.

        Parameters
        ----------
        scratch
            An empty folder, where columns are turned into rows.
        start
            The row.
        """
        import h5py

        if self.kind == "csc":
            yield from _turned(self, scratch, start)
            return
        with told_as_damage(self.path), h5py.File(self.path, "r") as file:
            yield from row_portions(file[self.key], CELLS_SURVEYED, start)


def open_matrix(path: Path, layer: str | None) -> tuple[AnnData, StoredMatrix] | None:
    """The cells of an .h5ad file and the genes of that layer, without values, and the matrix that holds these.

    None where `scdgn.cells.h5ad.read_values` alone knows what to make of it.

    Raises
    ------
    DataError
        As `read_values`.
    """
    import h5py

    if format_of(path) is not None:
        return None
    check_h5ad(path)
    with told_as_damage(path), same_names_allowed(), h5py.File(path, "r") as file:
        key, tables = matrix_key(layer, file), tables_of(file, layer)
        if tables is None:
            return None
        stored = file[key]
        dense = isinstance(stored, h5py.Dataset)
        kind: Any = "dense" if dense else _KINDS.get(stored.attrs.get("encoding-type"))
        values = stored if dense else stored["data"]
        shape = tuple(stored.shape if dense else stored.attrs["shape"])
        if kind is None or shape != tables.shape or values.dtype.kind not in NUMERIC:
            return None
        return tables, StoredMatrix(path, key, values.size, kind, tables.shape)


def row_portions(stored: h5py.Group | h5py.Dataset, at_once: int, start: int = 0) -> Iterator[tuple[slice, Matrix]]:
    """Rows of a dense or CSR matrix, and their values: `at_once` at a time, or fewer where that would be too many."""
    import h5py
    from anndata.io import sparse_dataset

    dense = isinstance(stored, h5py.Dataset)
    values: Any = stored if dense else sparse_dataset(stored, should_cache_indptr=False)
    cells, genes = values.shape
    while start < cells:
        if dense:
            step = min(at_once, max(1, VALUES_AT_ONCE // max(1, genes)))
        else:
            ends: NDArray[np.int64] = stored["indptr"][start : start + at_once + 1]
            step = max(1, int(np.searchsorted(ends, ends[0] + VALUES_AT_ONCE, side="right")) - 1)
        rows = slice(start, min(start + step, cells))
        x = values[rows] if dense else with_sound_indices(values[rows])
        yield rows, as_matrix(x)
        start = rows.stop


def _turned(matrix: StoredMatrix, scratch: Path, start: int) -> Iterator[tuple[slice, Matrix]]:
    """The rows of a CSC matrix: its entries are put into a file for every few rows, and these read one by one."""
    counts = np.zeros(matrix.shape[0], dtype=np.int64)
    for entries in _entries(matrix):
        counts += np.bincount(entries["row"], minlength=matrix.shape[0])
    place = np.maximum(np.cumsum(counts) - 1, 0) // VALUES_AT_ONCE  # (rows,) the file of each
    edges = np.concatenate([[0], np.flatnonzero(np.diff(place)) + 1, [matrix.shape[0]]])
    place = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    with ExitStack() as opened:
        files = [opened.enter_context((scratch / str(number)).open("wb")) for number in range(len(edges) - 1)]
        for entries in _entries(matrix):
            goes = place[entries["row"]]
            order = np.argsort(goes, kind="stable")
            ends = np.cumsum(np.bincount(goes, minlength=len(files)))
            for file, part in zip(files, np.split(entries[order], ends[:-1]), strict=True):
                file.write(part.tobytes())
    for number, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        path = scratch / str(number)
        if last > start:
            entries = np.fromfile(path, _ENTRY)
            where = (entries["row"] - first, entries["gene"])
            x = as_matrix(sp.coo_matrix((entries["value"], where), (last - first, matrix.shape[1])))
            yield slice(max(first, start), last), x[max(start - first, 0) :]
        path.unlink()


def _entries(matrix: StoredMatrix) -> Iterator[NDArray[np.void]]:
    """All that a CSC matrix stores, gene by gene: row, gene and value, some at a time."""
    import h5py

    with told_as_damage(matrix.path), h5py.File(matrix.path, "r") as file:
        stored = file[matrix.key]
        pointers: NDArray[np.int64] = stored["indptr"][:]
        for start in range(0, matrix.stored, VALUES_AT_ONCE):
            rows = stored["indices"][start : start + VALUES_AT_ONCE]
            if rows.min() < 0 or rows.max() >= matrix.shape[0]:
                raise ValueError("it has values in rows beyond its last one")
            found = np.empty(len(rows), dtype=_ENTRY)
            found["row"] = rows
            found["gene"] = np.searchsorted(pointers, np.arange(start, start + len(rows)), side="right") - 1
            with np.errstate(over="ignore"):  # as `as_matrix`
                found["value"] = stored["data"][start : start + VALUES_AT_ONCE]
            yield found

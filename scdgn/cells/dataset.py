"""Cells as arrays, with coded labels and batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.mapped import MappedRows
from scdgn.cells.values import Matrix, Values
from scdgn.core.config import UNLABELED
from scdgn.errors import DataError

_BLOCK = 4096  # cells hashed at a time


@dataclass(frozen=True, eq=False)
class Dataset:
    """Cells with their genes, types and batches, values as the file has them.

    Parameters
    ----------
    x
        (cells, genes) float32, dense or CSR, shared with the AnnData where possible, so never written to; or rows that
        are mapped, where they do not fit in memory. Indexed by some of the rows each gives a matrix in memory.
    values
        `counts` (raw, estimated, or scaled per cell) or `log` (natural logarithms of normalised ones and 1).
    genes
        (genes,) unique names.
    cells
        (cells,) names.
    labels
        (cells,) int64 codes into `cell_types`, `UNLABELED` where there is none.
    cell_types
        Sorted names.
    batches
        (cells,) int64 codes into `batch_names`.
    batch_names
        Sorted names.
    """

    x: Matrix | MappedRows
    values: Values
    genes: NDArray[np.str_]
    cells: NDArray[np.str_]
    labels: NDArray[np.int64]
    cell_types: tuple[str, ...]
    batches: NDArray[np.int64]
    batch_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of cells."""
        return int(self.x.shape[0])

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Dataset:
        """The cells of `rows` (indices or a mask) in that order, with the same codes for types and batches.

        Their values are copied, unless they are mapped.
        """
        return Dataset(
            self.x.take(rows) if isinstance(self.x, MappedRows) else self.x[rows],
            self.values,
            self.genes,
            self.cells[rows],
            self.labels[rows],
            self.cell_types,
            self.batches[rows],
            self.batch_names,
        )

    def types_among(self, names: Sequence[str]) -> NDArray[np.int64]:
        """(cells,) types as codes into other names; `UNLABELED` where the type is not among them, or there is none."""
        code = {name: place for place, name in enumerate(names)}
        codes = np.array([*(code.get(name, UNLABELED) for name in self.cell_types), UNLABELED])
        return codes[self.labels]

    @property
    def matrix(self) -> Matrix:
        """The values in memory.

        Raises
        ------
        DataError
            If they are mapped, and too many to be copied (`MappedRows`).
        """
        try:
            return self.x[:] if isinstance(self.x, MappedRows) else self.x
        except MemoryError as error:
            raise DataError(
                f"the values of all cells together do not fit in memory ({error}): give fewer cells"
            ) from error

    def in_memory(self) -> Dataset:
        """The same cells with `matrix` as their values."""
        return replace(self, x=self.matrix)

    @property
    def filled(self) -> NDArray[np.int64]:
        """Rows of the cells with values: of data that were read in part, those that were."""
        if isinstance(self.x, MappedRows):
            return np.flatnonzero(self.x.counts)
        stored = np.diff(self.x.indptr) if isinstance(self.x, sp.csr_matrix) else self.x.any(axis=1)
        return np.flatnonzero(stored)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over values, names, labels and batches, the same however the values are stored."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        names = [self.values, self.genes.tolist(), self.cells.tolist(), self.cell_types, self.batch_names]
        digest.update(json.dumps(names).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.batches.astype("<i8").tobytes())
        for start in range(0, len(self), _BLOCK):
            block = sp.csr_matrix(self.x[start : start + _BLOCK], copy=True)
            block.sum_duplicates()
            block.eliminate_zeros()
            digest.update(np.diff(block.indptr).astype("<i8").tobytes())
            digest.update(block.indices.astype("<i8").tobytes())
            digest.update(block.data.astype("<f4").tobytes())
        return digest.hexdigest()


def as_matrix(x: Any) -> Matrix:
    """Numbers as float32, CSR if they are sparse, without a copy where they are that already."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        x = x.astype(np.float32, copy=False)
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x)
    csr: sp.csr_matrix = sp.csr_matrix(x)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr

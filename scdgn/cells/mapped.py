"""Compressed rows that stay in files: more of them than fit in memory, read where they lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from scdgn.core.expression import Sparse, viewed
from scdgn.errors import DataError, OutputError

LARGEST = 4 << 30
"""Bytes of stored values that are copied into memory at once at most."""

VALUES, GENES, COUNTS = "values", "genes", "counts"
"""Names of the files: float32, int32 and int64, without a header."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Cells whose values are mapped into memory: the system reads the pages that are looked at, and may drop them.

    Indexed by rows it gives a `csr_matrix`, which is a copy and so has to be small; `take` copies nothing.

    Attributes
    ----------
    folder
        Where the files are: another process of the machine maps the same ones.
    values, genes
        (stored,) float32 value and int32 gene, ascending within a row.
    starts, counts
        (rows,) int64: where a row begins among what is stored, and how much it has.
    columns
        Number of genes.
    """

    folder: Path
    values: NDArray[np.float32]
    genes: NDArray[np.int32]
    starts: Rows
    counts: Rows
    columns: int

    @classmethod
    def open(cls, folder: Path, columns: int) -> MappedRows:
        """All rows that `folder` holds."""
        counts = np.fromfile(folder / COUNTS, dtype=np.int64)
        return cls(folder, *_mapped(folder), np.cumsum(counts) - counts, counts, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return len(self.starts), self.columns

    def take(self, rows: Rows | NDArray[np.bool_]) -> MappedRows:
        """The cells of `rows`, indices or a mask; they stay where they are."""
        return replace(self, starts=self.starts[rows], counts=self.counts[rows])

    def __getitem__(self, rows: Rows | NDArray[np.bool_] | slice) -> sp.csr_matrix:
        """The cells of `rows` in memory.

        Raises
        ------
        MemoryError
            If they take more than `LARGEST`: they are to be read in portions.
        """
        starts, counts = self.starts[rows], self.counts[rows]
        pointers = np.concatenate([[0], np.cumsum(counts)])
        size = self.values.itemsize + self.genes.itemsize
        if pointers[-1] * size > LARGEST:
            raise MemoryError(f"{len(counts):,} cells take {pointers[-1] * size / 1e9:.1f} GB")
        runs = _runs(starts, counts)
        values, genes = (
            np.concatenate([array[first:last] for first, last in runs] or [array[:0]])
            for array in (self.values, self.genes)
        )
        return sp.csr_matrix((values, genes, pointers.astype(np.int32)), shape=(len(counts), self.columns))

    def __reduce__(self) -> tuple[object, ...]:
        return _opened_again, (self.folder, self.starts, self.counts, self.columns)


def _opened_again(folder: Path, starts: Rows, counts: Rows, columns: int) -> MappedRows:
    try:
        return MappedRows(folder, *_mapped(folder), starts, counts, columns)
    except OSError as error:
        raise DataError(
            f"the values of the cells lie in {folder}, which this machine does not see: give --studies on a disk that "
            "all machines share"
        ) from error


def _mapped(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Plain arrays: slices of a `memmap` are slow."""
    with (folder / VALUES).open("rb") as values, (folder / GENES).open("rb") as genes:
        return _array(values, np.float32), _array(genes, np.int32)


def _array(file: IO[bytes], dtype: type) -> NDArray[Any]:
    return np.asarray(np.memmap(file, dtype, mode="r")) if os.fstat(file.fileno()).st_size else np.empty(0, dtype)


def spooled(view: Sparse, folder: Path) -> Sparse:
    """A view by itself, as `Sparse.copy` on the CPU, but mapped: in files without a name, which end with it.

    Of its cells only what it selects is there, so that a mini-batch reads a fraction of the pages.

    Raises
    ------
    OutputError
        If there is no space, or no such folder any more.
    """
    counts = []
    try:
        with TemporaryFile(dir=folder) as columns, TemporaryFile(dir=folder) as values:
            for part in view.portions():
                counts.append(part.counts)
                columns.write(part.columns.numpy().data)
                values.write(part.values.numpy().data)
            columns.flush()
            values.flush()
            genes, stored = viewed(_array(columns, np.int32)), viewed(_array(values, np.float32))
    except OSError as error:
        raise OutputError(
            f"cannot write the selected genes of {len(view):,} cells in {folder} ({error.strerror or error}): free "
            "some space there; the same command goes on"
        ) from error
    count = torch.cat(counts)
    return Sparse(count.cumsum(0) - count, count, genes, stored, view.genes, scale=view.scale)


def _runs(starts: Rows, counts: Rows) -> list[tuple[int, int]]:
    """Where the rows lie, neighbours together: (first, last) among what is stored."""
    if not len(starts):
        return []
    ends = starts + counts
    begins = np.flatnonzero(np.concatenate([[True], starts[1:] != ends[:-1]]))
    lasts = ends[np.concatenate([begins[1:] - 1, [len(ends) - 1]])]
    return list(zip(starts[begins].tolist(), lasts.tolist(), strict=True))

"""Compressed rows that stay in files: more of them than fit in memory, read where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.errors import DataError

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
    return tuple(  # type: ignore[return-value]
        np.asarray(np.memmap(folder / name, dtype, mode="r")) if (folder / name).stat().st_size else np.empty(0, dtype)
        for name, dtype in ((VALUES, np.float32), (GENES, np.int32))
    )


def _runs(starts: Rows, counts: Rows) -> list[tuple[int, int]]:
    """Where the rows lie, neighbours together: (first, last) among what is stored."""
    if not len(starts):
        return []
    ends = starts + counts
    begins = np.flatnonzero(np.concatenate([[True], starts[1:] != ends[:-1]]))
    lasts = ends[np.concatenate([begins[1:] - 1, [len(ends) - 1]])]
    return list(zip(starts[begins].tolist(), lasts.tolist(), strict=True))

"""Values that are read as a file streams, and put on a shelf: what does not fit in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from scdgn.cells.fields import Fields
from scdgn.cells.mapped import MappedRows
from scdgn.cells.names import Genes
from scdgn.cells.portions import StoredMatrix, open_matrix
from scdgn.cells.shelf import PER_VALUE, STORED, Shelf
from scdgn.cells.values import Reading, Survey
from scdgn.core.memory import free_memory

if TYPE_CHECKING:
    from anndata import AnnData

MAPPED = 1 << 30
"""Bytes of values that are not held in memory, which a search needs five times over (benchmarks.atlas)."""

SHARE = 8
"""Nor are those of which the memory that is free holds fewer than so many."""


class Shelved(NamedTuple):
    """Values that have been read.

    Attributes
    ----------
    x, reading
        As `reading` has them.
    """

    x: MappedRows
    reading: Reading


@dataclass(frozen=True, eq=False)
class Streamed:
    """Values in a file, and where they go.

    Attributes
    ----------
    matrix, shelf
        See there.
    """

    matrix: StoredMatrix
    shelf: Shelf

    def read(
        self,
        genes: Genes,
        batches: NDArray[np.int64],
        kept: NDArray[np.bool_],
        fields: Fields,
        judge: Callable[[Survey], Reading],
    ) -> Shelved:
        """All values are looked at, those of some cells kept.

        Parameters
        ----------
        genes
            Those taken.
        batches
            (cells,) codes.
        kept
            (cells,) whether the cell's values are wanted.
        fields
            What is said of the values.
        judge
            From values that were looked at to how they are read; what it raises is raised.
        """
        rows = np.flatnonzero(kept)
        file = self.matrix.path.resolve()
        told = {
            "file": str(file),
            "size": file.stat().st_size,
            "modified": file.stat().st_mtime_ns,
            "matrix": self.matrix.key,
            "genes": _digest(genes.read.tolist(), genes.columns, genes.repeated),
            "batches": _digest(None, batches),
            "cells": _digest(None, rows),
            "values": [fields.values, fields.like],
        }

        def survey(scratch: Path) -> Mapping[str, Any]:
            survey, stored = Survey(), 0
            for part, x in self.matrix.portions(scratch):
                self.shelf.check()
                survey.add(x := genes.take(x), batches[part])
                own = kept[part]
                stored += int(
                    np.diff(x.indptr)[own].sum() if isinstance(x, sp.csr_matrix) else np.count_nonzero(x[own])
                )
            return {"reading": judge(survey).to_json(), STORED: stored}

        def portions(found: Mapping[str, Any], start: int, scratch: Path) -> Iterator[sp.csr_matrix]:
            reading = Reading.from_json(found["reading"])
            first = int(rows[start]) if start < len(rows) else self.matrix.shape[0]
            for part, x in self.matrix.portions(scratch, first):
                own = kept[part]
                read = reading.read(genes.take(x[own]), batches[part][own])
                yield sp.csr_matrix(genes.united(read))

        x, found = self.shelf.rows(told, len(genes.names), survey, portions)
        return Shelved(x, Reading.from_json(found["reading"]))


def open_values(path: Path, layer: str | None, shelf: Shelf) -> tuple[AnnData, Streamed] | None:
    """The cells and genes of a file without their values, and these; None where they are to be read into memory.

    Raises
    ------
    DataError
        As `scdgn.cells.h5ad.read_values`.
    """
    found = open_matrix(path, layer)
    if found is None or not is_large(found[1].bytes):
        return None
    return found[0], Streamed(found[1], shelf)


def shelved_bytes(path: Path, layer: str | None) -> int:
    """What the values of a file take on a shelf at most; 0 where they are read into memory."""
    found = open_matrix(path, layer)
    return PER_VALUE * found[1].stored if found is not None and is_large(found[1].bytes) else 0


def is_large(size: int) -> bool:
    """Whether values of so many bytes stay on disk."""
    free = free_memory(torch.device("cpu"))
    return size > min(MAPPED, MAPPED if free is None else free / SHARE)


def _digest(names: list[str] | None, *arrays: NDArray[Any] | None) -> str:
    digest = hashlib.sha256(json.dumps([names, [array is None for array in arrays]]).encode())
    for array in arrays:
        if array is not None:
            digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()

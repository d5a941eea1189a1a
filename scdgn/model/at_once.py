"""How many cells a bundle looks at together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scdgn.cells.dataset import Dataset
from scdgn.model.bundle import Bundle

INPUT_AT_ONCE = 25_000_000
"""Numbers (float32) of the networks' input, 100 MB."""

CELLS_AT_ONCE = 65_536


def cells_at_once(bundle: Bundle) -> int:
    """Cells whose input takes nearly 100 MB, or less where the genes are few and the outputs take as much.

    A power of two, which the networks' own blocks divide.
    """
    genes = sum(len(part.preprocessing.genes) for part in bundle.parts)
    cells = max(1, min(INPUT_AT_ONCE // genes, CELLS_AT_ONCE))
    return 1 << (cells.bit_length() - 1)


def portions(dataset: Dataset, bundle: Bundle) -> Iterator[Dataset]:
    """The cells in their order, `cells_at_once` at a time; all where a cell's input depends on the others."""
    step = len(dataset) if bundle.transductive else cells_at_once(bundle)
    if step >= len(dataset):
        yield dataset
        return
    for start in range(0, len(dataset), step):
        yield dataset.take(np.arange(start, min(start + step, len(dataset))))

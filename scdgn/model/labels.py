"""Labels of cells as a table, for what reads no .h5ad."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdgn.cells.dataset import Dataset
from scdgn.core.correction import Correction
from scdgn.errors import SettingsError
from scdgn.model.annotate import predictions
from scdgn.model.bundle import Bundle

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet")
"""Of tables."""

TOP = 3
"""Types named with their probabilities, unless the user says how many."""


def holds_table(path: Path) -> bool:
    """Whether a file of that name is to hold a table rather than annotated cells.

    Raises
    ------
    SettingsError
        If it says neither.
    """
    if path.suffix not in (".h5ad", *SUFFIXES):
        raise SettingsError(
            f"output {str(path)!r}: end it in .h5ad for the cells with their labels, or in {', '.join(SUFFIXES)} for a "
            "table of the labels"
        )
    return path.suffix != ".h5ad"


def labels_table(
    chunks: Iterable[Dataset], bundle: Bundle, correction: Correction | None, top: int = TOP
) -> pd.DataFrame:
    """A row per cell, by its name: what `annotate` writes into obs, and the most probable types.

    Parameters
    ----------
    chunks
        The cells, some at a time.
    bundle, correction
        The model, and what it takes away from their batches.
    top
        Types to name with their probabilities.

    Returns
    -------
    `label`, `confidence`, `unknown` (of a model with a threshold), `corrected` (of one that corrects) and `top_types`.
    """
    import pandas as pd

    types = np.array(bundle.cell_types, dtype=object)
    parts = []
    for dataset in chunks:
        found = predictions(dataset, bundle, correction)
        columns: dict[str, Any] = {"label": types[found.codes], "confidence": found.confidence}
        if bundle.calibration.threshold is not None:
            columns["unknown"] = found.unknown
        if correction is not None:
            columns["corrected"] = correction.corrected(dataset.batches)
        best = np.argsort(-found.probabilities, axis=1, kind="stable")[:, :top]
        shares = np.take_along_axis(found.probabilities, best, axis=1)
        columns["top_types"] = [
            "; ".join(f"{name} {share:.2f}" for name, share in zip(names, row, strict=True))
            for names, row in zip(types[best], shares, strict=True)
        ]
        parts.append(pd.DataFrame(columns, index=pd.Index(dataset.cells, name="cell")))
    return pd.concat(parts)


def write_table(table: pd.DataFrame, path: Path, suffix: str) -> None:
    """Write it in the form of the suffix."""
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="," if suffix == ".csv" else "\t", float_format="%.6g")

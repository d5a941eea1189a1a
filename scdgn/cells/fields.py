"""Where cells keep what is needed of them, as a user says it, and how cells without labels are then read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from scdgn.cells.settings import Duplicates, Unlabeled
from scdgn.cells.values import Values, parse
from scdgn.core.config import kinds_of
from scdgn.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd


QUERY = "query"
"""The batch of cells whose batches are not known."""

RAW = "raw"
"""The layer that is none: the values that were put aside, with all their genes."""

X = (None, "X")
"""Layers that are the matrix X itself."""


@dataclass(frozen=True)
class Fields:
    """Where an AnnData keeps what is needed.

    Parameters
    ----------
    labels_key, batch_key
        Columns of obs. None at prediction: all cells are unlabelled, and form one batch called `query`.
    layer
        Layer with the values; X if None or `X`, `raw` for the values of `.raw` with their own genes.
    gene_key
        Column of var with the gene names; var_names if None.
    unlabeled_category
        Label of the cells that have none; they are kept with the code `UNLABELED`.
    unlabeled
        What to do with cells whose label is missing: refuse the data, drop the cells, or keep them with the code
        `UNLABELED`, for the domain loss.
    values
        What the values are (`values.parse`); by default told from the values of each batch.
    duplicate_genes
        What to do with genes of the same name: refuse the data, take the first, or their sum.
    missing_labels, kept_labels
        Labels of cells that have none, beside the words that are known to say so, and those of these words that are
        names of types here.
    min_batch_cells
        Batches with fewer cells are taken together, as one (of each group) called `SMALL`.
    like
        What the training cells of the model hold with which these are to be compared.
    group_key
        Column of obs with the groups of the batches, such as the studies of samples: folds leave groups out.
    """

    labels_key: str | None
    batch_key: str | None
    layer: str | None = None
    gene_key: str | None = None
    unlabeled_category: str | None = None
    unlabeled: Unlabeled = "error"
    values: str = "auto"
    duplicate_genes: Duplicates = "error"
    missing_labels: tuple[str, ...] = ()
    kept_labels: tuple[str, ...] = ()
    min_batch_cells: int = 0
    like: Values | None = None
    group_key: str | None = None

    def __post_init__(self) -> None:
        faults = [
            f"{key} is {getattr(self, key)!r}: choose one of {', '.join(choices)}"
            for key in ("unlabeled", "duplicate_genes")
            if getattr(self, key) not in (choices := get_args(kinds_of(Fields)[key]))
        ]
        try:
            parse(self.values)
        except SettingsError as error:
            faults += error.faults
        if not isinstance(self.min_batch_cells, int) or self.min_batch_cells < 0:
            faults.append(f"min_batch_cells is {self.min_batch_cells!r}: give a whole number from 0")
        for key in ("missing_labels", "kept_labels"):
            if isinstance(getattr(self, key), str):
                faults.append(f"{key} is {getattr(self, key)!r}: give a list of labels")
            else:
                object.__setattr__(self, key, tuple(map(str, getattr(self, key))))  # an array, once adata was a file
        if faults:
            raise SettingsError(*faults)

    def to_mapping(self) -> dict[str, Any]:
        """What is set, as plain values for JSON and `adata.uns`."""
        unsaid = {"duplicate_genes": "error", "missing_labels": (), "kept_labels": (), "min_batch_cells": 0}
        told = {key: value for key, value in vars(self).items() if value is not None and unsaid.get(key) != value}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}


NO_TEXTS = ("missing_labels", "kept_labels", "min_batch_cells")
"""Names of `Fields` that are no text."""


class Annotated(Protocol):
    """What stands beside the values: of an AnnData, or of a file whose values stay on disk (`scdgn.model.stored`)."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""

    @property
    def n_vars(self) -> int:
        """Number of genes."""

    @property
    def obs(self) -> Mapping[str, pd.Series[Any]]:
        """Columns of the cells."""

    @property
    def var(self) -> pd.DataFrame:
        """Table of the genes."""

    @property
    def layers(self) -> Collection[str]:
        """Names of the layers."""

    @property
    def raw(self) -> Any:
        """What was put aside, with a table `var` of its own genes; None if nothing was."""


def is_raw(cells: Annotated, layer: str | None) -> bool:
    """Whether that layer is their `.raw`."""
    return layer == RAW and RAW not in cells.layers and cells.raw is not None

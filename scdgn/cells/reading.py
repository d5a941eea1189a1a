"""From an AnnData to a `Dataset`, every fault of it told at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset, as_matrix
from scdgn.cells.fields import QUERY, RAW, Annotated, Fields, X, is_raw
from scdgn.cells.mapped import MappedRows
from scdgn.cells.names import (
    SMALL,
    Genes,
    batches_of_cells,
    encode,
    found_instead,
    genes_of,
    groups_of,
    labels_of,
    small_batches,
)
from scdgn.cells.streamed import Shelved, Streamed
from scdgn.cells.values import NUMERIC, Matrix, Reading, Survey
from scdgn.core.config import UNLABELED
from scdgn.errors import DataError, nearest

if TYPE_CHECKING:
    from anndata import AnnData


def from_anndata(adata: AnnData, fields: Fields) -> Dataset:
    """The cells of an AnnData as a `Dataset`: see `read_cells`."""
    return read_cells(adata, fields)[0]


def read_cells(adata: AnnData, fields: Fields, values: Streamed | Shelved | None = None) -> tuple[Dataset, Reading]:
    """The cells of an AnnData, and how their values were read; the AnnData, in memory or backed, is left as it is.

    Labels and batches may be strings, numbers, booleans or categories (unused levels are ignored); they become strings.

    Parameters
    ----------
    adata, fields
        The cells, and where they keep what is needed.
    values
        Their values, where the AnnData has none because they do not fit in memory.

    Raises
    ------
    DataError
        With every fault that was found: missing keys, values that are not finite or negative or of kinds that cannot be
        told, duplicate or missing genes, no cells, missing labels or batches, fewer than two cell types.
    """
    adata = in_memory(adata)
    if is_raw(adata, fields.layer):
        adata, fields = _raw(adata), replace(fields, layer=None)
    faults = size_faults(adata)
    genes = genes_of(adata, fields, faults)
    labels = labels_of(adata, fields, faults)
    batches = batches_of_cells(adata, fields.batch_key, faults, fields.min_batch_cells)
    groups = groups_of(adata, fields, faults)
    together = None
    if batches is not None:
        batches, together = _with_small_ones_together(batches, fields.min_batch_cells, groups)
    cells = np.asarray(adata.obs_names, dtype=str)
    read = genes or Genes.of_all(adata)
    names, codes = np.unique(np.full(len(cells), QUERY) if batches is None else batches, return_inverse=True)

    def judge(survey: Survey) -> Reading:
        reading, unclear = read_values_as(survey, fields, cells.__getitem__, read, names.tolist())
        if faults + unclear or labels is None or batches is None or genes is None or reading is None:
            raise DataError(*faults, *unclear)
        return reading

    kept = np.ones(len(cells), dtype=bool)
    if fields.unlabeled == "drop" and labels is not None:
        kept = ~labels.lost
    x: Matrix | MappedRows
    if values is None:
        x, reading = _in_memory(adata, fields, read, codes, kept, faults, judge)
    elif faults:  # it would take long to see what the values have
        raise DataError(*faults)
    elif isinstance(values, Streamed):
        x, reading = values.read(read, codes, kept, fields, judge)
    else:
        x, reading = values.x.take(kept), values.reading
    assert labels is not None and batches is not None and genes is not None  # else it was refused
    label_codes, cell_types = encode(labels.names[kept], labels.unlabeled[kept])
    batch_codes, batch_names = encode(batches[kept], np.zeros(kept.sum(), dtype=bool))
    dataset = Dataset(x, reading.values, genes.names, cells[kept], label_codes, cell_types, batch_codes, batch_names)
    return dataset, reading if together is None else replace(reading, sentence=f"{reading.sentence}; {together}")


def _in_memory(
    adata: AnnData,
    fields: Fields,
    genes: Genes,
    batches: NDArray[np.int64],
    kept: NDArray[np.bool_],
    faults: list[str],
    judge: Callable[[Survey], Reading],
) -> tuple[Matrix, Reading]:
    """The values of an AnnData, and how they were read: as `Streamed.read`."""
    x = _matrix(adata, fields.layer, faults)
    if x is None:
        raise DataError(*faults)
    x = genes.take(x)
    survey = Survey()
    survey.add(x, batches)
    reading = judge(survey)
    x = genes.united(reading.read(x, batches))
    return x if kept.all() else x[kept], reading


def _with_small_ones_together(
    batches: NDArray[np.str_], least: int, groups: Mapping[str, str] | None
) -> tuple[NDArray[np.str_], str | None]:
    """(cells,) the batches, those with fewer cells as one (of each group), and the sentence that says so."""
    names, codes, sizes = np.unique(batches, return_inverse=True, return_counts=True)
    small = sizes < least
    if small.sum() < 2:
        return batches, None
    within = "" if groups is None else ", those of a group"
    told = f"{small.sum()} batches of fewer than {least} cells are taken together{within}, as {SMALL!r}"
    united = [small_batches(None if groups is None else groups[name]) for name in names.tolist()]
    return np.where(small, united, names.astype(object)).astype(str)[codes], told


def read_values_as(
    survey: Survey, fields: Fields, cell_name: Callable[[int], str], genes: Genes, batch_names: Sequence[str]
) -> tuple[Reading | None, list[str]]:
    """How to read the values that a survey saw all of, whose fields and genes these are; None, and faults, where they
    cannot be read.
    """
    place = _place(fields.layer)
    if faults := survey.faults(place, cell_name, genes.read, f", or --layer {RAW} for .raw"):
        return None, faults
    reading, faults = survey.judge(fields.values, place, batch_names, fields.like)
    if reading is not None and reading.values == "log" and genes.repeated is not None:
        faults.append(f"{place} holds logarithms, which cannot be summed: give counts, or --duplicate-genes first")
    return reading, faults


def in_memory(adata: object) -> AnnData:
    """The AnnData itself; one whose tables are read lazily, as `anndata.experimental.read_lazy` does, in memory.

    Raises
    ------
    DataError
        If it is no AnnData.
    """
    import pandas as pd
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise DataError(
            f"cells are given as {type(adata).__name__}, not as AnnData: read a file with anndata.read_h5ad, or make "
            "AnnData(X, obs=, var=)"
        )
    return adata if isinstance(adata.obs, pd.DataFrame) else adata.to_memory()


def _raw(adata: AnnData) -> AnnData:
    """The same cells with the values and genes of `.raw`, nothing copied."""
    import anndata

    return anndata.AnnData(adata.raw.X, adata.obs, adata.raw.var)


def check_trainable(
    dataset: Dataset, rows: NDArray[np.int64], method: str, unlabeled_batches: Collection[str] = ()
) -> None:
    """Refuse training cells that `method` cannot learn from.

    Parameters
    ----------
    unlabeled_batches
        Names of the batches whose unlabelled cells take part in the domain loss: one labelled batch and one of these,
        source and target, are DANN's first form.

    Raises
    ------
    DataError
        For training cells without any label, of one type only, or, unless `method` is `nn`, of one batch only.
    """
    faults = []
    types = np.unique(dataset.labels[rows])
    types = types[types != UNLABELED]
    if len(types) == 0:
        faults.append(f"none of the {len(rows)} training cells has a label: check --labels-key")
    elif len(types) == 1:
        only = dataset.cell_types[types[0]]
        faults.append(f"all training cells are of one type ({only!r}), two are needed: check --labels-key")
    batches = {dataset.batch_names[code] for code in np.unique(dataset.batches[rows])}
    if method != "nn" and len(batches | set(unlabeled_batches)) == 1:
        (only,) = batches
        faults.append(
            f"{method} needs two training batches, there is one ({only!r}): check --batch-key, or use --method nn"
        )
    if faults:
        raise DataError(*faults)


def no_values(layer: str | None, layers: Collection[str]) -> str:
    """The fault of cells without X, or without that layer."""
    if layer in X:
        return f"X is empty: choose a layer with --layer {found_instead(layers)}"
    if layer == RAW:
        return f"there is no .raw and no layer called {RAW!r}: choose another --layer {found_instead(layers)}"
    return f"no layer is called {layer!r}: {nearest(layer, layers)}; --layer X reads X"


def _matrix(adata: AnnData, layer: str | None, faults: list[str]) -> Matrix | None:
    """Values as float32, CSR if they are sparse; None, and a fault, if there are none."""
    x: Any = adata.X if layer in X else adata.layers.get(layer)
    if x is None:
        faults.append(no_values(layer, adata.layers))
        return None
    if hasattr(x, "to_memory"):  # backed, sparse
        x = x.to_memory()
    if hasattr(x, "compute"):  # in chunks, of dask
        x = x.compute()
    if not sp.issparse(x):
        x = np.asarray(x)
    if x.dtype.kind not in NUMERIC:
        faults.append(f"{_place(layer)} holds values of type {x.dtype}, not numbers: convert it to float32")
        return None
    return as_matrix(x)


def size_faults(cells: Annotated) -> list[str]:
    """Faults of data without cells or genes."""
    return [
        f"the data hold no {what}: check the file, or the filter that made it"
        for what, count in (("cells", cells.n_obs), ("genes", cells.n_vars))
        if count == 0
    ]


def _place(layer: str | None) -> str:
    return "X" if layer in X else f"layer {layer!r}"

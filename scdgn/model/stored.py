"""Cells in a file, annotated there: their values are read some thousands of cells at a time, results added to a copy.

Memory does not grow with the number of cells. What has to see all cells at once, or is stored so that rows cannot be
read by themselves, goes through memory instead (`scdgn.model.annotate`); both say the same of a cell.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import QUERY, Fields, is_raw
from scdgn.cells.formats import format_of
from scdgn.cells.h5ad import check_h5ad, is_table, matrix_key, told_as_damage
from scdgn.cells.names import Genes, batches_of_cells, genes_of
from scdgn.cells.portions import CELLS_SURVEYED, row_portions
from scdgn.cells.reading import no_values, read_values_as, size_faults
from scdgn.cells.values import NUMERIC, Matrix, Reading, Survey
from scdgn.core.config import UNLABELED
from scdgn.core.correction import Correction
from scdgn.errors import DataError
from scdgn.files import hdf5_output
from scdgn.model.annotate import (
    CONFIDENCE,
    CORRECTED,
    GENES,
    LABEL,
    LATENT,
    PROBABILITY,
    UNKNOWN,
    Predictions,
    column_names,
    highest,
    notes,
    predictions,
)
from scdgn.model.at_once import cells_at_once
from scdgn.model.attribution import Explanation
from scdgn.model.bundle import Bundle
from scdgn.model.query import Agreement

if TYPE_CHECKING:
    import h5py
    import pandas as pd


@dataclass(frozen=True)
class StoredCells:
    """The cells of an .h5ad file; of the tables, only that of the genes is in memory, and columns of obs are read when
    they are asked for.
    """

    path: Path
    n_obs: int
    obs: Mapping[str, pd.Series[Any]]
    var: pd.DataFrame
    layers: tuple[str, ...]

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return len(self.var)

    @property
    def raw(self) -> StoredCells | None:
        """The same cells with the genes of `.raw`, if there is one."""
        from anndata.io import read_elem

        with _reading(self.path) as file:
            return replace(self, var=read_elem(file["raw/var"])) if "raw/var" in file else None

    def of(self, layer: str | None) -> StoredCells:
        """The same cells with the genes of that layer."""
        return (self.raw if is_raw(self, layer) else None) or self

    def has_rows(self, layer: str | None) -> bool:
        """Whether the values, if there are any, can be read by rows: CSR or dense numbers for these cells and genes."""
        import h5py

        with _reading(self.path) as file:
            stored = file.get(matrix_key(layer, file))
            if stored is None:
                return True
            dense = isinstance(stored, h5py.Dataset)
            if not dense and stored.attrs.get("encoding-type") != "csr_matrix":
                return False
            shape = stored.shape if dense else stored.attrs["shape"]
            kind = (stored if dense else stored["data"]).dtype.kind
            return tuple(shape) == (self.n_obs, self.n_vars) and kind in NUMERIC

    def check(self, fields: Fields) -> CheckedCells:
        """Read all values once, and find out what they are.

        Raises
        ------
        DataError
            With every fault that was found, those of `read_cells` for cells without labels.
        """
        faults = size_faults(self)
        genes = genes_of(self, fields, faults)
        batches = batches_of_cells(self, fields.batch_key, faults)
        if not self._has_values(fields.layer):
            raise DataError(*faults, no_values(fields.layer, self.layers))
        read = genes or Genes.of_all(self)
        names, codes = np.unique(np.full(self.n_obs, QUERY) if batches is None else batches, return_inverse=True)
        survey, done = Survey(), 0
        for cells, x in _chunks(self.path, fields.layer, CELLS_SURVEYED):
            survey.add(read.take(x), codes[done : done + len(cells)])
            done += len(cells)
        reading, unclear = read_values_as(survey, fields, self._name, read, names.tolist())
        if faults + unclear or genes is None or batches is None or reading is None:
            raise DataError(*faults, *unclear)
        return CheckedCells(self.path, self.n_obs, fields.layer, genes, reading, codes, tuple(names.tolist()))

    def _has_values(self, layer: str | None) -> bool:
        with _reading(self.path) as file:
            return matrix_key(layer, file) in file

    def _name(self, cell: int) -> str:
        with _reading(self.path) as file:
            return str(_index(file["obs"]).asstr()[cell])


@dataclass(frozen=True, eq=False)
class CheckedCells:
    """Cells on disk without a fault; made by `StoredCells.check`.

    The genes that are taken, the layer with the values (X if None), what these are, told from all of them, and the
    batches, (cells,) codes and their names.
    """

    path: Path
    cells: int
    layer: str | None
    taken: Genes
    reading: Reading
    batches: NDArray[np.int64]
    batch_names: tuple[str, ...]

    @property
    def genes(self) -> NDArray[np.str_]:
        """(genes,) unique names."""
        return self.taken.names

    def chunks(self, at_once: int) -> Iterator[Dataset]:
        """All cells in their order, `at_once` or fewer at a time, without labels."""
        done = 0
        for names, x in _chunks(self.path, self.layer, at_once):
            batches = self.batches[done : done + len(names)]
            x = self.taken.united(self.reading.read(self.taken.take(x), batches))
            unknown = np.full(len(names), UNLABELED)
            yield Dataset(x, self.reading.values, self.genes, names, unknown, (), batches, self.batch_names)
            done += len(names)


def open_stored(path: Path) -> StoredCells | None:
    """The cells of an .h5ad file, left there; None where `scdgn.cells.h5ad.read_h5ad` alone knows what to make of its
    tables.

    Raises
    ------
    DataError
        As `scdgn.cells.h5ad.read_h5ad`.
    """
    from anndata.io import read_elem

    if format_of(path) is not None:
        return None
    check_h5ad(path)
    with _reading(path) as file:
        file.visititems(lambda *_: None)  # a damaged object would be met when half of the work is done
        obs, var = file["obs"], file["var"]
        if not (is_table(obs) and is_table(var)):
            return None
        columns = [*obs.attrs["column-order"], obs.attrs["_index"]]
        if not all(isinstance(name, str) and name in obs for name in columns):
            return None
        if _index(obs).attrs.get("encoding-type") != "string-array":
            return None
        layers = tuple(file.get("layers", ()))
        return StoredCells(path, len(_index(obs)), _Columns(path, columns[:-1]), read_elem(var), layers)


class Counts(NamedTuple):
    """What came of the cells of a file: how many are of each predicted type, (types,), and of a type never trained; and
    what was done to the batches, None where nothing was to be corrected.
    """

    by_type: NDArray[np.int64]
    unknown: int
    correction: Correction | None


def annotate_file(
    checked: CheckedCells,
    bundle: Bundle,
    output: Path,
    correct: bool | None = None,
    agreement: Agreement | None = None,
    explanation: Explanation | None = None,
    top_k: int | None = None,
) -> Counts:
    """Copy a file and add the predictions of a bundle, as `scdgn.model.annotate.annotate` adds them to an AnnData.

    Parameters
    ----------
    checked
        The cells. Nothing else of their file is changed but earlier predictions, which are replaced.
    bundle
        The model, whose input for a cell must not depend on other cells.
    output
        File to write, another one than that of the cells.
    correct
        Whether to correct the batches of the cells; by default as the bundle has it. All values are read once more.
    agreement, explanation
        Look at the cells.
    top_k
        Probabilities of a cell to keep; all by default.

    Raises
    ------
    DataError, SettingsError
        If the model cannot correct, too few of the model's genes are in the data, or the file turns out to be damaged.
    OSError
        If the output cannot be written, or the disk is full.
    """
    at_once = cells_at_once(bundle)
    correction = bundle.correction(checked, lambda: checked.chunks(at_once), correct)
    shutil.copyfile(checked.path, output)
    counts = np.zeros(len(bundle.cell_types), dtype=np.int64)
    unknown = 0
    with hdf5_output(output, "r+") as (file, check_writes):
        columns = _make_room(file, checked.cells, bundle, correction is not None, top_k)
        done = 0
        for dataset in checked.chunks(at_once):
            if agreement is not None:
                agreement.add(dataset)
            predicted = predictions(dataset, bundle, correction, explanation)
            rows = slice(done, done + len(dataset))
            corrected = None if correction is None else correction.corrected(dataset.batches)
            for column, part in zip(columns, _parts(predicted, bundle, corrected, top_k), strict=True):
                column[rows] = part
            check_writes()
            counts += np.bincount(predicted.codes, minlength=len(counts))
            unknown += int(predicted.unknown.sum())
            done = rows.stop
        _note(file, notes(bundle, correction, explanation))
    return Counts(counts, unknown, correction)


class _Columns(Mapping[str, "pd.Series[Any]"]):
    """The columns of obs in a file."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._names = names

    def __getitem__(self, name: str) -> pd.Series[Any]:
        import pandas as pd
        from anndata.io import read_elem

        if name not in self._names:
            raise KeyError(name)
        with _reading(self._path) as file:
            return pd.Series(read_elem(file["obs"][name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    import h5py

    with told_as_damage(path), h5py.File(path, "r") as file:
        yield file


def _index(table: h5py.Group) -> h5py.Dataset:
    return table[table.attrs["_index"]]


def _chunks(path: Path, layer: str | None, at_once: int) -> Iterator[tuple[NDArray[np.str_], Matrix]]:
    """Names and values of all cells: `at_once` at a time, or fewer where that would be too many values."""
    with _reading(path) as file:
        names = _index(file["obs"]).asstr()
        for rows, x in row_portions(file[matrix_key(layer, file)], at_once):
            yield np.asarray(names[rows], dtype=str), x


def _make_room(
    file: h5py.File, cells: int, bundle: Bundle, corrects: bool, top_k: int | None
) -> list[h5py.Dataset | _Rows]:
    """Put empty results into the file, in the form in which AnnData writes them; the arrays in the order of `_parts`.

    The form is that of https://anndata.readthedocs.io/en/stable/fileformat-prose.html.
    """
    import pandas as pd
    from anndata.io import write_elem

    obs, obsm = file["obs"], file.get("obsm")
    if obsm is None:
        obsm = _group(file, "obsm", "dict", "0.1.0")
    label = _group(obs, LABEL, "categorical", "0.2.0")
    label.attrs["ordered"] = False
    types = pd.Categorical(bundle.cell_types, categories=list(bundle.cell_types))
    write_elem(label, "categories", types.categories.to_numpy())
    codes = _array(label, "codes", (cells,), types.codes.dtype)
    confidence = _array(obs, CONFIDENCE, (cells,))
    flags = {UNKNOWN: bundle.calibration.threshold is not None, CORRECTED: corrects}
    for name in flags:
        if not flags[name]:  # of another model
            obs.pop(name, None)
    told = [_array(obs, name, (cells,), np.bool_) for name in flags if flags[name]]
    order = [name for name in obs.attrs["column-order"] if flags.get(name, True)]
    written = [LABEL, CONFIDENCE, *(name for name in flags if flags[name])]
    obs.attrs["column-order"] = order + [name for name in written if name not in order]
    latent = _array(obsm, LATENT, (cells, bundle.settings.latent))
    if top_k is not None:
        kept = min(top_k, len(bundle.cell_types))
        values, places = _sparse(obsm, PROBABILITY, (cells, len(bundle.cell_types)), kept)
        return [codes, confidence, *told, latent, _Rows(values, kept), _Rows(places, kept)]
    names = column_names(bundle.cell_types)
    table = _table(obsm, PROBABILITY, obs, names)
    table.attrs["column-order"] = names
    return [codes, confidence, *told, latent, *(_array(table, name, (cells,)) for name in names)]


def _note(file: h5py.File, told: Mapping[str, Any]) -> None:
    """Write into uns what is to be told, in the place of what is there of an earlier model."""
    from anndata.io import write_elem

    uns = file.get("uns")
    if uns is None:
        uns = _group(file, "uns", "dict", "0.1.0")
    uns.pop(GENES, None)
    for name, value in told.items():
        write_elem(uns, name, value)


def _table(parent: h5py.Group, name: str, obs: h5py.Group, columns: Collection[str]) -> h5py.Group:
    """A table of the cells without other columns than these, in the place of what has that name."""
    index = "_index" if obs.attrs["_index"] in columns else obs.attrs["_index"]
    old = parent.get(name)
    if old is not None and is_table(old) and old.attrs.get("_index") == index and index in old:
        for key in set(old) - {index, *columns}:
            del old[key]
        return old  # with the index that it has: HDF5 does not use the place of deleted strings again
    table = _group(parent, name, "dataframe", "0.2.0")
    obs.file.copy(_index(obs), table, index)
    table.attrs["_index"] = index
    return table


@dataclass(frozen=True)
class _Rows:
    """An array that has so many entries of every cell, by cells."""

    array: h5py.Dataset
    each: int

    def __setitem__(self, rows: slice, entries: NDArray[Any]) -> None:
        self.array[rows.start * self.each : rows.stop * self.each] = entries


def _sparse(parent: h5py.Group, name: str, shape: tuple[int, int], each: int) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Values and places of a sparse matrix by rows with so many entries in each, in the place of what has that name."""
    old = parent.get(name)
    alike = old is not None and old.attrs.get("encoding-type") == "csr_matrix"
    matrix = old if alike else _group(parent, name, "csr_matrix", "0.1.0")
    matrix.attrs["shape"] = shape
    entries = shape[0] * each
    _array(matrix, "indptr", (shape[0] + 1,), np.int64)[:] = np.arange(0, entries + 1, each)
    return _array(matrix, "data", (entries,)), _array(matrix, "indices", (entries,), np.int32)


def _parts(
    predicted: Predictions, bundle: Bundle, corrected: NDArray[np.bool_] | None, top_k: int | None
) -> list[NDArray[Any]]:
    flags = [] if bundle.calibration.threshold is None else [predicted.unknown]
    flags += [] if corrected is None else [corrected]
    of_types: list[NDArray[Any]] = list(predicted.probabilities.T)
    if top_k is not None:
        kept = highest(predicted.probabilities, top_k)
        of_types = [kept.data, kept.indices]
    return [predicted.codes, predicted.confidence, *flags, predicted.latent, *of_types]


def _group(parent: h5py.Group, name: str, kind: str, version: str) -> h5py.Group:
    """A new group in the place of what has that name."""
    parent.pop(name, None)
    group = parent.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = kind, version
    return group


def _array(
    parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any] | type[np.generic] = np.float32
) -> h5py.Dataset:
    """An array in the place of what has that name, or that itself if it is as large."""
    import h5py

    array = parent.get(name)
    # Else the file would grow: HDF5 does not always find the place of what was deleted.
    alike = isinstance(array, h5py.Dataset) and (array.shape, array.dtype, array.chunks) == (shape, dtype, None)
    if not alike:
        parent.pop(name, None)
        array = parent.create_dataset(name, shape, dtype)
    array.attrs["encoding-type"], array.attrs["encoding-version"] = "array", "0.2.0"
    return array

"""Cells in memory: AnnData in, arrays with coded labels and batches out, every fault of the input told at once."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.config import UNLABELED, kinds_of
from scdgn.errors import DataError, SettingsError, count, nearest
from scdgn.files import hdf5_output
from scdgn.formats import conversion, format_of, read_other
from scdgn.values import Matrix, Reading, Survey, Values, parse

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

MOST_GROUPS = 100
"""So many types, or batches, are taken for what they are, however few cells each has."""

ROWS_PER_GENE = 10
"""Numbers below so many times their count are those of rows. Entrez identifiers of as many genes go far beyond it."""

NAMED = 3
"""Names told as examples."""

SMALL = "small batches"
"""The batch of the cells of batches that are too small to be one."""

QUERY = "query"
"""The batch of cells whose batches are not known."""

NUMERIC = "biuf"
"""Kinds of data types that can be values: Booleans, integers, fractions."""

RAW = "raw"
"""The layer that is none: the values that were put aside, with all their genes."""

X = (None, "X")
"""Layers that are the matrix X itself."""

EXPRESSION = "Gene Expression"
"""What 10x calls genes, beside antibodies and peaks, in var["feature_types"]."""

_BLOCK = 4096  # cells hashed at a time


@dataclass(frozen=True, eq=False)
class Dataset:
    """Cells with their genes, types and batches, in memory, values as the file has them.

    Parameters
    ----------
    x
        (cells, genes) float32, dense or CSR; shared with the AnnData where possible, so never written to.
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

    x: Matrix
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
        """The cells of `rows` (indices or a mask) in that order, with the same codes for types and batches."""
        return Dataset(
            self.x[rows],
            self.values,
            self.genes,
            self.cells[rows],
            self.labels[rows],
            self.cell_types,
            self.batches[rows],
            self.batch_names,
        )

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over values, names, labels and batches, the same for dense and sparse storage."""
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
        Batches with fewer cells are taken together, as one called `SMALL`.
    like
        What the training cells of the model hold with which these are to be compared.
    """

    labels_key: str | None
    batch_key: str | None
    layer: str | None = None
    gene_key: str | None = None
    unlabeled_category: str | None = None
    unlabeled: Literal["error", "drop", "domain"] = "error"
    values: str = "auto"
    duplicate_genes: Literal["error", "first", "sum"] = "error"
    missing_labels: tuple[str, ...] = ()
    kept_labels: tuple[str, ...] = ()
    min_batch_cells: int = 0
    like: Values | None = None

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
    """What stands beside the values: of an AnnData, or of a file whose values stay on disk (`scdgn.stored`)."""

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


def read_h5ad(path: str | Path, backed: bool = False) -> AnnData:
    """An AnnData from an .h5ad file, or what `scdgn.formats` reads; `backed` leaves the values of .h5ad on disk.

    Raises
    ------
    DataError
        For a file that is missing, a directory, truncated, damaged, or not an AnnData.
    """
    import anndata
    import h5py

    if (kind := format_of(Path(path))) is not None:
        return read_other(Path(path), kind)
    check_h5ad(path)
    with told_as_damage(path), _same_names_allowed():
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
        with h5py.File(path, "r") as file:
            for name, table in (("obs", adata.obs), ("var", adata.var)):
                if isinstance(file[name], h5py.Group) and "encoding-type" not in file[name].attrs:
                    setattr(adata, name, _converted(table, file[name]))
        return adata


def _converted(table: pd.DataFrame, stored: h5py.Group) -> pd.DataFrame:
    """A table as conversions from Seurat write it, with its index and its categories in the places that these have."""
    import pandas as pd

    table = table.copy()
    categories = stored.get("__categories", {})
    for name in set(categories) & set(table):
        names = [one.decode() if isinstance(one, bytes) else str(one) for one in categories[name][:]]
        codes: NDArray[np.int64] = table[name].to_numpy()
        if codes.dtype.kind in "iu" and codes.max(initial=-1) < len(names):
            table[name] = pd.Categorical.from_codes(codes, categories=pd.Index(names))
    index = stored.attrs.get("_index", "_index")
    if index in table:
        table.index = pd.Index(table[index].astype(str).to_numpy())
    return table.drop(columns=["__categories", "_index"], errors="ignore")


def read_values(path: str | Path, layer: str | None = None) -> AnnData:
    """The cells and genes of an .h5ad file with one matrix, X or the layer (or `.raw` as one), and nothing else.

    Raises
    ------
    DataError
        As `read_h5ad`.
    """
    import anndata
    import h5py

    if format_of(Path(path)) is not None:
        return read_h5ad(path)
    check_h5ad(path)
    with told_as_damage(path), _same_names_allowed(), h5py.File(path, "r") as file:
        key = matrix_key(layer, file)
        genes = "raw/var" if key == "raw/X" else "var"
        if key in file and genes in file and is_table(file["obs"]) and is_table(file[genes]):
            obs, var = (anndata.io.read_elem(file[name]) for name in ("obs", genes))
            stored = file[key]
            is_csr = stored.attrs.get("encoding-type") == "csr_matrix"
            x = _read_csr(stored) if is_csr else anndata.io.read_elem(stored)
            if sp.issparse(x):
                x = with_sound_indices(x)
                x.sum_duplicates()  # and sort, in place: nobody else has these values, where a copy would be made later
            own = layer in X
            return anndata.AnnData(x if own else None, obs, var, layers=None if own else {layer: x})
    return read_h5ad(path)  # which knows older files, and says what there is instead of the layer


def _read_csr(stored: h5py.Group) -> sp.csr_matrix:
    """A CSR matrix with indices of 32 bits where they suffice: SciPy would double them all for pointers of 64."""
    values, indices, pointers = (stored[name][:] for name in ("data", "indices", "indptr"))
    limits = np.iinfo(np.int32)
    if all(array.size == 0 or limits.min <= array.min() <= array.max() <= limits.max for array in (indices, pointers)):
        indices, pointers = (array.astype(np.int32, copy=False) for array in (indices, pointers))
    return sp.csr_matrix((values, indices, pointers), shape=tuple(stored.attrs["shape"]))


def check_h5ad(path: str | Path) -> None:
    """Refuse what is no AnnData file, by its first bytes and its groups.

    Raises
    ------
    DataError
        For a file that is missing, a directory, truncated, or not an AnnData.
    """
    import h5py

    path = Path(path)
    with suppress(ImportError):  # which knows more ways to compress, once it is loaded
        importlib.import_module("hdf5plugin")
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory: name the .h5ad file itself {_found(_h5ad_names(path))}")
        if not path.exists():
            beside = _h5ad_names(path.parent)
            known = nearest(path.name, beside) if beside else f"there is no .h5ad file in {path.parent}"
            raise DataError(f"{path} does not exist: {known}")
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}): name an .h5ad file that exists") from error
    try:
        path.open("rb").close()  # is_hdf5 would call a file without read permission "not HDF5"
        if not h5py.is_hdf5(path):
            remedy = conversion(path) or "write it with adata.write_h5ad"
            raise DataError(f"{path} is not an AnnData file (.h5ad, HDF5): {remedy}")
        with h5py.File(path, "r") as file:
            absent = {"obs", "var"} - set(file)
    except OSError as error:
        if "truncated" in str(error):
            raise DataError(f"{path} is truncated: copy or download it again") from error
        raise DataError(f"{path} cannot be opened ({_told_by_hdf5(error)}") from error
    if absent:
        raise DataError(f"{path} is HDF5 but not AnnData (it has no obs and var): write it with adata.write_h5ad")


def _told_by_hdf5(error: OSError) -> str:
    """Why a file cannot be opened, and the remedy of that."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}): check its permissions"
    if "unable to lock file" in str(error):
        return "another program has it open to write): close it there; if none has, set HDF5_USE_FILE_LOCKING=FALSE"
    return f"{error}): copy it again"


@contextmanager
def told_as_damage(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong in reading an .h5ad file, as a `DataError`."""
    try:
        yield
    except Exception as error:  # a damaged file can fail anywhere inside HDF5 or AnnData, as any type of exception
        first_line = str(error).partition("\n")[0]
        if "required filter" in str(error) or "lib/plugin" in str(error):
            raise DataError(
                f"{path} is compressed in a way that this HDF5 does not know ({first_line}): pip install hdf5plugin, "
                "which is then used"
            ) from error
        raise DataError(f"{path} cannot be read as AnnData ({first_line}): copy or write the file again") from error


def with_sound_indices(x: Any) -> Any:
    """A sparse matrix as it was read, its indices checked: where they are damaged SciPy reads and writes anywhere.

    Raises
    ------
    ValueError
        For indices beyond the matrix, or out of order.
    """
    if x.indices.dtype.kind == "u":  # as AnnData can write them; SciPy and torch want signed ones
        x.indices = x.indices.astype(np.int32)
    x.check_format(full_check=True)
    return x


def is_table(element: h5py.Group | h5py.Dataset) -> bool:
    """Whether obs or var is kept in the present form of AnnData's files, as all versions from 0.7 on write it."""
    return (element.attrs.get("encoding-type"), element.attrs.get("encoding-version")) == ("dataframe", "0.2.0")


def matrix_key(layer: str | None, file: h5py.File) -> str:
    """Where a file keeps the values."""
    if layer == RAW and f"layers/{RAW}" not in file:
        return "raw/X"
    return "X" if layer in X else f"layers/{layer}"


def is_raw(cells: Annotated, layer: str | None) -> bool:
    """Whether that layer is their `.raw`."""
    return layer == RAW and RAW not in cells.layers and cells.raw is not None


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an AnnData as it is: unlike `AnnData.write_h5ad`, strings stay strings.

    Raises
    ------
    OSError
        If the place cannot be written to, or is full.
    """
    import anndata

    with anndata.settings.override(allow_write_nullable_strings=True), hdf5_output(path, "w") as (file, _):
        anndata.io.write_elem(file, "/", adata)


def from_anndata(adata: AnnData, fields: Fields) -> Dataset:
    """The cells of an AnnData as a `Dataset`: see `read_cells`."""
    return read_cells(adata, fields)[0]


def read_cells(adata: AnnData, fields: Fields) -> tuple[Dataset, Reading]:
    """The cells of an AnnData, and how their values were read; the AnnData, in memory or backed, is left as it is.

    Labels and batches may be strings, numbers, booleans or categories (unused levels are ignored); they become strings.

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
    labels = _labels(adata, fields, faults)
    batches = batches_of_cells(adata, fields.batch_key, faults, fields.min_batch_cells)
    together = None
    if batches is not None:
        batches, together = _with_small_ones_together(batches, fields.min_batch_cells)
    cells = np.asarray(adata.obs_names, dtype=str)
    x = _matrix(adata, fields.layer, faults)
    if x is None:
        raise DataError(*faults)
    read = genes or Genes.of_all(adata)
    x = read.take(x)
    names, codes = np.unique(np.full(len(cells), QUERY) if batches is None else batches, return_inverse=True)
    survey = Survey()
    survey.add(x, codes)
    reading, unclear = read_values_as(survey, fields, cells.__getitem__, read, names.tolist())
    if faults + unclear or labels is None or batches is None or genes is None or reading is None:
        raise DataError(*faults, *unclear)

    x = genes.united(reading.read(x, codes))
    if fields.unlabeled == "drop" and labels.lost.any():
        kept = ~labels.lost
        x, cells, batches = x[kept], cells[kept], batches[kept]
        labels = _Labels(labels.names[kept], labels.unlabeled[kept], labels.lost[kept])
    label_codes, cell_types = _encode(labels.names, labels.unlabeled)
    batch_codes, batch_names = _encode(batches, np.zeros(len(batches), dtype=bool))
    dataset = Dataset(x, reading.values, genes.names, cells, label_codes, cell_types, batch_codes, batch_names)
    return dataset, reading if together is None else replace(reading, sentence=f"{reading.sentence}; {together}")


def _with_small_ones_together(batches: NDArray[np.str_], least: int) -> tuple[NDArray[np.str_], str | None]:
    """(cells,) the batches, those with fewer cells as one, and the sentence that says so."""
    names, codes, sizes = np.unique(batches, return_inverse=True, return_counts=True)
    small = sizes < least
    if small.sum() < 2:
        return batches, None
    told = f"{small.sum()} batches of fewer than {least} cells are taken together, as {SMALL!r}"
    return np.where(small, SMALL, names.astype(object)).astype(str)[codes], told


def read_values_as(
    survey: Survey, fields: Fields, cell_name: Callable[[int], str], genes: Genes, batch_names: Sequence[str]
) -> tuple[Reading | None, list[str]]:
    """How to read values that were looked at; None, and faults, where they cannot be.

    Parameters
    ----------
    survey
        Saw all of them.
    fields
        Where they are, and what they are said to be.
    cell_name
        Name of the cell at that place.
    genes
        Of the values seen.
    batch_names
        Of the codes that the survey was told.
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
    dataset
        All cells.
    rows
        Indices of the training cells.
    method
        `nn`, `dann` or `scdgn`.
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


_MISSING_NAMES = frozenset(["", "nan", "none", "<na>", "na", "n/a", "#n/a", "null"])
"""What str() makes of the missing values of Python, NumPy and pandas, what tables write for them, an empty field: in
lower case, without blanks at the ends."""

_NO_TYPE = _MISSING_NAMES | {
    "unknown", "unassigned", "unlabeled", "unlabelled", "unannotated", "unclassified", "undetermined", "undefined",
    "not available", "missing", "?", "-",
}  # fmt: skip
"""Of a label, also the words by which data say that a type is not known."""


@contextmanager
def _same_names_allowed() -> Iterator[None]:
    """Duplicate genes are reported by from_anndata; duplicate cell names do no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        yield


def _h5ad_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.h5ad")) if folder.is_dir() else []


def no_values(layer: str | None, layers: Collection[str]) -> str:
    """The fault of cells without X, or without that layer."""
    if layer in X:
        return f"X is empty: choose a layer with --layer {_found(layers)}"
    if layer == RAW:
        return f"there is no .raw and no layer called {RAW!r}: choose another --layer {_found(layers)}"
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


def size_faults(cells: Annotated) -> list[str]:
    """Faults of data without cells or genes."""
    return [
        f"the data hold no {what}: check the file, or the filter that made it"
        for what, count in (("cells", cells.n_obs), ("genes", cells.n_vars))
        if count == 0
    ]


@dataclass(frozen=True, eq=False)
class Genes:
    """Which genes of a matrix are taken.

    Attributes
    ----------
    names
        (genes,) of those taken, unique.
    read
        (columns,) names of those that are read, before those of the same name are summed.
    columns
        Where these are among all; None for all of them.
    repeated
        (columns,) code of each that is read into `names`; None where no name is repeated.
    """

    names: NDArray[np.str_]
    read: NDArray[np.str_]
    columns: NDArray[np.int64] | None = None
    repeated: NDArray[np.int64] | None = None

    @classmethod
    def of_all(cls, cells: Annotated) -> Genes:
        """All of them by the names of var, where the names wanted are not there."""
        names = np.asarray(cells.var.index, dtype=str)
        return cls(names, names)

    def take(self, x: Matrix) -> Matrix:
        """The columns that are read."""
        return x if self.columns is None else as_matrix(x[:, self.columns])

    def united(self, x: Matrix) -> Matrix:
        """Genes of the same name added up."""
        if self.repeated is None:
            return x
        places = (np.ones(len(self.repeated), dtype=np.float32), (np.arange(len(self.repeated)), self.repeated))
        return as_matrix(x @ sp.csr_matrix(places, shape=(len(self.repeated), len(self.names))))


def genes_of(cells: Annotated, fields: Fields, faults: list[str]) -> Genes | None:
    """The genes to read, those that are no antibodies or the like; None, and a fault, without the column.

    Their names are unique unless a fault says otherwise.
    """
    key = fields.gene_key
    if key is None:
        names, missing = np.asarray(cells.var.index, dtype=str), np.zeros(cells.n_vars, dtype=bool)
    elif key in cells.var:
        if _is_twice(cells.var[key], f"var has several columns called {key!r}: rename all but one", faults):
            return None
        names, missing = _names(cells.var[key])
    else:
        faults.append(f"var has no column {key!r} (--gene-key): {nearest(key, cells.var)}")
        return None
    place = "var" if key is None else f"var[{key!r}]"
    kept = _are_genes(cells.var)
    if (missing & kept).any():
        faults.append(f"{(missing & kept).sum()} genes have no name in {place}: remove them, or fill the names in")
        kept &= ~missing
    names = names[kept]
    if _are_row_numbers(names):
        others = _found(name for name in cells.var if name != key)
        holds = "has" if key is None else "holds"
        faults.append(
            f"{place} {holds} no gene names, only row numbers ({', '.join(names[:NAMED])}, ...), which other data have "
            f"for other genes: name the column of var that holds the names with --gene-key {others}"
        )
    columns = None if kept.all() else np.flatnonzero(kept)
    unique, first, codes, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    if len(unique) == len(names):
        return Genes(names, names, columns)
    if fields.duplicate_genes == "error":
        twice = unique[counts > 1]
        shown = ", ".join(twice[:NAMED]) + (", ..." if len(twice) > NAMED else "")
        remedy = "call adata.var_names_make_unique(), " if key is None else ""
        faults.append(
            f"{place} holds {count(len(twice), 'gene name')} more than once ({shown}): {remedy}choose another "
            "column of var with --gene-key, or --duplicate-genes sum or first"
        )
        return Genes(names, names, columns)
    if fields.duplicate_genes == "first":
        first = np.sort(first)
        return Genes(names[first], names[first], np.flatnonzero(kept)[first])
    order = np.argsort(np.argsort(first))  # names keep the order of the file
    return Genes(names[np.sort(first)], names, columns, order[codes])


def _are_genes(var: pd.DataFrame) -> NDArray[np.bool_]:
    """(columns,) which are genes: all, unless var has them beside antibodies or peaks, whose counts are others."""
    if "feature_types" not in var:
        return np.ones(len(var), dtype=bool)
    found = (var["feature_types"].astype(str) == EXPRESSION).to_numpy()
    return found if found.any() else np.ones(len(var), dtype=bool)


def _are_row_numbers(genes: NDArray[np.str_]) -> bool:
    """Whether names are the numbers of rows, all of them or some; unlike Entrez identifiers these are small."""
    if len(genes) == 0 or not all(name.isdecimal() and name.isascii() for name in genes.tolist()):
        return False
    return max(map(int, genes.tolist())) < ROWS_PER_GENE * len(genes)


@dataclass(frozen=True)
class _Labels:
    names: NDArray[np.str_]
    unlabeled: NDArray[np.bool_]  # by the chosen category or for want of a name
    lost: NDArray[np.bool_]  # for want of a name


def _labels(adata: AnnData, fields: Fields, faults: list[str]) -> _Labels | None:
    """Labels as strings; None, and a fault, without the column."""
    key = fields.labels_key
    if key is None:
        return _Labels(np.full(adata.n_obs, ""), np.ones(adata.n_obs, dtype=bool), np.zeros(adata.n_obs, dtype=bool))
    if key not in adata.obs:
        faults.append(f"obs has no column {key!r} (--labels-key): {nearest(key, adata.obs)}")
        return None
    if key == fields.batch_key:
        faults.append(f"obs[{key!r}] cannot be both cell type and batch: choose another --labels-key or --batch-key")
        return None
    if _is_twice(adata.obs[key], f"obs has several columns called {key!r}: rename all but one", faults):
        return None
    if (measure := _measured(adata.obs[key])) is not None:
        faults.append(f"obs[{key!r}] holds measurements ({measure:g}), not types: choose another --labels-key")
        return None
    names, missing = _names(adata.obs[key], _NO_TYPE - {name.strip().casefold() for name in fields.kept_labels})
    missing |= np.isin(names, list(fields.missing_labels))
    chosen = np.isin(names, [] if fields.unlabeled_category is None else [fields.unlabeled_category])
    lost = missing & ~chosen
    if fields.unlabeled == "error" and lost.any():
        written = _NO_TYPE - {"", "nan", "none", "<na>"}  # which str() makes of no value
        words = [word for word in np.unique(names[lost]).tolist() if word.strip().casefold() in written]
        called = (
            f" (among them those called {', '.join(map(repr, words))}; --keep-label keeps one that is a type)"
            if words
            else ""
        )
        faults.append(
            f"{lost.sum()} of {len(lost)} cells have no label in obs[{key!r}]{called}: drop them with --unlabeled "
            "drop, use them in the domain loss alone with --unlabeled domain, or name the label that marks them with "
            "--unlabeled-category"
        )
    faults += _alike(np.unique(names[~(missing | chosen)]), key, lambda name: " ".join(name.split()).casefold())
    types = np.unique(names[~(missing | chosen)])
    if adata.n_obs and len(types) < 2:
        held = f"one cell type only ({str(types[0])!r})" if len(types) else "no label"
        faults.append(f"obs[{key!r}] holds {held}, two types are needed: choose another column with --labels-key")
    if _too_many(len(types), adata.n_obs):
        faults.append(f"obs[{key!r}] holds {len(types):,} types for {adata.n_obs:,} cells: choose another --labels-key")
    return _Labels(names, missing | chosen, lost)


def batches_of_cells(cells: Annotated, key: str | None, faults: list[str], least: int = 0) -> NDArray[np.str_] | None:
    """The batch of every cell, `QUERY` without a key; None, and a fault, without the column.

    Any number of them is right where those of fewer cells than `least` are taken together.
    """
    if key is None:
        return np.full(cells.n_obs, QUERY)
    if key not in cells.obs:
        faults.append(f"obs has no column {key!r} (--batch-key): {nearest(key, cells.obs)}")
        return None
    if _is_twice(cells.obs[key], f"obs has several columns called {key!r}: rename all but one", faults):
        return None
    names, missing = _names(cells.obs[key])
    if missing.any():
        faults.append(
            f"{missing.sum()} of {len(missing)} cells have no batch in obs[{key!r}]: fill the values in, or remove "
            "those cells"
        )
    faults += _alike(np.unique(names[~missing]), key, lambda name: " ".join(name.split()))
    if not least and _too_many(found := cells.obs[key].nunique(), len(names)):
        faults.append(
            f"obs[{key!r}] holds {found:,} batches for {len(names):,} cells: choose another --batch-key, or take small "
            "ones together with --min-batch-cells"
        )
    return names


def _is_twice(column: object, fault: str, faults: list[str]) -> bool:
    """Whether a table has several columns of that name, which pandas gives as a table."""
    if getattr(column, "ndim", 1) == 1:
        return False
    faults.append(fault)
    return True


def _too_many(names: int, cells: int) -> bool:
    """Whether so many names are those of cells rather than of groups of cells."""
    return names > max(MOST_GROUPS, cells / 2)


def _measured(column: pd.Series[Any]) -> float | None:
    """A value that is no name of a type, as a column of scores has; None where there is none."""
    if column.dtype.kind != "f":
        return None
    values = column.to_numpy()
    fractions = values[np.isfinite(values) & (values != np.floor(values))]
    return float(fractions[0]) if fractions.size else None


def _names(
    column: pd.Series[Any], no_value: Collection[str] = _MISSING_NAMES
) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """A column of any type as strings, and where it has no value, or a word for none.

    Whole numbers stored as floats, as pandas does beside missing values, are written without the decimal point.
    """
    entries = column.astype(object)
    names = np.array([_name(entry) for entry in entries], dtype=str)
    words = [name for name in np.unique(names).tolist() if name.strip().casefold() in no_value]
    return names, entries.isna().to_numpy(dtype=bool) | np.isin(names, words)


def _alike(names: NDArray[np.str_], key: str, plain: Callable[[str], str]) -> list[str]:
    """A fault where several names become one when they are written plainly: they are meant to be the same."""
    groups: dict[str, list[str]] = {}
    for name in names.tolist():
        groups.setdefault(plain(name), []).append(name)
    if not (several := [group for group in groups.values() if len(group) > 1]):
        return []
    shown = "; ".join(" and ".join(map(repr, group)) for group in several[:NAMED])
    return [
        f"obs[{key!r}] writes {count(len(several), 'name')} in several ways ({shown}), told apart by blanks or case "
        "alone: write each in one way"
    ]


def _name(entry: object) -> str:
    return str(int(entry)) if isinstance(entry, float | np.floating) and entry.is_integer() else str(entry)


def _encode(names: NDArray[np.str_], missing: NDArray[np.bool_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    codes = np.full(len(names), UNLABELED, dtype=np.int64)
    levels, codes[~missing] = np.unique(names[~missing], return_inverse=True)
    return codes, tuple(levels.tolist())


def _found(names: Iterable[object]) -> str:
    listed = ", ".join(str(name) for name in names)
    return f"(found: {listed})" if listed else "(there are none)"


def _place(layer: str | None) -> str:
    return "X" if layer in X else f"layer {layer!r}"

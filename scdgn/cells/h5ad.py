"""Files of AnnData: read as a whole or in part, checked, written."""

from __future__ import annotations

import errno
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.fields import RAW, X
from scdgn.cells.formats import conversion, format_of, read_other
from scdgn.cells.names import found_instead
from scdgn.errors import DataError, nearest
from scdgn.files import hdf5_output

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData


def read_h5ad(path: str | Path, backed: bool = False) -> AnnData:
    """An AnnData from an .h5ad file, or what `scdgn.cells.formats` reads; `backed` leaves the values of .h5ad on disk.

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
    with told_as_damage(path), same_names_allowed():
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
        with h5py.File(path, "r") as file:
            for name, table in (("obs", adata.obs), ("var", adata.var)):
                if isinstance(file[name], h5py.Group) and "encoding-type" not in file[name].attrs:
                    setattr(adata, name, _converted(table, file[name]))
            if backed and not isinstance(file.get("raw"), h5py.Group):
                del adata.raw  # of a file that says that there is none it would be empty, and cannot be read
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


LARGE = 25_000_000
"""Stored values of a file (0.2 GB in compressed rows) from which it pays to read those of some cells alone."""


def read_values(
    path: str | Path, layer: str | None = None, sample: Callable[[AnnData], NDArray[np.int64]] | None = None
) -> AnnData:
    """The cells and genes of an .h5ad file with one matrix, X or the layer (or `.raw` as one), and nothing else.

    Parameters
    ----------
    path, layer
        Where the values are.
    sample
        Chooses cells by their table, ascending: of a `LARGE` matrix, dense or in compressed rows, their values alone
        are read, and the other cells are empty. None reads all.

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
    with told_as_damage(path), same_names_allowed(), h5py.File(path, "r") as file:
        if (tables := tables_of(file, layer)) is not None:
            stored = file[matrix_key(layer, file)]
            is_csr = stored.attrs.get("encoding-type") == "csr_matrix"
            if sample is not None and (stored["data"].size if is_csr else _dense_size(stored)) > LARGE:
                x = (_read_some_rows if is_csr else _some_dense_rows)(stored, sample(tables))
            else:
                x = _read_csr(stored) if is_csr else anndata.io.read_elem(stored)
            if sp.issparse(x):
                x = with_sound_indices(x)
                x.sum_duplicates()  # and sort, in place: nobody else has these values, where a copy would be made later
            own = layer in X
            return anndata.AnnData(x if own else None, tables.obs, tables.var, layers=None if own else {layer: x})
    return read_h5ad(path)  # which knows older files, and says what there is instead of the layer


def tables_of(file: h5py.File, layer: str | None) -> AnnData | None:
    """The cells of a file and the genes of that layer, without values; None where these are not there, or the tables
    are not in the present form."""
    import anndata

    key = matrix_key(layer, file)
    genes = "raw/var" if key == "raw/X" else "var"
    if not (key in file and genes in file and is_table(file["obs"]) and is_table(file[genes])):
        return None
    return anndata.AnnData(obs=anndata.io.read_elem(file["obs"]), var=anndata.io.read_elem(file[genes]))


def _read_csr(stored: h5py.Group) -> sp.csr_matrix:
    """A CSR matrix with indices of 32 bits where they suffice: SciPy would double them all for pointers of 64."""
    values, indices, pointers = (stored[name][:] for name in ("data", "indices", "indptr"))
    limits = np.iinfo(np.int32)
    if all(array.size == 0 or limits.min <= array.min() <= array.max() <= limits.max for array in (indices, pointers)):
        indices, pointers = (array.astype(np.int32, copy=False) for array in (indices, pointers))
    return sp.csr_matrix((values, indices, pointers), shape=tuple(stored.attrs["shape"]))


def _read_some_rows(stored: h5py.Group, rows: NDArray[np.int64]) -> sp.csr_matrix:
    """The same matrix with the values of some rows, ascending, and no others."""
    pointers = stored["indptr"][:].astype(np.int64)
    counts = np.zeros(len(pointers) - 1, dtype=np.int64)
    counts[rows] = np.diff(pointers)[rows]
    values, indices = (
        np.concatenate([stored[name][pointers[row] : pointers[row + 1]] for row in rows] or [stored[name][:0]])
        for name in ("data", "indices")
    )
    starts = np.concatenate([[0], np.cumsum(counts)])
    return sp.csr_matrix((values, indices, starts), shape=tuple(stored.attrs["shape"]))


def _dense_size(stored: h5py.Group | h5py.Dataset) -> int:
    return 0 if hasattr(stored, "keys") else int(stored.size)


def _some_dense_rows(stored: h5py.Dataset, rows: NDArray[np.int64]) -> sp.csr_matrix:
    """The values of some rows of a dense matrix, ascending, and no others."""
    some = sp.csr_matrix(np.stack([stored[row] for row in rows]) if len(rows) else stored[:0])
    counts = np.zeros(stored.shape[0], dtype=np.int64)
    counts[rows] = np.diff(some.indptr)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return sp.csr_matrix((some.data, some.indices, starts), shape=stored.shape)


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
            raise DataError(f"{path} is a directory: name the .h5ad file itself {found_instead(_h5ad_names(path))}")
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


@contextmanager
def same_names_allowed() -> Iterator[None]:
    """Duplicate genes are reported by from_anndata; duplicate cell names do no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        yield


def _h5ad_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.h5ad")) if folder.is_dir() else []

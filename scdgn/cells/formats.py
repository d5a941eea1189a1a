"""Cells that are not in an .h5ad file: read by the field's libraries, or refused with the line that converts them."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scdgn.errors import DataError, count, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

Format = Literal["10x folder", "10x file", "zarr", "loom", "mudata"]

SUFFIXES = (".h5ad", ".h5", ".zarr", ".loom", ".h5mu")
"""Of what is read."""

CONVERSIONS: Mapping[str, str] = {
    ".csv": 'anndata.io.read_csv("{name}").write_h5ad("{stem}.h5ad")',
    ".tsv": 'anndata.io.read_csv("{name}", delimiter="\\t").write_h5ad("{stem}.h5ad")',
    ".txt": 'anndata.io.read_text("{name}").write_h5ad("{stem}.h5ad")',
    ".mtx": 'scanpy.read_10x_mtx("FOLDER").write_h5ad("{stem}.h5ad"), or give the folder itself',
    ".loom": 'scanpy.read_loom("{name}").write_h5ad("{stem}.h5ad"), once loompy is installed',
    ".rds": 'zellkonverter::writeH5AD(Seurat::as.SingleCellExperiment(readRDS("{name}")), "{stem}.h5ad") in R',
    ".h5seurat": 'SeuratDisk::Convert("{name}", dest = "h5ad") in R',
}
"""A line that converts a file of that suffix."""


def is_file(name: str) -> bool:
    """Whether a name is that of a file of cells, rather than of a batch."""
    return Path(name).suffix in SUFFIXES


def format_of(path: Path) -> Format | None:
    """What other than .h5ad a path holds, by its content; None for .h5ad and for what is not known."""
    import h5py

    try:
        if path.is_dir():
            if any((path / name).exists() for name in ("matrix.mtx", "matrix.mtx.gz")):
                return "10x folder"
            return "zarr" if any((path / name).exists() for name in (".zgroup", "zarr.json")) else None
        if not path.is_file() or not h5py.is_hdf5(path):
            return None
        with h5py.File(path, "r") as file:
            groups = {name for name in file if isinstance(file[name], h5py.Group)}
            of_genome = any("barcodes" in file[name] for name in groups)  # a group each before Cell Ranger 3
    except OSError:
        return None  # which is told where it is opened
    if "mod" in groups:
        return "mudata"
    if {"row_attrs", "col_attrs"} <= groups:
        return "loom"
    return "10x file" if of_genome and "obs" not in groups else None


def conversion(path: Path) -> str | None:
    """The line that converts a file that is not read here; None where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    line = CONVERSIONS.get(suffixes[-1]) if suffixes else None
    return line and line.format(name=path.name, stem=path.name.partition(".")[0])


def read_other(path: Path, kind: Format) -> AnnData:
    """An AnnData from a file or folder of that kind.

    Raises
    ------
    DataError
        If it is damaged, or the library that reads it is not installed.
    """
    with _told(path, kind):
        if kind == "10x folder":
            import scanpy as sc

            return sc.read_10x_mtx(path)
        if kind == "10x file":
            import scanpy as sc

            adata = sc.read_10x_h5(path)
            adata.var_names_make_unique()
            return adata
        import anndata

        if kind == "zarr":
            return anndata.io.read_zarr(path)
        if kind == "loom":
            return anndata.io.read_loom(path)
        return _only_modality(path)


def _only_modality(path: Path) -> AnnData:
    import anndata
    import h5py

    with h5py.File(path, "r") as file:
        names = sorted(file["mod"])
        if len(names) == 1:
            found: AnnData = anndata.io.read_elem(file["mod"][names[0]])
            return found
    one = "rna" if "rna" in names else names[0]
    raise DataError(
        f"{path} is MuData, of {', '.join(names)}: write one of these by itself, "
        f'mudata.read_h5mu("{path.name}").mod["{one}"].write_h5ad("{one}.h5ad")'
    )


@contextmanager
def _told(path: Path, kind: Format) -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of names that are made unique
            yield
    except DataError:
        raise
    except ImportError as error:
        line = conversion(path) or f"pip install {error.name}"
        raise DataError(f"{path} needs {error.name or first_line(error)}, which is not installed: {line}") from error
    except Exception as error:  # a damaged file can fail anywhere, as any type of exception
        raise DataError(f"{path} cannot be read as {kind} ({first_line(error)}): copy or write it again") from error


def with_table(adata: AnnData, path: Path) -> AnnData:
    """The same cells with the columns of a table (comma- or tab-separated), its first column the names of the cells.

    Columns of the same name are replaced; cells that the table holds beside these do not matter.

    Raises
    ------
    DataError
        If it cannot be read, or lacks cells.
    """
    import pandas as pd

    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            comma = file.readline().count("\t") == 0
        table = pd.read_csv(path, sep="," if comma else "\t", index_col=0, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({first_line(error)}): give .csv or .tsv (--obs)") from error
    table.index = table.index.astype(str)
    if twice := int(table.index.duplicated().sum()):
        raise DataError(f"{path} holds {count(twice, 'cell')} more than once: write each cell in one row")
    absent = ~adata.obs_names.isin(table.index)
    if absent.any():
        raise DataError(
            f"{path} lacks {absent.sum():,} of {adata.n_obs:,} cells, the first {adata.obs_names[absent][0]!r}: its "
            f"first column has to hold their names (it begins with {', '.join(map(repr, table.index[:2]))})"
        )
    found, chosen = adata.copy(), table.loc[adata.obs_names]
    for name, column in chosen.items():
        found.obs[str(name)] = column.to_numpy()
    return found

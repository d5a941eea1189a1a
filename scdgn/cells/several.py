"""Several files of cells as one data set: genes joined by name, and a column that says which file a cell comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scdgn.cells.dataset import as_matrix
from scdgn.cells.fields import Fields, X, is_raw
from scdgn.cells.formats import format_of
from scdgn.cells.h5ad import same_names_allowed
from scdgn.cells.matching import columns_of, needed_genes
from scdgn.cells.names import genes_of
from scdgn.cells.reading import no_values
from scdgn.errors import DataError, count, listed

if TYPE_CHECKING:
    from anndata import AnnData

FILE = "file"
"""Column of obs with the file of each cell, unless they have a column of that name."""


def one_or_several(files: Sequence[Path]) -> Path | tuple[Path, ...] | None:
    """Files of cells as a `Source` has them: a single one as a path."""
    return files[0] if len(files) == 1 else tuple(files) or None


def files_of(data: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    """The files that are meant: of a folder, the .h5ad files in it, in the order of their names."""
    found: list[Path] = []
    for path in data if isinstance(data, tuple) else (data,):
        inside = sorted(path.glob("*.h5ad")) if _is_folder(path) and format_of(path) is None else []
        found += inside or [path]
    return tuple(found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long, which is told when it is read
        return False


def tables(files: Sequence[Path], read: Callable[[Path], AnnData]) -> AnnData:
    """The cells of several files without values and genes; obs has `FILE`."""
    import pandas as pd
    from anndata import AnnData

    parts = []
    for name, file in zip(_names(files), files, strict=True):
        obs = pd.DataFrame(read(file).obs)
        parts.append(obs if FILE in obs else obs.assign(**{FILE: name}))
    obs = pd.concat(parts)
    obs.index = obs.index.astype(str)
    with same_names_allowed():
        return AnnData(obs=obs)


def joined(files: Sequence[Path], fields: Fields, read: Callable[[Path], AnnData]) -> tuple[AnnData, str]:
    """The cells of several files with the genes that all have, as `anndata.concat` with an inner join has them.

    Genes are matched by name, without versions and a genome's prefix where that is needed, and stand in the order of
    the first file. Values stay what they are: they are judged batch by batch later.

    Parameters
    ----------
    files
        At least two.
    fields
        Where they keep what is needed; columns of obs may come from a table beside them.
    read
        Reads one.

    Returns
    -------
    The cells, with the values where `fields` has them and gene names also in the column that it names, and what was
    lost, as a sentence.

    Raises
    ------
    DataError
        With the faults of the first file that has any, or if the files hardly share a gene.
    """
    with same_names_allowed():
        return _joined(files, [_part(file, fields, read) for file in files], fields)


def _joined(files: Sequence[Path], parts: Sequence[AnnData], fields: Fields) -> tuple[AnnData, str]:
    import pandas as pd
    from anndata import AnnData

    wanted = parts[0].var_names.to_numpy(dtype=str)
    columns = np.stack([columns_of(wanted, part.var_names.to_numpy(dtype=str)) for part in parts])  # (files, genes)
    shared = (columns >= 0).all(axis=0)
    if shared.sum() < needed_genes(min(part.n_vars for part in parts)):
        other = parts[int((columns >= 0).sum(axis=1).argmin())]
        first, second = (", ".join(part.var_names[:3]) for part in (parts[0], other))
        raise DataError(
            f"the {len(files)} files have {count(int(shared.sum()), 'gene')} in common (their genes begin with {first} "
            f"and with {second}): name the column of var that holds the same names in all with --gene-key"
        )
    values: list[Any] = [as_matrix(part.X[:, own[shared]]) for part, own in zip(parts, columns, strict=True)]
    x: Any = sp.vstack(values, format="csr") if any(map(sp.issparse, values)) else np.concatenate(values)
    genes = pd.Index(wanted[shared])
    var = pd.DataFrame({} if fields.gene_key is None else {fields.gene_key: genes}, index=genes)
    own = {"X": x} if fields.layer in X else {"layers": {fields.layer: x}}
    by_file = dict(zip(files, parts, strict=True))
    cells = AnnData(obs=tables(files, by_file.__getitem__).obs, var=var, **own)
    lost = [
        f"{name} loses {part.n_vars - len(genes):,}"
        for name, part in zip(_names(files), parts, strict=True)
        if part.n_vars > len(genes)
    ]
    told = f"{len(files)} files, {count(len(genes), 'gene')} that all have"
    return cells, told + (f": {listed(lost)}" if lost else "")


def _names(files: Sequence[Path]) -> list[str]:
    """What the files are called: without folder and suffix where these are all different."""
    stems = [file.stem for file in files]
    return stems if len({*stems}) == len(stems) else [str(file) for file in files]


def _part(file: Path, fields: Fields, read: Callable[[Path], AnnData]) -> AnnData:
    """The cells of one file with the values of that layer as X, and with those genes alone that are to be read."""
    from anndata import AnnData

    adata = read(file)
    if is_raw(adata, fields.layer):
        x, var = adata.raw.X, adata.raw.var
    else:
        x, var = adata.X if fields.layer in X else adata.layers.get(fields.layer), adata.var
    if x is None:
        raise DataError(f"{file}: {no_values(fields.layer, adata.layers)}")
    faults: list[str] = []
    part = AnnData(x, adata.obs, var)
    genes = genes_of(part, replace(fields, layer=None), faults)
    if genes is not None and genes.repeated is not None:
        faults.append(
            "several genes have one name, and sums of several files are not made: use --duplicate-genes first"
        )
    if faults or genes is None:
        raise DataError(*(f"{file}: {fault}" for fault in faults))
    found = part if genes.columns is None else part[:, genes.columns].copy()
    found.var_names = list(genes.names)
    return found

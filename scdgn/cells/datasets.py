"""Data sets by name: the paper's (Ge et al. 2020), and simulated ones in their shapes.

The paper's pancreas cells are part of the human pancreas collection of the integration benchmark of Luecken et al.
2022, which is downloaded once. All of the paper's sets can be read from the files that its authors publish.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.simulate import BATCH_KEY, LABELS_KEY, paper_shape, simulate
from scdgn.cells.splits import Blocks
from scdgn.errors import DataError, nearest

if TYPE_CHECKING:
    from anndata import AnnData

PANCREAS_URL = "https://ndownloader.figshare.com/files/24539828"
PANCREAS_FILE = "human_pancreas_norm_complexBatch.h5ad"
PANCREAS_CELLS = {"celseq": 1004, "celseq2": 2285, "smartseq2": 2394, "fluidigmc1": 638}
AUTHORS_PAGE = "https://github.com/SongweiGe/scDGN"


@dataclass(frozen=True)
class Entry:
    """One line of the list of data sets, and how to come by it.

    Parameters
    ----------
    description
        Cells, types and batches, in one line.
    source
        Where the cells come from.
    test
        What is held out, in words.
    shape
        Simulated in this shape of the paper's (`scdgn.cells.simulate.paper_shape`); None for real cells.
    blocks
        The blocks that its training domains keep; None for all.
    url
        Where to download it; None where its authors alone publish it.
    test_rows
        The test cells of the authors' file, if it is one file.
    reported_training_cells
        As counted for the paper.
    """

    description: str
    source: str
    test: str
    shape: str | None = None
    blocks: Blocks | None = None
    url: str | None = None
    test_rows: slice | None = None
    reported_training_cells: int | None = None


@dataclass(frozen=True)
class LoadedDataset:
    """Cells as AnnData, and which of their batches test a model.

    The cells that are used and no others: `hold_out` by `test_batches` gives the split. Only scquery has batches that
    were published for validation. Notes are what the user should know, a sentence each; the keys are columns of obs.
    """

    adata: AnnData
    test_batches: tuple[str, ...]
    validation_batches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels_key: str = LABELS_KEY
    batch_key: str = BATCH_KEY


def load(name: str, path: str | Path | None = None, cache: str | Path | None = None) -> LoadedDataset:
    """The cells of a data set and its split.

    Parameters
    ----------
    name
        A key of `DATASETS`.
    path
        The authors' .npz file, an .h5ad file with `obs["celltype"]` and `obs["tech"]`, or the folder of such a file
        under its published name; scquery is three files in a folder. Simulated sets take none. By default the file is
        downloaded.
    cache
        Folder for downloads; by default the environment variable SCDGN_CACHE, else the user's cache folder.

    Raises
    ------
    DataError
        For unknown names, files that are missing, damaged or of another form, and downloads that fail.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} does not exist: {nearest(name, DATASETS)}")
    entry = DATASETS[name]
    if entry.shape is not None:
        if path is not None:
            raise DataError(f"data set {name!r} is simulated and reads no file: leave out --path")
        return _simulated(entry, entry.shape)
    if path is None:
        if entry.url is None:
            raise DataError(f"{name} has no direct download: get it by way of {AUTHORS_PAGE} and give --path")
        path = _download(entry.url, cache)
    path = Path(path)
    if name == "scquery":
        return _scquery(path)
    file = _file_of(name, path)
    adata = _read(file)
    if file.suffix == ".npz" or entry.url is None:
        return _by_rows(entry, adata, file)
    return _by_technology(entry, adata, file)


_A = ("gamma", "ductal", "mast", "endothelial", "beta", "quiescent_stellate", "macrophage")
_B = ("gamma", "ductal", "mast", "epsilon", "alpha", "delta", "acinar")
_C = ("macrophage", "activated_stellate", "schwann", "epsilon", "alpha", "delta", "acinar")
# Types that celseq, celseq2 and smartseq2 keep, and the training cells reported.
_PANCREAS = {
    "pancreas1": (_A, _B, _C, 2490),
    "pancreas2": (_C, _A, _B, 2895),
    "pancreas3": (_B, _C, _A, 1978),
    "pancreas4": (_B, _A, _C, 4104),
    "pancreas5": (_C, _B, _A, 2904),
    "pancreas6": (_A, _C, _B, 3235),
}


def _pancreas_blocks(name: str) -> Blocks:
    celseq, celseq2, smartseq2, _ = _PANCREAS[name]
    keep = {"celseq": celseq, "celseq2": celseq2, "smartseq2": smartseq2}
    return Blocks(name, "fluidigmc1", keep, LABELS_KEY, BATCH_KEY)


def _registry() -> dict[str, Entry]:
    pancreas = "human pancreas, 4 technologies, 13 types"
    benchmark = "integration benchmark of Luecken et al. 2022 (figshare 24539828), or the authors' .npz"
    authors = f"the authors' .npz ({AUTHORS_PAGE})"
    simulated = "negative-binomial counts, drawn here"
    last_638 = slice(-638, None)
    real = {
        "pancreas": Entry(f"{pancreas}, all cells", benchmark, "fluidigmc1", url=PANCREAS_URL, test_rows=last_638),
        **{
            name: Entry(
                f"{pancreas}, 7 of them on each training technology",
                benchmark,
                "fluidigmc1",
                blocks=_pancreas_blocks(name),
                url=PANCREAS_URL,
                test_rows=last_638,
                reported_training_cells=_PANCREAS[name][-1],
            )
            for name in _PANCREAS
        },
        "pbmc": Entry("blood cells, 9 batches, 10 types", authors, "the first 2,992 cells", test_rows=slice(0, 2992)),
        "scquery": Entry("cells of 155 studies, 39 types, 20,499 genes", authors, "30 studies"),
    }
    drawn = {
        "simulated-pancreas": Entry(f"as {pancreas}, all cells", simulated, "fluidigmc1", shape="pancreas"),
        **{
            f"simulated-{name}": Entry(
                f"as {pancreas}, 7 of them on each training technology",
                simulated,
                "fluidigmc1",
                shape="pancreas",
                blocks=_pancreas_blocks(name),
            )
            for name in _PANCREAS
        },
        "simulated-pbmc": Entry("28,969 cells, 9 batches, 10 types", simulated, "domain9", shape="pbmc"),
        "simulated-scquery": Entry(
            "44,490 cells of 155 studies, 39 types, 20,499 genes", simulated, "30 studies", shape="scquery"
        ),
    }
    return {**real, **drawn}


DATASETS: Mapping[str, Entry] = _registry()


def _simulated(entry: Entry, shape: str) -> LoadedDataset:
    settings = paper_shape(shape)
    adata = simulate(settings)
    if entry.blocks is not None:
        adata = adata[_kept(adata, entry.blocks)].copy()
    if shape == "scquery":
        test, validation = (
            tuple(name for name in settings.cells if name.startswith(part)) for part in ("test", "valid")
        )
        return LoadedDataset(adata, test, validation)
    return LoadedDataset(adata, (entry.test,))


def _by_technology(entry: Entry, adata: AnnData, file: Path) -> LoadedDataset:
    """The four technologies of the paper among those of the collection."""
    technologies = adata.obs[BATCH_KEY].to_numpy().astype(str)
    found = {name: int((technologies == name).sum()) for name in PANCREAS_CELLS}
    if absent := [name for name, cells in found.items() if not cells]:
        held = ", ".join(sorted(set(technologies)))
        raise DataError(f"{file} has no cells of {', '.join(absent)} (it has {held}): give {PANCREAS_FILE}")
    notes = [
        f"{name} has {cells} cells where the collection has {PANCREAS_CELLS[name]}: this is another version of the data"
        for name, cells in found.items()
        if cells != PANCREAS_CELLS[name]
    ]
    rows = np.isin(technologies, list(PANCREAS_CELLS)) if entry.blocks is None else _kept(adata, entry.blocks)
    if entry.reported_training_cells is not None:
        training = int((rows & (technologies != entry.test)).sum())
        notes.append(f"{training} training cells, where {entry.reported_training_cells} were reported for the paper")
    return LoadedDataset(adata[rows].copy(), (entry.test,), notes=tuple(notes))


def _by_rows(entry: Entry, adata: AnnData, file: Path) -> LoadedDataset:
    """The authors' one file, whose test cells are its first or last rows."""
    is_test = np.zeros(adata.n_obs, dtype=bool)
    is_test[entry.test_rows] = True
    if is_test.all():
        raise DataError(f"{file} holds {adata.n_obs} cells, and the test set alone is as many: give the authors' file")
    return _by_part(adata, np.where(is_test, "test", "train"))


def _scquery(folder: Path) -> LoadedDataset:
    """The authors' three files."""
    import anndata

    if not folder.is_dir():
        raise DataError(f"scquery is three files and {folder} is no folder: give the one with train_scquery.npz")
    parts = {part: _read(_first_file(folder, f"{part}_scquery")) for part in ("train", "valid", "test")}
    if len({tuple(part.var_names) for part in parts.values()}) > 1:
        raise DataError(f"the three scquery files in {folder} differ in their genes: copy them again")
    adata = anndata.concat(parts, index_unique="-")
    return _by_part(adata, np.repeat(list(parts), [part.n_obs for part in parts.values()]))


def _by_part(adata: AnnData, part: NDArray[np.str_]) -> LoadedDataset:
    """Part the cells (train, valid or test, for each cell) by whole batches.

    Cells of one batch in two parts become two batches.
    """
    batches = adata.obs[BATCH_KEY].to_numpy().astype(str).astype(object)
    taken = set(batches[part == "train"])
    notes = []
    held: dict[str, tuple[str, ...]] = {}
    for name in ("valid", "test"):
        for shared in sorted(taken & set(batches[part == name])):
            batches[(part == name) & (batches == shared)] = f"{shared} ({name})"
            notes.append(f"batch {shared!r} has {name} cells and others: the former are called '{shared} ({name})'")
        held[name] = tuple(sorted(set(batches[part == name])))
        taken.update(held[name])
    adata.obs[BATCH_KEY] = batches.astype(str)
    return LoadedDataset(adata, held["test"], held["valid"], tuple(notes))


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable SCDGN_CACHE, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("SCDGN_CACHE") or pooch.os_cache("scdgn"))


def _kept(adata: AnnData, blocks: Blocks) -> NDArray[np.bool_]:
    types = adata.obs[blocks.labels_key].to_numpy().astype(str)
    domains = adata.obs[blocks.batch_key].to_numpy().astype(str)
    kept: NDArray[np.bool_] = domains == blocks.test_domain
    for domain, names in blocks.keep.items():
        kept |= (domains == domain) & np.isin(types, names)
    return kept


def _download(url: str, cache: str | Path | None) -> Path:
    import pooch

    folder = cache_folder() if cache is None else cache
    try:
        # No hash is published; that the cells per technology are right is checked instead.
        return Path(pooch.retrieve(url, known_hash=None, fname=PANCREAS_FILE, path=folder))
    except OSError as error:  # requests' errors are OSErrors
        reason = type(error).__name__
        raise DataError(f"{url} cannot be downloaded to {folder} ({reason}): give --path FILE") from error


def _file_of(name: str, path: Path) -> Path:
    if not path.is_dir():
        return path
    return _first_file(path, name, *([PANCREAS_FILE.removesuffix(".h5ad")] if name.startswith("pancreas") else []))


def _first_file(folder: Path, *stems: str) -> Path:
    names = [f"{stem}{suffix}" for stem in stems for suffix in (".npz", ".h5ad")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} holds none of {', '.join(names)}: give the file itself, or another folder")


def _read(file: Path) -> AnnData:
    if file.suffix == ".npz":
        return _read_npz(file)
    from scdgn.cells.h5ad import read_h5ad

    adata = read_h5ad(file)
    if faults := [
        f"{file} has no obs[{key!r}]: {nearest(key, adata.obs)}"
        for key in (LABELS_KEY, BATCH_KEY)
        if key not in adata.obs
    ]:
        raise DataError(*faults)
    return adata


def _read_npz(file: Path) -> AnnData:
    """The authors' form: features (cells, genes), labels (cells,), accessions (cells,), perhaps genes (genes,)."""
    import anndata
    import pandas as pd

    arrays = _arrays(file, required=("features", "labels", "accessions"))
    x = arrays["features"]
    cells, genes = x.shape if x.ndim == 2 else (0, 0)
    lengths = {"labels": cells, "accessions": cells, "genes": genes}
    if x.ndim != 2 or any(arrays[key].shape != (lengths[key],) for key in lengths if key in arrays):
        shapes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        raise DataError(f"the arrays of {file} do not fit ({shapes}): features must be cells x genes, the others lists")
    names = arrays["genes"].astype(str) if "genes" in arrays else [f"gene{gene}" for gene in range(genes)]
    obs = pd.DataFrame(
        {LABELS_KEY: arrays["labels"], BATCH_KEY: arrays["accessions"]}, index=[f"cell{cell}" for cell in range(cells)]
    )
    return anndata.AnnData(x.astype(np.float32, copy=False), obs=obs, var=pd.DataFrame(index=names))


def _arrays(file: Path, required: Sequence[str]) -> dict[str, NDArray[Any]]:
    if not file.is_file():
        raise DataError(f"{file} does not exist: check --path")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in (*required, "genes") if key in archive}
            held = list(archive)
    except Exception as error:  # zipfile's, zlib's and NumPy's own errors share no type
        if "Object arrays" not in str(error):
            raise DataError(f"{file} cannot be read as .npz ({error}): copy or download it again") from error
        # Reading Python objects would run whatever code the file brings along.
        raise DataError(
            f"{file} holds Python objects, which are not read from files: if you trust it, convert it once with "
            f"a = numpy.load({str(file)!r}, allow_pickle=True); "
            "numpy.savez('converted.npz', **{k: v.astype(str) if v.dtype == object else v for k, v in a.items()})"
        ) from error
    if missing := [key for key in required if key not in arrays]:
        raise DataError(*(f"{file} has no array {key!r}: {nearest(key, held)}" for key in missing))
    return arrays

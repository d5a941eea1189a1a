"""Where training cells come from: a file, a data set by name, a split of either; and which of them train and test."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.datasets import load
from scdgn.cells.fields import QUERY, Fields
from scdgn.cells.formats import is_file, with_table
from scdgn.cells.h5ad import read_h5ad, read_values
from scdgn.cells.mapped import MappedRows
from scdgn.cells.names import batches_of_cells, groups_of
from scdgn.cells.queries import query_fields
from scdgn.cells.reading import read_cells
from scdgn.cells.sample import at_most
from scdgn.cells.several import FILE, files_of, joined, tables
from scdgn.cells.shelf import Shelf
from scdgn.cells.splits import Blocks, Split, block_split, hold_out, read_blocks
from scdgn.cells.streamed import Shelved, Streamed, open_values, shelved_bytes
from scdgn.cells.values import of_batches
from scdgn.errors import DataError, ScdgnError, SettingsError, listed, nearest

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Source:
    """What the user says of the training cells.

    Attributes
    ----------
    data, dataset
        An .h5ad file, or several, or folders of them (`scdgn.cells.several`), or the name of a data set
        (`scdgn.cells.datasets`): one of the two.
    path
        Where the files of the data set are; by default they are downloaded.
    fields
        Where the cells keep labels, batches and values. A data set and a split file know the keys themselves.
    test_batch
        Batch to hold out, or several, or groups of them; a data set and a split have their own.
    split
        FILE:NAME, blocks to train on (`splits.read_blocks`).
    obs
        Table of columns of obs, by the names of the cells, beside the data.
    query
        Cells without labels: a batch of the data, or a file.
    adapt
        Whether the cells of the query, else of the test batch, may be used without their labels.
    """

    data: Path | tuple[Path, ...] | None = None
    dataset: str | None = None
    path: Path | None = None
    fields: Fields = field(default_factory=lambda: Fields(None, None))
    test_batch: str | tuple[str, ...] | None = None
    split: str | None = None
    obs: Path | None = None
    query: str | None = None
    adapt: bool = False

    @property
    def held_out(self) -> tuple[str, ...]:
        """The test batches, or groups of them, that the user names."""
        return (self.test_batch,) if isinstance(self.test_batch, str) else self.test_batch or ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of `data`; none of a data set."""
        return () if self.data is None else files_of(self.data)


@dataclass(frozen=True)
class TrainingCells:
    """What was read.

    Attributes
    ----------
    dataset, split
        All cells but a query's, and which of them train and test.
    fields
        Where they kept what is needed.
    test_batches
        Names of the batches that test.
    unlabeled
        Cells that may join the domain loss; labels that they carry are not to be looked at.
    notes
        What the user should know, a sentence each.
    declared
        What the values of each batch were (`scdgn.cells.values.parse`).
    groups
        For each of the data's batch names its group; None where there are none.
    """

    dataset: Dataset
    split: Split
    fields: Fields
    test_batches: tuple[str, ...]
    unlabeled: tuple[Dataset, ...]
    notes: tuple[str, ...]
    declared: str = "auto"
    groups: tuple[str, ...] | None = None


def read(source: Source, sample: int = 0, shelf: Shelf | None = None) -> TrainingCells:
    """Read the cells and split them.

    Parameters
    ----------
    source
        Where they are.
    sample
        Cells whose values are read where a file holds many (`h5ad.read_values`), as many of each batch or all of a
        smaller one; the others are left empty, and no fault of their values is found. 0 for all.
    shelf
        Where the values of a file go that do not fit in memory; without one they are read into memory all the same.

    Raises
    ------
    DataError, SettingsError
        If there are no such cells, or what is said of them contradicts itself.
    """
    if faults := _contradictions(source):
        raise SettingsError(*faults)
    blocks = None if source.split is None else read_blocks(source.split)
    opened = _open(source, blocks, sample=sample, shelf=shelf)
    adata, reading, unlabeled, notes = opened.adata, opened.fields, [], list(opened.notes)
    values: Streamed | Shelved | None = opened.values
    query = None if source.query in opened.test_batches else source.query  # to a test batch `adapt` adapts anyway
    taken = None if query is None else _batch_of(adata, query, reading, opened.values)
    if taken is not None:
        adata, reading, queried, values = taken
        unlabeled.append(queried)
    _check_category(adata, reading)
    try:
        dataset, found = read_cells(adata, reading, values)
    except DataError as error:
        raise DataError(*error.faults, *_no_batches(adata, reading, opened.test_batches)) from error
    notes.append(found.sentence)
    by_name = groups_of(adata, reading, [])
    groups = None if by_name is None else tuple(by_name[name] for name in dataset.batch_names)
    test_batches = _with_those_of_groups(opened.test_batches, dataset.batch_names, groups)
    if query is not None and taken is None:
        queried, sentence = _query_file(query, reading, dataset, shelf)
        unlabeled.append(queried)
        notes.append(f"query: {sentence}")
    if blocks is not None:
        split = block_split(dataset, blocks)
    elif test_batches:
        split = hold_out(dataset, test_batches, opened.validation_batches)
    else:
        nobody = np.empty(0, dtype=np.int64)
        split = Split(np.flatnonzero(dataset.labels >= 0), nobody, nobody, nobody)
    if source.adapt and not unlabeled:
        if not len(split.test):
            raise SettingsError("--adapt has no unlabelled cells: name them with --query BATCH or FILE")
        unlabeled.append(dataset.take(split.test))
    used = np.concatenate([split.train, split.test, split.validation])
    others = np.setdiff1d(np.flatnonzero(dataset.labels < 0), used)
    if len(others):
        unlabeled.append(dataset.take(others))
    if groups is not None:
        notes += _torn_groups(dataset, split, groups)
    return TrainingCells(
        dataset, split, opened.fields, test_batches, tuple(unlabeled), tuple(notes), found.declared, groups
    )


def _with_those_of_groups(
    names: Sequence[str], batches: Sequence[str], groups: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of test batches, those of a group where a name is one and no batch's."""
    return tuple(
        dict.fromkeys(
            batch
            for name in names
            for batch in (
                [name]
                if groups is None or name in batches or name not in groups
                else [one for one, group in zip(batches, groups, strict=True) if group == name]
            )
        )
    )


def _torn_groups(dataset: Dataset, split: Split, groups: Sequence[str]) -> list[str]:
    """Notes of groups of which some batches test and others train."""
    tested, trained = (
        [dataset.batch_names[code] for code in np.unique(dataset.batches[rows])] for rows in (split.test, split.train)
    )
    group_of = dict(zip(dataset.batch_names, groups, strict=True))
    notes = []
    for group in dict.fromkeys(group_of[name] for name in tested):
        own, others = ([name for name in names if group_of[name] == group] for names in (tested, trained))
        if others:
            hint = "" if group in dataset.batch_names else f" (--test-batch {shlex.quote(group)} holds out all of it)"
            notes.append(
                f"of the group {group!r}, {listed(own)} {'tests' if len(own) == 1 else 'test'} and {listed(others)} "
                f"{'trains' if len(others) == 1 else 'train'}: the test tells how good the model is on another batch "
                f"of a known group, not on a new group{hint}"
            )
    return notes


def disk(source: Source) -> int:
    """Bytes that the values of a source take on a shelf at most; 0 where they are read into memory."""
    files = list(source.files) if len(source.files) == 1 else []  # several are joined in memory
    if source.query is not None and is_file(source.query):
        files.append(Path(source.query))
    return sum(shelved_bytes(file, source.fields.layer) for file in files)


def query_cells(source: Source, fields: Fields) -> AnnData | None:
    """The cells to annotate, as they came: those of the query, else those of the unlabelled category; None without.

    Parameters
    ----------
    source
        Read before.
    fields
        Where its cells keep what is needed, as `read` found it.
    """
    if source.query is None and fields.unlabeled_category is None:
        return None
    if source.query is not None and is_file(source.query):
        return read_h5ad(source.query)
    adata = _open(source, None if source.split is None else read_blocks(source.split), whole=True).adata
    key, name = (
        (fields.batch_key, source.query) if source.query is not None else (fields.labels_key, fields.unlabeled_category)
    )
    return adata[(adata.obs[key].astype(str) == name).to_numpy()].to_memory()


@dataclass(frozen=True)
class _Opened:
    adata: AnnData
    fields: Fields
    test_batches: tuple[str, ...]
    validation_batches: tuple[str, ...]
    notes: tuple[str, ...]
    values: Streamed | None = None  # which the cells have not in memory


@contextmanager
def with_column_faults(source: Source) -> Iterator[None]:
    """Tell what is wrong with settings together with what is wrong with the columns and batches that a source names.

    Raises
    ------
    ScdgnError
        What is raised inside, with the faults of the source.
    """
    try:
        yield
    except ScdgnError as error:
        raise type(error)(*error.faults, *_column_faults(source)) from None


def _column_faults(source: Source) -> list[str]:
    """What can be said against a source before its values are read."""
    if faults := _contradictions(source):
        return faults
    if source.data is None or source.split is not None:
        return []
    try:
        reading = partial(read_h5ad, backed=True)
        adata = reading(source.files[0]) if len(source.files) == 1 else tables(source.files, reading)
        adata = adata if source.obs is None else with_table(adata, source.obs)
    except DataError as error:
        return list(error.faults)
    keys = {"--labels-key": source.fields.labels_key, "--batch-key": source.fields.batch_key}
    grouped = {} if source.fields.group_key is None else {"--group-key": source.fields.group_key}
    if unsaid := [option for option, key in keys.items() if key is None]:
        columns = ", ".join(f"{name} ({adata.obs[name].nunique():,} values)" for name in adata.obs) or "none"
        faults.append(f"the columns of obs are not known: give {' and '.join(unsaid)} (found: {columns})")
    faults += [
        f"obs has no column {key!r} ({option}): {nearest(key, adata.obs)}"
        for option, key in (keys | grouped).items()
        if key is not None and key not in adata.obs
    ]
    return faults + _no_batches(adata, source.fields, source.held_out)


def _no_batches(adata: AnnData, fields: Fields, names: Sequence[str]) -> list[str]:
    """Faults of batches to hold out that are not there; of a wrong column, which one has them."""
    if fields.batch_key in adata.obs:
        columns = [batches_of_cells(adata, key, []) for key in (fields.batch_key, fields.group_key) if key in adata.obs]
        known = [name for found in columns if found is not None for name in np.unique(found).tolist()]
        return [f"test batch {name!r} does not exist: {nearest(name, known)}" for name in names if name not in known]
    texts = [column for column in adata.obs if adata.obs[column].dtype.kind not in "fc"]
    held = {name: [one for one in texts if (adata.obs[one].astype(str) == name).any()] for name in names}
    return [f"test batch {name!r} is in obs[{one[0]!r}]: name that column as --batch-key" if one else
            f"test batch {name!r} is in no column of obs" for name, one in held.items()]  # fmt: skip


def _contradictions(source: Source) -> list[str]:
    faults = []
    if (source.data is None) == (source.dataset is None):
        faults.append("give either a file DATA.h5ad or --dataset NAME (`scdgn datasets` lists them)")
    if source.path is not None and source.dataset is None:
        faults.append("--path says where the files of --dataset are: name the data set, or leave it out")
    if source.obs is not None and source.data is None:
        faults.append("--obs is a table beside DATA: name the data, or leave it out")
    if source.held_out and source.split is not None:
        faults.append("--split names its own test domain: leave out --test-batch")
    return faults


def _check_category(adata: AnnData, fields: Fields) -> None:
    """Refuse a name for cells without a type that no cell has."""
    if fields.unlabeled_category is None or fields.labels_key not in adata.obs:
        return
    found = adata.obs[fields.labels_key].astype(str).unique()
    if fields.unlabeled_category not in found:
        near = nearest(fields.unlabeled_category, found)
        raise DataError(f"no cell has the label {fields.unlabeled_category!r} (--unlabeled-category): {near}")


def _open(
    source: Source, blocks: Blocks | None, whole: bool = False, sample: int = 0, shelf: Shelf | None = None
) -> _Opened:
    """The cells, where they keep what is needed, and the batches that test and validate.

    Unless the cells are wanted as a `whole`, the other matrices of a file stay there; see `read` for the others.
    """
    fields, notes, values = source.fields, tuple[str, ...](), None
    tests: Sequence[str] = source.held_out
    validation: Sequence[str] = ()
    if blocks is not None:
        fields, tests = _with_keys(fields, blocks.labels_key, blocks.batch_key), (blocks.test_domain,)
    if source.dataset is not None:
        loaded = load(source.dataset, source.path)
        adata, notes = loaded.adata, loaded.notes
        fields = _with_keys(fields, loaded.labels_key, loaded.batch_key)
        if blocks is None:
            tests, validation = tests or loaded.test_batches, loaded.validation_batches
    else:
        if fields.labels_key is None or fields.batch_key is None:
            raise SettingsError(*_column_faults(replace(source, fields=fields)))
        several = len(source.files) > 1
        some = partial(_sample, source, fields.batch_key, -(-sample // len(source.files))) if sample else None
        # Of the whole some cells are wanted, which are read when they are known; a table is added to all in memory.
        backed = source.obs is None and not several
        reading = partial(read_h5ad, backed=backed) if whole else partial(read_values, layer=fields.layer, sample=some)
        # Several files are joined in memory.
        streamed = None if shelf is None or several else open_values(source.files[0], fields.layer, shelf)
        if streamed is not None:
            adata, values = streamed
        elif several:
            adata, told = joined(source.files, fields, reading)
            notes = (told, *_in_several_files(adata, fields))
        else:
            adata = reading(source.files[0])
        if source.obs is not None:
            adata = with_table(adata, source.obs)
    return _Opened(adata, fields, tuple(tests), tuple(validation), notes, values)


def _in_several_files(adata: AnnData, fields: Fields) -> list[str]:
    """A note of batches that several files have."""
    if fields.batch_key not in adata.obs:
        return []
    files = adata.obs.groupby(adata.obs[fields.batch_key].astype(str), observed=True)[FILE].nunique()
    if not (both := files.index[files > 1].tolist()):
        return []
    return [
        f"{listed([repr(name) for name in both])} of obs[{fields.batch_key!r}] "
        f"{'is' if len(both) == 1 else 'are'} in several files, and one batch for all that: --batch-key {FILE} makes "
        "each file one"
    ]


def _sample(source: Source, batch_key: str, most: int, cells: AnnData) -> NDArray[np.int64]:
    """Rows of about so many cells, of every batch as many."""
    if source.obs is not None:
        cells = with_table(cells, source.obs)
    batches = np.zeros(cells.n_obs, dtype=np.int64)
    if batch_key in cells.obs:  # else it is told later
        batches = cells.obs[batch_key].astype("category").cat.codes.to_numpy(dtype=np.int64) + 1  # 0: none
    return at_most(np.zeros_like(batches), batches, np.arange(cells.n_obs), most)


def _with_keys(fields: Fields, labels_key: str, batch_key: str) -> Fields:
    return replace(fields, labels_key=fields.labels_key or labels_key, batch_key=fields.batch_key or batch_key)


def _batch_of(
    adata: AnnData, query: str, fields: Fields, values: Streamed | None
) -> tuple[AnnData, Fields, Dataset, Shelved | None] | None:
    """The data without the query, how to read them, the query, and the values of the data where they are not in memory;
    None where it is a file, no batch of them."""
    if fields.batch_key not in adata.obs:
        return None  # which is told when the cells are read
    everyone, reading = read_cells(adata, replace(fields, labels_key=None, unlabeled_category=None), values)
    if query not in everyone.batch_names:
        if not is_file(query):
            near = nearest(query, everyone.batch_names)
            raise DataError(f"query {query!r} is neither a batch of the data nor a file: {near}")
        return None
    queried = everyone.batches == everyone.batch_names.index(query)
    others = None
    if isinstance(everyone.x, MappedRows):  # which have been read; others are read again
        names = np.array(everyone.batch_names)[everyone.batches[~queried]]
        declared = of_batches(reading.declared, np.unique(names).tolist()).removeprefix("auto,")
        others = Shelved(everyone.x.take(~queried), replace(reading, declared=declared))
    return adata[~queried], replace(fields, like=everyone.values), everyone.take(queried), others


def _query_file(path: str, fields: Fields, training: Dataset, shelf: Shelf | None) -> tuple[Dataset, str]:
    """The cells of a file as one batch, and what their values are."""
    streamed = None if shelf is None else open_values(Path(path), fields.layer, shelf)
    adata, values = (read_values(path, fields.layer), None) if streamed is None else streamed
    cells, found = read_cells(adata, query_fields(fields, training.values, adata), values)
    alike = replace(cells, batches=np.zeros_like(cells.batches), batch_names=(QUERY,))
    return alike, found.sentence

"""Which cells train, which are held out and which of those can be scored, as row indices into a `Dataset`.

Rows are int64 and ascending. Cells without a label neither train nor are scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scdgn.errors import DataError, SettingsError, nearest

if TYPE_CHECKING:
    from scdgn.cells.dataset import Dataset

LONGEST_NAME = 60
"""Letters of the name of a fold that leaves several domains out."""

SLACK = 0.1
"""Share of its cells by which a fold may be larger than the others to keep types scored."""

Rows = NDArray[np.int64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Training cells and the cells of the test batches.

    Parameters
    ----------
    train
        Rows with a label outside the test and validation batches.
    test
        Rows of the test batches, with or without a label.
    scored
        Rows of `test` whose type is trained.
    validation
        Rows with a label of the validation batches that a data set was published with; mostly none.
    """

    train: Rows
    test: Rows
    scored: Rows
    validation: Rows

    @property
    def unscored(self) -> int:
        """Number of test cells left out of the score: of a type never trained, or without a label."""
        return len(self.test) - len(self.scored)


@dataclass(frozen=True)
class Fold:
    """Some training domains left out, to be predicted by a model of the others.

    Parameters
    ----------
    name
        The domains left out, or their groups, joined by a plus sign.
    domains
        Their batch codes.
    train, held_out
        Labelled rows of the other domains, and of these.
    scored
        Rows of `held_out` whose type is trained in this fold.
    unseen_types
        Types of `held_out` that are not trained in this fold.
    """

    name: str
    domains: tuple[int, ...]
    train: Rows
    held_out: Rows
    scored: Rows
    unseen_types: tuple[int, ...]

    @property
    def coverage(self) -> float:
        """Share of the held-out cells that the fold scores."""
        return len(self.scored) / len(self.held_out)


@dataclass(frozen=True)
class Blocks:
    """A training set in which batch and type are confounded: the types that each training domain keeps.

    A domain that `keep` does not name trains nothing.
    """

    name: str
    test_domain: str
    keep: Mapping[str, tuple[str, ...]]
    labels_key: str
    batch_key: str


def hold_out(dataset: Dataset, test_batches: str | Sequence[str], validation_batches: Sequence[str] = ()) -> Split:
    """Hold out whole batches by name.

    Raises
    ------
    DataError
        For names that no batch has, and where no labelled cell is left to train on.
    """
    test_names = [test_batches] if isinstance(test_batches, str) else list(test_batches)
    faults = [
        f"test batch {name!r} does not exist: {nearest(name, dataset.batch_names)}"
        for name in [*test_names, *validation_batches]
        if name not in dataset.batch_names
    ]
    if faults:
        raise DataError(*faults)
    test = _in_batches(dataset, test_names)
    validation = _in_batches(dataset, validation_batches) & ~test
    return _split(dataset, train=~test & ~validation, test=test, validation=validation)


def block_split(dataset: Dataset, blocks: Blocks) -> Split:
    """Train on the blocks that are kept and test on the whole test domain.

    Raises
    ------
    DataError
        For names of batches or types that the data do not have, and where nothing is left to train or test on.
    """
    domains = [*blocks.keep, blocks.test_domain]
    types = dict.fromkeys(cell_type for kept in blocks.keep.values() for cell_type in kept)
    faults = [
        *(
            f"split {blocks.name!r} names batch {name!r}, which does not exist: {nearest(name, dataset.batch_names)}"
            for name in domains
            if name not in dataset.batch_names
        ),
        *(
            f"split {blocks.name!r} keeps cell type {name!r}, which does not exist: {nearest(name, dataset.cell_types)}"
            for name in types
            if name not in dataset.cell_types
        ),
    ]
    if faults:
        raise DataError(*faults)
    kept = np.zeros((len(dataset.batch_names), len(dataset.cell_types)), dtype=bool)  # (batches, types)
    for domain, names in blocks.keep.items():
        kept[dataset.batch_names.index(domain), [dataset.cell_types.index(name) for name in names]] = True
    # A cell without a label has code -1 and is dropped by _split, whatever the last column says of it.
    train = kept[dataset.batches, dataset.labels]
    nobody = np.zeros(len(dataset.labels), dtype=bool)
    return _split(dataset, train=train, test=_in_batches(dataset, [blocks.test_domain]), validation=nobody)


def read_blocks(reference: str) -> Blocks:
    """Read the split `FILE:NAME` of a JSON file.

    The file holds `test_domain`, `labels_key`, `batch_key` and, under `splits`, for each name a `keep` that gives for
    each training domain the list of the types it keeps.

    Raises
    ------
    SettingsError
        If `reference` is not of the form FILE:NAME.
    DataError
        If the file does not exist, is not JSON, lacks a key or has no split of that name.
    """
    path, colon, name = reference.rpartition(":")
    if not (colon and path and name):
        raise SettingsError(f"split {reference!r} is not of the form FILE:NAME: give a JSON file and a name in it")
    content = _read_json(Path(path))
    if faults := [
        f"split file {path} has no text under {key!r}: add it"
        for key in ("test_domain", "labels_key", "batch_key")
        if not isinstance(content.get(key), str)
    ]:
        raise DataError(*faults)
    splits = content.get("splits")
    if not isinstance(splits, dict):
        raise DataError(f"split file {path} has no object under 'splits': add one entry per split")
    if name not in splits:
        raise DataError(f"split file {path} has no split {name!r}: {nearest(name, splits)}")
    keep = splits[name].get("keep") if isinstance(splits[name], dict) else None
    if not _is_table_of_names(keep):
        raise DataError(f"split {name!r} of {path} has no 'keep' that maps domains to lists of types: add it")
    if content["test_domain"] in keep:
        raise DataError(f"split {name!r} of {path} trains on its test domain {content['test_domain']!r}: remove it")
    return Blocks(
        name=name,
        test_domain=content["test_domain"],
        keep={domain: tuple(types) for domain, types in keep.items()},
        labels_key=content["labels_key"],
        batch_key=content["batch_key"],
    )


def leave_one_domain_out(
    labels: Codes,
    batches: Codes,
    rows: Rows,
    batch_names: Sequence[str],
    max_folds: int = 5,
    min_training_domains: int = 2,
    groups: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Leave each domain out in turn ("leave-one-domain-out" of Gulrajani and Lopez-Paz 2021).

    More than `max_folds` domains are put together into that many folds of about as many cells each, always the same
    ones, such that of a type as few as may be have all their domains in one fold (which nothing then could score). A
    fold is given only where it measures something: at least two types are trained and a cell can be scored.

    Parameters
    ----------
    labels, batches
        Type and batch codes of all cells, (cells,).
    rows
        Training rows; those without a label are left out.
    batch_names
        Names of the batch codes.
    max_folds
        The most folds to make, at least 2.
    min_training_domains
        The fewest domains that a fold may train on; DANN and scDGN need 2, a plain network 1.
    groups
        For each of `batch_names` its group, such as the study of a sample: then groups are left out, whole, and folds
        are called by them. By default each domain is one.

    Returns
    -------
    tuple of Fold
        None where the training domains are too few, or share no types: then validate inside the training domains
        (`stratified_validation`), and say so.
    """
    if max_folds < 2:
        raise SettingsError(f"max_folds is {max_folds}: set at least 2")
    rows = _labelled(labels, rows)
    names, group_of = (batch_names, None) if groups is None else np.unique(list(groups), return_inverse=True)
    units = batches[rows] if group_of is None else group_of[batches[rows]]  # what is left out whole
    folds = []
    for left_out in _balanced_folds(units, labels[rows], max_folds):
        out = np.isin(units, left_out)
        train, held_out = rows[~out], rows[out]
        trained = np.unique(labels[train])
        scored = held_out[np.isin(labels[held_out], trained)]
        if len(np.unique(batches[train])) < min_training_domains or len(trained) < 2 or not len(scored):
            continue
        folds.append(
            Fold(
                name=_joined([str(names[unit]) for unit in left_out]),
                domains=tuple(np.unique(batches[held_out]).tolist()),
                train=train,
                held_out=held_out,
                scored=scored,
                unseen_types=tuple(np.setdiff1d(labels[held_out], trained).tolist()),
            )
        )
    return tuple(folds)


def _joined(names: Sequence[str]) -> str:
    """One name of several domains; of many, the first ones and how many there are."""
    name = "+".join(names)
    if len(name) <= LONGEST_NAME or len(names) == 1:
        return name
    kept = [place for place in range(1, len(names)) if len("+".join(names[:place])) <= LONGEST_NAME // 2]
    shown = max(kept, default=1)
    return f"{'+'.join(names[:shown])} and {len(names) - shown} more"


def unscored_types(labels: Codes, rows: Rows, folds: Iterable[Fold]) -> tuple[int, ...]:
    """Training types that none of the folds scores: those of one domain, and those of one group of domains."""
    scored = [labels[fold.scored] for fold in folds]
    return tuple(np.setdiff1d(labels[_labelled(labels, rows)], np.concatenate([np.empty(0), *scored])).tolist())


def set_aside(dataset: Dataset, rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """`stratified_validation` of the cells of a data set."""
    return stratified_validation(dataset.labels, rows, fraction, seed, batches=dataset.batches)


def stratified_validation(
    labels: Codes, rows: Rows, fraction: float, seed: int, batches: Codes | None = None
) -> tuple[Rows, Rows]:
    """Set a share of every type aside for validation, spread over its batches in proportion.

    A type with one cell stays in training; of every other type at least one cell is validated and one trained. The
    draw for a type depends on the seed and on that type's rows alone, in whatever order they come.

    Parameters
    ----------
    labels
        Type codes of all cells, (cells,).
    rows
        Training rows; those without a label are left out.
    fraction
        Share of each type to validate, between 0 and 1.
    seed
        Any whole number from 0.
    batches
        Batch codes of all cells, (cells,); None draws within types alone.

    Returns
    -------
    train, validation
        Rows; validation is empty where every type has a single cell.
    """
    if not 0 < fraction < 1:
        raise SettingsError(f"validation fraction is {fraction:g}: set it between 0 and 1")
    rows = _labelled(labels, rows)
    chosen = np.zeros(len(rows), dtype=bool)
    for cell_type in np.unique(labels[rows]):
        members = np.flatnonzero(labels[rows] == cell_type)
        wanted = min(max(round(fraction * len(members)), 1), len(members) - 1)
        rng = np.random.default_rng([seed, int(cell_type)])
        members = rng.permutation(members)
        if batches is not None:
            members = members[np.argsort(batches[rows[members]], kind="stable")]
        # Systematic sampling: evenly spaced from a random start, so each batch gives its share to within one cell.
        steps = (rng.random() + np.arange(wanted)) * len(members) / max(wanted, 1)
        chosen[members[steps.astype(np.int64)]] = True
    return rows[~chosen], rows[chosen]


def _split(
    dataset: Dataset, *, train: NDArray[np.bool_], test: NDArray[np.bool_], validation: NDArray[np.bool_]
) -> Split:
    labelled = dataset.labels >= 0
    train, validation = train & labelled, validation & labelled
    if not train.any():
        raise DataError("no labelled cell is left for training: hold out fewer batches, or keep more types")
    if not test.any():
        raise DataError("the test batches have no cells: name batches that do")
    trained = np.unique(dataset.labels[train])
    return Split(
        train=np.flatnonzero(train),
        test=np.flatnonzero(test),
        scored=np.flatnonzero(test & labelled & np.isin(dataset.labels, trained)),
        validation=np.flatnonzero(validation),
    )


def _in_batches(dataset: Dataset, names: Iterable[str]) -> NDArray[np.bool_]:
    return np.isin(dataset.batches, [dataset.batch_names.index(name) for name in names])


def _labelled(labels: Codes, rows: Rows) -> Rows:
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    return rows[labels[rows] >= 0]


def _balanced_folds(units: Codes, labels: Codes, most: int) -> list[tuple[int, ...]]:
    """Units of cells in at most so many folds: largest first, each into the fold with the fewest cells so far.

    But a fold that alone has a type of the unit is passed over where another one still has room, `SLACK` beyond its
    share: so the type is trained while either is left out. Ties go to the lower unit and fold.

    Parameters
    ----------
    units, labels
        (cells,) codes.
    """
    codes, places, sizes = np.unique(units, return_inverse=True, return_counts=True)
    holds = np.zeros((len(codes), labels.max(initial=0) + 1), dtype=bool)  # (units, types)
    holds[places, labels] = True
    members: list[list[int]] = [[] for _ in range(min(most, len(codes)))]
    cells = np.zeros(len(members), dtype=np.int64)
    has = np.zeros((len(members), holds.shape[1]), dtype=bool)  # (folds, types)
    room = (1 + SLACK) * len(units) / max(1, len(members))
    for unit in np.lexsort((codes, -sizes)):
        alone = (has & (has.sum(axis=0) == 1) & holds[unit]).sum(axis=1)  # (folds,) types of the unit only there so far
        full = (cells + sizes[unit] > room) & (cells > cells.min())
        chosen = np.lexsort((cells, alone, full))[0]
        members[chosen].append(int(codes[unit]))
        cells[chosen] += sizes[unit]
        has[chosen] |= holds[unit]
    return sorted(tuple(sorted(fold)) for fold in members)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"split file {path} cannot be read ({error.strerror}): give the path of a JSON file") from None
    except ValueError as error:
        raise DataError(f"split file {path} is not JSON ({error}): mend or replace it") from None
    if not isinstance(content, dict):
        raise DataError(f"split file {path} is not a JSON object: give one with 'test_domain' and 'splits'")
    return content


def _is_table_of_names(keep: object) -> TypeGuard[dict[str, list[str]]]:
    return isinstance(keep, dict) and all(
        isinstance(types, list) and all(isinstance(name, str) for name in types) for types in keep.values()
    )

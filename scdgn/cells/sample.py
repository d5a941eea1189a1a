"""Some of many cells: equally many of every type and batch, and how many of the others each of them stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Rows = NDArray[np.int64]


def at_most(labels: Codes, batches: Codes, rows: Rows, most: int, seed: int = 0) -> Rows:
    """Some of the rows: of every type in every batch equally many, and all where there are fewer.

    So rare types stay whole, and what goes is what there is plenty of. The draw for a group depends on the seed and on
    its own rows alone. Where there are more of these groups than rows may be drawn, as with hundreds of types and
    donors, it is of every type equally many, spread over its batches.

    Parameters
    ----------
    labels, batches
        Type and batch codes of all cells, (cells,).
    rows
        To draw from.
    most
        Of rows in all, or one of each type where types are more than that; 0 for no limit.
    seed
        Any whole number from 0.
    """
    if not most or len(rows) <= most:
        return rows
    rows = np.sort(rows)
    rows = rows[np.lexsort((batches[rows], labels[rows]))]  # group by group, ascending in each
    starts = np.flatnonzero(np.diff(labels[rows], prepend=-2) | np.diff(batches[rows], prepend=-2))
    if spread := len(starts) > most:
        starts = np.flatnonzero(np.diff(labels[rows], prepend=-2))
    sizes = np.diff(starts, append=len(rows))
    # The largest limit under which all groups together are few enough.
    ascending = np.sort(sizes)
    left = most - np.concatenate([[0], np.cumsum(ascending)])[:-1]
    limit = max(1, int((left // np.arange(len(sizes), 0, -1)).max()))
    kept = []
    for members in np.split(rows, starts[1:]):
        if len(members) > limit:
            rng = np.random.default_rng([seed, int(labels[members[0]]) + 1, int(batches[members[0]])])
            members = rng.permutation(members)
            members = members[_turns(batches[members])][:limit] if spread else members[:limit]
        kept.append(members)
    return np.sort(np.concatenate(kept))


def stood_for(labels: Codes, batches: Codes, rows: Rows, kept: Rows) -> NDArray[np.float64]:
    """(kept,) how many of the `rows` each of some of them stands for.

    Those of its type and batch, and its share of those of its type in batches of which none is kept.
    """
    chosen = np.isin(rows, kept)
    _, groups = np.unique(np.stack([labels[rows], batches[rows]]), axis=1, return_inverse=True)
    _, types = np.unique(labels[rows], return_inverse=True)
    weights = np.ones(len(kept))
    for codes in (groups, types):
        counted = np.bincount(codes[chosen], weights, minlength=codes.max() + 1)
        weights = weights * (np.bincount(codes) / np.maximum(counted, 1))[codes[chosen]]
    return weights


def _turns(batches: Codes) -> NDArray[np.int64]:
    """Places of cells such that every batch has its first one before any has its second."""
    order = np.argsort(batches, kind="stable")
    _, starts, sizes = np.unique(batches[order], return_index=True, return_counts=True)
    turn = np.empty(len(batches), dtype=np.int64)
    turn[order] = np.arange(len(batches)) - np.repeat(starts, sizes)
    return np.argsort(turn, kind="stable")

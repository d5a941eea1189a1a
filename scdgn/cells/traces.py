"""What made values of counts: the traces that it left in them.

Values that anybody writes come from counts, and most ways there leave a trace. Undone by the right function, the values
of a cell are whole multiples of its smallest one, that of a single count; and where all genes are there and depth was
taken out, every cell has the same total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Kind = Literal["counts", "linear", "log1p", "log2", "log10", "sqrt", "log"]

LARGEST_LOG = 20.0
"""Above it values are no logarithms.

Log-normalised values stay below the logarithm of their target sum: log1p(10,000) is 9.2, and counts per million reach
13.8 as log1p and 19.9 as log2. Counts of a whole data set exceed 20 by far: every batch of the pancreas and PBMC
collections used in the tests reaches 223. Shallow counts do not, but are whole numbers, which estimated ones are not.
"""

MULTIPLES = 10
"""Up to so many times the smallest value of a cell the others are compared with whole multiples: rounding, as to half
precision or three decimals, tells nothing beyond."""

NEAR, TRACE, LEAD, INFORMATIVE = 0.03, 0.9, 0.1, 20
"""A multiple is whole within NEAR of one; the right function makes a share of TRACE whole, LEAD more than any other, of
at least INFORMATIVE values. By chance 6 % are."""

STEADY, EXACT, TOTALS = 0.01, 1e-4, 8
"""Totals of at least TOTALS cells are the same whose deviation is this share of their mean, exactly so below EXACT."""

MIXED = 0.05
"""Share of the cells of a batch of fractions that hold whole numbers above 1 alone, from which these are counts."""

UNDO: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "linear": lambda x: x,
    "log1p": np.expm1,
    "log2": lambda x: np.exp2(x) - 1,
    "log10": lambda x: np.power(10, x) - 1,
    "sqrt": np.square,
}
BASES = {"log1p": 1.0, "log2": np.log(2), "log10": np.log(10)}  # natural logarithms of them
CALLED = {
    "counts": "counts",
    "linear": "counts",
    "log1p": "log-normalised",
    "log2": "logarithms to base 2",
    "log10": "logarithms to base 10",
    "sqrt": "square roots",
    "log": "log-normalised",
}


def several_kinds(x: sp.csr_matrix, kind: Kind | None) -> str:
    """The kinds of cells that are not all of one, each judged by itself; empty where most are, or show nothing.

    `kind` is what they show together.
    """
    starts = x.indptr[:-1][np.diff(x.indptr) > 0]
    highest = np.maximum.reduceat(x.data, starts)
    shares: dict[Any, NDArray[np.float64]] = {}
    for each, undo in UNDO.items():
        is_log = each in BASES
        off, tells = _multiples(undo(np.minimum(x.data, LARGEST_LOG, dtype=np.float64) if is_log else x.data), starts)
        hits, asked = (np.add.reduceat(one.astype(np.int64), starts) for one in ((off <= NEAR) & tells, tells))
        allowed = (asked >= INFORMATIVE) & (not is_log or highest <= LARGEST_LOG)
        shares[each] = np.where(allowed, hits / np.maximum(asked, 1), 0.0)
    linear = shares["linear"] >= TRACE
    if kind == "sqrt" and linear.sum() > MIXED * len(starts):
        return "square roots and counts"
    shares["sqrt"][linear] = 0.0  # the squares of whole multiples are such, too
    found = np.sort(np.stack(list(shares.values())), axis=0)
    told = (found[-1] >= TRACE) & (found[-1] - found[-2] >= LEAD)
    best = np.bincount(np.argmax(list(shares.values()), axis=0)[told], minlength=len(UNDO))
    kinds = [CALLED[each] for each, cells in zip(UNDO, best.tolist(), strict=True) if cells > MIXED * len(starts)]
    return " and ".join(kinds) if len(kinds) > 1 and 2 * told.sum() > len(starts) else ""


def _multiples(y: NDArray[Any], starts: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(stored,) how far each value is from a whole multiple of the smallest of its cell, and whether that tells."""
    lengths = np.diff(starts, append=len(y))
    smallest = np.minimum.reduceat(np.where(y > 0, y, np.inf), starts)
    ratios = y / np.repeat(smallest, lengths)
    return np.abs(ratios - np.rint(ratios)), (ratios > 1.2) & (ratios < MULTIPLES + 0.5)


class Trace(NamedTuple):
    """What the values of some cells show when a kind is undone."""

    share: float  # of the values that are whole multiples of the smallest of their cell; 0 where too few tell
    off: float  # how far from them the values are, on average
    spread: float  # of the totals, as a share of their mean
    total: float
    whole: bool  # whether the values undone are whole themselves


NOTHING = Trace(0.0, np.inf, np.inf, 0.0, whole=False)


def traces_of(x: sp.csr_matrix, kinds: Sequence[str]) -> dict[Kind, Trace]:
    """Of some cells, when each kind is undone."""
    starts = x.indptr[:-1][np.diff(x.indptr) > 0]
    found: dict[Any, Trace] = {}
    for kind in kinds:
        with np.errstate(over="ignore", invalid="ignore"):
            y = UNDO[kind](x.data.astype(np.float64))
            off, tells = _multiples(y, starts)
            share, far = 0.0, np.inf
            if tells.sum() >= INFORMATIVE:
                share, far = float((off[tells] <= NEAR).mean()), float(off[tells].mean())
            totals = np.add.reduceat(y, starts)
            spread = float(totals.std() / totals.mean()) if len(totals) >= TOTALS and totals.mean() > 0 else np.inf
            small = y[(y > 0.5) & (y < MULTIPLES)]
            whole = len(small) >= INFORMATIVE and bool((np.abs(small - np.rint(small)) <= NEAR).mean() >= TRACE)
        found[kind] = Trace(share, far, spread if np.isfinite(spread) else np.inf, float(totals.mean()), whole)
    return found


def kind_of(traces: Mapping[Kind, Trace]) -> tuple[Kind | None, bool]:
    """The kind that the traces tell, if they do, and whether totals are the same."""
    if traces.get("linear", NOTHING).share >= TRACE:  # the squares of whole multiples are such, too
        traces = {kind: trace for kind, trace in traces.items() if kind != "sqrt"}
    best, *others = sorted(traces, key=lambda kind: -traces[kind].share)
    share = traces[best].share
    close = [kind for kind in others if traces[kind].share > share - LEAD]
    if share >= TRACE and not close:
        return best, traces[best].spread <= STEADY
    # Small values are nearly linear by any function, and estimated ones multiples by none: the totals tell.
    likely = sorted([best, *close] if share >= TRACE else traces, key=lambda kind: traces[kind].spread)
    first, second = (traces[kind].spread for kind in likely[:2])
    if first <= STEADY and second >= 3 * max(first, EXACT):
        return likely[0], True
    if share >= TRACE:  # of genes cut from the others, whose totals do not tell: what is undone right is exact
        likely = sorted([best, *close], key=lambda kind: traces[kind].off)
        first, second = (traces[kind].off for kind in likely[:2])
        if second >= 3 * max(first, EXACT):
            return likely[0], traces[likely[0]].spread <= STEADY
    return None, False

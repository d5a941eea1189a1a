"""What values are: counts, counts scaled per cell, or logarithms to some base, judged batch by batch from them alone.

Most ways from counts to other values leave a trace (`scdgn.cells.traces`). What shows none is told from its largest
value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scdgn.cells.traces import BASES, CALLED, LARGEST_LOG, MIXED, UNDO, Kind, kind_of, several_kinds, traces_of
from scdgn.errors import SettingsError, listed, nearest

Matrix = NDArray[np.float32] | sp.csr_matrix
Values = Literal["counts", "log"]

NUMERIC = "biuf"
"""Kinds of data types that can be values: Booleans, integers, fractions."""

CELLS = 256
"""Cells of a batch that are looked at closely, at most twice as many, or `FEW` once there are `MANY` of them in all."""

FEW, MANY = 32, 8192

IMPOSSIBLE_LOG = 64.0
"""The logarithm, to base 2 or e, of no count that a machine holds."""

_VALUES = 1 << 20  # values looked at together
_HEAD = 1 << 12  # of these looked at first, which tell fractions at once

_CHOICES = ("auto", *CALLED)
_ITEM = re.compile(rf"(?:(.*?)=)??({'|'.join(_CHOICES)})(?:,|$)")


def parse(declared: str) -> tuple[str, dict[str, str]]:
    """What is said of the values: the kind of all batches that are not named, and the kinds of those that are.

    KIND, or BATCH=KIND for some batches, with commas: `counts`, `counts,celseq=log1p`.

    Raises
    ------
    SettingsError
        For a kind that there is not.
    """
    base, named, at = "auto", dict[str, str](), 0
    while at < len(declared) or not at:
        found = _ITEM.match(declared, at)
        if found is None:
            raise SettingsError(
                f"values is {declared!r}: choose one of {', '.join(_CHOICES)}, or BATCH=KIND for some batches, "
                "with commas"
            )
        if found[1] is None:
            base = found[2]
        else:
            named[found[1]] = found[2]
        at = found.end()
    return base, named


def of_batches(declared: str, names: Collection[str]) -> str:
    """What is said of these batches, in the form of `parse`."""
    base, named = parse(declared)
    return ",".join([base, *(f"{name}={kind}" for name, kind in named.items() if name in names)])


@dataclass(frozen=True)
class Reading:
    """How values are read.

    Attributes
    ----------
    values
        What they are once read: `counts`, or as linear as these; or `log`, natural logarithms of such values and 1.
    kinds
        What they were, by the code of the batch.
    mixed
        Codes of the batches in which cells of whole numbers are counts, whatever the others are.
    sentence
        What tells the user.
    declared
        The same kinds in the form of `parse`, for another reading of some of these cells.
    """

    values: Values
    kinds: tuple[Kind, ...]
    mixed: frozenset[int]
    sentence: str
    declared: str

    def to_json(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**vars(self), "kinds": list(self.kinds), "mixed": sorted(self.mixed)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reading:
        """The inverse of `to_json`."""
        return cls(**{**document, "kinds": tuple(document["kinds"]), "mixed": frozenset(document["mixed"])})

    def read(self, x: Matrix, batches: NDArray[np.int64]) -> Matrix:
        """Cells, (cells, genes) and the (cells,) codes of their batches, as `values` has them; they themselves, where
        these are what they were.
        """
        for kind in sorted(set(self.kinds)):
            if (change := self._change(kind)) is None:
                continue
            codes = [code for code, own in enumerate(self.kinds) if own == kind]
            rows = np.isin(batches, codes)
            if self.mixed:
                rows &= ~(np.isin(batches, list(self.mixed)) & ~_broken(x))
            if rows.any():
                x = _changed(x, rows, change)
        return x

    def _change(self, kind: Kind) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
        if kind in ("counts", "linear", "log") or (kind == "log1p" and self.values == "log"):
            return None
        return UNDO[kind] if self.values == "counts" else lambda x: x * BASES[kind]


class Survey:
    """Values seen some cells at a time: their range, their faults, and a sample of every batch."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._seen = 0
        self._found: dict[str, _Found] = {}
        self._batches: dict[int, _Batch] = {}
        self._sampled = 0

    def add(self, x: Matrix, batches: NDArray[np.int64] | None = None) -> None:
        """Look at the next cells and the codes of their batches, one batch by default."""
        codes = np.zeros(x.shape[0], dtype=np.int64) if batches is None else batches
        start = 0
        while start < x.shape[0]:
            stop = _next_rows(x, start)
            self._add(_rows(x, start, stop), codes[start:stop])
            start = stop

    def _add(self, x: Matrix, codes: NDArray[np.int64]) -> None:
        stored: NDArray[np.float32] = x.data if isinstance(x, sp.csr_matrix) else x.reshape(-1)
        with np.errstate(invalid="ignore"):  # NaN, for which both comparisons are false
            sound = not len(stored) or (stored.min() >= 0 and stored.max() < np.inf)
        if sound:
            self._look(x, stored, codes)
        for kind, (is_faulty, _) in {} if sound else _FAULTS.items():
            faulty = is_faulty(stored)
            if faulty.any():
                cell, gene = _position(x, int(np.argmax(faulty)))
                before = self._found.get(kind, _Found(0, self._seen + cell, gene))
                self._found[kind] = _Found(before.count + int(faulty.sum()), before.cell, before.gene)
        self._seen += x.shape[0]

    def _look(self, x: Matrix, stored: NDArray[np.float32], codes: NDArray[np.int64]) -> None:
        highest = _by_row(np.maximum, x, stored)
        self.largest = max(self.largest, float(highest.max(initial=0)))
        broken = np.zeros(len(codes), dtype=bool) if _whole(stored[:_HEAD]) and _whole(stored) else _broken(x)
        for code in np.unique(codes).tolist():
            batch = self._batches.setdefault(code, _Batch())
            own = codes == code
            batch.largest = max(batch.largest, float(highest[own].max()))
            batch.whole += int((own & ~broken & (highest > 1)).sum())
            batch.broken += int((own & broken).sum())
            batch.fraction = max(batch.fraction, float(highest[own & broken].max(initial=0)))
            before = len(batch)
            batch.take(x, np.flatnonzero(own & broken), CELLS if self._sampled < MANY else FEW)
            self._sampled += len(batch) - before

    def faults(self, place: str, cell_name: Callable[[int], str], genes: NDArray[np.str_], remedy: str) -> list[str]:
        """A sentence for every kind of value that cannot be, with the cell and the gene (as var has them) where it is
        first.

        `remedy` says what else could be read instead of scaled values.
        """
        return [
            f"{place} holds {found.count} {kind} value{'s' if found.count > 1 else ''}, the first at cell "
            f"{cell_name(found.cell)}, gene {genes[found.gene]}: {words}{remedy if kind == 'negative' else ''}"
            for kind, (_, words) in _FAULTS.items()
            if (found := self._found.get(kind)) is not None
        ]

    def judge(
        self, declared: str, place: str, names: Sequence[str], like: Values | None = None
    ) -> tuple[Reading | None, list[str]]:
        """How to read the values, and what speaks against it.

        Parameters
        ----------
        declared
            What the user says (`parse`).
        place, names
            Where the values are, and the names of the batches by their codes.
        like
            What the cells hold to which these are to be compared: those that a model was trained on.
        """
        base, named = parse(declared)
        faults = [
            f"no batch is called {name!r} (--values): {nearest(name, names)}" for name in named if name not in names
        ]
        judged = self._alike([self._judge(code, named.get(name, base)) for code, name in enumerate(names)])
        logs = [code for code, one in enumerate(judged) if one.told and one.kind in ("log", *BASES)]
        highest = max((self._batches[code].largest for code in logs if code in self._batches), default=0.0)
        if highest > IMPOSSIBLE_LOG:
            faults.append(f"{place} reaches {highest:.6g}, so its values are not logarithms: say --values counts")
        if several := [(name, one.several) for name, one in zip(names, judged, strict=True) if one.several]:
            faults.append(
                f"{place} holds cells of different kinds ({several[0][1]}) in {listed([name for name, _ in several])}: "
                "name the column of their batches with --batch-key, or give counts for all with --layer"
            )
        if faults:
            return None, faults
        linear = [one.kind != "log" for one in judged]
        stays = [one.kind in ("log", *BASES) and not (one.linear or one.mixed) for one in judged]
        # As long as no cell is normalised here, those that were cut after it need not be.
        if all(stays) and not (like == "counts" and all(linear)):
            values: Values = "log"
        elif like == "log" and all(one.kind in ("log", *BASES) and not one.mixed for one in judged):
            values = "log"
        elif all(linear):
            values = "counts"
        else:
            unclear = [name for name, known in zip(names, linear, strict=True) if not known]
            others = [name for name, known in zip(names, linear, strict=True) if known]
            beside = f"those of {listed(others)} are counts or as linear" if others else "some cells hold counts"
            faults.append(
                f"{place} holds logarithms of an unknown base in {listed(unclear)}, while {beside}: say what they are "
                f"with --values {unclear[0]}=log1p (or log2, log10, linear), or give counts for all with --layer"
            )
            return None, faults
        mixed = frozenset(code for code, one in enumerate(judged) if one.mixed)
        kinds = tuple(one.kind for one in judged)
        # Of a batch whose cells are of two kinds no one word is true.
        resolved = ",".join(
            f"{name}={'auto' if one.mixed else one.kind}" for name, one in zip(names, judged, strict=True)
        )
        return Reading(values, kinds, mixed, self._sentence(judged, names), resolved), []

    def _judge(self, code: int, declared: str) -> _Judged:
        batch = self._batches.get(code, _Batch())
        largest = f": largest {batch.largest:.6g}"
        if declared not in ("auto", "log"):
            return _Judged(declared, f", as told{largest}", told=True, linear=declared == "sqrt")  # type: ignore[arg-type]
        if not batch.broken:
            if declared == "log":
                return _Judged("log", f", as told{largest}", told=True)
            shallow = ", since all are whole numbers" if batch.largest <= LARGEST_LOG else ""
            return _Judged("counts", shallow + largest, linear=True)
        allowed = ["log1p", "log2", "log10", "linear", "sqrt"]
        if batch.fraction > LARGEST_LOG:
            allowed = ["linear", "sqrt"]
        if declared == "log":
            allowed = list(BASES)
        traces = traces_of(batch.sample, allowed)
        kind, steady = kind_of(traces)
        if declared == "auto" and (several := several_kinds(batch.sample, kind)):
            return _Judged("log", largest, several=several)
        mixed = declared == "auto" and batch.whole > MIXED * (batch.whole + batch.broken)
        told = ", as told" if declared == "log" else ""
        if kind is None:
            if declared == "log":
                return _Judged("log", told + largest, told=True)
            if batch.fraction > LARGEST_LOG:
                return _Judged("linear", largest, linear=True)
            if batch.fraction <= 1:
                return _Judged("linear", f"{largest} (if they are logarithms: --values log)", linear=True)
            return _Judged("log", f"{largest} (if they are linear: --values counts)", mixed=mixed)
        trace = traces[kind]
        total = f", every cell's total {trace.total:,.0f}" if steady and trace.total >= 10 else ""
        mixed = mixed and kind != "linear"  # as which whole numbers are read anyway
        is_linear = kind in ("linear", "sqrt") or steady or trace.whole
        return _Judged(kind, f"{total}{told}{largest}", linear=is_linear, mixed=mixed, told=declared == "log")

    def _alike(self, judged: Sequence[_Judged]) -> list[_Judged]:
        """Logarithms of an unknown base have that of the other batches, or that which all of them show together."""
        unknown = [code for code, one in enumerate(judged) if one.kind == "log" and not (one.told or one.several)]
        known = {one.kind: one.linear for one in judged if one.kind in BASES}
        if unknown and not known:
            traces = traces_of(_stacked([self._batches[code].sample for code in unknown]), [*BASES, "linear"])
            kind, _ = kind_of(traces)
            known = {} if kind is None else {kind: kind == "linear" or traces[kind].whole}
        if len(known) != 1:
            return list(judged)
        ((kind, linear),) = known.items()
        return [
            replace(one, kind=kind, linear=linear, words=f": largest {self.largest:.6g}") if code in unknown else one
            for code, one in enumerate(judged)
        ]

    def _sentence(self, judged: Sequence[_Judged], names: Sequence[str]) -> str:
        kinds = {(CALLED[one.kind], one.mixed) for one in judged}
        if len(kinds) == 1:
            kind = judged[0].kind
            widest = max(range(len(judged)), key=lambda code: self._batches.get(code, _Batch()).largest)
            taken = "taken" if judged[0].told else "read"
            called = "shares of a cell's total" if kind == "linear" and self.largest <= 1 else CALLED[kind]
            aside = "; cells of whole numbers as counts" if judged[0].mixed else ""
            return f"values {taken} as {called}{judged[widest].words}{aside}"
        groups: dict[str, list[str]] = {}
        for one, name in zip(judged, names, strict=True):
            groups.setdefault(CALLED[one.kind], []).append(name)
        return "values read batch by batch: " + "; ".join(f"{kind} in {listed(own)}" for kind, own in groups.items())


@dataclass
class _Batch:
    largest: float = 0.0
    whole: int = 0  # cells of whole numbers, one of them above 1
    broken: int = 0  # cells with fractions
    fraction: float = 0.0  # the largest of their values
    every: int = 1  # of the cells with fractions is in the sample
    sample: sp.csr_matrix = field(default_factory=lambda: sp.csr_matrix(np.zeros((0, 0), dtype=np.float32)))

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    def take(self, x: Matrix, rows: NDArray[np.int64], most: int) -> None:
        """Add some of the next cells with fractions to the sample, which is spread over all of them."""
        first = -(self.broken - len(rows)) % self.every
        if len(chosen := rows[first :: self.every]):
            self.sample = _stacked([*([self.sample] if len(self) else []), sp.csr_matrix(x[chosen])])
        while len(self) > 2 * most:
            self.sample, self.every = self.sample[::2], 2 * self.every


@dataclass(frozen=True)
class _Judged:
    kind: Kind
    words: str
    linear: bool = False  # whether they have to be linear, or are as well
    mixed: bool = False
    told: bool = False
    several: str = ""  # the kinds of its cells, where these are not of one


def _stacked(parts: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    stacked: sp.csr_matrix = sp.vstack(parts, format="csr")
    return stacked


def _changed(x: Matrix, rows: NDArray[np.bool_], change: Callable[[NDArray[Any]], NDArray[Any]]) -> Matrix:
    """The same cells with the values of some of them changed; never written to."""
    if isinstance(x, sp.csr_matrix):
        data, which = x.data.copy(), np.repeat(rows, np.diff(x.indptr))
        data[which] = change(data[which])
        return sp.csr_matrix((data, x.indices, x.indptr), shape=x.shape)
    out = x.copy()
    out[rows] = change(out[rows])
    return out


def _rows(x: Matrix, start: int, stop: int) -> Matrix:
    """A view of neighbouring cells; SciPy would copy them."""
    if not isinstance(x, sp.csr_matrix):
        return x[start:stop]
    first, last = x.indptr[start], x.indptr[stop]
    parts = (x.data[first:last], x.indices[first:last], x.indptr[start : stop + 1] - first)
    return sp.csr_matrix(parts, shape=(stop - start, x.shape[1]))


def _next_rows(x: Matrix, start: int) -> int:
    """Where rows end that hold `_VALUES` values, or a single one that holds more."""
    if isinstance(x, sp.csr_matrix):
        end = int(np.searchsorted(x.indptr, x.indptr[start] + _VALUES, side="right")) - 1
        return min(max(end, start + 1), x.shape[0])
    return min(start + max(1, _VALUES // max(1, int(x.shape[1]))), int(x.shape[0]))


def _by_row(reduce: np.ufunc, x: Matrix, stored: NDArray[Any]) -> NDArray[Any]:
    """(cells,) a reduction of the stored values of each, 0 where there are none."""
    if not isinstance(x, sp.csr_matrix):
        return reduce.reduce(stored.reshape(x.shape), axis=1) if x.shape[1] else np.zeros(x.shape[0], stored.dtype)
    out = np.zeros(x.shape[0], dtype=stored.dtype)
    filled = np.diff(x.indptr) > 0
    if filled.any():
        out[filled] = reduce.reduceat(stored, x.indptr[:-1][filled])
    return out


def _broken(x: Matrix) -> NDArray[np.bool_]:
    """(cells,) which hold a value that is no whole number."""
    stored = x.data if isinstance(x, sp.csr_matrix) else x.reshape(-1)
    return np.asarray(_by_row(np.logical_or, x, stored != np.rint(stored)), dtype=bool)


def _whole(values: NDArray[np.float32]) -> bool:
    return bool((values == np.rint(values)).all())


@dataclass(frozen=True)
class _Found:
    count: int
    cell: int  # of the first
    gene: int


_FAULTS: dict[str, tuple[Callable[[NDArray[np.float32]], NDArray[np.bool_]], str]] = {
    "NaN": (np.isnan, "replace them, by 0 if they mean that nothing was measured"),
    "infinite": (np.isinf, "find the step that made them; raw counts have none"),
    "negative": (
        lambda stored: stored < 0,
        "they look scaled or corrected; give counts or log-normalised values (--layer)",
    ),
}


def _position(x: Matrix, stored: int) -> tuple[int, int]:
    if isinstance(x, sp.csr_matrix):
        return int(np.searchsorted(x.indptr, stored, side="right")) - 1, int(x.indices[stored])
    cell, gene = divmod(stored, x.shape[1])
    return cell, gene

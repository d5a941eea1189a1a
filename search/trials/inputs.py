"""What the models of a trial train on and are scored on: one unit per fold, and one of all training domains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.mapped import MappedRows
from scdgn.cells.normalize import log_normalized
from scdgn.cells.preprocess import fit
from scdgn.cells.sample import at_most, stood_for
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.splits import set_aside
from scdgn.core.expression import Expression, stored_bytes
from scdgn.core.pack.members import Cells
from scdgn.model.fitting import training_cells
from scdgn.search.choices import Selection
from scdgn.search.left_out import drawn
from scdgn.search.trials.cells import SearchCells

ALL_DOMAINS = "all training domains"
"""Name of the unit that trains on all domains."""

UNITS = 128
"""Hidden units that read a mini-batch together in a trial of small networks: decides whether cells are kept sparse."""

SCORED = 10_000
"""Cells that a unit is scored on at most: as many of every type in every batch, or all, and each counts for all of its
type and batch that it stands for. The mean macro-F1 of the folds is then within 0.006 of that of all cells, 0.002 on
average (benchmarks.scored_cells)."""

VALIDATED = 0.2
"""Share of every type that is set aside of all domains."""

KEPT = 12
"""Preprocessings of which the cells are kept ready: as many as are in the default space. Each costs a copy of the data
per unit, and preparing it as long as a short training of small networks."""

KEPT_BYTES = 2 * 2**30
"""Most memory of inputs that are kept ready, unless one alone takes more: preparing large ones again is little beside
training."""


@dataclass(frozen=True)
class Unit:
    """What one model of every trial is trained and scored on, as rows of the training cells.

    Attributes
    ----------
    name
        Of the fold, or ALL_DOMAINS.
    train, scored
        Rows.
    held_out
        Rows of the whole domain left out.
    seeds
        One model each.
    weights
        How many cells each of those scored stands for; None where all are scored.
    kept
        Those scored of which is kept what is said of them, a plain draw; None for any.
    """

    name: str
    train: NDArray[np.int64]
    scored: NDArray[np.int64]
    held_out: NDArray[np.int64]
    seeds: tuple[int, ...]
    weights: NDArray[np.float64] | None = None
    kept: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Prepared:
    """A unit under one preprocessing.

    Attributes
    ----------
    cells
        To train on.
    x, labels, batches
        To score on, (cells, genes) and (cells,): the cells' types and batches.
    test
        Input of the test cells; None but for the unit of all domains.
    """

    cells: Cells
    x: Expression
    labels: NDArray[np.int64]
    batches: NDArray[np.int64]
    test: Expression | None

    def on(self, device: torch.device) -> Prepared:
        """The same on a device."""
        test = None if self.test is None else self.test.to(device)
        return Prepared(self.cells.on(device), self.x.to(device), self.labels, self.batches, test)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(cells,) whether the type is trained: the others are predicted where that is asked for, and never scored."""
        labels = self.cells.labels[self.cells.labeled].numpy()
        found: NDArray[np.bool_] = np.isin(self.labels, labels)
        return found


class Inputs(Protocol):
    """The cells of a study as its objective sees them."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """A trial has a model of each seed of each unit."""

    @property
    def selection(self) -> Selection:
        """Which score is reported."""

    @property
    def cell_types(self) -> Sequence[str]:
        """Names of the codes of types."""

    @property
    def whole(self) -> bool:
        """Whether all cells of a domain left out are predicted, and what is said of them is kept."""

    @property
    def seed(self) -> int:
        """Of the order of the cells."""

    def prepared(self, preprocess: PreprocessSettings, device: torch.device) -> list[Prepared]:
        """Every unit under a preprocessing, on a device."""


class OwnInputs:
    """Inputs made in this process, when they are first asked for.

    Parameters
    ----------
    cells
        Sealed: no label of a test cell is in them.
    selection
        Which score is reported; training-domain where there are no folds.
    seed, fold_seeds
        Seeds of the models are `seed`, `seed + 1`, ...: the same in all trials, so that they differ by settings alone.
    whole
        Whether folds predict the cells of types that they do not train too, and what they say is kept.
    most
        Cells that a model trains on at most (`sample.at_most`), and then it is scored on `SCORED` at most; 0 for all.
    """

    def __init__(
        self,
        cells: SearchCells,
        selection: Selection,
        seed: int,
        fold_seeds: int,
        whole: bool = False,
        most: int = 0,
    ) -> None:
        self.cells = cells
        self.selection: Selection = selection if cells.folds else "training-domain"
        self.seed = seed
        self.whole = whole
        self._most = most
        self.cell_types = cells.dataset.cell_types
        self.units = tuple(self._units(fold_seeds))
        self._normalized = lru_cache(maxsize=1)(lambda target_sum: normalized(cells, target_sum))
        self._kept: dict[tuple[PreprocessSettings, torch.device], list[Prepared]] = {}  # the last one used is the last

    @property
    def models(self) -> int:
        """Models trained per trial."""
        return sum(len(unit.seeds) for unit in self.units)

    @property
    def trained(self) -> int:
        """Cells that the models of a trial train on in an epoch, added up."""
        return sum(len(unit.train) * len(unit.seeds) for unit in self.units)

    @property
    def scored(self) -> int:
        """Cells that the models of a trial are scored on at a rung, added up."""
        return sum(len(unit.scored) * len(unit.seeds) for unit in self.units)

    def prepared(self, preprocess: PreprocessSettings, device: torch.device) -> list[Prepared]:
        """Those used last are kept ready."""
        key = (preprocess, device)
        found = self._kept.pop(key, None)
        if found is None:
            # Room for one of the size of those before.
            while self._kept and not self._has_room(max(map(input_bytes, self._kept.values()))):
                del self._kept[next(iter(self._kept))]
            found = self._prepare(preprocess, device)
        self._kept[key] = found
        return found

    def forget(self) -> None:
        """Let go of what is kept ready: other inputs come next."""
        self._kept.clear()
        self._normalized.cache_clear()

    def _has_room(self, more: int) -> bool:
        return len(self._kept) < KEPT and sum(map(input_bytes, self._kept.values())) + more <= KEPT_BYTES

    def bytes(self, preprocess: PreprocessSettings, device: torch.device) -> int:
        """Memory of all units' input under a preprocessing."""
        return input_bytes(self.prepared(preprocess, device))

    def _prepare(self, preprocess: PreprocessSettings, device: torch.device) -> list[Prepared]:
        cells = self._normalized(preprocess.target_sum)
        return [one.on(device) for one in prepare(cells, self.units, preprocess, device.type)]

    def _units(self, fold_seeds: int) -> Iterator[Unit]:
        seeds = tuple(range(self.seed, self.seed + fold_seeds))
        dataset = self.cells.dataset

        def some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
            return at_most(dataset.labels, dataset.batches, rows, self._most, self.seed)

        def scored(rows: NDArray[np.int64]) -> dict[str, Any]:
            if not self._most or len(rows) <= SCORED:
                return {"scored": rows}
            chosen, kept = at_most(dataset.labels, dataset.batches, rows, SCORED, self.seed), None
            if self.whole:
                kept = rows[drawn(len(rows)).numpy()]
                chosen = np.union1d(chosen, kept)
            weights = stood_for(dataset.labels, dataset.batches, rows, chosen)
            return {"scored": chosen, "weights": weights, "kept": kept}

        for fold in self.cells.folds:
            told = scored(fold.held_out if self.whole else fold.scored)
            yield Unit(fold.name, some(fold.train), held_out=fold.held_out, seeds=seeds, **told)
        rows, validated = set_aside(dataset, self.cells.rows, VALIDATED, self.seed)
        nothing = validated[:0]
        own = seeds if self.selection == "training-domain" else seeds[:1]
        yield Unit(ALL_DOMAINS, some(rows), held_out=nothing, seeds=own, **scored(validated))


def input_bytes(units: Sequence[Prepared]) -> int:
    """Memory of the input of units, as if views of other values had their own."""
    inputs = [x for one in units for x in (one.cells.x, one.x, one.test)]
    return sum(stored_bytes(x) for x in inputs if x is not None)


def prepare(cells: SearchCells, units: Sequence[Unit], preprocess: PreprocessSettings, kind: str) -> list[Prepared]:
    """All units under one preprocessing, each fitted on its own training cells alone; on the CPU.

    The cells are as `normalized` gives them; the inputs are for a kind of device, `cpu` or `cuda`.
    """
    found = []
    here = torch.device("cpu")
    dataset = cells.dataset
    for unit in units:
        training, rows = dataset, unit.train
        if isinstance(dataset.x, MappedRows):  # they are few of all, and looked at several times
            training, rows = _logs(dataset.take(rows).in_memory(), preprocess.target_sum), np.arange(len(rows))
        preprocessing = fit(training, rows, preprocess)
        everywhere = unit.name == ALL_DOMAINS
        own, _ = training_cells(preprocessing, training, rows, (), here, UNITS if kind == "cpu" else 0)
        # Scaling per batch wants the whole batch, so all cells left out are prepared and some of them scored.
        left_out = unit.held_out if preprocessing.transductive and not everywhere else unit.scored
        scored = torch.from_numpy(np.isin(left_out, unit.scored))
        x = preprocessing.expression(dataset, left_out)[scored]
        test = None
        if everywhere and cells.test is not None:
            test = preprocessing.expression(cells.test, np.arange(len(cells.test)))
        found.append(Prepared(own, x, dataset.labels[unit.scored], dataset.batches[unit.scored], test))
    return found


def normalized(cells: SearchCells, target_sum: float) -> SearchCells:
    """The same cells with logarithms for counts, with which many preprocessings begin; mapped values stay counts."""
    return replace(
        cells,
        dataset=_logs(cells.dataset, target_sum),
        test=None if cells.test is None else _logs(cells.test, target_sum),
        unlabeled=tuple(_logs(query, target_sum) for query in cells.unlabeled),
    )


def _logs(dataset: Dataset, target_sum: float) -> Dataset:
    return dataset if isinstance(dataset.x, MappedRows) else log_normalized(dataset, target_sum)

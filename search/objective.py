"""The objective: trials in, scores out. It knows no sampler, no scheduler and no tracker.

A trial trains one model for every leave-one-domain-out fold (and fold seed) and one on all training domains, all of
them, and those of the other trials it is run with, as one pack.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.config import Precision
from scdgn.data import Dataset
from scdgn.errors import DataError, SettingsError
from scdgn.expression import Expression, stored_bytes
from scdgn.fitting import training_cells
from scdgn.lane import EpochLosses
from scdgn.memory import free_memory
from scdgn.metrics import score
from scdgn.pack import Cells, Member, fused_groups, memory, padding
from scdgn.preprocess import PreprocessSettings, fit, log_normalized
from scdgn.splits import stratified_validation
from scdgn.training import Report, train
from search.cells import SearchCells
from search.records import Outcome, Proposal, TrialRecord, UnitScores
from search.settings import Metric, Selection

RUNGS = 8
"""How often a trial reports; the last rung is its end."""

CURVE_POINTS = 50

ALL_DOMAINS = "all training domains"
"""Name of the unit that trains on all domains."""

MOST_MEMORY = 0.8
"""Share of the free memory that a pack may take by estimate; the rest is for what the estimate leaves out."""

UNITS = 128
"""Hidden units that read a mini-batch together in a trial of small networks: decides whether cells are kept sparse."""

VALIDATED = 0.2
"""Share of every type that is set aside of all domains."""


class Owner(Protocol):
    """Who decides over the trials: the study, or something that asks it."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Take the selection score of a trial at a rung; True if the trial is to stop (pruned)."""

    def finished(self, outcome: Outcome) -> None:
        """Take what came of a trial."""


class Stopped(Exception):
    """Training was cut off on request; the trials that had not ended are to be run again."""


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
        Rows that stand for the query where the trial adapts: the whole domain left out.
    seeds
        One model each.
    """

    name: str
    train: NDArray[np.int64]
    scored: NDArray[np.int64]
    held_out: NDArray[np.int64]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A unit under one preprocessing.

    Attributes
    ----------
    cells
        To train on.
    x, labels
        To score on, (cells, genes) and (cells,).
    test
        Input of the test cells; None but for the unit of all domains.
    """

    cells: Cells
    x: Expression
    labels: NDArray[np.int64]
    test: Expression | None


@dataclass
class Running:
    """A trial under way: where its models are in the pack, and what is known so far."""

    proposal: Proposal
    units: list[tuple[Unit, Prepared, list[int]]]
    step: int = 0
    epoch: int = 0
    ended: bool = False
    history: list[EpochLosses] = field(default_factory=list)
    scores: dict[str, UnitScores] = field(default_factory=dict)
    test_predictions: NDArray[np.uint16] | None = None

    @property
    def indices(self) -> list[int]:
        """Places of its models in the pack."""
        return [index for _, _, indices in self.units for index in indices]


class Objective:
    """Trains and scores trials.

    Parameters
    ----------
    cells
        Sealed: no label of a test cell is in them.
    metric
        What a fold is scored by.
    selection
        Which score is reported; training-domain where there are no folds.
    seed, fold_seeds
        Seeds of the models are `seed`, `seed + 1`, ...: the same in all trials, so that they differ by settings alone.
    device, precision
        Where to train, and how exactly.
    stopping
        Asked after every epoch; True cuts the pack off.
    """

    def __init__(
        self,
        cells: SearchCells,
        metric: Metric,
        selection: Selection,
        seed: int,
        fold_seeds: int,
        device: torch.device,
        precision: Precision = "tf32",
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._metric = metric
        self._cells = cells
        self._seed = seed
        self._device = device
        self._precision: Precision = precision
        self._most = sys.maxsize  # trials in a pack, once memory has run out
        self._stopping = stopping
        self._adapt = len(cells.unlabeled) > 0
        self.selection: Selection = selection if cells.folds else "training-domain"
        self.units = tuple(self._units(fold_seeds))
        self._normalized = lru_cache(maxsize=1)(self._normalize)
        # A few preprocessings are in the space, and each costs a copy of the data per unit.
        self._prepared = lru_cache(maxsize=4)(self._prepare)

    @property
    def models(self) -> int:
        """Models trained per trial."""
        return sum(len(unit.seeds) for unit in self.units)

    def input_bytes(self, preprocess: PreprocessSettings) -> int:
        """Memory of all units' input under a preprocessing."""
        inputs = [x for one in self._prepared(preprocess, False) for x in (one.cells.x, one.x, one.test)]
        return sum(stored_bytes(x) for x in inputs if x is not None)

    def __call__(self, proposals: Sequence[Proposal], owner: Owner) -> None:
        """Train the trials as one pack and hand what comes of them to the owner, each as it ends.

        Raises
        ------
        Stopped
            If training was cut off; trials that had not ended are left to be run again.
        """
        waiting = [list(proposals[at : at + self._most]) for at in range(0, len(proposals), self._most)]
        while waiting:
            pack = waiting.pop(0)
            ended: set[int] = set()
            start = time.perf_counter()
            try:
                self._train(pack, owner, ended)
                continue
            except (DataError, SettingsError) as error:  # these settings do not go with these cells
                reason = str(error)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                reason = "out of memory"
                self._most = max(1, len(pack) // 2)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if len(pack) == 1:
                owner.finished(_failed(pack[0], reason, start))
            else:  # smaller packs may fit, and the fault may be one trial's alone
                left = [proposal for proposal in pack if proposal.number not in ended]
                half = -(-len(left) // 2)
                waiting[:0] = [part for part in (left[:half], left[half:]) if part]

    def _train(self, proposals: Sequence[Proposal], owner: Owner, ended: set[int]) -> None:
        start = time.perf_counter()
        members: list[Member] = []
        trials = [self._enter(proposal, members) for proposal in proposals]
        free = free_memory(self._device)
        if len(proposals) > 1 and free is not None and memory(members, self._device) > MOST_MEMORY * free:
            raise MemoryError
        groups = fused_groups(members, self._device)
        wasted = padding(members, groups)

        def watch(report: Report) -> list[int]:
            going = [trial for trial in trials if not trial.ended]
            leaving = [index for trial in going for index in self._after_epoch(trial, report, owner, end)]
            if self._stopping():
                raise Stopped
            return leaving

        def end(trial: Running, state: str, reason: str = "") -> None:
            trial.ended = True
            ended.add(trial.proposal.number)
            owner.finished(self._outcome(trial, state, reason, start, wasted))

        outcomes = train(members, self._device, watch, groups, self._precision)
        for trial in trials:
            if not trial.ended:
                reasons = [outcomes[index].reason for index in trial.indices if outcomes[index].state == "failed"]
                trial.epoch = max(len(outcomes[index].history) for index in trial.indices)
                end(trial, "fail", reasons[0] if reasons else "its models stopped without a reason")

    def _enter(self, proposal: Proposal, members: list[Member]) -> Running:
        """A trial's models are added to the pack."""
        units = []
        # A domain that no loss reaches would still be an output of the network, and change its initial weights.
        adapting = self._adapt and proposal.settings.uses_unlabeled
        for unit, prepared in zip(self.units, self._prepared(proposal.preprocess, adapting), strict=True):
            indices = []
            for seed in unit.seeds:
                indices.append(len(members))
                # One order of cells for all: models of a fold then share their mini-batches, and differ less by chance.
                members.append(Member(proposal.settings, prepared.cells, seed, order_seed=self._seed))
            units.append((unit, prepared, indices))
        return Running(proposal, units)

    def _after_epoch(self, trial: Running, report: Report, owner: Owner, end: Callable[..., None]) -> Iterator[int]:
        """Follow a trial; yields its models' places if they are to leave."""
        present = [index for index in trial.indices if index in report.losses]
        if not present:
            return  # all of them failed: told after training
        trial.epoch = report.epoch
        trial.history.append(_mean_losses([report.losses[index] for index in present]))
        if len(present) < len(trial.indices):
            end(trial, "fail", f"the loss or the weights of a model were not finite in epoch {report.epoch}")
            yield from present
            return
        step = report.epoch * RUNGS // trial.proposal.settings.epochs
        if step == trial.step:
            return
        if not self._score(trial, report, last=step == RUNGS):
            end(trial, "fail", f"a prediction was not finite after epoch {report.epoch}")
            yield from present
            return
        value = self._value(trial.scores)
        pruned = False
        while trial.step < step:  # where training has fewer epochs than rungs, one score stands for several
            trial.step += 1
            pruned |= owner.report(trial.proposal.number, trial.step, value)
        if pruned and step < RUNGS:
            end(trial, "pruned")
            yield from present
        elif step == RUNGS:
            self._predict_test(trial, report)
            end(trial, "complete")

    def _score(self, trial: Running, report: Report, last: bool) -> bool:
        """Score a trial's units; False if a prediction is not finite. All domains' unit is scored when it matters."""
        for unit, prepared, indices in trial.units:
            if unit.name == ALL_DOMAINS and not last and self.selection != "training-domain":
                continue
            probabilities = [report.model(index).probabilities(prepared.x).cpu().numpy() for index in indices]
            if not all(np.isfinite(each).all() for each in probabilities):
                return False
            scores = [score(prepared.labels, each) for each in probabilities]
            trial.scores[unit.name] = UnitScores.mean(scores, self._cells.dataset.cell_types)
        return True

    def _value(self, scores: Mapping[str, UnitScores]) -> float:
        """The selection score."""
        if self.selection == "training-domain":
            return float(getattr(scores[ALL_DOMAINS], self._metric))
        return float(np.mean([getattr(one, self._metric) for name, one in scores.items() if name != ALL_DOMAINS]))

    def _predict_test(self, trial: Running, report: Report) -> None:
        for _, prepared, indices in trial.units:
            if prepared.test is not None:
                probabilities = report.model(indices[0]).probabilities(prepared.test)
                trial.test_predictions = probabilities.argmax(dim=1).cpu().numpy().astype(np.uint16)

    def _outcome(self, trial: Running, state: str, reason: str, start: float, wasted: float) -> Outcome:
        record = TrialRecord(
            number=trial.proposal.number,
            state=state,  # type: ignore[arg-type]
            epoch=trial.epoch,
            reason=reason,
            folds={name: scores for name, scores in trial.scores.items() if name != ALL_DOMAINS},
            training_domain=trial.scores.get(ALL_DOMAINS),
            curves=_curves(trial.history),
            seconds=time.perf_counter() - start,
            padding=wasted,
        )
        return Outcome(record, trial.test_predictions)

    def _units(self, fold_seeds: int) -> Iterator[Unit]:
        seeds = tuple(range(self._seed, self._seed + fold_seeds))
        for fold in self._cells.folds:
            yield Unit(fold.name, fold.train, fold.scored, fold.held_out, seeds)
        dataset = self._cells.dataset
        rows, validated = stratified_validation(
            dataset.labels, self._cells.rows, VALIDATED, self._seed, batches=dataset.batches
        )
        nothing = validated[:0]
        yield Unit(ALL_DOMAINS, rows, validated, nothing, seeds if self.selection == "training-domain" else seeds[:1])

    def _prepare(self, settings: PreprocessSettings, adapting: bool) -> list[Prepared]:
        """All units under one preprocessing, each fitted on its own training cells alone; queries join if adapting."""
        found = []
        normalized = self._normalized(settings.target_sum)
        dataset = normalized.dataset
        for unit in self.units:
            preprocessing = fit(dataset, unit.train, settings)
            everywhere = unit.name == ALL_DOMAINS
            joining: tuple[Dataset, ...] = ()
            if adapting:
                joining = normalized.unlabeled if everywhere else (dataset.take(unit.held_out),)
            cells, _ = training_cells(preprocessing, dataset, unit.train, joining, self._device, UNITS)
            # Scaling per batch wants the whole batch, so all cells left out are prepared and some of them scored.
            left_out = unit.scored if everywhere else unit.held_out
            scored = torch.from_numpy(np.isin(left_out, unit.scored))
            x = preprocessing.expression(dataset, left_out)[scored].to(self._device)
            test = None
            if everywhere and normalized.test is not None:
                test = preprocessing.expression(normalized.test, np.arange(len(normalized.test))).to(self._device)
            found.append(Prepared(cells, x, dataset.labels[unit.scored], test))
        return found

    def _normalize(self, target_sum: float) -> SearchCells:
        cells = self._cells
        return replace(
            cells,
            dataset=log_normalized(cells.dataset, target_sum),
            test=None if cells.test is None else log_normalized(cells.test, target_sum),
            unlabeled=tuple(log_normalized(query, target_sum) for query in cells.unlabeled),
        )


def _mean_losses(losses: Sequence[EpochLosses]) -> EpochLosses:
    first = losses[0]
    label, domain = (float(np.mean([getattr(one, key) for one in losses])) for key in ("label_loss", "domain_loss"))
    return replace(first, label_loss=label, domain_loss=domain)


def _curves(history: Sequence[EpochLosses]) -> dict[str, list[float]]:
    """At most CURVE_POINTS of the epochs, the last one among them."""
    count = min(len(history), CURVE_POINTS)
    chosen = [history[-1 - (len(history) - 1) * (count - 1 - i) // max(count - 1, 1)] for i in range(count)]
    return {
        "epoch": [one.epoch for one in chosen],
        "label_loss": [one.label_loss for one in chosen],
        "domain_loss": [one.domain_loss for one in chosen],
        "lambda": [one.lam for one in chosen],
    }


def _failed(proposal: Proposal, reason: str, start: float) -> Outcome:
    return Outcome(TrialRecord(proposal.number, "fail", reason=reason, seconds=time.perf_counter() - start))


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or in what this error came from, as while a CUDA graph is recorded."""
    if error is None:
        return False
    # torch's CPU allocator raises a plain RuntimeError.
    here = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return here or _out_of_memory(error.__cause__ or error.__context__)

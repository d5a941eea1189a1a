"""The objective: trials in, scores out. It knows no sampler, no scheduler and no tracker.

A trial trains one model for every leave-one-domain-out fold (and fold seed) and one on all training domains, all of
them, and those of the other trials it is run with, as one pack.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Precision
from scdgn.core.memory import free_memory, out_of_memory, release
from scdgn.core.metrics import score
from scdgn.core.pack.lane import EpochLosses
from scdgn.core.pack.members import Member, fused_groups, pack_memory, padding
from scdgn.core.training import Report, TrainingState, train
from scdgn.errors import DataError, SettingsError
from scdgn.search.choices import Metric
from scdgn.search.left_out import LeftOut
from scdgn.search.records import RUNGS, Outcome, Proposal, TrialRecord, UnitScores
from scdgn.search.trials.checkpoints import Checkpoint, Checkpoints
from scdgn.search.trials.inputs import ALL_DOMAINS, Inputs, Prepared, Unit
from scdgn.search.trials.predicting import by_models

Probabilities = NDArray[np.floating]
"""(cells, types)"""

CURVE_POINTS = 50

MOST_MEMORY = 0.8
"""Share of the free memory that a pack may take by estimate; the rest is for what the estimate leaves out."""


class Owner(Protocol):
    """Who decides over the trials: the study, or something that asks it."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Take the selection score of a trial at a rung; True if the trial is to stop (pruned)."""

    def finished(self, outcome: Outcome) -> None:
        """Take what came of a trial."""

    def note(self, text: str) -> None:
        """Take something that the user should know."""


class Place(Protocol):
    """Puts inputs where workers on other machines reach them."""

    def __call__(self, inputs: Inputs, wanted: Sequence[PreprocessSettings]) -> Inputs:
        """The same inputs for a worker, under the preprocessings that it will ask for."""


class Stopped(Exception):
    """Training was cut off on request; the trials that had not ended are to be run again."""


@dataclass
class Running:
    """A trial under way: where its models are in the pack, and what is known so far."""

    proposal: Proposal
    units: list[tuple[Unit, Prepared, list[int]]]
    values: list[float] = field(default_factory=list)
    epoch: int = 0
    ended: bool = False
    history: list[EpochLosses] = field(default_factory=list)
    scores: dict[str, UnitScores] = field(default_factory=dict)
    test_predictions: NDArray[np.uint16] | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def step(self) -> int:
        """The last rung reported."""
        return len(self.values)

    @property
    def indices(self) -> list[int]:
        """Places of its models in the pack."""
        return [index for _, _, indices in self.units for index in indices]

    def rung(self, report: Report) -> int:
        """The rung that it has come to."""
        return report.epoch * RUNGS // self.proposal.settings.epochs

    def due(self, report: Report) -> bool:
        """Whether it is to be scored: all its models are there, and it has come to another rung."""
        return self.rung(report) != self.step and all(index in report.losses for index in self.indices)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside its models."""
        scores = {name: vars(each) for name, each in self.scores.items()}
        settings = self.proposal.to_mapping()
        return {"settings": settings, "models": len(self.indices), "values": self.values, "scores": scores}

    def go_on(self, kept: Mapping[str, Any], state: TrainingState) -> None:
        """Be as it was when the checkpoint was written."""
        self.values, self.epoch = list(kept["values"]), state.epoch
        self.scores = {name: UnitScores(**each) for name, each in kept["scores"].items()}
        histories = [state.histories[index] for index in self.indices]
        self.history = [_mean_losses(losses) for losses in zip(*histories, strict=True)]


class Objective:
    """Trains and scores trials.

    Parameters
    ----------
    inputs
        What trials train on and are scored on.
    metric
        What a unit is scored by.
    device, precision
        Where to train, and how exactly.
    stopping
        Asked after every epoch; True cuts the pack off.
    checkpoints
        Where the state of a pack is kept now and then, and when it is cut off: a pack that is found there goes on. None
        keeps nothing.
    """

    def __init__(
        self,
        inputs: Inputs,
        metric: Metric,
        device: torch.device,
        precision: Precision = "tf32",
        stopping: Callable[[], bool] = lambda: False,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._inputs = inputs
        self._metric = metric
        self._device = device
        self._precision: Precision = precision
        self._stopping = stopping
        self._checkpoints = checkpoints
        self._most = sys.maxsize  # trials in a pack, once memory has run out

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
                if not out_of_memory(error):
                    raise
                reason = "out of memory"
                self._most = max(1, len(pack) // 2)
            release(self._device)
            left = [proposal for proposal in pack if proposal.number not in ended]
            if left and len(pack) == 1:
                owner.finished(_failed(pack[0], reason, start))
            else:  # smaller packs may fit, and the fault may be one trial's alone
                half = -(-len(left) // 2)
                waiting[:0] = [part for part in (left[:half], left[half:]) if part]

    def _train(self, proposals: Sequence[Proposal], owner: Owner, ended: set[int]) -> None:
        found = self._find(proposals)
        start = time.perf_counter() - (found.seconds if found else 0.0)
        members: list[Member] = []
        trials = [self._enter(proposal, members) for proposal in proposals]
        free = free_memory(self._device)
        if len(proposals) > 1 and free is not None and pack_memory(members, self._device) > MOST_MEMORY * free:
            raise MemoryError
        if found:
            for trial in trials:
                trial.go_on(found.trials[trial.proposal.number], found.state)
                for step, value in enumerate(trial.values, start=1):  # the owner may have died before it wrote them
                    owner.report(trial.proposal.number, step, value)
        groups = [lane.indices for lane in found.state.lanes] if found else fused_groups(members, self._device)
        wasted = padding(members, groups)

        def watch(report: Report) -> list[int]:
            going = [trial for trial in trials if not trial.ended]
            predicted = self._predicted([trial for trial in going if trial.due(report)], report)
            return [index for trial in going for index in self._after_epoch(trial, report, predicted, owner, end)]

        def end(trial: Running, state: str, reason: str = "") -> None:
            trial.ended = True
            ended.add(trial.proposal.number)
            owner.finished(self._outcome(trial, state, reason, start, wasted))

        def between(state: Callable[[], TrainingState]) -> None:
            stopping = self._stopping()
            if self._checkpoints is not None and (stopping or self._checkpoints.due()):
                self._save(trials, state(), start, owner)
            if stopping:
                raise Stopped

        outcomes = train(members, self._device, watch, groups, self._precision, between, found.state if found else None)
        for trial in trials:
            if not trial.ended:
                reasons = [outcomes[index].reason for index in trial.indices if outcomes[index].state == "failed"]
                trial.epoch = max(len(outcomes[index].history) for index in trial.indices)
                end(trial, "fail", reasons[0] if reasons else "its models stopped without a reason")
        if self._checkpoints is not None:
            self._checkpoints.remove([trial.proposal.number for trial in trials])

    def _find(self, proposals: Sequence[Proposal]) -> Checkpoint | None:
        """The checkpoint of these trials."""
        if self._checkpoints is None:
            return None
        found = self._checkpoints.find([proposal.number for proposal in proposals])
        asked = {proposal.number: proposal.to_mapping() for proposal in proposals}
        if found is None or any(found.trials[number]["settings"] != asked[number] for number in asked):
            return None
        return found

    def _save(self, trials: Sequence[Running], state: TrainingState, start: float, owner: Owner) -> None:
        assert self._checkpoints is not None
        going = {trial.proposal.number: trial.to_json() for trial in trials if not trial.ended}
        begun = tuple(trial.proposal.number for trial in trials)
        fault = self._checkpoints.save(Checkpoint(begun, going, time.perf_counter() - start, state))
        if fault:
            owner.note(f"checkpoints cannot be written ({fault}): a pack that is lost begins again")

    def _enter(self, proposal: Proposal, members: list[Member]) -> Running:
        """A trial's models are added to the pack."""
        units = []
        everything = self._inputs.prepared(proposal.preprocess, self._device)
        for unit, prepared in zip(self._inputs.units, everything, strict=True):
            indices = []
            for seed in unit.seeds:
                indices.append(len(members))
                # One order of cells for all: models of a fold then share their mini-batches, and differ less by chance.
                members.append(Member(proposal.settings, prepared.cells, seed, order_seed=self._inputs.seed))
            units.append((unit, prepared, indices))
        return Running(proposal, units)

    def _predicted(self, trials: Sequence[Running], report: Report) -> dict[int, Probabilities]:
        """What the models of trials say of the cells that they are scored on, by place in the pack: (cells, types).

        A device is waited for once, for all of them.
        """
        asked = [
            (index, prepared.x)
            for trial in trials
            for unit, prepared, indices in trial.units
            if self._scores(unit, trial, report)
            for index in indices
        ]
        if not asked:
            return {}
        found = [report.view(index).probabilities(x) for index, x in asked]
        flat = torch.cat([each.flatten() for each in found]).cpu().numpy()
        parts = np.split(flat, np.cumsum([each.numel() for each in found])[:-1])
        return {index: part.reshape(each.shape) for (index, _), part, each in zip(asked, parts, found, strict=True)}

    def _scores(self, unit: Unit, trial: Running, report: Report) -> bool:
        """Whether a unit is scored at the rung that a trial has come to: that of all domains when it matters."""
        last = trial.rung(report) == RUNGS
        return unit.name != ALL_DOMAINS or last or self._inputs.selection == "training-domain"

    def _after_epoch(
        self,
        trial: Running,
        report: Report,
        predicted: Mapping[int, Probabilities],
        owner: Owner,
        end: Callable[..., None],
    ) -> Iterator[int]:
        """Follow a trial; yields its models' places if they are to leave."""
        present = [index for index in trial.indices if index in report.losses]
        trial.epoch = report.epoch
        if present:
            trial.history.append(_mean_losses([report.losses[index] for index in present]))
        if len(present) < len(trial.indices):
            end(trial, "fail", f"the loss or the weights of a model were not finite in epoch {report.epoch}")
            yield from present
            return
        if not trial.due(report):
            return
        step = trial.rung(report)
        if not self._score(trial, report, predicted):
            end(trial, "fail", f"a prediction was not finite after epoch {report.epoch}")
            yield from present
            return
        value = self._value(trial.scores)
        pruned = False
        while trial.step < step:  # where training has fewer epochs than rungs, one score stands for several
            trial.values.append(value)
            pruned |= owner.report(trial.proposal.number, trial.step, value)
        if pruned and step < RUNGS:
            end(trial, "pruned")
            yield from present
        elif step == RUNGS:
            self._predict_test(trial, report)
            if self._inputs.whole:
                trial.left_out = tuple(self._left_out(trial, report))
            end(trial, "complete")

    def _score(self, trial: Running, report: Report, predicted: Mapping[int, Probabilities]) -> bool:
        """Score a trial's units; False if a prediction is not finite."""
        for unit, prepared, indices in trial.units:
            if not self._scores(unit, trial, report):
                continue
            probabilities = [predicted[index] for index in indices]
            if not all(np.isfinite(each).all() for each in probabilities):
                return False
            known = prepared.known
            weights = None if unit.weights is None else unit.weights[known]
            scores = [score(prepared.labels[known], each[known], weights) for each in probabilities]
            trial.scores[unit.name] = UnitScores.mean(scores, self._inputs.cell_types)
        return True

    def _value(self, scores: Mapping[str, UnitScores]) -> float:
        """The selection score."""
        if self._inputs.selection == "training-domain":
            return float(getattr(scores[ALL_DOMAINS], self._metric))
        return float(np.mean([getattr(one, self._metric) for name, one in scores.items() if name != ALL_DOMAINS]))

    def _predict_test(self, trial: Running, report: Report) -> None:
        for _, prepared, indices in trial.units:
            if prepared.test is not None:
                probabilities = report.view(indices[0]).probabilities(prepared.test)
                trial.test_predictions = probabilities.argmax(dim=1).cpu().numpy().astype(np.uint16)

    def _left_out(self, trial: Running, report: Report) -> Iterator[LeftOut]:
        """What the trial's models say of the cells that choose it."""
        chosen_by_all = self._inputs.selection == "training-domain"
        for unit, prepared, indices in trial.units:
            if (unit.name == ALL_DOMAINS) == chosen_by_all:
                models = [report.view(index) for index in indices]
                yield by_models(unit, models, prepared, correcting=not chosen_by_all)

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
        return Outcome(record, trial.test_predictions, trial.left_out)


@dataclass(frozen=True, eq=False)
class Work:
    """What makes an `Objective`, here or on another machine."""

    inputs: Inputs
    metric: Metric
    precision: Precision = "tf32"
    checkpoints: Checkpoints | None = None

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        """The objective on a device."""
        return Objective(self.inputs, self.metric, device, self.precision, stopping, self.checkpoints)

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Work:
        """The same, as it is sent to where these trials are trained."""
        return replace(self, inputs=place(self.inputs, [proposal.preprocess for proposal in proposals]))


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

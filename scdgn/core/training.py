"""The training loop: the only one, for one model as for hundreds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.core.config import Precision
from scdgn.core.expression import Expression
from scdgn.core.metrics import macro_f1
from scdgn.core.networks import Model
from scdgn.core.pack.block import LaneState
from scdgn.core.pack.first_layer import Scratch
from scdgn.core.pack.lane import EpochLosses, Lane
from scdgn.core.pack.members import Member, fused_groups
from scdgn.core.precision import products
from scdgn.core.schedules import ramp_end


@dataclass
class Trained:
    """What became of a member: `finished` (all its epochs), `stopped` by the callback, or `failed`, and why.

    Its losses, one entry per epoch, and the model as it was last; None if its loss or weights were not finite.
    """

    member: Member
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    history: list[EpochLosses] = field(default_factory=list)
    model: Model | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The state of training after so many epochs, for the callback; losses are of the last, by index of the member.

    Members that finished before or failed are missing.
    """

    epoch: int
    losses: dict[int, EpochLosses]
    _view: Callable[[int], Model]

    def model(self, index: int) -> Model:
        """The present model of a member, a copy."""
        return self._view(index).copy()

    def view(self, index: int) -> Model:
        """The same without a copy: training changes it."""
        return self._view(index)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Training between two epochs: what it takes to go on as if nothing had happened.

    No generator is in it: what is drawn depends on seeds and epochs alone (see `randomness`).

    Attributes
    ----------
    epoch
        Epochs done.
    lanes
        The members that train fused, lane by lane; between them every member once, by its place among all.
    histories
        Losses of every member, one entry per epoch.
    """

    epoch: int
    lanes: tuple[LaneState, ...]
    histories: tuple[tuple[EpochLosses, ...], ...]

    def keep(self, indices: Sequence[int]) -> TrainingState:
        """The state of these members alone, numbered from 0 in the order given."""
        numbers = {index: number for number, index in enumerate(indices)}
        lanes = [lane.keep(numbers) for lane in self.lanes]
        left = tuple(lane for lane in lanes if lane.indices)
        return TrainingState(self.epoch, left, tuple(self.histories[index] for index in indices))


Callback = Callable[[Report], Iterable[int] | None]
Between = Callable[[Callable[[], TrainingState]], None]


class EarlyStopping:
    """Stops a model when its score on validation cells no longer grows, and keeps its best state.

    A callback for `train`. Nothing is kept before lambda has reached 0.95 of its end: until then the adversary is too
    weak for the score to say how the model will do.

    Parameters
    ----------
    member, index
        The model to watch, and its place among the members.
    x, labels
        Validation cells, (cells, genes) and (cells,) codes of types.
    patience
        Epochs without a better score after which it stops.
    """

    def __init__(self, member: Member, index: int, x: Expression, labels: NDArray[np.int64], patience: int) -> None:
        self._index = index
        self._x = x
        self._labels = labels
        self._patience = patience
        self._first = math.ceil(ramp_end(member.settings) * member.settings.epochs)
        self._best = (-np.inf, -np.inf)
        self.epoch = 0
        self.model: Model | None = None
        self.scores: list[float] = []

    def __call__(self, report: Report) -> list[int]:
        """Score the model after an epoch; its index when it should stop."""
        if self._index not in report.losses:
            return []
        model = report.model(self._index)
        probabilities = model.probabilities(self._x).cpu().double().numpy()
        score = macro_f1(self._labels, probabilities.argmax(axis=1))
        self.scores.append(score)
        if report.epoch < self._first:
            return []
        # Macro-F1 moves in steps on few cells: the log-likelihood breaks its ties.
        likelihood = float(np.log(probabilities[np.arange(len(self._labels)), self._labels] + 1e-12).mean())
        if (score, likelihood) > self._best:
            self._best, self.epoch, self.model = (score, likelihood), report.epoch, model
        return [self._index] if report.epoch - self.epoch >= self._patience else []


def train(
    members: Sequence[Member],
    device: torch.device | str = "cpu",
    on_epoch: Callback | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    precision: Precision = "tf32",
    between: Between | None = None,
    state: TrainingState | None = None,
) -> list[Trained]:
    """Train models together.

    Parameters
    ----------
    members
        The models to train.
    device
        Where to compute.
    on_epoch
        Called after every epoch; the members whose indices it returns, if any, stop, leave the pack and free its work.
    groups
        Which members are updated by one fused step, as indices; `pack.fused_groups` decides by default. The results
        differ by rounding alone.
    precision
        Of matrix products.
    between
        Called between two epochs, when the members that are done have left, with a function that makes the state of the
        others, numbered from 0 in their order. What it raises ends training.
    state
        To go on from, bit for bit on the same device: `members` are then those of the state, in its order, which share
        cells as they did before; they are fused as they were, whatever `groups` says.

    Returns
    -------
    One outcome per member, in their order. A member whose loss is not finite fails alone: its neighbours do not notice.
    """
    device = torch.device(device)
    uploaded = {id(member.cells): member.cells.on(device) for member in members}
    outcomes = [Trained(member) for member in members]
    epoch = 0
    starts: Sequence[tuple[Sequence[int], LaneState | None]]
    if state is None:
        starts = [(group, None) for group in (fused_groups(members, device) if groups is None else groups)]
    else:
        epoch = state.epoch
        starts = [(lane.indices, lane) for lane in state.lanes]
        for outcome, history in zip(outcomes, state.histories, strict=True):
            outcome.history.extend(history)
    with products(precision):
        scratch = Scratch()
        lanes = [Lane(members, group, device, uploaded, precision, scratch, lane) for group, lane in starts]
        while lanes:
            for lane in lanes:
                lane.run_epoch(epoch)
            epoch += 1
            for lane in lanes:  # here, and nowhere in an epoch, the device is waited for
                for index, losses in lane.losses().items():
                    outcomes[index].history.append(losses)
            _retire_failed(lanes, outcomes)
            lanes = [lane for lane in lanes if lane.block.members]
            stopping = on_epoch(_report(epoch, lanes, outcomes)) if on_epoch is not None and lanes else None
            _retire_finished(lanes, outcomes)
            _retire(lanes, outcomes, set(stopping or ()), "stopped")
            lanes = [lane for lane in lanes if lane.block.members]
            if between is not None and lanes:
                between(partial(_state, epoch, lanes, outcomes))
    return outcomes


def _state(epoch: int, lanes: Sequence[Lane], outcomes: Sequence[Trained]) -> TrainingState:
    """Of the members that are left."""
    histories = tuple(tuple(outcome.history) for outcome in outcomes)
    everyone = TrainingState(epoch, tuple(lane.block.state() for lane in lanes), histories)
    return everyone.keep(sorted(index for lane in lanes for index in lane.block.indices))


def _report(epoch: int, lanes: Sequence[Lane], outcomes: Sequence[Trained]) -> Report:
    places = {index: (lane, place) for lane in lanes for place, index in enumerate(lane.block.indices)}

    def view(index: int) -> Model:
        lane, place = places[index]
        return lane.view(place)

    return Report(epoch, {index: outcomes[index].history[-1] for index in sorted(places)}, view)


def _retire_failed(lanes: Sequence[Lane], outcomes: Sequence[Trained]) -> None:
    failed = set()
    for lane in lanes:
        for index in lane.block.indices:
            last = outcomes[index].history[-1]
            if not np.isfinite([last.label_loss, last.domain_loss]).all():
                outcomes[index].reason = f"the loss was not finite in epoch {last.epoch}"
                failed.add(index)
    _retire(lanes, outcomes, failed, "failed")


def _retire_finished(lanes: Sequence[Lane], outcomes: Sequence[Trained]) -> None:
    done = {
        index
        for lane in lanes
        for index, member in zip(lane.block.indices, lane.block.members, strict=True)
        if len(outcomes[index].history) >= member.settings.epochs
    }
    _retire(lanes, outcomes, done, "finished")


def _retire(
    lanes: Sequence[Lane],
    outcomes: Sequence[Trained],
    leaving: set[int],
    state: Literal["finished", "stopped", "failed"],
) -> None:
    """Record the members that leave, and shrink the packs."""
    for lane in lanes:
        if leaving.isdisjoint(lane.block.indices):
            continue
        for place, index in enumerate(lane.block.indices):
            if index in leaving:
                outcome, model = outcomes[index], lane.view(place).copy().on("cpu")
                outcome.state = state
                if state != "failed" and not all(weight.isfinite().all() for weight in model.weights.values()):
                    outcome.state = "failed"
                    outcome.reason = f"the weights were not finite after epoch {len(outcome.history)}"
                if outcome.state != "failed":
                    outcome.model = model
        lane.keep([place for place, index in enumerate(lane.block.indices) if index not in leaving])

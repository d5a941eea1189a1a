"""The training loop: the only one, for one model as for hundreds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdgn import networks
from scdgn.batches import EpochPlan, Stream, class_weights, plan_epoch
from scdgn.config import UNLABELED
from scdgn.methods import Batch, Constants, step_losses
from scdgn.metrics import macro_f1
from scdgn.networks import Parameters
from scdgn.pack import Block, Cells, Member, fused_groups
from scdgn.randomness import dropout_scale
from scdgn.schedules import lambda_at, ramp_end

PREDICTED_AT_ONCE = 8192  # cells; bounds the memory of a prediction


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes
    ----------
    weights
        Parameters by name, (out, in) and (out, 1).
    types
        (types,) bool, the types it predicts.
    """

    weights: Parameters
    types: Tensor

    def probabilities(self, x: Tensor) -> Tensor:
        """Probability of every cell type, (cells, genes) to (cells, types); 0 for types not trained."""
        return torch.cat([label for _, label in self._outputs(x)])

    def latent(self, x: Tensor) -> Tensor:
        """The encoder's output, (cells, genes) to (cells, latent)."""
        return torch.cat([latent for latent, _ in self._outputs(x)])

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        parameters = {name: weight.to(x.device)[None] for name, weight in self.weights.items()}
        for chunk in torch.split(x, PREDICTED_AT_ONCE):
            latent = networks.encode(parameters, chunk[None])
            logits = networks.label_logits(parameters, latent, self.types.to(x.device)[None])
            yield latent[0].T, logits[0].softmax(dim=0).T


@dataclass(frozen=True)
class EpochLosses:
    """Mean losses of one model in one epoch, and its lambda at the epoch's last step."""

    epoch: int
    label_loss: float
    domain_loss: float
    lam: float


@dataclass
class Trained:
    """What became of a member.

    Attributes
    ----------
    member
        As it was given.
    state
        `finished`: all its epochs. `stopped`: by the callback. `failed`: its loss or weights were not finite.
    history
        Its losses, one entry per epoch.
    model
        The model as it was last; None if it failed.
    reason
        Why it failed.
    """

    member: Member
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    history: list[EpochLosses] = field(default_factory=list)
    model: Model | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The state of training after an epoch, for the callback.

    Attributes
    ----------
    epoch
        Epochs done.
    losses
        Of the epoch, by index of the member; members that finished before or failed are missing.
    """

    epoch: int
    losses: dict[int, EpochLosses]
    _model: Callable[[int], Model]

    def model(self, index: int) -> Model:
        """The present model of a member, a copy."""
        return self._model(index)


Callback = Callable[[Report], Iterable[int]]


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

    def __init__(self, member: Member, index: int, x: Tensor, labels: NDArray[np.int64], patience: int) -> None:
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
) -> list[Trained]:
    """Train models together.

    Parameters
    ----------
    members
        The models to train.
    device
        Where to compute.
    on_epoch
        Called after every epoch; the members whose indices it returns stop, leave the pack and free its work.
    groups
        Which members are updated by one fused step, as indices; `pack.fused_groups` decides by default. The results
        differ by rounding alone.

    Returns
    -------
    One outcome per member, in their order. A member whose loss is not finite fails alone: its neighbours do not notice.
    """
    device = torch.device(device)
    uploaded = {id(member.cells): member.cells.on(device) for member in members}
    outcomes = [Trained(member) for member in members]
    grouped = fused_groups(members, device) if groups is None else groups
    lanes = [Lane(Block(members, group, device), uploaded) for group in grouped]
    epoch = 0
    while lanes:
        for lane in lanes:
            for index, losses in lane.run_epoch(epoch).items():
                outcomes[index].history.append(losses)
        epoch += 1
        _retire_failed(lanes, outcomes)
        lanes = [lane for lane in lanes if lane.block.members]
        stopping = set(on_epoch(_report(epoch, lanes, outcomes))) if on_epoch is not None and lanes else set()
        _retire_finished(lanes, outcomes)
        _retire(lanes, outcomes, stopping, "stopped")
        lanes = [lane for lane in lanes if lane.block.members]
    return outcomes


def _report(epoch: int, lanes: Sequence[Lane], outcomes: Sequence[Trained]) -> Report:
    places = {index: (lane, place) for lane in lanes for place, index in enumerate(lane.block.indices)}

    def model(index: int) -> Model:
        lane, place = places[index]
        return lane.model(place)

    return Report(epoch, {index: outcomes[index].history[-1] for index in sorted(places)}, model)


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
                outcome, model = outcomes[index], lane.model(place)
                outcome.state = state
                if state != "failed" and not all(weight.isfinite().all() for weight in model.weights.values()):
                    outcome.state = "failed"
                    outcome.reason = f"the weights were not finite after epoch {len(outcome.history)}"
                if outcome.state != "failed":
                    outcome.model = model
        lane.keep([place for place, index in enumerate(lane.block.indices) if index not in leaving])


class Lane:
    """Runs the epochs of one block."""

    def __init__(self, block: Block, uploaded: Mapping[int, Cells]) -> None:
        self.block = block
        self._uploaded = uploaded
        self._prepare()

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave."""
        self.block.keep(places)
        if places:
            self._prepare()

    def model(self, place: int) -> Model:
        """The present model of the member at a place of the block."""
        return Model(self.block.weights(place), self.block.members[place].trained_types)

    def _prepare(self) -> None:
        block, members = self.block, self.block.members
        each = [member.settings for member in members]
        self._constants = Constants(
            types=block.pad([member.trained_types for member in members]),
            domains=block.pad([member.trained_domains for member in members]),
            margin=block.per_member([settings.margin for settings in each]),
        )
        self._class_weights = block.pad(
            [class_weights(m.settings.class_weights, m.cells.labels[m.cells.labeled], m.cells.types) for m in members]
        ).to(block.dtype)
        self._query_weight = block.per_member([settings.query_weight for settings in each])
        self._confidence = block.per_member([settings.pseudo_confidence for settings in each])
        self._dropout_rate = block.per_member([settings.dropout for settings in each])
        self._with_unlabeled = any(settings.uses_unlabeled for settings in each)
        # Streams read by equally many members are read once; else every member reads its own.
        sharing = [len(list(group)) for _, group in groupby(member.stream for member in members)]
        self._shared = sharing[0] if len(set(sharing)) == 1 else 1
        self._streams = [Stream.of(m, self._uploaded[id(m.cells)]) for m in members[:: self._shared]]
        batch = block.settings.batch_size
        drawn = self._streams[0].pairing is not None
        pool = max(len(stream.cells.unlabeled) for stream in self._streams) if self._with_unlabeled else 0
        genes = block.parameters["hidden.weight"].shape[2]
        # Filled anew at every step: allocating it would cost as much as filling it.
        self._x = torch.zeros(
            len(self._streams), batch * (1 + drawn) + min(batch, pool), genes, dtype=block.dtype, device=block.device
        )

    def run_epoch(self, epoch: int) -> dict[int, EpochLosses]:
        """Train every member for one epoch (numbered from 0); the mean losses by index of the member."""
        block = self.block
        plan = plan_epoch(self._streams, epoch, self._with_unlabeled, block.device)
        pseudo = self._pseudo_labels() if self._with_unlabeled and block.settings.method == "scdgn" else None
        lambdas = np.stack([_lambdas(member, epoch, len(plan.widths)) for member in block.members])
        lam = torch.from_numpy(lambdas).to(block.device, block.dtype)  # (models, steps)
        in_loss = torch.tensor([[m.settings.lambda_enters == "loss"] for m in block.members], device=block.device)
        weight, reversal = torch.where(in_loss, lam, 1.0), torch.where(in_loss, 1.0, lam)
        sums = torch.zeros(2, len(block), dtype=block.dtype, device=block.device)
        for step, streams in enumerate(plan.streams):
            active = streams * self._shared
            batch, dropout = self._batch(plan, epoch, step, pseudo)
            label, domain = step_losses(
                block.settings.method,
                _first(block.parameters, active),
                batch,
                reversal[:active, step],
                self._constants.first(active),
                dropout,
            )
            for parameter in block.parameters.values():
                parameter.grad = None
            # Models share no parameter, so the gradient of the sum holds every model's own.
            (label + weight[:active, step] * domain).sum().backward()  # type: ignore[no-untyped-call]
            block.update(active)
            sums[:, :active] += torch.stack([label, domain]).detach()
        steps = torch.tensor([member.steps_per_epoch for member in block.members])
        label_means, domain_means = (sums.cpu() / steps).tolist()  # the only wait for the device in an epoch
        return {
            index: EpochLosses(
                epoch + 1, label_means[i], domain_means[i], float(lambdas[i, member.steps_per_epoch - 1])
            )
            for i, (index, member) in enumerate(zip(block.indices, block.members, strict=True))
        }

    def _batch(self, plan: EpochPlan, epoch: int, step: int, pseudo: Tensor | None) -> tuple[Batch, Tensor | None]:
        """The cells of a step and what the losses need of them; and the dropout factors of their hidden units."""
        width, streams, size = plan.widths[step], plan.streams[step], self.block.settings.batch_size
        active = streams * self._shared

        rows = [plan.labeled[:streams, step, :width]]
        places = [torch.arange(width, device=self.block.device)]
        if plan.partners is not None:
            rows.append(plan.partners[:streams, step, :width])
            places.append(places[0] + size)
        of_streams = [planned[:streams, step, :width] for planned in (plan.labels, plan.domains, plan.real)]
        labels, domains, real = (self._spread(planned) for planned in of_streams)
        label_weight = real * self._class_weights[:active].gather(1, labels)
        if plan.unlabeled.shape[2]:
            unlabeled, place, domain, counts = (
                planned[:streams, step]
                for planned in (plan.unlabeled, plan.unlabeled_place, plan.unlabeled_domains, plan.unlabeled_real)
            )
            rows.append(unlabeled)
            places.append(torch.arange(unlabeled.shape[1], device=self.block.device) + 2 * size)
            weight = self._spread(counts) * self._query_weight[:active, None]
            types = labels
            if pseudo is not None:
                guessed = pseudo[:active].gather(1, self._spread(place))
                weight = weight * (guessed != UNLABELED)
                types = torch.cat([labels, guessed], dim=1)
            domains = torch.cat([domains, self._spread(domain)], dim=1)
            weight = torch.cat([real, weight], dim=1)
        else:
            types, domains, weight = of_streams
        batch = Batch(
            x=self._gather(torch.cat(rows, dim=1)),
            labels=labels,
            label_weight=label_weight,
            types=types,
            domains=domains,
            weight=weight,
            same=None if plan.same is None else self._spread(plan.same[:streams, step, :width]),
            use=None if plan.use is None else self._spread(plan.use[:streams, step, :width]),
        )
        members = self.block.members[:active]
        if not any(member.settings.dropout for member in members):
            return batch, None
        seeds = [member.seed for member in members]
        units = self.block.parameters["hidden.weight"].shape[1]
        return batch, dropout_scale(seeds, epoch, step, self._dropout_rate[:active], units, torch.cat(places))

    def _spread(self, of_streams: Tensor) -> Tensor:
        """One row per stream to one row per model."""
        return of_streams if self._shared == 1 else of_streams.repeat_interleave(self._shared, dim=0)

    def _gather(self, rows: Tensor) -> Tensor:
        """Expression of the cells at `rows` (streams, cells) of their streams: (streams, cells, genes)."""
        x = self._x[: len(rows), : rows.shape[1]]
        for place, stream, chosen in zip(x, self._streams, rows, strict=False):
            source = stream.cells.x
            if source.shape[1] == place.shape[1]:
                torch.index_select(source, 0, chosen, out=place)
            else:  # fewer genes than a neighbour: the rest of the row is zero, and stays so
                place[:, : source.shape[1]] = source[chosen]
        return x

    def _pseudo_labels(self) -> Tensor:
        """Types that the models predict with confidence for their unlabelled cells, else `UNLABELED`.

        Returns
        -------
        (models, most unlabelled cells)
        """
        rows = []
        for place, member in enumerate(self.block.members):
            cells = self._uploaded[id(member.cells)]
            probability, guess = self.model(place).probabilities(cells.x[cells.unlabeled]).max(dim=1)
            rows.append(guess.where(probability >= self._confidence[place], UNLABELED))
        return self.block.pad(rows)


def _first(parameters: Parameters, active: int) -> Parameters:
    """Of the first models; the parameters themselves where that is all, since a slice costs a copy of its gradient."""
    if active == len(parameters["hidden.weight"]):
        return parameters
    return {name: parameter[:active] for name, parameter in parameters.items()}


def _lambdas(member: Member, epoch: int, steps: int) -> NDArray[np.float64]:
    """Lambda at each step of an epoch."""
    own = member.steps_per_epoch
    done = epoch * own + np.minimum(np.arange(steps), own - 1)
    return lambda_at(member.settings, done / (own * member.settings.epochs))

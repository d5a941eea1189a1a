"""The epochs of models that train fused: what a step reads, computes and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scdgn.core.config import UNLABELED, Precision
from scdgn.core.expression import Sparse
from scdgn.core.memory import upload
from scdgn.core.methods import Batch, Constants, step_losses
from scdgn.core.networks import Model
from scdgn.core.pack.batches import EpochPlan, Stream, class_weights, in_place, plan_epoch
from scdgn.core.pack.block import Block, LaneState
from scdgn.core.pack.first_layer import DenseLayer, Scratch, SparseLayer, sparse_pays
from scdgn.core.pack.graphs import CudaGraphs, Replayed, Step
from scdgn.core.pack.members import Cells, Member
from scdgn.core.randomness import dropout_keys, dropout_scale
from scdgn.core.schedules import lambda_at


@dataclass(frozen=True)
class EpochLosses:
    """Mean losses of one model in one epoch, and its lambda at the epoch's last step."""

    epoch: int
    label_loss: float
    domain_loss: float
    lam: float


class Lane:
    """Runs the epochs of one block.

    Everything that a step reads lies in tensors that stay in place for as long as the block keeps its members: the plan
    of the epoch and the tables of its steps are written into them, and the step counts itself. So on a GPU a step can
    be recorded and replayed.

    Parameters
    ----------
    members, group
        All members, and the indices of those that train here.
    device
        Where to compute.
    uploaded
        Their cells on the device, by id.
    precision
        Of matrix products.
    scratch
        Shared with the lanes that take turns with this one.
    state
        To go on from.
    record
        Makes of a step what runs it again (see `graphs`); by default a CUDA graph on a GPU.
    """

    def __init__(
        self,
        members: Sequence[Member],
        group: Sequence[int],
        device: torch.device,
        uploaded: Mapping[int, Cells],
        precision: Precision = "tf32",
        scratch: Scratch | None = None,
        state: LaneState | None = None,
        record: Callable[[Step], Step] | None = None,
    ) -> None:
        self._uploaded = uploaded
        self._scratch = scratch or Scratch()
        self._half = precision == "bf16"
        self._record = record
        self.block = Block(members, group, device, self._reads_sparse(members, group, device, state), state)
        self._prepare()

    def keep(self, places: Sequence[int]) -> None:
        """Let every other member leave."""
        self.block.keep(places)
        if places:
            self._prepare()

    def model(self, place: int) -> Model:
        """The present model of the member at a place of the block, a copy on the block's device."""
        return Model(self.block.weights(place), self.block.members[place].trained_types)

    def run_epoch(self, epoch: int) -> None:
        """Train every member for one epoch (numbered from 0)."""
        self._begin(epoch)
        for step, (streams, width) in enumerate(zip(self._plan.streams, self._plan.widths, strict=True)):
            if self._outside:  # what is read depends on how much is stored, so it cannot be recorded
                self._read(streams, self._rows(streams, width), step)
            self._steps((streams, width), lambda: self._step(streams, width))  # noqa: B023 called at once

    def losses(self) -> dict[int, EpochLosses]:
        """Mean losses of the epoch by index of the member, which the device is waited for."""
        block = self.block
        steps = torch.tensor([member.steps_per_epoch for member in block.members])
        label_means, domain_means = (self._sums.cpu() / steps).tolist()
        return {
            index: EpochLosses(
                self._epoch + 1, label_means[i], domain_means[i], float(self._lambdas[i, member.steps_per_epoch - 1])
            )
            for i, (index, member) in enumerate(zip(block.indices, block.members, strict=True))
        }

    def _reads_sparse(
        self, members: Sequence[Member], group: Sequence[int], device: torch.device, state: LaneState | None
    ) -> bool:
        """Whether the first layer multiplies stored values alone; else they are made dense a mini-batch at a time."""
        if device.type != "cpu" or self._half:
            return False
        if state is not None:  # the other way of computing rounds differently
            return state.sparse
        x = [self._uploaded[id(members[index].cells)].x for index in group]
        units = sum(members[index].settings.hidden for index in group) / len({members[index].stream for index in group})
        return all(members[index].may_read_sparse for index in group) and all(
            isinstance(one, Sparse) and one.zeros_stay and sparse_pays(one.density, int(units)) for one in x
        )

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
        self._in_loss = torch.tensor([[settings.lambda_enters == "loss"] for settings in each], device=block.device)
        self._with_unlabeled = any(settings.uses_unlabeled for settings in each)
        layout = block.layout
        self._streams = [Stream.of(members[i], self._uploaded[id(members[i].cells)]) for i in layout.models[:-1]]
        self._sums = torch.zeros(2, len(block), dtype=block.dtype, device=block.device)
        self._now = torch.zeros(1, dtype=torch.int64, device=block.device)
        self._tables: dict[str, Tensor] = {}
        weight, bias = block.stored["hidden.weight"], block.stored["hidden.bias"]
        self._outside = any(isinstance(stream.cells.x, Sparse) for stream in self._streams)
        self._first: DenseLayer | SparseLayer
        if block.sparse:
            self._first = SparseLayer(layout, weight, bias)
        else:
            self._first = DenseLayer(layout, weight, bias, self._scratch)
            self._x = self._places_of_input()
        self._steps = Replayed(CudaGraphs() if self._record is None and block.device.type == "cuda" else self._record)

    def _places_of_input(self) -> list[Tensor]:
        """For each slab (streams, most cells of a step, genes), filled at every step: to allocate takes as long."""
        block, batch = self.block, self.block.settings.batch_size
        drawn = self._streams[0].pairing is not None
        pool = max(len(stream.cells.unlabeled) for stream in self._streams) if self._with_unlabeled else 0
        cells = batch * (1 + drawn) + min(batch, pool)
        dtype = torch.bfloat16 if self._half else block.dtype
        shapes = [(slab.streams, cells, slab.genes) for slab in block.layout.slabs]
        return [torch.empty(shape, dtype=dtype, device=block.device) for shape in shapes]

    def _begin(self, epoch: int) -> None:
        """Draw an epoch, and write what its steps need into its place."""
        block = self.block
        self._epoch = epoch
        plan = plan_epoch(self._streams, epoch, self._with_unlabeled)
        if self._outside and not block.sparse:
            self._entries = _entries(self._streams, plan)
        self._plan: EpochPlan = plan.on(block.device, self._plan if self._tables else None)
        steps = len(plan.widths)
        self._lambdas = np.stack([_lambdas(member, epoch, steps) for member in block.members])  # (models, steps)
        lam = upload(torch.from_numpy(self._lambdas).to(block.dtype), block.device)
        tables = {
            "weight": torch.where(self._in_loss, lam, 1.0),
            "reversal": torch.where(self._in_loss, 1.0, lam),
        }
        if any(member.settings.dropout for member in block.members):
            seeds = [member.seed for member in block.members]
            tables["dropout"] = upload(dropout_keys(seeds, epoch, steps).T.contiguous(), block.device)
        if self._with_unlabeled and block.settings.method == "scdgn":
            tables["pseudo"] = self._pseudo_labels()
        self._tables = in_place(tables, self._tables)
        self._sums.zero_()
        self._now.zero_()

    def _step(self, streams: int, width: int) -> None:
        """One optimizer step of the models of the first streams."""
        block, active = self.block, self.block.layout.models[streams]
        batch, places = self._batch(streams, width)
        if not self._outside:
            self._read(streams, self._rows(streams, width))
        parameters = {
            name: parameter[:active].detach().requires_grad_()
            for name, parameter in block.stored.items()
            if not name.startswith("hidden.")
        }
        with torch.no_grad():
            units = self._first.forward(streams)  # (units, cells)
        hidden = units.requires_grad_()
        if "dropout" in self._tables:
            model, number = block.layout.model[: len(units)], block.layout.number[: len(units)]
            keys = self._at_step("dropout")
            hidden = hidden * dropout_scale(keys[model], self._dropout_rate[model], number, places)
        hidden = block.layout.padded(hidden, active)  # (models, hidden, cells)
        reversal, weight = (self._at_step(name)[:active] for name in ("reversal", "weight"))
        label, domain = step_losses(
            block.settings.method, parameters, hidden, batch, reversal, self._constants.first(active)
        )
        # Models share no parameter, so the gradient of the sum holds every model's own.
        total = (label + weight * domain).sum()
        # No loss reaches the adversary where it has nothing to compare.
        of_units, *others = torch.autograd.grad(
            total, [units, *parameters.values()], allow_unused=True, materialize_grads=True
        )
        gradients = self._first.backward(streams, units.detach(), of_units)
        gradients.update(zip(parameters, others, strict=True))
        block.update(gradients, active)
        self._sums[:, :active] += torch.stack([label, domain]).detach()
        self._now += 1

    def _at_step(self, table: str) -> Tensor:
        """The column of the present step, (models,)."""
        return self._tables[table].index_select(1, self._now)[:, 0]

    def _planned(self, name: str, streams: int, width: int | None = None) -> Tensor:
        """The plan of the present step, (streams, cells)."""
        table: Tensor = getattr(self._plan, name)
        return table.index_select(1, self._now)[:streams, 0, :width]

    def _rows(self, streams: int, width: int) -> Tensor:
        """Rows of the cells of a step: labelled ones, their drawn partners, unlabelled ones; (streams, cells)."""
        rows = [self._planned("labeled", streams, width)]
        if self._plan.partners is not None:
            rows.append(self._planned("partners", streams, width))
        rows.append(self._planned("unlabeled", streams))
        return torch.cat(rows, dim=1)

    def _batch(self, streams: int, width: int) -> tuple[Batch, Tensor]:
        """What the losses of a step need of its cells; and the places of the cells in a full mini-batch."""
        plan, active, size = self._plan, self.block.layout.models[streams], self.block.settings.batch_size
        within = torch.arange(width, device=self.block.device)
        places = [within] if plan.partners is None else [within, within + size]
        of_streams = [self._planned(name, streams, width) for name in ("labels", "domains", "real")]
        labels, domains, real = (self._spread(planned) for planned in of_streams)
        label_weight = real * self._class_weights[:active].gather(1, labels)
        if plan.unlabeled.shape[2]:
            place, domain, counts = (
                self._spread(self._planned(f"unlabeled_{name}", streams)) for name in ("place", "domains", "real")
            )
            places.append(torch.arange(place.shape[1], device=self.block.device) + 2 * size)
            weight = counts * self._query_weight[:active, None]
            types = labels
            if "pseudo" in self._tables:
                guessed = self._tables["pseudo"][:active].gather(1, place)
                weight = weight * (guessed != UNLABELED)
                types = torch.cat([labels, guessed], dim=1)
            domains = torch.cat([domains, domain], dim=1)
            weight = torch.cat([real, weight], dim=1)
        else:
            types, domains, weight = of_streams
        pairs = {
            name: self._spread(self._planned(name, streams, width)) if plan.partners is not None else None
            for name in ("same", "use")
        }
        batch = Batch(labels, label_weight, types, domains, weight, **pairs, stream=self.block.layout.stream[:active])
        return batch, torch.cat(places)

    def _spread(self, of_streams: Tensor) -> Tensor:
        """One row per stream to one row per model."""
        layout, streams = self.block.layout, len(of_streams)
        active = layout.models[streams]
        return of_streams if active == streams else of_streams.index_select(0, layout.stream[:active])

    def _read(self, streams: int, rows: Tensor, step: int = 0) -> None:
        """Give the first layer the expression of the cells at `rows`, (streams, cells)."""
        first, sources = self._first, [stream.cells.x for stream in self._streams[:streams]]
        if isinstance(first, SparseLayer):
            first.rows = [x.rows(chosen) for x, chosen in zip(sources, rows, strict=True) if isinstance(x, Sparse)]
            return
        slabs = zip(self.block.layout.slabs, self._x, strict=True)
        first.x = [place[: slab.active(streams), : rows.shape[1]] for slab, place in slabs]
        places = chain.from_iterable(first.x)  # of each stream, (cells, genes)
        for number, (place, x, chosen) in enumerate(zip(places, sources, rows, strict=True)):
            if isinstance(x, Sparse):
                x.fill(place, chosen, self._entries[number][step])
            elif x.dtype == place.dtype:
                torch.index_select(x, 0, chosen, out=place)
            else:
                place.copy_(x[chosen])
            if self._streams[number].shifts is not None:
                self._move(place[: rows.shape[1] - self._plan.unlabeled.shape[2]], number, streams)

    def _move(self, place: Tensor, stream: int, streams: int) -> None:
        """Move the labelled cells of a stream by the batch shifts of the present step; `place` is (cells, genes)."""
        shifts = self._streams[stream].cells.shifts
        target, origin, factor = (
            self._planned(name, streams, len(place))[stream] for name in ("target", "origin", "factor")
        )
        by = shifts.means(target).sub_(shifts.means(origin)).mul_(factor[:, None])
        torch.maximum(place.add_(by), shifts.floor, out=place)

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


def _entries(streams: Sequence[Stream], plan: EpochPlan) -> list[list[int]]:
    """Stored values that every step of an epoch reads, for each stream; 0 for dense ones."""
    rows = [plan.labeled, plan.unlabeled] if plan.partners is None else [plan.labeled, plan.partners, plan.unlabeled]
    entries = []
    for place, stream in enumerate(streams):
        x, read = stream.cells.x, torch.zeros(len(plan.widths), dtype=torch.int64)
        if isinstance(x, Sparse):
            counts = x.counts.cpu()
            for part in rows:
                chosen = counts[part[place]]  # (steps, cells)
                for step, width in enumerate(plan.widths):
                    read[step] += chosen[step, : None if part is plan.unlabeled else width].sum()
        entries.append(read.tolist())
    return entries


def _lambdas(member: Member, epoch: int, steps: int) -> NDArray[np.float64]:
    """Lambda at each step of an epoch."""
    own = member.steps_per_epoch
    done = epoch * own + np.minimum(np.arange(steps), own - 1)
    return lambda_at(member.settings, done / (own * member.settings.epochs))

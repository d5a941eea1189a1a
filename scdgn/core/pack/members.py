"""A pack: many models trained as one batched tensor program.

What may differ between the models of a pack: seeds, training cells with their genes and scaling, every number among the
settings, schedules, and layer sizes. What must agree is in `program`: it decides which arithmetic a step does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scdgn.core.config import UNLABELED, Settings
from scdgn.core.expression import Expression, Sparse, join, stored_bytes
from scdgn.core.networks import layer_sizes
from scdgn.core.shifts import Shifts

WIDEST_FUSED_ON_CPU = 256
"""Widest hidden layer for which fusing models pays on a CPU (benchmarks/pack.py)."""

MOST_PADDING = {"cpu": 1.25, "cuda": 1.5}
"""Arithmetic of a fused step against that of its models alone: models whose sizes differ more are not fused."""


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """The training cells of a model, preprocessed. Models that train on the same cells share one object.

    Attributes
    ----------
    x
        (cells, genes) float32 (or float64, and the model computes in it), dense or sparse.
    labels
        (cells,) int64 codes of cell types, `UNLABELED` where not known.
    domains
        (cells,) int64 codes of domains.
    types, domain_count
        Size of the two codings; codes may be unused.
    """

    x: Expression
    labels: Tensor
    domains: Tensor
    types: int
    domain_count: int

    def __repr__(self) -> str:
        return f"Cells({' x '.join(map(str, self.x.shape))}, {self.types} types, {self.domain_count} domains)"

    @cached_property
    def labeled(self) -> Tensor:
        """Rows of the cells whose type is known, (labelled cells,)."""
        return torch.nonzero(self.labels != UNLABELED)[:, 0]

    @cached_property
    def unlabeled(self) -> Tensor:
        """Rows of the others, (unlabelled cells,)."""
        return torch.nonzero(self.labels == UNLABELED)[:, 0]

    @cached_property
    def shifts(self) -> Shifts:
        """How the domains of the labelled cells differ, type by type."""
        rows = self.labeled
        x = self.x if len(rows) == len(self.labels) else self.x[rows.to(self.x.device)]
        return Shifts.of(x, self.labels[rows], self.domains[rows], (self.types, self.domain_count))

    def joined(self, others: Cells) -> Cells:
        """These cells and others of the same types and genes, whose domains are these or further ones."""
        labels, domains = (torch.cat([getattr(self, name), getattr(others, name)]) for name in ("labels", "domains"))
        count = max(self.domain_count, others.domain_count)
        return Cells(join([self.x, others.x]), labels, domains, self.types, count)

    def on(self, device: torch.device) -> Cells:
        """The same cells with `x` on another device; labels and domains stay on the CPU, where draws are made."""
        x = self.x.to(device)
        return self if x is self.x else Cells(x, self.labels, self.domains, self.types, self.domain_count)


@dataclass(frozen=True, eq=False)
class Member:
    """One model to train.

    Attributes
    ----------
    settings, cells
        What to train, and on what.
    seed
        Of the initial weights and of dropout.
    order_seed
        Of the order of the cells, of the pairs and of the shifts; `seed` by default. Models with the same cells, order
        seed, balancing and shifts see the same mini-batches, and a pack then computes faster.
    """

    settings: Settings
    cells: Cells
    seed: int
    order_seed: int = -1

    def __post_init__(self) -> None:
        if self.order_seed < 0:
            object.__setattr__(self, "order_seed", self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches in an epoch; the last one may be short."""
        return -(-len(self.cells.labeled) // self.settings.batch_size)

    @property
    def trained_types(self) -> Tensor:
        """(types,) bool: the types among the labelled training cells, the only ones the model predicts."""
        return torch.bincount(self.cells.labels[self.cells.labeled], minlength=self.cells.types) > 0

    @property
    def trained_domains(self) -> Tensor:
        """(domains,) bool: the domains that the domain loss sees."""
        rows = slice(None) if self.settings.uses_unlabeled else self.cells.labeled
        return torch.bincount(self.cells.domains[rows], minlength=self.cells.domain_count) > 0

    @property
    def stream(self) -> tuple[object, ...]:
        """Members with equal streams see the same mini-batches."""
        return id(self.cells), self.order_seed, self.settings.balance_domains, self.settings.shifts

    @property
    def may_read_sparse(self) -> bool:
        """Whether its input is sparse when it is read: a moved cell is not."""
        return isinstance(self.cells.x, Sparse) and self.settings.shifts is None

    @property
    def program(self) -> tuple[object, ...]:
        """What must agree between the models that one fused step updates."""
        settings = self.settings
        return settings.method, settings.batch_size, settings.pairing, settings.optimizer, self.may_read_sparse


def fused_groups(members: Sequence[Member], device: torch.device) -> list[list[int]]:
    """Which members are updated by one fused step; the others take their turns.

    Members of one program whose layers are alike enough for padding to cost less than `MOST_PADDING`. On a CPU those
    with wide layers go alone: their products keep the cores busy by themselves (benchmarks/pack.py).

    Returns
    -------
    Groups of indices into `members`.
    """
    programs: dict[object, dict[tuple[int, ...], list[int]]] = {}
    alone = []
    for index, member in enumerate(members):
        if device.type == "cpu" and member.settings.hidden > WIDEST_FUSED_ON_CPU:
            alone.append([index])
        else:
            # Members of one size stay together: only where all mini-batches are read equally often are they shared.
            programs.setdefault(member.program, {}).setdefault(_widths(member), []).append(index)
    groups = []
    for by_width in programs.values():
        group: list[int] = []
        for _, same in sorted(by_width.items(), reverse=True):
            if group and padding([members[index] for index in [*group, *same]]) > MOST_PADDING[device.type]:
                groups.append(group)
                group = []
            group = [*group, *same]
        groups.append(group)
    return sorted([*(sorted(group) for group in groups), *alone])


def padding(members: Sequence[Member], groups: Sequence[Sequence[int]] | None = None) -> float:
    """Arithmetic of steps in which members are fused, against that of the members alone; at least 1.

    Parameters
    ----------
    members
        Of a pack.
    groups
        Which of them are fused, as indices; by default all.
    """
    padded = useful = 0
    for group in [range(len(members))] if groups is None else groups:
        sizes = [sizes_of(members[index]) for index in group]
        useful += sum(units * inputs for each in sizes for units, inputs in each.values())
        padded += _weights(sizes)
    return padded / useful


def pack_memory(members: Sequence[Member], device: torch.device) -> int:
    """Bytes that training the members together takes at most, but for their cells on a CPU, where they already are."""
    needed = 0
    for group in fused_groups(members, device):
        fused = [members[index] for index in group]
        settings = fused[0].settings
        cells = settings.batch_size * (2 if settings.method == "scdgn" and settings.pairing != "batch" else 1)
        cells += settings.batch_size * any(member.settings.uses_unlabeled for member in fused)
        units = sum(member.settings.hidden for member in fused)
        padded = len(fused) * max(member.settings.hidden for member in fused)
        genes = sum({member.stream: member.cells.x.shape[1] for member in fused}.values())
        pairs = len(fused) * cells**2 if settings.method == "scdgn" and settings.pairing == "batch" else 0
        # Weights with gradient and two moments; some ten copies of activations, half of them padded, and of matrices of
        # pairs.
        needed += 4 * (4 * _weights([sizes_of(member) for member in fused]) + 5 * cells * (units + padded))
        needed += 4 * (6 * pairs + cells * genes)
    if device.type != "cpu":
        needed += sum(map(stored_bytes, {id(member.cells): member.cells.x for member in members}.values()))
    return needed


def sizes_of(member: Member) -> dict[str, tuple[int, int]]:
    """Of every layer: outputs and inputs."""
    return layer_sizes(member.settings, member.cells.x.shape[1], member.cells.types, member.cells.domain_count)


def largest_sizes(sizes: Sequence[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """Units and inputs of every layer that hold those of all models."""
    return {layer: (max(each[layer][0] for each in sizes), max(each[layer][1] for each in sizes)) for layer in sizes[0]}


def _weights(sizes: Sequence[dict[str, tuple[int, int]]]) -> int:
    """Weights of fused models: the first layer has no padding (see `layout`), the others that of the largest."""
    others = sum(units * inputs for layer, (units, inputs) in largest_sizes(sizes).items() if layer != "hidden")
    return len(sizes) * others + sum(units * inputs for units, inputs in (each["hidden"] for each in sizes))


def _widths(member: Member) -> tuple[int, int, int]:
    return member.settings.hidden, member.settings.latent, member.settings.domain_code

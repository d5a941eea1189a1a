"""Models per second: one at a time, one process per model, several processes, and packs. Needs torch and numpy alone.

    python -m benchmarks.throughput [--rounds 2] [--epochs 4] [--layers 64/16/8 ...] [--packs 4 16 64]

All lines train scdgn with batch pairs and AdamW in mini-batches of 256 on the same simulated cells, for the same number
of epochs:

    eager               one model after the other by a plain loop in PyTorch as one would write it today: cells on the
                        device and gathered by index, one encoder pass, fused AdamW, losses read once per epoch
    fresh process       the same loop in a new process for every model, one after the other: Python, torch and the cells
                        are loaded each time. "its start alone" is such a process that trains a single step on two cells
    N processes         the same loop in N processes that are running already and share the device (and the cores), as
                        Ray's fractional GPUs do
    pack of N, shared   scdgn.training.train with N members that see the same mini-batches
    pack of N, sparse   the same, the cells in compressed rows: a tenth of the values is not zero, as in real counts
    pack of N, own      dense again, but every member has its own order of the cells

The ratio is to the models per second of the eager loop; each time is the best of the rounds, in which the lines take
turns. On a CPU, packs of wide layers are limited to 16: their members take turns, however many there are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.inputs import DOMAINS, TYPES, random_cells
from benchmarks.published import Reversed
from benchmarks.timing import interleaved, machine
from scdgn.core.config import Settings
from scdgn.core.expression import compressed
from scdgn.core.pack.members import WIDEST_FUSED_ON_CPU, Cells, Member
from scdgn.core.schedules import lambda_at
from scdgn.core.training import train
from scdgn.threads import usable_cores

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass(frozen=True)
class Line:
    """What trains so many models when it is called; 0 where only the time counts."""

    models: int
    run: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2490)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=25 if CUDA else 4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", nargs="+", default=["64/16/8", "128/64/32", "1136/100/64"])
    parser.add_argument("--packs", nargs="+", type=int, default=[4, 16, 64, 256] if CUDA else [4, 16, 64])
    parser.add_argument("--processes", nargs="+", type=int, default=[2, 4, 8] if CUDA else [os.cpu_count() or 1])
    options = parser.parse_args()
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # in every line
    cells = random_cells(options.cells, options.genes)
    print(f"{machine()}; {options.cells} cells x {options.genes} genes, {options.epochs} epochs")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        file = Path(folder) / "cells.npz"
        np.savez(file, x=cells.x.numpy(), labels=cells.labels.numpy(), domains=cells.domains.numpy())
        pools = {count: running.enter_context(warm(count, file)) for count in options.processes}
        for layers in options.layers:
            hidden, latent, code = map(int, layers.split("/"))
            settings = Settings(hidden=hidden, latent=latent, domain_code=code, epochs=options.epochs)
            print(f"\n{layers:24}{'models/s':>10}{'of eager':>10}{'s/model':>10}")
            lines = subjects(cells, settings, file, pools, options.packs)
            seconds = interleaved({name: line.run for name, line in lines.items()}, options.rounds)
            speed = {name: max(line.models, 1) / min(seconds[name]) for name, line in lines.items()}
            for name, line in lines.items():
                rate = f"{speed[name]:10.2f}{speed[name] / speed['eager']:10.2f}" if line.models else " " * 20
                print(f"{name:24}{rate}{1 / speed[name]:10.3f}", flush=True)


def subjects(cells: Cells, settings: Settings, file: Path, pools: dict[int, Pool], packs: list[int]) -> dict[str, Line]:
    """The lines of a table, by name."""
    on_device = Cells(cells.x.to(DEVICE), cells.labels.to(DEVICE), cells.domains.to(DEVICE), TYPES, DOMAINS)

    def eagerly() -> None:
        for seed in range(4):
            eager(on_device, settings, seed)

    def pack(members: list[Member]) -> Line:
        return Line(len(members), lambda: train(members, DEVICE))

    def at_once(count: int) -> Callable[[], object]:
        return lambda: pools[count].starmap(in_process, [(settings, seed) for seed in range(2 * count)], chunksize=1)

    stored = replace(cells, x=compressed(cells.x))
    step = replace(settings, epochs=1)
    lines = {
        "eager": Line(4, eagerly),
        "fresh process": Line(1, lambda: fresh(file, settings)),
        "its start alone": Line(0, lambda: fresh(file, step, cells=2)),
        **{f"{count} processes": Line(2 * count, at_once(count)) for count in pools},
    }
    for size in packs:
        if CUDA or settings.hidden <= WIDEST_FUSED_ON_CPU or size <= 16:
            lines[f"pack of {size}, shared"] = pack([Member(settings, cells, i, order_seed=0) for i in range(size)])
            lines[f"pack of {size}, sparse"] = pack([Member(settings, stored, i, order_seed=0) for i in range(size)])
            lines[f"pack of {size}, own"] = pack([Member(settings, cells, i) for i in range(size)])
    return lines


def eager(cells: Cells, settings: Settings, seed: int) -> float:
    """Train one model by a plain loop, on the device of the cells; the mean label loss of the last epoch."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Linear(cells.x.shape[1], settings.hidden), nn.Tanh(), nn.Linear(settings.hidden, settings.latent), nn.Tanh()
    )
    classifier = nn.Linear(settings.latent, TYPES)
    discriminator = nn.Sequential(nn.Linear(settings.latent, settings.domain_code), nn.Tanh())
    model = nn.ModuleList([encoder, classifier, discriminator]).to(cells.x.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    count, size = len(cells.x), settings.batch_size
    steps = -(-count // size)
    strength = lambda_at(settings, np.arange(settings.epochs * steps) / (settings.epochs * steps)).tolist()
    mean = 0.0
    for epoch in range(settings.epochs):
        total = torch.zeros((), device=cells.x.device)
        for step, rows in enumerate(torch.randperm(count, device=cells.x.device).split(size)):
            types, domains = cells.labels[rows], cells.domains[rows]
            latent = encoder(cells.x[rows])
            label_loss = nn.functional.cross_entropy(classifier(latent), types)
            code = discriminator(Reversed.apply(latent, strength[epoch * steps + step]))
            optimizer.zero_grad()
            (label_loss + pair_loss(code, types, domains, settings.margin)).backward()
            optimizer.step()
            total += label_loss.detach()
        mean = float(total) / steps
    return mean


def pair_loss(code: Tensor, types: Tensor, domains: Tensor, margin: float) -> Tensor:
    """The contrastive loss in expectation over all legal pairs of a mini-batch; code is (cells, units)."""
    norm = code.square().sum(dim=1)
    squared = (norm[:, None] + norm - 2 * code @ code.T).clamp(min=0) + 1e-3
    apart = torch.relu(margin - squared.sqrt()).square()
    same_type, same_domain = types[:, None] == types, domains[:, None] == domains
    positive, negative = (same_domain & ~same_type).float(), (same_type & ~same_domain).float()
    positives, negatives = positive.sum(dim=1), negative.sum(dim=1)
    of_positive = (positive * squared).sum(dim=1) / positives.clamp(min=1)
    of_negative = (negative * apart).sum(dim=1) / negatives.clamp(min=1)
    return 0.5 * (0.5 * of_positive + torch.where(positives > 0, 0.5, 1.0) * of_negative).mean()


def fresh(file: Path, settings: Settings, cells: int | None = None) -> None:
    """A model in a process of its own, trained on the first cells or on all."""
    process = multiprocessing.get_context("spawn").Process(target=alone, args=(file, settings, cells))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process of a model ended with status {process.exitcode}")


def alone(file: Path, settings: Settings, cells: int | None) -> None:
    enter(file, torch.get_num_threads(), cells)
    in_process(settings, 0)


def warm(count: int, file: Path) -> Pool:
    """So many processes, each with its share of the cores and the cells on the device."""
    threads = max(1, usable_cores() // count)
    return multiprocessing.get_context("spawn").Pool(count, enter, (file, threads))


_cells: list[Cells] = []  # of this process, where it is one of several


def enter(file: Path, threads: int, cells: int | None = None) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with np.load(file) as arrays:
        x, labels, domains = (torch.from_numpy(arrays[name])[:cells].to(DEVICE) for name in ("x", "labels", "domains"))
    _cells[:] = [Cells(x, labels, domains, TYPES, DOMAINS)]


def in_process(settings: Settings, seed: int) -> float:
    return eager(_cells[0], settings, seed)


if __name__ == "__main__":
    main()

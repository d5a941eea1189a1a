"""A pack of models against the same models one after the other. Needs torch and numpy alone.

    python -m benchmarks.pack [--models 12] [--rounds 5] [--density 0.1]

Prints how many times faster the pack trains an epoch than its models one after the other, each as the trainer runs it
alone: for packs whose models see the same mini-batches ("shared") and for packs in which each has its own ("own").
"rule" is what training does by itself (pack.fused_groups); "fused" forces one batched program. "of bare" is the speed
of the shared pack as a fraction of torch.bmm at the shapes of its dense products. Input is dense, or in compressed rows
with a tenth of the values stored. Batch pairs, AdamW, mini-batches of 256; ratios are of the best of the rounds, which
take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.inputs import TYPES, random_cells
from benchmarks.timing import interleaved, machine
from scdgn.core.config import Settings
from scdgn.core.expression import compressed
from scdgn.core.pack.first_layer import Scratch
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Cells, Member, fused_groups
from scdgn.core.precision import products

SIZES = ((64, 16, 8), (128, 32, 16), (256, 64, 32), (1136, 100, 64))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    arguments.add_argument("--cells", type=int, default=2490)
    arguments.add_argument("--genes", type=int, default=3000)
    arguments.add_argument("--models", type=int, default=64 if on_gpu else 12)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--density", type=float, default=0.1)
    options = arguments.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    dense = random_cells(options.cells, options.genes, options.density)
    kinds = {"dense": dense, "sparse": replace(dense, x=compressed(dense.x))}
    print(
        f"{machine()}; {options.models} models, {options.cells} cells x {options.genes} genes, best of {options.rounds}"
    )
    columns = ("shared, rule", "shared, fused", "own, rule", "own, fused", "of bare")
    print(f"{'layers':16}{'input':8}" + "".join(f"{column:>15}" for column in columns))
    for sizes in SIZES:
        for name, cells in kinds.items():
            with products("tf32"):
                ratios = speedups(cells, sizes, options.models, device, options.rounds)
            print(f"{'/'.join(map(str, sizes)):16}{name:8}" + "".join(f"{ratio:15.2f}" for ratio in ratios), flush=True)


def speedups(cells: Cells, sizes: tuple[int, int, int], models: int, device: torch.device, rounds: int) -> list[float]:
    hidden, latent, code = sizes
    settings = Settings(hidden=hidden, latent=latent, domain_code=code)
    shared = [Member(settings, cells, seed=seed, order_seed=0) for seed in range(models)]
    own = [Member(settings, cells, seed=seed) for seed in range(models)]
    subjects = {
        "alone": epoch(shared, [[index] for index in range(models)], device),
        "shared, rule": epoch(shared, fused_groups(shared, device), device),
        "shared, fused": epoch(shared, [range(models)], device),
        "own, rule": epoch(own, fused_groups(own, device), device),
        "own, fused": epoch(own, [range(models)], device),
        "bare": bare_products(cells, sizes, models, device),
    }
    seconds = {name: min(times) for name, times in interleaved(subjects, rounds).items()}
    packs = [name for name in subjects if "," in name]
    return [*(seconds["alone"] / seconds[name] for name in packs), seconds["bare"] / seconds["shared, rule"]]


def epoch(members: Sequence[Member], groups: Sequence[Sequence[int]], device: torch.device) -> Callable[[], object]:
    """One epoch of the groups, in turn."""
    uploaded = {id(member.cells): member.cells.on(device) for member in members}
    scratch = Scratch()
    lanes = [Lane(members, group, device, uploaded, scratch=scratch) for group in groups]

    def run() -> None:
        for lane in lanes:
            lane.run_epoch(0)
        for lane in lanes:
            lane.losses()

    return run


def bare_products(cells: Cells, sizes: tuple[int, int, int], models: int, device: torch.device) -> Callable[[], object]:
    """The batched products of an epoch of all models and nothing else: forward, and backward but for the input."""
    hidden, latent, code = sizes
    count, genes = cells.x.shape
    batch, steps = 256, -(-count // 256)
    layers = ((genes, hidden), (hidden, latent), (latent, code), (latent, TYPES))
    weights = [torch.randn(models, units, inputs, device=device) for inputs, units in layers]
    inputs = [
        torch.randn(models if place else 1, batch, units, device=device) for place, (units, _) in enumerate(layers)
    ]
    gradients = [torch.randn(models, units, batch, device=device) for _, units in layers]

    def run() -> None:
        for _ in range(steps):
            for place, (weight, x, gradient) in enumerate(zip(weights, inputs, gradients, strict=True)):
                if place:
                    torch.bmm(weight, x.transpose(1, 2))
                    torch.bmm(gradient, x)
                    torch.bmm(weight.transpose(1, 2), gradient)
                else:  # all models read the same cells, and nothing needs the gradient of the expression itself
                    weight.view(-1, genes) @ x[0].T
                    gradient.reshape(-1, batch) @ x[0]

    return run


if __name__ == "__main__":
    main()

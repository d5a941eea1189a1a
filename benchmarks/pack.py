"""Twelve models as one pack against the twelve one after the other. Needs torch and numpy alone.

    python -m benchmarks.pack [--rounds 5]

Prints how many times faster the pack trains an epoch, for packs whose models see the same mini-batches and for packs in
which each has its own; `rule` is what training does by itself (pack.fused_groups), `fused` forces one batched program.
Batch pairs, AdamW, mini-batches of 256; each ratio is of the best of the rounds, which take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks.timing import interleaved, machine
from scdgn.config import Settings
from scdgn.pack import Block, Cells, Member, fused_groups
from scdgn.training import Lane

SIZES = ((64, 16, 8), (128, 32, 16), (256, 64, 32), (1136, 100, 64))
MODELS = 12


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=2490)
    arguments.add_argument("--genes", type=int, default=3000)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(options.cells, options.genes, generator=draws)
    labels, domains = (torch.randint(count, (options.cells,), generator=draws) for count in (13, 3))
    cells = Cells(x, labels, domains, types=13, domain_count=3)
    print(f"{machine()}; {MODELS} models, {options.cells} cells x {options.genes} genes, best of {options.rounds}")
    print(f"{'layers':16}{'shared, rule':>14}{'shared, fused':>15}{'own, rule':>12}{'own, fused':>12}")
    for sizes in SIZES:
        ratios = [f"{ratio:.2f}" for ratio in speedups(cells, sizes, device, options.rounds)]
        print(f"{'/'.join(map(str, sizes)):16}{ratios[0]:>14}{ratios[1]:>15}{ratios[2]:>12}{ratios[3]:>12}", flush=True)


def speedups(cells: Cells, sizes: tuple[int, int, int], device: torch.device, rounds: int) -> list[float]:
    hidden, latent, code = sizes
    settings = Settings(hidden=hidden, latent=latent, domain_code=code)
    shared = [Member(settings, cells, seed=seed, order_seed=0) for seed in range(MODELS)]
    own = [Member(settings, cells, seed=seed) for seed in range(MODELS)]
    alone = [[index] for index in range(MODELS)]
    subjects = {
        "alone": epoch(shared, alone, device),
        "shared, rule": epoch(shared, fused_groups(shared, device), device),
        "shared, fused": epoch(shared, [range(MODELS)], device),
        "own, rule": epoch(own, fused_groups(own, device), device),
        "own, fused": epoch(own, [range(MODELS)], device),
    }
    seconds = {name: min(times) for name, times in interleaved(subjects, rounds).items()}
    return [seconds["alone"] / seconds[name] for name in subjects if name != "alone"]


def epoch(members: Sequence[Member], groups: Sequence[Sequence[int]], device: torch.device) -> Callable[[], object]:
    uploaded = {id(member.cells): member.cells.on(device) for member in members}
    lanes = [Lane(Block(members, group, device), uploaded) for group in groups]

    def run() -> None:
        for lane in lanes:
            lane.run_epoch(0)

    return run


if __name__ == "__main__":
    main()

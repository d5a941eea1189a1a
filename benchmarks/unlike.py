"""The packs of a search on a GPU: trials whose sizes, rates and lengths differ. Needs torch and numpy alone.

    python -m benchmarks.unlike [--trials 16] [--rounds 3]

A pack is of so many trials, drawn as the default space draws them, each of four models (three folds and all cells) on
2,490 cells x 3,000 genes. Printed: the best time of `scdgn.core.training.train` for hidden layers of 32 to 128 and of
32 to 1136 units; and of the largest group of models that are fused, the time of an epoch when 1, 4 and 16 products of
their first layers, whose mini-batches differ, run at the same time (`graphs.AT_ONCE`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.inputs import DOMAINS, random_cells
from benchmarks.timing import interleaved, machine
from scdgn.core.config import Settings
from scdgn.core.pack import graphs
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Cells, Member, fused_groups
from scdgn.core.precision import products
from scdgn.core.training import train


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{machine()}; {options.trials} trials of {DOMAINS + 1} models, best of {options.rounds}")
    print(f"{'hidden units':16}{'train, s':>10}{'fused':>8}" + "".join(f"{f'epoch, {n}, ms':>15}" for n in (1, 4, 16)))
    cells = random_cells(2490, 3000)
    for widest in (128, 1136):
        members = pack(cells, options.trials, widest)
        whole = interleaved({"train": lambda members=members: train(members, device)}, options.rounds)
        largest = max(fused_groups(members, device), key=len)
        epochs = {str(count): epoch(members, largest, device, count) for count in (1, 4, 16)}
        with products("tf32"):
            times = interleaved(epochs, options.rounds)
        columns = "".join(f"{1000 * min(seconds):15.1f}" for seconds in times.values())
        print(f"{f'32 to {widest}':16}{min(whole['train']):10.2f}{len(largest):8}{columns}", flush=True)


def pack(cells: Cells, trials: int, widest: int) -> list[Member]:
    """The models of so many trials, trial by trial."""
    draws = np.random.default_rng(0)
    folds = [part(cells, cells.domains != domain) for domain in range(DOMAINS)]
    drawn = [settings(draws, widest) for _ in range(trials)]
    return [Member(each, own, 0, order_seed=0) for each in drawn for own in (*folds, cells)]


def part(cells: Cells, kept: torch.Tensor) -> Cells:
    return replace(cells, x=cells.x[kept], labels=cells.labels[kept], domains=cells.domains[kept])


def settings(draws: np.random.Generator, widest: int) -> Settings:
    def between(low: float, high: float) -> float:
        return float(np.exp(draws.uniform(np.log(low), np.log(high))))

    return Settings(
        hidden=int(between(32, widest)),
        latent=int(between(16, 128)),
        domain_code=int(between(8, 64)),
        epochs=int(between(8, 60)),
        lr=between(1e-4, 5e-3),
        weight_decay=between(1e-3, 10),
        dropout=draws.uniform(0, 0.8),
        pairing=("batch", "epoch")[draws.integers(2)],
    )


def epoch(members: list[Member], group: list[int], device: torch.device, at_once: int) -> Callable[[], object]:
    """An epoch of a group, of which so many updates run at the same time."""
    uploaded = {id(member.cells): member.cells.on(device) for member in members}
    lane = Lane(members, group, device, uploaded)

    def run() -> None:
        lane.run_epoch(0)
        lane.losses()

    graphs.AT_ONCE = at_once
    for _ in range(2):  # the first steps of a shape, and their recordings, in which it counts
        run()
    return run


if __name__ == "__main__":
    main()

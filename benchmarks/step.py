"""Time of one epoch: the published loop, ours, and the bare matrix products. Needs torch and numpy alone.

    python -m benchmarks.step [--rounds 7] [--density 0.1]

Each line is the best of the rounds, which take turns; the ratios are of those. Defaults are the size of the paper's
pancreas1: 2,490 cells by 3,000 genes, layers 1136/100/64, mini-batches of 256. Of the values a tenth is not zero, as in
real counts: "sparse" lines are given them in compressed rows (which the trainer multiplies as they are on a CPU, and
makes dense a mini-batch at a time on a GPU), the others as a dense matrix.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.inputs import TYPES, random_cells
from benchmarks.published import PublishedLoop
from benchmarks.timing import interleaved, machine
from scdgn.core.config import preset
from scdgn.core.expression import compressed
from scdgn.core.pack.lane import Lane
from scdgn.core.pack.members import Cells, Member
from scdgn.core.precision import products

HIDDEN, LATENT, CODE = 1136, 100, 64
BATCH = 256


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=2490)
    arguments.add_argument("--genes", type=int, default=3000)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--density", type=float, default=0.1)
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = random_cells(options.cells, options.genes, options.density)
    x, sparse = dense.x.numpy(), replace(dense, x=compressed(dense.x))
    subjects = {
        "published loop": PublishedLoop(x, dense.labels.numpy(), dense.domains.numpy(), device).epoch,
        "ours, published pairs": ours("published", dense, device),
        "ours, published pairs, sparse": ours("published", sparse, device),
        "bare products, two passes": bare_products(x, 2, device),
        "ours, batch pairs": ours("batch", dense, device),
        "ours, batch pairs, sparse": ours("batch", sparse, device),
        "bare products, one pass": bare_products(x, 1, device),
    }
    with products("tf32"):
        seconds = {name: min(times) for name, times in interleaved(subjects, options.rounds).items()}
    published, two, one = (seconds[name] for name in ("published loop", *(n for n in seconds if n.startswith("bare"))))
    print(f"{machine()}; {options.cells} cells x {options.genes} genes, best of {options.rounds}")
    print(f"{'':30}{'s/epoch':>9}{'of published':>14}{'bare products / ours':>22}")
    for name, time in seconds.items():
        bare = f"{(two if 'published pairs' in name else one) / time:22.2f}" if name.startswith("ours") else ""
        print(f"{name:30}{time:9.3f}{time / published:14.2f}{bare}")


def ours(pairing: str, cells: Cells, device: torch.device) -> Callable[[], object]:
    """One epoch of the training loop with the published settings but for the pairs."""
    member = Member(replace(preset("reference"), pairing=pairing), cells, seed=0)
    lane = Lane([member], [0], device, {id(cells): cells.on(device)})

    def epoch() -> None:
        lane.run_epoch(0)
        lane.losses()

    return epoch


def bare_products(x: np.ndarray, passes: int, device: torch.device) -> Callable[[], object]:
    """The matrix products of an epoch and nothing else: forward, and backward but for the gradient of the input."""
    batches = []
    for start in range(0, len(x), BATCH):
        rows = x[start : start + BATCH]
        cells = torch.from_numpy(np.concatenate([rows] * passes)).to(device)
        labeled, all_cells = len(rows), len(cells)
        layers = ((x.shape[1], HIDDEN, all_cells), (HIDDEN, LATENT, all_cells), (LATENT, CODE, all_cells))
        inputs = [cells, *(torch.randn(count, units, device=device) for units, _, count in layers[1:])]
        layers = (*layers, (LATENT, TYPES, labeled))
        inputs.append(torch.randn(labeled, LATENT, device=device))
        gradients = [torch.randn(count, units, device=device) for _, units, count in layers]
        batches.append((inputs, gradients))
    weights = [torch.randn(units, inputs, device=device) for inputs, units, _ in layers]

    def epoch() -> None:
        for inputs, gradients in batches:
            for place, (weight, cells, gradient) in enumerate(zip(weights, inputs, gradients, strict=True)):
                cells @ weight.T
                gradient.T @ cells
                if place:  # nothing needs the gradient of the expression itself
                    gradient @ weight

    return epoch


if __name__ == "__main__":
    main()

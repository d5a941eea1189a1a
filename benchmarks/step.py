"""Time of one epoch: the published loop, ours, and the bare matrix products. Needs torch and numpy alone.

    python -m benchmarks.step [--rounds 7]

Each line is the best of the rounds, which take turns; the ratios are of those. Defaults are the size of the paper's
pancreas1: 2,490 cells by 3,000 genes, layers 1136/100/64, mini-batches of 256.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from benchmarks.timing import interleaved, machine
from scdgn.config import preset
from scdgn.pack import Block, Cells, Member
from scdgn.pairs import draw_pairs
from scdgn.training import Lane

TYPES, DOMAINS = 13, 3
HIDDEN, LATENT, CODE = 1136, 100, 64
BATCH = 256


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cells", type=int, default=2490)
    arguments.add_argument("--genes", type=int, default=3000)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draws = np.random.default_rng(0)
    x = draws.standard_normal((options.cells, options.genes)).astype(np.float32)
    labels, domains = draws.integers(0, TYPES, options.cells), draws.integers(0, DOMAINS, options.cells)
    subjects = {
        "published loop": published_loop(x, labels, domains, device),
        "ours, published pairs": ours("published", x, labels, domains, device),
        "bare products, two passes": bare_products(x, 2, device),
        "ours, batch pairs": ours("batch", x, labels, domains, device),
        "bare products, one pass": bare_products(x, 1, device),
    }
    seconds = {name: min(times) for name, times in interleaved(subjects, options.rounds).items()}
    published, two, one = (seconds[name] for name in ("published loop", *(n for n in seconds if n.startswith("bare"))))
    bare = {"ours, published pairs": two, "ours, batch pairs": one}
    print(f"{machine()}; {options.cells} cells x {options.genes} genes, best of {options.rounds}")
    print(f"{'':27}{'s/epoch':>9}{'of published':>14}{'of its bare products':>22}")
    for name, time in seconds.items():
        print(f"{name:27}{time:9.3f}{time / published:14.2f}" + (f"{time / bare[name]:22.2f}" if name in bare else ""))


def ours(
    pairing: str, x: np.ndarray, labels: np.ndarray, domains: np.ndarray, device: torch.device
) -> Callable[[], object]:
    """One epoch of the training loop with the published settings but for the pairs."""
    cells = Cells(torch.from_numpy(x), torch.from_numpy(labels), torch.from_numpy(domains), TYPES, DOMAINS)
    settings = replace(preset("reference"), pairing=pairing)
    lane = Lane(Block([Member(settings, cells, seed=0)], [0], device), {id(cells): cells.on(device)})
    return lambda: lane.run_epoch(0)


def published_loop(
    x: np.ndarray, labels: np.ndarray, domains: np.ndarray, device: torch.device
) -> Callable[[], object]:
    """What the authors' loop does, restated.

    Partners are drawn once and copied out in double precision; every epoch shuffles all arrays in place on the host;
    every step builds its tensors from them, encodes cells and partners in two passes, and reads both losses and the
    training accuracy back. Their optional validation after each step is left out.
    """
    draws = np.random.RandomState(0)  # whose shuffle they use
    pairs = draw_pairs(torch.from_numpy(labels), torch.from_numpy(domains), torch.Generator().manual_seed(0))
    arrays = [
        x.copy(),
        x[pairs.partner.numpy()].astype(np.float64),
        labels.copy(),
        pairs.same.numpy().astype(np.float64),
        pairs.use.numpy().astype(np.float64),
    ]
    encoder = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, LATENT), nn.Tanh()).to(device)
    classifier = nn.Linear(LATENT, TYPES).to(device)
    discriminator = nn.Sequential(nn.Linear(LATENT, CODE), nn.Tanh()).to(device)
    layers = [*encoder.parameters(), *classifier.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.SGD(layers, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-6)

    def epoch() -> None:
        state = draws.get_state()
        for array in arrays:
            draws.set_state(state)
            draws.shuffle(array)
        for start in range(0, len(x), BATCH):
            batch = [array[start : start + BATCH] for array in arrays]
            one, other, same, use = (torch.tensor(batch[i], dtype=torch.float32, device=device) for i in (0, 1, 3, 4))
            label = torch.tensor(batch[2], device=device)
            optimizer.zero_grad()
            first, second = encoder(one), encoder(other)
            logits = classifier(first)
            label_loss = nn.functional.cross_entropy(logits, label)
            # The sign of the reversed gradient costs nothing, so it is left out of a loop that is only timed.
            squared = (discriminator(first) - discriminator(second)).square().sum(dim=1) + 1e-3
            apart = torch.relu(1 - squared.sqrt()).square()
            domain_loss = (use * 0.5 * (same * squared + (1 - same) * apart)).mean()
            label_loss.item(), domain_loss.item(), (logits.argmax(dim=1) == label).float().sum().item()
            (label_loss + 0.1 * domain_loss).backward()
            optimizer.step()

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

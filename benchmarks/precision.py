"""What coarser matrix products do to the score: leave-one-domain-out inside the training domains of real PBMC splits.

    python -m benchmarks.precision PBMC.h5ad SPLITS.json [--seeds 5]

The default preset of each method is trained on every fold of two splits, with the same seeds, in float32 and in
bfloat16 (the products of the first layer; on a GPU in TF32 as well). Printed: macro-F1, its difference to float32 and
the standard error of that over the seeds, beside what another seed changes. The test domains are not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from benchmarks.portfolio import Task
from benchmarks.timing import machine
from scdgn.core.config import Method, Precision


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("splits", type=Path)
    arguments.add_argument("--seeds", type=int, default=5)
    options = arguments.parse_args()
    task = Task(options.data.parent, options.splits, options.data.stem)
    others: tuple[Precision, ...] = ("tf32", "bf16") if torch.cuda.is_available() else ("bf16",)
    print(f"{machine()}; {options.seeds} seeds")
    print(f"{'method':8}{'precision':>10}{'macro-F1':>10}{'difference':>12}{'standard error':>16}{'sd over seeds':>15}")
    for method in get_args(Method):
        exact = of_seeds(task, options.data.stem, method, options.seeds, "float32")
        print(f"{method:8}{'float32':>10}{exact.mean():10.3f}{'':28}{exact.std(ddof=1):15.3f}", flush=True)
        for precision in others:
            coarse = of_seeds(task, options.data.stem, method, options.seeds, precision)
            change = coarse - exact
            error = change.std(ddof=1) / len(change) ** 0.5
            print(f"{method:8}{precision:>10}{coarse.mean():10.3f}{change.mean():+12.4f}{error:16.4f}", flush=True)


def of_seeds(task: Task, name: str, method: str, seeds: int, precision: Precision) -> np.ndarray:
    """Mean macro-F1 over all folds, (seeds,)."""
    return np.array([np.mean(task.scores(name, method, {}, seed, precision)) for seed in range(seeds)])


if __name__ == "__main__":
    main()

"""Does a sample of the cells left out score as all of them do? Macro-F1 of both, over many draws of the sample.

    python -m benchmarks.scored_cells DATA.h5ad [DATA.h5ad ...] [--most 1000 10000] [--cells 200000] [--models 4]

For every fold some scDGN models of the default preset are trained, of 1 to 8 epochs, so that they are good and bad, and
so many cells drawn with replacement from those left out, with what the models say of them. A sample has at most so many
cells, equally many of every type in every batch, as trials are scored on (`scdgn.search.trials.inputs.SCORED`); each
cell counts for those of its type and batch that it stands for. Printed are the mean and the largest distance from the
score of all cells, fold by fold and as the mean over folds that chooses trials; the same where each cell counts for
itself; and how far apart the models are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.fields import Fields
from scdgn.cells.sample import at_most, stood_for
from scdgn.cells.settings import INPUT_PRESETS
from scdgn.cells.sources import Source, read
from scdgn.core.config import preset
from scdgn.core.metrics import macro_f1
from scdgn.model.at_once import portions
from scdgn.model.fitting import fit
from scdgn.search.trials.cells import SearchCells, seal

TRAINED = 5_000
FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--labels-key", default="celltype")
    parser.add_argument("--batch-key", default="tech")
    parser.add_argument("--most", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--cells", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':28}{'cells':>9}{'apart':>8} | {'most':>7}{'a fold':>16}{'the mean':>16}{'unweighted':>12}")
    for path in options.data:
        fields = Fields(options.labels_key, options.batch_key)
        compare(path.stem, seal(read(Source(data=path, fields=fields)), FOLDS, adapt=False), options)


def compare(name: str, sealed: SearchCells, options: argparse.Namespace) -> None:
    dataset, rng = sealed.dataset, np.random.default_rng(0)
    folds = []
    for fold in sealed.folds:
        drawn = rng.integers(len(fold.scored), size=options.cells)
        said = [labels_of(sealed, fold.train, fold.scored, model)[drawn] for model in range(options.models)]
        folds.append(Drawn(dataset.labels[fold.scored[drawn]], dataset.batches[fold.scored[drawn]], said))
    whole = np.array([[macro_f1(fold.labels, one) for one in fold.predicted] for fold in folds])
    apart = whole.mean(axis=0).std(ddof=1)
    for most in options.most:
        found = np.array([[sampled(fold, most, seed) for fold in folds] for seed in range(options.draws)])
        off = found - whole[None, :, :, None]  # (draws, folds, models, weighted or not)
        fold, mean = np.abs(off[..., 0]), np.abs(off[..., 0].mean(axis=1))
        plain = np.abs(off[..., 1].mean(axis=1)).mean()
        print(
            f"{name:28}{options.cells:>9,}{apart:>8.3f} | {most:>7,}{fold.mean():>8.4f}{fold.max():>8.4f}"
            f"{mean.mean():>8.4f}{mean.max():>8.4f}{plain:>12.4f}",
            flush=True,
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """Cells left out, and what models say of them."""

    labels: NDArray[np.int64]
    batches: NDArray[np.int64]
    predicted: list[NDArray[np.int64]]


def labels_of(
    sealed: SearchCells, train: NDArray[np.int64], scored: NDArray[np.int64], model: int
) -> NDArray[np.int64]:
    """(scored,) what a model says of the cells, as codes of the search."""
    dataset = sealed.dataset
    settings = replace(preset("default", "scdgn"), epochs=2**model)
    some = at_most(dataset.labels, dataset.batches, train, TRAINED)
    bundle = fit(dataset, some, settings, INPUT_PRESETS["default"], [model])
    code = np.array([dataset.cell_types.index(name) for name in bundle.cell_types])
    said = [bundle.probabilities(bundle.input(one)).argmax(axis=1) for one in portions(dataset.take(scored), bundle)]
    return np.asarray(code[np.concatenate(said)])


def sampled(fold: Drawn, most: int, seed: int) -> list[tuple[float, float]]:
    """For every model the score of a sample, with weights and without."""
    rows = np.arange(len(fold.labels))
    kept = at_most(fold.labels, fold.batches, rows, most, seed)
    weights, labels = stood_for(fold.labels, fold.batches, rows, kept), fold.labels[kept]
    return [(macro_f1(labels, one[kept], weights), macro_f1(labels, one[kept])) for one in fold.predicted]


if __name__ == "__main__":
    main()

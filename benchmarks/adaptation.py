"""What correcting for a query and adapting to it gain, on domains left out of training; no test batch is opened.

    python -m benchmarks.adaptation DATA_DIR --splits SPLITS.json [--methods nn dann scdgn] [--seeds 3] [--sets SET ...]

The default preset, an ensemble. *Near*: the folds of `benchmarks.portfolio`, where the query is as far from the
training domains as they are from each other. *Far*: a whole protocol of the RNA mixtures is left out, and 10x is
trained for the control cells of Kang et al., under each confounded split. The query is the whole domain left out, with
its cells of types that are not trained, and macro-F1 of the others is printed: plain, corrected, adapted, and both;
then the means over the sets, each counting once. About five minutes of one thread for each method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.portfolio import Task, arguments
from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.normalize import log_normalized
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import INPUT_PRESETS
from scdgn.cells.splits import block_split, read_blocks
from scdgn.core.config import Method, preset
from scdgn.core.metrics import macro_f1
from scdgn.model.fitting import fit

FAR = ("far: RNA mixtures", "far: PBMC, 10x to Kang")


class Case(NamedTuple):
    """Training cells, and a query that takes no part in training."""

    set: str
    dataset: Dataset
    train: NDArray[np.int64]
    query: NDArray[np.int64]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--mixtures", default="rnamix_2protocols", help="the file of the RNA mixtures")
    parser.add_argument("--methods", nargs="+", default=get_args(Method), choices=get_args(Method))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", help="these alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'set':26}{'method':8}{'plain':>8}{'corrected':>11}{'adapted':>9}{'both':>7}")
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for case in cases(options):
        if options.sets and case.set not in options.sets:
            continue
        for method in options.methods:
            scores = measured(case, method, options.seeds)
            found.setdefault((case.set, method), []).append(scores)
            show(case.set, method, scores)
    for method in options.methods:
        for title, far in (("mean, near", False), ("mean, far", True)):
            means = [
                np.mean(rows, axis=0) for (name, own), rows in found.items() if own == method and (name in FAR) == far
            ]
            if means:
                show(title, method, tuple(np.mean(means, axis=0)))


def cases(options: argparse.Namespace) -> Iterator[Case]:
    task = Task.of(options)
    for name in task.names:
        for dataset, fold in task.folds(name):
            yield Case(name, dataset, fold.train, fold.held_out)
    mixtures = log_normalized(
        from_anndata(read_h5ad(options.data / f"{options.mixtures}.h5ad"), Fields("celltype", "tech"))
    )
    protocols = np.array([name.split("_")[0] for name in mixtures.batch_names])[mixtures.batches]
    for protocol in np.unique(protocols):
        yield Case(FAR[0], mixtures, *(np.flatnonzero(rows) for rows in (protocols != protocol, protocols == protocol)))
    adata = read_h5ad(options.data / f"{options.confounded}.h5ad")
    for name in json.loads(options.splits.read_text())["splits"]:
        blocks = read_blocks(f"{options.splits}:{name}")
        dataset = log_normalized(from_anndata(adata, Fields(blocks.labels_key, blocks.batch_key)))
        rows = block_split(dataset, blocks).train
        batches = np.array(dataset.batch_names)[dataset.batches]
        train = rows[[not batch.startswith("kang") for batch in batches[rows]]]
        yield Case(FAR[1], dataset, train, np.flatnonzero(batches == "kang10xV1_CTRL"))


def measured(case: Case, method: Method, seeds: int) -> tuple[float, ...]:
    """Macro-F1 plain, corrected, adapted, and adapted and corrected."""
    query, settings, prepare = case.dataset.take(case.query), preset("default", method), INPUT_PRESETS["default"]
    plain, adapted = (
        fit(case.dataset, case.train, settings, prepare, range(seeds), device="cpu", query=joining)
        for joining in ((), [query])
    )
    types = np.array(plain.cell_types)
    labels = np.array(query.cell_types)[query.labels]
    known = np.isin(labels, types)
    scores = []
    for bundle in (plain, replace(plain, corrects=True), adapted, replace(adapted, corrects=True)):
        codes = bundle.probabilities(bundle.input(query, bundle.correction(query, lambda: [query]))).argmax(axis=1)
        scores.append(macro_f1(np.searchsorted(types, labels[known]), codes[known]))
    return tuple(scores)


def show(title: str, method: str, scores: tuple[float, ...]) -> None:
    print(f"{title:26}{method:8}{scores[0]:8.3f}{scores[1]:11.3f}{scores[2]:9.3f}{scores[3]:7.3f}", flush=True)


if __name__ == "__main__":
    main()

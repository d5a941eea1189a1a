"""Which trial should win, and which cells should it be trained on? Answered on training batches in the test's place.

    python -m benchmarks.rules DATA.h5ad --labels-key K --batch-key B --without TEST --out STUDIES [--trials 30]
    python -m benchmarks.rules PBMC.h5ad --splits SPLITS.json --out STUDIES [--only split1 ...]

The test batch (`--without`, or the file's test domain) is taken away with all its cells; then every training batch is
held out in turn, and the others are searched by leave-one-domain-out as a user would search them (`scdgn.search.run`,
hidden layers of at most 256 units). The trials that were scored a second time, the preset among them, are trained anew
with `--seeds` seeds and scored on the batch held out, which no rule has looked at:

    preset          the default preset, whatever the trials say
    best            the trial with the best second score: what a study chooses
    clearly better  that one if it is above the preset by more than the standard error of their differences over the
                    folds, else the preset (the one-standard-error rule of Breiman et al. 1984)
    all of them     the mean of the probabilities of all these trials

each trained on all training cells, and on the four fifths that a study trains its final seeds on. Printed: macro-F1 of
one seed (mean over the seeds) and of the ensemble, and the latter's difference to the preset with the standard error
over the searches. Studies are kept in STUDIES: what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad, write_h5ad
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import Source, read
from scdgn.cells.splits import read_blocks, stratified_validation
from scdgn.core.config import UNLABELED, Method, Settings
from scdgn.core.metrics import macro_f1
from scdgn.model.fitting import fit
from scdgn.search.folder import StudyFolder
from scdgn.search.records import Confirmation, settings_of
from scdgn.search.stages.finalists import FIRST_SEED
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import read_records
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import VALIDATED

ALL = "all of them"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels-key", default="celltype")
    parser.add_argument("--batch-key", default="tech")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--without", help="the test batch")
    which.add_argument("--splits", type=Path)
    parser.add_argument("--only", nargs="+", help="these splits alone")
    parser.add_argument("--methods", nargs="+", default=get_args(Method))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, tuple[float, float]]]] = defaultdict(list)
    for name, source in tasks(options):
        for method in options.methods:
            scores = compared(options, f"{name}/{method}", method, source)
            found[method].append(scores)
            told = "  ".join(f"{rule} {one:.3f}/{together:.3f}" for rule, (one, together) in scores.items())
            print(f"{name:24}{method:7}{told}", flush=True)
    report(found)


def report(found: Mapping[str, list[dict[str, tuple[float, float]]]]) -> None:
    print(f"\n{'method':8}{'rule':30}{'searches':>9}{'one seed':>10}{'ensemble':>10}{'to the preset':>24}")
    groups = {**found, "all": [scores for method in found.values() for scores in method]}
    for method, studies in groups.items():
        base = np.array([scores["preset"] for scores in studies])  # (searches, 2)
        for rule in studies[0]:
            values = np.array([scores[rule] for scores in studies])
            gain = values[:, 1] - base[:, 1]
            error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.nan
            one, together = values[:, 0].mean(), values[:, 1].mean()
            columns = f"{len(studies):9}{one:10.3f}{together:10.3f}{gain.mean():+14.3f} ± {error:.3f}"
            print(f"{method:8}{rule:30}{columns}", flush=True)


def tasks(options: argparse.Namespace) -> Iterator[tuple[str, Source]]:
    """Each training batch held out, with what is left to search."""
    if options.splits is None:
        adata = read_h5ad(options.data)
        batches = adata.obs[options.batch_key].astype(str)
        path = options.out / "training.h5ad"
        write_h5ad(adata[(batches != options.without).to_numpy()].copy(), path)
        for batch in sorted(set(batches) - {options.without}):
            yield batch, Source(data=path, fields=Fields(options.labels_key, options.batch_key), test_batch=batch)
        return
    names = options.only or list(json.loads(options.splits.read_text())["splits"])
    for name in names:
        blocks = read_blocks(f"{options.splits}:{name}")
        for batch in blocks.keep:
            keep = {other: list(types) for other, types in blocks.keep.items() if other != batch}
            document = {
                "labels_key": blocks.labels_key,
                "batch_key": blocks.batch_key,
                "test_domain": batch,
                "splits": {"inner": {"keep": keep}},
            }
            path = options.out / f"{name}-{batch}.json"
            path.write_text(json.dumps(document))
            yield f"{name}/{batch}", Source(data=options.data, fields=Fields(None, None), split=f"{path}:inner")


def compared(options: argparse.Namespace, name: str, method: Method, source: Source) -> dict[str, tuple[float, float]]:
    """Macro-F1 of one seed and of the ensemble on the batch held out, by rule."""
    settings = StudySettings(
        name=name,
        source=source,
        method=method,
        trials=options.trials,
        final_seeds=1,
        space={"hidden": {"low": 32, "high": 256, "log": True}},
        studies=options.out,
    )
    (summary,) = run(settings, track=False)
    folder = StudyFolder(options.out / name)
    kept = folder.path / f"rules-{options.seeds}.json"
    if kept.exists():
        return {rule: tuple(scores) for rule, scores in json.loads(kept.read_text()).items()}
    records = {record.number: record for record in read_records(folder, settings)}
    confirmed = summary.confirmed
    preset = next(number for number in confirmed if records[number].origin == "preset")
    cells = read(source)
    sealed = seal(cells, settings.max_folds, False)
    types = sealed.dataset.cell_types
    code = np.array([types.index(each) if each in types else UNLABELED for each in cells.dataset.cell_types])
    labels = code[cells.dataset.labels[cells.split.scored]]
    scored = np.isin(cells.split.test, cells.split.scored)
    parts = stratified_validation(
        sealed.dataset.labels, sealed.rows, VALIDATED, settings.seed, batches=sealed.dataset.batches
    )
    scores: dict[str, tuple[float, float]] = {}
    for where, rows in (("", sealed.rows), (", four fifths", parts[0])):
        found = {
            number: predicted(sealed, rows, *settings_of(records[number]), options.seeds)[:, scored]
            for number in confirmed
        }
        for rule, number in chosen(confirmed, preset).items():
            one = np.mean([macro_f1(labels, each.argmax(axis=1)) for each in found[number]])
            together = macro_f1(labels, found[number].mean(axis=0).argmax(axis=1))
            scores[rule + where] = (float(one), float(together))
        mean = np.mean([each.mean(axis=0) for each in found.values()], axis=0)
        scores[ALL + where] = (float("nan"), macro_f1(labels, mean.argmax(axis=1)))
    kept.write_text(json.dumps(scores))
    return scores


def chosen(confirmed: Mapping[int, Confirmation], preset: int) -> dict[str, int]:
    """The trial of each rule."""
    best = max(confirmed, key=lambda number: (confirmed[number].score, -number))
    folds = [list(confirmed[number].folds.values()) for number in (best, preset)]
    gain = np.subtract(*folds)
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return {"preset": preset, "best": best, "clearly better": best if gain.mean() > error else preset}


def predicted(
    cells: SearchCells, rows: NDArray[np.int64], settings: Settings, preprocess: PreprocessSettings, seeds: int
) -> NDArray[Any]:
    """Probabilities of the test cells by seed, (seeds, cells, types of all training cells)."""
    assert cells.test is not None
    bundle = fit(cells.dataset, rows, settings, preprocess, range(FIRST_SEED, FIRST_SEED + seeds))
    x = bundle.input(cells.test)
    places = [cells.dataset.cell_types.index(name) for name in bundle.cell_types]
    out = np.zeros((seeds, len(x), len(cells.dataset.cell_types)))
    out[:, :, places] = bundle.forward(x)[1].softmax(dim=2).numpy()
    return out


if __name__ == "__main__":
    main()

"""Does a search pay on a batch that nobody has seen? Whole searches, each with another batch in the test's place.

    python -m benchmarks.generalisation DATA_DIR --out FOLDER --splits SPLITS.json --label after [--sets SET ...]
    python -m benchmarks.generalisation DATA_DIR --out FOLDER --splits SPLITS.json --label after-A --leave-out A
    python -m benchmarks.generalisation DATA_DIR --out FOLDER --report --compare before after

Every .h5ad file of the directory with cell types and batches is a data set; the file with the test domain of
SPLITS.json is one for each split instead, without that domain's cells. In each set at most `--batches` batches are held
out in turn, those with the most cells of types that other batches hold, and the rest is searched as a user would search
it (`scdgn.search.run`, hidden layers of at most 128 units); the labels of the batch held out choose nothing. Beside
each search two models that need none, trained on all training cells: the default preset, an ensemble of as many seeds
as the study's final ones, and logistic regression, its C the best of a grid by the same leave-one-domain-out folds. All
are scored by macro-F1 on the cells held out whose type is trained, the exported model as anyone would load it and
predict with it: commits can be compared.

`--set KEY=VALUE` changes a setting of the study, or one of the model or the preprocessing in its space; `--leave-out`
takes parts of issue 16 away (`PARTS`). Records are appended to FOLDER/LABEL.jsonl as they come (of the regression, for
all labels, to FOLDER/logistic.jsonl), and what is on record is not run again; studies are kept under FOLDER/LABEL, and
one that was killed goes on. The first batch of every set comes first, then the second ones: a part of a run has seen
all sets. Processes may share the work by `--sets`.

Printed: by set and method the score that chose the winner, the winner's macro-F1 (mean of its seeds, and of them all as
an ensemble), the exported model's, the preset's and the regression's, and the export's difference to the better of the
two last; each method's difference to nn; processor seconds. Behind a mean its standard error over the batches held out;
behind a difference the worst one, and how many are below -0.01. With `--compare` both labels, and the second one's
difference to the first, whose preset is then the preset of both. One thread: 10 trials on the smallest set (487 cells)
took 38 seconds with nn and 50 with scdgn; more cells and more trials take longer.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from scdgn import SCDGN
from scdgn.cells.fields import Fields
from scdgn.cells.h5ad import read_h5ad
from scdgn.cells.normalize import log_normalized
from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.cells.sources import Source, TrainingCells, read
from scdgn.cells.splits import stratified_validation
from scdgn.core.config import Method, Settings, preset
from scdgn.core.metrics import macro_f1
from scdgn.model.fitting import fit
from scdgn.search.folder import StudyFolder
from scdgn.search.stages.finalists import FIRST_SEED
from scdgn.search.stages.identity import git_commit
from scdgn.search.stages.job import Interrupted
from scdgn.search.studies import run
from scdgn.search.study.settings import StudySettings
from scdgn.search.trials.cells import seal
from scdgn.search.trials.inputs import VALIDATED

GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""C of the logistic regression."""

PARTS: dict[str, dict[str, Any]] = {
    "A": {"shift_probability": 0.0},
    "B": {"gene_selection": "variable"},
    "C": {"correct": "never"},
    "F": {"ensemble": False},
    "G": {"portfolio": False},
}
"""What takes a part of issue 16 away. Adaptation (D) is off unless asked for, and nothing brings back models that are
trained on a part of the cells (E)."""

MARGIN = -0.01
"""A loss beyond this counts."""

HIDDEN = {"low": 32, "high": 128, "log": True}
"""Units searched: wider layers gain nothing on these few cells, and take most of the time on a CPU."""

KEY = ("set", "batch", "method")


class Task(NamedTuple):
    """A batch held out of a data set."""

    set: str
    batch: str
    source: Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--labels-key", default="celltype")
    parser.add_argument("--batch-key", default="tech")
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--sets", nargs="+", help="these alone: a file's name without .h5ad, or FILE/SPLIT")
    parser.add_argument("--methods", nargs="+", default=get_args(Method), choices=get_args(Method))
    parser.add_argument("--batches", type=int, default=3, help="most batches held out of a set")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--label", default="now", help="of these records")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--leave-out", default="", metavar="A,B,...")
    parser.add_argument("--report", action="store_true", help="of what is on record; run nothing")
    parser.add_argument("--compare", nargs=2, metavar="LABEL")
    options = parser.parse_args()
    if not options.report:
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):  # of the linear algebra under scikit-learn
                measure(options)
        except Interrupted:
            raise SystemExit("stopped: the same command goes on with it") from None
    report({label: recorded(options.out / f"{label}.jsonl") for label in options.compare or [options.label]})


def measure(options: argparse.Namespace) -> None:
    """Run what is not on record."""
    options.out.mkdir(parents=True, exist_ok=True)
    path, shared = options.out / f"{options.label}.jsonl", options.out / "logistic.jsonl"
    changes = asked_changes(options)
    asked = {"trials": options.trials, "changes": changes}
    done, linear = recorded(path), recorded(shared)
    if others := [record for record in done.values() if record["asked"] != asked]:
        raise SystemExit(f"{path} holds searches of {others[0]['asked']}, not {asked}: give another --label")
    for task in tasks(options):
        if not (missing := [method for method in options.methods if (task.set, task.batch, method) not in done]):
            continue
        cells = read(task.source)
        if (key := (task.set, task.batch, "logistic")) not in linear:
            linear[key] = append(shared, dict(zip(KEY, key, strict=True)) | logistic(cells))
        for method in missing:
            record = {"set": task.set, "batch": task.batch, "method": method, "label": options.label, "asked": asked}
            record |= searched(options, task, cells, method, changes) | {"logistic": linear[key]["macro_f1"]}
            append(path, {**record, "commit": git_commit()})
            told = "  ".join(f"{name} {record[name]:.3f}" for name in ("selected", "exported", "preset", "logistic"))
            print(f"{task.set + '/' + task.batch:46}{method:6} {told}  {record['seconds']:.0f} s", flush=True)


def asked_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the study and its space that are not the default: as JSON, or else text."""
    known = {entry.name for kind in (StudySettings, Settings, PreprocessSettings) for entry in fields(kind)}
    changes: dict[str, Any] = {}
    for part in filter(None, options.leave_out.split(",")):
        if part not in PARTS:
            raise SystemExit(f"part {part!r} cannot be taken away: give some of {', '.join(PARTS)}")
        if lacking := PARTS[part].keys() - known:
            print(f"part {part} is not taken away: this commit has no setting {', '.join(lacking)}", flush=True)
        else:
            changes |= PARTS[part]
    for change in options.changes:
        key, _, value = change.partition("=")
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value
    return changes


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """The batches to hold out: the best one of every set, then the second best ones."""
    found = dict(data_sets(options))
    if options.sets:
        if unknown := set(options.sets) - {part for name in found for part in (name, name.split("/")[0])}:
            raise SystemExit(f"there is no set {', '.join(sorted(unknown))}: choose of {', '.join(found)}")
        found = {name: of for name, of in found.items() if {name, name.split("/")[0]} & set(options.sets)}
    for place in range(options.batches):
        yield from (of[place] for of in found.values() if place < len(of))


def data_sets(options: argparse.Namespace) -> Iterator[tuple[str, list[Task]]]:
    """Every data set, and its batches: those with the most cells of types that others hold first."""
    given = json.loads(options.splits.read_text()) if options.splits else None
    for path in sorted(options.data.glob("*.h5ad")):
        adata = read_h5ad(path)
        split = given is not None and given["test_domain"] in set(adata.obs.get(given["batch_key"], ()))
        keys = (given["labels_key"], given["batch_key"]) if split else (options.labels_key, options.batch_key)
        if not {*keys} <= {*adata.obs}:
            print(f"{path} is left out: it lacks {' or '.join(keys)}", flush=True)
            continue
        counts = pd.crosstab(*(adata.obs[key].astype(str) for key in keys))  # (types, batches)
        source = Source(data=path, fields=Fields(*keys))
        if split:
            for name, blocks in given["splits"].items():
                of = {batch: inner(options.out, given, name, batch) for batch in ranked(counts, blocks["keep"])}
                name = f"{path.stem}/{name}"
                yield name, [Task(name, batch, replace(source, split=place)) for batch, place in of.items()]
        else:
            ranks = ranked(counts, {batch: counts.index[counts[batch] > 0] for batch in counts})
            yield path.stem, [Task(path.stem, batch, replace(source, test_batch=batch)) for batch in ranks]


def ranked(counts: pd.DataFrame, keep: Mapping[str, Sequence[str]]) -> list[str]:
    """Batches by the number of their cells whose type another one keeps; none without such a cell."""
    known = {batch: sorted({kind for other in keep if other != batch for kind in keep[other]}) for batch in keep}
    cells = {batch: int(counts.loc[known[batch], batch].sum()) for batch in keep}
    return sorted((batch for batch in keep if cells[batch]), key=lambda batch: (-cells[batch], batch))


def inner(out: Path, given: Mapping[str, Any], name: str, batch: str) -> str:
    """A split with one of its training domains in the place of the test domain, which takes no part, as FILE:NAME."""
    keep = {other: types for other, types in given["splits"][name]["keep"].items() if other != batch}
    keys = {key: given[key] for key in ("labels_key", "batch_key")}
    path = out / "splits" / f"{name}-{slug(batch)}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():  # another process may be reading it
        path.write_text(json.dumps({**keys, "test_domain": batch, "splits": {"inner": {"keep": keep}}}))
    return f"{path}:inner"


def slug(batch: str) -> str:
    """A batch as the name of a folder."""
    return re.sub(r"[^\w.+-]", "_", batch)


def searched(
    options: argparse.Namespace, task: Task, cells: TrainingCells, method: Method, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole search, its export and the preset on the batch held out."""
    own = {entry.name for entry in fields(StudySettings)}
    settings = StudySettings(
        name=f"{task.set}/{slug(task.batch)}/{method}",
        source=task.source,
        method=method,
        space={"hidden": HIDDEN} | {key: value for key, value in changes.items() if key not in own},
        studies=options.out / options.label,
        **{"trials": options.trials, "device": "cpu"} | {key: value for key, value in changes.items() if key in own},
    )
    folder = StudyFolder(settings.folder)
    clock = folder.path / "seconds"  # of a search that was stopped, those before too
    before, start = float(clock.read_text()) if clock.exists() else 0.0, time.process_time()
    try:
        (summary,) = run(settings, track=False)
    finally:
        if folder.exists:
            clock.write_text(str(before + time.process_time() - start))
    test = summary.final.test.macro_f1
    adata = read_h5ad(task.source.data)[cells.split.test].copy()
    exported = SCDGN.load(folder.model).predict(adata)
    sealed, start = seal(cells, settings.max_folds, False), time.process_time()
    seeds = range(settings.seed + FIRST_SEED, settings.seed + FIRST_SEED + settings.final_seeds)
    base = preset("default", method)
    bundle = fit(sealed.dataset, sealed.rows, base, INPUT_PRESETS["default"], seeds, device=settings.device)
    codes = bundle.probabilities(bundle.input(sealed.test)).argmax(axis=1)
    return {
        "selected": summary.winner.score,
        "one seed": test.mean,
        "ensemble": test.ensemble,
        "exported": scored(cells, exported),
        "exported plain": summary.model.test.plain.macro_f1,
        "preset": scored(cells, np.array(bundle.cell_types)[codes]),
        "preset seconds": round(time.process_time() - start, 1),
        "seconds": round(float(clock.read_text()), 1),
    }


def logistic(cells: TrainingCells) -> dict[str, Any]:
    """Logistic regression on log-normalised values, tuned by the folds of a search (training cells without a fold)."""
    start = time.process_time()
    sealed = seal(cells, StudySettings.max_folds, False)
    dataset, test = log_normalized(sealed.dataset), log_normalized(sealed.test)
    units = [(fold.train, fold.scored) for fold in sealed.folds] or [
        stratified_validation(dataset.labels, sealed.rows, VALIDATED, 0, batches=dataset.batches)
    ]

    def trained(c: float, rows: NDArray[np.int64]) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=1000).fit(dataset.x[rows], dataset.labels[rows])

    scores = {
        c: np.mean([macro_f1(dataset.labels[rest], trained(c, rows).predict(dataset.x[rest])) for rows, rest in units])
        for c in GRID
    }
    best = max(scores, key=lambda c: (scores[c], -c))
    predicted = np.array(dataset.cell_types)[trained(best, sealed.rows).predict(test.x)]
    seconds = round(time.process_time() - start, 1)
    return {"macro_f1": scored(cells, predicted), "selected": float(scores[best]), "C": best, "seconds": seconds}


def scored(cells: TrainingCells, predicted: NDArray[Any]) -> float:
    """Macro-F1 of the types predicted for the test cells, over those that can be scored."""
    split, types = cells.split, cells.dataset.cell_types
    codes = np.array([types.index(name) for name in predicted[np.isin(split.test, split.scored)]])
    return macro_f1(cells.dataset.labels[split.scored], codes)


def recorded(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Records by set, batch and method; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(record[key] for key in KEY): record for record in map(json.loads, lines)}


def append(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Keep a record, and give it back."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def report(records: Mapping[str, Mapping[tuple[str, ...], dict[str, Any]]]) -> None:
    """All tables, of one label or of two."""
    if empty := [label for label, found in records.items() if not found]:
        raise SystemExit(f"nothing is on record of {', '.join(empty)}")
    tables = {label: pd.DataFrame(found.values()).set_index(list(KEY)) for label, found in records.items()}
    first, *others = tables
    for other in others:
        shared = tables[first].index.intersection(tables[other].index)
        both = {label: tables[label].loc[shared] for label in (first, other)}
        exported = {label: table["exported"] for label, table in both.items()}
        show(f"exported models, {other} against {first}", exported, exported[other] - exported[first])
        spent = [table["seconds"].sum() for table in both.values()]
        print(f"seconds of these: {spent[0]:,.0f} and {spent[1]:,.0f}")
    for label, table in tables.items():
        table["preset"] = tables[first]["preset"].reindex(table.index).fillna(table["preset"])
        columns = {name: table[name] for name in ("selected", "one seed", "ensemble", "exported", "preset", "logistic")}
        best = table[["preset", "logistic"]].max(axis=1)
        show(f"{label}: exported models against the best of preset and logistic", columns, table["exported"] - best)
        method = table.index.get_level_values("method")
        nn = table["exported"][method == "nn"].droplevel("method")
        to_nn = table["exported"] - nn.reindex(table.index.droplevel("method")).to_numpy()
        to_nn = to_nn[(method != "nn") & to_nn.notna()]
        if len(to_nn):
            show(f"{label}: exported models against nn's", {"exported": table["exported"].loc[to_nn.index]}, to_nn)
        seconds = table.groupby("method")["seconds"].agg(["size", "sum"])
        told = ", ".join(f"{row['sum']:,.0f} of {row['size']:.0f} {name}" for name, row in seconds.iterrows())
        presets = table["preset seconds"].sum()
        print(f"\n{label}: {table['seconds'].sum():,.0f} seconds of searches ({told}), {presets:,.0f} of presets")


def show(title: str, columns: Mapping[str, pd.Series], gain: pd.Series) -> None:
    """A row for each set and method, each method, and all: means with standard errors; the worst gain; those too low.

    Parameters
    ----------
    title
        What is compared.
    columns, gain
        By set, batch and method: what is shown, and the difference that the last columns are about.
    """
    sets, methods = (gain.index.get_level_values(key).to_numpy() for key in ("set", "method"))
    order = [method for method in get_args(Method) if method in methods]
    rows = {(name, method): (sets == name) & (methods == method) for name in sorted({*sets}) for method in order}
    rows |= {("all", method): methods == method for method in order} | {("all", "all"): methods != ""}
    width = max(map(len, sets)) + 2
    heads = "".join(f"{name[:12]:>13}" for name in columns)
    print(f"\n{title}\n{'set':{width}}{'method':7}{'n':>4}{heads}{'difference':>14}{'worst':>8}{f'< {MARGIN}':>9}")
    for (name, method), row in rows.items():
        if row.any():
            means = "".join(f"{mean(values[row]):>13}" for values in columns.values())
            lost = f"{mean(gain[row], '+'):>14}{gain[row].min():+8.3f}{(gain[row] < MARGIN).sum():9}"
            print(f"{name:{width}}{method:7}{row.sum():4}{means}{lost}", flush=True)


def mean(values: pd.Series, sign: str = "") -> str:
    """The mean, and its standard error over the batches held out where there are several: methods count as one."""
    batches = values.groupby(["set", "batch"]).mean()
    error = f"±{batches.sem():.3f}" if len(batches) > 1 else " " * 6
    return f"{values.mean():{sign}.3f}{error}"


if __name__ == "__main__":
    main()

"""`--protocol seed-best-of-10`: what the write-up behind this project called best of ten.

Ten trainings with random margin and lambda; the best test accuracy is taken. The test labels choose, so the number is
an oracle's: it says what ten draws can reach, not what a user would get. It is here for comparison with that table
alone; nothing of it is exported or registered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import optuna
from numpy.typing import NDArray

from scdgn.cells.preprocess import fit
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.config import Precision, Settings
from scdgn.core.metrics import Scores, score
from scdgn.core.pack.members import Member
from scdgn.core.training import Callback, train
from scdgn.errors import DataError
from scdgn.model.evaluate import REPORTED
from scdgn.model.fitting import find_device, training_cells
from scdgn.search.stages.exporting import where_it_trains
from scdgn.search.stages.finalists import FIRST_SEED, write_csv
from scdgn.search.stages.identity import identify
from scdgn.search.stages.job import Job
from scdgn.search.stages.summary import what_is_common
from scdgn.search.study.space import Space
from scdgn.search.study.study import quiet
from scdgn.search.summary import Draw, ModelScores, OracleSummary
from scdgn.search.trials.cells import SearchCells, test_labels

RUNS = 10
DRAWN = ("margin", "lambda_max")


def best_of_ten(job: Job) -> OracleSummary:
    """Train ten draws as one pack on all training cells and score each on the test cells; the summary.

    Raises
    ------
    DataError
        If no test cell can be scored, or every training fails.
    """
    identify(job)
    space = job.space
    labels, scored = test_labels(job.cells, job.sealed.dataset.cell_types)
    if not scored.any():
        raise DataError("seed-best-of-10 takes the best on test cells, and none can be scored: hold a batch out")
    draws = {job.settings.seed + FIRST_SEED + number: _draw(space, job.settings.seed, number) for number in range(RUNS)}
    job.watch.stage(f"training {RUNS} draws of margin and lambda")
    started = time.time()
    outcomes = where_it_trains(
        job,
        train_draws,
        job.sealed,
        draws,
        space.settings({})[1],
        np.flatnonzero(scored),
        job.settings.device,
        precision=job.settings.precision,
    )
    ended = time.time()
    runs = []
    for (seed, settings), outcome in zip(draws.items(), outcomes, strict=True):
        if isinstance(outcome, str):
            job.watch.note(f"the training of seed {seed} failed: {outcome}")
        else:
            runs.append(_scored(seed, settings, score(labels[scored], outcome)))
    if not runs:
        raise DataError("all ten trainings failed: lower lr with --set lr=...")
    columns = ("seed", *DRAWN, *REPORTED)
    write_csv(job.folder.finalists, columns, [[getattr(run, name) for name in columns] for run in runs])
    summary = OracleSummary(
        **what_is_common(job),
        transductive=False,
        trained=(started, ended),
        runs=tuple(runs),
        best_oracle=max(runs, key=lambda run: run.accuracy),
        mean=ModelScores(**{key: float(np.mean([run.of(key) for run in runs])) for key in REPORTED}),
    )
    job.folder.write_summary(summary)
    job.watch.done(job.folder, summary)
    return summary


def train_draws(
    cells: SearchCells,
    draws: Mapping[int, Settings],
    preprocess: PreprocessSettings,
    predicted: NDArray[np.int64],
    device: str,
    on_epoch: Callback | None = None,
    precision: Precision = "tf32",
) -> list[NDArray[np.float32] | str]:
    """Train the draws, by seed, as one pack on all training cells.

    Returns
    -------
    Of each its probabilities for the test cells `predicted`, (cells, types); or why it failed.
    """
    dataset, target = cells.dataset, find_device(device)
    assert cells.test is not None
    preprocessing = fit(dataset, cells.rows, preprocess)
    hidden = next(iter(draws.values())).hidden
    training, _ = training_cells(preprocessing, dataset, cells.rows, (), target, hidden)

    members = [Member(settings, training, seed) for seed, settings in draws.items()]
    outcomes = train(members, target, on_epoch, precision=precision)
    x = preprocessing.expression(cells.test, predicted).to(target)
    return [
        outcome.reason if outcome.model is None else outcome.model.probabilities(x).cpu().numpy()
        for outcome in outcomes
    ]


def _draw(space: Space, seed: int, number: int) -> Settings:
    """The preset, with the user's fixed values, and margin and lambda drawn from the space."""
    with quiet():
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed + number)).ask()
    drawn = space.suggest(trial)
    kept = {name: value for name, value in drawn.items() if name in DRAWN or space.is_fixed(name)}
    return space.settings(kept)[0]


def _scored(seed: int, settings: Settings, scores: Scores) -> Draw:
    drawn = {name: float(getattr(settings, name)) for name in DRAWN}
    return Draw(seed=seed, **drawn, **{key: float(getattr(scores, key)) for key in REPORTED})

"""The best trials scored again, with seeds that are new to them; and how packs of trials are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from scdgn.errors import count
from scdgn.search.choices import Selection
from scdgn.search.left_out import LeftOut, read
from scdgn.search.records import Confirmation, Proposal, TrialRecord, settings_of
from scdgn.search.stages import selection
from scdgn.search.stages.job import Job
from scdgn.search.stages.owners import Again, Watched
from scdgn.search.study.settings import AGAIN, StudySettings
from scdgn.search.study.space import Choice, Fixed, Real, Space, Whole
from scdgn.search.study.study import Study
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.inputs import OwnInputs
from scdgn.search.trials.objective import Work

CONFIRMING_SEED = 50
"""Seeds of the second scoring start this far from the study's."""

SMALL = 128
"""Widest hidden layer of a space whose trials are worth packing on a CPU."""


@dataclass(frozen=True, eq=False)
class ScoredAgain:
    """What the second scoring of some trials, with seeds that are new to them, says by trial: scores, the best of which
    choose the winner, and what its models say of the cells left out.
    """

    confirmed: Mapping[int, Confirmation]
    left_out: Mapping[int, Sequence[LeftOut]]


def confirm(job: Job, study: Study, selected_by: Selection, records: Sequence[TrialRecord]) -> ScoredAgain:
    """Score the best trials again with seeds that are new to them.

    The seed alone moves a score as far as the settings of good trials do, so that the best score of a search is as much
    luck as merit. The preset and the portfolio, where they were among the trials, are so again: a sampler makes its
    best trials alike, and these keep the ensemble various. What is known from before is not computed again.
    """
    settings, types = job.settings, job.sealed.dataset.cell_types
    unscored = [types[code] for code in job.sealed.unscored_types]
    ranked = selection.ranked(records, selected_by, settings.metric, unscored)
    origin = {record.number: record.origin for record in records}
    # They come from other data, and need no luck in this search to be worth another look.
    known = ("preset", "portfolio")
    best = [number for place, number in enumerate(ranked) if place < settings.confirm or origin[number] in known]
    if not settings.confirm:
        return ScoredAgain({}, {})
    return score_again(job, study, records, best)


def score_again(job: Job, study: Study, records: Sequence[TrialRecord], numbers: Collection[int]) -> ScoredAgain:
    """Train these trials with other seeds, and predict what is left out; trials that fail then are not among them."""
    settings = job.settings
    left_out = {number: read(job.folder.left_out(number)) for number in numbers}
    done = study.confirmed()
    missing = [
        record
        for record in records
        if record.number in numbers
        # A trial that failed then has nothing to keep.
        and (record.number not in done or (done[record.number] is not None and left_out[record.number] is None))
    ]
    if missing:
        which, seeds = count(len(missing), "trial"), count(settings.confirm_seeds, "other seed")
        inputs = confirming(settings, job.sealed)
        job.watch.stage(f"scoring {which} again with {seeds}", len(missing) * inputs.trained)
        proposals = [Proposal(record.number, *settings_of(record)) for record in missing]
        again = Again(proposals, settings.metric, study, job.folder, job.lease, job.watch, job.noted)
        if not run_trials(job, again, inputs, lambda: False):
            job.stop_if_asked()
        left_out |= {record.number: read(job.folder.left_out(record.number)) for record in missing}
    confirmed = {number: kept for number, kept in study.confirmed().items() if number in numbers and kept is not None}
    return ScoredAgain(confirmed, {number: parts for number in confirmed if (parts := left_out[number]) is not None})


def confirming(settings: StudySettings, sealed: SearchCells) -> OwnInputs:
    """What the best trials are scored again on: other seeds, more cells, and all cells left out predicted."""
    seed, most = settings.seed + CONFIRMING_SEED, AGAIN * settings.most_cells
    return OwnInputs(sealed, settings.selection, seed, settings.confirm_seeds, whole=True, most=most)


def run_trials(job: Job, trials: Watched, inputs: OwnInputs, enough: Callable[[], bool]) -> bool:
    """Run trials until there is none left; see `Engine.run`."""
    checkpoints = checkpoints_of(job, inputs)
    work = Work(inputs, job.settings.metric, job.settings.precision, checkpoints)
    done = job.engine.run(trials, work, pack_of(job), enough, job.halting)
    if done:  # those of packs that went on in part, or divided
        checkpoints.remove(range(job.settings.trials))
    return done


def checkpoints_of(job: Job, inputs: OwnInputs) -> Checkpoints:
    """Where packs that are cut off are kept."""
    settings = job.settings
    identity = {
        "study": job.folder.read_settings()["record"]["id"],
        "inputs": [inputs.selection, inputs.seed, inputs.models],
        "precision": settings.precision,
        "torch": torch.__version__,
    }
    place = settings.checkpoints or str(job.folder.checkpoints.absolute())
    return Checkpoints(place, settings.checkpoint_every, json.dumps(identity))


def pack_of(job: Job) -> int:
    """Trials per pack."""
    return job.settings.pack or default_pack(job.space, job.engine.kind)


def default_pack(space: Space, kind: str) -> int:
    """Trials per pack: many on a GPU; on a CPU several where all networks are small, since wide ones gain nothing."""
    if kind == "cuda":
        return 16
    match space.dimensions()["hidden"] if "hidden" in space.dimensions() else Fixed(space.base.hidden):
        case Whole(high=widest) | Real(high=widest) | Fixed(value=widest):
            pass
        case Choice(values):
            widest = max(int(value) for value in values)
    return 4 if float(widest) <= SMALL else 1

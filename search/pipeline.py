"""One study through all its stages: search, final seeds, one evaluation, export."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import scdgn
from scdgn.annotate import annotate
from scdgn.bundle import Bundle
from scdgn.config import UNLABELED, Settings
from scdgn.data import Dataset, batches_of_cells, check_trainable, from_anndata, write_h5ad
from scdgn.errors import DataError, SettingsError, TrainingError, count
from scdgn.evaluate import Evaluation
from scdgn.files import new_file
from scdgn.fitting import find_device, fit
from scdgn.formats import is_file
from scdgn.metrics import mutual_information
from scdgn.preprocess import PreprocessSettings
from scdgn.query import fields_for
from scdgn.rejection import KEPT, Calibration
from scdgn.search import committee, selection
from scdgn.search.amount import amount_of
from scdgn.search.calibration import FOLDS, SET_ASIDE, attach, calibrate, on_test, predict_left_out
from scdgn.search.calibration import summarize as describe_calibration
from scdgn.search.cells import SearchCells
from scdgn.search.checkpoints import Checkpoints
from scdgn.search.engines import Engine, Result
from scdgn.search.finalists import Finalists, summarize, test_export, test_finalists, train_finalists, write_table
from scdgn.search.folder import Lease, StudyFolder
from scdgn.search.inputs import ALL_DOMAINS, VALIDATED, OwnInputs
from scdgn.search.left_out import LeftOut, read, together, write
from scdgn.search.objective import Stopped, Work
from scdgn.search.owners import Again, Told
from scdgn.search.records import FINISHED, Confirmation, Proposal, TrialRecord
from scdgn.search.settings import AGAIN, CONTINUABLE, Selection, StudySettings, from_document, to_document
from scdgn.search.space import Choice, Fixed, Real, Space, Whole
from scdgn.search.study import Study, check, read_predictions, read_records
from scdgn.search.watching import Begun, Watcher
from scdgn.sources import TrainingCells, query_cells
from scdgn.training import Report
from scdgn.values import of_batches

CONFIRMING_SEED = 50
"""Seeds of the second scoring start this far from the study's."""

WORTH_SAYING = 1.02
"""Padding from which it is told."""

SMALL = 128
"""Widest hidden layer of a space whose trials are worth packing on a CPU."""


class Interrupted(Exception):
    """The study was stopped on request; the same command goes on with it."""


@dataclass(frozen=True, eq=False)
class Job:
    """A study and what it works on.

    Attributes
    ----------
    settings, folder, cells
        What was asked, where it is kept, and all cells with their labels.
    sealed
        What the search may look at.
    lease
        The right to write.
    watch
        Told of what happens.
    stopping
        Asked again and again; True stops the study.
    engine
        What trains.
    notes
        What `validate` had to say.
    noted
        What was said, in other studies of the command too, and is not said again.
    """

    settings: StudySettings
    folder: StudyFolder
    cells: TrainingCells
    sealed: SearchCells
    lease: Lease
    watch: Watcher
    stopping: Callable[[], bool]
    engine: Engine
    notes: Sequence[str] = ()
    noted: set[str] = field(default_factory=set)

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.settings.spaces()[0]

    @property
    def by_folds(self) -> bool:
        """Whether domains left out choose, and not cells set aside of all of them."""
        return bool(self.sealed.folds) and self.settings.selection == "leave-one-domain-out"

    def test_labels(self) -> tuple[Dataset | None, NDArray[np.int64], NDArray[np.bool_]]:
        """The test cells with their types in the search's codes, and which of them can be scored: the seal is broken.

        Called where nothing is chosen any more.
        """
        names, types = self.cells.dataset.cell_types, self.sealed.dataset.cell_types
        code = np.array([types.index(name) if name in types else UNLABELED for name in names])
        split = self.cells.split
        scored: NDArray[np.bool_] = np.isin(split.test, split.scored)
        labels = np.where(scored, code[self.cells.dataset.labels[split.test]], UNLABELED)
        return self.sealed.test, labels, scored

    def note(self, text: str) -> None:
        """Tell the user, once."""
        if text not in self.noted:
            self.noted.add(text)
            self.watch.note(text)

    def halting(self) -> bool:
        """Whether what trains is to be cut off."""
        return self.stopping() or self.lease.lost

    def stop_if_asked(self, _: Report | None = None) -> None:
        """Stop, if that was asked for.

        Raises
        ------
        Interrupted
            If it was.
        LeaseError
            If another process took the study over, which thought this one dead.
        """
        self.lease.check()
        if self.stopping():
            raise Interrupted


def validate(settings: StudySettings, sealed: SearchCells) -> list[str]:
    """Refuse, before anything is written, what could not be run; else what is to be said about the space.

    Raises
    ------
    SettingsError, DataError, DeviceError
        If the settings ask for what is not there, or the cells do not allow it.
    """
    if settings.engine == "local":
        find_device(settings.device)
    check_trainable(sealed.dataset, sealed.rows, settings.method, _joining(sealed))
    space = settings.spaces()[0]
    notes = check(settings, space)
    if settings.checkpoints is not None:
        Checkpoints(settings.checkpoints, settings.checkpoint_every, "").check()
    if settings.protocol != "search":
        if settings.method == "nn":
            raise SettingsError(
                f"{settings.protocol} draws margin and lambda, and nn has none: choose another --method"
            )
        if sealed.test is None:
            raise DataError(f"{settings.protocol} takes the best on test cells: hold a batch out with --test-batch")
    if space.left_out:
        notes.append(f"{space.method} does not use {', '.join(space.left_out)}: left out of the space")
    return notes


def run_study(job: Job) -> dict[str, Any]:
    """All stages of one study; the summary that is also in its summary.json.

    Raises
    ------
    SettingsError
        If the study was begun with other settings or on other data.
    TrainingError
        If no trial completed.
    Interrupted
        If it was stopped.
    """
    identify(job)
    settings = job.settings
    inputs = OwnInputs(job.sealed, settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells)
    study = Study(job.folder, job.settings, job.space)
    study.enqueue()
    records = study.records()
    for note in [*job.notes, *fold_notes(settings, job.sealed, inputs.selection)]:
        job.note(note)
    amount = amount_of(settings, inputs, confirming(settings, job.sealed))
    job.watch.begun(Begun(job.folder, settings, job.sealed, inputs.models, inputs.selection, records, amount))
    start = time.monotonic()
    timeout = settings.timeout

    def enough() -> bool:
        job.stop_if_asked()
        return 0 < timeout < time.monotonic() - start

    left = settings.trials - sum(record.state in FINISHED for record in records)
    told = Told(study, job.folder, job.lease, job.watch, job.noted)
    if left > 0 and not _train(job, told, inputs, enough):
        job.stop_if_asked()
        job.watch.note("the time is up: the winner is chosen among the trials that are done")
    records = study.records()
    done = job.folder.read_summary()
    if done is not None and done["asked"] == _asked(job.settings, records):
        job.watch.done(job.folder, done)
        return done
    if (wasted := padding(records)) >= WORTH_SAYING:
        job.watch.note(f"networks of unequal size were padded to train together: {wasted - 1:.0%} more arithmetic")
    return finish(job, study, inputs.selection, records)


def padding(records: Sequence[TrialRecord]) -> float:
    """Arithmetic of all trials against what their models alone would have taken, weighted by the trials' times."""
    seconds = sum(record.seconds for record in records)
    return sum(record.padding * record.seconds for record in records) / seconds if seconds else 1.0


@dataclass(frozen=True, eq=False)
class ScoredAgain:
    """What the second scoring of some trials, with seeds that are new to them, says.

    Attributes
    ----------
    confirmed
        Scores by trial; the best of them choose the winner.
    left_out
        By trial, what its models say of the cells left out.
    """

    confirmed: Mapping[int, Confirmation]
    left_out: Mapping[int, Sequence[LeftOut]]


def confirm(job: Job, study: Study, selected_by: Selection, records: Sequence[TrialRecord]) -> ScoredAgain:
    """Score the best trials again with seeds that are new to them.

    The seed alone moves a score as far as the settings of good trials do, so that the best score of a search is as much
    luck as merit. The preset, where it was one of the trials, is always among them. What is known from before is not
    computed again.
    """
    settings, types = job.settings, job.sealed.dataset.cell_types
    unscored = [types[code] for code in job.sealed.unscored_types]
    ranked = selection.ranked(records, selected_by, settings.metric, unscored)
    origin = {record.number: record.origin for record in records}
    # The preset comes from other data, and needs no luck in this search to be worth another look.
    best = [number for place, number in enumerate(ranked) if place < settings.confirm or origin[number] == "preset"]
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
        if not _train(job, again, inputs, lambda: False):
            job.stop_if_asked()
        left_out |= {record.number: read(job.folder.left_out(record.number)) for record in missing}
    confirmed = {number: kept for number, kept in study.confirmed().items() if number in numbers and kept is not None}
    return ScoredAgain(confirmed, {number: parts for number in confirmed if (parts := left_out[number]) is not None})


def confirming(settings: StudySettings, sealed: SearchCells) -> OwnInputs:
    """What the best trials are scored again on: other seeds, more cells, and all cells left out predicted."""
    seed, most = settings.seed + CONFIRMING_SEED, AGAIN * settings.most_cells
    return OwnInputs(sealed, settings.selection, seed, settings.confirm_seeds, whole=True, most=most)


def _train(job: Job, trials: Told, inputs: OwnInputs, enough: Callable[[], bool]) -> bool:
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


def _joining(sealed: SearchCells) -> set[str]:
    return {query.batch_names[code] for query in sealed.unlabeled for code in np.unique(query.batches)}


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


def fold_notes(settings: StudySettings, sealed: SearchCells, selected_by: str) -> list[str]:
    """What the user should know of the folds."""
    notes = []
    if sealed.test is None:
        notes.append("no batch is held out (--test-batch): the folds say how good the model may be on a new one")
    if settings.selection == "leave-one-domain-out" and selected_by == "training-domain":
        domains = len(np.unique(sealed.dataset.batches))
        notes.append(
            f"the training cells have {count(domains, 'domain')} and make no fold that trains on two "
            "others and shares a type with them: trials are selected on cells set aside of all training domains"
        )
    if settings.most_cells and len(sealed.dataset) > settings.most_cells:
        notes.append(
            f"a model of a trial trains on {settings.most_cells:,} cells at most, rare types whole, and on {AGAIN} "
            "times as many when the best are scored again (--search-cells); what is exported trains on all"
        )
    types = sealed.dataset.cell_types
    for fold in sealed.folds:
        if fold.unseen_types:
            unseen = ", ".join(types[code] for code in fold.unseen_types)
            scored, cells = f"{len(fold.scored):,}", f"{len(fold.held_out):,}"
            notes.append(f"fold {fold.name} scores {scored} of its {cells} cells; not trained there: {unseen}")
    if sealed.unscored_types:
        unscored = ", ".join(types[code] for code in sealed.unscored_types)
        notes.append(f"no fold scores {unscored}: a winner must know them on cells set aside of all domains")
    return notes


def finish(job: Job, study: Study, selected_by: Selection, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """From the trials to the exported model and the summary."""
    settings, sealed = job.settings, job.sealed
    again = confirm(job, study, selected_by, records)
    winners = _winners(job, selected_by, records, again)
    winner = winners[selected_by]
    by_number = {record.number: record for record in records}
    model_settings, preprocess = settings_of(by_number[winner.number])
    left_out = again.left_out
    if winner.number not in left_out:  # nothing was scored again to choose by
        left_out = score_again(job, study, records, [winner.number]).left_out
    adapted = _adapted(job, winner.number, settings_of(by_number[winner.number]), left_out)
    export = _choose(job, winner.number, left_out, adapted)
    job.stop_if_asked()
    seeds = count(settings.final_seeds, "seed")
    amount = (2 - VALIDATED) * settings.final_seeds * len(sealed.rows)  # they and their twins
    job.watch.stage(f"training {seeds} of trial {winner.number}", amount)
    started = time.time()
    finalists = _where_it_trains(
        job,
        train_finalists,
        sealed,
        model_settings,
        preprocess,
        settings.metric,
        settings.seed,
        settings.final_seeds,
        settings.device,
        precision=settings.precision,
        adapts=export.adapts,
    )
    trained = (started, time.time())
    job.stop_if_asked()
    bundle = _built(job, export, finalists, by_number)
    job.stop_if_asked()
    # Here the labels of the test cells are opened, and nothing is chosen after it.
    test = test_finalists(finalists, job.cells, settings.device) if len(job.cells.split.test) else None
    write_table(job.folder.finalists, finalists, test)
    summary = _summarize(job, selected_by, records, again.confirmed, list(winners.values()), finalists, test)
    summary["trained"] = trained
    summary["transductive"] = bundle.provenance["transductive"]
    summary["adapted"] = export.adapts if settings.source.adapt else None
    summary["winner"]["shrunk"] = export.shrunk
    summary["calibration"] = export.calibrated
    summary["model"] = _describe_model(job, export, bundle)
    if not settings.refit_all:  # which trains on the test cells
        summary["calibration"]["test"] = on_test(bundle, job.cells)
    job.watch.stage("exporting the model")
    told = {
        "fields": job.cells.fields.to_mapping(),
        "record": _record_of(summary),
        "fewer_genes": finalists.fewer_genes,
    }
    bundle = replace(bundle, provenance={**bundle.provenance, **told})
    bundle.save(job.folder.model, overwrite=True)
    summary["annotated"] = _annotate(job, bundle)
    job.folder.write_summary(summary)
    job.watch.done(job.folder, summary)
    return summary


def _winners(
    job: Job, selected_by: str, records: Sequence[TrialRecord], again: ScoredAgain
) -> dict[str, selection.Winner]:
    """The trial that each protocol selects, by protocol.

    Raises
    ------
    TrainingError
        If there is none by the protocol that chooses.
    """
    metric, sealed = job.settings.metric, job.sealed
    unscored = [sealed.dataset.cell_types[code] for code in sealed.unscored_types]
    folds = selected_by == "leave-one-domain-out"
    scores = {number: kept.score for number, kept in again.confirmed.items()}
    winners = {
        winner.protocol: winner
        for winner in (
            selection.leave_one_domain_out(records, metric, unscored, scores if folds else None),
            selection.training_domain(records, metric, None if folds else scores),
        )
        if winner is not None
    }
    if selected_by not in winners:
        reasons = Counter(record.reason for record in records if record.reason)
        why = f"; the most frequent reason: {reasons.most_common(1)[0][0]}" if reasons else ""
        raise TrainingError(f"none of the {len(records)} trials completed{why}: run more --trials, or change the space")
    presets = [
        record.number
        for record in records
        if record.origin == "preset" and record.number in again.left_out and not selection.fails(record, unscored)
    ]
    if presets and winners[selected_by].number in again.left_out:
        by_seed = {number: committee.scores_by_seed(parts, metric) for number, parts in again.left_out.items()}
        winners[selected_by] = committee.unless_clearly_better(winners[selected_by], presets[0], by_seed)
    return winners


@dataclass(frozen=True, eq=False)
class Export:
    """What is to be exported, as the cells left out chose it.

    Attributes
    ----------
    models
        How many of each trial, the winner's first.
    score
        Of the ensemble on the cells left out, as it predicts.
    shrunk
        What the winner's own score would be on average; None where nothing tells the noise.
    correction, adaptation
        What correcting the input does to the score, and what adapting does to the winner's.
    corrects, adapts
        Whether prediction corrects its input by default, and whether the models adapt to the cells without a label.
    calibration, calibrated
        How sure the model may be, and what is to be told of it.
    """

    models: Mapping[int, int]
    score: float | None
    shrunk: float | None
    correction: committee.Change
    adaptation: committee.Change
    corrects: bool
    adapts: bool
    calibration: Calibration
    calibrated: dict[str, Any]


def _adapted(
    job: Job, winner: int, chosen: tuple[Settings, PreprocessSettings], left_out: Mapping[int, Sequence[LeftOut]]
) -> Sequence[LeftOut]:
    """What the winner says of the domains left out once it has adapted to them; nothing where it is not to adapt."""
    settings = job.settings
    if not job.sealed.unlabeled or winner not in left_out or not job.by_folds:
        return ()
    path = job.folder.adapted(winner)
    if (known := read(path)) is not None:
        return known
    inputs = confirming(settings, job.sealed)
    job.watch.stage(f"adapting trial {winner} to each domain left out", inputs.trained)
    units = [unit for unit in inputs.units if unit.name != ALL_DOMAINS]
    found: list[LeftOut] = _where_it_trains(
        job, predict_left_out, job.sealed, units, *chosen, settings.device, precision=settings.precision, adapting=True
    )
    write(path, found)
    return found


def _choose(job: Job, winner: int, left_out: Mapping[int, Sequence[LeftOut]], adapted: Sequence[LeftOut]) -> Export:
    """The trials that are exported together, whether they adapt or correct, and how sure they may be."""
    settings = job.settings
    size = 1 if settings.single else settings.final_seeds
    models = {winner: size}
    nothing = committee.Change(False)
    if winner not in left_out:  # it failed with every other seed
        calibration = Calibration()
        return Export(models, None, None, nothing, nothing, False, False, calibration, calibration.to_json())
    if settings.ensemble and not settings.single:
        models = committee.members(left_out, winner, size, settings.metric)
    parts = together(left_out, models)
    correction = committee.correction(parts, settings.metric)
    corrects = {"auto": correction.harmless, "always": True, "never": False}[settings.correct]
    adaptation = committee.change([part.as_predicted(corrects) for part in left_out[winner]], adapted, settings.metric)
    # Without domains left out nothing speaks against what was asked for.
    adapts = bool(job.sealed.unlabeled) and (adaptation.harmless or not job.by_folds)
    if adapts:  # the models know the query, corrected or not
        corrects, parts = False, list(adapted) or parts
    predicted = [part.as_predicted(corrects) for part in parts]
    shrunk = committee.shrunk(
        {number: committee.scores_by_seed(trial, settings.metric) for number, trial in left_out.items()}
    )
    calibration = calibrate(predicted, settings.single, FOLDS if job.sealed.folds else SET_ASIDE)
    return Export(
        models=models,
        score=float(np.mean(committee.scores(predicted, settings.metric))),
        shrunk=shrunk[winner],
        correction=correction,
        adaptation=adaptation,
        corrects=corrects,
        adapts=adapts,
        calibration=calibration,
        calibrated=describe_calibration(calibration, predicted, settings.single),
    )


def _where_it_trains(job: Job, train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function that trains, where there is a device for it; it ends early when the study is stopped."""
    try:
        return job.engine.call(job.halting, train, *args, **kwargs)
    except Stopped:
        job.stop_if_asked()
        raise


def _summarize(
    job: Job,
    selected_by: str,
    records: Sequence[TrialRecord],
    confirmed: Mapping[int, Confirmation],
    winners: Sequence[selection.Winner],
    finalists: Finalists,
    test: Evaluation | None,
) -> dict[str, Any]:
    """What came out, JSON-safe, but for the model."""
    settings, sealed = job.settings, job.sealed
    winner = next(one for one in winners if one.protocol == selected_by)
    record = next(record for record in records if record.number == winner.number)
    unscored = [sealed.dataset.cell_types[code] for code in sealed.unscored_types]
    oracle_scores = _test_scores(job, records)
    best = selection.oracle(oracle_scores)
    first_folds = {name: float(getattr(fold, settings.metric)) for name, fold in record.folds.items()}
    recalls = record.training_domain.recall if record.training_domain is not None else {}
    return {
        "study": settings.name,
        "id": job.folder.read_settings()["record"]["id"],
        "asked": _asked(settings, records),
        "method": settings.method,
        "protocol": settings.protocol,
        "selection": selected_by,
        "metric": settings.metric,
        "adapt": settings.source.adapt,
        "data": data_of(job),
        "folds": [
            {
                "name": fold.name,
                "scored_cells": len(fold.scored),
                "coverage": fold.coverage,
                "unseen_types": [sealed.dataset.cell_types[code] for code in fold.unseen_types],
            }
            for fold in sealed.folds
        ],
        "unscored_types": unscored,
        "trials": dict(Counter(record.state for record in records)),
        "padding": round(padding(records), 4),
        "winner": {
            "number": winner.number,
            "score": winner.score,
            "first_score": record.value,
            "note": winner.note,
            "settings": dict(record.settings),
            "folds": dict(confirmed[winner.number].folds if winner.number in confirmed else first_folds),
            "training_domain": float(getattr(record.training_domain, settings.metric)),
            "unscored_recall": {name: recall for name, recall in recalls.items() if name in unscored},
        },
        "confirmed": {str(number): asdict(kept) for number, kept in confirmed.items()},
        "protocols": [
            {
                "protocol": one.protocol,
                "trial": one.number,
                "score": one.score,
                "test": oracle_scores.get(one.number),
                "note": one.note,
            }
            for one in (*winners, *([best] if best is not None else []))
        ],
        "final": summarize(finalists, test, settings.metric),
        "registered": None,
    }


def settings_of(record: TrialRecord) -> tuple[Settings, PreprocessSettings]:
    """The settings of a trial."""
    model = {name: value for name, value in record.settings.items() if name in Settings.__dataclass_fields__}
    prepare = {name: value for name, value in record.settings.items() if name not in model}
    return Settings.from_mapping(model), PreprocessSettings.from_mapping(prepare)


def _test_scores(job: Job, records: Sequence[TrialRecord]) -> dict[int, float]:
    """Scores of the stored predictions of all trials, now that the labels are open."""
    _, labels, scored = job.test_labels()
    if not scored.any():
        return {}
    return selection.score_test(read_predictions(job.folder, records), labels, scored, job.settings.metric)


def _built(job: Job, export: Export, finalists: Finalists, records: Mapping[int, TrialRecord]) -> Bundle:
    """The bundle to export: the finalists that take part, with models of the other trials; or all of them trained again
    on all labelled cells; calibrated."""
    settings, cells = job.settings, job.cells
    dataset, rows, query = job.sealed.dataset, job.sealed.rows, job.sealed.unlabeled if export.adapts else ()
    if settings.refit_all:
        dataset, rows = cells.dataset, np.flatnonzero(cells.dataset.labels != UNLABELED)
        query = cells.unlabeled if settings.source.query is not None and export.adapts else ()
        job.watch.stage(
            f"training what is exported on all {rows.size:,} labelled cells", settings.final_seeds * rows.size
        )
    parts = []
    for place, (number, models) in enumerate(export.models.items()):
        keep = [finalists.picked] if settings.single else list(range(models))
        if place == 0 and not settings.refit_all:
            parts.append(finalists.bundle.take(keep))
            continue
        if place > 0:
            some = count(models, "model")
            job.watch.stage(f"training {some} of trial {number} for the ensemble", models * rows.size)
        parts.append(
            _where_it_trains(
                job, fit, dataset, rows, *settings_of(records[number]), [finalists.seeds[place] for place in keep],
                device=settings.device, precision=settings.precision, query=query,
            )
        )  # fmt: skip
    bundle = replace(Bundle.joined(parts), corrects=export.corrects)
    return attach(bundle, export.calibration, dataset, rows)


def _describe_model(job: Job, export: Export, bundle: Bundle) -> dict[str, Any]:
    """What is exported, and what it scores: on the cells left out, as it predicts, and on the test cells."""
    settings = job.settings
    return {
        "path": job.folder.model.name,
        "models": len(bundle.models),
        "kind": "single" if settings.single else "ensemble",
        "parts": [{"trial": number, "models": models} for number, models in export.models.items()],
        "trained_on": "all labelled cells" if settings.refit_all else "all training cells",
        "score": export.score,
        "corrects": export.corrects,
        "correction_gains": export.correction.gains,
        "adaptation_gains": export.adaptation.gains,
        # A model that was trained on the test cells is not scored on them.
        "test": None if settings.refit_all else test_export(bundle, job.cells, settings.device),
    }


def _record_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a model should tell of the study that it comes from."""
    left_out = ("asked", "protocols", "registered", "annotated", "trials", "trained")
    return {key: value for key, value in summary.items() if key not in left_out}


def _annotate(job: Job, bundle: Bundle) -> str | None:
    """Write the cells to annotate, annotated, if there are any."""
    adata = query_cells(job.settings.source, job.cells.fields)
    if adata is None:
        return None
    # What was said of the values, or found from all cells, holds for the cells of the same file.
    own = job.settings.source.query is None or not is_file(job.settings.source.query)
    fields = fields_for(bundle, adata)
    if own and (batches := batches_of_cells(adata, fields.batch_key, [])) is not None:
        fields = replace(fields, values=of_batches(job.cells.declared, batches.tolist()))
    annotate(adata, from_anndata(adata, fields), bundle)
    with new_file(job.folder.annotated) as place:
        write_h5ad(adata, place)
    return job.folder.annotated.name


def _asked(settings: StudySettings, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """What a finished study is compared with, to see whether there is anything left to do."""
    return {
        "finished": sum(record.state in FINISHED for record in records),
        "final_seeds": settings.final_seeds,
        "confirm": [settings.confirm, settings.confirm_seeds],
        "ensemble": settings.ensemble,
        "correct": settings.correct,
        "single": settings.single,
        "refit_all": settings.refit_all,
        "calibration": KEPT,
    }


def data_of(job: Job) -> dict[str, Any]:
    """What the study works on, for its summary."""
    cells, fingerprint = job.cells, job.folder.read_settings()["record"]["fingerprint"]
    training = job.sealed.dataset
    counts = np.bincount(training.labels, minlength=len(training.cell_types)).tolist()
    return {
        "training_cells": len(training),
        "cells_by_type": dict(zip(training.cell_types, counts, strict=True)),
        "genes": len(training.genes),
        "mutual_information_bits": mutual_information(training.labels, training.batches),
        "training_domains": sorted(
            job.sealed.dataset.batch_names[code] for code in np.unique(job.sealed.dataset.batches)
        ),
        "test_batches": list(cells.test_batches),
        "test_cells": len(cells.split.test),
        "query": job.settings.source.query,
        "fingerprint": fingerprint["training"],
        "test_fingerprint": fingerprint["test"],
    }


def identify(job: Job) -> None:
    """Write study.toml, or see that it says the same.

    Raises
    ------
    SettingsError
        See `check_same`.
    """
    document = to_document(job.settings)
    fingerprint = fingerprints(job.cells, job.sealed)
    if not job.folder.exists:
        document["record"] = {
            "id": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            "test_batches": list(job.cells.test_batches),
            "git": git_commit(),
            "folder": str(Path.cwd()),
            "machine": machine(),
            "versions": versions(),
        }
        job.folder.write_settings(document)
        return
    record = check_same(job.settings, job.folder, fingerprint)["record"]
    if changed := changed_versions(record):
        done = sum(one.state in FINISHED for one in read_records(job.folder, job.settings))
        told = f"after {count(done, 'trial')} this study went on with {changed}"
        record = {**record, "now": versions(), "changes": [*record.get("changes", []), told]}
        job.watch.note(
            f"{told}: trials of both are ranked together (the best are scored again with the present ones; --fresh "
            "starts over)"
        )
    job.folder.write_settings({**document, "record": record})


def changed_versions(record: Mapping[str, Any]) -> str:
    """What decides the numbers and is not what it was when a study last went on, in words; empty where all is."""
    before = record.get("now", record["versions"])
    return ", ".join(
        f"{name} {now} in place of {before[name]}"
        for name, now in versions().items()
        if name != "mlflow" and name in before and before[name] != now
    )


def fingerprints(cells: TrainingCells, sealed: SearchCells) -> dict[str, str]:
    """Of all cells that decide what a study finds."""
    return {
        "training": sealed.dataset.fingerprint(),
        "test": cells.dataset.take(cells.split.test).fingerprint(),
        "unlabeled": "+".join(query.fingerprint() for query in sealed.unlabeled),
    }


def check_same(settings: StudySettings, folder: StudyFolder, fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """See that a study that exists is the one that is asked for; its study.toml.

    Raises
    ------
    SettingsError
        If it was begun with other settings or on other cells, naming them.
    """
    before = folder.read_settings()
    from_document(before)  # a damaged one is told as such
    differences = [
        f"{key} was {then!r} and is now {now!r}" for key, then, now in _differences(before, to_document(settings))
    ]
    names = {"training": "training cells", "test": "test cells", "unlabeled": "unlabelled cells"}
    differences += [
        f"the {names[key]} are not the same"
        for key, value in fingerprint.items()
        if before["record"]["fingerprint"][key] != value
    ]
    if differences:
        raise SettingsError(
            f"the study {settings.name!r} was begun otherwise ({'; '.join(differences)}): give another --name, or "
            "--fresh to set the old one aside"
        )
    return before


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that would make the study another one. The cells are compared themselves, not by the file's name."""
    found = []
    for table in ("study", "data", "space", "sampler", "pruner"):
        old, new = before.get(table, {}), now.get(table, {})
        for key in sorted({*old, *new}):
            if key in CONTINUABLE or (table == "data" and key in ("data", "path", "obs")):
                continue
            if old.get(key) != new.get(key):
                name = key if table in ("study", "data", "space") else table if key == "name" else f"{table} {key}"
                found.append((name, old.get(key), new.get(key)))
    return found


def git_commit() -> str:
    """The commit of this code; empty where it is not a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(scdgn.__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """System, cores and GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{platform.node()}, {platform.platform()}, {os.cpu_count()} cores, {', '.join(gpus) or 'no GPU'}"


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    packages = ("scdgn", "torch", "numpy", "scanpy", "anndata", "optuna", "mlflow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}

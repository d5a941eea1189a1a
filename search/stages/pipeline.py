"""One study through all its stages: search, final seeds, one evaluation, export."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scdgn.cells.formats import is_file
from scdgn.cells.h5ad import write_h5ad
from scdgn.cells.names import batches_of_cells
from scdgn.cells.reading import check_trainable, from_anndata
from scdgn.cells.sources import query_cells
from scdgn.cells.values import of_batches
from scdgn.errors import DataError, SettingsError, TrainingError, count, listed
from scdgn.files import new_file
from scdgn.model.annotate import annotate
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import find_device
from scdgn.model.query import fields_for
from scdgn.search.choices import Selection
from scdgn.search.records import FINISHED, TrialRecord, settings_of
from scdgn.search.shown.watching import Begun
from scdgn.search.stages import committee, selection
from scdgn.search.stages.confirmation import ScoredAgain, confirm, confirming, run_trials, score_again
from scdgn.search.stages.exporting import adapted_winner, build, choose_export, where_it_trains
from scdgn.search.stages.finalists import test_finalists, train_finalists, write_table
from scdgn.search.stages.identity import identify
from scdgn.search.stages.job import Job
from scdgn.search.stages.owners import Watched
from scdgn.search.stages.summary import mean_padding, record_of, summarize_study, what_was_asked
from scdgn.search.study.settings import AGAIN, StudySettings
from scdgn.search.study.study import Study, check
from scdgn.search.summary import Summary
from scdgn.search.trials.amount import amount_of
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.inputs import VALIDATED, OwnInputs

WORTH_SAYING = 1.02
"""Padding from which it is told."""

NAMED = 8
"""Types that a note names."""


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


def run_study(job: Job) -> Summary:
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
    watched = Watched(study, job.folder, job.lease, job.watch, job.noted)
    if left > 0 and not run_trials(job, watched, inputs, enough):
        job.stop_if_asked()
        job.watch.note("the time is up: the winner is chosen among the trials that are done")
    inputs.forget()
    records = study.records()
    done = job.folder.read_summary()
    if isinstance(done, Summary) and done.asked == what_was_asked(job.settings, records):
        job.watch.done(job.folder, done)
        return done
    if (wasted := mean_padding(records)) >= WORTH_SAYING:
        job.watch.note(f"networks of unequal size were padded to train together: {wasted - 1:.0%} more arithmetic")
    return finish(job, study, inputs.selection, records)


def _joining(sealed: SearchCells) -> set[str]:
    return {query.batch_names[code] for query in sealed.unlabeled for code in np.unique(query.batches)}


def fold_notes(settings: StudySettings, sealed: SearchCells, selected_by: str) -> list[str]:
    """What the user should know of the folds."""
    notes = []
    if sealed.test is None:
        notes.append("no batch is held out (--test-batch): the folds say how good the model may be on a new one")
    if settings.selection == "leave-one-domain-out" and selected_by == "training-domain":
        domains = len(np.unique(sealed.dataset.batches))
        of_other_groups = "" if settings.source.fields.group_key is None else " of other groups"
        notes.append(
            f"the training cells have {count(domains, 'domain')} and make no fold that trains on two "
            f"others{of_other_groups} and shares a type with them: trials are selected on cells set aside of all "
            "training domains"
        )
    if settings.most_cells and len(sealed.dataset) > settings.most_cells:
        notes.append(
            f"a model of a trial trains on {settings.most_cells:,} cells at most, rare types whole, and on {AGAIN} "
            "times as many when the best are scored again (--search-cells); what is exported trains on all"
        )
    types = sealed.dataset.cell_types
    for fold in sealed.folds:
        if fold.unseen_types:
            unseen = listed([types[code] for code in fold.unseen_types], NAMED)
            scored, cells = f"{len(fold.scored):,}", f"{len(fold.held_out):,}"
            notes.append(f"fold {fold.name} scores {scored} of its {cells} cells; not trained there: {unseen}")
    if sealed.unscored_types:
        unscored = listed([types[code] for code in sealed.unscored_types], NAMED)
        notes.append(f"no fold scores {unscored}: a winner must know them on cells set aside of all domains")
    return notes


def finish(job: Job, study: Study, selected_by: Selection, records: Sequence[TrialRecord]) -> Summary:
    """From the trials to the exported model and the summary."""
    settings, sealed = job.settings, job.sealed
    again = confirm(job, study, selected_by, records)
    winners = _winners(job, selected_by, records, again)
    winner = winners[selected_by]
    by_number = {record.number: record for record in records}
    chosen = settings_of(by_number[winner.number])
    left_out = again.left_out
    if winner.number not in left_out:  # nothing was scored again to choose by
        left_out = score_again(job, study, records, [winner.number]).left_out
    adapted = adapted_winner(job, winner.number, chosen, left_out)
    export = choose_export(job, winner.number, left_out, adapted)
    job.stop_if_asked()
    seeds = count(settings.final_seeds, "seed")
    amount = (2 - VALIDATED) * settings.final_seeds * len(sealed.rows)  # they and their twins
    job.watch.stage(f"training {seeds} of trial {winner.number}", amount)
    started = time.time()
    finalists = where_it_trains(
        job,
        train_finalists,
        sealed,
        *chosen,
        settings.metric,
        settings.seed,
        settings.final_seeds,
        settings.device,
        precision=settings.precision,
        adapts=export.adapts,
    )
    trained = (started, time.time())
    job.stop_if_asked()
    bundle = build(job, export, finalists, by_number)
    job.stop_if_asked()
    # Here the labels of the test cells are opened, and nothing is chosen after it.
    test = test_finalists(finalists, job.cells, settings.device) if len(job.cells.split.test) else None
    summary = summarize_study(
        job, selected_by, records, again.confirmed, list(winners.values()), export, finalists, trained, bundle, test
    )
    write_table(job.folder.finalists, summary.final)
    job.watch.stage("exporting the model")
    known = {
        "fields": job.cells.fields.to_mapping(),
        "record": record_of(summary),
        "fewer_genes": finalists.fewer_genes,
    }
    bundle = replace(bundle, provenance={**bundle.provenance, **known})
    bundle.save(job.folder.model, overwrite=True)
    summary = replace(summary, annotated=_annotate(job, bundle))
    job.folder.write_summary(summary)
    job.watch.done(job.folder, summary)
    return summary


def _winners(
    job: Job, selected_by: str, records: Sequence[TrialRecord], again: ScoredAgain
) -> dict[str, selection.Winner]:
    """The trial that each protocol selects, by protocol; `TrainingError` if there is none by the one that chooses."""
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

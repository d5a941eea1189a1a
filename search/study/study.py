"""The study: one Optuna study, owned by one process, the single record of all trials."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from scdgn.cells.settings import INPUT_PRESETS
from scdgn.core.config import preset
from scdgn.core.schedules import ramp_end
from scdgn.errors import DataError, SettingsError, first_line
from scdgn.files import new_file
from scdgn.search.credentials import without_password, without_secret
from scdgn.search.folder import StudyFolder
from scdgn.search.records import RUNGS, Confirmation, Outcome, Proposal, State, TrialRecord, UnitScores
from scdgn.search.study.journal import Journal
from scdgn.search.study.portfolio import PORTFOLIO
from scdgn.search.study.sampling import make_pruner, make_sampler
from scdgn.search.study.settings import METHODS, StudySettings
from scdgn.search.study.space import Space

# What a trial carries beside its drawn parameters.
SETTINGS, RECORD, ORIGIN, WHOLE = "settings", "record", "origin", "whole"

# Its pack, and with how many trials that was drawn.
PACK, SIZE = "pack", "pack_size"

KEPT_WHOLE = ("published", "preset")
"""Trials that are never pruned: others are compared with them."""

# What the study carries: scores of its best trials with other seeds.
CONFIRMED = "confirmed"

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class Study:
    """Draws trials, decides which to stop, and remembers what came of them.

    What has ended is written at once, so that the process may die at any moment: what had ended stays, and what had not
    is run again under its own number, as it was drawn.

    Parameters
    ----------
    folder
        Where the study is.
    settings
        What was asked.
    space
        What is searched.
    """

    def __init__(self, folder: StudyFolder, settings: StudySettings, space: Space) -> None:
        self._folder = folder
        self._settings = settings
        self._space = space
        sampler = make_sampler(settings.sampler, settings.sampler_options, settings.seed)
        pruner = make_pruner(settings.pruner, settings.pruner_options, _width)
        self._journal = Journal(folder.journal) if settings.storage is None else None
        storage, name = open_storage(folder, settings.storage, self._journal), _name(folder, settings)
        with quiet():
            try:
                self._study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
            except KeyError:
                self._study = optuna.create_study(
                    study_name=name, storage=storage, sampler=sampler, pruner=pruner, direction="maximize"
                )
            if self._study.metric_names is None:  # which optuna-dashboard shows
                self._study.set_metric_names([settings.metric])
        self._proposals: dict[int, Proposal] = {}
        self._trials: dict[int, Trial] = {}
        self._handed_out: set[int] = set()  # to somebody who has not told their end

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return _record(self._frozen(number))

    def enqueue(self) -> None:
        """Put the trials in line that do not come from the sampler, once, and as many as the budget has room for."""
        trials = self._study.get_trials(deepcopy=False)
        known = {trial.user_attrs.get(ORIGIN) for trial in trials}
        missing = [queued for queued in queue(self._settings, self._space)[0] if queued[0] not in known]
        for origin, draws, attributes in missing[: max(0, self._settings.trials - len(trials))]:
            with quiet():
                self._study.enqueue_trial(draws, user_attrs={ORIGIN: origin, **attributes})

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The trials to run next, those that were cut off, else new ones; and False when the budget is spent.

        Packs that were cut off go first, each as it was, and a pack that was cut off before all of it was drawn is
        drawn to its end, so that later trials are drawn from what they would have been drawn from.
        """
        trials = self._study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        cut = [trial for trial in running if trial.number not in self._handed_out]
        drawn = [trial for trial in cut if PACK in trial.user_attrs]
        latest = max((trial.user_attrs.get(PACK, -1) for trial in trials), default=-1)
        members = [trial for trial in trials if trial.user_attrs.get(PACK) == latest >= 0]
        pack = min((trial.user_attrs[PACK] for trial in drawn), default=latest + 1)
        chosen = [trial for trial in drawn if trial.user_attrs[PACK] == pack]
        if pack > latest or (pack == latest and len(members) < members[0].user_attrs[SIZE]):
            # All trials of a pack are asked for before the first of them is entered.
            chosen += [trial for trial in cut if PACK not in trial.user_attrs]
        asked = [Trial(self._study, trial._trial_id) for trial in chosen]
        if pack > latest:
            left = self._settings.trials - sum(trial.state.is_finished() for trial in trials) - len(running)
            asked += [self._study.ask() for _ in range(min(size - len(asked), left))]
        with quiet(), self._together():
            for trial in asked:
                self._enter(trial, pack, len(asked))
            proposals = [self._propose(trial.number) for trial in asked]
        handed = [proposal for proposal in proposals if proposal is not None]
        self._handed_out |= {proposal.number for proposal in handed}
        return handed, len(asked) > 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Take a trial's score at a rung; True if it is to be pruned."""
        trial, before = self._trials[number], self._frozen(number)
        # A trial that was cut off meets rungs again that it had passed: the first score of a rung stays.
        if step not in before.intermediate_values:
            with self._together(urgent=False):
                trial.report(value, step)
        # A pruner goes by the last rung reported.
        if step < max(before.intermediate_values, default=0) or before.user_attrs.get(ORIGIN) in KEPT_WHOLE:
            return False
        # Until lambda has grown, the adversary is too weak for the score to say how the trial will end.
        if step >= RUNGS or step / RUNGS < ramp_end(self._proposals[number].settings):
            return False
        return bool(trial.should_prune())

    def finished(self, outcome: Outcome) -> None:
        """Take what came of a trial: its record first, then the state that makes it count."""
        record = outcome.record
        if outcome.test_predictions is not None:
            _write_predictions(self._folder.predictions(record.number), outcome.test_predictions)
        trial, steps = self._trials[record.number], self._frozen(record.number).intermediate_values
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}[record.state]
        with quiet(), self._together(sync=True):
            trial.set_user_attr(RECORD, record.to_json())
            self._study.tell(trial, steps[max(steps)] if record.state == "complete" else None, state=state)
        self._handed_out.discard(record.number)

    def _together(self, urgent: bool = True, sync: bool = False) -> AbstractContextManager[None]:
        """What is written in the block, together; another storage than the journal writes at once."""
        return nullcontext() if self._journal is None else self._journal.together(urgent, sync)

    def _frozen(self, number: int) -> FrozenTrial:
        """A trial as the storage has it; not to be changed."""
        return self._study._storage.get_trial(self._trials[number]._trial_id)

    def _enter(self, trial: Trial, pack: int, size: int) -> None:
        """Take a trial into a pack of that size."""
        self._trials[trial.number] = trial
        if PACK not in self._frozen(trial.number).user_attrs:
            trial.set_user_attr(SIZE, size)
            trial.set_user_attr(PACK, pack)

    def confirmed(self) -> dict[int, Confirmation | None]:
        """The trials that were scored again, with other seeds; None for those that failed then."""
        known: Mapping[str, Any] = self._study.user_attrs.get(CONFIRMED, {})
        return {int(number): None if kept is None else Confirmation(**kept) for number, kept in known.items()}

    def confirm(self, number: int, confirmation: Confirmation | None) -> None:
        """Keep what came of a trial that was scored again."""
        known: Mapping[str, Any] = self._study.user_attrs.get(CONFIRMED, {})
        kept = None if confirmation is None else asdict(confirmation)
        with self._together(sync=True):
            self._study.set_user_attr(CONFIRMED, {**known, str(number): kept})

    def _propose(self, number: int) -> Proposal | None:
        """A trial's settings, drawn if they are not; None where they contradict each other, which fails the trial."""
        trial = self._trials[number]
        try:
            drawn = self._frozen(number).user_attrs.get(WHOLE) or self._space.suggest(trial)
            proposal = Proposal(number, *self._space.settings(drawn))
        except SettingsError as error:
            self.finished(Outcome(TrialRecord(number, "fail", reason=str(error))))
            return None
        trial.set_user_attr(SETTINGS, proposal.to_mapping())
        self._proposals[number] = proposal
        return proposal


def check(settings: StudySettings, space: Space) -> list[str]:
    """Refuse, before anything is written, what a study could not be run with; else what is to be said about its queue.

    Raises
    ------
    SettingsError
        If there is no such sampler or pruner, or a trial to enqueue is outside the space.
    """
    make_sampler(settings.sampler, settings.sampler_options, settings.seed)
    make_pruner(settings.pruner, settings.pruner_options, _width)
    if settings.storage is not None:
        _open_url(settings.storage)
    return queue(settings, space)[1]


Queued = tuple[str, dict[str, Any], dict[str, Any]]


def queue(settings: StudySettings, space: Space) -> tuple[list[Queued], list[str]]:
    """The trials that do not come from the sampler: origin, draws and attributes of each; and notes for the user.

    Raises
    ------
    SettingsError
        If a trial of the user's is outside the space.
    """
    found: list[Queued] = []
    notes: list[str] = []
    faults = []
    for number, wanted in enumerate(settings.enqueue, start=1):
        draws, reasons = space.complete(wanted)
        faults += [f"trial {number} to enqueue: {reason}" for reason in reasons]
        found.append((f"enqueued {number}", draws, {}))
    if faults:
        raise SettingsError(*faults)
    # The preset was found on other data; a search that starts from it seldom ends below it. What did well beside it is
    # different from it, so that one of them is a fair start for most data.
    if start := space.presets():
        found.append(("preset", start, {}))
    draws, reasons = space.published()
    if reasons:
        notes.append(f"the published settings are not tried: {'; '.join(reasons)}")
    else:
        found.append(("published", draws, {}))
    if settings.reference:
        found.append(
            (
                "reference",
                {},
                {WHOLE: {**preset("reference", space.method).to_mapping(), **asdict(INPUT_PRESETS["reference"])}},
            )
        )
    if settings.portfolio:
        others = [space.start(changes) for changes in PORTFOLIO[space.method]]
        found += [(f"portfolio {place}", draws, {}) for place, draws in enumerate(others, start=1) if draws]
    return found, notes


def _name(folder: StudyFolder, settings: StudySettings) -> str:
    """Of the study in its storage: one of the user's may hold an older study of the same name."""
    if settings.storage is None:
        return settings.name
    return f"{settings.name} {folder.read_settings()['record']['id'][:8]}"


def open_storage(folder: StudyFolder, url: str | None, journal: BaseJournalBackend | None = None) -> BaseStorage:
    """Optuna's storage: the journal of the folder, by the owner's way to it or Optuna's, or what the URL names.

    Raises
    ------
    DataError, SettingsError
        If the journal is damaged, or there is nothing at the URL that could be a storage.
    """
    if url is not None:
        return _open_url(url)
    try:
        return JournalStorage(journal or JournalFileBackend(str(folder.journal)))
    except Exception as error:  # Optuna asserts what it expects of the file
        raise DataError(
            f"{folder.journal} cannot be opened ({first_line(error)}): restore it, or set the study aside with --fresh"
        ) from error


def _open_url(url: str) -> BaseStorage:
    try:
        # A connection that was closed between two trials, of hours maybe, is opened again.
        storage = optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
        with contextlib.suppress(KeyError):  # that is what it should say: the tables may be another program's
            storage.get_study_id_from_name("")
        return storage
    except Exception as error:  # whatever the driver of a database raises
        first = without_password(first_line(error), url)
        if "database is locked" in first:
            remedy = "another program holds it; wait until it is done, or end it"
        else:
            remedy = (
                "give a URL as sqlite:///FILE or postgresql://USER@HOST/DATABASE, and its password in it, in "
                "PGPASSWORD or in ~/.pgpass"
            )
        raise SettingsError(
            f"storage {without_secret(url)!r} cannot be opened ({first}): {remedy}"
        ) from None  # a traceback would show what the message leaves out


def read_records(folder: StudyFolder, settings: StudySettings) -> list[TrialRecord]:
    """All trials of a study that somebody else may be running; nothing is written."""
    if settings.storage is None and not folder.journal.exists():
        return []
    with quiet():
        try:
            study = optuna.load_study(
                study_name=_name(folder, settings), storage=open_storage(folder, settings.storage)
            )
        except KeyError:  # begun, but not yet in the storage
            return []
        return [_record(trial) for trial in study.get_trials(deepcopy=False)]


def read_predictions(folder: StudyFolder, records: Sequence[TrialRecord]) -> dict[int, NDArray[np.uint16]]:
    """The predictions for the test cells, by trial, of the trials that have any.

    Raises
    ------
    DataError
        If some cannot be read.
    """
    found = {}
    for record in records:
        path = folder.predictions(record.number)
        if record.state == "complete" and path.exists():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                    found[record.number] = content["predicted"]
            except Exception as error:  # of numpy, zipfile and zlib
                raise DataError(
                    f"{path} cannot be read ({first_line(error)}): remove it, and the trial has no score on test cells"
                ) from error
    return found


def _write_predictions(path: Path, predicted: NDArray[np.uint16]) -> None:
    """Write what nobody reads before the trial has ended, and what is written again if it is run again."""
    with new_file(path) as place:
        np.savez_compressed(place, predicted=predicted)


def _record(trial: FrozenTrial) -> TrialRecord:
    try:
        return _read(trial)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"what the study keeps of trial {trial.number} is damaged ({first_line(error)[:200]}): restore its "
            "storage, or set the study aside with --fresh"
        ) from error


def _read(trial: FrozenTrial) -> TrialRecord:
    kept: Mapping[str, Any] = trial.user_attrs.get(RECORD, {})
    settings = dict(trial.user_attrs.get(SETTINGS, {}))
    if settings and settings["method"] not in METHODS:
        raise ValueError("its method is none")
    steps = {int(step): float(value) for step, value in trial.intermediate_values.items()}
    if steps and not settings:
        raise ValueError("it has scores and no settings")
    training_domain = kept.get("training_domain")
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        settings=settings,
        origin=str(trial.user_attrs.get(ORIGIN, "")).partition(" ")[0],
        value=steps[max(steps)] if steps else None,
        steps=steps,
        epoch=int(kept.get("epoch", 0)),
        reason=str(kept.get("reason", "")),
        folds={name: UnitScores(**scores) for name, scores in kept.get("folds", {}).items()},
        training_domain=None if training_domain is None else UnitScores(**training_domain),
        curves=kept.get("curves", {}),
        seconds=float(kept.get("seconds", 0.0)),
        padding=float(kept.get("padding", 1.0)),
        started=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete),
    )


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _width(trial: FrozenTrial) -> int | None:
    settings = trial.user_attrs.get(SETTINGS)
    return None if settings is None else int(settings["hidden"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's words about experimental arguments and repeated reports."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"(optuna|scdgn\.search)\b")
            yield
    finally:
        optuna.logging.set_verbosity(level)

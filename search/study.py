"""The study: one Optuna study, owned by one process, the single record of all trials."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from scdgn.config import preset
from scdgn.errors import DataError, SettingsError
from scdgn.files import new_file
from scdgn.schedules import ramp_end
from search.folder import StudyFolder
from search.objective import RUNGS
from search.records import Outcome, Proposal, State, TrialRecord, UnitScores
from search.sampling import make_pruner, make_sampler
from search.settings import StudySettings
from search.space import Space

# What a trial carries beside its drawn parameters.
SETTINGS, RECORD, ORIGIN, PACK, WHOLE = "settings", "record", "origin", "pack", "whole"

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class Study:
    """Draws trials, decides which to stop, and remembers what came of them.

    Everything is written at once, so that the process may die at any moment: what had ended stays, and what had not is
    run again under its own number.

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
        if settings.storage is None:
            _mend(folder.journal)
        with _quiet():
            self._study = optuna.create_study(
                study_name=settings.name,
                storage=open_storage(folder, settings.storage),
                sampler=make_sampler(settings.sampler, settings.sampler_options, settings.seed),
                pruner=make_pruner(settings.pruner, settings.pruner_options, _width),
                direction="maximize",
                load_if_exists=True,
            )
        self._proposals: dict[int, Proposal] = {}
        self._trials: dict[int, Trial] = {}

    def records(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return _record(self._study._storage.get_trial(self._trials[number]._trial_id))

    def enqueue(self) -> list[str]:
        """Put the trials in line that do not come from the sampler, once; what to say about it."""
        queue: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        notes: list[str] = []
        draws, reasons = self._space.published()
        if reasons:
            notes.append(f"the published settings are not tried: {'; '.join(reasons)}")
        else:
            queue.append(("published", draws, {}))
        if self._settings.reference:
            whole = preset("reference", self._space.method).to_mapping()
            queue.append(("reference", {}, {WHOLE: whole}))
        for number, wanted in enumerate(self._settings.enqueue, start=1):
            draws, reasons = self._space.complete(wanted)
            if reasons:
                raise SettingsError(*(f"trial {number} to enqueue: {reason}" for reason in reasons))
            queue.append((f"enqueued {number}", draws, {}))
        known = {trial.user_attrs.get(ORIGIN) for trial in self._study.get_trials(deepcopy=False)}
        for origin, draws, attributes in queue:
            if origin not in known:
                with _quiet():
                    self._study.enqueue_trial(draws, user_attrs={ORIGIN: origin, **attributes})
        return notes

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        """The trials to run next, those that were cut off, else new ones; and False when the budget is spent.

        A pack that was cut off before all of it was drawn is drawn to its end first, so that later trials are drawn
        from what they would have been drawn from.
        """
        trials = self._study.get_trials(deepcopy=False)
        cut = [trial for trial in trials if trial.state is TrialState.RUNNING]
        finished = sum(trial.state.is_finished() for trial in trials)
        open_pack = max((trial.user_attrs.get(PACK, -1) for trial in trials), default=-1)
        drawn = [trial for trial in trials if trial.user_attrs.get(PACK) == open_pack]
        if not cut:
            open_pack, drawn = open_pack + 1, []
        numbers = [trial.number for trial in cut]
        complete_it = not any(trial.state.is_finished() for trial in drawn)
        room = min(size - len(numbers), self._settings.trials - finished - len(numbers)) if complete_it else 0
        for number in numbers:
            self._trials[number] = Trial(self._study, trials[number]._trial_id)
        for _ in range(room):
            trial = self._study.ask()
            self._trials[trial.number] = trial
            numbers.append(trial.number)
        proposals = [self._propose(number, max(open_pack, 0)) for number in numbers]
        return [proposal for proposal in proposals if proposal is not None], len(numbers) > 0

    def report(self, number: int, step: int, value: float) -> bool:
        """Take a trial's score at a rung; True if it is to be pruned."""
        trial, settings = self._trials[number], self._proposals[number].settings
        with _quiet():  # a trial that was cut off reports again what it had reported, and Optuna keeps the first
            trial.report(value, step)
        if trial.user_attrs.get(ORIGIN) == "published" or step >= RUNGS:
            return False
        # Until lambda has grown, the adversary is too weak for the score to say how the trial will end.
        if step / RUNGS < ramp_end(settings):
            return False
        return bool(trial.should_prune())

    def finished(self, outcome: Outcome) -> None:
        """Take what came of a trial: its record first, then the state that makes it count."""
        record = outcome.record
        if outcome.test_predictions is not None:
            _write_predictions(self._folder.predictions(record.number), outcome.test_predictions)
        trial = self._trials[record.number]
        trial.set_user_attr(RECORD, record.to_json())
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "fail": TrialState.FAIL}[record.state]
        last = self._study._storage.get_trial(trial._trial_id).intermediate_values
        with _quiet():
            self._study.tell(trial, last[max(last)] if record.state == "complete" else None, state=state)

    def _propose(self, number: int, pack: int) -> Proposal | None:
        """A trial's settings, drawn if they are not; None where they contradict each other, which fails the trial."""
        trial = self._trials[number]
        if PACK not in trial.user_attrs:
            trial.set_user_attr(PACK, pack)
        try:
            with _quiet():
                drawn = trial.user_attrs.get(WHOLE) or self._space.suggest(trial)
            proposal = Proposal(number, *self._space.settings(drawn))
        except SettingsError as error:
            self.finished(Outcome(TrialRecord(number, "fail", reason=str(error))))
            return None
        trial.set_user_attr(SETTINGS, proposal.to_mapping())
        self._proposals[number] = proposal
        return proposal


def open_storage(folder: StudyFolder, url: str | None) -> BaseStorage:
    """Optuna's storage: the journal of the folder, or what the URL names.

    Raises
    ------
    DataError
        If it cannot be opened.
    """
    try:
        if url is None:
            return JournalStorage(JournalFileBackend(str(folder.journal)))
        return optuna.storages.get_storage(url)
    except Exception as error:  # whatever the driver of a database raises
        first = str(error).partition("\n")[0]
        raise DataError(f"the study's storage {url or folder.journal} cannot be opened ({first}): mend it") from error


def read_records(folder: StudyFolder, settings: StudySettings) -> list[TrialRecord]:
    """All trials of a study that somebody else may be running; nothing is written."""
    if settings.storage is None and not folder.journal.exists():
        return []
    with _quiet():
        try:
            study = optuna.load_study(study_name=settings.name, storage=open_storage(folder, settings.storage))
        except KeyError:  # begun, but not yet in the storage
            return []
        return [_record(trial) for trial in study.get_trials(deepcopy=False)]


def read_predictions(folder: StudyFolder, records: Sequence[TrialRecord]) -> dict[int, NDArray[np.uint16]]:
    """The predictions for the test cells, by trial, of the trials that have any."""
    found = {}
    for record in records:
        path = folder.predictions(record.number)
        if record.state == "complete" and path.exists():
            with np.load(path, allow_pickle=False) as content:
                found[record.number] = content["predicted"]
    return found


def _write_predictions(path: Path, predicted: NDArray[np.uint16]) -> None:
    path.parent.mkdir(exist_ok=True)
    with new_file(path) as place, place.open("wb") as file:
        np.savez_compressed(file, predicted=predicted)


def _record(trial: FrozenTrial) -> TrialRecord:
    kept: Mapping[str, Any] = trial.user_attrs.get(RECORD, {})
    steps = {int(step): float(value) for step, value in trial.intermediate_values.items()}
    training_domain = kept.get("training_domain")
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        settings=trial.user_attrs.get(SETTINGS, {}),
        origin=str(trial.user_attrs.get(ORIGIN, "")).partition(" ")[0],
        value=steps[max(steps)] if steps else None,
        steps=steps,
        epoch=kept.get("epoch", 0),
        reason=kept.get("reason", ""),
        folds={name: UnitScores(**scores) for name, scores in kept.get("folds", {}).items()},
        training_domain=None if training_domain is None else UnitScores(**training_domain),
        curves=kept.get("curves", {}),
        seconds=kept.get("seconds", 0.0),
        started=_seconds(trial.datetime_start),
        ended=_seconds(trial.datetime_complete),
    )


def _seconds(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _width(trial: FrozenTrial) -> int | None:
    settings = trial.user_attrs.get(SETTINGS)
    return None if settings is None else int(settings["hidden"])


def _mend(journal: Path) -> None:
    """Remove what a killed owner left: half a line at the journal's end, and Optuna's lock.

    Called by the owner of the study alone. Optuna reads past half a line at the end, but would write the next one
    behind it.
    """
    with contextlib.suppress(FileNotFoundError):
        Path(f"{journal}.lock").unlink()
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("rb+") as file:
            file.truncate(whole)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's words about experimental arguments and repeated reports."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="(optuna|search).*")
            yield
    finally:
        optuna.logging.set_verbosity(level)

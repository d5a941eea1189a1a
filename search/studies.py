"""One command: the studies that it stands for, one after the other, and the champion among them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import FrameType
from typing import Any

from optuna.exceptions import StorageInternalError
from rich.console import Console

from scdgn.cells.shelf import SHELF, Shelf
from scdgn.cells.sources import TrainingCells, read
from scdgn.commands.terminal import STOPS
from scdgn.errors import DataError, SettingsError, first_line
from scdgn.search.credentials import without_password
from scdgn.search.engines import Engine
from scdgn.search.engines.local import Local
from scdgn.search.folder import StudyFolder, owned, studies_under
from scdgn.search.shown.progress import Display
from scdgn.search.shown.watching import Watcher, Watchers
from scdgn.search.stages.best_of_ten import best_of_ten
from scdgn.search.stages.job import Interrupted, Job
from scdgn.search.stages.pipeline import run_study, validate
from scdgn.search.study.documents import COMMAND, keep_command
from scdgn.search.study.settings import EACH, StudySettings, leaves
from scdgn.search.summary import AnySummary
from scdgn.search.tracking.store import configure
from scdgn.search.trials.cells import seal

STOPPING = "stopping as soon as the running epoch has ended; once more stops at once"
"""What is said when a signal has come."""

SAMPLE = 2_000
"""Cells of a large file whose values are read where all of them are not needed: of every batch as many, or all of a
smaller one."""


def run(
    settings: StudySettings, watch: Watcher | None = None, fresh: bool = False, track: bool = True
) -> list[AnySummary]:
    """Search, train the winner again, evaluate it once, export and register it.

    A study that was stopped, or killed, goes on; one that is done tells again what came out.

    Parameters
    ----------
    settings
        What to do.
    watch
        Told of what happens; by default the display of a terminal where this is a notebook, else nobody.
    fresh
        Whether to set a study of that name aside and start over.
    track
        Whether to log to MLflow and register the model.

    Returns
    -------
    The summary of each study: one, unless there are several methods, repeats or test batches.

    Raises
    ------
    ScdgnError
        For anything that the user can mend.
    Interrupted
        After Ctrl-C: when the running epoch has ended; at once when only the registration is missing.
    """
    with _watched(watch) as watcher:
        return _run(settings, watcher, fresh, track)


def _run(settings: StudySettings, watch: Watcher, fresh: bool, track: bool) -> list[AnySummary]:
    if track:
        configure(settings.studies)  # a fault of mlflow.env is told before the work
    folders = []
    cells: dict[Any, TrainingCells] = {}
    noted: set[str] = set()  # what holds for all studies is said once
    with (
        interruptible(watch.note) as stopping,
        opened(settings) as engine,
        shelved(settings, watch, stopping) as shelf,
        tracked(watch, track, settings.engine == "ray" or engine.kind == "cuda") as tracker,
    ):
        studies = expand(settings)
        watch.planned([leaf.name for leaf in studies])
        several = [leaf.name for leaf in studies] != [settings.name]
        for leaf in studies:
            if leaf.source not in cells:
                cells.clear()  # one copy of the data at a time
                cells[leaf.source] = read(leaf.source, shelf=shelf)
                for note in cells[leaf.source].notes:
                    watch.note(note)
            folder = StudyFolder(leaf.folder)
            sealed = seal(cells[leaf.source], leaf.max_folds, leaf.source.adapt)
            check_place(leaf)
            notes = validate(leaf, sealed)
            if several and not (settings.folder / COMMAND).exists():
                keep_command(settings)
            if fresh and folder.exists:
                with owned(folder):
                    aside = folder.set_aside()
                watch.note(f"the study of before is now {aside}")
            with owned(folder) as lease, tracker() as watcher:
                job = Job(leaf, folder, cells[leaf.source], sealed, lease, watcher, stopping, engine, notes, noted)
                with answering(leaf.storage or ""):
                    (run_study if leaf.protocol == "search" else best_of_ten)(job)
            folders.append(folder)
    if several:  # all were the same studies, or new ones
        keep_command(settings)
    if track and settings.source.test_batch != EACH and settings.protocol == "search":
        try:
            register_champion(settings, watch)
        except KeyboardInterrupt:
            raise Interrupted from None  # the same command registers what is not
    return [summary for folder in folders if (summary := folder.read_summary()) is not None]


@contextmanager
def _watched(watch: Watcher | None) -> Iterator[Watcher]:
    if watch is None and (console := Console()).is_jupyter:
        with Display(console) as display:
            yield display
    else:
        yield watch or Watcher()


@contextmanager
def opened(settings: StudySettings) -> Iterator[Engine]:
    """The engine of a command; it takes nothing before it is used."""
    engine: Engine
    if settings.engine == "local":
        engine = Local(settings.device)
    else:
        from scdgn.search.engines.cluster import Cluster, Resources

        engine = Cluster(
            Resources(
                settings.address,
                settings.gpus_per_trial,
                settings.cpus_per_trial,
                settings.concurrency,
                settings.max_failures,
                settings.device,
            )
        )
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def shelved(settings: StudySettings, watch: Watcher, stopping: Callable[[], bool]) -> Iterator[Shelf]:
    """Where values go that do not fit in memory. They stay for the same command if it is cut off, else they go."""

    def check() -> None:
        if stopping():
            raise Interrupted

    with Shelf(settings.studies / SHELF, watch.note, check) as shelf:
        yield shelf


@contextmanager
def answering(storage: str) -> Iterator[None]:
    """Whatever a database does that holds the study, as a `DataError`."""
    try:
        yield
    except StorageInternalError as error:
        reason = without_password(first_line(error.__cause__ or error), storage)
        raise DataError(f"the storage of the study does not answer ({reason}): the same command goes on") from None


def check_place(settings: StudySettings) -> None:
    """Keep studies out of each other's folders.

    Raises
    ------
    SettingsError
        If the study's folder holds other studies, or lies in one.
    """
    folder = settings.folder
    inside = [other.path for other in studies_under(folder) if other.path != folder]
    around = [place for place in folder.parents if StudyFolder(place).exists and settings.studies in place.parents]
    if others := inside + around:
        named = ", ".join(str(place.relative_to(settings.studies)) for place in others[:3])
        raise SettingsError(
            f"name {settings.name!r} is taken by other studies ({named}): choose another --name, or the --method, "
            "--test-batch or --search-repeats that they were begun with"
        )


@contextmanager
def tracked(watch: Watcher, track: bool, apart: bool) -> Iterator[Callable[[], AbstractContextManager[Watcher]]]:
    """The watcher of each study in turn, and MLflow beside it.

    Trials on GPUs are so short, or so many at a time, that writing them, some 40 ms of an interpreter for each, would
    slow them down: another process does it then (`apart`). On a CPU its start would cost more (docs/performance.md).
    """
    if not track:
        yield lambda: nullcontext(watch)
        return
    from scdgn.search.tracking.beside import Beside
    from scdgn.search.tracking.tracker import Tracker

    beside = Beside(watch.note)

    @contextmanager
    def each() -> Iterator[Watcher]:
        tracker = beside if apart else Tracker(watch.note)
        try:
            yield Watchers(watch, tracker)
        finally:
            tracker.close()

    try:
        yield each
    finally:
        beside.end()


def register_champion(settings: StudySettings, watch: Watcher) -> None:
    """Register the model of the best of the studies: by its selection score, whatever the test said."""
    from scdgn.search.tracking.registry import ExportError, export_study

    watch.stage("registering the model")
    try:
        watch.registered(export_study(settings.studies, settings.name, promote=settings.promote))
    except ExportError as error:
        watch.note(f"the model is not registered, which `scdgn export {settings.name}` makes up for: {error}")


def expand(settings: StudySettings) -> list[StudySettings]:
    """The studies that the settings stand for.

    Raises
    ------
    SettingsError
        If every batch is to be held out in turn, of data that come with a split.
    """
    if settings.source.test_batch != EACH:
        return leaves(settings)
    if settings.source.dataset is not None or settings.source.split is not None:
        raise SettingsError("--test-batch each is for a file without a split: a data set or split has its test cells")
    everything = read(replace(settings.source, test_batch=None, adapt=False), SAMPLE)
    return leaves(settings, everything.dataset.batch_names)


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C, SIGTERM or SIGUSR1 (as batch systems send before the end) came, which is said at once; the second
    one insists.
    """
    asked = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def tell() -> None:  # not by the handler, which runs amid anything, and must not wait for the display
        asked.wait()
        if not over:
            say(STOPPING)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield asked.is_set
        return
    over = False
    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    before = {number: signal.signal(number, handle) for number in STOPS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        over = True
        asked.set()
        telling.join()


__all__ = ["Interrupted", "expand", "run"]

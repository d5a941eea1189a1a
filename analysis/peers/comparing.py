"""Peers on the cells of a study: as many trials on the same folds, the winner once on the test cells."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from optuna.trial import TrialState

from scdgn.analysis.peers.catalogue import PEERS, Peer
from scdgn.analysis.peers.process import FitError, Lacking, PeerError, Process, started
from scdgn.analysis.studies.results import Results
from scdgn.cells.normalize import log_normalized
from scdgn.cells.sources import TrainingCells
from scdgn.core.metrics import Scores, score
from scdgn.errors import DataError, SettingsError, nearest
from scdgn.files import new_file
from scdgn.model.fitting import find_device
from scdgn.search.folder import owned
from scdgn.search.records import FINISHED, TrialRecord, UnitScores
from scdgn.search.stages import selection
from scdgn.search.stages.finalists import FIRST_SEED
from scdgn.search.study.sampling import make_sampler
from scdgn.search.study.study import quiet
from scdgn.search.trials.cells import SearchCells, seal, test_labels
from scdgn.search.trials.inputs import ALL_DOMAINS, OwnInputs

VERSION = 2
"""Of what peers compute: results of another version are computed again."""

SCORES = ("macro_f1", "accuracy", "balanced_accuracy")

UNFINISHED = "cut off: the same command goes on with it"
"""The reason of a peer that is under way, or was stopped."""

TIME_LIMIT = 3600.0
"""Seconds for all fits of a peer on a study."""


def run(
    results: Results,
    source: TrainingCells,
    peers: Sequence[str] = tuple(PEERS),
    trials: int | None = None,
    pythons: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
    device: str = "auto",
    watch: Callable[[str], object] = lambda _: None,
) -> pd.DataFrame:
    """Tune peers on the folds of a study and score each once on its test cells; what is then known, as `read` has it.

    Trials and final fits are kept in the folder of the study as they end, and go on from there; what is done is not
    done again. A peer that fails, is not installed or runs out of time is a row with its reason.

    Parameters
    ----------
    results, source
        Of a search, in its folder; and its cells (`scdgn.analysis.studies.cells.source_of`).
    peers
        Keys of `PEERS`.
    trials
        Of each peer that is searched; by default as many as the study finished. 0 takes the defaults.
    pythons
        Interpreters by peer; this one for the others.
    time_limit
        Seconds for each peer.
    device
        Where scVI and scANVI train: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises
    ------
    SettingsError, DataError, DeviceError
        If the peers, the interpreters, the device or the study are not there, or the study has no test cell that can be
        scored.
    LeaseError, OutputError
        If the study is being run, or its folder cannot be written to.
    """
    interpreters = {name: _interpreter(name, python) for name, python in (pythons or {}).items()}
    _check(results, source, peers, trials, time_limit)
    find_device(device)
    assert results.folder is not None
    asked = _finished(results) if trials is None else trials
    course = Course.of(results, source)
    with owned(results.folder):
        for name in peers:
            peer = PEERS[name]
            path, data = _place(results, name), list(results.data)
            kept = Kept.load(path)
            if kept is None or kept.data != data:
                kept = Kept(data)
            kept.asked = asked if peer.space else 0
            watch(f"{results.name}: {peer.title}")
            kept.reason = UNFINISHED
            try:
                if not kept.done(peer, course):
                    python = interpreters.get(name, sys.executable)
                    with started(python, name, course.arrays, time_limit) as process:
                        kept.versions = process.versions
                        write = partial(kept.write, path)
                        _search(peer, kept, course, process, device, write)
                        _finish(peer, kept, course, process, device, write)
                kept.winner, kept.reason = kept.number(course), ""
            except Lacking as error:
                kept.reason = f"not installed ({error}): pip install 'scdgn[peers]', or name its Python with --python"
            except PeerError as error:
                progress = f", after {len(kept.trials)} of {kept.asked} trials" if kept.asked else ""
                kept.reason = f"{error}{progress}"
            kept.write(path)
            if kept.reason:
                watch(f"{results.name}: {peer.title}: {kept.reason}")
    found = read(results)
    assert found is not None
    return found


def read(results: Results) -> pd.DataFrame | None:
    """What is known of the peers of a study; None where nothing is.

    Returns
    -------
    A row for each peer, in the order of `PEERS`: `peer`, `title`, `settings` (`tuned` with at least as many trials as
    the study, `fewer trials`, or `defaults`), `trials`, `sees_test` (whether the unlabelled test cells take part in
    training), `seeds` of the winner, `macro_f1`, `accuracy`, `balanced_accuracy` on the test cells (means over the
    seeds) with `_std` of each (NaN for one seed), `fold_score` of the winner, `seconds` of all trials, `fit_seconds`
    of a final fit, and `reason`, where it came to nothing: its numbers are then NaN.
    """
    if results.folder is None:
        return None
    rows = []
    for name, peer in PEERS.items():
        kept = Kept.load(_place(results, name))
        if kept is not None and kept.data == list(results.data):
            rows.append(_row(name, peer, kept, _finished(results)))
    return pd.DataFrame(rows) if rows else None


@dataclass(frozen=True, eq=False)
class Course:
    """What all peers of a study run over.

    Attributes
    ----------
    results
        Of the study.
    sealed, inputs
        Its cells without the types of the test cells, and its folds, as the search had them.
    arrays
        For the peers (`scdgn.analysis.peers.worker`): one unit more than the search has, to end with the test cells.
    test_labels, test_scored
        (test cells,) types in the codes of the search and whether they are scored: for `_finish` alone.
    """

    results: Results
    sealed: SearchCells
    inputs: OwnInputs
    arrays: Mapping[str, Any]
    test_labels: NDArray[np.int64]
    test_scored: NDArray[np.bool_]

    @classmethod
    def of(cls, results: Results, source: TrainingCells) -> Course:
        """From the cells of the study."""
        settings = results.settings
        sealed = seal(source, settings.max_folds, adapt=False)
        inputs = OwnInputs(sealed, settings.selection, settings.seed, settings.fold_seeds, most=settings.most_cells)
        labels, scored = test_labels(source, sealed.dataset.cell_types)
        return cls(results, sealed, inputs, _arrays(sealed, inputs), labels, scored)

    def winner(self, records: Sequence[TrialRecord]) -> selection.Winner | None:
        """The trial that the study's own rule selects."""
        metric = self.results.settings.metric
        if self.inputs.selection == "training-domain":
            return selection.training_domain(records, metric)
        unscored = [self.sealed.dataset.cell_types[code] for code in self.sealed.unscored_types]
        return selection.leave_one_domain_out(records, metric, unscored)


@dataclass
class Kept:
    """What is known of a peer on a study, as its file has it.

    Attributes
    ----------
    data
        Fingerprints of the study's training and test cells.
    asked
        Trials; 0 for the defaults.
    trials
        Those that ended, by number.
    finals
        Scores of the final fits: `trial`, `seed`, `seconds` and `SCORES`.
    winner
        Number of the trial that won; 0 for the defaults.
    reason
        Why there is nothing to show.
    versions
        Of the peer's packages.
    """

    data: list[str]
    asked: int = 0
    trials: list[TrialRecord] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)
    winner: int | None = None
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    @classmethod
    def load(cls, path: Path) -> Kept | None:
        """From its file; None where there is none that this version can read."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            trials = [TrialRecord.from_mapping(trial) for trial in document["trials"]]
            kept = cls(**{**document, "trials": trials})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if kept.version == VERSION else None

    def write(self, path: Path) -> None:
        """To its file, whole or not at all."""
        with new_file(path) as place:
            place.write_text(json.dumps(asdict(self), indent=1, allow_nan=False), encoding="utf-8")

    def done(self, peer: Peer, course: Course) -> bool:
        """Whether there is nothing left to compute."""
        if len(self.trials) < self.asked:
            return False
        number = self.number(course)
        return number is not None and len(self.finals_of(number)) == peer.seeds

    def number(self, course: Course) -> int | None:
        """The trial that wins: of the defaults the first, whatever its folds would say."""
        if not self.asked:
            return 0
        winner = course.winner(self.trials[: self.asked])
        return None if winner is None else winner.number

    def finals_of(self, number: int) -> list[dict[str, Any]]:
        """Final fits of a trial."""
        return [final for final in self.finals if final["trial"] == number]


def _check(
    results: Results, source: TrainingCells, peers: Sequence[str], trials: int | None, time_limit: float
) -> None:
    if unknown := [name for name in peers if name not in PEERS]:
        raise SettingsError(*(f"peer {name!r} is unknown: {nearest(name, PEERS)}" for name in unknown))
    if trials is not None and trials < 0:
        raise SettingsError(f"trials are {trials}: give 0 for the defaults, or more")
    if not time_limit > 0:
        raise SettingsError(f"the time limit is {time_limit:g} s: give more than 0")
    if results.folder is None or not results.is_search:
        raise DataError(f"the study {results.name!r} has no folds here: give the folder of a search")
    if not len(source.split.scored):
        raise DataError(
            f"the study {results.name!r} has no test cell of a trained type: hold a batch out with --test-batch to "
            "compare peers on it"
        )


def _interpreter(name: str, python: str) -> str:
    if name not in PEERS:
        raise SettingsError(f"an interpreter is given for {name!r}, which is no peer: {nearest(name, PEERS)}")
    found = shutil.which(python)
    if found is None:
        raise SettingsError(f"{python!r} cannot be run (--python {name}=...): give the path of a Python")
    return os.path.abspath(found)  # noqa: PTH100, since resolving its link would leave the environment


def _place(results: Results, name: str) -> Path:
    assert results.folder is not None
    return results.folder.path / "peers" / f"{name}.json"


def _finished(results: Results) -> int:
    return sum(record.state in FINISHED for record in results.records)


def _arrays(sealed: SearchCells, inputs: OwnInputs) -> dict[str, Any]:
    """All cells, training cells first; types only of those that a unit trains on."""
    assert sealed.test is not None
    parts = (sealed.dataset, sealed.test)
    log = sp.vstack([sp.csr_matrix(log_normalized(part).matrix) for part in parts]).tocsr()
    arrays: dict[str, Any] = {
        "indptr": log.indptr,
        "indices": log.indices,
        "log": log.data,
        "genes": log.shape[1],
        "batches": np.concatenate([part.batches for part in parts]),
    }
    if sealed.dataset.values == "counts":
        counts = sp.vstack([sp.csr_matrix(part.matrix) for part in parts]).tocsr()
        assert np.array_equal(counts.indices, log.indices)  # a logarithm of a count above 0 is above 0
        arrays["counts"] = counts.data
    test = len(sealed.dataset) + np.arange(len(sealed.test))
    queries = [_query(unit) for unit in inputs.units]
    trains = [unit.train for unit in inputs.units]
    # What is tested trains on all training cells, as the final seeds of the search do.
    for place, (train, query) in enumerate(zip([*trains, sealed.rows], [*queries, test], strict=True)):
        arrays |= {f"train_{place}": train, f"labels_{place}": sealed.dataset.labels[train], f"query_{place}": query}
    return arrays


def _query(unit: Any) -> NDArray[np.int64]:
    """The whole domain left out, of which some cells are scored; of all domains those set aside."""
    rows: NDArray[np.int64] = unit.scored if unit.name == ALL_DOMAINS else unit.held_out
    return rows


def _search(peer: Peer, kept: Kept, course: Course, process: Process, device: str, write: Callable[[], None]) -> None:
    """Run the trials that are left; `PeerError` if the defaults come to nothing: other settings are then not tried."""
    for settings, tell in _draws(peer, kept, course.results.settings.seed):
        number = len(kept.trials)
        try:
            record = _trial(peer, number, settings, course, process, device)
        except FitError as error:
            if number == 0:
                raise PeerError(str(error)) from error
            record = TrialRecord(number, "fail", settings, reason=str(error))
        kept.trials.append(record)
        write()
        tell(record)


def _draws(peer: Peer, kept: Kept, seed: int) -> Iterator[tuple[dict[str, Any], Callable[[TrialRecord], None]]]:
    """Settings of the trials that are left, as Optuna's TPE draws them from those before; the defaults come first."""
    with quiet():
        study = optuna.create_study(direction="maximize", sampler=make_sampler("TPESampler", {}, seed))
        before = [record.settings for record in kept.trials]
        for settings in before or [peer.defaults]:
            study.enqueue_trial({name: settings[name] for name in peer.space})
        for number in range(kept.asked):
            trial = study.ask()
            drawn = {name: dimension.suggest(trial, name) for name, dimension in peer.space.items()}

            def tell(record: TrialRecord, trial: optuna.Trial = trial) -> None:
                study.tell(trial, record.value, TrialState.FAIL if record.value is None else None)

            if number < len(before):
                tell(kept.trials[number])
            else:
                yield {**peer.defaults, **drawn}, tell


def _trial(
    peer: Peer, number: int, settings: Mapping[str, Any], course: Course, process: Process, device: str
) -> TrialRecord:
    """Settings scored as `scdgn.search.trials.objective` scores a trial."""
    dataset, scores, seconds = course.sealed.dataset, {}, 0.0
    for place, unit in enumerate(course.inputs.units):
        each = []
        for seed in unit.seeds if peer.seeds > 1 else unit.seeds[:1]:
            probabilities, took = _fit(process, place, settings, seed, device, len(dataset.cell_types))
            seconds += took
            of_scored = probabilities[np.isin(_query(unit), unit.scored)]
            each.append(score(dataset.labels[unit.scored], of_scored, unit.weights))
        scores[unit.name] = UnitScores.mean(each, dataset.cell_types)
    everywhere = scores.pop(ALL_DOMAINS)
    metric = course.results.settings.metric
    chosen_by = [everywhere] if course.inputs.selection == "training-domain" else list(scores.values())
    value = float(np.mean([getattr(one, metric) for one in chosen_by]))
    return TrialRecord(
        number, "complete", settings, value=value, folds=scores, training_domain=everywhere, seconds=round(seconds, 3)
    )


def _finish(peer: Peer, kept: Kept, course: Course, process: Process, device: str, write: Callable[[], None]) -> None:
    """Train the winner with seeds of their own, and open the types of the test cells for it; nothing is chosen after.

    `PeerError` if no trial may win, or the winner cannot be trained again.
    """
    number = kept.number(course)
    if number is None:
        raise PeerError("no trial completed")
    settings = kept.trials[number].settings if kept.asked else peer.defaults
    unit, types = len(course.inputs.units), len(course.sealed.dataset.cell_types)
    first = course.results.settings.seed + FIRST_SEED
    known = {final["seed"] for final in kept.finals_of(number)}
    for seed in range(first, first + peer.seeds):
        if seed in known:
            continue
        try:
            probabilities, seconds = _fit(process, unit, settings, seed, device, types)
        except FitError as error:
            raise PeerError(str(error)) from error
        scores: Scores = score(course.test_labels[course.test_scored], probabilities[course.test_scored])
        values = {name: getattr(scores, name) for name in SCORES}
        kept.finals.append({"trial": number, "seed": seed, "seconds": seconds, **values})
        write()


def _fit(
    process: Process, unit: int, settings: Mapping[str, Any], seed: int, device: str, types: int
) -> tuple[NDArray[np.float64], float]:
    """Probabilities of all types, those not trained below all others; and the seconds that it took."""
    probabilities, columns, seconds = process.fit(unit, settings, seed, device)
    if not np.isfinite(probabilities).all():
        raise FitError("a prediction was not finite")
    everything = np.full((len(probabilities), types), -1.0)
    everything[:, columns] = probabilities
    return everything, seconds


def _row(name: str, peer: Peer, kept: Kept, study_trials: int) -> dict[str, Any]:
    finals = [] if kept.reason or kept.winner is None else kept.finals_of(kept.winner)
    values = {key: np.array([final[key] for final in finals]) for key in SCORES}
    fold_score = kept.trials[kept.winner].value if finals and kept.winner is not None and kept.asked else None
    return {
        "peer": name,
        "title": peer.title,
        "settings": "defaults" if not kept.asked else "tuned" if kept.asked >= study_trials else "fewer trials",
        "trials": kept.asked,
        "sees_test": peer.sees_query,
        "seeds": len(finals),
        **{key: float(value.mean()) if len(value) else np.nan for key, value in values.items()},
        **{f"{key}_std": float(value.std(ddof=1)) if len(value) > 1 else np.nan for key, value in values.items()},
        "fold_score": np.nan if fold_score is None else fold_score,
        "seconds": sum(record.seconds for record in kept.trials[: kept.asked]),
        "fit_seconds": float(np.mean([final["seconds"] for final in finals])) if finals else np.nan,
        "reason": kept.reason,
    }

"""Peers: the same cells, folds and scores as the search; no label of the test; what goes wrong is a row."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, normalized_mutual_info_score

from scdgn.analysis import peers
from scdgn.analysis.page.sections import Picture, Table, Text
from scdgn.analysis.page.style import styled
from scdgn.analysis.peers import comparing, process, worker
from scdgn.analysis.peers.comparing import Course, Kept
from scdgn.analysis.peers.tables import _wall_time
from scdgn.analysis.studies.results import Group, Results
from scdgn.cells.fields import Fields
from scdgn.cells.normalize import log_normalized
from scdgn.cells.reading import from_anndata
from scdgn.cells.sources import Source, TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.errors import DataError, DeviceError, SettingsError
from scdgn.model.fitting import with_types_of
from scdgn.search.folder import StudyFolder
from scdgn.search.records import TrialRecord
from scdgn.search.study.settings import StudySettings
from tests import LONGEST
from tests.faults import tiny
from tests.summaries import summary_with

TYPES = ["B", "NK", "T"]


def cells(**changes: Any) -> TrainingCells:
    adata = tiny(cells={"a": 40, "b": 40, "c": 40, "d": 30}, **changes)
    fields = Fields("celltype", "tech")
    dataset = from_anndata(adata, fields)
    return TrainingCells(dataset, hold_out(dataset, "d"), fields, ("d",), (), ())


def study(folder: Path, source: TrainingCells, trials: int = 3, dataset: str | None = None, **changes: Any) -> Results:
    """A finished study as the analysis sees it."""
    train = with_types_of(source.dataset, source.split.train).take(source.split.train)
    test = source.dataset.take(source.split.test)
    part = {"mean": 0.8, "std": 0.02, "picked": 0.8, "ensemble": 0.82, "by_seed": [0.78, 0.82], "best_oracle": 0.82}
    summary = summary_with(
        method="nn",
        data={"fingerprint": train.fingerprint(), "test_fingerprint": test.fingerprint()},
        trials={"complete": trials},
        final={"seeds": [100, 101], "test": {"cells": 1406, "macro_f1": part, "accuracy": part}},
    )
    records = tuple(TrialRecord(number, "complete", started=10.0, ended=20.0) for number in range(trials))
    settings = StudySettings("islets/nn", Source(dataset=dataset), "nn", trials=trials, **changes)
    return Results("islets/nn", settings, {}, summary, records, StudyFolder(folder))


class Here:
    """The worker's functions in this process: a process of its own takes seconds to import scikit-learn."""

    versions: ClassVar[dict[str, str]] = {}

    def __init__(self, peer: str, arrays: Any, place: Path) -> None:
        self._peer, self._arrays, self._place = peer, arrays, place

    def fit(self, unit: int, settings: Any, seed: int, device: str) -> Any:
        job = {"unit": unit, "settings": settings, "seed": seed, "device": device}
        worker._answer(self._arrays, job, worker.METHODS[self._peer][0], self._place)
        with np.load(self._place / "answer.npz") as arrays:
            return arrays["probabilities"], arrays["types"], 0.5


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        comparing, "started", lambda python, peer, arrays, limit: nullcontext(Here(peer, arrays, tmp_path))
    )


@pytest.fixture(scope="module")
def source() -> TrainingCells:
    return cells()


@pytest.fixture
def results(tmp_path: Path, source: TrainingCells) -> Results:
    return study(tmp_path / "nn", source)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, source: TrainingCells) -> tuple[Results, pd.DataFrame]:
    one = study(tmp_path_factory.mktemp("ran") / "nn", source)
    return one, peers.run(one, source, ["logistic"])


def kept(results: Results, name: str = "logistic") -> dict[str, Any]:
    assert results.folder is not None
    document: dict[str, Any] = json.loads((results.folder.path / "peers" / f"{name}.json").read_text())
    return document


def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """A worker that is ready, and then does something else."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import json, os, subprocess, sys, time\nprint(json.dumps({{'versions': {{}}}}), flush=True)\n{body}\n"
    )
    monkeypatch.setattr(process, "WORKER", script)


def test_scores_are_those_of_the_search(ran: tuple[Results, pd.DataFrame], source: TrainingCells) -> None:
    results, frame = ran
    dataset, split = log_normalized(source.dataset), source.split
    x, labels, batches = dataset.x, dataset.labels, dataset.batches

    def predict(train: Any, query: Any, settings: dict[str, Any]) -> Any:
        model = LogisticRegression(C=settings["C"], max_iter=1000)
        return model.fit(x[train], labels[train]).predict(x[query])

    document = kept(results)
    first = document["trials"][0]
    assert first["settings"] == peers.PEERS["logistic"].defaults
    expected = []
    for batch in (0, 1, 2):
        train, query = split.train[batches[split.train] != batch], split.train[batches[split.train] == batch]
        found = predict(train, query, first["settings"])
        expected.append(f1_score(labels[query], found, labels=np.unique(labels[query]), average="macro"))
    assert [fold["macro_f1"] for fold in first["folds"].values()] == pytest.approx(expected)
    assert first["value"] == pytest.approx(np.mean(expected))
    row = frame.iloc[0]
    assert (row["settings"], row["trials"], row["seeds"], row["reason"]) == ("tuned", 3, 1, "")
    assert row["fold_score"] == pytest.approx(max(trial["value"] for trial in document["trials"]))


@pytest.mark.usefixtures("here")
def test_the_winner_is_trained_as_ours_and_scored_once(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = peers.run(results, source, ["logistic"], trials=0)
    dataset, split = log_normalized(source.dataset), source.split
    model = LogisticRegression(max_iter=1000).fit(dataset.x[split.train], dataset.labels[split.train])
    truth, found = dataset.labels[split.test], model.predict(dataset.x[split.test])
    row = frame.iloc[0]
    assert row["macro_f1"] == pytest.approx(f1_score(truth, found, labels=np.unique(truth), average="macro"))
    assert row["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert (row["settings"], row["trials"]) == ("defaults", 0)
    assert len(kept(results)["finals"]) == 1
    assert np.isnan(row["macro_f1_std"])


def test_peers_get_no_label_of_what_they_predict(results: Results, source: TrainingCells) -> None:
    course = Course.of(results, source)
    arrays, split = course.arrays, source.split
    units = len(course.inputs.units) + 1
    assert set(arrays) == {
        "indptr", "indices", "log", "counts", "genes", "batches",
        *(f"{name}_{unit}" for name in ("train", "labels", "query") for unit in range(units)),
    }  # fmt: skip
    for unit in range(units):
        train, query = arrays[f"train_{unit}"], arrays[f"query_{unit}"]
        assert len(arrays[f"labels_{unit}"]) == len(train)
        assert not np.intersect1d(train, query).size
        assert (train < len(split.train)).all()
    test = arrays[f"query_{units - 1}"]
    assert np.array_equal(test, len(split.train) + np.arange(len(split.test)))
    # Other types of the test cells change nothing of what peers are given.
    labels = source.dataset.labels.copy()
    labels[split.test] = (labels[split.test] + 1) % 3
    other = Course.of(results, replace(source, dataset=replace(source.dataset, labels=labels)))
    assert all(np.array_equal(arrays[name], other.arrays[name]) for name in arrays)
    assert not np.array_equal(course.test_labels, other.test_labels)


def test_peers_get_the_cells_as_they_are(results: Results, source: TrainingCells) -> None:
    arrays = Course.of(results, source).arrays
    rows = np.concatenate([source.split.train, source.split.test])
    dataset = source.dataset.take(rows)
    for name, expected in (("counts", dataset.x), ("log", log_normalized(dataset).x)):
        matrix = sp.csr_matrix((arrays[name], arrays["indices"], arrays["indptr"]), shape=dataset.x.shape)
        assert (matrix != sp.csr_matrix(expected)).nnz == 0
    assert np.array_equal(arrays["batches"], dataset.batches)


def test_logarithms_have_no_counts(tmp_path: Path, source: TrainingCells) -> None:
    logs = replace(source, dataset=log_normalized(source.dataset))
    assert "counts" not in Course.of(study(tmp_path / "nn", logs), logs).arrays


def test_what_is_done_is_not_done_again(ran: tuple[Results, pd.DataFrame], source: TrainingCells) -> None:
    results, frame = ran
    false = "/bin/false"  # would fail if it were asked
    pd.testing.assert_frame_equal(peers.run(results, source, ["logistic"], pythons={"logistic": false}), frame)
    found = peers.read(results)
    assert found is not None
    pd.testing.assert_frame_equal(found, frame)


@pytest.mark.usefixtures("here")
def test_a_cut_off_peer_goes_on_as_if_it_had_not_been(
    ran: tuple[Results, pd.DataFrame], results: Results, source: TrainingCells
) -> None:
    whole = kept(ran[0])
    folder = results.folder
    assert folder is not None
    (folder.path / "peers").mkdir(parents=True)
    cut = {**whole, "trials": whole["trials"][:2], "finals": []}
    (folder.path / "peers" / "logistic.json").write_text(json.dumps(cut))
    peers.run(results, source, ["logistic"])
    again = kept(results)
    for then, now in zip(whole["trials"], again["trials"], strict=True):
        assert {**then, "seconds": 0} == {**now, "seconds": 0}
    assert again["finals"][0]["macro_f1"] == whole["finals"][0]["macro_f1"]


@pytest.mark.parametrize("damage", ["{", '{"version": 0}', "[]"])
@pytest.mark.usefixtures("here")
def test_a_file_that_cannot_be_read_is_computed_again(results: Results, source: TrainingCells, damage: str) -> None:
    assert results.folder is not None
    path = results.folder.path / "peers" / "logistic.json"
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    assert peers.read(results) is None
    assert peers.run(results, source, ["logistic"], trials=0).iloc[0]["seeds"] == 1


def test_results_of_other_cells_do_not_count(ran: tuple[Results, pd.DataFrame], source: TrainingCells) -> None:
    results, _ = ran
    data = replace(results.summary.data, fingerprint="x", test_fingerprint="y")
    assert peers.read(replace(results, summary=replace(results.summary, data=data))) is None


def test_out_of_time(results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child, late = tmp_path / "child", tmp_path / "late"
    fake(
        monkeypatch,
        tmp_path,
        f"""
asleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep({2 * LONGEST})"])
open({str(child)!r}, "w").write(str(asleep.pid))
time.sleep({LONGEST})
open({str(late)!r}, "w")
""",
    )
    expire = process.Process._expire

    def expire_when_asleep(self: process.Process) -> None:
        written(child)
        expire(self)

    monkeypatch.setattr(process.Process, "_expire", expire_when_asleep)
    row = peers.run(results, source, ["logistic"], time_limit=0.5).iloc[0]
    assert not late.exists()
    assert row["reason"] == "out of time after 0.5 s, after 0 of 3 trials"
    assert np.isnan(row["macro_f1"])
    assert gone(written(child))


def test_stopped_by_the_user(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    fake(monkeypatch, tmp_path, f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep({2 * LONGEST})")

    def interrupted(*_: Any) -> Any:
        written(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(process.Process, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peers.run(results, source, ["logistic"])
    assert gone(written(pid))


def written(path: Path) -> int:
    """The number in a file, when it is there."""
    deadline = time.monotonic() + LONGEST
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path.name} was written"
        time.sleep(0.01)
    return int(path.read_text())


def gone(pid: int) -> bool:
    """Whether a process ends, which it does not by itself."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.stdin.readline()\nprint('full', file=sys.stderr)\nos._exit(3)", "its process ended with status 3: full"),
        ("sys.stdin.readline()\nos.kill(os.getpid(), 9)", "its process was killed by signal 9"),
        ("sys.stdin.readline()\nprint(json.dumps({'error': 'ValueError: odd cells'}))", "ValueError: odd cells"),
    ],
)  # fmt: skip
def test_a_peer_that_fails_is_a_row(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str
) -> None:
    fake(monkeypatch, tmp_path, body)
    said: list[str] = []
    row = peers.run(results, source, ["logistic"], watch=said.append).iloc[0]
    assert row["reason"].startswith(reason)
    assert np.isnan(row["accuracy"])
    assert reason in said[-1]
    with monkeypatch.context() as mended:  # the same command then brings numbers
        mended.setattr(comparing, "started", lambda *about: nullcontext(Here("logistic", about[2], tmp_path)))
        assert peers.run(results, source, ["logistic"], trials=1).iloc[0]["reason"] == ""


@pytest.mark.usefixtures("here")
def test_settings_that_fail_are_a_failed_trial(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Here.fit

    def fails_unbalanced(self: Here, unit: int, settings: Any, seed: int, device: str) -> Any:
        if settings != peers.PEERS["logistic"].defaults:
            raise process.FitError("too odd")
        return fit(self, unit, settings, seed, device)

    monkeypatch.setattr(Here, "fit", fails_unbalanced)
    row = peers.run(results, source, ["logistic"]).iloc[0]
    assert row["reason"] == ""
    assert [(trial["state"], trial["reason"]) for trial in kept(results)["trials"]] == [
        ("complete", ""),
        ("fail", "too odd"),
        ("fail", "too odd"),
    ]


def test_a_missing_package_is_named(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "xgboost.py").write_text("raise ImportError('libgomp is not there')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    frame = peers.run(results, source, ["xgboost"])
    assert "pip install 'scdgn[peers]'" in frame.iloc[0]["reason"]
    assert "not installed (xgboost)" in frame.iloc[0]["reason"]


def test_celltypist_says_which_scikit_learn_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> Any:
        raise TypeError("__init__() got an unexpected keyword argument 'multi_class'")

    monkeypatch.setitem(sys.modules, "celltypist", SimpleNamespace(train=train))
    monkeypatch.setattr(worker, "version", lambda name: {"celltypist": "1.7.1", "scikit-learn": "1.9.1"}[name])
    x = sp.csr_matrix(np.ones((2, 3)))
    task = worker.Task(x, x, np.arange(2), None, np.zeros(4, dtype=int), 0, "cpu")
    with pytest.raises(ValueError, match=r"CellTypist 1.7.1 does not go with scikit-learn 1.9.1.*--python celltypist="):
        worker.celltypist(task, peers.PEERS["celltypist"].defaults)


@pytest.mark.usefixtures("here")
def test_predictions_that_are_not_finite_fail(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = (np.full((1, 3), np.nan), np.arange(3), 0.1)
    monkeypatch.setattr(Here, "fit", lambda *_: nothing)
    assert "not finite" in peers.run(results, source, ["logistic"]).iloc[0]["reason"]


@pytest.mark.usefixtures("here")
def test_winners_of_methods_that_draw_have_seeds(
    results: Results, source: TrainingCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peers.PEERS, "logistic", replace(peers.PEERS["logistic"], seeds=4))
    seeds = []
    fit = Here.fit

    def counted(self: Here, unit: int, settings: Any, seed: int, device: str) -> Any:
        seeds.append(seed)
        probabilities, types, seconds = fit(self, unit, settings, seed, device)
        return (np.roll(probabilities, seed, axis=0) if seed >= 100 else probabilities), types, seconds

    monkeypatch.setattr(Here, "fit", counted)
    row = peers.run(results, source, ["logistic"], trials=1).iloc[0]
    finals = kept(results)["finals"]
    assert seeds[-4:] == [final["seed"] for final in finals] == [100, 101, 102, 103]
    values = [final["accuracy"] for final in finals]
    assert (row["accuracy"], row["accuracy_std"]) == (pytest.approx(np.mean(values)), np.std(values, ddof=1))
    assert row["settings"] == "fewer trials"


@pytest.mark.usefixtures("here")
def test_without_folds_the_cells_set_aside_choose(tmp_path: Path, source: TrainingCells) -> None:
    results = study(tmp_path / "nn", source, trials=2, selection="training-domain")
    peers.run(results, source, ["logistic"])
    for trial in kept(results)["trials"]:
        assert trial["value"] == trial["training_domain"]["macro_f1"]


@pytest.mark.usefixtures("here")
def test_types_that_only_the_test_has_are_not_scored(tmp_path: Path) -> None:
    present = {"a": ("B", "NK"), "b": ("B", "NK"), "c": ("B", "NK"), "d": ("B", "NK", "T")}
    source = cells(present=present)
    assert source.split.unscored
    results = study(tmp_path / "nn", source, trials=1)
    course = Course.of(results, source)
    assert set(course.test_labels[course.test_scored]) <= {0, 1}
    assert set(course.test_labels[~course.test_scored]) == {-1}
    assert peers.run(results, source, ["logistic"]).iloc[0]["reason"] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peers": ["logistik"]}, "did you mean logistic"),
        ({"trials": -1}, "give 0 for the defaults"),
        ({"time_limit": 0.0}, "give more than 0"),
        ({"device": "gpu"}, "choose auto, cpu"),
        ({"pythons": {"castel": sys.executable}}, "did you mean castle"),
        ({"pythons": {"castle": "/nowhere/python"}}, "give the path of a Python"),
    ],
)
def test_faults_of_the_user(results: Results, source: TrainingCells, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, DeviceError), match=words):
        peers.run(results, source, **{"peers": ["logistic"], **changes})


def test_studies_that_compare_nothing(results: Results, source: TrainingCells) -> None:
    nobody = source.split.test[:0]
    untested = replace(source, split=replace(source.split, test=nobody, scored=nobody))
    with pytest.raises(DataError, match="--test-batch"):
        peers.run(results, untested, ["logistic"])
    for other in (
        replace(results, folder=None),
        replace(results, summary=summary_with(protocol="seed-best-of-10")),
    ):
        with pytest.raises(DataError, match="give the folder of a search"):
            peers.run(other, source, ["logistic"])
    assert peers.read(replace(results, folder=None)) is None


def test_the_catalogue_and_the_worker_agree() -> None:
    assert set(peers.PEERS) == set(worker.METHODS)
    for name, peer in peers.PEERS.items():
        assert set(peer.space) <= set(peer.defaults), name
        assert all(dimension.holds(peer.defaults[key]) for key, dimension in peer.space.items()), name


def test_one_type_needs_no_peer(tmp_path: Path) -> None:
    def nobody(*_: Any) -> Any:
        raise AssertionError

    arrays = {"train_0": np.arange(3), "labels_0": np.full(3, 2), "query_0": np.arange(3, 5)}
    worker._answer(arrays, {"unit": 0}, nobody, tmp_path)
    with np.load(tmp_path / "answer.npz") as answer:
        assert answer["types"].tolist() == [2]
        assert answer["probabilities"].tolist() == [[1.0], [1.0]]


def test_normalized_information_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    for types in (2, 5):
        one, other = generator.integers(0, 4, 200), generator.integers(0, types, 200)
        other[:100] = one[:100] % types
        assert worker._normalized_information(one, other) == pytest.approx(normalized_mutual_info_score(one, other))
    assert worker._normalized_information(np.zeros(5, dtype=int), np.zeros(5, dtype=int)) == 0


def test_castle_bins_and_drops_what_correlates() -> None:
    assert worker._binned(np.array([0.0, 0.5, 1.0, 1.1, 6.0, 6.1])).tolist() == [0, 1, 1, 2, 2, 3]
    ramp = np.arange(8.0)
    x = np.column_stack([ramp, 2 * ramp + 1, -ramp, np.ones(8), [0, 1] * 4])
    assert worker._uncorrelated(x, 0.9).tolist() == [True, False, True, True, True]


def test_castle_gives_boosted_trees_its_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Trees:
        def __init__(self, **settings: Any) -> None:
            seen["settings"] = settings

        def fit(self, x: Any, labels: Any) -> None:
            seen["train"] = x

        def predict_proba(self, x: Any) -> Any:
            seen["query"] = x
            return np.ones((len(x), 2)) / 2

    monkeypatch.setitem(sys.modules, "xgboost", SimpleNamespace(XGBClassifier=Trees))
    logs = np.log(2.0)  # 1 to the base 2
    train = np.zeros((24, 3))
    train[:, 0] = np.repeat([0.8, 0.5], 12)  # tells the types apart: above and below 1 to the base 2
    train[::2, 1] = 0.5 * logs  # tells nothing
    train[:10, 2] = logs  # too few cells
    query = np.array([[9 * logs, 0.0, 0.0], [2 * logs, 0.5 * logs, 0.0]])
    labels = np.repeat([0, 1], 12)
    task = worker.Task(sp.csr_matrix(train), sp.csr_matrix(query), labels, None, np.zeros(26, dtype=int), 0, "cpu")
    settings = {**peers.PEERS["castle"].defaults, "genes": 1}
    assert worker.castle(task, settings).shape == (2, 2)
    # The only gene by mean is the only one by information; a level of the query that was never trained is the base.
    assert np.array_equal(seen["train"], (train[:, :1] > 0.6).astype(np.float32))
    assert seen["query"].tolist() == [[0.0], [1.0]]
    assert (seen["settings"]["n_estimators"], seen["settings"]["learning_rate"]) == (20, 0.7)
    with pytest.raises(ValueError, match="no gene"):
        worker.castle(replace(task, train=sp.csr_matrix(np.zeros((24, 3)))), settings)


def test_neighbours_vote() -> None:
    task = worker.Task(None, None, np.array([0, 0, 1]), None, np.zeros(4, dtype=int), 0, "cpu")  # type: ignore[arg-type]
    space = np.array([[0.0], [1.0], [5.0], [0.4]])
    assert worker._nearest(space, task, 2, "uniform").tolist() == [[1.0, 0.0]]
    assert worker._nearest(space, task, 50, "uniform").tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)]]


def test_standardised_values_are_of_the_reference_and_clipped() -> None:
    reference = sp.csr_matrix(np.array([[0.0, 1.0], [2.0, 1.0]]))
    (scaled,) = worker._standardized(reference, sp.csr_matrix(np.array([[100.0, 1.0], [0.0, 2.0]])))
    assert scaled.tolist() == [[10.0, 0.0], [-1.0, 1.0]]


def rows(**changes: Any) -> dict[str, Any]:
    return {
        "version": comparing.VERSION, "data": [], "asked": 3, "winner": 1, "reason": "", "versions": {},
        "trials": [
            {"number": n, "state": "complete", "settings": {}, "value": 0.5, "reason": "", "seconds": 2.0, "folds": {},
             "training_domain": None}
            for n in range(3)
        ],
        "finals": [
            {"trial": 1, "seed": seed, "seconds": 1.0, "macro_f1": 0.6 + seed / 1000, "accuracy": 0.7,
             "balanced_accuracy": 0.7}
            for seed in (100, 101)
        ],
        **changes,
    }  # fmt: skip


def group(results: Results, name: str, **files: dict[str, Any]) -> Group:
    assert results.folder is not None
    for peer, document in files.items():
        path = results.folder.path / "peers" / f"{peer}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**document, "data": list(results.data)}))
    return Group(name, (results,))


def test_one_table_with_ours(tmp_path: Path, source: TrainingCells) -> None:
    results = study(tmp_path / "nn", source, dataset="pancreas1")
    found = peers.table(
        [
            group(
                results,
                "islets",
                logistic=rows(),
                harmony=rows(asked=2),
                scvi=rows(asked=0, winner=1, trials=[]),
                castle=rows(reason="out of time"),
            )
        ]
    ).set_index("method")
    assert list(found.index[:2]) == ["NN", "Logistic regression"]
    assert found.loc["NN", ["kind", "settings", "macro_f1", "macro_f1_std", "seconds"]].tolist() == [
        "ours", "tuned", 0.8, 0.02, 10.0,
    ]  # fmt: skip
    assert found["settings"].to_dict() == {
        "NN": "tuned", "Logistic regression": "tuned", "Harmony, kNN": "fewer trials", "CaSTLe": "tuned",
        "scVI, kNN": "defaults", "MNN (published)": "published", "Seurat (published)": "published",
        "CaSTLe (published)": "published", "scVI (published)": "published",
    }  # fmt: skip
    assert found.loc["Logistic regression", "macro_f1"] == pytest.approx(0.7005)
    assert found.loc["Logistic regression", "macro_f1_std"] == pytest.approx(np.sqrt(0.5) / 1000)
    assert found.loc["Logistic regression", "seconds"] == 6.0
    assert found["sees_test"].astype(bool).to_dict() | {"x": True} == {
        name: name in ("Harmony, kNN", "scVI, kNN", "x") for name in [*found.index, "x"]
    }
    assert np.isnan(found.loc["CaSTLe", "macro_f1"])
    assert found.loc["CaSTLe", "reason"] == "out of time"
    assert found.loc["Seurat (published)", "accuracy"] == 0.812
    assert found.loc["MNN (published)", "accuracy"] == 0.591


def test_numbers_go_before_reasons(tmp_path: Path, source: TrainingCells) -> None:
    first, second = (study(tmp_path / name, source) for name in ("nn", "dann"))
    group(first, "x", logistic=rows(reason="not installed"))
    group(second, "x", logistic=rows())
    found = peers.table([Group("x", (first, second))]).set_index("method")
    assert found.loc["Logistic regression", "reason"] == ""


def test_wall_time_counts_a_pack_once() -> None:
    assert _wall_time([(10.0, 20.0), (10.0, 20.0), (15.0, 30.0), (40.0, 41.0), (0.0, 0.0)]) == 21.0
    assert _wall_time([]) == 0.0


def test_nothing_to_compare_is_no_section(results: Results) -> None:
    assert peers.section([Group("islets", (results,))]) is None
    assert peers.read(results) is None


def test_section_of_one_data_set(results: Results) -> None:
    section = peers.section([group(results, "50 % $of$ <islets>", logistic=rows(), castle=rows(reason="out of time"))])
    assert section is not None
    words, picture, table, failed = section.items
    assert isinstance(words, Text)
    assert "NN has the highest macro-F1 on the test batch (0.800), before Logistic regression (0.70" in words.words
    assert isinstance(picture, Picture)
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == ["NN", "Logistic regression"]
    assert isinstance(table, Table)
    assert table.frame["Method"].tolist() == ["NN", "Logistic regression"]
    assert table.frame["Macro-F1"].tolist() == pytest.approx([0.8, 0.7005])
    assert isinstance(failed, Text)
    assert failed.words == "CaSTLe has no numbers on 50 % $of$ <islets>: out of time."
    assert "(1,406 scored cells)" in table.caption
    with styled():
        picture.figure.draw_without_rendering()


def test_section_of_many_data_sets(tmp_path: Path, source: TrainingCells) -> None:
    groups = []
    for number in range(3):
        results = study(tmp_path / str(number), source)
        files = {"logistic": rows(), "scvi": rows(asked=0, winner=1, trials=[])}
        if number:
            files["castle"] = rows()
        groups.append(group(results, f"set{number}", **files))
    section = peers.section(groups)
    assert section is not None
    words, _, scores, accuracy = section.items
    assert isinstance(words, Text)
    assert "NN has the highest mean macro-F1 over 3 data sets (0.800)" in words.words
    assert "ahead of it on 3 of them" in words.words
    assert "CaSTLe" not in words.words  # it lacks a data set
    assert isinstance(scores, Table)
    shown = scores.frame.set_index("Method")
    assert list(scores.frame.columns) == ["Method", "Settings", "Sees test cells", "set0", "set1", "set2", "Mean"]
    assert shown.loc["scVI, kNN", ["Settings", "Sees test cells"]].tolist() == ["defaults", "yes"]
    assert shown.loc["Logistic regression", "Mean"] == pytest.approx(0.7005)
    assert np.isnan(shown.loc["CaSTLe", "Mean"])
    assert isinstance(accuracy, Table)
    assert accuracy.frame["Mean"].iloc[0] == pytest.approx(0.8)


def test_only_defaults_make_no_claim(results: Results) -> None:
    section = peers.section([group(results, "islets", logistic=rows(asked=0, winner=1, trials=[]))])
    assert section is not None
    assert isinstance(section.items[0], Text)
    assert section.items[0].words.endswith("no claims.")


def test_what_the_paper_prints_is_there_without_a_run(tmp_path: Path, source: TrainingCells) -> None:
    results = study(tmp_path / "nn", source, dataset="pbmc")
    section = peers.section([Group("pbmc", (results,))])
    assert section is not None
    (table,) = section.items
    assert isinstance(table, Table)
    assert dict(zip(table.frame["Method"], table.frame["Accuracy"], strict=True)) == {
        "MNN (published)": 0.859, "Seurat (published)": 0.83, "CaSTLe (published)": 0.865, "scVI (published)": 0.808,
    }  # fmt: skip


@pytest.mark.usefixtures("here")
def test_defaults_win_whatever_trials_there_were(results: Results, source: TrainingCells) -> None:
    course = Course.of(results, source)
    peers.run(results, source, ["logistic"])
    one = Kept.load(course_file(results))
    assert one is not None
    one.asked = 0
    assert one.number(course) == 0
    frame = peers.run(results, source, ["logistic"], trials=0)
    assert frame.iloc[0]["settings"] == "defaults"


def course_file(results: Results) -> Path:
    assert results.folder is not None
    return results.folder.path / "peers" / "logistic.json"

"""Trials on Ray are the trials of this process: the same records, each pack on a GPU of its own, every end told."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import ray
import torch
from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import Method
from scdgn.core.expression import Sparse
from scdgn.errors import OutputError, SettingsError
from scdgn.search.engines import placement
from scdgn.search.engines.cluster import Cluster, Resources, _keep_token
from scdgn.search.engines.local import Local
from scdgn.search.folder import Lease, LeaseError
from scdgn.search.records import RUNGS, Outcome, Proposal, TrialRecord
from scdgn.search.shown.watching import Watcher
from scdgn.search.stages import owners
from scdgn.search.study.settings import StudySettings
from scdgn.search.study.study import Study, read_predictions
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.checkpoints import Checkpoints
from scdgn.search.trials.inputs import OwnInputs, normalized
from scdgn.search.trials.objective import Objective, Owner, Place, Stopped, Work
from tests import LONGEST
from tests.faults import tiny
from tests.test_objective import CPU, PREPROCESS, SPACE, Told, compared, inputs, ran, trial
from tests.test_study import CONTRADICTION, opened

ROOT = Path(__file__).resolve().parents[1]
TYPES = ("astrocytes of the cortex", "microglia of the cortex", "neurons of the cortex")


@contextmanager
def within(seconds: int = LONGEST) -> Iterator[None]:
    """Nothing hangs, whatever Ray waits for."""

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"not done after {seconds} s")  # no Exception, which Ray would catch

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with within():
        yield


@contextmanager
def room() -> Iterator[Path]:
    """A folder for Ray: the names of its sockets may not be long."""
    with tempfile.TemporaryDirectory(prefix="scdgn-test-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def ray_of_its_own() -> Iterator[Path]:
    """Ray as the engine starts it, in a folder of its own, which is given.

    The token is for good: a process that has shown one once does so ever after.
    """
    _keep_token()
    with room() as folder, patch.dict(os.environ, RAY_TMPDIR=str(folder), RAY_USAGE_STATS_ENABLED="0"):
        enable_token_auth_by_default()
        yield folder


@pytest.fixture(scope="module")
def sessions() -> Iterator[Path]:
    """Ray with four GPUs that are none; the folder where it writes."""
    with ray_of_its_own() as folder:
        with within():
            ray.init(num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield folder
        with within():
            ray.shutdown()


def never() -> bool:
    return False


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker has it: sums of several threads are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- without a cluster

JOINS = """
from scdgn.search.engines.cluster import Cluster, Resources
from scdgn.errors import ScdgnError
cluster = Cluster(Resources({}))
try:
    print(cluster.kind)
except ScdgnError as error:
    print(type(error).__name__, error)
finally:
    cluster.close()
"""


def joined(resources: str, **variables: str) -> str:
    """What a process of its own is told by Ray."""
    return subprocess.run(
        [sys.executable, "-c", JOINS.format(resources)], env={**os.environ, **variables}, cwd=ROOT, text=True,
        capture_output=True, timeout=LONGEST,
    ).stdout  # fmt: skip


def test_a_machine_that_is_too_small_is_refused_with_the_remedy() -> None:
    told = joined("cpus=4096, gpus=0")
    assert told.startswith("SettingsError a pack asks for 4096 CPUs and 0 GPUs")
    assert "give other --cpus-per-trial and --gpus-per-trial" in told


def test_where_no_cluster_is_that_is_said_soon() -> None:
    told = joined("address='127.0.0.1:1'")
    assert told.startswith("EngineError the Ray cluster at 127.0.0.1:1 cannot be joined")
    assert "docs/distributed.md" in told


FAR = """
import os
from ray.cluster_utils import Cluster as Machines
there = Machines(initialize_head=True, head_node_args={"num_cpus": 1})  # begun before this process had the variable
os.environ["GOMP_SPINCOUNT"] = "4321"
from scdgn.search.engines.cluster import Cluster, Resources
cluster = Cluster(Resources(address=there.address, gpus=0))
try:
    print(cluster.call(lambda: False, os.getenv, "GOMP_SPINCOUNT"))
finally:
    cluster.close()
    there.shutdown()
"""


@pytest.mark.long
def test_workers_of_another_machine_wait_as_ours_do() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with ray_of_its_own():
        told = subprocess.run(
            [sys.executable, "-c", FAR], env=variables, cwd=ROOT, text=True, capture_output=True, timeout=LONGEST
        )
    assert told.stdout.strip() == "4321", told.stderr


def test_a_study_that_would_move_to_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="ray job submit"):
        StudySettings("s", engine="ray", address="ray://head:10001")
    # The variable does what the option does.
    told = joined("", RAY_ADDRESS="ray://127.0.0.1:1")
    assert told.startswith("SettingsError") and "ray job submit" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [("address", "auto"), ("gpus_per_trial", 0.5), ("cpus_per_trial", 2), ("concurrency", 1), ("max_failures", 0)],
)
def test_what_only_ray_knows_is_refused_without_it(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"{key} is for the engine ray: set engine to ray"):
        StudySettings("s", **{key: value})  # type: ignore[arg-type]
    StudySettings("s", engine="ray", **{key: value})  # type: ignore[arg-type]


# --- the same records


@cache
def thin() -> SearchCells:
    """Cells of which a part is kept sparse, with types by names that are found nowhere else."""
    reading = Fields("celltype", "tech")
    cells = tiny(cells={"a": 36, "b": 36, "c": 36, "d": 30}, cell_types=TYPES, depth=20.0, genes=200)
    dataset = from_anndata(cells, reading)
    return seal(TrainingCells(dataset, hold_out(dataset, "d"), reading, ("d",), (), ()), 5, False)


def owner_of(study: Study, kind: type[owners.Watched] = owners.Watched) -> owners.Watched:
    return kind(study, study._folder, Lease(study._folder.lease), Watcher())


def contents(study: Study) -> list[dict[str, Any]]:
    """All that a study knows of its trials, but the time."""
    records = study.records()
    predictions = read_predictions(study._folder, records)
    return [
        {
            **vars(replace(record, seconds=0, started=0, ended=0)),
            "test": predictions[record.number].tolist() if record.number in predictions else None,
        }
        for record in records
    ]


class Looking(owners.Watched):
    """Looks at what Ray has written, while it runs."""

    places: ClassVar[tuple[Path, ...]] = ()
    found: ClassVar[dict[Path, bytes]] = {}

    def finished(self, outcome: Outcome) -> None:
        super().finished(outcome)
        written = [path for place in self.places for path in place.rglob("*") if path.is_file()]
        self.found.update({path: path.read_bytes() for path in written})


# Neither draws nor verdicts depend on which trial ends first.
SEARCH: dict[str, Any] = {
    "trials": 7, "sampler": "RandomSampler", "pruner": "ThresholdPruner",
    "space": {**SPACE, "epochs": 8, "n_top_genes": 100, "lr": {"low": 1e-3, "high": 0.03, "log": True}},
}  # fmt: skip


def here_and_there(
    place: Path, given: OwnInputs, method: Method, pack: int, lower: float, told: type[owners.Watched] = owners.Watched
) -> None:
    """Run a study in this process and on Ray: some trials are stopped, and all is the same."""
    studies = [
        opened(place / name, method=method, **SEARCH, pruner_options={"lower": lower, "n_warmup_steps": 2})
        for name in ("here", "there")
    ]
    here, there = studies
    assert Local("cpu").run(owner_of(here), Work(given, "macro_f1"), pack, never, never)
    cluster = Cluster(Resources(gpus=0, concurrency=2))
    assert cluster.run(owner_of(there, told), Work(given, "macro_f1"), pack, never, never)
    assert contents(there) == contents(here)

    records = there.records()
    assert {record.state for record in records} == {"pruned", "complete"}
    for record in records:
        last = max(record.steps)
        assert list(record.steps) == list(range(1, last + 1))
        assert record.epoch == last == record.curves["epoch"][-1]
        if record.state == "pruned":
            assert 2 <= last < RUNGS and record.steps[last] < lower
        else:
            assert last == RUNGS
    predictions = read_predictions(there._folder, records)
    assert sorted(predictions) == [record.number for record in records if record.state == "complete"]


def test_trials_are_those_of_this_process(sessions: Path, one_thread: None, tmp_path: Path) -> None:
    here_and_there(tmp_path, inputs(), "nn", 1, lower=0.2)


def test_so_are_packs_and_nothing_of_the_study_is_in_what_ray_writes(
    sessions: Path, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(thin())
    prepared = given.prepared(PreprocessSettings(n_top_genes=100, scaling="none"), CPU)
    assert {type(each.cells.x) for each in prepared} == {Sparse, torch.Tensor}
    of_tune = tmp_path / "temporary"
    of_tune.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(of_tune))
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    Looking.places = of_tune, sessions
    Looking.found.clear()
    here_and_there(tmp_path, given, "scdgn", 3, lower=0.32, told=Looking)

    assert any(path.suffix == ".pkl" and of_tune in path.parents for path in Looking.found)
    assert any(sessions in path.parents for path in Looking.found)
    for path, content in Looking.found.items():
        assert not [name for name in TYPES if name.encode() in content], path
        if of_tune in path.parents:
            words = (
                b"scdgn.search.study.study",
                b"scdgn.search.trials.objective",
                b"scdgn.search.trials.inputs",
                b"scdgn.search.stages.owners",
                b"optuna",
                b"macro_f1",
            )
            assert not [word for word in words if word in content], path
    assert not list(of_tune.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(("method", "pack"), [("nn", 3), ("scdgn", 1), ("dann", 2)])
def test_so_is_every_method(sessions: Path, one_thread: None, tmp_path: Path, method: Method, pack: int) -> None:
    here_and_there(tmp_path, inputs(thin()), method, pack, lower=0.32)


def test_placed_cells_are_the_cells_and_large_ones_are_read_where_they_lie(
    sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdgn.cells.preprocess.DENSE_BYTES", 0)
    given = inputs(thin())
    proposal = trial(preprocess=PREPROCESS)
    wanted = PREPROCESS
    cells = ray.put(normalized(given.cells, PREPROCESS.target_sum))
    stored = placement._prepare(ray.get(cells), given.units, wanted, "cpu")
    placed = placement.PlacedInputs(
        given.selection, given.cell_types, given.seed, given.whole, ray.put(given.units),
        {PREPROCESS.target_sum: cells}, {wanted: ray.put(stored)},
    )  # fmt: skip
    there = placed.prepared(wanted, CPU)
    (lying,) = {each.cells.x.values.data_ptr() for each in there if isinstance(each.cells.x, Sparse)}
    assert lying == np.asarray(ray.get(cells).dataset.x.data).ctypes.data
    for mine, theirs in zip(given.prepared(wanted, CPU), there, strict=True):
        assert isinstance(theirs.cells.x, Sparse) and isinstance(mine.cells.x, Sparse)
        assert torch.equal(mine.cells.x.dense(), theirs.cells.x.dense())
        assert np.array_equal(mine.labels, theirs.labels)
    one, other = (ran(Objective(each, "macro_f1", CPU), proposal) for each in (given, placed))
    assert compared(one.outcomes[0]) == compared(other.outcomes[0]) and one.reports == other.reports


# --- a pack on each GPU


@dataclass(frozen=True)
class Marking:
    """Work whose trials tell where they ran and when, and train nothing.

    Attributes
    ----------
    place
        A folder where they meet.
    meeting
        How many packs have to run at once before one of them ends.
    faults
        What a trial raises, by the width of its hidden layer.
    endless
        Numbers of trials that end only when they are told to stop.
    """

    place: str = ""
    meeting: int = 1
    faults: Mapping[int, Exception] = field(default_factory=dict)
    endless: tuple[int, ...] = ()

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        return partial(self._train, stopping)

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Marking:
        return self

    def _train(self, stopping: Callable[[], bool], proposals: Sequence[Proposal], owner: Owner) -> None:
        began = time.time()
        for proposal in proposals:
            if fault := self.faults.get(proposal.settings.hidden):
                Path(self.place, f"tried {proposal.number} at {began}").touch()
                raise fault
        Path(self.place, f"began {proposals[0].number}").touch()
        until = began + LONGEST
        while len(list(Path(self.place).glob("began *"))) < self.meeting and time.time() < until:
            time.sleep(0.01)
        while proposals[0].number in self.endless:
            time.sleep(0.05)
            if stopping():
                Path(self.place, f"stopped {proposals[0].number}").touch()
                raise Stopped
        time.sleep(0.1)
        for proposal in proposals:
            seen = {
                "visible": os.environ["CUDA_VISIBLE_DEVICES"], "gpus": torch.cuda.device_count(),
                "threads": torch.get_num_threads(), "pid": os.getpid(), "began": began, "ended": time.time(),
            }  # fmt: skip
            owner.report(proposal.number, RUNGS, 0.5)
            owner.finished(Outcome(TrialRecord(proposal.number, "complete", reason=json.dumps(seen))))


class Asking(Told):
    """An owner of trials that all have the same settings."""

    def __init__(self, trials: int = 1) -> None:
        super().__init__()
        self._left = [trial(number) for number in range(trials)]
        self.fleets: list[Mapping[str, Any]] = []

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        pack, self._left = self._left[:size], self._left[size:]
        return pack, len(pack) > 0

    def workers(self, fleet: Mapping[str, Any]) -> None:
        self.fleets.append(fleet)

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(outcome.record.reason) for _, outcome in sorted(self.outcomes.items())]


def most_at_once(seen: Sequence[Mapping[str, Any]]) -> int:
    times: list[tuple[float, float]] = [(one["began"], one["ended"]) for one in seen]
    return max(sum(began <= moment < ended for began, ended in times) for moment, _ in times)


def test_each_of_four_gpus_has_a_pack(sessions: Path, tmp_path: Path) -> None:
    owner = Asking(4)
    assert Cluster(Resources()).run(owner, Marking(str(tmp_path), meeting=4), 1, never, never)
    assert sorted(one["visible"] for one in owner.seen) == ["0", "1", "2", "3"]
    assert most_at_once(owner.seen) == 4
    told = owner.fleets[-1]
    assert told["slots"] == 4 and told["retries"] == 0 and list(told["trials"].values()) == [1] * 4
    assert [node["gpus"] for node in told["nodes"]] == [4]


@pytest.mark.long
def test_halves_of_a_gpu_are_shared_by_two_packs(sessions: Path, tmp_path: Path) -> None:
    owner = Asking(16)
    assert Cluster(Resources(gpus=0.5)).run(owner, Marking(str(tmp_path), meeting=8), 2, never, never)
    packs = owner.seen[::2]
    assert [one["pid"] for one in owner.seen[1::2]] == [one["pid"] for one in packs]
    assert sorted(one["visible"] for one in packs) == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert most_at_once(packs) == 8
    assert owner.fleets[-1]["slots"] == 8


def test_packs_without_a_gpu_see_none_and_no_more_run_than_wanted(sessions: Path, tmp_path: Path) -> None:
    owner = Asking(20)
    cluster = Cluster(Resources(gpus=0, concurrency=2))
    assert not cluster.run(owner, Marking(str(tmp_path), meeting=2), 1, lambda: len(owner.outcomes) >= 4, never)
    assert {(one["visible"], one["gpus"], one["threads"]) for one in owner.seen} == {("", 0, 1)}
    assert most_at_once(owner.seen) <= 2
    # Workers stay for the next pack; and when it was enough, what ran had its end and nothing else began.
    assert len({one["pid"] for one in owner.seen}) == 2
    assert 4 <= len(owner.outcomes) <= 5
    assert len(list(tmp_path.glob("began *"))) == len(owner.outcomes)
    assert owner.fleets[-1]["workers"] == []


# --- faults of trials, and of those who own them


def test_a_trial_that_raises_fails_alone_and_once(
    sessions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose settings contradict each other never leave the study, even where they are all of a pack."""
    monkeypatch.setattr("scdgn.search.study.space._contradictions", lambda *_: [])  # as if they had not been foreseen
    study = opened(tmp_path / "study", space={**CONTRADICTION, "query_weight": [0.0, 0.5, 1.0]}, trials=12)
    work = Marking(str(tmp_path), faults={8: ValueError("its first word\nand another")})
    assert Cluster(Resources(gpus=0, concurrency=2)).run(owner_of(study), work, 1, never, never)
    records = study.records()
    reasons = []
    for record in records:
        if study._study.trials[record.number].params["query_weight"]:
            assert record.state == "fail" and "query_weight" in record.reason
        elif record.settings["hidden"] == 8:
            assert (record.state, record.reason) == ("fail", "ValueError: its first word\nand another")
            assert len(list(tmp_path.glob(f"tried {record.number} *"))) == 1
        else:
            assert record.state == "complete"
        reasons.append(record.reason[:6])
    assert {"ValueE", '{"visi'} < set(reasons) and len(records) == 12


class Full(Asking):
    """An owner whose disk is full."""

    def finished(self, outcome: Outcome) -> None:
        raise OutputError("there is no place left")


def test_a_study_that_cannot_be_written_ends_the_search(sessions: Path, tmp_path: Path) -> None:
    owner = Full(9)
    with pytest.raises(OutputError, match="there is no place left"):
        Cluster(Resources(gpus=0, concurrency=2)).run(
            owner, Marking(str(tmp_path), meeting=2, endless=(0,)), 1, never, never
        )
    # The other worker was told; nothing began after that.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["began 0", "began 1", "stopped 0"]


class TakenOver(Asking):
    """An owner that is none any more."""

    def next_pack(self, size: int) -> tuple[list[Proposal], bool]:
        raise LeaseError("another process took over the study")


def test_a_study_that_another_process_owns_is_left_to_it(sessions: Path) -> None:
    with pytest.raises(LeaseError, match="took over"):
        Cluster(Resources(gpus=0, concurrency=1)).run(TakenOver(1), Marking(), 1, never, never)


# --- cut off, and gone on with


@dataclass(frozen=True, eq=False)
class Slow(Work):
    """Work that takes its time, so that it can be cut off in the middle, and counts its epochs.

    Attributes
    ----------
    place
        Folder of the counts: a file per pack, with a byte per epoch but the last.
    pack
        Name of its file.
    pause
        Seconds per epoch.
    meeting
        How many packs have to be there before one of them goes on from its first epoch.
    """

    place: str = ""
    pack: str = ""
    pause: float = 0.05
    meeting: int = 1

    def objective(self, device: torch.device, stopping: Callable[[], bool]) -> Objective:
        def asked() -> bool:
            time.sleep(self.pause)
            with Path(self.place, self.pack).open("a") as file:
                file.write(".")
            while len(epochs(Path(self.place))) < self.meeting and not stopping():
                time.sleep(0.01)
            return stopping()

        return Objective(self.inputs, self.metric, device, self.precision, asked, self.checkpoints)

    def sent(self, place: Place, proposals: Sequence[Proposal]) -> Slow:
        placed = super().sent(place, proposals)
        assert isinstance(placed, Slow)
        return replace(placed, pack=f"epochs of {proposals[0].number}")


def epochs(place: Path) -> dict[str, int]:
    """Epochs trained by each pack, but for the last one, after which nobody asks."""
    return {path.name: path.stat().st_size for path in place.glob("epochs of *")}


def test_what_is_cut_off_goes_on_from_where_it_was(sessions: Path, one_thread: None, tmp_path: Path) -> None:
    asked = {
        "trials": 3, "method": "scdgn", "sampler": "RandomSampler", "pruner": "NopPruner",
        "space": {**SPACE, "epochs": 96},
    }  # fmt: skip
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), 3600.0, "this study")
    work = Slow(inputs(), "macro_f1", checkpoints=checkpoints, place=str(tmp_path), meeting=2)
    study = opened(tmp_path / "cut", **asked)
    cluster = Cluster(Resources(gpus=0, concurrency=2))

    def stopping() -> bool:
        records = study.records()
        return len(records) == 3 and all(len(record.steps) >= 2 for record in records)

    assert not cluster.run(owner_of(study), work, 2, never, stopping)
    assert [record.state for record in study.records()] == ["running"] * 3
    for numbers in ([0, 1], [2]):
        found = checkpoints.find(numbers)
        assert found is not None and found.state.epoch == epochs(tmp_path)[f"epochs of {numbers[0]}"]
        assert 24 <= found.state.epoch < 95

    again = opened(tmp_path / "cut", **asked)
    assert cluster.run(owner_of(again), work, 2, never, never)
    # Neither pack did an epoch again.
    assert epochs(tmp_path) == {"epochs of 0": 95, "epochs of 2": 95}
    whole = opened(tmp_path / "whole", **asked)
    assert Local("cpu").run(owner_of(whole), Work(inputs(), "macro_f1"), 2, never, never)
    assert contents(again) == contents(whole)
    assert not list((tmp_path / "checkpoints").iterdir())


# --- what trains, but is no trial


def numbers(count: int) -> dict[str, Any]:
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    return {"drawn": np.arange(count), "visible": visible, "threads": torch.get_num_threads()}


def faulty(fault: Exception) -> None:
    raise fault


def endless(place: Path) -> None:
    place.touch()
    while True:
        time.sleep(0.05)


def test_a_function_is_called_where_trials_are(sessions: Path, tmp_path: Path) -> None:
    cluster = Cluster(Resources(gpus=0, cpus=2))
    found = cluster.call(never, numbers, count=1_000_000)
    found["drawn"][0] = 7  # nothing that the object store holds could be written to
    assert (found["visible"], found["threads"]) == ("", 2)
    with pytest.raises(SettingsError, match=r"^a is 1: give 2; b is 3: give 4$") as caught:
        cluster.call(never, faulty, SettingsError("a is 1: give 2", "b is 3: give 4"))
    assert caught.value.faults == ("a is 1: give 2", "b is 3: give 4")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cluster.call(never, faulty, ZeroDivisionError("a bug"))
    begun = tmp_path / "begun"
    with pytest.raises(Stopped):
        cluster.call(begun.exists, endless, begun)
    assert cluster.call(never, numbers, 3)["drawn"].tolist() == [0, 1, 2]


def test_a_function_has_a_gpu_of_its_own(sessions: Path) -> None:
    cluster = Cluster(Resources())
    assert cluster.kind == "cuda"
    assert cluster.call(never, numbers, 1)["visible"] in ("0", "1", "2", "3")

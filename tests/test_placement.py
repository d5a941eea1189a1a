"""Inputs that went through Ray's object store are the inputs, and lie there once."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import ray
import scipy.sparse as sp
import torch
from torch import Tensor

from scdgn.cells import preprocess as preprocess_module
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import hold_out
from scdgn.core.config import Settings
from scdgn.core.expression import Expression, Scale, Sparse
from scdgn.core.pack.members import Member
from scdgn.core.training import train
from scdgn.errors import DataError
from scdgn.search.engines.desk import Envelope
from scdgn.search.engines.placement import KEPT, PlacedInputs, Placement, Stored, load, store, views
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import OwnInputs, Prepared, normalized, prepare
from scdgn.search.trials.objective import Objective, Work
from tests import LONGEST
from tests.faults import tiny
from tests.test_inputs import as_dense, assert_same, dense
from tests.test_mapped import written
from tests.test_objective import CPU, Told, compared, trial

PLAIN = PreprocessSettings()
STANDARD = PreprocessSettings(scaling="standard")
PER_BATCH = PreprocessSettings(scaling="standard-per-batch")

pytestmark = pytest.mark.filterwarnings(
    # Ray 2.60 leaves files and sockets to the garbage collector, in this process and when it starts others.
    "ignore:unclosed:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)


@cache
def cells(each: int = 60, depth: float = 100.0) -> SearchCells:
    """Counts in compressed rows, large enough not to be sent by value, and sparse enough for a CPU to gain from it."""
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells=dict.fromkeys("abcd", each), genes=600, depth=depth), reading)
    split = hold_out(dataset, "d")
    return seal(TrainingCells(dataset, split, reading, ("d",), (dataset.take(split.test),), ()), 5, True)


def own(given: SearchCells | None = None, seed: int = 0) -> OwnInputs:
    return OwnInputs(given or cells(), "leave-one-domain-out", seed, 1)


def made(settings: PreprocessSettings, given: SearchCells | None = None) -> Stored:
    """What the task stores."""
    there = normalized(given or cells(), settings.target_sum)
    return store(prepare(there, own(given).units, settings, "cpu"), views(there))


def fetched(stored: Stored, settings: PreprocessSettings, given: SearchCells | None = None) -> list[Prepared]:
    """What a worker makes of it, with cells of its own and bytes that may not be written to."""
    sealed = Stored(stored.content, [frozen(array) for array in stored.arrays])
    found: list[Prepared] = load(sealed, views(normalized(given or cells(), settings.target_sum)))
    return found


def frozen(array: Any) -> Any:
    """A copy that nobody can write to."""
    return np.frombuffer(array.tobytes(), dtype=np.uint8)


def expressions(prepared: Sequence[Prepared]) -> list[Expression]:
    return [x for one in prepared for x in (one.cells.x, one.x, one.test) if x is not None]


def tensors(x: Expression) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    fields = [x.starts, x.counts, x.columns, x.values, x.selected, x.factors, *(x.scale or ())]
    return [tensor for tensor in fields if isinstance(tensor, Tensor)]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the cells were too many to be made dense."""
    monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)


# Stored and loaded


@pytest.mark.parametrize("settings", [PLAIN, STANDARD, PER_BATCH], ids=lambda settings: settings.scaling)
@pytest.mark.parametrize("form", ["small", "dense", "large"])
def test_what_is_loaded_is_what_was_stored(
    form: str, settings: PreprocessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "large":
        monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    given = as_dense(cells()) if form == "dense" else cells()
    expected = own(given).prepared(settings, CPU)
    assert any(isinstance(x, Sparse) for x in expressions(expected)) == (
        form == "large" or (form, settings) == ("small", PLAIN)
    )
    assert_same(fetched(made(settings, given), settings, given), expected)


def test_the_test_cells_are_there_for_the_unit_of_all_domains() -> None:
    prepared = fetched(made(STANDARD), STANDARD)
    (test,) = (one.test for one in prepared if one.test is not None)
    expected = own().prepared(STANDARD, CPU)[-1].test
    assert isinstance(test, Tensor) and isinstance(expected, Tensor) and torch.equal(test, expected)
    without = replace(cells(), test=None)
    assert all(one.test is None for one in fetched(made(STANDARD, without), STANDARD, without))


def test_units_of_one_fold_are_objects_of_their_own() -> None:
    """Models share mini-batches by the identity of their cells."""
    prepared = fetched(made(PLAIN), PLAIN)
    assert len({id(one.cells) for one in prepared}) == len(prepared) == 4


@pytest.mark.usefixtures("large")
def test_of_views_of_the_cells_only_the_view_is_stored() -> None:
    given = cells(200, 3000.0)
    stored = made(STANDARD, given)
    x = given.dataset.x
    assert isinstance(x, sp.csr_matrix)
    assert len(stored.content) + sum(array.nbytes for array in stored.arrays) < 0.1 * (x.data.nbytes + x.indices.nbytes)


@pytest.mark.usefixtures("large")
def test_what_was_a_view_is_one_again() -> None:
    there = views(normalized(cells(), STANDARD.target_sum))
    prepared: list[Prepared] = load(made(STANDARD), there)
    for one in prepared:
        for x in (one.cells.x, one.x):
            assert isinstance(x, Sparse)
            assert x.values is there["dataset.data"] and x.columns is there["dataset.indices"]
        if one.test is not None:
            assert isinstance(one.test, Sparse) and one.test.values is there["test.data"]


@pytest.mark.usefixtures("large")
def test_a_query_that_is_viewed_is_named_by_its_place() -> None:
    two = replace(cells(), unlabeled=(cells().unlabeled[0], cells().dataset.take(np.arange(7))))
    there = views(normalized(two, 1e4))
    assert set(there) == {
        f"{name}.{part}" for name in ("dataset", "test", "unlabeled0", "unlabeled1") for part in ("indices", "data")
    }
    kept = store([there["unlabeled1.data"], there["unlabeled0.data"]], there)
    assert kept.arrays == []
    one, other = load(kept, there)
    assert one is there["unlabeled1.data"] and other is there["unlabeled0.data"]


def test_dense_cells_have_nothing_to_view() -> None:
    assert views(normalized(as_dense(cells()), 1e4)) == {}


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_is_loaded_lies_where_it_was_stored(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "large":
        monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    stored = made(STANDARD)
    spans = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in stored.arrays]
    there = views(normalized(cells(), 1e4))
    spans += [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in there.values()]
    prepared: list[Prepared] = load(stored, there)
    found = [tensor for x in expressions(prepared) for tensor in tensors(x)]
    found += [tensor for one in prepared for tensor in (one.cells.labels, one.cells.domains)]
    found += [torch.from_numpy(one.labels) for one in prepared]
    assert len(found) > 4 * 4
    for tensor in found:
        assert any(start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end for start, end in spans)


@pytest.mark.parametrize(
    "content",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(10.0)[::2],
        torch.arange(10.0)[4:],
        torch.tensor([True, False]),
        torch.tensor(3.5),
        torch.zeros(0),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.zeros(2, dtype=torch.float64),
    ],
    ids=["matrix", "transposed", "strided", "part", "Booleans", "number", "nothing", "no rows", "double"],
)
def test_a_tensor_of_any_form(content: Tensor) -> None:
    (back,) = load(store([content], {}), {})
    assert isinstance(back, Tensor) and back.dtype == content.dtype and torch.equal(back, content)


def test_what_stands_beside_tensors_comes_back_too() -> None:
    tensor = torch.arange(3)
    content: dict[str, Any] = {
        "array": np.arange(4.0),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "names": np.array(["a", "bc"]),
        "none": None,
        "scale": Scale(torch.zeros(1, 2), torch.ones(1, 2), 10.0),
        "twice": (tensor, tensor),
    }
    back = load(store(content, {}), {})
    for name in ("array", "columns", "names"):
        assert np.array_equal(back[name], content[name]) and back[name].dtype == content[name].dtype
    assert back["none"] is None and back["scale"].clip == 10.0 and torch.equal(back["scale"].std, torch.ones(1, 2))
    assert back["twice"][0] is back["twice"][1]


def test_a_part_of_what_is_shared_is_not_taken_for_all_of_it() -> None:
    shared = {"x": torch.arange(10.0)}
    part, turned, whole = load(store([shared["x"][:4], shared["x"].reshape(2, 5), shared["x"]], shared), shared)
    assert torch.equal(part, torch.arange(4.0)) and turned.shape == (2, 5)
    assert whole is shared["x"]


def test_nothing_is_not_taken_for_another_nothing() -> None:
    """An array without entries lies nowhere: a query of cells without counts has two of them."""
    shared = {"indices": torch.zeros(0, dtype=torch.int32), "data": torch.zeros(0)}
    back = load(store([torch.zeros(0, dtype=torch.int64), shared["indices"], shared["data"]], shared), shared)
    assert [tensor.dtype for tensor in back] == [torch.int64, torch.int32, torch.float32]


def test_what_is_stored_does_not_change_with_what_it_came_from() -> None:
    """The store takes what is put into it later than `store` was called."""
    stored = made(STANDARD)
    first = pickle.dumps([array.tobytes() for array in stored.arrays])
    assert pickle.dumps([array.tobytes() for array in made(STANDARD).arrays]) == first


SMALL: dict[str, object] = {
    "hidden": 8, "latent": 4, "domain_code": 4, "epochs": 3, "batch_size": 32, "dropout": 0.2, "lr": 0.01,
    "pairing": "batch",
}  # fmt: skip


@pytest.mark.parametrize("form", ["small", "large", "dense"])
@pytest.mark.parametrize("settings", [PLAIN, STANDARD], ids=lambda settings: settings.scaling)
def test_training_from_what_was_loaded_is_training(
    form: str, settings: PreprocessSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, and nothing is written to what cannot be written to."""
    if form == "large":
        monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    given = as_dense(cells()) if form == "dense" else cells()
    stored = made(settings, given)
    before = [array.tobytes() for array in stored.arrays]

    def trained(prepared: Sequence[Prepared]) -> list[Any]:
        members = [Member(Settings.from_mapping(SMALL), one.cells, seed, 0) for one in prepared for seed in (0, 1)]
        return train(members)

    loaded = fetched(stored, settings, given)
    for one, other in zip(trained(loaded), trained(own(given).prepared(settings, CPU)), strict=True):
        assert repr(one.history) == repr(other.history)
        assert all(torch.equal(weight, other.model.weights[name]) for name, weight in one.model.weights.items())
    assert [array.tobytes() for array in stored.arrays] == before


# Placed


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of its sockets may not be long
    with patch.dict(os.environ, RAY_USAGE_STATS_ENABLED="0"):
        ray.init(
            num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            _temp_dir=folder,
        )  # fmt: skip
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def in_worker(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process of its own, that stays for the next one."""
    remote: Any = ray.remote(num_cpus=1)(function)
    return ray.get(remote.remote(*args), timeout=LONGEST)


@dataclass
class Counted:
    """Counts the tasks that a placement starts."""

    placement: Placement
    started: int = 0

    def __post_init__(self) -> None:
        self._task, self.placement._task = self.placement._task, self

    def remote(self, *args: Any) -> Any:
        self.started += 1
        return self._task.remote(*args)


def prepared_there(placed: PlacedInputs, settings: PreprocessSettings) -> list[Prepared]:
    prepared = placed.prepared(settings, CPU)
    assert placed.prepared(settings, CPU) is prepared  # trials of a pack share it
    return [_copied(one) for one in prepared]


def _copied(prepared: Prepared) -> Prepared:
    """By itself: the store is another process's."""
    return pickle.loads(pickle.dumps(prepared))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_a_worker_has_the_inputs_that_the_driver_has(form: str) -> None:
    inputs = own(as_dense(cells()) if form == "dense" else cells())
    wanted = [PLAIN, STANDARD, replace(PLAIN, target_sum=300.0)]
    placed = Placement("cpu")(inputs, wanted)
    for settings in wanted:
        assert_same(in_worker(prepared_there, placed, settings), inputs.prepared(settings, CPU))


@pytest.mark.usefixtures("cluster")
def test_a_worker_has_the_units_and_all_else_that_the_driver_has() -> None:
    inputs = own(seed=5)
    placed = Placement("cpu")(inputs, [])
    for name in ("selection", "cell_types", "seed"):
        assert getattr(placed, name) == getattr(inputs, name)
    for there, here in zip(in_worker(lambda: placed.units), inputs.units, strict=True):
        assert (there.name, there.seeds) == (here.name, here.seeds)
        for name in ("train", "scored", "held_out"):
            assert np.array_equal(getattr(there, name), getattr(here, name))


def _trained(work: Work, proposals: Sequence[Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    told = Told()
    work.objective(CPU, lambda: False)(proposals, told)
    return told.outcomes, told.reports


@pytest.mark.usefixtures("cluster")
def test_a_worker_s_trials_are_those_of_the_driver() -> None:
    """All of the objective, and bit by bit; the worker dies if it writes to the store."""
    inputs = own()
    proposals = [
        trial(0, STANDARD),
        trial(1, PLAIN, hidden=12, dropout=0.3),
    ]
    here = Told()
    Objective(inputs, "macro_f1", CPU)(proposals, here)
    outcomes, reports = in_worker(_trained, Work(inputs, "macro_f1").sent(Placement("cpu"), proposals), proposals)
    assert outcomes.keys() == here.outcomes.keys() and reports == here.reports
    for number, outcome in outcomes.items():
        assert compared(outcome) == compared(here.outcomes[number])


MAPS = Path("/proc/self/maps")


def _mapped(placed: PlacedInputs, settings: PreprocessSettings) -> list[str]:
    """Which files the cells to train on lie in."""
    prepared = placed.prepared(settings, CPU)
    fields = [line.split(maxsplit=5) for line in MAPS.read_text().splitlines()]
    found = []
    for one in prepared:
        place = tensors(one.cells.x)[0].data_ptr()
        for span, *_, name in (line for line in fields if len(line) == 6):
            start, _, end = span.partition("-")
            if int(start, 16) <= place < int(end, 16):
                found.append(name.strip())
    return found


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's /proc to see what memory is")
def test_a_worker_reads_the_cells_where_the_store_has_them() -> None:
    placed = Placement("cpu")(own(), [STANDARD])
    found = in_worker(_mapped, placed, STANDARD)
    assert len(found) == 4 and all("plasma" in name for name in found), found


@pytest.mark.usefixtures("cluster")
def test_a_second_pack_of_the_same_preprocessing_starts_no_second_task() -> None:
    inputs, counted = own(), Counted(Placement("cpu"))
    one = counted.placement(inputs, [STANDARD, STANDARD, PLAIN])
    other = counted.placement(inputs, [PLAIN, STANDARD])
    assert counted.started == 2
    assert one.prepared_cells == other.prepared_cells and one.cells == other.cells
    assert one.described == other.described


@pytest.mark.usefixtures("cluster")
def test_cells_are_stored_once_for_a_target_sum_and_again_for_another() -> None:
    inputs, counted = own(), Counted(Placement("cpu"))
    other = replace(STANDARD, target_sum=300.0)
    placed = counted.placement(inputs, [STANDARD, PLAIN, other])
    assert len(placed.cells) == 2 and counted.started == 3
    stored: dict[float, SearchCells] = {total: ray.get(cells, timeout=LONGEST) for total, cells in placed.cells.items()}
    for total, found in stored.items():
        x: Any = found.dataset.x
        assert np.expm1(x.toarray()).sum(axis=1) == pytest.approx(total, rel=1e-4)
    # Another scoring of the same cells, as of the best trials, stores them not again.
    again = counted.placement(own(seed=50), [STANDARD])
    assert again.cells[1e4] == placed.cells[1e4] and again.described != placed.described
    assert counted.started == 4


@pytest.mark.usefixtures("cluster")
def test_what_is_stored_holds_no_label_of_a_test_cell() -> None:
    placed = Placement("cpu")(own(), [PLAIN])
    stored: SearchCells = ray.get(placed.cells[1e4], timeout=LONGEST)
    assert stored.test is not None
    assert all(set(dataset.labels) == {-1} for dataset in (stored.test, *stored.unlabeled))


@pytest.mark.usefixtures("cluster")
def test_a_few_preprocessings_are_kept_and_those_handed_out_stay() -> None:
    inputs, counted = own(), Counted(Placement("cpu"))
    first = counted.placement(inputs, [STANDARD])
    others = [replace(STANDARD, clip=1.0 + number) for number in range(2 * KEPT)]
    for settings in others:
        (prepared,) = counted.placement(inputs, [settings]).prepared_cells.values()
        ray.wait([prepared], timeout=LONGEST)  # all at once, each would start a process
    started = counted.started
    assert started == 1 + len(others)
    assert counted.placement(inputs, [others[-1]]).cells == first.cells  # in use all the time
    assert counted.started == started
    assert_same(in_worker(prepared_there, first, STANDARD), inputs.prepared(STANDARD, CPU))
    again = counted.placement(inputs, [STANDARD])
    assert counted.started == started + 1
    assert_same(in_worker(prepared_there, again, STANDARD), inputs.prepared(STANDARD, CPU))


@pytest.mark.usefixtures("cluster")
def test_the_kind_of_the_workers_devices_is_what_is_prepared_for() -> None:
    """Dense for a GPU, where a CPU gains from sparse input."""
    inputs = own()
    forms = {}
    for kind in ("cpu", "cuda"):
        prepared = in_worker(prepared_there, Placement(kind)(inputs, [PLAIN]), PLAIN)
        forms[kind] = {type(one.cells.x) for one in prepared}
    assert Sparse in forms["cpu"] and forms["cuda"] == {Tensor}


def _opened(envelope: Envelope) -> list[Prepared]:
    placed, again = envelope.open()
    assert placed.prepared_cells == again.prepared_cells
    return prepared_there(placed, STANDARD)


@pytest.mark.usefixtures("cluster")
def test_what_is_placed_stays_while_an_envelope_refers_to_it() -> None:
    """Ray counts the references that it finds in what it carries, and an envelope's content is closed to it."""
    inputs = own(seed=9)
    placed = Placement("cpu")(inputs, [STANDARD])
    references = {placed.described, *placed.cells.values(), *placed.prepared_cells.values()}
    envelope = Envelope.of((placed, placed))
    assert set(envelope.references) == references
    carried = ray.put([envelope])
    del placed, references, envelope  # all that the driver has
    gc.collect()
    (back,) = ray.get(carried, timeout=LONGEST)
    assert_same(in_worker(_opened, back), inputs.prepared(STANDARD, CPU))


def _refused(placed: PlacedInputs, settings: PreprocessSettings) -> tuple[bool, str]:
    try:
        placed.prepared(settings, CPU)
    except Exception as error:
        return isinstance(error, DataError), str(error)
    return False, ""


@pytest.mark.usefixtures("cluster")
def test_settings_that_do_not_go_with_the_cells_are_refused_as_they_are_in_the_driver() -> None:
    """The reason is kept with the trial: one sentence, and no traceback of a machine elsewhere."""
    test = cells().test
    assert test is not None
    inputs = own(replace(cells(), test=replace(test, genes=np.array([f"other {number}" for number in range(600)]))))
    with pytest.raises(DataError) as here:
        inputs.prepared(STANDARD, CPU)
    refused, reason = in_worker(_refused, Placement("cpu")(inputs, [STANDARD]), STANDARD)
    assert refused
    assert reason == str(here.value)


# Mapped


def shelved(given: SearchCells, folder: Path) -> SearchCells:
    """The same cells, training and test, in one file of rows."""
    assert given.test is not None
    whole = sp.vstack([sp.csr_matrix(given.dataset.matrix), sp.csr_matrix(given.test.matrix)], format="csr")
    there, training = written(folder, whole), len(given.dataset)
    return replace(
        given,
        dataset=replace(given.dataset, x=there.take(np.arange(training))),
        test=replace(given.test, x=there.take(np.arange(training, whole.shape[0]))),
        unlabeled=(),
    )


@pytest.mark.parametrize("small", [True, False])
def test_of_mapped_cells_nobody_needs_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    there = shelved(cells(), tmp_path / "rows")
    if not small:
        monkeypatch.setattr(preprocess_module, "DENSE_BYTES", 0)
    for settings in (PLAIN, STANDARD):
        stored = made(settings, there)
        assert not stored.borrows
        for one, other in zip(load(stored, {}), own().prepared(settings, CPU), strict=True):
            for x, y in zip(expressions([one]), expressions([other]), strict=True):
                torch.testing.assert_close(dense(x), dense(y), rtol=0 if small else 2e-5, atol=0 if small else 2e-6)


@pytest.mark.usefixtures("cluster")
def test_a_worker_has_mapped_cells(tmp_path: Path) -> None:
    placed = Placement("cpu")(own(shelved(cells(), tmp_path / "rows")), [PLAIN, STANDARD])
    for settings in (PLAIN, STANDARD):
        assert_same(in_worker(prepared_there, placed, settings), own().prepared(settings, CPU))

"""Cells in Ray's object store: once per machine, and read where they lie by every worker there.

What is stored are arrays, which workers map without a copy. (A tensor would be copied into each of them.) A study's
cells are stored log-normalised. What is made of them for a preprocessing is made by a Ray task, once for all workers:
where it is large it is a view of those cells, and the views are all that is stored.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scdgn.cells.dataset import Dataset
from scdgn.cells.mapped import MappedRows
from scdgn.cells.settings import PreprocessSettings
from scdgn.core.expression import viewed
from scdgn.search.choices import Selection
from scdgn.search.trials.cells import SearchCells
from scdgn.search.trials.inputs import Inputs, OwnInputs, Prepared, Unit, normalized, prepare

KEPT = 4
"""Preprocessings of which a worker keeps the cells, and the driver twice as many in the store, whatever their size."""


@dataclass(frozen=True, eq=False)
class Stored:
    """An object whose tensors are arrays of bytes, which the object store does not copy.

    The rest is pickled `content`, which refers to the arrays in their order, and to shared ones too (`store`) if it
    `borrows`: it goes from the driver's own processes to the driver's own processes.
    """

    content: bytes
    arrays: list[NDArray[np.uint8]]
    borrows: bool = True


@dataclass(frozen=True, eq=False)
class PlacedInputs:
    """The inputs of a worker (`scdgn.search.trials.inputs.Inputs`): references to the units, the cells, and what is
    made of them.
    """

    selection: Selection
    cell_types: Sequence[str]
    seed: int
    whole: bool
    described: Any
    cells: Mapping[float, Any]
    prepared_cells: Mapping[PreprocessSettings, Any]

    @property
    def units(self) -> tuple[Unit, ...]:
        """Taken from the store once."""
        return _units(self.described)

    def prepared(self, preprocess: PreprocessSettings, device: torch.device) -> list[Prepared]:
        """Taken from the store where they are not ready yet."""
        return _fetched(self.prepared_cells[preprocess], self.cells[preprocess.target_sum], device)


@lru_cache(maxsize=2)
def _units(reference: Any) -> tuple[Unit, ...]:
    units: tuple[Unit, ...] = ray.get(reference)
    return units


@lru_cache(maxsize=KEPT)
def _fetched(reference: Any, cells: Any, device: torch.device) -> list[Prepared]:
    try:
        stored: Stored = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    # Cells that are mapped lie on the driver's machine, and perhaps on no other: nothing prepared is a view of them.
    prepared: list[Prepared] = load(stored, views(ray.get(cells)) if stored.borrows else {})
    return [one.on(device) for one in prepared]


class Placement:
    """The driver's side: puts cells into the store, and has them prepared for the workers' kind of device (`cpu`,
    `cuda`).
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._task: Any = ray.remote(num_cpus=0)(_prepare)
        self._task_here = self._task.options(scheduling_strategy=here)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def __call__(self, inputs: Inputs, wanted: Sequence[PreprocessSettings]) -> PlacedInputs:
        """The same inputs for a worker, in the store."""
        assert isinstance(inputs, OwnInputs)  # the others are placed already
        units = self._once(("units", inputs), ray.put, inputs.units)
        cells, prepared = {}, {}
        for preprocess in wanted:
            target = preprocess.target_sum
            cells[target] = self._once(("cells", inputs.cells, target), _put_normalized, inputs.cells, target)
            # Mapped values may be on this machine alone.
            task = self._task_here if isinstance(inputs.cells.dataset.x, MappedRows) else self._task
            prepared[preprocess] = self._once(
                ("prepared", inputs, preprocess),
                task.remote,
                cells[target], units, preprocess, self._kind,
            )  # fmt: skip
        described = (inputs.selection, inputs.cell_types, inputs.seed, inputs.whole)
        return PlacedInputs(*described, units, cells, prepared)

    def forget(self) -> None:
        """Have all made anew when it is asked for again: what was made may be lost."""
        self._kept.clear()

    def _once(self, key: Hashable, make: Callable[..., Any], *args: Any) -> Any:
        """What was made for a key, if that was not long ago."""
        if key not in self._kept:
            self._kept[key] = make(*args)
        self._kept.move_to_end(key)
        while len(self._kept) > 2 * KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def _put_normalized(cells: SearchCells, target_sum: float) -> Any:
    return ray.put(normalized(cells, target_sum))


def _prepare(cells: SearchCells, units: Sequence[Unit], preprocess: PreprocessSettings, kind: str) -> Stored:
    return store(prepare(cells, units, preprocess, kind), views(cells))


def views(cells: SearchCells) -> dict[str, torch.Tensor]:
    """The arrays of the cells that inputs may be views of, by name."""
    found: dict[str, torch.Tensor] = {}
    datasets: dict[str, Dataset | None] = {"dataset": cells.dataset, "test": cells.test}
    datasets |= {f"unlabeled{place}": query for place, query in enumerate(cells.unlabeled)}
    for name, dataset in datasets.items():
        x = None if dataset is None else dataset.x
        if isinstance(x, sp.csr_matrix):
            found |= {f"{name}.indices": viewed(x.indices), f"{name}.data": viewed(x.data)}
    return found


def store(content: object, shared: Mapping[str, torch.Tensor]) -> Stored:
    """Take the tensors out of an object; those that are one of the shared ones are only named."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = _Pickler(file, shared, buffers)
    pickler.dump(content)
    arrays = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    return Stored(file.getvalue(), arrays, pickler.borrows)


def load(stored: Stored, shared: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `store`: views of the stored bytes, which nobody may write to."""
    return _Unpickler(io.BytesIO(stored.content), shared, stored.arrays).load()


class _Pickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, shared: Mapping[str, torch.Tensor], buffers: list[pickle.PickleBuffer]
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self._shared = {(tensor.data_ptr(), tensor.shape): name for name, tensor in shared.items() if tensor.numel()}
        self.borrows = False

    def persistent_id(self, obj: object) -> str | None:
        name = self._shared.get((obj.data_ptr(), obj.shape)) if isinstance(obj, torch.Tensor) else None
        self.borrows |= name is not None
        return name

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, torch.Tensor):
            return viewed, (obj.contiguous().numpy(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, shared: Mapping[str, torch.Tensor], arrays: Sequence[NDArray[np.uint8]]
    ) -> None:
        super().__init__(file, buffers=arrays)
        self._shared = shared

    def persistent_load(self, pid: str) -> torch.Tensor:
        return self._shared[pid]

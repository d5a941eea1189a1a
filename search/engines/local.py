"""Trials one pack after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from scdgn.core.training import Report
from scdgn.model.fitting import find_device
from scdgn.search.engines import Asked, Engine, Result
from scdgn.search.trials.objective import Stopped, Work


class Local(Engine):
    """The engine that needs nothing else."""

    def __init__(self, device: str) -> None:
        self._device = device

    @property
    @override
    def kind(self) -> str:
        return find_device(self._device).type

    @override
    def run(
        self, study: Asked, work: Work, pack: int, enough: Callable[[], bool], stopping: Callable[[], bool]
    ) -> bool:
        objective = work.objective(find_device(self._device), stopping)
        while not enough():
            # A pack of which every trial's settings contradict each other is empty, and not the last one.
            proposals, left = study.next_pack(pack)
            if proposals:
                try:
                    objective(proposals, study)
                except Stopped:
                    return False
            elif not left:
                return True
        return False

    @override
    def call(self, stopping: Callable[[], bool], train: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        def on_epoch(_: Report) -> None:
            if stopping():
                raise Stopped

        return train(*args, **kwargs, on_epoch=on_epoch)

    @override
    def close(self) -> None:
        """Nothing was taken."""

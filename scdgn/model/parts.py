"""Models that were trained alike, what they need of cells, and what they say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.preprocess import Preprocessing
from scdgn.core.config import Settings
from scdgn.core.correction import Reference
from scdgn.core.networks import Model


class Outputs(NamedTuple):
    """What a bundle says of cells: (cells, latent) the encoder's output, of the first model, since no two share axes;
    (cells, types) probabilities of the ensemble, divided by the temperature; (cells,) the score of `Calibration.score`.
    """

    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    strangeness: NDArray[np.float32]


class Batched(Protocol):
    """Cells of which the batches are known."""

    @property
    def batches(self) -> NDArray[np.int64]:
        """(cells,) codes into `batch_names`."""

    @property
    def batch_names(self) -> tuple[str, ...]:
        """Their names."""


@dataclass(frozen=True)
class Part:
    """Models that were trained alike.

    Attributes
    ----------
    models
        One per seed.
    settings
        With which all of them were trained.
    preprocessing
        From expression to the networks' input.
    batch_names
        Names of the codes of the domain classifiers.
    history
        Losses of every model, one table of columns each.
    reference
        What a query is compared with to correct it; None in bundles of before there was correction.
    """

    models: tuple[Model, ...]
    settings: Settings
    preprocessing: Preprocessing
    batch_names: tuple[str, ...]
    history: tuple[Mapping[str, list[float]], ...] = ()
    reference: Reference | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """The networks' input of some cells as each part of a bundle takes it; indexed by cells, as a tensor is.

    Attributes
    ----------
    parts
        (cells, genes) float32 each; parts of the same preprocessing share one.
    own
        Of each part, what the query's own classifier says (`Correction.own`); None for a part without.
    """

    parts: tuple[torch.Tensor, ...]
    own: tuple[torch.Tensor | None, ...] = ()

    @property
    def leading(self) -> torch.Tensor:
        """Of the first part."""
        return self.parts[0]

    def __len__(self) -> int:
        return len(self.leading)

    def __getitem__(self, cells: torch.Tensor | NDArray[Any] | slice) -> Inputs:
        return self._each(lambda x: x[cells])

    def to(self, device: torch.device) -> Inputs:
        """The same on a device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
        changed = {place: change(x) for place, x in {id(x): x for x in self.parts}.items()}
        own = tuple(None if said is None else change(said) for said in self.own)
        return Inputs(tuple(changed[id(x)] for x in self.parts), own)

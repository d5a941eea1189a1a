"""What models say of cells that took no part in training them: all that is chosen at the end is chosen by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.core.config import UNLABELED
from scdgn.core.rejection import Score, strangeness
from scdgn.errors import DataError, first_line
from scdgn.files import new_file

ANCHORING = 500
"""Training cells of a type that its centroid is made from."""

MOST_KEPT = 10_000
"""Cells of a domain left out that are kept."""

_ARRAYS = ("rows", "labels", "logits", "distances", "corrected", "learned")


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Cells left out of the training of some models, and what these say of them.

    Attributes
    ----------
    name
        Of what was left out.
    rows, labels
        (cells,) which of the training cells they are, and codes of their types.
    logits
        (models, cells, types), minus infinity for types not trained.
    distances
        (models, cells) from the nearest centroid of a trained type (`scdgn.core.rejection.distance`).
    corrected
        Logits of the same models once the input is corrected for the cells (`scdgn.core.correction`); None where there
        is no query to correct for, as for cells set aside of all domains.
    learned
        The same where nothing is moved, and the cells teach a classifier alone; None in studies of before as well.
    """

    name: str
    rows: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    distances: torch.Tensor
    corrected: torch.Tensor | None
    learned: torch.Tensor | None = None

    @property
    def known(self) -> NDArray[np.bool_]:
        """(cells,) whether the cell's type was trained."""
        trained = self.logits[0, 0].isfinite()
        return cast("NDArray[np.bool_]", trained[self.labels].numpy())

    def each(self) -> Iterator[LeftOut]:
        """Its models by themselves."""
        return (self._of(slice(place, place + 1)) for place in range(len(self.logits)))

    def first(self, models: int) -> LeftOut:
        """Its first models."""
        return self._of(slice(models))

    def as_predicted(self, corrects: bool, moves: bool = True) -> LeftOut:
        """With the logits that prediction goes by: the corrected ones if it `corrects`, moved or not."""
        corrected = self.corrected if moves else self.learned
        return replace(self, logits=corrected) if corrects and corrected is not None else self

    def score(self, score: Score, temperature: float) -> NDArray[np.float32]:
        """(cells,) see `scdgn.core.rejection.strangeness`."""
        if score == "latent_distance":
            return cast("NDArray[np.float32]", self.distances.mean(dim=0).numpy())
        return cast("NDArray[np.float32]", strangeness(score, self.logits, (), temperature, ()).numpy())

    def _of(self, models: slice) -> LeftOut:
        corrected, learned = (None if one is None else one[models] for one in (self.corrected, self.learned))
        logits, distances = self.logits[models], self.distances[models]
        return replace(self, logits=logits, distances=distances, corrected=corrected, learned=learned)


def some_of_each(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(chosen,) places of `ANCHORING` cells of each type, or of all that there are."""
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(labels == code) for code in np.unique(labels[labels != UNLABELED])]
    return np.sort(np.concatenate([rng.permutation(found)[:ANCHORING] for found in places]))


def together(trials: Mapping[int, Sequence[LeftOut]], models: Mapping[int, int]) -> list[LeftOut]:
    """The same parts and cells, with so many models of several trials as one ensemble.

    Where a trial has others here than it will have there, each counts for several or for a part of one: all are
    repeated as often as makes the shares right.
    """
    found = []
    for parts in zip(*(trials[number] for number in models), strict=True):
        # Every trial was left out with equally many models, so that repeating them gives the shares.
        repeated = {
            name: torch.cat([getattr(part, name).repeat(times, *[1] * (getattr(part, name).ndim - 1))
                             for part, times in zip(parts, models.values(), strict=True)])
            if all(getattr(part, name) is not None for part in parts) else None
            for name in _ARRAYS[2:]
        }  # fmt: skip
        found.append(replace(parts[0], **repeated))
    return found


def drawn(cells: int) -> torch.Tensor:
    """(chosen,) places of `MOST_KEPT` cells, or of all."""
    if cells <= MOST_KEPT:
        return torch.arange(cells)
    return torch.from_numpy(np.sort(np.random.default_rng(0).choice(cells, MOST_KEPT, replace=False)))


def write(path: Path, parts: Sequence[LeftOut]) -> None:
    """Keep what a trial's models say; whole or not at all."""
    arrays = {
        f"{place}.{name}": getattr(part, name).numpy()
        for place, part in enumerate(parts)
        for name in _ARRAYS
        if getattr(part, name) is not None
    }
    names = np.array([part.name for part in parts])
    with new_file(path) as place:
        np.savez_compressed(place, names=names, **arrays)


def read(path: Path) -> list[LeftOut] | None:
    """The inverse of `write`; None where nothing was kept.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return [_read(str(name), place, content) for place, name in enumerate(content["names"])]
    except Exception as error:  # of numpy, zipfile and zlib
        raise DataError(
            f"{path} cannot be read ({first_line(error)}): remove it, and the same command scores the trial again"
        ) from error


def _read(name: str, place: int, content: Mapping[str, NDArray[np.generic]]) -> LeftOut:
    arrays = {
        key: torch.from_numpy(content[f"{place}.{key}"]) if f"{place}.{key}" in content else None for key in _ARRAYS
    }
    rows, labels, logits, distances = (arrays[key] for key in _ARRAYS[:4])
    if rows is None or labels is None or logits is None or distances is None:
        raise ValueError("something is missing")
    corrected, learned = arrays["corrected"], arrays["learned"]
    cells = logits.shape[1] if logits.ndim == 3 else -1
    fits = rows.shape == labels.shape == (cells,) and distances.shape == logits.shape[:2]
    if not (fits and all(one is None or one.shape == logits.shape for one in (corrected, learned))):
        raise ValueError("its shapes contradict each other")
    return LeftOut(name, rows, labels, logits, distances, corrected, learned)

"""A trained model on disk: safetensors and JSON, nothing that can run.

A bundle is a folder with `model.json` (genes, cell types, settings, provenance) and `weights.safetensors` (the
statistics of the genes, and the weights of one model or of an ensemble). The models of an ensemble may be of several
settings, and look at different genes: those trained alike make a part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from scdgn.cells.dataset import Dataset
from scdgn.cells.matching import GeneMatch
from scdgn.cells.preprocess import Preprocessing
from scdgn.cells.values import Values
from scdgn.core.config import Settings
from scdgn.core.correction import Correction, Query, find_correction
from scdgn.core.networks import Model
from scdgn.core.query_classifier import averaged
from scdgn.core.rejection import Calibration, pooled, strangeness
from scdgn.errors import BundleError, SettingsError, first_line
from scdgn.files import new_folder
from scdgn.model.bundle_files import (
    DOCUMENT,
    FILES,
    VERSION,
    WEIGHTS,
    as_array,
    checksum,
    list_of,
    names_of,
    of_version_1,
    read_calibration,
    read_document,
    read_part,
    read_preprocessing,
    read_provenance,
    read_reference,
)
from scdgn.model.parts import Batched, Inputs, Outputs, Part


@dataclass(frozen=True)
class Bundle:
    """All that prediction needs.

    Attributes
    ----------
    parts
        At least one; the first is the leading one, which stands for all where one has to. The probabilities of all
        their models are averaged, so that a part counts by the number of its models.
    cell_types
        Names of the codes of the label classifiers.
    provenance
        Where the model comes from, JSON-safe: versions, data fingerprint, cells, seeds, scores.
    calibration
        How sure the model may be: temperature 1 and no threshold where that was not found out.
    corrects
        Whether a query is corrected (`scdgn.core.correction`) unless it is said otherwise.
    moves
        Whether correction moves batches, or learns a classifier of the query alone.
    """

    parts: tuple[Part, ...]
    cell_types: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    corrects: bool = False
    moves: bool = True

    @property
    def models(self) -> tuple[Model, ...]:
        """Of all parts in their order."""
        return tuple(model for part in self.parts for model in part.models)

    @property
    def settings(self) -> Settings:
        """Of the leading part."""
        return self.parts[0].settings

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the leading part."""
        return self.parts[0].preprocessing

    @property
    def batch_names(self) -> tuple[str, ...]:
        """Of the leading part."""
        return self.parts[0].batch_names

    @property
    def history(self) -> tuple[Mapping[str, list[float]], ...]:
        """Of the models of the leading part."""
        return self.parts[0].history

    @property
    def values(self) -> Values:
        """What the training cells hold."""
        values: Values = self.provenance.get("values", "counts")
        return values

    @property
    def transductive(self) -> bool:
        """Whether what is said of a cell depends on the other cells that are predicted with it."""
        return any(part.preprocessing.transductive for part in self.parts)

    @property
    def genes(self) -> NDArray[np.str_]:
        """(genes,) those that any part looks at, each once."""
        return np.array(list(dict.fromkeys(gene for part in self.parts for gene in part.preprocessing.genes.tolist())))

    def missing(self, genes: NDArray[np.str_]) -> tuple[str, ...]:
        """Which of the model's genes are not among these.

        Raises
        ------
        DataError
            If a part has too few of its own (`Preprocessing.match`).
        """
        lacking = {name for match in self._matches(genes) for name in match.missing}
        return tuple(name for name in self.genes.tolist() if name in lacking)

    def decorated(self, genes: NDArray[np.str_]) -> int:
        """How many of the model's genes are among these with a version or a genome's prefix more or less."""
        return max(match.decorated for match in self._matches(genes))

    def _matches(self, genes: NDArray[np.str_]) -> list[GeneMatch]:
        """Of each different preprocessing."""
        return [preprocessing.match(genes) for preprocessing in _distinct(self.parts)[0]]

    def by_batch(self, correct: bool | None = None) -> bool:
        """Whether the batches of what is predicted matter: to scaling per batch and to correction (as `correction`)."""
        return self.transductive or (self.corrects if correct is None else correct)

    @classmethod
    def joined(cls, bundles: Sequence[Bundle]) -> Bundle:
        """The parts of several bundles of the same types as one; what else there is to know is the first one's."""
        first = bundles[0]
        assert all(bundle.cell_types == first.cell_types for bundle in bundles)
        told = [bundle.provenance for bundle in bundles]
        together = {key: [one for each in told for one in each[key]] for key in ("seeds", "epochs")}
        transductive = any(each["transductive"] for each in told)
        return replace(
            first,
            parts=tuple(part for bundle in bundles for part in bundle.parts),
            provenance={**first.provenance, **together, "transductive": transductive},
        )

    def take(self, models: Sequence[int]) -> Bundle:
        """The same bundle with some of its models, by their places among all; parts left without any are dropped."""
        parts, first = [], 0
        for part in self.parts:
            kept = [place for place in range(len(part.models)) if first + place in models]
            first += len(part.models)
            if kept:
                history = tuple(part.history[place] for place in kept) if part.history else ()
                parts.append(replace(part, models=tuple(part.models[place] for place in kept), history=history))
        return replace(self, parts=tuple(parts))

    def input(self, dataset: Dataset, correction: Correction | None = None) -> Inputs:
        """The networks' input for all cells, corrected by what `correction` found of their batches.

        Raises
        ------
        DataError
            If too few of the model's genes are in the data.
        """
        distinct, places = _distinct(self.parts)
        each = [torch.from_numpy(preprocessing.transform(dataset)) for preprocessing in distinct]
        x = Inputs(tuple(each[place] for place in places))
        if correction is None:
            return x
        corrected = correction.apply(Query(x.parts, dataset.batches))
        return Inputs(corrected, correction.own(corrected))

    def correction(
        self, query: Batched, chunks: Callable[[], Iterable[Dataset]], correct: bool | None = None
    ) -> Correction | None:
        """What to take away from the cells of a query, batch by batch; None where nothing is to be corrected.

        Parameters
        ----------
        query, chunks
            What knows the batches of all its cells, and these in the same order, as many at a time as memory allows.
        correct
            Whether to correct them; by default as the bundle has it.

        Raises
        ------
        DataError, SettingsError
            If too few of the model's genes are in the data, or the bundle is of before there was correction.
        """
        if not (self.corrects if correct is None else correct):
            return None
        references = [part.reference for part in self.parts if part.reference is not None]
        if len(references) < len(self.parts):
            raise SettingsError(
                "the model does not know the mean input of its training cells, which correction needs: train it again, "
                "or predict without --correct"
            )

        def read() -> Iterator[Query]:
            for chunk in chunks():
                yield Query(self.input(chunk).parts, chunk.batches)

        sizes = np.bincount(query.batches, minlength=len(query.batch_names))
        return find_correction(read, [part.models for part in self.parts], references, sizes, self.moves)

    def probabilities(self, x: Inputs) -> NDArray[np.float32]:
        """Probability of every cell type, averaged over the ensemble and calibrated, (cells, types).

        No temperature changes which type is the most probable.
        """
        return self.outputs(x)[1]

    def latent(self, x: Inputs) -> NDArray[np.float32]:
        """The encoder's output, (cells, latent); of the first model, since no two share axes."""
        return np.asarray(self.models[0].latent(x.leading).cpu().numpy())

    def outputs(self, x: Inputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both, with each model's layers gone through once."""
        latents, logits = self.forward(x)
        return as_array(latents[0]), self._calibrated(logits)

    def all_outputs(self, x: Inputs) -> Outputs:
        """The same, and how strange the cells are."""
        latents, logits = self.forward(x)
        calibration = self.calibration
        scores = strangeness(calibration.score, logits, latents, calibration.temperature, calibration.anchors)
        return Outputs(as_array(latents[0]), self._calibrated(logits), as_array(scores))

    def unknown(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which cells are of a type never trained, by their strangeness; none where there is no threshold."""
        threshold = self.calibration.threshold
        strange: NDArray[np.bool_] = scores > (np.inf if threshold is None else threshold)
        return strange

    def forward(self, x: Inputs) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The latent representation of each model, (cells, latent), and the logits of all, (models, cells, types)."""
        latents: list[torch.Tensor] = []
        logits = []
        for part, own, said in zip(self.parts, x.parts, x.own or [None] * len(self.parts), strict=True):
            each, found = zip(*(model.forward(own) for model in part.models), strict=True)
            latents += each
            logits.append(torch.stack(found) if said is None else averaged(torch.stack(found), said))
        return latents, torch.cat(logits)

    def _calibrated(self, logits: torch.Tensor) -> NDArray[np.float32]:
        return as_array((pooled(logits) / self.calibration.temperature).softmax(dim=1))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the bundle; it appears whole or not at all.

        Raises
        ------
        OutputError
            If the folder cannot be written, or exists and is not to be overwritten.
        """
        distinct, places = _distinct(self.parts)
        document = {
            "format": "scdgn bundle",
            "version": VERSION,
            "parts": [
                {
                    "models": len(part.models),
                    "settings": part.settings.to_mapping(),
                    "preprocessing": place,
                    "trained_types": [model.types.tolist() for model in part.models],
                    "batch_names": list(part.batch_names),
                    "history": [dict(columns) for columns in part.history],
                    "spread": None if part.reference is None else part.reference.spread,
                }
                for part, place in zip(self.parts, places, strict=True)
            ],
            "preprocessing": [preprocessing.to_json() for preprocessing in distinct],
            "cell_types": list(self.cell_types),
            "provenance": dict(self.provenance),
            "corrects": self.corrects,
            "moves": self.moves,
            "calibration": {
                **self.calibration.to_json(),
                "spreads": [anchors.spread for anchors in self.calibration.anchors],
            },
        }
        tensors = {}
        for number, part in enumerate(self.parts):
            if part.reference is not None:
                tensors[f"parts.{number}.means"] = part.reference.means
                tensors[f"parts.{number}.floor"] = part.reference.floor
                if part.reference.components is not None:
                    tensors[f"parts.{number}.components"] = part.reference.components
        for number, preprocessing in enumerate(distinct):
            tensors[f"preprocessing.{number}.mean"] = torch.from_numpy(preprocessing.mean)
            tensors[f"preprocessing.{number}.std"] = torch.from_numpy(preprocessing.std)
            if preprocessing.shares is not None:
                tensors[f"preprocessing.{number}.shares"] = torch.from_numpy(preprocessing.shares)
        for number, model in enumerate(self.models):
            for name, weight in model.weights.items():
                tensors[f"models.{number}.{name}"] = weight.contiguous()
        for number, anchors in enumerate(self.calibration.anchors):
            tensors[f"models.{number}.centroids"] = anchors.centroids.contiguous()
        weights = save(tensors)
        document["sha256"] = checksum(document, weights)
        with new_folder(Path(folder), overwrite, FILES) as place:
            (place / WEIGHTS).write_bytes(weights)
            (place / DOCUMENT).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read a bundle; nothing in it is ever run.

        Raises
        ------
        BundleError
            If the folder is no bundle, is of another version, is damaged, or contradicts itself.
        """
        folder = Path(folder)
        document = read_document(folder)
        try:
            if not (folder / WEIGHTS).is_file():  # a pipe would be waited for
                raise OSError(None, "there is no such file")
            weights = (folder / WEIGHTS).read_bytes()
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "it is larger than the memory"
            raise BundleError(f"{folder / WEIGHTS} cannot be read ({reason}): copy or train the model again") from error
        try:
            if document.get("sha256") != checksum(document, weights):
                raise ValueError("its checksum does not fit")
            tensors = load(weights)
            return _assemble(*(of_version_1(document, tensors) if document["version"] == 1 else (document, tensors)))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,  # RecursionError too
            OverflowError,
            SafetensorError,
            SettingsError,
            BundleError,
        ) as error:
            raise BundleError(f"{folder} is damaged ({first_line(error)}): copy or train the model again") from error


def _assemble(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Bundle:
    contents = list_of(document, "preprocessing")
    preprocessings = [read_preprocessing(content, number, tensors) for number, content in enumerate(contents)]
    cell_types = names_of(document, "cell_types")
    parts: list[Part] = []
    for number, content in enumerate(list_of(document, "parts")):
        first = sum(len(part.models) for part in parts)
        part = read_part(content, first, preprocessings, len(cell_types), tensors)
        shape = (len(cell_types), len(part.preprocessing.genes))
        parts.append(replace(part, reference=read_reference(content["spread"], number, shape, tensors)))
    corrects = document["corrects"]
    if not isinstance(corrects, bool) or (corrects and any(part.reference is None for part in parts)):
        raise ValueError(f"corrects is {corrects!r}")
    moves = document.get("moves", True)
    if not isinstance(moves, bool):
        raise ValueError(f"moves is {moves!r}")
    shapes = [(len(cell_types), part.settings.latent) for part in parts for _ in part.models]
    return Bundle(
        tuple(parts),
        cell_types,
        read_provenance(document),
        read_calibration(document, tensors, shapes),
        corrects,
        moves,
    )


def _distinct(parts: Sequence[Part]) -> tuple[list[Preprocessing], list[int]]:
    """The different preprocessings, and the place among them of that of each part."""
    found: list[Preprocessing] = []
    places = []
    for part in parts:
        own = part.preprocessing
        place = next((place for place, other in enumerate(found) if own.equals(other)), len(found))
        found += [own] if place == len(found) else []
        places.append(place)
    return found, places

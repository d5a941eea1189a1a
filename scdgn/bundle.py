"""A trained model on disk: safetensors and JSON, nothing that can run.

A bundle is a folder with `model.json` (genes, cell types, settings, provenance) and `weights.safetensors` (the
statistics of the genes, and the weights of one model or of an ensemble).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from scdgn.config import Settings
from scdgn.data import Dataset, Declared
from scdgn.errors import BundleError, SettingsError, first_line
from scdgn.files import new_folder
from scdgn.networks import Model, layer_sizes
from scdgn.preprocess import Preprocessing
from scdgn.rejection import COOLEST, HOTTEST, SCORES, Anchors, Calibration, pooled, strangeness

VERSION = 1
_FOLDER = "the folder that `scdgn train -o` wrote, or studies/NAME/model of `scdgn search`"
DOCUMENT, WEIGHTS = FILES = ("model.json", "weights.safetensors")


class Outputs(NamedTuple):
    """What a bundle says of cells.

    Attributes
    ----------
    latent
        (cells, latent) the encoder's output; of the first model, since no two share axes.
    probabilities
        (cells, types), those of the ensemble, divided by the temperature.
    strangeness
        (cells,) the score of `Calibration.score`: higher is stranger.
    """

    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    strangeness: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """All that prediction needs.

    Attributes
    ----------
    models
        One, or an ensemble whose probabilities are averaged.
    settings
        With which all of them were trained.
    preprocessing
        From expression to the networks' input.
    cell_types, batch_names
        Names of the codes of the label and domain classifiers.
    provenance
        Where the model comes from, JSON-safe: versions, data fingerprint, cells, seeds, scores.
    history
        Losses of every model, one table of columns each.
    calibration
        How sure the model may be: temperature 1 and no threshold where that was not found out.
    """

    models: tuple[Model, ...]
    settings: Settings
    preprocessing: Preprocessing
    cell_types: tuple[str, ...]
    batch_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, list[float]], ...] = ()
    calibration: Calibration = field(default_factory=Calibration)

    def input(self, dataset: Dataset) -> torch.Tensor:
        """The networks' input for all cells, (cells, genes) float32.

        Raises
        ------
        DataError
            If too few of the model's genes are in the data.
        """
        return torch.from_numpy(self.preprocessing.transform(dataset))

    def probabilities(self, x: torch.Tensor) -> NDArray[np.float32]:
        """Probability of every cell type, averaged over the ensemble and calibrated: (cells, genes) to (cells, types).

        No temperature changes which type is the most probable.
        """
        return self.outputs(x)[1]

    def latent(self, x: torch.Tensor) -> NDArray[np.float32]:
        """The encoder's output, (cells, genes) to (cells, latent); of the first model, since no two share axes."""
        return np.asarray(self.models[0].latent(x).cpu().numpy())

    def outputs(self, x: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both, with each model's layers gone through once."""
        latents, logits = self._forward(x)
        return _array(latents[0]), self._calibrated(logits)

    def all_outputs(self, x: torch.Tensor) -> Outputs:
        """The same, and how strange the cells are."""
        latents, logits = self._forward(x)
        calibration = self.calibration
        scores = strangeness(calibration.score, logits, latents, calibration.temperature, calibration.anchors)
        return Outputs(_array(latents[0]), self._calibrated(logits), _array(scores))

    def unknown(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which cells are of a type never trained, by their strangeness; none where there is no threshold."""
        threshold = self.calibration.threshold
        told: NDArray[np.bool_] = scores > (np.inf if threshold is None else threshold)
        return told

    def _forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The latent representations of each model, and the logits, (models, cells, types)."""
        latents, logits = zip(*(model.forward(x) for model in self.models), strict=True)
        return list(latents), torch.stack(logits)

    def _calibrated(self, logits: torch.Tensor) -> NDArray[np.float32]:
        return _array((pooled(logits) / self.calibration.temperature).softmax(dim=1))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the bundle; it appears whole or not at all.

        Raises
        ------
        OutputError
            If the folder cannot be written, or exists and is not to be overwritten.
        """
        document = {
            "format": "scdgn bundle",
            "version": VERSION,
            "models": len(self.models),
            "settings": self.settings.to_mapping(),
            "preprocessing": self.preprocessing.to_json(),
            "cell_types": list(self.cell_types),
            "trained_types": [model.types.tolist() for model in self.models],
            "batch_names": list(self.batch_names),
            "provenance": dict(self.provenance),
            "history": [dict(columns) for columns in self.history],
            "calibration": {
                **self.calibration.to_json(),
                "spreads": [anchors.spread for anchors in self.calibration.anchors],
            },
        }
        tensors = {
            "preprocessing.mean": torch.from_numpy(self.preprocessing.mean),
            "preprocessing.std": torch.from_numpy(self.preprocessing.std),
        }
        for number, model in enumerate(self.models):
            for name, weight in model.weights.items():
                tensors[f"models.{number}.{name}"] = weight.contiguous()
        for number, anchors in enumerate(self.calibration.anchors):
            tensors[f"models.{number}.centroids"] = anchors.centroids.contiguous()
        weights = save(tensors)
        document["sha256"] = _checksum(document, weights)
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
        document = _read_document(folder)
        try:
            if not (folder / WEIGHTS).is_file():  # a pipe would be waited for
                raise OSError(None, "there is no such file")
            weights = (folder / WEIGHTS).read_bytes()
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "it is larger than the memory"
            raise BundleError(f"{folder / WEIGHTS} cannot be read ({reason}): copy or train the model again") from error
        try:
            if document.get("sha256") != _checksum(document, weights):
                raise ValueError("its checksum does not fit")
            tensors = load(weights)
            return _assemble(document, tensors)
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


def _read_document(folder: Path) -> dict[str, Any]:
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder: give {_FOLDER}")
        if not (folder / DOCUMENT).is_file():
            inside = folder / "model"  # of a study
            give = inside if (inside / DOCUMENT).is_file() else _FOLDER
            raise BundleError(f"{folder} holds no {DOCUMENT}: give {give}")
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise BundleError(f"{folder / DOCUMENT} cannot be read ({error}): copy or train the model again") from error
    if not isinstance(document, dict) or document.get("format") != "scdgn bundle":
        raise BundleError(f"{folder / DOCUMENT} does not describe a bundle: give {_FOLDER}")
    if document.get("version") != VERSION:
        version = repr(document.get("version"))[:20]
        raise BundleError(
            f"{folder} is a bundle of version {version}, this scdgn reads version {VERSION}: "
            "install the scdgn that wrote it, or train the model again"
        )
    return document


def _checksum(document: Mapping[str, Any], weights: bytes) -> str:
    """SHA-256 over both files but for itself: a flipped bit would leave most weights finite, and the model wrong."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + weights).hexdigest()


def _assemble(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Bundle:
    written = document["settings"]
    if not isinstance(written, dict) or len(written) > len(Settings.__dataclass_fields__):
        raise ValueError("settings are not those of a model")
    settings = Settings.from_mapping(written)
    preprocessing = Preprocessing.from_json(
        document["preprocessing"], tensors["preprocessing.mean"].numpy(), tensors["preprocessing.std"].numpy()
    )
    if not (np.isfinite(preprocessing.mean).all() and np.isfinite(preprocessing.std).all()):
        raise ValueError("the statistics of the genes are not finite")
    if not (preprocessing.std > 0).all():
        raise ValueError("the standard deviation of a gene is not above 0")
    cell_types, batch_names = _names(document, "cell_types"), _names(document, "batch_names")
    count = document["models"]
    if not isinstance(count, int) or count < 1 or len(document["trained_types"]) != count:
        raise ValueError(f"models is {count!r}")
    sizes = layer_sizes(settings, len(preprocessing.genes), len(cell_types), len(batch_names))
    expected = {f"{layer}.weight": size for layer, size in sizes.items()}
    expected |= {f"{layer}.bias": (units, 1) for layer, (units, _) in sizes.items()}
    models = []
    for number, trained in enumerate(document["trained_types"]):
        weights = {name: tensors[f"models.{number}.{name}"] for name in expected}
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape or weights[name].dtype != torch.float32:
                raise ValueError(f"{name} of model {number} is not float32 of shape {shape}")
            if not weights[name].isfinite().all():
                raise ValueError(f"{name} of model {number} is not finite")
        if len(trained) != len(cell_types) or not all(isinstance(known, bool) for known in trained) or not any(trained):
            raise ValueError(f"trained_types of model {number} do not fit the cell types")
        models.append(Model(weights, torch.tensor(trained)))
    return Bundle(
        tuple(models),
        settings,
        preprocessing,
        cell_types,
        batch_names,
        _provenance(document),
        _history(document, count),
        _calibration(document, tensors, count, (len(cell_types), settings.latent)),
    )


def _calibration(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], models: int, shape: tuple[int, int]
) -> Calibration:
    """A bundle of before there was any has none."""
    if "calibration" not in document:
        return Calibration()
    content = dict(document["calibration"])
    spreads = content.pop("spreads")
    anchors = tuple(Anchors(tensors[f"models.{number}.centroids"], spread) for number, spread in enumerate(spreads))
    found = Calibration(**content, anchors=anchors)
    numbers = [found.temperature, found.kept, found.known, found.unknown, *found.auroc.values(), *spreads]
    numbers += [] if found.threshold is None else [found.threshold]
    if not all(_is_number(number) for number in numbers) or not isinstance(found.source, str):
        raise ValueError(f"calibration is {content!r}")
    if not (COOLEST <= found.temperature <= HOTTEST and found.score in SCORES and set(found.auroc) <= set(SCORES)):
        raise ValueError(f"calibration is {content!r}")
    needed = models if found.score == "latent_distance" else 0
    if len(anchors) != needed or not all(spread > 0 for spread in spreads):
        raise ValueError(f"spreads is {spreads!r}")
    for centroids, _ in anchors:
        if tuple(centroids.shape) != shape or centroids.dtype != torch.float32 or not centroids.isfinite().all():
            raise ValueError(f"centroids are not finite float32 of shape {shape}")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy())


def _names(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = document[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is not a list of names")
    return tuple(names)


def _provenance(document: Mapping[str, Any]) -> dict[str, Any]:
    provenance = document["provenance"]
    fields = provenance.get("fields", {})
    if not all(isinstance(value, str) for value in fields.values()) or fields.get("values", "auto") not in get_args(
        Declared
    ):
        raise ValueError(f"fields is {fields!r}")
    return dict(provenance)


def _history(document: Mapping[str, Any], count: int) -> tuple[Mapping[str, list[float]], ...]:
    history = document["history"]
    if len(history) not in (0, count) or any(columns.keys() != history[0].keys() for columns in history):
        raise ValueError("history is not one table of the same columns for every model")
    if not all(isinstance(column, list) for columns in history for column in columns.values()):
        raise ValueError("a column of history is not a list")
    return tuple(history)

"""The files of a bundle: what is read is checked, every length and number of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from scdgn.cells.fields import NO_TEXTS, Fields
from scdgn.cells.preprocess import Preprocessing
from scdgn.cells.values import Values
from scdgn.core.config import Settings, is_number
from scdgn.core.correction import Reference
from scdgn.core.networks import Model, layer_sizes
from scdgn.core.rejection import COOLEST, HOTTEST, SCORES, Anchors, Calibration
from scdgn.errors import BundleError, SettingsError
from scdgn.model.parts import Part

VERSION = 2

_FOLDER = "the folder that `scdgn train -o` wrote, or studies/NAME/model of `scdgn search`"

DOCUMENT, WEIGHTS = FILES = ("model.json", "weights.safetensors")


def read_document(folder: Path) -> dict[str, Any]:
    """model.json, if it describes a bundle that this version reads."""
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
    if document.get("version") not in (1, VERSION):
        version = repr(document.get("version"))[:20]
        raise BundleError(
            f"{folder} is a bundle of version {version}, this scdgn reads up to version {VERSION}: "
            "install the scdgn that wrote it, or train the model again"
        )
    return document


def checksum(document: Mapping[str, Any], weights: bytes) -> str:
    """SHA-256 over both files but for itself: a flipped bit would leave most weights finite, and the model wrong."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + weights).hexdigest()


def of_version_1(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A bundle of before there were parts, as one with a single part."""
    keys = ("models", "settings", "trained_types", "batch_names", "history")
    part = {**{key: document[key] for key in keys}, "preprocessing": 0, "spread": None}
    renamed = {name.replace("preprocessing.", "preprocessing.0."): tensor for name, tensor in tensors.items()}
    return {**document, "parts": [part], "preprocessing": [document["preprocessing"]], "corrects": False}, renamed


def list_of(document: Mapping[str, Any], key: str) -> list[Any]:
    """An entry that has to be a list, and not an empty one."""
    entries = document[key]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{key} is not a list of something")
    return entries


def read_preprocessing(content: dict[str, Any], number: int, tensors: Mapping[str, torch.Tensor]) -> Preprocessing:
    """A part's preprocessing; its arrays lie among the tensors."""
    mean, std = (tensors[f"preprocessing.{number}.{name}"].numpy() for name in ("mean", "std"))
    written = tensors.get(f"preprocessing.{number}.shares")
    shares = None if written is None else written.numpy()
    found = Preprocessing.from_json(content, mean, std, shares)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ValueError("the statistics of the genes are not finite")
    if not (std > 0).all():
        raise ValueError("the standard deviation of a gene is not above 0")
    if shares is not None and not (shares.dtype == np.float32 and np.isfinite(shares).all() and (shares >= 0).all()):
        raise ValueError("the genes' shares of a cell's total are not finite float32 of at least 0")
    return found


def read_part(
    content: Mapping[str, Any],
    first: int,
    preprocessings: Sequence[Preprocessing],
    types: int,
    tensors: Mapping[str, torch.Tensor],
) -> Part:
    """One part, whose models are numbered from `first`."""
    written = content["settings"]
    if not isinstance(written, dict) or len(written) > len(Settings.__dataclass_fields__):
        raise ValueError("settings are not those of a model")
    settings = Settings.from_mapping(written)
    place = content["preprocessing"]
    if not isinstance(place, int) or not 0 <= place < len(preprocessings):
        raise ValueError(f"preprocessing of a part is {place!r}")
    batch_names = names_of(content, "batch_names")
    count = content["models"]
    if not isinstance(count, int) or count < 1 or len(content["trained_types"]) != count:
        raise ValueError(f"models is {count!r}")
    sizes = layer_sizes(settings, len(preprocessings[place].genes), types, len(batch_names))
    expected = {f"{layer}.weight": size for layer, size in sizes.items()}
    expected |= {f"{layer}.bias": (units, 1) for layer, (units, _) in sizes.items()}
    models = []
    for number, trained in enumerate(content["trained_types"], first):
        weights = {name: tensors[f"models.{number}.{name}"] for name in expected}
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape or weights[name].dtype != torch.float32:
                raise ValueError(f"{name} of model {number} is not float32 of shape {shape}")
            if not weights[name].isfinite().all():
                raise ValueError(f"{name} of model {number} is not finite")
        if len(trained) != types or not all(isinstance(known, bool) for known in trained) or not any(trained):
            raise ValueError(f"trained_types of model {number} do not fit the cell types")
        models.append(Model(weights, torch.tensor(trained)))
    return Part(tuple(models), settings, preprocessings[place], batch_names, _history(content, count))


def read_reference(
    spread: object, number: int, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> Reference | None:
    """That of a part."""
    if spread is None:
        return None
    if not isinstance(spread, int | float) or not is_number(spread) or spread < 0:
        raise ValueError(f"spread of part {number} is {spread!r}")
    means, floor = (tensors[f"parts.{number}.{name}"] for name in ("means", "floor"))
    if (tuple(means.shape), tuple(floor.shape)) != (shape, shape[1:]) or {means.dtype, floor.dtype} != {torch.float32}:
        raise ValueError(f"means and floor of part {number} are not float32 of shape {shape}")
    known = ~means.isnan().all(dim=1)  # of types with training cells
    if not (means[known].isfinite().all() and floor.isfinite().all()):
        raise ValueError(f"means or floor of part {number} are not finite")
    components = tensors.get(f"parts.{number}.components")
    if components is not None and not (
        components.ndim == 2
        and components.shape[1] == shape[1]
        and components.dtype == torch.float32
        and components.isfinite().all()
    ):
        raise ValueError(f"components of part {number} are not finite float32 of {shape[1]} genes")
    return Reference(means, floor, spread, components)


def read_calibration(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], shapes: Sequence[tuple[int, int]]
) -> Calibration:
    """With centroids of these shapes, one for each model; a bundle of before there was any calibration has none."""
    if "calibration" not in document:
        return Calibration()
    content = dict(document["calibration"])
    spreads = content.pop("spreads")
    anchors = tuple(Anchors(tensors[f"models.{number}.centroids"], spread) for number, spread in enumerate(spreads))
    found = Calibration(**content, anchors=anchors)
    numbers = [found.temperature, found.kept, found.known, found.unknown, *found.auroc.values(), *spreads]
    numbers += [] if found.threshold is None else [found.threshold]
    if not all(is_number(number) for number in numbers) or not isinstance(found.source, str):
        raise ValueError(f"calibration is {content!r}")
    if not (COOLEST <= found.temperature <= HOTTEST and found.score in SCORES and set(found.auroc) <= set(SCORES)):
        raise ValueError(f"calibration is {content!r}")
    needed = len(shapes) if found.score == "latent_distance" else 0
    if len(anchors) != needed or not all(spread > 0 for spread in spreads):
        raise ValueError(f"spreads is {spreads!r}")
    for (centroids, _), shape in zip(anchors, shapes, strict=False):
        if tuple(centroids.shape) != shape or centroids.dtype != torch.float32 or not centroids.isfinite().all():
            raise ValueError(f"centroids are not finite float32 of shape {shape}")
    return found


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Of float32, on the CPU."""
    return np.asarray(tensor.cpu().numpy())


def names_of(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """An entry that has to be a list of names."""
    names = document[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is not a list of names")
    return tuple(names)


def read_provenance(document: Mapping[str, Any]) -> dict[str, Any]:
    """Where the model comes from; what prediction goes by is checked."""
    provenance = document["provenance"]
    fields = provenance.get("fields", {})
    texts = {key: value for key, value in fields.items() if key not in NO_TEXTS}
    if not all(isinstance(value, str) for value in texts.values()):
        raise ValueError(f"fields is {fields!r}")
    try:
        Fields(**{"labels_key": None, "batch_key": None, **fields})  # as it was written: all its names are known
    except (SettingsError, TypeError) as error:
        raise ValueError(f"fields is {fields!r}") from error
    if provenance.get("values", "counts") not in get_args(Values):
        raise ValueError(f"values is {provenance['values']!r}")
    tried = provenance.get("fewer_genes", [])
    if not all(len(pair) == 2 and all(map(is_number, pair)) for pair in tried):
        raise ValueError(f"fewer_genes is {tried!r}")
    return dict(provenance)


def _history(document: Mapping[str, Any], count: int) -> tuple[Mapping[str, list[float]], ...]:
    history = document["history"]
    if len(history) not in (0, count) or any(columns.keys() != history[0].keys() for columns in history):
        raise ValueError("history is not one table of the same columns for every model")
    if not all(isinstance(column, list) for columns in history for column in columns.values()):
        raise ValueError("a column of history is not a list")
    return tuple(history)

"""A trained model on disk: safetensors and JSON, nothing that can run.

A bundle is a folder with `model.json` (genes, cell types, settings, provenance) and `weights.safetensors` (the
statistics of the genes, and the weights of one model or of an ensemble). The models of an ensemble may be of several
settings, and look at different genes: those trained alike make a part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from scdgn.config import Settings
from scdgn.correction import Correction, Query, Reference, find_correction
from scdgn.data import NO_TEXTS, Dataset, Fields
from scdgn.errors import BundleError, SettingsError, first_line
from scdgn.files import new_folder
from scdgn.networks import Model, layer_sizes
from scdgn.preprocess import Preprocessing
from scdgn.rejection import COOLEST, HOTTEST, SCORES, Anchors, Calibration, pooled, strangeness
from scdgn.values import Values

VERSION = 2
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
    """

    parts: tuple[torch.Tensor, ...]

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
        return Inputs(tuple(changed[id(x)] for x in self.parts))


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
        Whether a query is corrected (`scdgn.correction`) unless it is said otherwise.
    """

    parts: tuple[Part, ...]
    cell_types: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    corrects: bool = False

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
        lacking = {name for part in self.parts for name in part.preprocessing.match(genes).missing}
        return tuple(name for name in self.genes.tolist() if name in lacking)

    def decorated(self, genes: NDArray[np.str_]) -> int:
        """How many of the model's genes are among these with a version or a genome's prefix more or less."""
        return max(part.preprocessing.match(genes).decorated for part in self.parts)

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
        return x if correction is None else Inputs(correction.apply(Query(x.parts, dataset.batches)))

    def correction(
        self, query: Batched, chunks: Callable[[], Iterable[Dataset]], correct: bool | None = None
    ) -> Correction | None:
        """What to take away from the cells of a query, batch by batch.

        Parameters
        ----------
        query
            Knows the batches of all its cells.
        chunks
            The cells in the same order, as many at a time as memory allows.
        correct
            Whether to correct them; by default as the bundle has it.

        Returns
        -------
        None where nothing is to be corrected.

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
        return find_correction(read, [part.models for part in self.parts], references, sizes)

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
        return _array(latents[0]), self._calibrated(logits)

    def all_outputs(self, x: Inputs) -> Outputs:
        """The same, and how strange the cells are."""
        latents, logits = self.forward(x)
        calibration = self.calibration
        scores = strangeness(calibration.score, logits, latents, calibration.temperature, calibration.anchors)
        return Outputs(_array(latents[0]), self._calibrated(logits), _array(scores))

    def unknown(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which cells are of a type never trained, by their strangeness; none where there is no threshold."""
        threshold = self.calibration.threshold
        told: NDArray[np.bool_] = scores > (np.inf if threshold is None else threshold)
        return told

    def forward(self, x: Inputs) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The latent representation of each model, (cells, latent), and the logits of all, (models, cells, types)."""
        pairs = [model.forward(own) for part, own in zip(self.parts, x.parts, strict=True) for model in part.models]
        latents, logits = zip(*pairs, strict=True)
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
            return _assemble(*(_of_version_1(document, tensors) if document["version"] == 1 else (document, tensors)))
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
    if document.get("version") not in (1, VERSION):
        version = repr(document.get("version"))[:20]
        raise BundleError(
            f"{folder} is a bundle of version {version}, this scdgn reads up to version {VERSION}: "
            "install the scdgn that wrote it, or train the model again"
        )
    return document


def _checksum(document: Mapping[str, Any], weights: bytes) -> str:
    """SHA-256 over both files but for itself: a flipped bit would leave most weights finite, and the model wrong."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + weights).hexdigest()


def _of_version_1(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A bundle of before there were parts, as one with a single part."""
    keys = ("models", "settings", "trained_types", "batch_names", "history")
    part = {**{key: document[key] for key in keys}, "preprocessing": 0, "spread": None}
    renamed = {name.replace("preprocessing.", "preprocessing.0."): tensor for name, tensor in tensors.items()}
    return {**document, "parts": [part], "preprocessing": [document["preprocessing"]], "corrects": False}, renamed


def _assemble(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Bundle:
    contents = _listed(document, "preprocessing")
    preprocessings = [_preprocessing(content, number, tensors) for number, content in enumerate(contents)]
    cell_types = _names(document, "cell_types")
    parts: list[Part] = []
    for number, content in enumerate(_listed(document, "parts")):
        first = sum(len(part.models) for part in parts)
        part = _part(content, first, preprocessings, len(cell_types), tensors)
        shape = (len(cell_types), len(part.preprocessing.genes))
        parts.append(replace(part, reference=_reference(content["spread"], number, shape, tensors)))
    corrects = document["corrects"]
    if not isinstance(corrects, bool) or (corrects and any(part.reference is None for part in parts)):
        raise ValueError(f"corrects is {corrects!r}")
    shapes = [(len(cell_types), part.settings.latent) for part in parts for _ in part.models]
    return Bundle(tuple(parts), cell_types, _provenance(document), _calibration(document, tensors, shapes), corrects)


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    entries = document[key]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{key} is not a list of something")
    return entries


def _preprocessing(content: dict[str, Any], number: int, tensors: Mapping[str, torch.Tensor]) -> Preprocessing:
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


def _part(
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
    batch_names = _names(content, "batch_names")
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


def _reference(
    spread: object, number: int, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]
) -> Reference | None:
    """That of a part."""
    if spread is None:
        return None
    if not isinstance(spread, int | float) or not _is_number(spread) or spread < 0:
        raise ValueError(f"spread of part {number} is {spread!r}")
    means, floor = (tensors[f"parts.{number}.{name}"] for name in ("means", "floor"))
    if (tuple(means.shape), tuple(floor.shape)) != (shape, shape[1:]) or {means.dtype, floor.dtype} != {torch.float32}:
        raise ValueError(f"means and floor of part {number} are not float32 of shape {shape}")
    known = ~means.isnan().all(dim=1)  # of types with training cells
    if not (means[known].isfinite().all() and floor.isfinite().all()):
        raise ValueError(f"means or floor of part {number} are not finite")
    return Reference(means, floor, spread)


def _calibration(
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
    if not all(_is_number(number) for number in numbers) or not isinstance(found.source, str):
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
    if not all(len(pair) == 2 and all(map(_is_number, pair)) for pair in tried):
        raise ValueError(f"fewer_genes is {tried!r}")
    return dict(provenance)


def _history(document: Mapping[str, Any], count: int) -> tuple[Mapping[str, list[float]], ...]:
    history = document["history"]
    if len(history) not in (0, count) or any(columns.keys() != history[0].keys() for columns in history):
        raise ValueError("history is not one table of the same columns for every model")
    if not all(isinstance(column, list) for columns in history for column in columns.values()):
        raise ValueError("a column of history is not a list")
    return tuple(history)

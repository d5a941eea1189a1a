"""From cells with labels to a bundle: preprocessing fitted, models trained as one pack."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import scdgn
from scdgn.cells.dataset import Dataset
from scdgn.cells.preprocess import Preprocessing, shares_of
from scdgn.cells.preprocess import fit as fit_preprocessing
from scdgn.cells.reading import check_trainable
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.splits import set_aside
from scdgn.core.adaptation import ROUNDS, joined
from scdgn.core.config import UNLABELED, Precision, Settings
from scdgn.core.correction import find_reference
from scdgn.core.expression import Expression, join
from scdgn.core.memory import in_parts
from scdgn.core.metrics import mutual_information
from scdgn.core.networks import Model
from scdgn.core.pack.members import Cells, Member
from scdgn.core.training import Callback, EarlyStopping, Report, Trained, train
from scdgn.errors import DataError, DeviceError, SettingsError, TrainingError
from scdgn.model.bundle import Bundle
from scdgn.model.parts import Part

_Run = tuple[Trained, EarlyStopping | None]


@dataclass(frozen=True)
class StopEarly:
    """Early stopping in plain training.

    Attributes
    ----------
    fraction
        Share of every type that is set aside to decide when to stop.
    patience
        Epochs without a better macro-F1 on them after which a model stops; its best state is kept.
    """

    fraction: float = 0.1
    patience: int = 10

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.fraction < 1:
            faults.append(f"validation fraction is {self.fraction:g}: give a value between 0 and 1")
        if self.patience < 1:
            faults.append(f"patience is {self.patience}: give at least 1 epoch")
        if faults:
            raise SettingsError(*faults)


def fit(
    dataset: Dataset,
    rows: NDArray[np.int64],
    settings: Settings,
    preprocess: PreprocessSettings,
    seeds: Sequence[int],
    unlabeled: Sequence[Dataset] = (),
    stop_early: StopEarly | None = None,
    device: str = "auto",
    on_epoch: Callback | None = None,
    precision: Precision = "tf32",
    query: Sequence[Dataset] = (),
) -> Bundle:
    """Fit the preprocessing on the training cells and train one model per seed, as one pack.

    Parameters
    ----------
    dataset, rows
        All cells, and which of them train. Nothing is learned from the others.
    settings, preprocess
        How to train, and how cells become input.
    seeds
        One model each; of the initial weights, of the order of the cells and of the pairs.
    unlabeled
        Cells whose types are not known, which join the domain loss with `settings.query_weight`. Labels that they
        carry are not looked at. Batches are matched with those of `dataset` by name.
    stop_early
        Set training cells aside and stop by them; by default all epochs are trained on all cells.
    device
        `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
    on_epoch
        Told of every epoch.
    precision
        Of matrix products.
    query
        Cells to adapt to, by training again with those that the models are sure of (`scdgn.core.adaptation`). Labels
        that they carry are not looked at.

    Raises
    ------
    DataError, SettingsError, DeviceError
        If the cells, the settings or the device do not allow it.
    TrainingError
        If a model's loss is not finite.
    """
    if not seeds or min(seeds) < 0:
        raise SettingsError(f"seeds are {list(seeds)}: give at least one, and whole numbers from 0")
    target = find_device(device)
    joining = unlabeled if settings.uses_unlabeled else ()
    check_trainable(
        dataset,
        rows,
        settings.method,
        {part.batch_names[code] for part in [*joining, *query] for code in np.unique(part.batches)},
    )
    fingerprint = dataset.fingerprint()
    dataset = with_types_of(dataset, rows)
    validated = rows[:0]
    if stop_early is not None:
        rows, validated = set_aside(dataset, rows, stop_early.fraction, seeds[0])
        if not len(validated):
            raise DataError("every type has a single cell, so none can validate: leave out --early-stopping")
    preprocessing = replace(
        fit_preprocessing(dataset, rows, preprocess), shares=shares_of(dataset, rows, preprocess.target_sum)
    )
    # The seeds have orders of their own, so each reads its mini-batches alone.
    cells, batch_names = training_cells(preprocessing, dataset, rows, joining, target, settings.hidden)
    reference = find_reference(cells.x, cells.labels, cells.domains, cells.types)
    validation = None
    if stop_early is not None:
        validation = (preprocessing.expression(dataset, validated).to(target), dataset.labels[validated])
    train_on = _Training(settings, seeds, target, precision, on_epoch, stop_early, validation)
    runs, models = train_on(cells)
    adapted = cells
    if query:
        asked, batch_names = query_cells(preprocessing, query, batch_names, cells.types, target, settings.hidden)
        for again in range(ROUNDS):
            more = joined(cells, asked, models, None if again else reference)
            if more is cells:
                break
            adapted = more
            runs, models = train_on(adapted)
    provenance = {
        **_made_by(target, precision),
        "data": fingerprint,
        "values": dataset.values,
        "training_cells": len(rows),
        "mutual_information_bits": round(mutual_information(dataset.labels[rows], dataset.batches[rows]), 4),
        "unlabeled_cells": sum(len(part) for part in [*joining, *query]),
        "adapted_cells": len(adapted.labels) - len(cells.labels),
        "confident_unlabeled_cells": (
            _confident(models, cells, settings) if joining and settings.method == "scdgn" else None
        ),
        "transductive": len(joining) > 0 or len(query) > 0 or preprocessing.transductive,
        "seeds": list(seeds),
        "epochs": [
            stopper.epoch if stopper is not None and stopper.model else len(outcome.history)
            for outcome, stopper in runs
        ],
    }
    part = Part(models, settings, preprocessing, batch_names, tuple(_columns(*run) for run in runs), reference)
    return Bundle((part,), dataset.cell_types, provenance)


@dataclass(frozen=True)
class _Training:
    """How the models of a bundle are trained: on its cells, and again on those that they adapt to."""

    settings: Settings
    seeds: Sequence[int]
    device: torch.device
    precision: Precision
    on_epoch: Callback | None
    stop_early: StopEarly | None
    validation: tuple[Expression, NDArray[np.int64]] | None

    def __call__(self, cells: Cells) -> tuple[list[_Run], tuple[Model, ...]]:
        runs = in_parts(partial(self._together, cells), self.seeds, self.device)
        for outcome, stopper in runs:
            if stopper is not None:
                outcome.model = stopper.model or outcome.model
        return runs, _models([outcome for outcome, _ in runs])

    def _together(self, cells: Cells, seeds: Sequence[int]) -> list[_Run]:
        members = [Member(self.settings, cells, seed) for seed in seeds]
        stoppers: list[EarlyStopping] = []
        if self.stop_early is not None and self.validation is not None:
            patience = self.stop_early.patience
            stoppers = [EarlyStopping(one, place, *self.validation, patience) for place, one in enumerate(members)]

        def watch(report: Report) -> Iterable[int]:
            if self.on_epoch is not None:
                self.on_epoch(report)
            return [index for stopper in stoppers for index in stopper(report)]

        return list(zip_longest(train(members, self.device, watch, precision=self.precision), stoppers))


def _made_by(device: torch.device, precision: Precision) -> dict[str, str]:
    return {
        "scdgn": scdgn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(device),
        "precision": precision,
    }


def training_cells(
    preprocessing: Preprocessing,
    dataset: Dataset,
    rows: NDArray[np.int64],
    unlabeled: Sequence[Dataset],
    device: torch.device,
    units: int,
) -> tuple[Cells, tuple[str, ...]]:
    """The cells of a pack's members, and the names of their domains.

    Parameters
    ----------
    preprocessing
        Fitted on `rows`.
    dataset, rows
        The labelled training cells.
    unlabeled
        Cells that are given no label, whatever they carry.
    device
        Where they will train; labels and domains stay on the CPU, and so does expression too large to be moved whole.
    units
        Hidden units of the models that share mini-batches: see `Preprocessing.expression`.
    """
    units = units if device.type == "cpu" else 0
    x, labels = preprocessing.expression(dataset, rows, units), torch.from_numpy(dataset.labels[rows])
    own = Cells(x, labels, torch.from_numpy(dataset.batches[rows]), len(dataset.cell_types), len(dataset.batch_names))
    if not unlabeled:
        return own.on(device), dataset.batch_names
    joining, names = query_cells(preprocessing, unlabeled, dataset.batch_names, own.types, torch.device("cpu"), units)
    return own.joined(joining).on(device), names


def query_cells(
    preprocessing: Preprocessing,
    query: Sequence[Dataset],
    names: Sequence[str],
    types: int,
    device: torch.device,
    units: int,
) -> tuple[Cells, tuple[str, ...]]:
    """Cells without labels, whatever they carry, and the names of all domains: their batches are matched by name.

    `names` and `types` (their number) are those of the training cells; the rest as for `training_cells`.
    """
    units = units if device.type == "cpu" else 0
    known, x, domains = list(names), [], []
    for part in query:
        known += [name for name in part.batch_names if name not in known]
        code = np.array([known.index(name) for name in part.batch_names])
        x.append(preprocessing.expression(part, np.arange(len(part)), units))
        domains.append(code[part.batches])
    labels = torch.full((sum(map(len, x)),), UNLABELED, dtype=torch.int64)
    cells = Cells(
        x[0] if len(x) == 1 else join(x), labels, torch.from_numpy(np.concatenate(domains)), types, len(known)
    )
    return cells.on(device), tuple(known)


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one, else the CPU.

    Raises
    ------
    DeviceError
        If there is no such device.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = f"there are {gpus} GPUs" if gpus else "there is no GPU"
        raise DeviceError(f"device {name!r} is not there ({found}): choose --device cpu, or see `scdgn doctor`")
    return device


def adapting(settings: Settings) -> Settings:
    """The settings with unlabelled cells counting in the domain loss, at full weight unless they already do."""
    return settings if settings.query_weight > 0 else replace(settings, query_weight=1.0)


def with_types_of(dataset: Dataset, rows: NDArray[np.int64]) -> Dataset:
    """The same cells, with the types of `rows` alone: the types of held-out cells must not shape the network."""
    types = np.unique(dataset.labels[rows])
    types = types[types != UNLABELED]
    codes = np.full(len(dataset.cell_types) + 1, UNLABELED)  # the last one for cells without a type, whose code is -1
    codes[types] = np.arange(len(types))
    return replace(dataset, labels=codes[dataset.labels], cell_types=tuple(dataset.cell_types[code] for code in types))


def _models(outcomes: Sequence[Trained]) -> tuple[Model, ...]:
    if diverged := [outcome for outcome in outcomes if outcome.model is None]:
        raise TrainingError(
            *(
                f"the model of seed {outcome.member.seed} diverged ({outcome.reason}): lower lr or lambda_max, "
                "or set clip_norm"
                for outcome in diverged
            )
        )
    return tuple(outcome.model for outcome in outcomes if outcome.model is not None)


def _confident(models: Sequence[Model], cells: Cells, settings: Settings) -> float:
    """Unlabelled cells that the final models predict with enough confidence to pair up; mean over the models."""
    x = cells.x[cells.unlabeled]
    best = [model.probabilities(x).amax(dim=1) for model in models]
    return float(np.mean([int((confidence >= settings.pseudo_confidence).sum()) for confidence in best]))


def _columns(outcome: Trained, stopper: EarlyStopping | None) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "label_loss": [losses.label_loss for losses in outcome.history],
        "domain_loss": [losses.domain_loss for losses in outcome.history],
        "lambda": [losses.lam for losses in outcome.history],
    }
    return columns if stopper is None else {**columns, "validation_macro_f1": stopper.scores}

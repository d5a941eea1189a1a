"""A bundle as an MLflow model that holds all that it needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

import scdgn
from scdgn.model.bundle import Bundle
from scdgn.search.tracking.store import location

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature


SERVED = Path(__file__).with_name("served_model.py")

IMPORTED = ("mlflow", "numpy", "pandas", "safetensors", "scipy", "torch")
"""What `SERVED` and the part of scdgn that it needs import."""

NOT_SERVED = ("search", "analysis", "commands", "cli.py", "__main__.py", "__pycache__")
"""What of scdgn it does not need."""


def save_pyfunc(bundle_folder: Path, destination: Path, mlflow_model: Model | None = None) -> None:
    """Write a bundle as an MLflow model that loads and serves where scdgn is not installed.

    The model's code is `SERVED` and a copy of the part of scdgn that predicts, and its state is the bundle, as
    `Bundle.save` wrote it: nothing is pickled. `scdgn.search.tracking.served_model` says what it takes and gives. The
    destination does not exist yet, or is empty; `mlflow_model` is the identity of a model that is being logged.
    """
    bundle = Bundle.load(bundle_folder)
    with undisturbed(), TemporaryDirectory(prefix="scdgn-") as folder:
        import mlflow.pyfunc

        code = copytree(Path(scdgn.__file__).parent, Path(folder, "scdgn"), ignore=ignore_patterns(*NOT_SERVED))

        mlflow.pyfunc.save_model(
            path=str(destination),
            python_model=str(SERVED),
            artifacts={"bundle": location(bundle_folder.absolute())},
            code_paths=[str(code)],
            signature=_signature(bundle),
            input_example=_example(bundle),
            pip_requirements=_requirements(),
            mlflow_model=mlflow_model,
        )


def _signature(bundle: Bundle) -> ModelSignature:
    """All genes optional. Of counts all genes of the training data, since they make up a cell's total."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from scdgn.search.tracking.served_model import CONFIDENCE, CORRECTED, LABEL, PROBABILITY, UNKNOWN

    panels = (part.preprocessing.panel.tolist() for part in bundle.parts)
    counts = bundle.provenance["values"] == "counts"
    genes = dict.fromkeys(gene for panel in panels for gene in panel) if counts else bundle.genes.tolist()
    answers = [(DataType.string, LABEL), (DataType.double, CONFIDENCE)]
    if bundle.calibration.threshold is not None:
        answers.append((DataType.boolean, UNKNOWN))
    if bundle.corrects:
        answers.append((DataType.boolean, CORRECTED))
    answers += [(DataType.double, PROBABILITY + name) for name in bundle.cell_types]
    return ModelSignature(
        Schema([ColSpec(DataType.double, name, required=False) for name in genes]),
        Schema([ColSpec(kind, name) for kind, name in answers]),
    )


def _example(bundle: Bundle) -> pd.DataFrame:
    """Two cells that give no patient away: the mean of the training cells, and it plus a standard deviation."""
    import pandas as pd

    statistics: dict[str, tuple[float, float]] = {}
    for part in reversed(bundle.parts):  # the leading one has the last word
        prepared = part.preprocessing
        statistics |= zip(prepared.genes.tolist(), zip(prepared.mean, prepared.std, strict=True), strict=True)
    mean, std = np.array([statistics[gene] for gene in bundle.genes.tolist()], dtype=np.float64).T  # (genes,)
    values = np.stack([mean, mean + std])  # (cells, genes)
    values = np.rint(np.expm1(values)) if bundle.provenance["values"] == "counts" else values.round(3)
    return pd.DataFrame(values, columns=bundle.genes.tolist())


def _requirements() -> list[str]:
    """The installed versions, without a build suffix (torch 2.13.0+cpu), which package indices do not know."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in IMPORTED]


@contextmanager
def undisturbed() -> Iterator[None]:
    """MLflow without the uv.lock of whatever folder the process runs in, and without warnings of its own classes."""
    before = os.environ.get("MLFLOW_UV_AUTO_DETECT")
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"
    try:
        with warnings.catch_warnings():
            # On first import of mlflow.pyfunc.
            warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
            yield
    finally:
        del os.environ["MLFLOW_UV_AUTO_DETECT"]
        if before is not None:
            os.environ["MLFLOW_UV_AUTO_DETECT"] = before

"""The served model: wherever MLflow loads the model it runs a copy of this file ("models from code").

So it imports the package scdgn, a copy of which lies beside it, and what the model's requirements list, but no search.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import QUERY
from scdgn.cells.values import Survey
from scdgn.core.config import UNLABELED
from scdgn.errors import DataError
from scdgn.model.annotate import predictions
from scdgn.model.bundle import Bundle
from scdgn.model.query import missing_genes

LABEL, CONFIDENCE, UNKNOWN, CORRECTED, PROBABILITY = "label", "confidence", "unknown", "corrected", "probability: "


class ServedModel(PythonModel):
    """Cells in, types out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the bundle among the model's artifacts; no pickle is involved."""
        self._bundle = Bundle.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Type and probabilities of every cell.

        Parameters
        ----------
        context
            Not looked at: all has been read.
        model_input
            A row per cell and a column per gene, by name and in any order; counts or log-normalised values (what they
            are is told from them: `scdgn.cells.values`). Genes of the training data that are left out are treated as
            not measured; the others make up a cell's total; columns that are no gene of the training data are not
            looked at. All rows are one batch, which matters to a model that scales per batch or corrects alone.
        params
            None are known.

        Returns
        -------
        A row per cell, in the order and with the index of the input: `label`, `confidence` (its probability),
        `unknown` (whether the cell is of a type never trained; only of a model with a threshold), `corrected` (whether
        what all types of the request share against the training cells was taken away, as it is not where the cells are
        few; only of a model that corrects) and a column `probability: TYPE` for every type.

        Raises
        ------
        MlflowException
            INVALID_PARAMETER_VALUE (HTTP status 400) for too few genes to tell types by, or values that are missing,
            negative or infinite.
        """
        try:
            cells = self._read(model_input)
            missing_genes(self._bundle, cells.genes)
            correction = self._bundle.correction(cells, lambda: [cells])
            found = predictions(cells, self._bundle, correction)
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        types = self._bundle.cell_types
        probabilities = found.probabilities.astype(np.float64)  # (cells, types)
        return pd.DataFrame(
            {
                LABEL: np.array(types, dtype=object)[found.codes],
                CONFIDENCE: found.confidence.astype(np.float64),
                **({} if self._bundle.calibration.threshold is None else {UNKNOWN: found.unknown}),
                **({} if correction is None else {CORRECTED: correction.corrected(cells.batches)}),
                **{PROBABILITY + name: probabilities[:, code] for code, name in enumerate(types)},
            },
            index=model_input.index,
        )

    def _read(self, cells: pd.DataFrame) -> Dataset:
        try:
            x = cells.to_numpy(dtype=np.float32, na_value=np.nan)  # (cells, genes)
        except (TypeError, ValueError) as error:
            raise DataError(f"some of the values are no numbers ({error}): give a number for every gene") from error
        unusable = ~(np.isfinite(x) & (x >= 0))
        if unusable.any():
            row, column = np.argwhere(unusable)[0]
            raise DataError(
                f"{unusable.sum()} of the values are missing, negative or infinite, the first that of "
                f"{cells.columns[column]} in row {row}: give 0 where nothing was found, and leave out genes that were "
                "not measured"
            )
        survey = Survey()
        survey.add(x)
        reading, unclear = survey.judge("auto", "the request", [QUERY], self._bundle.values)
        if reading is None:
            raise DataError(*unclear)
        batches = np.zeros(len(x), dtype=np.int64)
        return Dataset(
            x=reading.read(x, batches),
            values=reading.values,
            genes=np.array(cells.columns, dtype=str),
            cells=np.array(cells.index, dtype=str),
            labels=np.full(len(x), UNLABELED, dtype=np.int64),
            cell_types=(),
            batches=batches,
            batch_names=(QUERY,),
        )


mlflow.models.set_model(ServedModel())

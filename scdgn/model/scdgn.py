"""The model class, in the manner of scvi-tools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.queries import query_fields
from scdgn.cells.reading import from_anndata, in_memory
from scdgn.cells.settings import INPUT_PRESETS, Duplicates, PreprocessSettings, Unlabeled
from scdgn.core.config import Method, Precision, Settings, preset
from scdgn.errors import DataError, SettingsError
from scdgn.model.annotate import annotate
from scdgn.model.attribution import Explanation
from scdgn.model.bundle import Bundle
from scdgn.model.fitting import StopEarly, adapting, fit
from scdgn.model.parts import Inputs
from scdgn.model.query import Agreement, missing_genes, trained_fields

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_REGISTERED = "scdgn_setup"  # in adata.uns


class SCDGN:
    """A cell-type classifier that generalises to unseen batches (Ge et al. 2020), or one of its relatives.

    Parameters
    ----------
    adata
        Cells registered with `SCDGN.setup_anndata`.
    method
        `scdgn` (the default), `dann`, or `nn` (no adversary).
    settings
        What differs from the preset, by the names of `scdgn.core.config.Settings`; or all of it, as `Settings`.
    preset
        `default`, or `reference` for the published training.
    preprocess
        Genes and scaling.

    Raises
    ------
    DataError, SettingsError
        With every fault of the data or of the settings.

    Examples
    --------
    >>> SCDGN.setup_anndata(adata, labels_key="celltype", batch_key="tech")
    >>> model = SCDGN(adata, settings={"margin": 2.0})
    >>> model.train()
    >>> query.obs["label"] = model.predict(query)
    """

    def __init__(
        self,
        adata: AnnData,
        method: Method | None = None,
        settings: Settings | Mapping[str, object] | None = None,
        preset: str = "default",
        preprocess: PreprocessSettings | None = None,
    ) -> None:
        self._fields = _registered(in_memory(adata))
        self._dataset: Dataset | None = from_anndata(adata, self._fields)
        self.settings = _settings(method, settings, preset)
        self.preprocess = preprocess or INPUT_PRESETS[preset]
        self._bundle: Bundle | None = None

    @staticmethod
    def setup_anndata(
        adata: AnnData,
        labels_key: str,
        batch_key: str,
        layer: str | None = None,
        unlabeled_category: str | None = None,
        gene_key: str | None = None,
        unlabeled: Unlabeled = "error",
        values: str = "auto",
        duplicate_genes: Duplicates = "error",
        missing_labels: Sequence[str] = (),
        kept_labels: Sequence[str] = (),
        min_batch_cells: int = 0,
    ) -> None:
        """Say where the AnnData keeps what training needs.

        Parameters
        ----------
        adata
            Remembers it in `adata.uns`.
        labels_key, batch_key
            Columns of obs with the cell types and the batches.
        layer
            Layer with the counts or log-normalised values; X if None.
        unlabeled_category
            Label of cells whose type is not known.
        gene_key
            Column of var with the gene names; var_names if None.
        unlabeled
            What to do with cells whose label is missing: raise an error, drop them, or let them join the domain loss.
        values
            What the values are: `counts`, `linear`, `log1p`, `log2`, `log10`, `sqrt`, `log` (of an unknown base), or
            BATCH=KIND for some batches, with commas. By default it is told from the values of each batch, as it is for
            the cells to predict.
        duplicate_genes
            What to do with genes of the same name: raise an error, take the first, or their sum.
        missing_labels, kept_labels
            Labels that say that a cell has none, beside the words that are known to (`NA`, `unknown`, ...), and those
            of these words that are names of types here.
        min_batch_cells
            Batches with fewer cells are taken together.

        Raises
        ------
        DataError
            With every fault of the data.
        """
        fields = Fields(
            labels_key,
            batch_key,
            layer,
            gene_key,
            unlabeled_category,
            unlabeled,
            values,
            duplicate_genes,
            tuple(missing_labels),
            tuple(kept_labels),
            min_batch_cells,
        )
        from_anndata(adata, fields)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trying to modify attribute")  # of a view, which becomes a copy by it
            adata.uns[_REGISTERED] = fields.to_mapping()

    def train(
        self,
        seed: int = 0,
        n_models: int = 1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        query: AnnData | None = None,
        device: str = "auto",
        precision: Precision = "tf32",
    ) -> None:
        """Train on all labelled cells.

        Parameters
        ----------
        seed
            The same seed gives the same model on the same device.
        n_models
            Models of an ensemble, of seeds `seed`, `seed + 1`, ...; they train as one pack.
        early_stopping, validation_fraction, patience
            Set a share of every type aside, and stop after `patience` epochs without a better macro-F1 on it, not
            before lambda has reached 0.95 of its end. Off by default: batches that are set aside by cell say little
            about a batch that was never seen.
        query
            Cells to adapt to, without labels: those that the models are sure of take part in training again
            (`scdgn.core.adaptation`).
        device
            `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        precision
            Of matrix products: `tf32` (on a GPU), `float32`, or `bf16`.

        Raises
        ------
        DataError, SettingsError, DeviceError, TrainingError
            If the cells, the settings or the device do not allow it, or training diverges.
        """
        if self._dataset is None:
            raise DataError("a loaded model holds no training cells: make a new SCDGN(adata) to train")
        if n_models < 1:
            raise SettingsError(f"n_models is {n_models}: give at least 1")
        labeled = np.flatnonzero(self._dataset.labels >= 0)
        unlabeled = [self._dataset.take(self._dataset.labels < 0)] if len(labeled) < len(self._dataset) else []
        settings = self.settings
        if self._fields.unlabeled == "domain":
            settings = adapting(settings)
        self._bundle = fit(
            self._dataset,
            labeled,
            settings,
            self.preprocess,
            range(seed, seed + n_models),
            unlabeled,
            StopEarly(validation_fraction, patience) if early_stopping else None,
            device,
            precision=precision,
            query=() if query is None else (self._query(query, by_batch=True),),
        )

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Label loss, domain loss, lambda and validation score (if there was one): a table each, (epochs, models)."""
        import pandas as pd

        history = self.bundle.history
        return {
            name: pd.DataFrame({place: pd.Series(columns[name]) for place, columns in enumerate(history)}).rename(
                index=lambda epoch: epoch + 1
            )
            for name in (history[0] if history else ())
        }

    @property
    def bundle(self) -> Bundle:
        """What training made.

        Raises
        ------
        SettingsError
            Before training.
        """
        if self._bundle is None:
            raise SettingsError("the model is not trained: call train() first")
        return self._bundle

    @overload
    def predict(
        self, adata: AnnData | None = None, soft: Literal[False] = False, correct: bool | None = None
    ) -> NDArray[np.object_]: ...
    @overload
    def predict(
        self, adata: AnnData | None = None, *, soft: Literal[True], correct: bool | None = None
    ) -> pd.DataFrame: ...
    def predict(
        self, adata: AnnData | None = None, soft: bool = False, correct: bool | None = None
    ) -> NDArray[np.object_] | pd.DataFrame:
        """Predict cell types.

        Parameters
        ----------
        adata
            Cells to predict, genes matched by name; the training cells by default.
        soft
            Return the probability of every type instead.
        correct
            Take away what the cells of a batch, by the column of the training batches where they have it, share against
            the training cells (`scdgn.core.correction`). By default as the model has it: what a search found to help on
            batches left out; False of a model trained here. What is said of a cell then depends on the others.

        Returns
        -------
        (cells,) names of types; or a table (cells, types).

        Raises
        ------
        DataError, SettingsError
            With every fault of the data; if the model is too old to correct.
        """
        dataset, x = self._to_predict(adata, correct)
        probabilities = self.bundle.probabilities(x)
        if not soft:
            names: NDArray[np.object_] = np.array(self.bundle.cell_types, dtype=object)[probabilities.argmax(axis=1)]
            return names
        import pandas as pd

        return pd.DataFrame(probabilities, index=dataset.cells, columns=list(self.bundle.cell_types))

    def get_latent_representation(
        self, adata: AnnData | None = None, correct: bool | None = None
    ) -> NDArray[np.float32]:
        """The encoder's output, (cells, latent); of an ensemble's first model. Corrected as `predict` has it."""
        return self.bundle.latent(self._to_predict(adata, correct)[1])

    def annotate(
        self, adata: AnnData, correct: bool | None = None, explain: bool = False, top_k: int | None = None
    ) -> None:
        """Write into an AnnData what `scdgn predict` writes into a copy of a file.

        Parameters
        ----------
        adata
            Gets label, confidence, probabilities, the encoder's output and colours (`scdgn.model.annotate.annotate`).
        correct
            As `predict` has it.
        explain
            Add uns["scdgn_genes"], the genes that speak most for each label in these cells (`scdgn.model.attribution`).
        top_k
            Keep the probabilities of a cell's so many most probable types alone, as a sparse matrix.

        Raises
        ------
        DataError, SettingsError
            With every fault of the data; if the model is too old to correct.
        """
        dataset = self._looked_at(adata, correct, above=2)
        annotate(
            adata, dataset, self.bundle, correct, explanation=Explanation(self.bundle) if explain else None, top_k=top_k
        )

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model to a folder, as safetensors and JSON.

        Raises
        ------
        OutputError
            If the folder cannot be written, or exists and is not to be overwritten.
        """
        bundle = replace(self.bundle, provenance={**self.bundle.provenance, "fields": self._fields.to_mapping()})
        bundle.save(folder, overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> SCDGN:
        """Read a model that `save` or the command line wrote; it can predict, not train.

        Raises
        ------
        BundleError
            If there is none, or it is damaged or of another version.
        """
        model = cls.__new__(cls)
        model._bundle = Bundle.load(folder)
        model._dataset = None
        model._fields = trained_fields(model._bundle)
        model.settings = model._bundle.settings
        model.preprocess = model._bundle.preprocessing.settings
        return model

    def _to_predict(self, adata: AnnData | None, correct: bool | None) -> tuple[Dataset, Inputs]:
        """Cells to predict, the training cells by default, and their input."""
        bundle = self.bundle
        dataset = self._dataset if adata is None else self._looked_at(adata, correct, above=3)
        if dataset is None:
            raise DataError("a loaded model holds no cells: give the adata to predict")
        return dataset, bundle.input(dataset, bundle.correction(dataset, partial(list, (dataset,)), correct))

    def _looked_at(self, adata: AnnData, correct: bool | None, above: int) -> Dataset:
        """Cells to predict, with a warning, to whoever called so far above, of what is to be doubted."""
        bundle = self.bundle
        dataset = self._query(adata, bundle.by_batch(correct))
        agreement = Agreement(bundle)
        agreement.add(dataset)
        for sentence in (*missing_genes(bundle, dataset.genes)[1], *agreement.warnings()):
            warnings.warn(sentence, UserWarning, stacklevel=1 + above)
        return dataset

    def _query(self, adata: AnnData, by_batch: bool) -> Dataset:
        """Cells read as they are, without labels; one batch where they lack the column."""
        adata = in_memory(adata)
        like = self.bundle.values if self._dataset is None else self._dataset.values
        return from_anndata(adata, query_fields(self._fields, like, adata, by_batch=by_batch))


def _registered(adata: AnnData) -> Fields:
    if _REGISTERED not in adata.uns:
        raise DataError("the AnnData is not set up: call SCDGN.setup_anndata(adata, labels_key=, batch_key=) first")
    return Fields(**{"labels_key": None, "batch_key": None, **adata.uns[_REGISTERED]})


def _settings(method: Method | None, settings: Settings | Mapping[str, object] | None, name: str) -> Settings:
    changes = settings.to_mapping() if isinstance(settings, Settings) else settings or {}
    chosen: Any = changes.get("method", method or "scdgn")
    if chosen not in get_args(Method):
        raise SettingsError(f"method is {chosen!r}: choose one of {', '.join(get_args(Method))}")
    if method not in (None, chosen):
        raise SettingsError(f"method is {chosen!r} in the settings and {method!r} as an argument: give it once")
    return Settings.from_mapping(changes, preset(name, chosen))

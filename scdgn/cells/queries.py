"""How cells without labels are read: as training, search, prediction and the served model all do."""

from __future__ import annotations

from scdgn.cells.fields import RAW, Annotated, Fields, X, is_raw
from scdgn.cells.names import batches_of_cells
from scdgn.cells.values import Values
from scdgn.errors import DataError, nearest


def query_fields(
    known: Fields, like: Values, cells: Annotated, given: Fields | None = None, by_batch: bool = False
) -> Fields:
    """Where cells without labels keep what prediction needs, and how their values are to be read.

    A column of genes that they lack, the names of var stand for; a layer, or .raw, that they lack, nothing.

    Parameters
    ----------
    known, like
        Where the training cells kept it, and what values they hold.
    given
        What the user says of the cells, which has to be there.
    by_batch
        Whether their batches matter to what is predicted; else they are looked at where they are sound.

    Raises
    ------
    DataError
        Without the layer of the training cells, and none named.
    """
    given = given or Fields(None, None)
    layers = [*cells.layers, *([] if cells.raw is None else [RAW])]
    if given.layer is None and known.layer not in (*X, *layers):
        trained_on = f"layer {known.layer!r}" if known.layer != RAW else f".raw (or a layer {RAW!r})"
        raise DataError(
            f"the model was trained on {trained_on}, which is not in these data: "
            f"{nearest(str(known.layer), [*layers, 'X'])}, and name it with --layer; what its values are is told from "
            "them"
        )
    layer = given.layer or known.layer
    genes = cells.raw.var if is_raw(cells, layer) else cells.var
    batch_key = given.batch_key
    if batch_key is None and known.batch_key in cells.obs and (by_batch or _sound(cells, known.batch_key)):
        batch_key = known.batch_key
    return Fields(
        None,
        batch_key,
        layer,
        given.gene_key or (known.gene_key if known.gene_key in genes else None),
        values=given.values,
        duplicate_genes=known.duplicate_genes if given.duplicate_genes == "error" else given.duplicate_genes,
        like=like,
    )


def _sound(cells: Annotated, key: str | None) -> bool:
    faults: list[str] = []
    batches_of_cells(cells, key, faults)
    return not faults

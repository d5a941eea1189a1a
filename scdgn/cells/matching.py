"""Genes of a model among those of other data, by their names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GeneMatch:
    """Where the genes of a model are in other data: (genes,) their columns, -1 where one is missing, and the names of
    these.

    Some are there `decorated`, under a name with a version or a genome's prefix more or less, as in
    `ENSG00000141510.18` and `GRCh38_TP53`.
    """

    columns: NDArray[np.int64]
    missing: tuple[str, ...]
    decorated: int = 0

    @property
    def found(self) -> int:
        """Number of genes found."""
        return len(self.columns) - len(self.missing)


def needed_genes(n_genes: int) -> int:
    """Genes of the model that data must have: one in ten and at least five. With fewer, predictions are guesses."""
    return min(n_genes, max(5, math.ceil(n_genes / 10)))


_GENOME = re.compile(r"^(GRC[a-z]\d+|hg\d+|mm\d+)_+")

_VERSION = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")


def columns_of(wanted: NDArray[np.str_], genes: NDArray[np.str_]) -> NDArray[np.int64]:
    """(wanted,) column of each gene among `genes`, by its name, else by its bare name; -1 where it is missing."""
    column_of = {name: column for column, name in enumerate(genes.tolist())}
    columns = np.array([column_of.get(name, -1) for name in wanted.tolist()], dtype=np.int64)
    if (missing := columns < 0).any():
        bare = _bare_names(genes)
        columns[missing] = [bare.get(_bare(name), -1) for name in wanted[missing].tolist()]
    return columns


def _bare(gene: str) -> str:
    """A gene's name without the prefix of a genome, as 10x writes it, and the version of an Ensembl identifier."""
    return _VERSION.sub(r"\1", _GENOME.sub("", gene))


def _bare_names(genes: NDArray[np.str_]) -> dict[str, int]:
    """Column of each bare name; of none that several genes share, as those of two genomes do."""
    columns: dict[str, int] = {}
    for column, name in enumerate(map(_bare, genes.tolist())):
        columns[name] = -1 if name in columns else column
    return columns


def why_unmatched(model: NDArray[np.str_], data: NDArray[np.str_]) -> str:
    """The likely reason that names differ, and the remedy."""
    if _are_ensembl(model) != _are_ensembl(data):
        kinds = ("Ensembl identifiers", "symbols") if _are_ensembl(data) else ("symbols", "Ensembl identifiers")
        return (
            f"the data name their genes by {kinds[0]}, the model by {kinds[1]}; name the column of var with --gene-key"
        )
    alike = {name.casefold() for name in model.tolist()} & {name.casefold() for name in data.tolist()}
    if len(alike) >= needed_genes(len(model)):
        return (
            f"{len(alike)} would match but for upper and lower case, as between mouse and human; name the column of "
            "var that holds the names of the model's species with --gene-key"
        )
    return "check that the data are of the model's species, or name the column of var with the gene names by --gene-key"


def _are_ensembl(genes: NDArray[np.str_]) -> bool:
    """Whether most names look like ENSG00000141510 or ENSMUSG00000059552.10."""
    hits = sum(re.match(r"ENS[A-Z]*G\d{6,}", name) is not None for name in genes.tolist())
    return 2 * hits > len(genes)

"""Settings of the preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from scdgn.core.config import field_faults, kinds_of, merge
from scdgn.errors import SettingsError

Unlabeled = Literal["error", "drop", "domain"]
Duplicates = Literal["error", "first", "sum"]
Scaling = Literal["none", "standard", "standard-per-batch"]

GeneSelection = Literal["variable", "markers"]


@dataclass(frozen=True)
class PreprocessSettings:
    """How cells become input.

    Parameters
    ----------
    n_top_genes
        Highly variable genes kept, all genes if there are no more; without a say where markers are selected.
    scaling
        `none`: log-normalised values. `standard`: mean 0 and variance 1 over the training cells. `standard-per-batch`:
        over each batch of the cells that are transformed, which is transductive.
    target_sum
        Total to which the counts of every cell are normalised.
    clip
        Standardised values are kept within plus and minus this.
    gene_selection
        `variable`: the genes that vary most within the batches (`highly_variable_genes`). `markers`: those that best
        tell a type from the others in its worst batch (`markers.marker_genes`); variable ones where no gene does.
    markers_per_type
        Markers kept of every type; they are united.
    """

    n_top_genes: int = 3000
    scaling: Scaling = "none"
    target_sum: float = 1e4
    clip: float = 10.0
    gene_selection: GeneSelection = "variable"
    markers_per_type: int = 50

    def __post_init__(self) -> None:
        if faults := _faults(asdict(self)):
            raise SettingsError(*faults)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], base: PreprocessSettings | None = None) -> PreprocessSettings:
        """Settings from a TOML table or the like; what is not given comes from `base`.

        Who gives `n_top_genes` and no way to select genes means the variable ones.

        Raises
        ------
        SettingsError
            With every unknown key, wrong type and value out of range.
        """
        implied = {"gene_selection": "variable"} if "n_top_genes" in values else {}
        merged, faults = merge(asdict(base or cls()), {**implied, **values})
        if faults := [*faults, *_faults(merged)]:
            raise SettingsError(*faults)
        return cls(**merged)  # type: ignore[arg-type]


def _faults(values: Mapping[str, object]) -> list[str]:
    ranges = {
        "n_top_genes": (1.0, None),
        "target_sum": (1e-6, None),
        "clip": (1e-6, None),
        "markers_per_type": (1.0, None),
    }
    return field_faults(kinds_of(PreprocessSettings), values, ranges)


INPUT_PRESETS: Mapping[str, PreprocessSettings] = {
    "default": PreprocessSettings(gene_selection="markers", markers_per_type=100),
    "reference": PreprocessSettings(),
}
"""How cells become input with the presets of `config.preset`, by their names."""

"""Settings that did well on other data: the first trials of a search, after the default preset.

Found by `python -m benchmarks.portfolio` (docs/experiments.md). Each entry says what differs from the preset. They
differ from each other in what decides on which data a network does well: how many genes it reads, how long it trains,
and how strong the adversary is.
"""

from __future__ import annotations

from collections.abc import Mapping

from scdgn.core.config import Method
from scdgn.search.study.space import Value

_MARKERS_25: Mapping[str, Value] = {"markers_per_type": 25, "weight_decay": 0.03, "dropout": 0.7, "epochs": 50}
_MARKERS_50: Mapping[str, Value] = {**_MARKERS_25, "markers_per_type": 50}
_ALL_GENES: Mapping[str, Value] = {
    "gene_selection": "variable", "latent": 32, "lr": 0.0006, "weight_decay": 0.4, "dropout": 0.7, "epochs": 85,
    "class_weights": "sqrt", "shift_probability": 0.5,
}  # fmt: skip
_MARKERS_200: Mapping[str, Value] = {
    "markers_per_type": 200, "lr": 0.0003, "weight_decay": 0.003, "dropout": 0.2, "epochs": 67,
    "class_weights": "sqrt", "balance_domains": True, "shift_probability": 0.5,
}  # fmt: skip
_SHORT: Mapping[str, Value] = {"weight_decay": 3.0, "dropout": 0.2, "epochs": 20}

_WEAK_REVERSAL: Mapping[str, Value] = {"lambda_max": 0.05, "lambda_enters": "reversal", "schedule": "sigmoid"}
_STRONG_REVERSAL: Mapping[str, Value] = {
    "lambda_max": 2.0, "lambda_enters": "reversal", "schedule": "cosine", "warmup": 0.9,
}  # fmt: skip
_REVERSAL: Mapping[str, Value] = {
    "lambda_max": 0.15, "lambda_enters": "reversal", "schedule": "cosine", "warmup": 0.3, "margin": 4.5,
    "shift_relabel": False,
}  # fmt: skip

PORTFOLIO: Mapping[Method, tuple[Mapping[str, Value], ...]] = {
    "nn": (_MARKERS_50, _ALL_GENES, _SHORT, _MARKERS_200, _MARKERS_25),
    "dann": ({**_MARKERS_50, **_STRONG_REVERSAL}, _ALL_GENES, _WEAK_REVERSAL, _MARKERS_200, _MARKERS_25),
    "scdgn": (_MARKERS_50, _REVERSAL, _ALL_GENES, _MARKERS_200, _MARKERS_25),
}

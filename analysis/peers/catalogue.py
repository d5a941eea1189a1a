"""The peers: what they are, what of them is searched, and what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scdgn.search.study.space import Choice, Dimension, Real, Value, Whole


@dataclass(frozen=True)
class Peer:
    """Another method of labelling cells.

    Attributes
    ----------
    title
        Its name as people know it.
    package
        What `pip install` brings it with.
    defaults
        All settings, as its authors or its package have them: the first trial.
    space
        What is searched; nothing where a fit takes minutes.
    seeds
        How often the winner is trained again; 1 where nothing is drawn.
    sees_query
        Whether the cells to label, without their types, take part in its training.
    """

    title: str
    package: str
    defaults: Mapping[str, Value]
    space: Mapping[str, Dimension] = field(default_factory=dict)
    seeds: int = 10
    sees_query: bool = False


PEERS = {
    "logistic": Peer(
        "Logistic regression",
        "scikit-learn",
        {"C": 1.0, "class_weight": "none", "scaling": "none"},
        {
            "C": Real(1e-4, 1e2, log=True),
            "class_weight": Choice(("none", "balanced")),
            "scaling": Choice(("none", "standard")),
        },
        seeds=1,
    ),
    "harmony": Peer(
        "Harmony, kNN",
        "harmonypy",
        {"n_top_genes": 2000, "components": 50, "theta": 2.0, "neighbours": 15, "weights": "uniform"},
        {
            "n_top_genes": Choice((500, 1000, 2000, 4000)),
            "components": Whole(10, 100, log=True),
            "theta": Real(0.25, 8.0, log=True),
            "neighbours": Whole(3, 50, log=True),
            "weights": Choice(("uniform", "distance")),
        },
        sees_query=True,
    ),
    "celltypist": Peer(
        "CellTypist",
        "celltypist",
        {"C": 1.0, "feature_selection": False},
        {"C": Real(1e-4, 1e2, log=True), "feature_selection": Choice((False, True))},
        seeds=1,
    ),
    "castle": Peer(
        "CaSTLe",
        "xgboost",
        {"genes": 100, "rounds": 20, "eta": 0.7, "max_depth": 5, "min_child_weight": 10.0},
        {
            "genes": Whole(50, 400, log=True),
            "rounds": Whole(10, 80, log=True),
            "eta": Real(0.05, 0.9, log=True),
            "max_depth": Whole(2, 8),
            "min_child_weight": Real(0.5, 20.0, log=True),
        },
        seeds=1,
    ),
    "xgboost": Peer(
        "XGBoost",
        "xgboost",
        {
            "n_estimators": 100,
            "learning_rate": 0.3,
            "max_depth": 6,
            "max_bin": 256,
            "min_child_weight": 1.0,
            "subsample": 1.0,
            "colsample_bytree": 1.0,
            "reg_lambda": 1.0,
            "class_weight": "none",
        },
        {
            "n_estimators": Whole(30, 200, log=True),
            "learning_rate": Real(0.03, 0.5, log=True),
            "max_depth": Whole(2, 6),
            "max_bin": Choice((16, 64, 256)),
            "min_child_weight": Real(0.5, 20.0, log=True),
            "subsample": Real(0.5, 1.0),
            "colsample_bytree": Real(0.05, 1.0, log=True),
            "reg_lambda": Real(0.1, 10.0, log=True),
            "class_weight": Choice(("none", "balanced")),
        },
    ),
    "scvi": Peer("scVI, kNN", "scvi-tools", {"neighbours": 15}, seeds=3, sees_query=True),
    "scanvi": Peer("scANVI", "scvi-tools", {}, seeds=3, sees_query=True),
}
"""By the name that the command line knows, the fast ones first."""

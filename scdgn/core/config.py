"""The settings of one model, validated as a whole, and the presets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Literal, get_args, get_type_hints

from scdgn.errors import SettingsError, nearest

UNLABELED = -1
"""Code of a cell whose type is not known."""

Method = Literal["nn", "dann", "scdgn"]
Pairing = Literal["published", "epoch", "batch", "unconditional"]
Schedule = Literal["constant", "sigmoid", "linear", "cosine"]
LambdaEnters = Literal["loss", "reversal"]
Optimizer = Literal["sgd", "adamw"]
BiasInit = Literal["zero", "normal"]
ClassWeights = Literal["none", "sqrt", "balanced"]

Precision = Literal["tf32", "float32", "bf16"]
"""Of the matrix products in training. `tf32` rounds their factors to 10 bits on a GPU, and is `float32` elsewhere.
`bf16` also rounds those of the first layer, the input among them, to 7 bits, on any device."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides how one model trains, but its cells and its seed.

    Attributes
    ----------
    method
        `nn` (no adversary), `dann` (Ganin et al. 2016) or `scdgn` (Ge et al. 2020).
    hidden, latent, domain_code
        Units of the encoder's two layers and of the discriminator (the paper's d1, d2 and dd).
    bias_init
        Initial biases: zero, or standard normal as published. Weights are Xavier uniform.
    dropout
        Probability that a hidden unit is dropped in training.
    margin
        Distance beyond which a negative pair costs nothing (scdgn).
    lambda_max, schedule, gamma, warmup
        Strength of the adversary and how it grows with the fraction of training done: at once (`constant`), DANN's
        `sigmoid` of steepness gamma, or over the first `warmup` fraction (`linear`, `cosine`).
    lambda_enters
        `loss`: lambda weights the whole domain loss, as in scDGN's code. `reversal`: lambda is the strength of the
        gradient reversal, and the discriminator's own loss keeps weight 1, as in DANN.
    pairing
        scdgn's pairs: drawn once (`published`), every epoch (`epoch`), all legal pairs of the mini-batch in expectation
        (`batch`), or drawn once by domain alone (`unconditional`, for the ablation).
    optimizer, lr, momentum, weight_decay
        SGD with Nesterov momentum, or AdamW (which has no use for momentum).
    epochs, batch_size
        Passes over the labelled cells, and labelled cells per step.
    balance_domains
        Draw mini-batches with an equal share of every domain.
    class_weights
        Weights of the label loss: none, or inverse (square roots of) type frequencies.
    clip_norm
        Largest norm of a model's gradient; 0 leaves gradients alone.
    query_weight, pseudo_confidence
        Weight of an unlabelled training cell in the domain loss against a labelled one, and, in scdgn, the probability
        from which its predicted type counts. 0 leaves unlabelled cells out, exactly.
    shift_probability, shift_strength, shift_relabel
        Probability that a labelled cell is moved, whenever it is visited, by a shift between two training domains
        (`shifts`), how far at most (1: by the whole shift), and whether it then counts as a cell of the domain that it
        was moved to, for dann and scdgn. A probability or strength of 0 moves none, exactly.
    """

    method: Method = "scdgn"
    hidden: int = 1136
    latent: int = 100
    domain_code: int = 64
    bias_init: BiasInit = "zero"
    dropout: float = 0.0
    margin: float = 1.0
    lambda_max: float = 0.3
    schedule: Schedule = "sigmoid"
    gamma: float = 10.0
    warmup: float = 0.5
    lambda_enters: LambdaEnters = "reversal"
    pairing: Pairing = "batch"
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-2
    epochs: int = 50
    batch_size: int = 256
    balance_domains: bool = False
    class_weights: ClassWeights = "none"
    clip_norm: float = 0.0
    query_weight: float = 0.0
    pseudo_confidence: float = 0.9
    shift_probability: float = 0.0
    shift_strength: float = 1.0
    shift_relabel: bool = False

    def __post_init__(self) -> None:
        if faults := _faults(asdict(self)):
            raise SettingsError(*faults)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], base: Settings | None = None) -> Settings:
        """Settings from a TOML table or the like; what is not given comes from `base`.

        Raises
        ------
        SettingsError
            With every unknown key, wrong type and value out of range.
        """
        merged, faults = merge(asdict(base or cls()), values)
        if faults := [*faults, *_faults(merged)]:
            raise SettingsError(*faults)
        return cls(**merged)  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, object]:
        """The settings as plain values, for JSON and TOML."""
        return asdict(self)

    @property
    def uses_unlabeled(self) -> bool:
        """Whether unlabelled cells take part in the domain loss."""
        return self.method != "nn" and self.query_weight > 0

    @property
    def shifts(self) -> tuple[float, float, bool] | None:
        """Probability, strength and relabelling of batch shifts; None where no cell is moved."""
        if not self.shift_probability or not self.shift_strength:
            return None
        return self.shift_probability, self.shift_strength, self.shift_relabel and self.method != "nn"


# Lowest and highest value allowed; (None: no limit).
_RANGES: dict[str, tuple[float, float | None]] = {
    "hidden": (1, None),
    "latent": (1, None),
    "domain_code": (1, None),
    "dropout": (0, 0.95),
    "margin": (0, None),
    "lambda_max": (0, None),
    "gamma": (1e-6, None),
    "warmup": (1e-6, 1),
    "lr": (0, None),
    "momentum": (0, 0.9999),
    "weight_decay": (0, None),
    "epochs": (1, None),
    "batch_size": (2, None),
    "clip_norm": (0, None),
    "query_weight": (0, None),
    "pseudo_confidence": (0, 1),
    "shift_probability": (0, 1),
    "shift_strength": (0, None),
}


@cache
def kinds_of(kind: type) -> Mapping[str, object]:
    """Type of every field of a settings class; to find them out takes a millisecond."""
    return get_type_hints(kind)


OTHER_NAMES: Mapping[str, str] = {
    "learning_rate": "lr", "n_hidden": "hidden", "hidden_size": "hidden", "n_latent": "latent", "latent_dim": "latent",
    "dropout_rate": "dropout", "n_epochs": "epochs", "max_epochs": "epochs", "batchsize": "batch_size",
    "lambda": "lambda_max", "weightdecay": "weight_decay", "wd": "weight_decay", "l2": "weight_decay",
    "n_hvg": "n_top_genes", "n_genes": "n_top_genes", "gradient_clip": "clip_norm",
}  # fmt: skip
"""What other programs call a setting, and what it is called here."""


def meant(key: str, known: Iterable[str]) -> str:
    """What to write in place of a setting that there is not, as the end of an error sentence."""
    if key.casefold() in OTHER_NAMES:
        return f"it is called {OTHER_NAMES[key.casefold()]} here"
    if key.casefold() in ("n_layers", "layers"):
        return "the encoder has two layers, whose sizes are hidden and latent"
    return nearest(key, known)


def merge(base: Mapping[str, object], changes: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """The base with its known keys changed, and a fault for every unknown one."""
    faults = [f"unknown setting {key!r}: {meant(key, base)}" for key in changes if key not in base]
    return {key: changes.get(key, value) for key, value in base.items()}, faults


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def field_faults(
    kinds: Mapping[str, object], values: Mapping[str, object], ranges: Mapping[str, tuple[float, float | None]]
) -> list[str]:
    """What is wrong with the values of a settings class, by name of the field.

    Parameters
    ----------
    kinds
        Of every field: a Literal of choices, bool, int or float.
    ranges
        Lowest and highest value (None: no limit) of every number.
    """
    faults = []
    for key, kind in kinds.items():
        value = values[key]
        choices = get_args(kind)
        if choices:
            if value not in choices:
                faults.append(f"{key} is {value!r}: choose one of {', '.join(choices)}")
        elif kind is bool:
            if not isinstance(value, bool):
                faults.append(f"{key} is {value!r}: give true or false")
        elif isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            faults.append(f"{key} is {value!r}: give {'a whole number' if kind is int else 'a number'}")
        else:
            low, high = ranges[key]
            if not abs(value) <= sys.float_info.max or value < low or (high is not None and value > high):
                bounds = f"at least {low:g}" + ("" if high is None else f" and at most {high:g}")
                faults.append(f"{key} is {value!r}: give a value of {bounds}")
    return faults


def _faults(values: Mapping[str, object]) -> list[str]:
    faults = field_faults(kinds_of(Settings), values, _RANGES)
    weight, pairing = values["query_weight"], values["pairing"]
    drawn = pairing in get_args(Pairing) and pairing != "batch"
    if values["method"] == "scdgn" and drawn and isinstance(weight, int | float) and weight > 0:
        # Their types, and so the legality of their pairs, change with every pseudo-label.
        faults.append(
            f"pairing is {values['pairing']!r} with query_weight {values['query_weight']}: unlabelled cells pair up "
            "only inside a mini-batch, so set pairing to 'batch' or query_weight to 0"
        )
    moved = [values[key] for key in ("shift_probability", "shift_strength")]
    if values["method"] == "scdgn" and drawn and all(isinstance(one, int | float) and one > 0 for one in moved):
        faults.append(
            f"pairing is {values['pairing']!r} with shift_probability {values['shift_probability']}: pairs would be "
            "drawn before cells move, so set pairing to 'batch' or shift_probability to 0"
        )
    return faults


# Ge et al. 2020, published_training of the authors' scripts.
_REFERENCE = Settings(
    hidden=1136,
    latent=100,
    domain_code=64,
    bias_init="normal",
    margin=1.0,
    lambda_max=0.1,
    schedule="constant",
    lambda_enters="loss",
    pairing="published",
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-6,
    epochs=250,
    batch_size=256,
)

PRESETS = ("default", "reference")


def preset(name: str, method: Method = "scdgn") -> Settings:
    """The settings of a preset for a method.

    `reference` is the published training; `default` what leave-one-domain-out folds of several data sets found best on
    average (benchmarks/portfolio.py repeats it). Input goes with it: `preprocess.INPUT_PRESETS`.

    Raises
    ------
    SettingsError
        If there is no such preset or method.
    """
    if method not in get_args(Method):
        raise SettingsError(f"method is {method!r}: choose one of {', '.join(get_args(Method))}")
    if name == "reference":
        return replace(_REFERENCE, method=method)
    if name == "default":
        return _DEFAULT[method]
    raise SettingsError(f"there is no preset {name!r}: {nearest(name, PRESETS)}")


# Leave-one-domain-out folds of seven data sets: docs/experiments.md.
_SHARED = Settings(
    method="nn",
    hidden=128,
    latent=64,
    domain_code=32,
    dropout=0.5,
    class_weights="balanced",
    lr=3e-3,
    weight_decay=1.0,
    epochs=30,
    batch_size=64,
    shift_probability=0.9,
    shift_strength=0.7,
)
_DEFAULT: dict[Method, Settings] = {
    "nn": _SHARED,
    "dann": replace(
        _SHARED,
        method="dann",
        shift_relabel=True,
        lambda_max=0.05,
        schedule="linear",
        warmup=0.6,
        lambda_enters="loss",
    ),
    "scdgn": replace(
        _SHARED,
        method="scdgn",
        shift_relabel=True,
        lambda_max=0.03,
        schedule="constant",
        lambda_enters="loss",
        margin=7.0,
        pairing="batch",
    ),
}

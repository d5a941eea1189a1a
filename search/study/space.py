"""The search space: declared once, conditional, and open to the user's changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from scdgn.cells.settings import INPUT_PRESETS, PreprocessSettings
from scdgn.core.config import Method, Settings, kinds_of, meant, preset
from scdgn.errors import SettingsError, nearest

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Value = str | int | float | bool


@dataclass(frozen=True)
class Real:
    """A number between `low` and `high`, drawn on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Optuna's draw."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: object) -> bool:
        """Whether the value can be drawn."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def nearest(self, value: Any) -> Value | None:
        """The value of the range that is nearest to a number."""
        return float(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Whole:
    """A whole number between `low` and `high`, drawn on a logarithmic scale if `log`."""

    low: int
    high: int
    log: bool = False

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Optuna's draw."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def holds(self, value: object) -> bool:
        """Whether the value can be drawn."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def nearest(self, value: Any) -> Value | None:
        """The value of the range that is nearest to a number."""
        return int(min(max(value, self.low), self.high))


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Value, ...]

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """Optuna's draw."""
        value = trial.suggest_categorical(name, self.values)
        assert value is not None
        return value

    def holds(self, value: object) -> bool:
        """Whether the value can be drawn."""
        return any(_same(value, known) for known in self.values)

    def nearest(self, value: Any) -> Value | None:
        """The value itself; None where it is no choice."""
        return value if self.holds(value) else None


@dataclass(frozen=True)
class Fixed:
    """A value that is not searched."""

    value: Value

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """The value; Optuna is not asked."""
        return self.value

    def holds(self, value: object) -> bool:
        """Whether it is this value."""
        return _same(value, self.value)

    def nearest(self, value: Any) -> Value | None:
        """The value that there is."""
        return self.value


def _same(one: object, other: object) -> bool:
    """Whether two values are the same setting: to Python, True is 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


Dimension = Real | Whole | Choice | Fixed


@dataclass(frozen=True)
class Setting:
    """A setting that a search knows.

    Attributes
    ----------
    default
        From where it is drawn by default; None where only a space that names it draws it.
    methods
        Those that use it.
    drawn_if
        Whether a trial draws it, by the settings that it has so far, `method` among them.
    """

    default: Dimension | None
    methods: tuple[Method, ...] = ("nn", "dann", "scdgn")
    drawn_if: Callable[[Mapping[str, Any]], bool] = lambda settings: True


_ADVERSARIAL: tuple[Method, ...] = ("dann", "scdgn")

SETTINGS: Mapping[str, Setting] = {
    "hidden": Setting(Whole(32, 1136, log=True)),
    "latent": Setting(Whole(16, 128, log=True)),
    "domain_code": Setting(Whole(8, 64, log=True), _ADVERSARIAL),
    "margin": Setting(Real(0.1, 10.0, log=True), ("scdgn",)),
    "lambda_max": Setting(Real(0.01, 3.0, log=True), _ADVERSARIAL),
    "lambda_enters": Setting(Choice(("loss", "reversal")), _ADVERSARIAL),
    "schedule": Setting(Choice(("constant", "sigmoid", "linear", "cosine")), _ADVERSARIAL),
    "gamma": Setting(Real(2.0, 20.0, log=True), _ADVERSARIAL, lambda settings: settings.get("schedule") == "sigmoid"),
    "warmup": Setting(Real(0.1, 0.9), _ADVERSARIAL, lambda settings: settings.get("schedule") in ("linear", "cosine")),
    "pairing": Setting(Choice(("batch", "epoch")), ("scdgn",)),
    "query_weight": Setting(None, _ADVERSARIAL),
    "pseudo_confidence": Setting(None, ("scdgn",)),
    "epochs": Setting(Whole(8, 120, log=True)),
    "lr": Setting(Real(1e-4, 5e-3, log=True)),
    "weight_decay": Setting(Real(1e-3, 10.0, log=True)),
    "dropout": Setting(Real(0.0, 0.8)),
    "class_weights": Setting(Choice(("none", "sqrt", "balanced"))),
    "balance_domains": Setting(Choice((False, True))),
    "shift_probability": Setting(
        Choice((0.0, 0.5, 0.9)),
        # Pairs drawn before a step are drawn before its cells move.
        drawn_if=lambda settings: settings["method"] != "scdgn" or settings.get("pairing") == "batch",
    ),
    "shift_relabel": Setting(
        Choice((False, True)), _ADVERSARIAL, lambda settings: bool(settings.get("shift_probability"))
    ),
    "scaling": Setting(Choice(("none", "standard"))),
    "gene_selection": Setting(Choice(("variable", "markers"))),
    "n_top_genes": Setting(None, drawn_if=lambda settings: settings.get("gene_selection") == "variable"),
    "markers_per_type": Setting(
        Choice((10, 25, 50, 100, 200)), drawn_if=lambda settings: settings.get("gene_selection") == "markers"
    ),
}
"""What a search knows, in the order in which it is drawn and told.

The ranges hold the published layer sizes, margin and lambda, and what leave-one-domain-out folds of several data sets
found to work (docs/experiments.md). Nothing helps everywhere, so that what helps somewhere can be off.
"""


def default_dimensions(method: Method) -> dict[str, Dimension]:
    """The default space of a method: every setting that some trial draws, and from where."""
    own = {name: one.default for name, one in SETTINGS.items() if method in one.methods}
    return {name: dimension for name, dimension in own.items() if dimension is not None}


def is_drawn(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a trial of these settings, `method` among them, draws a setting, if its space holds it."""
    return name not in SETTINGS or SETTINGS[name].drawn_if(settings)


def unused(method: Method) -> frozenset[str]:
    """Settings that a method does not use."""
    return frozenset(name for name, one in SETTINGS.items() if method not in one.methods)


PUBLISHED = {
    "hidden": 1136,
    "latent": 100,
    "domain_code": 64,
    "margin": 1.0,
    "lambda_max": 0.1,
    "lambda_enters": "loss",
    "schedule": "constant",
}
"""Ge et al. 2020: layer sizes, margin and lambda."""


@dataclass(frozen=True)
class Space:
    """What a study searches.

    Attributes
    ----------
    method
        The method searched.
    base
        Every setting that is not drawn.
    preprocess
        Every setting of the preprocessing that is not drawn.
    changes
        The user's dimensions, by name: instead of the default ones, or beside them.
    written
        The same as the user wrote them.
    left_out
        Changes that do not concern the method.
    """

    method: Method
    base: Settings
    preprocess: PreprocessSettings
    changes: Mapping[str, Dimension]
    written: Mapping[str, object]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, method: Method, changes: Mapping[str, object]) -> Space:
        """The default space with the user's changes.

        Parameters
        ----------
        method
            What is searched.
        changes
            By name of a setting of the model or the preprocessing: a value (fixed), a list of values (choices), or a
            table with `low`, `high` and optionally `log`. Those that do not concern the method are left out, so that
            one file serves all methods.

        Raises
        ------
        SettingsError
            With every fault of the changes.
        """
        base, preprocess = preset("default", method), INPUT_PRESETS["default"]
        known = {**kinds_of(Settings), **kinds_of(PreprocessSettings)}
        faults: list[str] = []
        dimensions: dict[str, Dimension] = {}
        for name, change in changes.items():
            if name not in known or name == "method":
                reason = "use --method" if name == "method" else meant(name, [key for key in known if key != "method"])
                faults.append(f"the space names {name!r}, which is no setting to search: {reason}")
            else:
                dimension, wrong = _dimension(name, change, known[name])
                faults += wrong
                if dimension is not None and name not in unused(method):
                    dimensions[name] = dimension
        if not faults:
            faults = _contradictions(method, dimensions)
        if faults:
            raise SettingsError(*faults)
        written = {name: change for name, change in changes.items() if name in dimensions}
        return cls(method, base, preprocess, dimensions, written, tuple(sorted(changes.keys() - written.keys())))

    def suggest(self, trial: BaseTrial) -> dict[str, Value]:
        """The settings of a trial: what is drawn and what the user fixed, in the order of declaration."""
        drawn: dict[str, Value] = {}
        known = {**asdict(self.base), **asdict(self.preprocess)}
        for name, dimension in self.dimensions().items():
            # A conditional setting that the user changed stays conditional.
            if is_drawn(name, {**known, **drawn}):
                drawn[name] = dimension.suggest(trial, name)
            elif name == "shift_probability":
                drawn[name] = 0.0  # the preset may move cells
        return drawn

    def is_fixed(self, name: str) -> bool:
        """Whether the user fixed a setting."""
        return isinstance(self.changes.get(name), Fixed)

    def dimensions(self) -> dict[str, Dimension]:
        """Every dimension that some trial may draw from, fixed ones too."""
        return {**default_dimensions(self.method), **self.changes}

    def settings(self, drawn: Mapping[str, Value]) -> tuple[Settings, PreprocessSettings]:
        """The whole settings of a trial, from what was drawn.

        Raises
        ------
        SettingsError
            If they are not valid together.
        """
        prepare = asdict(self.preprocess)
        model = {name: value for name, value in drawn.items() if name not in prepare}
        prepare |= {name: value for name, value in drawn.items() if name in prepare}
        return Settings.from_mapping(model, self.base), PreprocessSettings.from_mapping(prepare)

    def published(self) -> tuple[dict[str, Value], list[str]]:
        """The published margin, lambda and layer sizes as draws, and why not.

        The other settings are the preset's, or drawn where the user's space does not hold those.

        Returns
        -------
        draws, reasons
            With a reason, the user's space does not hold them, and they are to be left out aloud.
        """
        wanted = {**asdict(self.base), **asdict(self.preprocess), **PUBLISHED}
        return self.complete(
            {
                name: wanted[name]
                for name, dimension in self.dimensions().items()
                if is_drawn(name, wanted) and (name in PUBLISHED or dimension.holds(wanted[name]))
            }
        )

    def presets(self) -> dict[str, Value]:
        """The default preset as draws; none where the space does not hold it."""
        wanted = {**asdict(self.base), **asdict(self.preprocess)}
        draws, reasons = self.complete({name: wanted[name] for name in self.dimensions() if is_drawn(name, wanted)})
        return {} if reasons else draws

    def start(self, changes: Mapping[str, object]) -> dict[str, Value]:
        """The preset with some changes as draws, each as near as the space comes to it; what has no order is drawn."""
        wanted = {**asdict(self.base), **asdict(self.preprocess), **changes}
        near = {name: dimension.nearest(wanted[name]) for name, dimension in self.dimensions().items()}
        wanted |= {name: value for name, value in near.items() if value is not None}
        held = {name: wanted[name] for name, value in near.items() if value is not None and is_drawn(name, wanted)}
        return self.complete(held)[0]

    def complete(self, wanted: Mapping[str, object]) -> tuple[dict[str, Value], list[str]]:
        """Those of the settings that are drawn, as draws for `enqueue_trial`; and which the space does not hold."""
        reasons = []
        draws: dict[str, Value] = {}
        for name, value in wanted.items():
            dimension = self.dimensions().get(name)
            if dimension is None:
                base = {**asdict(self.base), **asdict(self.preprocess)}
                if name in unused(self.method):
                    continue
                if name not in base:
                    reasons.append(f"{name!r} is no setting: {nearest(name, base)}")
                elif base[name] != value:
                    reasons.append(f"{name} is not searched and is {base[name]!r}, not {value!r}")
            elif not dimension.holds(value):
                reasons.append(f"{name} = {value!r} is outside {describe(dimension)}")
            elif not isinstance(dimension, Fixed):
                draws[name] = value  # type: ignore[assignment]
        return draws, reasons


def describe(dimension: Dimension) -> str:
    """A dimension in words."""
    match dimension:
        case Fixed(value):
            return f"{value!r} (fixed)"
        case Choice(values):
            return " or ".join(map(str, values))
        case Real(low, high, log) | Whole(low, high, log):
            return f"{low:g} to {high:g}" + (" (log)" if log else "")


def _dimension(name: str, change: Any, kind: Any) -> tuple[Dimension | None, list[str]]:
    """What the user wrote as a dimension, and what is wrong with it."""
    if isinstance(change, Mapping):
        return _range(name, change, kind)
    values: list[Any] = list(change) if isinstance(change, list | tuple) else [change]
    if not values:
        return None, [f"{name} has no values to choose from: give at least one"]
    faults = [fault for value in values for fault in _value_faults(name, value)]
    if faults:
        return None, faults
    if kind is float:
        values = [float(value) for value in values]
    return (Fixed(values[0]) if len(values) == 1 else Choice(tuple(values))), []


def _range(name: str, change: Mapping[str, object], kind: Any) -> tuple[Dimension | None, list[str]]:
    example = f"write {name} = {{low = ..., high = ...}}, and log = true for a logarithmic scale"
    if get_args(kind) or kind is bool:
        return None, [f"{name} has choices, not a range: write a list of them"]
    if unknown := [key for key in change if key not in ("low", "high", "log")]:
        return None, [f"{name} has {', '.join(map(repr, unknown))} beside low, high and log: {example}"]
    low, high, log = change.get("low"), change.get("high"), change.get("log", False)
    if low is None or high is None or not isinstance(log, bool):
        return None, [f"{name} = {dict(change)!r} is no range: {example}"]
    faults = [fault for value in (low, high) for fault in _value_faults(name, value)]
    if faults:
        return None, faults
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low > high:
        return None, [f"{name} has low {low!r} above high {high!r}: exchange them"]
    if log and low <= 0:
        return None, [f"{name} has low {low!r} on a logarithmic scale: give one above 0"]
    if low == high:
        return Fixed(low), []
    if kind is int:
        return Whole(int(low), int(high), log), []
    return Real(float(low), float(high), log), []


def _value_faults(name: str, value: object) -> Sequence[str]:
    """What is wrong with one value of one setting."""
    try:
        if name in kinds_of(PreprocessSettings):
            PreprocessSettings.from_mapping({name: value})
        else:
            Settings.from_mapping({name: value}, Settings(query_weight=0.0))
    except SettingsError as error:
        return error.faults
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{name} is {value!r}: give a finite number"]
    return []


def _contradictions(method: Method, changes: Mapping[str, Dimension]) -> list[str]:
    """Combinations that no trial could train."""
    if idle := [name for name in ("query_weight", "pseudo_confidence") if name in changes]:
        return [
            f"the space names {' and '.join(idle)}, of cells without a label, and a search trains on none: leave it out"
        ]
    pairing = {**default_dimensions(method), **changes}.get("pairing")
    drawn = method == "scdgn" and isinstance(pairing, Fixed) and pairing.value != "batch"
    if drawn and "shift_probability" in changes and not changes["shift_probability"].holds(0.0):
        return [
            "the space moves cells and draws pairs before they move: set pairing to 'batch', or shift_probability to 0"
        ]
    return []

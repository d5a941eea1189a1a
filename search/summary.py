"""What came out of a study: the tree that summary.json holds, from the stages that make it to all who read it.

Scores lie between 0 and 1 and are higher for the better, but for the calibration error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from scdgn.core.config import Method
from scdgn.core.rejection import Certainty, Score
from scdgn.search.choices import Metric, Selection
from scdgn.search.records import Confirmation, State

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION = 1
"""Of the tree. Summaries of before have none: they may lack what has a default here, and hold what is gone."""

_WHERE_KNOWN = {"where_known": True}
"""Of a field that JSON leaves out where it is None."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a finished study is compared with, to see whether there is anything left to do.

    Trials that have `finished`; of those to `confirm`, their number and the new seeds of each; the share of known cells
    that the threshold is to keep (`calibration`); the others as in the settings. Summaries of before lack some.
    """

    finished: int
    final_seeds: int
    confirm: tuple[int, int] = (0, 0)
    ensemble: bool | None = None
    correct: str | None = None
    single: bool
    refit_all: bool
    calibration: float | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """The cells of a study: their numbers, and names of batches; `query` is the batch, or file, to annotate.

    Studies that agree in both fingerprints, of training and test cells, compare. The mutual information is that of type
    and batch among the training cells. Summaries of before lack it, the number of genes and cells by type.
    """

    training_cells: int
    cells_by_type: Mapping[str, int] = field(default_factory=dict)
    genes: int | None = None
    mutual_information_bits: float | None = None
    training_domains: tuple[str, ...]
    test_batches: tuple[str, ...]
    test_cells: int
    query: str | None = None
    fingerprint: str
    test_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Training batches left out together: cells scored, their share of all, and types that are not trained then."""

    name: str
    scored_cells: int
    coverage: float
    unseen_types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The trial that won.

    Attributes
    ----------
    score, first_score
        By which it was chosen, and what it had before any trial was scored again.
    note
        What is to be known of it.
    folds
        Its score by fold; with new seeds where it was scored again. Empty where there are no folds.
    training_domain, unscored_recall
        On cells set aside of all training domains its score, and its recall of the types that no fold scores.
    shrunk
        What its score would be on average (`scdgn.search.stages.committee.shrunk`); None where nothing tells the noise.
    """

    number: int
    score: float
    first_score: float | None = None
    note: str
    settings: Mapping[str, Any]
    folds: Mapping[str, float]
    training_domain: float
    unscored_recall: Mapping[str, float]
    shrunk: float | None = None


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The trial that a protocol selects, by its score there; `test` is None where no test cell can be scored."""

    protocol: str
    trial: int
    score: float
    test: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A score of the final seeds.

    Mean and standard deviation (None of a single seed); the one of the seed whose twin is best on validation; that of
    the ensemble; all in the order of the seeds; the best, which the test labels chose (None on validation).
    """

    mean: float
    std: float | None
    picked: float
    ensemble: float
    by_seed: tuple[float, ...]
    best_oracle: float | None = field(default=None, metadata=_WHERE_KNOWN)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


@dataclass(frozen=True, kw_only=True)
class FinalScores:
    """What the final seeds score on the same cells, but those of types never trained, and their ensemble's recall by
    type.
    """

    cells: int
    unscored_cells: int
    recall: Mapping[str, float]
    accuracy: Spread
    balanced_accuracy: Spread
    macro_f1: Spread
    calibration_error: Spread

    def of(self, metric: str) -> Spread:
        """A score by its name."""
        spread: Spread = getattr(self, metric)
        return spread


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The winner's settings, trained again with several seeds, one of which is picked since its twin is best on
    validation: on the cells set aside of the training of the twins. No test where no test cell can be scored.
    """

    seeds: tuple[int, ...]
    picked_seed: int
    validation: FinalScores
    test: FinalScores | None = field(default=None, metadata=_WHERE_KNOWN)

    @property
    def parts(self) -> dict[str, FinalScores]:
        """By the name of the cells, those that there are."""
        return {"validation": self.validation} | ({} if self.test is None else {"test": self.test})


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What a model, or an ensemble, scores on the test cells."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float

    def of(self, metric: str) -> float:
        """A score by its name."""
        return float(getattr(self, metric))


@dataclass(frozen=True, kw_only=True)
class ScoresByType(ModelScores):
    """The same, and the recall of every type; None in summaries of before."""

    recall: Mapping[str, float] | None = field(default=None, metadata=_WHERE_KNOWN)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The expected calibration error, before and after calibration."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What a threshold does to some cells.

    Those of types that were trained, and of others; the share of the known ones that it keeps, and of the unknown ones
    that it tells, None where there are none.
    """

    known: int
    unknown: int
    kept: float | None
    told: float | None


@dataclass(frozen=True, kw_only=True)
class LeftOutRejection(Rejection):
    """The same of a domain left out, and by score the AUROC of unknown against known cells."""

    name: str
    auroc: Mapping[Score, float]


@dataclass(frozen=True, kw_only=True)
class HeldOutRejection(Rejection):
    """The same of the test cells."""

    calibration_error: Errors


@dataclass(frozen=True, kw_only=True)
class CalibrationReport(Certainty):
    """What a calibration is, and what it does.

    Attributes
    ----------
    calibration_error
        Of the known cells left out; None where there are none.
    parts, apart
        What is done to the cells of each domain left out; whether that, and the errors, are what the other parts alone
        teach, as it will be for a batch never seen. Where there is a single part it is what that part teaches.
    test
        None where no test cell can be scored, or all trained the model.
    """

    calibration_error: Errors | None = None
    apart: bool = False
    parts: tuple[LeftOutRejection, ...] = ()
    test: HeldOutRejection | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """How many models of a trial are exported."""

    trial: int
    models: int


@dataclass(frozen=True, kw_only=True)
class ExportedScores:
    """What the exported model scores on the test cells as they are, and corrected for them."""

    plain: ScoresByType
    corrected: ScoresByType


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """The model that came out.

    Attributes
    ----------
    path
        Of the bundle, in the folder of the study.
    parts
        Of which trials its models are, the winner first; none in summaries of before: all were the winner's.
    score
        As it predicts, on the cells left out; None where nothing of the winner was left out.
    corrects
        Whether it corrects by default.
    moves
        Whether it moves batches where it corrects, or learns a classifier from their cells alone.
    correction_gains, adaptation_gains
        What correcting does to its score on each domain left out, and adapting to that of the winner.
    test
        None where no test cell can be scored, or all trained it.
    """

    path: str
    models: int
    kind: Literal["single", "ensemble"]
    parts: tuple[Part, ...] = ()
    trained_on: str
    score: float | None = None
    corrects: bool = False
    moves: bool = True
    correction_gains: tuple[float, ...] = ()
    adaptation_gains: tuple[float, ...] = ()
    test: ExportedScores | None = None


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A model in the registry: `champion`, `candidate` or, where it has been superseded, without an alias, and why."""

    name: str
    version: str
    alias: str | None
    uri: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """What studies of both protocols have; `id` is the study's, whatever it is called.

    Attributes
    ----------
    transductive
        Whether cells to annotate took part in training or scaling.
    trained
        When the final training began and ended, in seconds since 1970; None in summaries of before.
    """

    version: int = VERSION
    study: str
    id: str
    method: Method
    data: Data
    transductive: bool
    trained: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As summary.json holds it."""
        document: dict[str, Any] = _json(self)
        return document


@dataclass(frozen=True, kw_only=True)
class Summary(_Finished):
    """What came out of a search; calibration is None in summaries of before.

    Attributes
    ----------
    adapt, adapted
        Whether the search might use unlabelled cells, and whether it chose to; None where it might not.
    unscored_types
        Those that no fold scores.
    trials
        Their number by state.
    padding
        Arithmetic of all trials against what their models alone would have taken.
    confirmed
        By number, the trials that were scored again.
    protocols
        What each of them selects, whichever was used.
    annotated
        Name of the file of the cells that were to be annotated, in the folder of the study.
    """

    protocol: Literal["search"] = "search"
    asked: Asked
    selection: Selection
    metric: Metric
    adapt: bool
    adapted: bool | None
    folds: tuple[Fold, ...]
    unscored_types: tuple[str, ...]
    trials: Mapping[State, int]
    padding: float = 1.0
    winner: Chosen
    confirmed: Mapping[int, Confirmation] = field(default_factory=dict)
    protocols: tuple[Selected, ...]
    final: Finals
    calibration: CalibrationReport | None = None
    model: ExportedModel
    annotated: str | None = None
    registered: Registration | None = None

    @property
    def exported_score(self) -> float:
        """What the exported model scores on the cells left out; where that is not known, what its winner does."""
        return self.winner.score if self.model.score is None else self.model.score

    @property
    def exported_test(self) -> ScoresByType | None:
        """What the exported model scores on the test cells, as it predicts; None where that is not known."""
        test = self.model.test
        return None if test is None else test.corrected if self.model.corrects else test.plain


@dataclass(frozen=True, kw_only=True)
class Draw(ModelScores):
    """A training with random margin and lambda: its seed, both, and what it scores on the test cells."""

    seed: int
    margin: float
    lambda_max: float


@dataclass(frozen=True, kw_only=True)
class OracleSummary(_Finished):
    """What came out of seed-best-of-10: the trainings, the one that the test labels chose, and the mean of all."""

    metric: ClassVar[Metric] = "accuracy"

    protocol: Literal["seed-best-of-10"] = "seed-best-of-10"
    runs: tuple[Draw, ...]
    best_oracle: Draw
    mean: ModelScores


AnySummary = Summary | OracleSummary


def from_json(document: Mapping[str, Any]) -> AnySummary:
    """What `to_json` has made a document of, in this version or an earlier one.

    Raises
    ------
    ValueError
        In a line, if a part is missing, unknown or of another type.
    """
    if document.get("version", VERSION) != VERSION:
        raise ValueError(f"it is of version {document['version']!r}, this scdgn reads up to version {VERSION}")
    from pydantic import ValidationError  # whose import takes a while

    extra: Literal["forbid", "ignore"] = "forbid" if "version" in document else "ignore"
    try:
        return _reader().validate_json(json.dumps(document), strict=True, extra=extra)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"][1:])  # the first names the protocol
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


@cache
def _reader() -> TypeAdapter[AnySummary]:
    from pydantic import Field, TypeAdapter

    return TypeAdapter(Annotated[AnySummary, Field(discriminator="protocol")])


def _json(part: Any) -> Any:
    if is_dataclass(part):
        held = [(getattr(part, one.name), one) for one in fields(part)]
        return {one.name: _json(value) for value, one in held if value is not None or "where_known" not in one.metadata}
    if isinstance(part, Mapping):
        return {str(key): _json(value) for key, value in part.items()}
    return [_json(one) for one in part] if isinstance(part, list | tuple) else part

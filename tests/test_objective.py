"""What a trial trains on, what it is scored by, and what becomes of it when something goes wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from scdgn.cells.dataset import Dataset
from scdgn.cells.fields import Fields
from scdgn.cells.reading import from_anndata
from scdgn.cells.settings import PreprocessSettings
from scdgn.cells.sources import TrainingCells
from scdgn.cells.splits import Split, hold_out
from scdgn.core.config import Method, Settings
from scdgn.core.pack.members import Member
from scdgn.core.training import Trained
from scdgn.core.training import train as train_pack
from scdgn.errors import DataError, OutputError
from scdgn.model.evaluate import evaluate
from scdgn.model.fitting import fit
from scdgn.search.engines.local import Local
from scdgn.search.folder import Lease
from scdgn.search.records import RUNGS, Outcome, Proposal
from scdgn.search.shown.watching import Watcher
from scdgn.search.stages import owners
from scdgn.search.study.study import Study
from scdgn.search.trials import inputs as input_module
from scdgn.search.trials import objective as module
from scdgn.search.trials.cells import SearchCells, seal
from scdgn.search.trials.inputs import ALL_DOMAINS, OwnInputs, Prepared
from scdgn.search.trials.objective import CURVE_POINTS, Objective, Stopped, Work
from tests.faults import tiny
from tests.test_study import contents, opened

CPU = torch.device("cpu")
PREPROCESS = PreprocessSettings(n_top_genes=20, scaling="standard")
SMALL: dict[str, object] = {
    "hidden": 8, "latent": 4, "domain_code": 4, "epochs": 8, "batch_size": 64, "dropout": 0.0, "lr": 0.01,
    "pairing": "batch",
}  # fmt: skip
METHODS: tuple[Method, ...] = ("nn", "dann", "scdgn")
SPACE: dict[str, object] = {
    "hidden": [8, 16], "latent": 4, "domain_code": 4, "epochs": 4, "batch_size": 64, "n_top_genes": 20,
    "class_weights": "none", "balance_domains": False, "scaling": "none", "weight_decay": 0.01, "dropout": 0.0,
}  # fmt: skip


@cache
def cells_of(test: str = "d") -> TrainingCells:
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells={"a": 36, "b": 36, "c": 36, "d": 30}), reading)
    split = hold_out(dataset, test)
    return TrainingCells(dataset, split, reading, (test,), (dataset.take(split.test),), ())


@cache
def sealed(adapt: bool = False) -> SearchCells:
    return seal(cells_of(), 5, adapt)


@cache
def standard(adapt: bool = False) -> Objective:
    """An objective keeps nothing of its trials, but prepares the cells only once."""
    return made(sealed(adapt))


def inputs(cells: SearchCells | None = None, **changes: Any) -> OwnInputs:
    settings: dict[str, Any] = {"selection": "leave-one-domain-out", "seed": 0, "fold_seeds": 1, **changes}
    return OwnInputs(sealed() if cells is None else cells, **settings)


def made(cells: SearchCells | None = None, **changes: Any) -> Objective:
    """An objective of its own."""
    own = {key: changes.pop(key) for key in ("selection", "seed", "fold_seeds") if key in changes}
    return Objective(inputs(cells, **own), **{"metric": "macro_f1", "device": CPU, **changes})


def prepared(given: OwnInputs, preprocess: PreprocessSettings = PREPROCESS) -> list[Prepared]:
    return given.prepared(preprocess, CPU)


def search(study: Study, given: OwnInputs, pack: int, enough: bool = False, stopping: bool = False) -> bool:
    """Run a study here."""
    folder = study._folder
    told = owners.Watched(study, folder, Lease(folder.lease), Watcher())
    return Local("cpu").run(told, Work(given, "macro_f1"), pack, lambda: enough, lambda: stopping)


def trial(number: int = 0, preprocess: PreprocessSettings = PREPROCESS, **changes: object) -> Proposal:
    return Proposal(number, Settings.from_mapping({**SMALL, **changes}), preprocess)


class Told:
    """An owner who remembers what it is told, and prunes whom it is told to."""

    def __init__(self, prune: Mapping[int, int] | None = None) -> None:
        self._prune = prune or {}
        self.reports: dict[int, list[tuple[int, float]]] = defaultdict(list)
        self.outcomes: dict[int, Outcome] = {}

    def report(self, number: int, step: int, value: float) -> bool:
        assert number not in self.outcomes, "reported after its end"
        self.reports[number].append((step, value))
        return step == self._prune.get(number)

    def finished(self, outcome: Outcome) -> None:
        assert outcome.record.number not in self.outcomes, "ended twice"
        self.outcomes[outcome.record.number] = outcome

    def note(self, text: str) -> None:
        raise AssertionError(text)


def ran(objective: Objective, *proposals: Proposal, prune: Mapping[int, int] | None = None) -> Told:
    told = Told(prune)
    objective(proposals, told)
    return told


def compared(outcome: Outcome) -> dict[str, Any]:
    """All that an outcome says but what the trial cost, which depends on its mates."""
    found = {**outcome.record.to_json(), "state": outcome.record.state, "seconds": 0, "padding": 0}
    return {**found, "test": None if outcome.test_predictions is None else outcome.test_predictions.tolist()}


def alike(one: Told, other: Told, number: int) -> bool:
    """Whether two runs of a trial differ by the rounding of float32 at most: sums are taken in another order."""
    mine, theirs = (compared(told.outcomes[number]) for told in (one, other))
    for name, curve in mine.pop("curves").items():
        assert curve == pytest.approx(theirs["curves"][name], rel=1e-4, abs=1e-5)
    del theirs["curves"]
    return mine == theirs and one.reports[number] == other.reports[number]


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_scored_as_a_model_trained_alone(method: Method) -> None:
    cells, proposal = sealed(), trial(method=method)
    told = ran(standard(), proposal)
    record = told.outcomes[0].record
    assert record.state == "complete" and set(record.folds) == {"a", "b", "c"}
    for fold in cells.folds:
        bundle = fit(cells.dataset, fold.train, proposal.settings, PREPROCESS, [0], device="cpu")
        held_out = cells.dataset.take(fold.scored)
        predicted = bundle.probabilities(bundle.input(held_out)).argmax(axis=1)
        types = np.unique(held_out.labels)
        f1 = f1_score(held_out.labels, predicted, labels=types, average="macro", zero_division=0)
        assert record.folds[fold.name].macro_f1 == pytest.approx(f1, abs=1e-6)
        assert record.folds[fold.name].accuracy == pytest.approx(accuracy_score(held_out.labels, predicted), abs=1e-6)
        assert record.folds[fold.name].cells == len(held_out)
    mean = np.mean([fold.macro_f1 for fold in record.folds.values()])
    assert told.reports[0][-1] == (RUNGS, pytest.approx(mean))


def test_the_model_of_all_domains_predicts_the_test_cells_and_scores_cells_set_aside() -> None:
    cells, objective = sealed(), made()
    outcome = ran(objective, trial()).outcomes[0]
    everywhere = inputs().units[-1]
    assert everywhere.name == ALL_DOMAINS and everywhere.seeds == (0,)
    assert np.array_equal(np.union1d(everywhere.train, everywhere.scored), cells.rows)
    assert not len(np.intersect1d(everywhere.train, everywhere.scored))
    bundle = fit(cells.dataset, everywhere.train, trial().settings, PREPROCESS, [0], device="cpu")
    assert cells.test is not None
    predicted = bundle.probabilities(bundle.input(cells.test)).argmax(axis=1)
    assert outcome.test_predictions is not None and outcome.test_predictions.dtype == np.uint16
    assert np.array_equal(outcome.test_predictions, predicted)
    labels = cells.dataset.labels[everywhere.scored]
    predicted = bundle.probabilities(bundle.input(cells.dataset.take(everywhere.scored))).argmax(axis=1)
    assert outcome.record.training_domain is not None
    assert outcome.record.training_domain.accuracy == pytest.approx(float(np.mean(predicted == labels)), abs=1e-6)


@pytest.mark.parametrize("epochs", [3, 8, 11, 60])
def test_rungs_are_reported_in_order_and_the_last_one_is_the_end(epochs: int) -> None:
    told = ran(standard(), trial(epochs=epochs, method="nn"))
    assert [step for step, _ in told.reports[0]] == list(range(1, RUNGS + 1))
    record = told.outcomes[0].record
    assert (record.state, record.epoch) == ("complete", epochs)
    assert len(record.curves["epoch"]) == min(epochs, CURVE_POINTS)
    assert record.curves["epoch"][-1] == epochs and np.all(np.diff(record.curves["epoch"]) > 0)


def test_a_rung_is_the_score_after_its_share_of_the_epochs() -> None:
    """The score reported at half time is that of a model after half the epochs; not of one with half the epochs."""
    seen = {}

    class Watching(Told):
        def report(self, number: int, step: int, value: float) -> bool:
            seen[step] = value
            return super().report(number, step, value)

    objective = standard()
    objective([trial(epochs=16, method="nn")], Watching())
    # Nothing of nn depends on the epochs still to come.
    short = ran(objective, trial(epochs=8, method="nn"))
    assert seen[4] == pytest.approx(short.reports[0][-1][1], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_does_not_depend_on_its_mates(method: Method) -> None:
    objective = standard()
    one = trial(0, method=method, lambda_max=0.5)
    two = trial(1, method=method, hidden=12, latent=6, epochs=10, lr=0.02, dropout=0.3)
    three = trial(2, PreprocessSettings(n_top_genes=30), method="nn" if method == "dann" else "dann", margin=2.0)
    together, again = ran(objective, one, two, three), ran(objective, one, two, three)
    for number in range(3):
        assert compared(together.outcomes[number]) == compared(again.outcomes[number])  # bit by bit
        assert together.reports[number] == again.reports[number]
    for proposal in (one, two, three):
        assert alike(together, ran(standard(), proposal), proposal.number)


def test_a_pruned_trial_leaves_and_its_mates_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Trained] = []

    def watched(*given: Any) -> list[Trained]:
        outcomes.extend(train_pack(*given))
        return outcomes

    monkeypatch.setattr(module, "train", watched)
    told = ran(standard(), trial(0), trial(1, lr=0.02), trial(2, lr=0.03), prune={1: 3})
    states = {number: outcome.record.state for number, outcome in told.outcomes.items()}
    assert states == {0: "complete", 1: "pruned", 2: "complete"}
    record = told.outcomes[1].record
    assert (record.epoch, [step for step, _ in told.reports[1]]) == (3, [1, 2, 3])
    assert set(record.folds) == {"a", "b", "c"} and told.outcomes[1].test_predictions is None
    assert [outcome.state for outcome in outcomes[4:8]] == ["stopped"] * 4
    assert all(len(outcome.history) == 3 for outcome in outcomes[4:8])
    alone = ran(standard(), trial(0), trial(2, lr=0.03))
    for number in (0, 2):
        assert alike(told, alone, number)


def test_a_verdict_at_the_last_rung_comes_too_late() -> None:
    assert ran(standard(), trial(), prune={0: RUNGS}).outcomes[0].record.state == "complete"


def test_a_trial_with_fewer_epochs_than_rungs_can_be_pruned() -> None:
    told = ran(standard(), trial(epochs=2, method="nn"), prune={0: 3})
    assert told.outcomes[0].record.state == "pruned"
    assert told.outcomes[0].record.epoch == 1


def test_a_trial_that_diverges_fails_alone() -> None:
    wild = trial(1, optimizer="sgd", lr=1e12, momentum=0.0)
    told = ran(standard(), trial(0), wild, trial(2, lr=0.02))
    record = told.outcomes[1].record
    assert record.state == "fail" and "not finite" in record.reason
    assert record.epoch >= 1 and told.outcomes[1].test_predictions is None
    mates = ran(standard(), trial(0), trial(2, lr=0.02))
    for number in (0, 2):
        assert told.outcomes[number].record.state == "complete"
        assert alike(told, mates, number)


def test_a_model_that_fails_between_rungs_fails_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model of a trial is enough: its fold has no score."""
    proposals = [trial(0), trial(1, lr=0.02)]

    def poisoned(
        members: Sequence[Member], device: torch.device, watch: Callable[..., Any], *rest: Any
    ) -> list[Trained]:
        def without_one(report: Any) -> Any:
            losses = {index: loss for index, loss in report.losses.items() if index != 1 or report.epoch < 3}
            return [*watch(replace(report, losses=losses)), *([1] if report.epoch == 3 else [])]

        return train_pack(members, device, without_one, *rest)

    monkeypatch.setattr(module, "train", poisoned)
    told = ran(standard(), *proposals)
    assert told.outcomes[0].record.state == "fail"
    assert told.outcomes[0].record.reason == "the loss or the weights of a model were not finite in epoch 3"
    assert told.outcomes[1].record.state == "complete"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_a_pack_that_does_not_fit_into_memory_is_halved(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    sizes = []

    def small(members: Sequence[Member], *rest: Any) -> list[Trained]:
        sizes.append(len(members))
        if len(members) > 4 or any(member.settings.hidden > 8 for member in members):
            raise error
        return train_pack(members, *rest)

    monkeypatch.setattr(module, "train", small)
    objective = made()
    told = ran(objective, trial(0), trial(1, hidden=16), trial(2, lr=0.02))
    assert sizes == [12, 8, 4, 4, 4]
    assert {number: outcome.record.state for number, outcome in told.outcomes.items()} == {
        0: "complete", 1: "fail", 2: "complete",
    }  # fmt: skip
    assert told.outcomes[1].record.reason == "out of memory"
    del sizes[:]
    again = ran(objective, trial(3), trial(4))
    assert sizes == [4, 4]  # it has learned how much fits
    whole = ran(made(), trial(0), trial(2, lr=0.02), trial(3), trial(4))
    for number, halved in ((0, told), (2, told), (3, again), (4, again)):
        assert alike(halved, whole, number)


def test_a_pack_that_would_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(members: Sequence[Member], *rest: Any) -> list[Trained]:
        sizes.append(len(members))
        return train_pack(members, *rest)

    monkeypatch.setattr(module, "train", counted)
    monkeypatch.setattr(module, "free_memory", lambda _: 1000)
    told = ran(made(), trial(0), trial(1), trial(2))
    assert sizes == [4, 4, 4]  # one trial is tried whatever the estimate says
    assert all(outcome.record.state == "complete" for outcome in told.outcomes.values())


def test_a_record_says_what_padding_cost() -> None:
    together = ran(standard(), trial(0, hidden=8), trial(1, hidden=8))
    assert together.outcomes[0].record.padding == 1
    unequal = ran(standard(), trial(0, hidden=8), trial(1, hidden=7))
    assert 1 < unequal.outcomes[0].record.padding == unequal.outcomes[1].record.padding < 1.2


def test_what_had_ended_before_memory_ran_out_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def once(members: Sequence[Member], device: torch.device, watch: Callable[..., Any], *rest: Any) -> list[Trained]:
        calls.append(len(members))

        def fills_up(report: Any) -> Any:
            leaving = watch(report)
            if len(calls) == 1 and report.epoch == 3:
                raise MemoryError
            return leaving

        return train_pack(members, device, fills_up, *rest)

    monkeypatch.setattr(module, "train", once)
    told = Told(prune={1: 2})
    made()([trial(0), trial(1, lr=0.02)], told)
    assert calls == [8, 4]
    assert {number: outcome.record.state for number, outcome in told.outcomes.items()} == {0: "complete", 1: "pruned"}
    assert [step for step, _ in told.reports[0]] == [1, 2, 3, *range(1, RUNGS + 1)]


def test_another_error_is_a_bug_and_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[Trained]:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(module, "train", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        ran(standard(), trial(0), trial(1))


def test_settings_that_do_not_go_with_the_cells_fail_their_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fit_preprocessing = input_module.fit

    def fussy(dataset: Dataset, rows: Any, settings: PreprocessSettings) -> Any:
        if settings.n_top_genes == 7:
            raise DataError("seven genes are too few: take more")
        return fit_preprocessing(dataset, rows, settings)

    monkeypatch.setattr(input_module, "fit", fussy)
    told = ran(standard(), trial(0), trial(1, PreprocessSettings(n_top_genes=7)))
    assert told.outcomes[0].record.state == "complete"
    assert told.outcomes[1].record.reason == "seven genes are too few: take more"


@pytest.mark.parametrize("count", [1, 2])
def test_a_record_that_cannot_be_written_is_no_fault_of_the_trial(count: int) -> None:
    class Full(Told):
        def finished(self, outcome: Outcome) -> None:
            raise OutputError("cannot write predictions (No space left on device): free some space there")

    told = Full()
    with pytest.raises(OutputError, match="No space left"):
        standard()([trial(number) for number in range(count)], told)
    assert told.outcomes == {}


def test_stopping_leaves_what_had_not_ended() -> None:
    told = Told(prune={1: 2})
    objective = made(stopping=lambda: len(told.reports[0]) == 4)
    with pytest.raises(Stopped):
        objective([trial(0), trial(1, lr=0.02)], told)
    assert list(told.outcomes) == [1]
    assert [step for step, _ in told.reports[0]] == [1, 2, 3, 4]


def test_what_ends_in_the_epoch_of_the_stop_has_ended() -> None:
    told = Told()
    objective = made(stopping=lambda: len(told.reports[0]) == RUNGS)
    with pytest.raises(Stopped):
        objective([trial(0), trial(1, epochs=16)], told)
    assert told.outcomes[0].record.state == "complete" and 1 not in told.outcomes


def test_fold_seeds_are_averaged() -> None:
    assert inputs(fold_seeds=2).models == 7  # three folds twice, and all domains
    record = ran(made(fold_seeds=2), trial()).outcomes[0].record
    fold = prepared(inputs())[0]
    members = [Member(trial().settings, fold.cells, seed, order_seed=0) for seed in (0, 1)]
    models = [outcome.model for outcome in train_pack(members)]
    right = [model.probabilities(fold.x).argmax(dim=1).numpy() == fold.labels for model in models if model]
    assert record.folds["a"].accuracy == pytest.approx(np.mean(right), abs=1e-6)
    once = ran(standard(), trial()).outcomes[0].record
    assert record.training_domain is not None and once.training_domain is not None
    assert record.training_domain.accuracy == pytest.approx(once.training_domain.accuracy)


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "balanced_accuracy"])
def test_the_metric_is_what_is_reported(metric: str) -> None:
    told = ran(made(metric=metric), trial())
    folds = told.outcomes[0].record.folds.values()
    assert told.reports[0][-1][1] == pytest.approx(np.mean([getattr(fold, metric) for fold in folds]))


def test_training_domain_selection_reports_the_cells_set_aside() -> None:
    given = inputs(selection="training-domain", fold_seeds=2)
    assert given.selection == "training-domain" and len(given.units[-1].seeds) == 2
    told = ran(Objective(given, "macro_f1", CPU), trial())
    scores = told.outcomes[0].record.training_domain
    assert scores is not None and told.reports[0][-1][1] == pytest.approx(scores.macro_f1)
    assert set(told.outcomes[0].record.folds) == {"a", "b", "c"}  # all protocols come from one study


def test_two_domains_make_no_fold() -> None:
    reading = Fields("celltype", "tech")
    dataset = from_anndata(tiny(cells={"a": 36, "b": 36, "c": 30}), reading)
    cells = seal(TrainingCells(dataset, hold_out(dataset, "c"), reading, ("c",), (), ()), 5, False)
    given = inputs(cells)
    assert given.selection == "training-domain" and given.models == 1
    record = ran(made(cells), trial()).outcomes[0].record
    assert record.folds == {} and record.training_domain is not None


def test_nothing_that_a_fold_prepares_sees_its_left_out_domain() -> None:
    cells = sealed()
    (fold,) = (fold for fold in cells.folds if fold.name == "b")
    x = cells.dataset.x.toarray()
    x[fold.held_out] = np.random.default_rng(0).poisson(80, x[fold.held_out].shape)
    labels = cells.dataset.labels.copy()
    labels[fold.held_out] = labels[fold.held_out][::-1]
    wild = replace(cells, dataset=replace(cells.dataset, x=x, labels=labels))

    def by_name(given: OwnInputs) -> dict[str, Prepared]:
        return {unit.name: each for unit, each in zip(given.units, prepared(given), strict=True)}

    before, after = by_name(inputs(cells)), by_name(inputs(wild))
    for name in ("x", "labels", "domains"):
        assert torch.equal(getattr(before["b"].cells, name), getattr(after["b"].cells, name))
    assert not torch.equal(before["b"].x, after["b"].x)
    assert not torch.equal(before["a"].cells.x, after["a"].cells.x)

    models = [train_pack([Member(trial().settings, each["b"].cells, 0)])[0].model for each in (before, after)]
    assert models[0] is not None and models[1] is not None
    assert all(torch.equal(weight, models[1].weights[name]) for name, weight in models[0].weights.items())


def test_a_fold_predicts_among_the_types_that_it_trains() -> None:
    reading = Fields("celltype", "tech")
    present = {"a": ("B", "NK", "T"), "b": ("B", "NK"), "c": ("B", "NK")}
    dataset = from_anndata(tiny(cells={"a": 40, "b": 40, "c": 40, "d": 30}, present=present), reading)
    cells = seal(TrainingCells(dataset, hold_out(dataset, "d"), reading, ("d",), (), ()), 5, False)
    record = ran(made(cells), trial()).outcomes[0].record
    assert set(record.folds["a"].recall) == {"B", "NK"}
    assert record.folds["a"].cells == len(cells.folds[0].scored) < 40
    assert record.training_domain is not None and "T" in record.training_domain.recall


@pytest.mark.parametrize("preprocess", [{"target_sum": 300.0}, {"scaling": "standard-per-batch"}, {"n_top_genes": 5}])
def test_cells_are_prepared_as_for_the_final_model(preprocess: dict[str, Any]) -> None:
    """Whatever the space may hold: a winner is trained again by `fit`, and has to be what was searched."""
    reading = Fields("celltype", "tech")
    present = {"a": ("B", "NK", "T"), "b": ("B", "NK"), "c": ("B", "NK")}
    dataset = from_anndata(tiny(cells={"a": 40, "b": 40, "c": 40, "d": 30}, present=present), reading)
    cells = seal(TrainingCells(dataset, hold_out(dataset, "d"), reading, ("d",), (), ()), 5, False)
    settings = PreprocessSettings.from_mapping(preprocess)
    given = inputs(cells)
    assert cells.test is not None
    for unit, each in zip(given.units, prepared(given, settings), strict=True):
        bundle = fit(cells.dataset, unit.train, trial(epochs=1).settings, settings, [0], device="cpu")
        if each.test is not None:
            assert torch.allclose(each.test, bundle.input(cells.test).leading, atol=1e-5)
        else:
            whole = bundle.input(cells.dataset.take(unit.held_out)).leading
            assert torch.allclose(each.x, whole[np.isin(unit.held_out, unit.scored)], atol=1e-5)


def test_test_labels_shuffled_change_nothing_in_the_store(tmp_path: Path) -> None:
    def searched(place: Path, cells: TrainingCells, adapt: bool) -> Study:
        study = opened(place, method="dann", space=SPACE, trials=3, seed=1)
        assert search(study, inputs(seal(cells, 5, adapt)), 2)
        return study

    cells = cells_of()
    labels = cells.dataset.labels.copy()
    labels[cells.split.test] = np.random.default_rng(3).permutation(labels[cells.split.test])
    shuffled = replace(cells.dataset, labels=labels)
    other = replace(cells, dataset=shuffled, unlabeled=(shuffled.take(cells.split.test),))
    assert (labels != cells.dataset.labels).any()
    for adapt in (False, True):
        one = searched(tmp_path / f"one {adapt}", cells, adapt)
        two = searched(tmp_path / f"two {adapt}", other, adapt)
        assert contents(one) == contents(two)
        for mine, theirs in zip(one.records(), two.records(), strict=True):
            mine, theirs = (replace(record, seconds=0, started=0, ended=0, curves={}) for record in (mine, theirs))
            assert mine == theirs
        for number in range(3):
            files = [study._folder.predictions(number) for study in (one, two)]
            assert files[0].exists() == files[1].exists()
            if files[0].exists():
                assert np.array_equal(*(np.load(file)["predicted"] for file in files))


def test_the_study_says_what_the_objective_said(tmp_path: Path) -> None:
    """From the draw to the record, with a real pruner and nothing made up."""
    study = opened(tmp_path, method="scdgn", space=SPACE, trials=3)
    assert search(study, inputs(), 3)
    for record in study.records():
        assert record.state in ("complete", "pruned")
        assert record.value == record.steps[max(record.steps)]
        mean = np.mean([fold.macro_f1 for fold in record.folds.values()])
        assert record.value == pytest.approx(mean)


def test_a_study_without_the_budget_is_told_from_a_stopped_one(tmp_path: Path) -> None:
    study = opened(tmp_path, method="nn", space=SPACE, trials=2)
    assert not search(study, inputs(), 1, enough=True)
    assert not search(study, inputs(), 1, stopping=True)
    study = opened(tmp_path, method="nn", space=SPACE, trials=2)
    assert search(study, inputs(), 1)
    assert [record.number for record in study.records()] == [0, 1]


def test_the_winner_s_scores_are_those_of_evaluation() -> None:
    """One scoring in search and in the final evaluation."""
    cells, proposal = sealed(), trial()
    record = ran(standard(), proposal).outcomes[0].record
    fold = cells.folds[0]
    bundle = fit(cells.dataset, fold.train, proposal.settings, PREPROCESS, [0], device="cpu")
    split = Split(fold.train, fold.held_out, fold.scored, fold.train[:0])
    evaluation = evaluate(bundle, cells.dataset, split, torch.device("cpu"))
    assert evaluation is not None
    assert evaluation.models[0].macro_f1 == pytest.approx(record.folds[fold.name].macro_f1)
    assert evaluation.models[0].balanced_accuracy == pytest.approx(record.folds[fold.name].balanced_accuracy)

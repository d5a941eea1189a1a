"""A study draws the same whether it is cut off or not; samplers and pruners go by Optuna's names."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.samplers._tpe import _truncnorm
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr

from scdgn.errors import SettingsError
from scdgn.search.folder import StudyFolder
from scdgn.search.study.sampling import make_pruner, make_sampler
from tests.test_study import SPACE, contents, drive, made_up, opened, packs, settings_of, states, train

SAMPLERS: dict[str, dict[str, object]] = {
    "TPESampler": {"n_startup_trials": 3},
    "RandomSampler": {},
    "QMCSampler": {},
}
PRUNERS: dict[str, dict[str, object]] = {
    "NopPruner": {},
    "MedianPruner": {},
    "PercentilePruner": {"percentile": 40.0},
    "SuccessiveHalvingPruner": {},
    "HyperbandPruner": {},
    "ThresholdPruner": {"lower": 0.42},
    "WilcoxonPruner": {},
}
ENQUEUED: dict[str, Any] = {"enqueue": ({"lr": 1e-3, "schedule": "linear"},)}


def study_of(place: Path, sampler: str, **more: Any) -> Any:
    return opened(place, sampler=sampler, sampler_options=SAMPLERS[sampler], **{**ENQUEUED, **more})


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_cut_off_anywhere_draws_as_if_it_had_not_been(tmp_path: Path, sampler: str, size: int) -> None:
    whole = study_of(tmp_path / "whole", sampler, trials=7)
    drive(whole, size)
    lines = StudyFolder(settings_of(tmp_path / "whole").folder).journal.read_bytes().splitlines(keepends=True)
    drawn = [place for place, line in enumerate(lines) if b"param_name" in line]
    packed = [place for place, line in enumerate(lines) if b'"pack"' in line]
    # Between two settings of a trial, before it is known of which pack the first of one is, and anywhere. A process
    # that is killed while it writes leaves half a line.
    choose = random.Random(f"{sampler} {size}")
    for cut in {*choose.sample(drawn, 2), packed[size], choose.randrange(len(lines))}:
        place = tmp_path / str(cut)
        journal = StudyFolder(settings_of(place).folder).journal
        journal.parent.mkdir(parents=True)
        journal.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
        again = study_of(place, sampler, trials=7)
        drive(again, size)
        assert contents(again) == contents(whole), f"cut off in line {cut} of {len(lines)}: {lines[cut][:120]!r}"


def test_a_study_cut_off_again_and_again(tmp_path: Path) -> None:
    whole = study_of(tmp_path / "whole", "TPESampler", trials=7)
    drive(whole, 3)
    while True:
        study = study_of(tmp_path / "cut", "TPESampler", trials=7)
        _, left = study.next_pack(3)
        if not left:
            break
        study = study_of(tmp_path / "cut", "TPESampler", trials=7)  # dies before the pack is trained
        train(study, study.next_pack(3)[0])
    assert contents(study) == contents(whole)


def test_no_draw_depends_on_the_process(tmp_path: Path) -> None:
    """Python orders sets of names differently in every process."""
    script = (
        "import sys; from pathlib import Path; from tests.test_study import *;"
        "study = opened(Path(sys.argv[1]), trials=7, sampler_options={'n_startup_trials': 2}); drive(study, 2);"
        "print(contents(study))"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", script, str(tmp_path / "other")]
    other = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    printed = subprocess.run(command, cwd=root, env=other, capture_output=True, text=True, check=True).stdout
    study = opened(tmp_path / "this", trials=7, sampler_options={"n_startup_trials": 2})
    drive(study, 2)
    assert printed.strip() == str(contents(study))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_of_the_study_decides(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for place, seed in enumerate((1, 1, 2)):
        study = study_of(tmp_path / str(place), sampler, trials=4, seed=seed)
        drive(study, 2)
        drawn.append([trial["params"] for trial in contents(study)][2:])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_trials_of_a_pack_differ(tmp_path: Path) -> None:
    for sampler in SAMPLERS:
        study = study_of(tmp_path / sampler, sampler, trials=8)
        drive(study, 4)
        drawn = [str(trial["params"]) for trial in contents(study)]
        assert len(set(drawn)) == 8, sampler


def test_tpe_draws_what_optunas_own_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"trials": 30, "sampler_options": {"n_startup_trials": 4}}
    space = {**SPACE, "hidden": {"low": 8, "high": 1136, "log": True}, "schedule": ["constant", "linear", "sigmoid"]}
    ours = opened(tmp_path / "ours", space=space, **more)
    drive(ours, 3)
    assert {"complete", "pruned"} <= set(states(ours))
    monkeypatch.setattr(_truncnorm, "_log_ndtr", optunas_log_ndtr)
    theirs = opened(tmp_path / "theirs", space=space, **more)
    drive(theirs, 3)
    for one, other in zip(contents(ours), contents(theirs), strict=True):
        assert one["state"] == other["state"]
        assert list(one["params"]) == list(other["params"])
        for name, value in one["params"].items():
            close = isinstance(value, float) and value == pytest.approx(other["params"][name], rel=1e-6)
            assert close or value == other["params"][name], name


def test_scipy_has_the_function_that_optuna_computes() -> None:
    at = np.concatenate([np.linspace(-60, 12, 500), [-1e3, -20.0, 6.0, 0.0]])
    np.testing.assert_allclose(_truncnorm._log_ndtr(at), optunas_log_ndtr(at), rtol=1e-12, atol=1e-15)
    assert _truncnorm._log_ndtr is log_ndtr


def optunas_log_ndtr(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `_truncnorm._log_ndtr` was before `scdgn.search.study.sampling` replaced it."""
    return np.array([_truncnorm._log_ndtr_single(one) for one in np.ravel(at)], dtype=float).reshape(np.shape(at))


def test_the_sampler_learns(tmp_path: Path) -> None:
    """A reseeded TPE still finds the better learning rates: around 1e-3, by the scores made up here."""

    def score(proposal: Any, step: int) -> float:
        return made_up(proposal, 0)

    space = {**SPACE, "hidden": 8, "schedule": "constant"}
    study = opened(tmp_path, space=space, trials=30, pruner="NopPruner")
    drive(study, score=score)
    values = [record.value or 0.0 for record in study.records()]
    assert sum(values[20:]) / 10 > sum(values[1:11]) / 10 + 0.005


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_prunes_and_lets_pass(tmp_path: Path, pruner: str) -> None:
    study = opened(tmp_path, sampler="RandomSampler", pruner=pruner, pruner_options=PRUNERS[pruner], trials=16)
    for proposals in packs(study, 4):
        train(study, proposals, lambda proposal, step: made_up(proposal, step) - 0.02 * proposal.number)
    seen = set(states(study))
    assert seen == ({"complete"} if pruner == "NopPruner" else {"complete", "pruned"})
    assert states(study)[0] == "complete"


class Watched(optuna.pruners.BasePruner):
    """Remembers whom it is shown, in every way that Optuna's pruners look."""

    def __init__(self) -> None:
        self.seen: dict[int, set[int]] = {}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        shown = {other.number for other in study.get_trials(deepcopy=False)}
        shown |= {other.number for other in study._storage.get_all_trials(study._study_id)}
        assert shown == {other.number for other in study._get_trials(use_cache=True)}
        if any(other.state is TrialState.COMPLETE for other in study.get_trials()):
            shown.add(study.best_trial.number)
        self.seen[trial.number] = shown
        return False


def test_a_pruner_sees_peers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(optuna.pruners, "NopPruner", lambda: watched)
    monkeypatch.setattr("scdgn.search.study.sampling._find", lambda *_: optuna.pruners.NopPruner)
    study = optuna.create_study(
        pruner=make_pruner("NopPruner", {}, lambda trial: trial.user_attrs.get("width")), direction="maximize"
    )
    widths = [8, 64, 65, 256, 257, 1136, 8, 100, 500]
    for width in widths:
        trial = study.ask()
        trial.set_user_attr("width", width)
        trial.report(width / 1000, 1)
        trial.should_prune()
        study.tell(trial, width / 1000)
    assert watched.seen[6] == {0, 1, 6}
    assert watched.seen[7] == {2, 3, 7}
    assert watched.seen[8] == {4, 5, 8}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("TPESample", {}, "did you mean TPESampler"),
        ("TPESampler", {"n_startup": 3, "seed": 1}, "no option 'n_startup': did you mean n_startup_trials"),
        ("TPESampler", {"seed": 1}, "no option 'seed'"),
        ("RandomSampler", {"n_startup_trials": 3}, "no option 'n_startup_trials'"),
        ("BaseSampler", {}, "BaseSampler"),
        ("PartialFixedSampler", {}, "cannot be made"),
        ("QMCSampler", {"qmc_type": "dice"}, "cannot be made"),
        ("GridSampler", {"search_space": {"hidden": [8]}}, "goes through a grid"),
        ("BruteForceSampler", {}, "goes through a grid"),
        ("CmaEsSampler", {}, "keeps a pickle in the study"),
    ],
)
def test_a_sampler_that_cannot_be_had(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        make_sampler(name, options, seed=0)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("Median", {}, "did you mean MedianPruner"),
        ("MedianPruner", {"startup": 3}, "no option 'startup': did you mean n_startup_trials"),
        ("MedianPruner", {"n_startup_trials": -1}, "cannot be made"),
        ("PercentilePruner", {}, "cannot be made"),
        ("ThresholdPruner", {}, "cannot be made"),
        ("PatientPruner", {}, "cannot be made"),
    ],
)
def test_a_pruner_that_cannot_be_had(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        make_pruner(name, options, lambda trial: None)


def test_every_unknown_option_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        make_sampler("TPESampler", {"one": 1, "two": 2}, seed=0)
    assert len(caught.value.faults) == 2

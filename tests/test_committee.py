"""What the cells left out choose: the winner against the preset, the ensemble, and whether it corrects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scdgn.errors import DataError
from scdgn.search.left_out import LeftOut, read, together, write
from scdgn.search.stages.committee import (
    Change,
    change,
    clearly_better,
    correction,
    members,
    scores,
    scores_by_seed,
    shrunk,
    unless_clearly_better,
)
from scdgn.search.stages.selection import Winner

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3])  # no model trains type 3


def part(*predictions: list[int], sure: float = 5.0, corrected: list[int] | None = None, name: str = "a") -> LeftOut:
    """Models that predict these codes of the first six cells, and type 0 for the last one."""
    logits = torch.stack([_logits(each, sure) for each in predictions])
    mended = None if corrected is None else torch.stack([_logits(corrected, sure)] * len(predictions))
    return LeftOut(name, torch.arange(len(LABELS)), LABELS, logits, torch.zeros(logits.shape[:2]), mended)


def _logits(codes: list[int], sure: float) -> Tensor:
    logits = torch.zeros(len(LABELS), 4)
    logits[torch.arange(len(LABELS)), torch.tensor([*codes, 0])] = sure
    logits[:, 3] = -torch.inf
    return logits


RIGHT, HALF, WRONG = [0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0], [1, 2, 2, 0, 0, 1]


def test_scores_are_those_of_the_cells_whose_type_is_trained() -> None:
    assert scores([part(RIGHT)], "macro_f1") == [1.0] and scores([part(WRONG)], "accuracy") == [0.0]
    assert scores_by_seed([part(RIGHT, HALF), part(WRONG, HALF)], "accuracy").tolist() == [[1.0, 0.5], [0.0, 0.5]]


def test_better_by_more_than_a_standard_error_of_the_difference() -> None:
    base = np.array([[0.5, 0.6], [0.7, 0.8], [0.2, 0.3]])
    assert clearly_better(base + 0.01, base)  # the same everywhere, however the parts differ
    assert not clearly_better(base, base)
    assert not clearly_better(base - 0.1, base)
    assert not clearly_better(base + np.array([[0.3], [-0.1], [-0.1]]), base)  # one part alone
    assert not clearly_better(base + np.array([[0.2, -0.15]]), base)  # one seed alone
    unsure = base + np.array([[0.0], [0.1], [0.1]])  # two standard errors
    assert clearly_better(unsure, base, 1.9) and not clearly_better(unsure, base, 2.1)
    assert clearly_better(base[:1] + np.array([[0.2, 0.1]]), base[:1])  # a single part, so that the seeds tell


def test_the_preset_stays_unless_it_is_clearly_beaten() -> None:
    by_seed = {0: np.array([[0.5, 0.5], [0.7, 0.7]]), 1: np.array([[0.9, 0.9], [0.4, 0.4]]), 2: np.full((2, 2), 0.8)}
    luck, merit = Winner("leave-one-domain-out", 1, 0.65), Winner("leave-one-domain-out", 2, 0.8)
    stays = unless_clearly_better(luck, 0, by_seed)
    assert (stays.number, stays.score) == (0, pytest.approx(0.6)) and "trial 1 is not above the preset" in stays.note
    assert unless_clearly_better(merit, 0, by_seed) == merit
    assert unless_clearly_better(Winner("x", 0, 0.6), 0, by_seed).note == ""


def test_scores_are_shrunk_by_the_share_of_noise_in_their_variance() -> None:
    rng = np.random.default_rng(0)
    noise = {number: 0.5 + 0.1 * rng.standard_normal((4, 4)) for number in range(50)}
    merit = {number: values + 0.3 * rng.standard_normal() for number, values in noise.items()}
    assert np.ptp(list(shrunk(noise).values())) < 0.3 * np.ptp([values.mean() for values in noise.values()])
    kept = shrunk(merit)
    means = {number: values.mean() for number, values in merit.items()}
    assert all(abs(kept[number] - mean) < 0.02 for number, mean in means.items())
    assert sorted(kept, key=kept.__getitem__) == sorted(means, key=means.__getitem__)
    assert shrunk({3: np.full((2, 2), 0.7)}) == {3: pytest.approx(0.7)}
    assert shrunk({3: np.full((2, 2), 0.7), 4: np.full((2, 2), 0.7)}) == {3: pytest.approx(0.7), 4: pytest.approx(0.7)}


def test_the_ensemble_takes_what_makes_it_better_and_leaves_what_does_not() -> None:
    trials = {7: [part(HALF)], 2: [part([0, 0, 1, 1, 0, 2], sure=9.0)], 5: [part(WRONG)]}
    taken = members(trials, 7, 6, "macro_f1")
    assert next(iter(taken)) == 7 and sum(taken.values()) == 6 and 5 not in taken and taken[2] >= 3
    joined = together(trials, taken)
    assert scores(joined, "macro_f1")[0] > scores(trials[7], "macro_f1")[0]
    assert len(joined[0].logits) == 6
    assert members({7: trials[7]}, 7, 10, "macro_f1") == {7: 10}
    assert members(trials, 7, 1, "macro_f1") == {7: 1}


def test_all_trials_that_did_not_fail_are_in_the_ensemble_as_far_as_its_size_goes() -> None:
    trials = {7: [part(RIGHT)], 2: [part(RIGHT)], 9: [part([0, 0, 1, 1, 2, 1])], 5: [part(WRONG)]}
    assert members(trials, 7, 6, "macro_f1") == {7: 2, 2: 2, 9: 2}  # nothing to gain
    assert list(members(trials, 7, 2, "macro_f1")) == [7, 2]


def test_an_ensemble_corrects_unless_clearly_more_is_lost() -> None:
    gains, moves = correction([part(HALF, corrected=RIGHT), part(HALF, corrected=RIGHT, name="b")], "accuracy")
    assert moves and gains.harmless and (gains.before, gains.after, gains.gains) == ((0.5, 0.5), (1.0, 1.0), (0.5, 0.5))
    mixed = [part(HALF, corrected=RIGHT), part(RIGHT, corrected=HALF), part(HALF, corrected=RIGHT)]
    assert correction(mixed, "accuracy")[0].harmless
    alike = [part(HALF, corrected=HALF), part(RIGHT, corrected=RIGHT)]
    assert correction(alike, "accuracy")[0].harmless  # left alone
    assert not correction([part(RIGHT, corrected=HALF), part(RIGHT, corrected=WRONG)], "accuracy")[0].harmless
    assert not correction([part(HALF, corrected=RIGHT)], "accuracy")[0].harmless  # a single domain tells nothing
    assert correction([part(HALF), part(HALF)], "accuracy")[0].before == ()


def test_where_moving_harms_the_classifier_alone_may_correct() -> None:
    def lost(learned: list[int]) -> list[LeftOut]:
        return [replace(part(RIGHT, corrected=own), learned=part(learned).logits) for own in (HALF, WRONG)]

    found, moves = correction(lost(RIGHT), "accuracy")
    assert found.harmless and not moves and found.after == (1.0, 1.0)
    found, moves = correction(lost(HALF), "accuracy")
    assert not found.harmless and moves
    predicted = [one.as_predicted(True, False).logits.argmax(dim=2)[0].tolist() for one in lost(HALF)]
    assert [own[: len(HALF)] for own in predicted] == [HALF, HALF]
    mixed = together({1: lost(RIGHT), 2: [part(RIGHT, corrected=HALF)] * 2}, {1: 1, 2: 1})
    assert mixed[0].learned is None and len(mixed[0].corrected) == 2  # of a trial of before there is none


def test_a_change_is_made_unless_domains_left_out_lose_by_it() -> None:
    better, worse = [part(RIGHT), part(HALF)], [part(HALF), part(WRONG)]
    assert change(worse, better, "accuracy").harmless and change(better, better, "accuracy").harmless
    assert not change(better, worse, "accuracy").harmless
    assert change([part(RIGHT)] * 3, [part(HALF), part(WRONG), part(RIGHT)], "accuracy").harmless  # by chance
    for lacking in ([], better[:1]):  # its models diverged
        assert change(better, lacking, "accuracy") == Change(False)


def test_what_is_left_out_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "left_out" / "00003.npz"
    assert read(path) is None
    path.parent.mkdir()
    kept = [part(RIGHT, HALF, corrected=WRONG), part(WRONG, HALF, name="b, é")]
    write(path, kept)
    again = read(path)
    assert again is not None and [one.name for one in again] == ["a", "b, é"]
    for one, other in zip(kept, again, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("rows", "labels", "logits"))
    assert kept[0].corrected is not None and again[0].corrected is not None and again[1].corrected is None
    assert torch.equal(kept[0].corrected, again[0].corrected)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="the same command scores the trial again"):
        read(path)

"""Correction: what all types of a query share is taken away, where that is no guess."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scdgn.core.config import UNLABELED, Settings
from scdgn.core.correction import (
    LEAST_CELLS,
    NO_CELLS,
    UNMOVED,
    Correction,
    Query,
    Reference,
    corrected_both_ways,
    corrected_logits,
    find_correction,
    find_reference,
)
from scdgn.core.expression import compressed
from scdgn.core.networks import Model
from scdgn.core.pack.members import Cells, Member
from scdgn.core.query_classifier import averaged
from scdgn.core.training import train

TYPES, GENES, MARKERS = 5, 40, 5


def drawn(
    types: NDArray[np.int64], shift: float = 0.0, seed: int = 0, extra: int = 0
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Cells of these types: five genes mark each; `shift` raises half of the genes, and so half of the markers."""
    draws = np.random.default_rng(seed)
    x = draws.normal(1.0, 0.5, (len(types), GENES))
    for place in range(MARKERS):
        x[np.arange(len(types)), types * MARKERS + place] += 1.2
    x[:, : GENES // 2 - extra] += shift
    return torch.from_numpy(np.maximum(x, 0).astype(np.float32)), types


@cache
def trained() -> tuple[tuple[Model, ...], Reference, Cells]:
    """Two models of three domains, which differ a little."""
    parts = [drawn(np.arange(200) % TYPES, shift, seed) for seed, shift in enumerate((-0.1, 0.0, 0.1), 1)]
    x, labels = torch.cat([x for x, _ in parts]), torch.from_numpy(np.concatenate([types for _, types in parts]))
    cells = Cells(x, labels, torch.arange(600) // 200, TYPES, 3)
    settings = Settings.from_mapping({"method": "nn", "hidden": 16, "latent": 8, "epochs": 40, "lr": 5e-3})
    outcomes = train([Member(settings, cells, seed) for seed in (0, 1)])
    models = tuple(outcome.model for outcome in outcomes if outcome.model is not None)
    return models, find_reference(x, labels, cells.domains, TYPES), cells


def found(*queries: torch.Tensor) -> Correction:
    """Of batches, one after the other."""
    models, reference, _ = trained()
    codes = np.repeat(np.arange(len(queries)), [len(x) for x in queries])
    sizes = np.array([len(x) for x in queries])
    return find_correction(lambda: [Query([torch.cat(queries)], codes)], [models], [reference], sizes)


def called(x: torch.Tensor, correct: bool) -> NDArray[np.int64]:
    models, reference, _ = trained()
    logits = corrected_logits(models, x, reference)[correct]
    codes: NDArray[np.int64] = logits.softmax(dim=2).mean(dim=0).argmax(dim=1).numpy()
    return codes


FAR = drawn(np.arange(300) % TYPES, 1.2, seed=9)


def test_a_shifted_batch_is_told_as_one_that_is_not() -> None:
    x, types = FAR
    plain, corrected = (np.mean(called(x, correct) == types) for correct in (False, True))
    assert plain < 0.9 and corrected > 0.97
    (reason,) = found(x).reasons
    assert reason == ""


def test_the_shift_is_that_of_the_genes_that_moved() -> None:
    (shift,) = found(FAR[0]).shifts
    moved, rest = shift[0, : GENES // 2], shift[0, GENES // 2 :]
    assert moved.mean() == pytest.approx(1.2, abs=0.25) and rest.abs().max() < 0.25


def test_composition_is_no_shift() -> None:
    """Half of the cells are of one type: the mean cell is another one, the types are where they are."""
    types = np.concatenate([np.zeros(120, dtype=np.int64), np.arange(180) % TYPES])
    even, uneven = found(FAR[0]).shifts[0][0], found(drawn(types, 1.2, seed=9)[0]).shifts[0][0]
    assert (even - uneven).norm() < 0.25 * even.norm()


# --- what it is compared with


@pytest.mark.parametrize("sparse", [False, True])
def test_the_reference_is_what_its_words_say(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdgn.core.correction.PREDICTED_AT_ONCE", 64)
    _, _, cells = trained()
    labels = cells.labels.clone()
    labels[:50], labels[labels == 4] = UNLABELED, UNLABELED  # the last type has no cells
    labels[(labels == 3) & (cells.domains == 0)] = UNLABELED
    x, domains = cells.x, cells.domains
    assert isinstance(x, torch.Tensor)
    reference = find_reference(compressed(x) if sparse else x, labels, domains, TYPES)
    shifts: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for code in range(4):
        each = {k: x[(labels == code) & (domains == k)].mean(dim=0) for k in range(3) if not (code == 3 and k == 0)}
        mean = torch.stack(list(each.values())).mean(dim=0)
        torch.testing.assert_close(reference.means[code], mean)
        for domain, own in each.items():
            shifts[domain].append(own - mean)
    assert reference.means[4].isnan().all()
    assert torch.equal(reference.floor, x[labels >= 0].amin(dim=0))
    expected = max(float(torch.stack(own).mean(dim=0).norm()) for own in shifts.values())
    assert reference.spread == pytest.approx(expected, rel=1e-4)


# --- guards


@pytest.mark.parametrize(
    ("types", "told"),
    [
        (np.arange(LEAST_CELLS - 1) % TYPES, f"{LEAST_CELLS - 1} of at least {LEAST_CELLS} cells"),
        (np.zeros(200, dtype=np.int64), "of its cells look like one type"),
        (np.arange(60) % 2, "2 of at least 3 types have 5 cells"),
        (np.where(np.arange(400) % 10, 2, np.arange(400) % TYPES), "of its cells look like one type"),
        (np.zeros(0, dtype=np.int64), "no cells"),
    ],
    ids=["few cells", "one type", "two types", "one type dominates", "no cells"],
)
def test_what_would_be_a_guess_is_left_as_it_is(types: NDArray[np.int64], told: str) -> None:
    x, _ = drawn(types, shift=0.6, seed=3)
    correction = found(FAR[0], x)
    assert correction.reasons[0] == "" and told in correction.reasons[1]
    assert not correction.shifts[0][1].any()
    assert np.array_equal(correction.corrected(np.array([1, 0, 1])), [False, True, False])


@pytest.mark.parametrize("domain", range(3))
def test_a_training_batch_is_left_as_it_is(domain: int) -> None:
    models, reference, cells = trained()
    x = cells.x[cells.domains == domain]
    assert isinstance(x, torch.Tensor)
    assert found(x).reasons == ("no further from the training cells than a training batch is",)
    assert np.mean(called(x, True) == called(x, False)) > 0.99  # its own classifier says the same of its cells
    plain, corrected = corrected_logits(models, x, reference._replace(components=None))
    assert torch.equal(plain, corrected)


def test_a_new_batch_that_is_not_shifted_is_left_as_it_is() -> None:
    x, types = drawn(np.arange(300) % TYPES, seed=20)
    assert np.array_equal(called(x, True), called(x, False)) and np.mean(called(x, True) == types) > 0.97


def test_types_never_trained_do_not_take_the_others_along() -> None:
    """A third of the query is of a type of its own, with genes that mark no trained type."""
    x, types = drawn(np.arange(300) % TYPES, 1.2, seed=5)
    other, _ = drawn(np.arange(150) % TYPES, 1.2, seed=6)
    other = other.roll(MARKERS // 2, dims=1)  # marked by halves of two types
    assert np.mean(called(torch.cat([x, other]), True)[:300] == types) > 0.95


def test_types_without_training_cells_have_no_say() -> None:
    models, reference, _ = trained()
    lacking = reference._replace(means=reference.means.index_fill(0, torch.tensor([0, 1, 2]), torch.nan))
    x = FAR[0]
    correction = find_correction(
        lambda: [Query([x], np.zeros(len(x), dtype=np.int64))], [models], [lacking], np.array([len(x)])
    )
    assert correction.reasons == ("2 of at least 3 types have 5 cells",)


# --- batches, chunks and parts


def test_each_batch_is_corrected_by_its_own_cells() -> None:
    other, _ = drawn(np.arange(200) % TYPES, -0.8, seed=11)
    both, alone = found(FAR[0], other), (found(FAR[0]), found(other))
    assert both.reasons == ("", "")
    for place, one in enumerate(alone):
        torch.testing.assert_close(both.shifts[0][place], one.shifts[0][0])


def test_cells_some_at_a_time_give_the_same() -> None:
    models, reference, _ = trained()
    x, codes = torch.cat([FAR[0], FAR[0][:80]]), np.array([0] * 300 + [1] * 80)

    def some() -> Iterator[Query]:
        for start in range(0, 380, 47):
            yield Query([x[start : start + 47]], codes[start : start + 47])

    parts = find_correction(some, [models], [reference], np.array([300, 80]))
    torch.testing.assert_close(parts.shifts[0], found(FAR[0], FAR[0][:80]).shifts[0])


def test_sums_too_large_for_one_pass_are_found_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    models, reference, _ = trained()
    x, codes = torch.cat([FAR[0], FAR[0][:80]]), np.array([0] * 300 + [1] * 80)
    passes = []

    def all_cells() -> Iterator[Query]:
        passes.append(len(passes))
        yield Query([x], codes)

    once = find_correction(all_cells, [models], [reference], np.array([300, 80]))
    monkeypatch.setattr("scdgn.core.correction.SUMS_AT_ONCE", reference.means.numel() * 8)
    twice = find_correction(all_cells, [models], [reference], np.array([300, 80]))
    assert len(passes) == (1 + 1) + (2 + 1) and once.reasons == twice.reasons
    assert torch.equal(once.shifts[0], twice.shifts[0]) and once.shifts[0].any()


def test_each_part_corrects_by_what_all_models_say() -> None:
    models, reference, _ = trained()
    x, codes = turned()[0], np.zeros(600, dtype=np.int64)
    parts: list[Any] = [models[:1], models[1:]]
    together = find_correction(lambda: [Query([x] * 2, codes)], parts, [reference] * 2, np.array([600]))
    alone = find_correction(lambda: [Query([x], codes)], [models], [reference], np.array([600]))
    first = find_correction(lambda: [Query([x], codes)], parts[:1], [reference], np.array([600]))
    assert len(together.classifiers) == 2 and not torch.equal(first.shifts[0], alone.shifts[0])
    for shifts in together.shifts:
        assert torch.equal(shifts, alone.shifts[0])


def test_a_batch_that_one_part_alone_corrects_is_corrected() -> None:
    models, reference, _ = trained()
    deaf = reference._replace(spread=1e9)
    x, codes = FAR[0], np.zeros(300, dtype=np.int64)
    correction = find_correction(lambda: [Query([x, x], codes)], [models] * 2, [deaf, reference], np.array([300]))
    assert correction.reasons == ("",) and not correction.shifts[0].any() and correction.shifts[1].any()
    one, two = correction.apply(Query([x, x], codes))
    assert one is x and not torch.equal(two, x)


def test_what_is_left_as_it_is_stays_to_the_last_bit_and_nothing_sinks_below_the_floor() -> None:
    _, reference, _ = trained()
    x = torch.cat([FAR[0], FAR[0][:10]])
    x[300:, 0] = -1.0  # below the floor already
    codes = np.array([0] * 300 + [1] * 10)
    correction = found(FAR[0], FAR[0][:10])
    (after,) = correction.apply(Query([x], codes))
    assert torch.equal(after[300:], x[300:])
    assert (after[:300] >= torch.minimum(reference.floor, x[:300])).all() and (after[:300] < x[:300]).any()


def test_logits_of_sparse_input_and_of_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    models, reference, _ = trained()
    other, _ = drawn(np.arange(200) % TYPES, -0.8, seed=11)
    x, codes = torch.cat([FAR[0], other]), np.array([0] * 300 + [1] * 200)
    dense = corrected_logits(models, x, reference, codes)
    monkeypatch.setattr("scdgn.core.correction.PREDICTED_AT_ONCE", 64)
    for one, two in zip(dense, corrected_logits(models, compressed(x), reference, codes), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    moved = reference._replace(components=None)  # each batch by itself; the classifier is learned from both
    both, alone = corrected_logits(models, x, moved, codes)[1], corrected_logits(models, FAR[0], moved)[1]
    torch.testing.assert_close(both[:, :300], alone)
    assert torch.equal(dense[0], torch.stack([model.forward(x)[1] for model in models]))


def test_what_was_done_is_said_in_one_line() -> None:
    none = torch.zeros(6, 2)
    reasons = ("", "few", "few", "far", "few", "few")
    correction = Correction((none,), (none[0],), reasons)
    told = "1 of 6 batches corrected; left as it is: b, c, e and 1 more (few); d (far)"
    assert correction.describe(list("abcdef")) == told
    assert Correction((none,), (none[0],), ("", NO_CELLS)).describe(["a", "b"]) == "1 of 1 batches corrected"


# --- a query's own classifier


def turned(seed: int = 9) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Most of the markers of a type say nothing in this batch, and other genes mark it: no shift of all types."""
    x, types = drawn(np.arange(600) % TYPES, seed=seed)
    draws = np.random.default_rng(seed)
    for place in range(MARKERS - 1):
        x[np.arange(600), types * MARKERS + place] -= torch.from_numpy(draws.uniform(0.9, 1.3, 600).astype(np.float32))
    for place in range(3):
        x[np.arange(600), TYPES * MARKERS + types * 3 + place] += 1.0
    return x.clamp(min=0), types


def test_a_query_teaches_what_marks_its_types() -> None:
    x, types = turned()
    models, reference, _ = trained()
    alone = corrected_logits(models, x, reference._replace(components=None))[1]
    without = np.mean(alone.softmax(dim=2).mean(dim=0).argmax(dim=1).numpy() == types)
    assert np.mean(called(x, True) == types) > without + 0.03


def test_what_a_query_teaches_does_not_depend_on_how_it_is_read() -> None:
    models, reference, _ = trained()
    x, codes = torch.cat([FAR[0], turned()[0]]), np.array([0] * 300 + [1] * 600)

    def some() -> Iterator[Query]:
        for start in range(0, 900, 47):
            yield Query([x[start : start + 47]], codes[start : start + 47])

    one = find_correction(lambda: [Query([x], codes)], [models], [reference], np.array([300, 600]))
    two = find_correction(some, [models], [reference], np.array([300, 600]))
    (said,), (again,) = (each.own(each.apply(Query([x], codes))) for each in (one, two))
    assert said is not None and again is not None
    torch.testing.assert_close(said.exp(), again.exp(), atol=1e-3, rtol=0)


def test_some_of_many_cells_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    models, reference, _ = trained()
    asked: list[torch.Tensor] = []

    def learn(z: torch.Tensor, p: torch.Tensor, components: torch.Tensor, sure_from: float) -> None:
        asked.append(z)

    monkeypatch.setattr("scdgn.core.correction.learn", learn)
    monkeypatch.setattr("scdgn.core.correction.MOST_TEACHING", 150)
    models, reference, cells = trained()
    x, codes = cells.x, cells.domains.numpy()  # left where they are
    for cut in ([7, 300], [299, 301, 302, 303]):
        correction = find_correction(
            lambda cut=cut: (Query([x[rows]], codes[rows]) for rows in np.split(np.arange(600), cut)),
            [models], [reference], np.array([200] * 3),
        )  # fmt: skip
        assert not correction.transductive
    assert reference.components is not None
    for z in asked:
        torch.testing.assert_close(z, x[::4] @ reference.components.T)


def test_few_cells_and_models_of_before_have_no_classifier() -> None:
    models, reference, _ = trained()
    x = turned()[0]
    assert found(x).classifiers and found(x).transductive
    assert not found(x[:80]).classifiers
    before = reference._replace(components=None)
    correction = find_correction(
        lambda: [Query([x], np.zeros(600, dtype=np.int64))], [models], [before], np.array([600])
    )
    assert not correction.classifiers and correction.own([x]) == (None,)


def test_models_that_are_sure_of_nothing_teach_nothing() -> None:
    models, reference, _ = trained()
    unsure = [replace(model, weights={key: 0 * weight for key, weight in model.weights.items()}) for model in models]
    x, codes = turned()[0], np.zeros(600, dtype=np.int64)
    for parts, learns in (([unsure, unsure], False), ([models, models, models, unsure], True)):
        count = len(parts)
        correction = find_correction(
            lambda count=count: [Query([x] * count, codes)], parts, [reference] * count, np.array([600])
        )
        assert [one is not None for one in correction.own([x] * count)] == [learns] * count
    assert correction.describe(["a"]).endswith("taught it a classifier of its own")


def test_what_moves_no_batch_learns_where_the_cells_are() -> None:
    models, reference, _ = trained()
    x, codes = torch.cat([FAR[0], turned()[0]]), np.array([0] * 300 + [1] * 600)
    correction = find_correction(
        lambda: [Query([x], codes)], [models], [reference], np.array([300, 600, 0]), moves=False
    )
    assert correction.reasons == (UNMOVED, UNMOVED, NO_CELLS) and correction.classifiers
    (same,) = correction.apply(Query([x], codes))
    assert same is x and correction.transductive
    corrected, learned = corrected_both_ways(models, x, reference, codes)
    plain, expected = corrected_logits(models, x, reference, codes)
    assert torch.equal(corrected, expected)
    assert not torch.equal(plain, learned) and not torch.equal(corrected, learned)


def test_where_no_batch_is_moved_both_ways_are_one() -> None:
    models, reference, cells = trained()
    codes = np.repeat(np.arange(3), 200)
    corrected, learned = corrected_both_ways(models, cells.x, reference, codes)
    unmoved = find_correction(
        lambda: [Query([cells.x], codes)], [models], [reference], np.array([200] * 3), moves=False
    )
    (own,) = unmoved.own([cells.x])
    assert own is not None
    plain = torch.stack([model.forward(cells.x)[1] for model in models])
    assert torch.equal(corrected, learned) and torch.equal(learned, averaged(plain, own))

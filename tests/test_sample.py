"""Some of the cells, and how many each of them stands for."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from scdgn.cells.sample import at_most, stood_for


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 300), seed=st.integers(0, 5))
def test_some_cells_keep_rare_groups_whole_and_are_as_many_as_may_be(sizes: list[int], most: int, seed: int) -> None:
    most = max(most, len(sizes))
    labels = np.repeat(np.arange(len(sizes)) // 3, sizes)
    batches = np.repeat(np.arange(len(sizes)) % 3, sizes)
    rows = np.arange(len(labels))
    kept = at_most(labels, batches, rows, most, seed)
    counts = np.array([((labels[kept] == n // 3) & (batches[kept] == n % 3)).sum() for n in range(len(sizes))])
    limit = counts.max()
    assert (np.diff(kept) > 0).all() and (counts == np.minimum(sizes, limit)).all()  # equally many, or all
    assert len(kept) <= max(most, len(sizes))
    if len(kept) < len(rows):  # one more of each would be too many
        assert np.minimum(sizes, limit + 1).sum() > most
    assert np.array_equal(at_most(labels, batches, rows[::-1], most, seed), kept) or len(rows) <= most
    assert at_most(labels, batches, rows, 0) is rows


@given(
    cells=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=20, max_size=200),
    most=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_of_more_groups_than_cells_are_wanted_rare_types_stay_whole(
    cells: list[tuple[int, int]], most: int, seed: int
) -> None:
    labels, batches = np.array(cells, dtype=np.int64).T
    rows = np.arange(len(cells))
    assume(len(set(cells)) > most)
    kept = at_most(labels, batches, rows, most, seed)
    sizes, counts = (np.bincount(labels[some], minlength=6) for some in (rows, kept))
    limit = counts.max()
    assert (np.diff(kept) > 0).all() and (counts == np.minimum(sizes, limit)).all()
    assert len(kept) <= max(most, len(set(labels))) and np.minimum(sizes, limit + 1).sum() > most
    for cell_type in set(labels):  # spread: no batch gives two more than another that has more to give
        held, given_ = (np.bincount(batches[some][labels[some] == cell_type], minlength=9) for some in (rows, kept))
        assert given_.max() - given_[held > given_].min(initial=given_.max()) <= 1


def test_a_draw_depends_on_its_own_group_alone() -> None:
    labels, batches = np.repeat([0, 1, 0], [50, 50, 50]), np.repeat([0, 0, 1], [50, 50, 50])
    all_rows = at_most(labels, batches, np.arange(150), 60)
    others = at_most(labels, batches, np.arange(100), 40)
    assert np.array_equal(all_rows[all_rows < 100], others)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 300), seed=st.integers(0, 5))
def test_a_sample_stands_for_all_of_every_group(sizes: list[int], most: int, seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels, batches = groups // 3, groups % 3
    rows = np.flatnonzero(groups != 1)
    kept = at_most(labels, batches, rows, most, seed)
    weights = stood_for(labels, batches, rows, kept)
    for codes in (groups, labels) if len(np.unique(groups[rows])) <= most else (labels,):
        found = np.bincount(codes[kept], weights, len(sizes))
        np.testing.assert_allclose(found, np.bincount(codes[rows], minlength=len(sizes)))
    assert (weights > 1 - 1e-9).all() and np.array_equal(stood_for(labels, batches, rows, rows), np.ones(len(rows)))

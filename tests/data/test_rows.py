"""Rows hold every piece once, in few shapes, with little padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data.rows import (
    PackingPlan,
    RowBatch,
    Shape,
    bucket,
    one_a_row,
    packed,
    packed_length,
    window_counts,
    windows,
)

TOKENS = st.lists(st.integers(1, 3000), min_size=1, max_size=200)


def check(batches: list[RowBatch], tokens: list[int]) -> None:
    """Every piece stands once, alone at its place; `fill` puts values there, and only there."""
    assert sorted(m for batch in batches for m in batch.members) == list(range(len(tokens)))
    for batch in batches:
        filled = batch.fill([np.full(tokens[m], m + 1) for m in batch.members])
        assert filled.shape == batch.shape
        assert np.count_nonzero(filled) == sum(tokens[m] for m in batch.members)
        places = zip(batch.members, batch.rows, batch.starts, batch.segments, strict=True)
        for member, row, start, segment in places:
            assert (filled[row, start : start + tokens[member]] == member + 1).all()
            before = [r == row and s < start for r, s in zip(batch.rows, batch.starts, strict=True)]
            assert segment == 1 + sum(before)


def shapes(budget: int, devices: int, sizes: int) -> Callable[[int], Shape]:
    def shape_of(longest: int) -> Shape:
        length = bucket(longest, 3000, sizes)
        return Shape(devices * max(1, budget // length), length)

    return shape_of


def test_bucket_ladder() -> None:
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 33, 49, 97, 128, 129, 1000)] == [
        16, 16, 24, 24, 32, 48, 64, 128, 128, 192, 1024,
    ]  # fmt: skip
    assert bucket(100, cap=120) == 120


@settings(max_examples=60, deadline=None)
@given(
    TOKENS, st.sampled_from([64, 2048, 65_536]), st.sampled_from([1, 8]), st.sampled_from([1, 8])
)
def test_one_a_row(tokens: list[int], budget: int, devices: int, sizes: int) -> None:
    made = list(one_a_row(tokens, shapes(budget, devices, sizes), multiple=devices))
    check(made, tokens)
    for batch in made:
        rows, length = batch.shape
        assert length <= 3000 and rows % devices == 0 and set(batch.starts) == {0}
        assert rows * length <= max(devices * budget, devices * length)
    assert all(len(batch.members) == batch.shape.rows for batch in made[:-1])


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.sampled_from([64, 2048, 4096]), st.sampled_from([1, 8]))
def test_packed(tokens: list[int], budget: int, devices: int) -> None:
    shape = Shape(devices, packed_length(np.array(tokens), budget, devices))
    made = list(packed(np.array(tokens), shape))
    check(made, tokens)
    assert shape.length < max(budget, *tokens) + 128


def test_packed_rows_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    for count, filled in ((2000, 0.98), (40, 0.93)):
        tokens = rng.integers(40, 1000, count)
        length = packed_length(tokens, 2048, 1)
        made = list(packed(tokens, Shape(1, length)))
        assert tokens.sum() > filled * length * len(made)


def test_a_long_tail_costs_little_padding_and_few_shapes() -> None:
    rng = np.random.default_rng(0)
    tokens = [*rng.integers(40, 1000, 20_000).tolist(), 3000]
    made = list(one_a_row(tokens, shapes(2048, 1, 8)))
    assert sum(b.shape.rows * b.shape.length for b in made) < 1.1 * sum(tokens)
    assert len({batch.shape for batch in made}) < 40
    few = list(one_a_row([40, 90, 200], shapes(2048, 1, 1)))
    assert [batch.shape for batch in few] == [(4, 256)]


@pytest.mark.parametrize("limit", [2, 3, 30, 33])
def test_windows_are_counted_as_they_are_made(limit: int) -> None:
    residues = np.arange(1, 200)
    made = [len(windows(n, limit)) for n in residues.tolist()]
    assert window_counts(residues, limit).tolist() == made


def one_by_one(lengths: list[int], row_length: int, specials: int) -> list[int]:
    """Best-fit decreasing, by the book: the tokens in each row, sorted.

    (Which of two rows with equal space is taken changes contents, and never the space left.)
    """
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        size = length + specials
        free = [row_length - sum(n + specials for n in row) for row in rows]
        fitting = [i for i, f in enumerate(free) if f >= size]
        if fitting:
            rows[min(fitting, key=free.__getitem__)].append(length)
        else:
            rows.append([length])
    return sorted(sum(n + specials for n in row) for row in rows)


def contents(plan: PackingPlan) -> list[list[tuple[int, int]]]:
    """(length, rank) of what stands in each row."""
    places = plan.places(np.arange(plan.rows))
    rows: list[list[tuple[int, int]]] = [[] for _ in range(plan.rows)]
    for row, length, rank in zip(places.row, places.length, places.rank, strict=True):
        rows[row].append((int(length), int(rank)))
    return rows


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 18), min_size=1, max_size=60),
    st.integers(0, 2),
    st.integers(0, 15),
)
def test_rows_are_those_of_best_fit_decreasing(
    lengths: list[int], specials: int, more: int
) -> None:
    row_length = max(lengths) + specials + more
    plan = PackingPlan(np.bincount(lengths), row_length, specials)
    rows = contents(plan)
    filled = sorted(sum(n + specials for n, _ in row) for row in rows)
    assert filled == one_by_one(lengths, row_length, specials)
    # Each protein of each length has one place.
    pieces = Counter(piece for row in rows for piece in row)
    assert pieces == Counter((n, k) for n, c in Counter(lengths).items() for k in range(c))
    tokens = sum(lengths) + specials * len(lengths)
    assert plan.utilisation == pytest.approx(tokens / (len(rows) * row_length))


def test_a_row_is_found_without_the_others() -> None:
    counts = np.bincount(np.random.default_rng(0).integers(1, 60, 500))
    plan = PackingPlan(counts, 64, 2)
    all_rows = contents(plan)
    for number in (0, 7, plan.rows - 1):
        alone = plan.places(np.array([number]))
        assert list(zip(alone.length, alone.rank, strict=True)) == all_rows[number]
    some = plan.places(np.array([5, 2, 5]))
    assert some.row.tolist() == sorted(some.row.tolist()) and len(set(some.row.tolist())) == 3


def test_its_cost_does_not_grow_with_the_number_of_proteins() -> None:
    rng = np.random.default_rng(1)
    counts = np.bincount(np.minimum(rng.gamma(2, 150, 20_000).astype(int) + 20, 510))
    few, many = PackingPlan(counts, 512, 2), PackingPlan(counts * 100_000, 512, 2)
    assert many.rows > 90_000 * few.rows
    places = [plan.places(np.arange(0)) for plan in (few, many)]
    assert all(len(p.row) == 0 for p in places)
    assert len(many._first_row) < 3 * 512  # patterns: at most three per length
    assert few.utilisation > 0.97 and many.utilisation > 0.97
    last = many.places(np.array([many.rows - 1]))
    assert (last.rank < many.counts[last.length]).all()


def test_one_protein_per_row_where_several_are_not_wanted() -> None:
    plan = PackingPlan(np.bincount([3, 3, 5]), 16, 1, several=False)
    assert sorted(contents(plan)) == [[(3, 0)], [(3, 1)], [(5, 0)]]
    assert PackingPlan(np.zeros(5, int), 16, 1).rows == 0

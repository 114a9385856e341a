"""The packing plan against a packer that looks at one protein after the other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data.rows import PackingPlan


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

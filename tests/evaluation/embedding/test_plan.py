"""A few static shapes hold everything once, with as little padding as so few can have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.evaluation.embedding.plan import (
    MOST_SHAPES,
    Shape,
    _cheapest,
    choose_shapes,
    packed,
    packed_shapes,
    padded,
    window_counts,
    windows,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=200),
    st.sampled_from([64, 2048, 65_536]),
    st.sampled_from([1, 8]),
)
def test_every_row_is_in_one_batch_that_holds_it(
    tokens: list[int], budget: int, devices: int
) -> None:
    shapes = choose_shapes(
        np.array(tokens),
        rows_of=lambda length: devices * max(1, budget // length),
        width=64,
        cap=3000,
        multiple=devices,
    )
    groups = list(padded(tokens, shapes))
    assert sorted(m for g in groups for m in g.members) == list(range(len(tokens)))
    assert len(shapes) <= MOST_SHAPES
    for group in groups:
        rows, length = group.shape.rows, group.shape.length
        assert group.shape in shapes and length <= 3000
        assert len(group.members) <= rows and rows % devices == 0
        assert max(tokens[m] for m in group.members) <= length
        assert rows * length <= max(devices * budget, devices * length)
    assert all(len(g.members) == g.shape.rows for g in groups[:-1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 3000), min_size=1, max_size=200),
    st.sampled_from([64, 2048, 4096]),
    st.sampled_from([1, 8]),
)
def test_packed_rows_hold_every_piece_once(tokens: list[int], budget: int, devices: int) -> None:
    shapes = packed_shapes(np.array(tokens), budget, devices)
    made = list(packed(tokens, shapes))
    assert sorted(m for batch in made for m in batch.members) == list(range(len(tokens)))
    assert len(shapes) <= 2
    for batch in made:
        assert batch.shape in shapes and 0 < len(batch.rows) <= batch.shape.rows == devices
        assert all(sum(tokens[m] for m in row) <= batch.shape.length for row in batch.rows)
        assert batch.shape.length < max(budget, *tokens) + 128


def test_packed_rows_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    for count, filled in ((2000, 0.98), (40, 0.93)):
        tokens = rng.integers(40, 1000, count)
        made = list(packed(tokens.tolist(), packed_shapes(tokens, 2048, 1)))
        assert tokens.sum() > filled * sum(batch.shape.length for batch in made)


def test_a_long_tail_costs_little_padding() -> None:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(40, 1000, 20_000), [35_000]])
    shapes = choose_shapes(tokens, rows_of=lambda n: max(1, 2048 // n), width=320)
    computed = sum(g.shape.rows * g.shape.length for g in padded(tokens.tolist(), shapes))
    assert computed < 1.15 * tokens.sum()
    # A handful of proteins is not worth a compilation each.
    few = choose_shapes(np.array([40, 90, 200]), rows_of=lambda n: max(1, 2048 // n), width=320)
    assert few == [Shape(3, 200)]


@pytest.mark.parametrize("seed", range(3))
def test_lengths_are_the_cheapest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, work = rng.integers(1, 50, 9), np.cumsum(rng.integers(1, 9, 9)).astype(float)

    def cost(kept: tuple[int, ...], compilation: float) -> float:
        to = [next(k for k in kept if k >= i) for i in range(9)]
        return sum(counts[i] * work[k] for i, k in enumerate(to)) + compilation * len(kept)

    for compilation in (0.0, 100.0, 1e6):
        every = [
            (*kept, 8)
            for size in range(MOST_SHAPES)
            for kept in itertools.combinations(range(8), size)
        ]
        best = min(cost(kept, compilation) for kept in every)
        found = tuple(_cheapest(counts, work, compilation))
        assert len(found) <= MOST_SHAPES and found[-1] == 8
        assert cost(found, compilation) == pytest.approx(best)


@pytest.mark.parametrize("limit", [2, 3, 30, 33])
def test_windows_are_counted_as_they_are_made(limit: int) -> None:
    residues = np.arange(1, 200)
    made = [len(windows(n, limit)) for n in residues.tolist()]
    assert window_counts(residues, limit).tolist() == made

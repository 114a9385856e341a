"""Rows hold every piece once, in few shapes, with little padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data.rows import (
    Batch,
    Shape,
    bucket,
    one_a_row,
    packed,
    packed_length,
    window_counts,
    windows,
)

TOKENS = st.lists(st.integers(1, 3000), min_size=1, max_size=200)


def check(batches: list[Batch], tokens: list[int]) -> None:
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

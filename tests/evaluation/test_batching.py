"""Buckets hold everything once, in few shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.evaluation.batching import Group, bucket, grouped, padded


def test_bucket_ladder() -> None:
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 33, 49, 97, 128, 129, 1000)] == [
        16, 16, 24, 24, 32, 48, 64, 128, 128, 192, 1024,
    ]  # fmt: skip
    assert bucket(100, cap=120) == 120


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 700), max_size=80), st.sampled_from([64, 500, 4096]))
def test_every_sequence_is_in_one_group_that_holds_it(lengths: list[int], budget: int) -> None:
    groups = list(grouped(lengths, budget))
    assert sorted(m for g in groups for m in g.members) == list(range(len(lengths)))
    for group in groups:
        assert len(group.members) <= group.rows
        assert max(lengths[m] for m in group.members) <= group.length
        assert group.rows * group.length <= max(budget, group.length)


def test_few_shapes() -> None:
    lengths = np.random.default_rng(0).integers(20, 500, size=3000).tolist()
    assert len({(g.rows, g.length) for g in grouped(lengths, 4096)}) <= 20


def test_padded_fills_the_rest() -> None:
    out = padded([np.array([1, 2]), np.array([3])], Group([0, 1], 3, 4), fill=9)
    assert out.tolist() == [[1, 2, 9, 9], [3, 9, 9, 9], [9, 9, 9, 9]]

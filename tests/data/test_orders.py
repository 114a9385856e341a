"""Orders and random words: the same one by one and many at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data import orders

GOLDEN_WORDS = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
"""The first three words of SplitMix64 from state 0 (Vigna, xoshiro test vectors)."""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20), st.integers(0, 2**70))
def test_many_are_shuffled_as_one_by_one(counts: list[int], seed: int) -> None:
    index = [seed % count for count in counts]
    keys = [orders.key_of(seed, epoch) for epoch in range(len(counts))]
    found = orders.shuffled_many(np.array(index), np.array(counts), np.array(keys, np.uint64))
    assert found.tolist() == [
        orders.shuffled(i, count, seed, epoch)
        for epoch, (i, count) in enumerate(zip(index, counts, strict=True))
    ]


def test_orders_of_huge_sets_stay_in_range() -> None:
    count = np.full(100, 2_122_000_000)  # proteins of BFD
    found = orders.shuffled_many(np.arange(100), count, np.full(100, 7, np.uint64))
    assert len(set(found.tolist())) == 100 and found.min() >= 0 and found.max() < count[0]
    assert abs(found.mean() / count[0] - 0.5) < 4 * np.sqrt(1 / 1200)


def test_words_are_those_of_splitmix64() -> None:
    assert orders.words_of(np.zeros(1, np.uint64), 3)[0].tolist() == GOLDEN_WORDS


def test_keys_depend_on_every_number() -> None:
    numbers = np.arange(50)
    keys = orders.keys_of(orders.key_of(3, 4), numbers)
    assert keys.tolist() == [orders.key_of(3, 4, int(n)) for n in numbers]
    grid = {orders.key_of(a, b) for a in range(30) for b in range(30)}
    assert len(grid) == 900


def test_draws_below_a_limit_are_uniform() -> None:
    words = orders.words_of(np.full(1, 5, np.uint64), 40_000)[0]
    drawn = np.bincount(orders.below(words, np.full(len(words), 19)), minlength=19)
    expected = len(words) / 19
    assert len(drawn) == 19
    assert ((drawn - expected) ** 2 / expected).sum() < 42.3  # chi-squared, 18 dof, p = 0.001

"""Orders and random words."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data import orders

GOLDEN = [3, 4, 9, 5, 8, 2, 0, 6, 1, 7]  # with another order, old states mean other batches
GOLDEN_WORDS = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
"""The first three words of SplitMix64 from state 0 (Vigna, xoshiro test vectors)."""


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """0 to count - 1 in one order."""
    keys = np.full(count, orders.key_of(seed, epoch), np.uint64)
    return orders.shuffled_many(np.arange(count), np.full(count, count), keys).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_the_order_is_one_to_one(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(count, seed, epoch)) == list(range(count))


def test_the_order_is_random() -> None:
    """Means and neighbours as of a shuffle: over many seeds, within four standard errors."""
    count, number = 50, 400
    drawn = np.array([shuffled(count, seed, 0) for seed in range(number)])
    error = np.sqrt((count**2 - 1) / 12 / number)
    assert np.abs(drawn.mean(axis=0) - (count - 1) / 2).max() < 4 * error
    rising = (np.diff(drawn, axis=1) > 0).mean()
    assert abs(rising - 0.5) < 0.02
    assert len({tuple(order) for order in drawn}) == number
    epochs = {tuple(shuffled(count, 0, epoch)) for epoch in range(20)}
    assert len(epochs) == 20
    assert shuffled(10, 0, 0) == GOLDEN, "raise FORMAT"


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

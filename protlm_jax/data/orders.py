"""Random orders and random words as functions of numbers: no table, no state.

The k-th element of a shuffled order, and the word drawn for a token, cost the same for any k, on
every machine and every version of NumPy. All random choices of the batches come from here.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_WORD = 2**64 - 1
_STRIDE = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def shuffled_many(index: np.ndarray, count: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 [n]: the element at `index` of the random order `key` of 0 to count - 1.

    A Feistel network over the next power of four, walked until the result is in range (Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      index: int64 [n], each in 0 to count - 1.
      count: int64 [n], below 2^53.
      key: uint64 [n], which of the orders.
    """
    found = index.astype(np.uint64)
    # The exponent of a float is the bit length of its integer part.
    bits = np.frexp((count - 1).astype(np.float64))[1]
    half, limit = np.maximum(1, (bits + 1) // 2).astype(np.uint64), count.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        walked = _network(found[outside], half[outside], key[outside])
        found[outside] = walked
        outside = outside[walked >= limit[outside]]
    return found.astype(np.int64)


def _network(index: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = index >> half, index & mask
    for turn in range(1, _ROUNDS + 1):
        word = key + right
        word += np.uint64(turn * _STRIDE & _WORD)
        left, right = right, left ^ (mix(word) & mask)
    return left << half | right


def key_of(*numbers: int) -> int:
    """A key, 0 to 2^64 - 1, that depends on each of some integers."""
    key = 0
    for number in numbers:
        key = int(mix(np.array([(key + number) & _WORD], np.uint64))[0])
    return key


def keys_of(key: np.ndarray | int, numbers: np.ndarray | int) -> np.ndarray:
    """uint64 [n]: keys with one more number each, as `key_of` mixes it in."""
    return mix(np.atleast_1d(np.asarray(key, np.uint64) + np.asarray(numbers).astype(np.uint64)))


def below(words: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """int64 [n]: for each random word a number from 0 to limit - 1, limits below 2^31."""
    return ((words >> np.uint64(32)) * limits.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def words_of(keys: np.ndarray, count: int) -> np.ndarray:
    """uint64 [n, count]: random words, a row for each key."""
    steps = np.arange(count, dtype=np.uint64) * np.uint64(_STRIDE)
    return mix(keys[:, None] + steps)


def mix(words: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each word, in place: uint64 (SplitMix64: Steele, Lea & Flood 2014)."""
    words += np.uint64(_STRIDE)
    words ^= words >> np.uint64(30)
    words *= np.uint64(_FIRST)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_SECOND)
    words ^= words >> np.uint64(31)
    return words

"""Batches hold every protein whole and once, in one shape."""

from __future__ import annotations

import numpy as np
import pytest
from probe_sources import ArraySource

from protlm_jax.evaluation.probe_data.base import Level
from protlm_jax.evaluation.probes.features import shape

LENGTHS = np.array([30, 9, 50, 100, 22, 7, 1, 41, 3])


def made(lengths: np.ndarray, level: Level) -> ArraySource:
    offsets = np.cumsum([0, *lengths])
    x = np.arange(2 * offsets[-1] * 3, dtype=np.float32).reshape(2, offsets[-1], 3) + 1
    count = offsets[-1] if level == "residue" else len(lengths)
    labels = {"q3": np.arange(count, dtype=np.int16), "depth": np.arange(count, dtype=np.float32)}
    return ArraySource(x, offsets, labels, level, rows=128)


@pytest.mark.parametrize("level", ["residue", "protein"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_protein_is_there_once_and_whole(level: Level, seed: int | None) -> None:
    source = made(LENGTHS, level)
    batches = list(source.batches(seed))
    assert len({(b.features.shape, b.slots) for b in batches}) == 1
    seen = []
    for batch in batches:
        there = batch.protein >= 0
        assert batch.protein.max() < batch.slots and not batch.features[:, ~there].any()
        assert batch.features.ctypes.data % 64 == 0
        for slot in range(batch.protein.max() + 1):
            rows = np.flatnonzero(batch.protein == slot)
            start = int(batch.features[0, rows[0], 0] - 1) // 3
            protein = int(np.searchsorted(source.offsets, start))
            seen.append(protein)
            at = slice(start, source.offsets[protein + 1])
            np.testing.assert_array_equal(batch.features[:, rows], source.features[:, at])
            for name, labels in batch.labels.items():
                own = labels[rows] if level == "residue" else labels[slot]
                expected = source.labels[name][at if level == "residue" else protein]
                np.testing.assert_array_equal(own, expected)
        unlabelled = ~there if level == "residue" else np.arange(batch.slots) > batch.protein.max()
        assert (batch.labels["q3"][unlabelled] == -1).all()
        assert np.isnan(batch.labels["depth"][unlabelled]).all()
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert (seen == sorted(seen)) == (seed is None)


def test_pooled_batches_are_of_like_size() -> None:
    source = made(np.ones(130, int), "protein")
    batches = list(source.batches(3))
    assert [int((b.protein >= 0).sum()) for b in batches] == [65, 65]
    assert all(b.slots == len(b.protein) == 65 for b in batches)


def test_the_longest_protein_fits() -> None:
    assert shape(np.array([5000, 10]), 4096)[0] == 5000
    assert shape(np.array([50, 10]), 4096)[0] == 60

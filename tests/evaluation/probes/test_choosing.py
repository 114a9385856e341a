"""Epochs are chosen for each head on its own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from protlm_jax.evaluation.probes.choosing import Race, spearman


def test_spearman_is_scipys() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 9, 50).astype(float)  # with ties
    values = truth + generator.normal(0, 3, size=(2, 3, 50)).round()
    values[1, 2] = 4.0  # says nothing
    found = spearman(values, truth)
    for seed in range(2):
        for index in range(3 - seed):
            expected = spearmanr(values[seed, index], truth)[0]
            assert found[seed, index] == pytest.approx(expected, abs=1e-12)
    assert found[1, 2] == 0.0


def test_each_head_stops_and_keeps_its_best() -> None:
    curves = np.array(
        [[0.1, 0.5, 0.4, 0.4, 0.9], [0.1, 0.2, 0.2, 0.3, 0.3], [0.9, 0.7, 0.2, 0.3, 0]]
    )

    def at(epoch: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        scores = {"q3": curves[None, :, epoch] + 0.05, "q8": curves[None, :, epoch] - 0.05}
        return {"kernel": np.full((1, 3, 2), float(epoch))}, scores

    race = Race(*at(0), patience=2)
    for epoch in range(1, 5):
        race.judge(*at(epoch), epoch)
    # the first never sees its 0.9: it had stopped after epoch 3
    assert race.epochs.tolist() == [[3, 4, 3]] and race.best_epoch.tolist() == [[1, 3, 1]]
    assert race.running.tolist() == [[False, True, False]]
    np.testing.assert_array_equal(race.best["kernel"][0, :, 0], [1.0, 3.0, 1.0])
    np.testing.assert_allclose(race.valid["q3"], [[0.55, 0.35, 0.75]])

"""Epochs are chosen for each head on its own."""

from __future__ import annotations

import numpy as np

from protlm_jax.evaluation.probes.training import EarlyStopping


def test_each_head_stops_and_keeps_its_best() -> None:
    curves = np.array(
        [[0.1, 0.5, 0.4, 0.4, 0.9], [0.1, 0.2, 0.2, 0.3, 0.3], [0.9, 0.7, 0.2, 0.3, 0]]
    )

    def at(epoch: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        scores = {"q3": curves[None, :, epoch] + 0.05, "q8": curves[None, :, epoch] - 0.05}
        return {"kernel": np.full((1, 3, 2), float(epoch))}, scores

    stopping = EarlyStopping(*at(0), patience=2)
    for epoch in range(1, 5):
        stopping.update(*at(epoch), epoch)
    # the first never sees its 0.9: it had stopped after epoch 3
    assert stopping.epochs.tolist() == [[3, 4, 3]] and stopping.best_epoch.tolist() == [[1, 3, 1]]
    assert stopping.running.tolist() == [[False, True, False]]
    np.testing.assert_array_equal(stopping.best["kernel"][0, :, 0], [1.0, 3.0, 1.0])
    np.testing.assert_allclose(stopping.valid["q3"], [[0.55, 0.35, 0.75]])

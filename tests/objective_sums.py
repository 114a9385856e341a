"""Scores of objectives by NumPy in float64, and models whose predictions are given."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest


class Given:
    """A model whose logits are its parameters: gradients can be read off."""

    def apply(self, variables: Any, batch: Any, deterministic: bool, rngs: Any) -> jax.Array:
        return variables["params"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def assert_target_sums(
    score: Any, logits: np.ndarray, targets: np.ndarray, asked: np.ndarray
) -> None:
    """The loss and the accuracy of a score, over the positions of `asked`."""
    chosen = np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]
    assert float(score.loss_sum) == pytest.approx(-chosen[asked].sum(), rel=1e-5)
    assert float(score.weight_sum) == asked.sum() == float(score.metrics["asked/count"])
    hits = logits.argmax(-1) == targets
    assert float(score.metrics["asked/accuracy_sum"]) == hits[asked].sum()


def assert_hidden_sums(
    score: Any, logits: np.ndarray, targets: np.ndarray, hidden: np.ndarray, amino: np.ndarray
) -> None:
    """Metrics at hidden residues of the 20, with softmax over these alone."""
    order = np.sort(amino)
    hidden = hidden & np.isin(targets, order)
    among = log_softmax(logits[..., order])[hidden]
    columns = np.searchsorted(order, targets[hidden])
    assert float(score.metrics["hidden/count"]) == hidden.sum()
    nll = -among[np.arange(len(columns)), columns].sum()
    assert float(score.metrics["hidden/nll_sum"]) == pytest.approx(nll, rel=1e-5)
    assert float(score.metrics["hidden/accuracy_sum"]) == (among.argmax(-1) == columns).sum()

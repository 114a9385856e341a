"""The linear probe finds the optimum of its loss, checked against an independent minimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probes import linear


def labelled(count: int = 3000, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Strongly correlated features and labels drawn from a softmax of them; a tenth unlabelled."""
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(width, width)) * np.logspace(0, -2, width)[:, None]
    x = (generator.normal(size=(count, width)) @ mix).astype(np.float32)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    scores = x @ generator.normal(size=(width, 3))
    y = np.argmax(scores + generator.gumbel(size=scores.shape), axis=1).astype(np.int32)
    y[::10] = -1
    return x, y


def test_reaches_the_optimum_that_torch_finds() -> None:
    x, y = labelled()
    probe = linear.fit(x, y, 3, l2=1e-2)
    kept = torch.tensor(y >= 0)
    features, labels = torch.tensor(x)[kept].double(), torch.tensor(y)[kept].long()
    kernel = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        cross_entropy = torch.nn.functional.cross_entropy(features @ kernel + bias, labels)
        return cross_entropy + 0.5 * 1e-2 * kernel.square().sum()

    optimizer = torch.optim.LBFGS([kernel, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    best = loss().item()
    with torch.no_grad():
        kernel.copy_(torch.tensor(probe.kernel))
        bias.copy_(torch.tensor(probe.bias))
    assert loss().item() == pytest.approx(best, rel=1e-5)


def test_unlabelled_residues_do_not_matter() -> None:
    x, y = labelled()
    changed = x.copy()
    changed[y < 0] = 5.0
    first, second = linear.fit(x, y, 3), linear.fit(changed, y, 3)
    np.testing.assert_allclose(first.kernel, second.kernel, atol=1e-3)


def test_a_dead_feature_is_harmless() -> None:
    x, y = labelled()
    with_dead = np.concatenate([x, np.zeros((len(x), 1), np.float32)], axis=1)
    probe = linear.fit(with_dead, y, 3)
    assert np.isfinite(probe.kernel).all()
    assert np.mean(probe.predict(with_dead) == linear.fit(x, y, 3).predict(x)) > 0.99


def test_no_labels_is_an_error() -> None:
    with pytest.raises(ProtlmError, match="no labelled residue"):
        linear.fit(np.ones((4, 2), np.float32), np.full(4, -1, np.int32), 3)

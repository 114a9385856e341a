"""Ridge regression: scikit-learn's solution, of the penalty that validation rows choose."""

from __future__ import annotations

import numpy as np
import pytest
from probe_sources import ArraySource
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes.ridge import PENALTIES
from protlm_jax.evaluation.probes.training import train

WIDTH = 30
NUMBER = Target("stability", "number")
CLASS = Target("stable", "classes", ("no", "yes"))


def made(seed: int, count: int) -> ArraySource:
    """Two inputs, of which the second knows nothing; few rows and much noise: a penalty helps."""
    generator = np.random.default_rng(seed)
    x = generator.normal(2.0, 3.0, size=(2, count, WIDTH)).astype(np.float32)
    slope = np.random.default_rng(9).normal(size=WIDTH) / 8
    y = (40 + x[0] @ slope + 3 * generator.normal(size=count)).astype(np.float32)
    stable = (y > 42).astype(np.int8)
    y[::6] = np.nan
    labels = {"stability": y, "stable": stable}
    return ArraySource(x, np.arange(count + 1), labels, "protein", rows=32)


def test_equals_scikit_learn_at_the_best_penalty() -> None:
    source, valid = made(0, 90), made(1, 60)
    found = train("linear", (NUMBER, CLASS), source, valid, seeds=(4, 5))
    mean, deviation = source.features.mean(1), source.features.std(1)
    known, asked = (np.isfinite(s.labels["stability"]) for s in (source, valid))
    answers = np.concatenate(
        [
            found.predict(batch)["stability"][0, :, batch.protein >= 0, 0]
            for batch in valid.batches(None)
        ]
    ).T
    for index in range(2):
        x, x_valid = ((s.features[index] - mean[index]) / deviation[index] for s in (source, valid))
        y = source.labels["stability"][known]
        scores = []
        for penalty in PENALTIES:
            model = Ridge(alpha=penalty * known.sum()).fit(x[known], y)
            expected = model.predict(x_valid)
            scores.append(spearmanr(expected[asked], valid.labels["stability"][asked])[0])
            if penalty == found.penalties["stability"][0, index]:
                np.testing.assert_allclose(answers[index], expected, atol=2e-3)
        assert found.penalties["stability"][0, index] == PENALTIES[int(np.argmax(scores))]
        assert found.valid["stability"][0, index] == pytest.approx(max(scores), abs=1e-6)
    assert found.valid["stability"][0, 0] > 0.4 > found.valid["stability"][0, 1]
    assert {t.name for t in found.targets} == {"stability", "stable"}
    assert found.valid["stable"][0, 0] > 0.55

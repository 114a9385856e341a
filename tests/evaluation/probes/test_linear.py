"""Linear heads equal scikit-learn's at the same penalty, of proteins and of residues."""

from __future__ import annotations

import numpy as np
import pytest
from probe_sources import ArraySource
from sklearn.linear_model import LogisticRegression, Ridge

from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import linear
from protlm_jax.evaluation.probes.moments import CLIP
from protlm_jax.evaluation.probes.training import train

WIDTH = 30
TARGETS = (
    Target("stability", "number"),
    Target("stable", "classes", ("no", "yes")),
    Target("fold", "classes", ("a", "b", "c", "d", "never")),
)


def made(seed: int, count: int, residues: bool) -> ArraySource:
    """Two inputs, the second without knowledge; few rows and much noise: a penalty helps."""
    generator = np.random.default_rng(seed)
    x = generator.normal(2.0, 3.0, size=(2, count, WIDTH)).astype(np.float32)
    x[:, :, 1:5] = x[:, :, :1] + 0.01 * x[:, :, 1:5]  # nearly the same
    fixed = np.random.default_rng(9)
    y = (40 + x[0] @ fixed.normal(size=WIDTH) / 8 + 3 * generator.normal(size=count)).astype("f4")
    scores = x[0] @ fixed.normal(size=(WIDTH, 4)) / 8 + generator.gumbel(size=(count, 4))
    labels = {
        "stability": y,
        "stable": (y > 42).astype(np.int8),
        "fold": scores.argmax(1).astype(np.int8),
    }
    for i, (name, values) in enumerate(labels.items()):
        values[i::6] = np.nan if name == "stability" else -1
    offsets = np.arange(0, count + 1, 5 if residues else 1)
    return ArraySource(x, offsets, labels, "residue" if residues else "protein", rows=64)


@pytest.mark.parametrize("residues", [False, True])
def test_equals_scikit_learn_at_the_best_penalty(residues: bool) -> None:
    source, valid = made(0, 400, residues), made(1, 100, residues)
    found = train("linear", TARGETS, source, valid, seeds=(4, 5))
    assert found.seeds == (4,)  # another seed has the same optimum
    mean, deviation = source.features.mean(1), source.features.std(1)
    for index in range(2):
        x, x_valid = (
            np.clip((s.features[index] - mean[index]) / deviation[index], -CLIP, CLIP)
            for s in (source, valid)
        )
        for target in TARGETS:
            y, y_valid = (s.labels[target.name] for s in (source, valid))
            known, asked = (y == y) & (y != -1), (y_valid == y_valid) & (y_valid != -1)
            x_known, y_known = x[known], y[known]
            readout = found.variables["params"]["readout"]
            kernel, bias = (readout[f"{target.name}_{p}"][0, index] for p in ("kernel", "bias"))
            ours, penalty = x @ kernel + bias, found.penalties[target.name][0, index]
            losses = []
            for tried in linear.PENALTIES[target.kind]:
                if target.kind == "number":
                    center, unit = found.units[target.name]
                    model = Ridge(alpha=tried * len(x_known)).fit(
                        x_known, (y_known - center) / unit
                    )
                    asked_y = (y_valid[asked] - center) / unit
                    losses.append(np.mean((model.predict(x_valid[asked]) - asked_y) ** 2))
                    if tried == penalty:
                        np.testing.assert_allclose(ours[:, 0], model.predict(x), atol=1e-4)
                    continue
                model = LogisticRegression(C=1 / (tried * len(x_known)), tol=1e-8, max_iter=20_000)
                model.fit(x_known, y_known)
                losses.append(cross_entropy(model.predict_proba(x_valid[asked]), y_valid[asked]))
                if tried == penalty:
                    expected = cross_entropy(model.predict_proba(x_known), y_known)
                    logits = ours[known] - ours[known].max(1, keepdims=True)
                    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                    assert cross_entropy(share, y_known) == pytest.approx(expected, abs=1e-4)
                    assert np.mean(ours.argmax(1) == model.predict(x)) >= 0.999
            assert found.losses[target.name][0, index] == pytest.approx(min(losses), abs=1e-3)
            best = linear.PENALTIES[target.kind][int(np.argmin(losses))]
            assert penalty == best or np.ptp(np.sort(losses)[:2]) < 1e-4
    assert found.valid["stability"][0, 0] > 0.4 > found.valid["stability"][0, 1]


def cross_entropy(share: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(share[np.arange(len(truth)), truth.astype(int)]).mean())

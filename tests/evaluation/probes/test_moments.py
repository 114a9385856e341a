"""What is measured on training rows, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from probe_sources import ArraySource

from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import moments

TARGETS = (Target("q3", "classes", ("H", "E", "C")), Target("depth", "number"))


def made() -> ArraySource:
    """Two inputs far from zero, one feature constant, one a sum of two others."""
    generator = np.random.default_rng(0)
    x = generator.normal(0.0, [[[1.0]], [[5.0]]], size=(2, 700, 4)).astype(np.float32)
    x[..., 2] = x[..., 0] + x[..., 1]
    x += np.float32(1000.0)
    x[..., 3] = 7.0
    q3 = np.where(np.arange(700) % 3 == 0, -1, 1).astype(np.int8)
    depth = np.where(np.arange(700) % 2 == 0, np.nan, 20 + 3 * generator.normal(size=700))
    labels = {"q3": q3, "depth": depth.astype(np.float32)}
    return ArraySource(x, np.array([0, 90, 100, 300, 500, 620, 700]), labels, "residue", rows=256)


def test_moments_are_those_of_the_rows() -> None:
    source = made()
    found = moments.measure(source, TARGETS, 0, covariance=True)
    x = source.features.astype(np.float64)
    np.testing.assert_allclose(found.standard.mean, x.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.standard.scale[:, :3], x.std(1)[:, :3], rtol=1e-4)
    assert np.isinf(found.standard.scale[:, 3]).all()
    assert found.covariance is not None
    for input_, covariance in zip(x, found.covariance, strict=True):
        expected = np.corrcoef(input_[:, :3].T)
        np.testing.assert_allclose(covariance[:3, :3], expected, atol=1e-4)
        assert not covariance[3].any()
    depth = source.labels["depth"]
    assert found.units["depth"] == pytest.approx((np.nanmean(depth), np.nanstd(depth)), rel=1e-5)
    batches = len(list(source.batches(0)))
    assert found.labelled["q3"] == pytest.approx((source.labels["q3"] >= 0).sum() / batches)
    plain = moments.measure(source, TARGETS, 0)
    np.testing.assert_allclose(plain.standard.scale, found.standard.scale, rtol=1e-5)


def test_standard_clips_and_clears() -> None:
    source = made()
    standard = moments.measure(source, TARGETS, 0).standard
    features = source.features[:, :3].copy()
    features[:, 1, 0], features[:, 2] = 1e9, np.nan
    out = np.asarray(standard.apply(features, np.array([0, 0, -1])))
    assert (out[:, 1, 0] == moments.CLIP).all() and (out[..., 3] == 0).all()
    assert (out[:, 2] == 0).all() and np.isfinite(out).all()


def test_a_sample_of_many_rows_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "SAMPLE", 400)
    read = []
    source = made()
    whole = source.batches

    class Counting(ArraySource):
        def batches(self, epoch_seed: int | None):  # type: ignore[no-untyped-def]
            for batch in whole(epoch_seed):
                read.append(int((batch.protein >= 0).sum()))
                yield batch

    counting = Counting(source.features, source.offsets, source.labels, "residue", rows=256)
    found = moments.measure(counting, TARGETS, 0)
    assert 400 <= sum(read) < 700
    np.testing.assert_allclose(found.standard.mean, source.features.mean(1), rtol=2e-3)

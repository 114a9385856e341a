"""Similarities of points against the papers' definitions and shapes of known dimension."""

from __future__ import annotations

import numpy as np
import pytest

from protlm_jax.evaluation.depth.similarity import (
    effective_rank,
    intrinsic_dimension,
    linear_cka,
    similarities,
)


def test_cka_is_the_papers_ratio_and_does_not_see_rotation_or_scale() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(50, 8)) + 3, rng.normal(size=(50, 8))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    found = linear_cka(np.stack([x, 7 * x @ turn - 1, z]))
    a, b = x - x.mean(0), z - z.mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert found[0, 2] == pytest.approx(expected) and found[2, 0] == pytest.approx(expected)
    assert found[0, 1] == pytest.approx(1) and np.diag(found) == pytest.approx(1)
    assert found[0, 2] < 0.5


def test_the_effective_rank_counts_equal_directions() -> None:
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(64, 5)))[0]
    directions -= directions.mean(0)
    directions = np.linalg.qr(directions)[0]  # centred and orthonormal
    assert effective_rank(directions @ np.eye(5, 20)) == pytest.approx(5)
    shares = np.array([0.7, 0.2, 0.1])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(4 + directions[:, :3] * shares) == pytest.approx(expected)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_twonn_finds_the_dimension_of_a_curved_sheet(dimension: int) -> None:
    rng = np.random.default_rng(2)
    flat = rng.random((1500, dimension))
    bent = np.concatenate([flat, np.sin(2 * flat), flat**2, np.zeros((1500, 20))], axis=1)
    assert intrinsic_dimension(bent) == pytest.approx(dimension, rel=0.12)


def test_points_that_are_all_the_same_have_no_dimension() -> None:
    """As residues shown as <mask> are before the first block of an ESM-2."""
    streams = np.random.default_rng(3).normal(size=(3, 30, 4))
    streams[0] = 0
    found = {name: values for name, (_, values) in similarities(streams).items()}
    assert np.isnan(found["effective_rank"][0]) and np.isnan(found["intrinsic_dimension"][0])
    assert np.isnan(found["cka"][0]).all() and np.isnan(found["cka"][:, 0]).all()
    assert (
        np.isfinite(found["cka"][1:, 1:]).all() and np.isfinite(found["effective_rank"][1:]).all()
    )


def test_points_that_coincide_are_taken_once() -> None:
    points = np.random.default_rng(4).normal(size=(200, 3))
    assert intrinsic_dimension(np.concatenate([points, points])) == intrinsic_dimension(points)

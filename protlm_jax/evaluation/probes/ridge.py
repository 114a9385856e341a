"""Ridge regression in closed form, for linear heads of numbers.

One pass over the training features sums their products for all inputs; one eigendecomposition of
each input's covariance gives the optimum for every penalty (scikit-learn's `Ridge` would need each
input in memory, once per penalty). Minimises mean squared error + penalty |w|^2 on standardised
features and numbers; scikit-learn's alpha is rows * penalty.

Letters: N inputs, T rows, D features, A penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.features import FeatureSource
from protlm_jax.evaluation.probes.moments import Moments, Standard
from protlm_jax.evaluation.probes.trained import TrainedHeads, validate

PENALTIES = tuple(10.0**power for power in range(-5, 3))


class Sums(NamedTuple):
    """Over labelled rows, float64: rows [], x [N, D], x x' [N, D, D], x y [N, D], y []."""

    rows: Any
    x: Any
    xx: Any
    xy: Any
    y: Any


def fit(
    targets: Sequence[Target],
    source: FeatureSource,
    valid: FeatureSource,
    moments: Moments,
    seeds: tuple[int, ...],
) -> TrainedHeads:
    """Linear heads of numbers, each with the penalty of the best Spearman correlation on `valid`.

    Raises:
        ProtlmError: a target has no validation label.
    """
    targets = tuple(targets)
    sums: dict[str, Sums] = {}
    for batch in source.batches(None):
        for target in targets:
            mean, deviation = moments.units[target.name]
            numbers = ((batch.labels[target.name] - mean) / deviation).astype(np.float32)
            more = _sums(moments.standard, batch.features, batch.protein, numbers)
            more = jax.tree.map(lambda s: np.asarray(s, np.float64), more)
            old = sums.get(target.name)
            sums[target.name] = jax.tree.map(np.add, old, more) if old else more
    every = {name: _solutions(s) for name, s in sums.items()}
    tried = heads.by_part(targets, lambda t, part: every[t.name][part])
    variables = {"params": {"readout": tried}}
    scores = validate(heads.Linear(targets), variables, moments.standard, valid)
    best = {name: values.argmax(axis=0) for name, values in scores.items()}
    inputs = np.arange(source.num_inputs)
    chosen = heads.by_part(targets, lambda t, part: every[t.name][part][best[t.name], inputs][None])
    one = np.ones((1, source.num_inputs), int)
    return TrainedHeads(
        head="linear",
        targets=targets,
        seeds=seeds,
        variables={"params": {"readout": chosen}},
        standard=moments.standard,
        units={t.name: moments.units[t.name] for t in targets},
        epochs=one,
        best_epoch=one,
        valid={name: values[best[name], inputs][None] for name, values in scores.items()},
        penalties={name: np.array(PENALTIES)[index][None] for name, index in best.items()},
    )


@jax.jit
def _sums(standard: Standard, features: jax.Array, protein: jax.Array, numbers: jax.Array) -> Sums:
    there = jnp.isfinite(numbers) & (protein >= 0)
    y = jnp.where(there, numbers, 0.0)
    x = jnp.where(there[None, :, None], standard.apply(features, protein), 0.0)
    products = jnp.einsum("NTD,NTE->NDE", x, x, precision="highest")
    xy = jnp.einsum("NTD,T->ND", x, y, precision="highest")
    return Sums(jnp.sum(there), jnp.sum(x, axis=1), products, xy, jnp.sum(y))


def _solutions(sums: Sums) -> dict[str, np.ndarray]:
    """Kernels [A, N, D, 1] and biases [A, N, 1], float32, for every penalty."""
    x, y = sums.x / sums.rows, sums.y / sums.rows
    covariance = sums.xx / sums.rows - x[:, :, None] * x[:, None, :]
    values, vectors = np.linalg.eigh(covariance)
    slope = np.einsum("NDE,ND->NE", vectors, sums.xy / sums.rows - x * y)
    shrunk = slope / (np.maximum(values, 0.0) + np.array(PENALTIES)[:, None, None])
    kernels = np.einsum("NDE,ANE->AND", vectors, shrunk)
    biases = y - np.einsum("AND,ND->AN", kernels, x)
    return {
        "kernel": kernels[..., None].astype(np.float32),
        "bias": biases[..., None].astype(np.float32),
    }

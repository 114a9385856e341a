"""Ridge regression in closed form: what a single matrix reads of numbers.

One pass over the training features sums their products for all inputs; one eigendecomposition of
each input's covariance then gives the optimum for every penalty. Minimises mean squared error +
penalty |w|^2 on standardised features and numbers (scikit-learn's alpha is rows times penalty).

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
from protlm_jax.evaluation.probes.batches import FeatureSource
from protlm_jax.evaluation.probes.choosing import score
from protlm_jax.evaluation.probes.moments import Moments, Standard
from protlm_jax.evaluation.probes.trained import TrainedHeads

PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Tried on validation proteins, for each input of its own."""


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
    """Linear heads for numbers, each with the penalty that is best on `valid`.

    Args:
        targets: numbers.
        source: training rows, read once.
        valid: rows that choose, by Spearman's correlation.
        moments: of `source`.
        seeds: to be told; nothing is random.

    Raises:
        ProtlmError: when a target has no validation label.
    """
    sums: dict[str, Sums] = {}
    for batch in source.batches(None):
        for target in targets:
            if (found := batch.labels.get(target.name)) is None:
                continue
            mean, deviation = moments.units[target.name]
            numbers = ((found - mean) / deviation).astype(np.float32)
            more = _sums(moments.standard, batch.features, batch.protein, numbers)
            more = jax.tree.map(lambda s: np.asarray(s, np.float64), more)
            old = sums.get(target.name)
            sums[target.name] = jax.tree.map(np.add, old, more) if old else more
    module = heads.Linear(tuple(targets))
    every = {name: _solutions(s) for name, s in sums.items()}
    tried = {
        f"{heads.key(t.name)}_{part}": every[t.name][part] for t in targets for part in heads.PARTS
    }
    scores = score(module, {"params": {"readout": tried}}, moments.standard, valid)
    best = {name: values.argmax(axis=0) for name, values in scores.items()}
    inputs = np.arange(source.num_inputs)
    chosen = {
        f"{heads.key(t.name)}_{part}": every[t.name][part][best[t.name], inputs][None]
        for t in targets
        for part in heads.PARTS
    }
    one = np.ones((1, source.num_inputs), int)
    return TrainedHeads(
        head="linear",
        targets=tuple(targets),
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
    asked = jnp.isfinite(numbers) & (protein >= 0)
    y = jnp.where(asked, numbers, 0.0)
    x = jnp.where(asked[None, :, None], standard.apply(features, protein), 0.0)
    products = jnp.einsum("NTD,NTE->NDE", x, x, precision="highest")
    xy = jnp.einsum("NTD,T->ND", x, y, precision="highest")
    return Sums(jnp.sum(asked), jnp.sum(x, axis=1), products, xy, jnp.sum(y))


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

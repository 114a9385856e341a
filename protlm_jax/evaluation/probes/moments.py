"""Scales of features and of numbers, measured on training rows before heads learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target, known
from protlm_jax.evaluation.probes.features import FeatureSource

# Rows measured, of proteins drawn at random: the error of a standard deviation is 0.3 % of it, and
# a model that runs once per epoch need not run once more.
SAMPLE = 65_536
CLIP = 10.0  # standard deviations


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Standard:
    """Mean and scale [N, D] float32 of each input's features; the scale of a constant is inf."""

    mean: np.ndarray
    scale: np.ndarray

    def apply(self, features: jax.Array, protein: jax.Array) -> jax.Array:
        """[N, T, D] standardised and clipped; 0 where there is no protein."""
        x = (features - self.mean[:, None]) / self.scale[:, None]
        return jnp.where(protein[None, :, None] >= 0, jnp.clip(x, -CLIP, CLIP), 0.0)


@dataclass(frozen=True)
class Moments:
    """Moments of training rows.

    Attributes:
        covariance: [N, D, D] float64 of standardised features; None unless `covariance` is set.
        units: mean and standard deviation of each number; (0, 1) for classes.
        labelled: target -> labels in a batch on average.
        batches: of an epoch; None if there are more than were read.
    """

    standard: Standard
    covariance: np.ndarray | None
    units: dict[str, tuple[float, float]]
    labelled: dict[str, float]
    batches: int | None


def measure(
    source: FeatureSource, targets: Sequence[Target], seed: int, *, covariance: bool = False
) -> Moments:
    """Reads batches of an epoch until there are SAMPLE rows.

    Raises:
        ProtlmError: there is no protein, no label of a target, or a feature is not finite.
    """
    shift: np.ndarray | None = None
    total = squares = np.zeros(())
    labels: dict[str, list[np.ndarray]] = {target.name: [] for target in targets}
    rows = batches = 0
    for batch in source.batches(seed):
        if shift is None:  # near the mean, so that squares of what is left lose no digits
            with np.errstate(invalid="ignore"):
                shift = batch.features[:, batch.protein >= 0].mean(axis=1, dtype=np.float64)
        sums = _sums(batch.features, batch.protein, shift, covariance)
        total = total + np.asarray(sums[0], np.float64)
        squares = squares + np.asarray(sums[1], np.float64)
        for target in targets:
            found = batch.labels[target.name]
            labels[target.name].append(found[known(target, found)])
        rows, batches = rows + int((batch.protein >= 0).sum()), batches + 1
        if rows >= SAMPLE:
            break
    if shift is None:
        raise ProtlmError("no training proteins: heads have nothing to learn from")
    offset, second = total / rows, squares / rows
    variance = (np.diagonal(second, axis1=1, axis2=2) if covariance else second) - offset**2
    if not np.isfinite(variance).all():
        bad = sorted(set(np.nonzero(~np.isfinite(variance))[0].tolist()))
        raise ProtlmError(
            f"features of input(s) {bad} are not finite: the model itself gives nan or infinity; "
            "try a wider dtype"
        )
    mean, scale = shift + offset, np.sqrt(np.maximum(variance, 0.0))
    # A feature that is constant in training becomes 0, not amplified noise.
    scale = np.where(scale < 1e-6 * np.maximum(1.0, np.abs(mean)), np.inf, scale)
    spread = None
    if covariance:
        spread = second - offset[:, :, None] * offset[:, None, :]
        spread = spread / scale[:, :, None] / scale[:, None, :]
    standard = Standard(mean.astype(np.float32), scale.astype(np.float32))
    values = {target: np.concatenate([np.empty(0), *labels[target.name]]) for target in targets}
    units = {target.name: _unit(target, found) for target, found in values.items()}
    labelled = {target.name: len(found) / batches for target, found in values.items()}
    return Moments(standard, spread, units, labelled, batches if rows < SAMPLE else None)


@partial(jax.jit, static_argnames="covariance")
def _sums(
    features: jax.Array, protein: jax.Array, shift: jax.Array, covariance: bool
) -> tuple[jax.Array, jax.Array]:
    x = jnp.where(protein[None, :, None] >= 0, features - shift[:, None], 0.0)
    if covariance:
        square = jnp.einsum("NTD,NTE->NDE", x, x, precision="highest")
    else:
        square = jnp.sum(x * x, axis=1)
    return jnp.sum(x, axis=1), square


def _unit(target: Target, values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        raise ProtlmError(
            f"no training label of {target.name!r}: leave this target out or give its labels"
        )
    if target.kind == "classes":
        return 0.0, 1.0
    return float(values.mean()), float(values.std()) or 1.0

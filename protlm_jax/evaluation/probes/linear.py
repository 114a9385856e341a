"""Linear heads at their optimum, with penalties of the lowest validation loss.

Numbers: ridge regression, solved for every penalty by one eigendecomposition. Minimises the mean
squared error + penalty |w|^2; scikit-learn's alpha is rows * penalty.

Classes: multinomial logistic regression by L-BFGS on all rows. Minimises the mean cross entropy +
penalty / 2 |w|^2; scikit-learn's C is 1 / (rows * penalty). Coordinates are scaled by the curvature
of the loss at w = 0, without which it would take ten times as many passes. Penalties are tried,
from one near features / rows, to weaker ones while validation loss falls, or else to stronger ones,
each from the solution before.

Features and numbers are standardised. The penalty of each input and target is the one with the
lowest loss on validation proteins.

Letters: N inputs, R rows, D features, C classes (1 for a number), A penalties.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from protlm_jax.evaluation.engine import float32_products
from protlm_jax.evaluation.probe_data.base import Target, known
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.features import FeatureSource, memory_budget
from protlm_jax.evaluation.probes.moments import Moments, Standard
from protlm_jax.evaluation.probes.trained import (
    TrainedHeads,
    require_label,
    require_rows,
    validate,
)
from protlm_jax.process.progress import Bar

PENALTIES = {
    "number": tuple(10.0**power for power in range(-5, 3)),
    "classes": tuple(10.0**power for power in range(-6, 2)),
}
_SAMPLE = 1 << 14  # rows on which the first penalty is solved before all
_STEPS = 500  # of L-BFGS at most
# Where L-BFGS ends: relative fall of the loss in a step, largest slope in scaled coordinates.
_ROUGH = {"ftol": 1e-5, "gtol": 1e-3}
_FINE = {"ftol": 3e-8, "gtol": 1e-5}
_BLOCK = 1 << 16  # rows whose products are summed in float32


class Data(NamedTuple):
    """Labelled rows of a split for one input: x [R, D] standardised, target -> labels [R]."""

    x: np.ndarray
    labels: dict[str, np.ndarray]


class Solution(NamedTuple):
    """Kernel [D, C] and bias [C] of a target, and the penalty []."""

    kernel: np.ndarray
    bias: np.ndarray
    penalty: np.ndarray


def fit(
    targets: tuple[Target, ...],
    source: FeatureSource,
    valid: FeatureSource,
    moments: Moments,
    seeds: tuple[int, ...],
    progress: bool = False,
) -> TrainedHeads:
    """Linear heads of all targets.

    Raises:
        ProtlmError: a target has no validation label.
    """
    assert moments.covariance is not None
    solved: list[list[Solution]] = []
    pairs = zip(*(_by_input(s, targets, moments) for s in (source, valid)), strict=True)
    bar = Bar(pairs, "linear", source.num_inputs, show=progress)
    for covariance, (train, choose) in zip(moments.covariance, bar, strict=True):
        solved.append([
            _ridge(target, train, choose) if target.kind == "number"
            else _logistic(target, train, choose, covariance)
            for target in targets
        ])  # fmt: skip
    found = {
        t.name: Solution(*map(np.stack, zip(*of_target, strict=True)))
        for t, of_target in zip(targets, zip(*solved, strict=True), strict=True)
    }
    readout = heads.by_part(targets, lambda t, part: getattr(found[t.name], part)[None])
    variables = {"params": {"readout": jax.tree.map(np.float32, readout)}}
    units = {t.name: moments.units[t.name] for t in targets}
    scores, losses = validate(heads.Linear(targets), variables, moments.standard, units, valid)
    one = np.ones((1, source.num_inputs), int)
    return TrainedHeads(
        head="linear",
        targets=targets,
        seeds=seeds,
        variables=variables,
        standard=moments.standard,
        units=units,
        epochs=one,
        best_epoch=one,
        valid=scores,
        losses=losses,
        penalties={t.name: found[t.name].penalty[None] for t in targets},
    )


def _by_input(
    source: FeatureSource, targets: tuple[Target, ...], moments: Moments
) -> Iterator[Data]:
    """The rows of each input; one pass reads as many inputs as an eighth of memory holds."""
    rows = int(source.sizes.sum())
    most = max(1, memory_budget() // 2 // (4 * rows * source.width))
    for first in range(0, source.num_inputs, most):
        part = slice(first, min(first + most, source.num_inputs))
        standard = Standard(moments.standard.mean[part], moments.standard.scale[part])
        parts: list[np.ndarray] = []
        labels: dict[str, list[np.ndarray]] = {target.name: [] for target in targets}
        for batch in source.batches(None):
            there = np.zeros(len(batch.protein), bool)
            for target in targets:
                require_rows(target, batch)
                there |= known(target, batch.labels[target.name])
            x = _standardised(standard, batch.features[part], batch.protein)
            parts.append(np.asarray(x)[:, there])
            for target in targets:
                mean, deviation = moments.units[target.name]
                found = batch.labels[target.name][there]
                found = (found - mean) / deviation if target.kind == "number" else found
                labels[target.name].append(found)
        together = {name: np.concatenate(values) for name, values in labels.items()}
        for target in targets:
            require_label(target, known(target, together[target.name]).sum())
        for index in range(part.stop - part.start):
            yield Data(np.concatenate([x[index] for x in parts]), together)


@jax.jit
def _standardised(standard: Standard, features: jax.Array, protein: jax.Array) -> jax.Array:
    return standard.apply(features, protein)


def _ridge(target: Target, train: Data, valid: Data) -> Solution:
    x, y = _known(target, train)
    mean, offset = x.mean(axis=0, dtype=np.float64), y.mean(dtype=np.float64)
    covariance = np.zeros((x.shape[1], x.shape[1]))
    slope = np.zeros(x.shape[1])
    for first in range(0, len(x), _BLOCK):
        rows = x[first : first + _BLOCK] - mean.astype(np.float32)
        covariance += rows.T @ rows
        slope += rows.T @ (y[first : first + _BLOCK] - offset).astype(np.float32)
    values, vectors = np.linalg.eigh(covariance / len(x))
    penalties = np.array(PENALTIES["number"])
    turned = (vectors.T @ slope / len(x))[:, None]
    kernels = vectors @ (turned / (np.maximum(values, 0.0)[:, None] + penalties))  # [D, A]
    biases = offset - mean @ kernels
    x, y = _known(target, valid)
    losses = np.mean((x @ kernels + biases - y[:, None]) ** 2, axis=0)
    best = int(losses.argmin())
    return Solution(kernels[:, best, None], biases[best, None], penalties[best])


def _known(target: Target, data: Data) -> tuple[np.ndarray, np.ndarray]:
    labels = data.labels[target.name]
    there = known(target, labels)
    return (data.x, labels) if there.all() else (data.x[there], labels[there])


def _logistic(target: Target, train: Data, valid: Data, covariance: np.ndarray) -> Solution:
    data, asked = ((jnp.asarray(x), jnp.asarray(y)) for x, y in (
        _known(target, train), _known(target, valid)))  # fmt: skip
    classes = len(target.classes)
    counts = np.bincount(np.asarray(data[1]), minlength=classes)
    share = (counts + 0.5) / (counts + 0.5).sum()
    curvature = share * (1 - share)  # of the loss at w = 0, in units of the covariance
    values, vectors = np.linalg.eigh(covariance)
    # Two classes have one row of weights in scikit-learn, and two half as large here.
    factor = 2 if classes == 2 else 1

    def solve(start: Solution, penalty: float, end: dict[str, float], every: int = 1) -> Solution:
        steep = np.maximum(values, 0.0)[:, None] * curvature + factor * penalty
        scales = Scales(vectors, steep**-0.5, curvature**-0.5)
        rows = (data[0][::every], data[1][::every]) if every > 1 else data
        solved = _minimised(rows, scales, factor * penalty, start.kernel, start.bias, end)
        return Solution(*solved, np.asarray(penalty))

    def tried(start: Solution, at: int) -> tuple[float, int, Solution]:
        found = solve(start, PENALTIES["classes"][at], _ROUGH)
        loss = _losses(found.kernel, found.bias, *asked)[0].mean(dtype=np.float64)
        return float(loss), at, found

    last = len(PENALTIES["classes"]) - 1
    at = int(np.clip(round(np.log10(len(values) / len(data[1]))) + 6, 0, last))
    start = Solution(np.zeros((len(values), classes)), np.log(share), np.zeros(()))
    every = len(data[1]) // _SAMPLE
    best = tried(solve(start, PENALTIES["classes"][at], _ROUGH, every) if every > 1 else start, at)
    for step in (-1, 1):
        moved = False
        while 0 <= best[1] + step <= last:
            new = tried(best[2], best[1] + step)
            if new[0] >= best[0]:
                break
            best, moved = new, True
        if moved:
            break
    return solve(best[2], float(best[2].penalty), _FINE)


class Scales(NamedTuple):
    """Coordinates v [D + 1, C]: kernel = vectors @ (kernel * v[:D]), bias = bias * v[D]."""

    vectors: np.ndarray  # [D, D], of the features' covariance
    kernel: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]


def _minimised(
    data: tuple[jax.Array, jax.Array],
    scales: Scales,
    penalty: float,
    kernel: np.ndarray,
    bias: np.ndarray,
    end: dict[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias at the lowest penalised loss."""
    from scipy import optimize  # type: ignore[import-untyped]

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        v = flat.reshape(-1, kernel.shape[1])
        weights = scales.kernel * v[:-1]
        each, slopes = _losses(scales.vectors @ weights, scales.bias * v[-1], *data)
        of_kernel, of_bias = (np.asarray(s, np.float64) / len(each) for s in slopes)
        turned = scales.kernel * (scales.vectors.T @ of_kernel + penalty * weights)
        slope = np.concatenate([turned, (scales.bias * of_bias)[None]])
        return each.mean(dtype=np.float64) + 0.5 * penalty * np.sum(weights**2), slope.ravel()

    turned = scales.vectors.T @ kernel / scales.kernel
    start = np.concatenate([turned, (bias / scales.bias)[None]]).ravel()
    found = optimize.minimize(
        evaluate,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxcor": 20, **end},
    ).x.reshape(-1, kernel.shape[1])
    return scales.vectors @ (scales.kernel * found[:-1]), scales.bias * found[-1]


def _losses(kernel: np.ndarray, bias: np.ndarray, x: Any, labels: Any) -> tuple[np.ndarray, Any]:
    """Cross entropy of each row, and the gradients of their sum by kernel and bias."""
    each, slopes = _cross_entropy(np.float32(kernel), np.float32(bias), x, labels)
    return np.asarray(each), slopes


@jax.jit
@float32_products
def _cross_entropy(
    kernel: jax.Array, bias: jax.Array, x: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def total(kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None], labels)
        return jnp.sum(each), each

    slopes, each = total(kernel, bias)
    return each, slopes

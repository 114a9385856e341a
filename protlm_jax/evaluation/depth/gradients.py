"""Where the answer lies at a depth: integrated gradients from a mean stream to the stream (M14)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.batches import Asked, Proteins
from protlm_jax.evaluation.depth.parts import NOTHING, Part
from protlm_jax.evaluation.depth.positions import Positions, PositionSet, Stat
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.streaming import arguments, over_batches
from protlm_jax.evaluation.depth.subject import Subject, observe
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.models.stack import LayerProgram

STEPS = 16


@functools.partial(jax.jit, static_argnames=("model", "stack", "depths", "steps"))
def attribute(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    real: jax.Array,
    *,
    stack: str,
    depths: tuple[int, ...],
    steps: int = STEPS,
) -> tuple[jax.Array, jax.Array]:
    """Integrated gradients of the true residues' probabilities along the stream at a depth.

        A_l(t) = sum_d (h - b)_d  mean_k  df/dx_d (b + (k + 1/2)/K (h - b)),   f = sum_t p(true)

    with h = h_l(t) and b the mean of h_l over the row's tokens (Csordás et al. 2025 have 256 steps;
    Sundararajan et al. 2017, arXiv 1703.01365). The sum over t is f(h) - f(b), up to the steps.

    Args:
        real: [B, L] bool, tokens that are not padding.
        depths: l, out of 0 to N.
        steps: K, midpoints of the path.

    Returns:
        Attributions [depths, B, L] and f(h) - f(b) [depths, B], both in probability.

    Cost: of each depth l about 3 K (N - l) / N forwards.
    """
    subject = observe(model, params, features, true, positions, amino_acids, stack)
    found = [_at_depth(subject, real, depth, steps) for depth in depths]
    attributions, differences = (jnp.stack(each) for each in zip(*found, strict=True))
    return attributions, differences


def _at_depth(
    subject: Subject, real: jax.Array, depth: int, steps: int
) -> tuple[jax.Array, jax.Array]:
    layers, number = subject.num_layers - depth, len(subject.sublayers)
    with jax.ensure_compile_time_eval():
        full = LayerProgram.full(layers, number)
        suffix = full.replace(order=full.order + depth)  # type: ignore[attr-defined]

    def target(h: jax.Array) -> jax.Array:
        answer = jnp.exp(subject.answer(subject.execute(h, suffix)))
        right = jnp.sum(answer * subject.true, axis=-1)
        return jnp.sum(jnp.where(subject.positions.target, right, 0.0), axis=-1)

    h = subject.streams[depth]
    weight = real[..., None] / jnp.sum(real, axis=1).clip(1)[:, None, None]
    base = jnp.broadcast_to(jnp.sum(h * weight, axis=1, keepdims=True), h.shape)
    base = jnp.where(real[..., None], base, h)
    gradient = jax.grad(lambda x: jnp.sum(target(x)))

    def step(total: jax.Array, share: jax.Array) -> tuple[jax.Array, None]:
        return total + gradient(base + share * (h - base)), None

    shares = (jnp.arange(steps) + 0.5) / steps
    total, _ = jax.lax.scan(step, jnp.zeros_like(h), shares)
    return jnp.sum((h - base) * total / steps, axis=-1), target(h) - target(base)


def gradients(
    loaded: LoadedModel,
    proteins: Proteins,
    stack: str,
    depths: Sequence[int],
    positions: PositionSet = "asked",
    *,
    part: Part = NOTHING,
    progress: bool = False,
) -> dict[str, Quantity]:
    """How much of the attribution lies on tokens that are not read: dims ("at_depth",).

    The path is that of all tokens, and the position set says which answers are attributed.

    Returns:
        "context_share": sum over tokens that are not read of |A_l(t)| / sum over all. Near 1 the
        answer has still to be fetched from the context; near 0 it lies where it is read already.
    """

    def measure(batch: Asked) -> tuple[dict[str, Stat], None]:
        given = arguments(loaded, batch, positions)
        with jax.default_matmul_precision("float32"):
            real = jnp.asarray(batch.protein >= 0)
            found, _ = attribute(*given, real, stack=stack, depths=tuple(depths))
        size = np.abs(np.asarray(found))
        elsewhere = np.where(given[4].read[None], 0, size)
        stat = Stat(elsewhere.sum(axis=-1), size.sum(axis=-1), None, ("at_depth",))
        return {"context_share": stat}, None

    title = f"{stack}, gradients"
    return over_batches(loaded, proteins, measure, title, part=part, progress=progress)[0]

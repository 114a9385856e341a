"""Where the answer lies at a depth: integrated gradients from a mean stream to the stream (M14)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.evaluation.depth.batches import DepthBatch
from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.results import Quantity
from protlm_jax.evaluation.depth.subject import Subject
from protlm_jax.evaluation.depth.sweep import Sweep
from protlm_jax.models.stack import LayerProgram

STEPS = 16


def gradients(sweep: Sweep) -> dict[str, Quantity]:
    """How much of the attribution lies on tokens that are not read: "context_share" (at_depth).

    The sum over these tokens of |A_l(t)| / the sum over all. Near 1 the answer has still to be
    fetched from the context; near 0 it lies where it is read already. The path is that of all
    tokens, and the position set says which answers are attributed.
    """

    def measure(batch: DepthBatch) -> tuple[dict[str, Stat], None]:
        shown = sweep.shown(batch)
        found, _ = sweep.run(attribute, shown, batch.protein >= 0, depths=sweep.depths)
        size = np.abs(found)
        elsewhere = np.where(shown.positions.read[None], 0, size)
        stat = Stat(elsewhere.sum(axis=-1), size.sum(axis=-1), None, ("at_depth",))
        return {"context_share": stat}, None

    return sweep.sums(measure, "gradients")[0]


def attribute(
    subject: Subject, real: jax.Array, *, depths: tuple[int, ...], steps: int = STEPS
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
        Attributions [depths, B, L] and f(h) - f(b) [depths, B], both in probability. Cost: of each
        depth l about 3 K (N - l) / N forwards.
    """
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

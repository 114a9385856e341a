"""What each layer adds to the stream, measured on the stream itself: one forward in all.

h_l is the stream before layer l, a_l and m_l what its sublayers add, c_l = h_{l+1} - h_l. All means
are over positions of per-position values. Positions whose stream is zero are left out, and not
counted: ESM-2 embeds <mask> as zeros, and a ratio to it or an angle with it says nothing. (The
published clamp of the norm at 1e-6 would make a mean of a million of them.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import TINY, Subject, norm


def contributions(subject: Subject) -> dict[str, Stat]:
    """Size and direction of what is added (M1, M2; Csordás et al. 2025, arXiv 2505.13898).

        relative_contribution = ||x|| / ||y||,   cosine = x . y / (||x|| ||y||)

    with x what a sublayer added and y the stream that it was added to; for the whole layer c_l and
    h_l. Below zero a layer erases, near zero it adds something new, above zero it amplifies.

    Returns:
        "relative_contribution" and "cosine" (part, layer), without unit, the first part being the
        whole layer; "stream_norm" (depth), N + 1 of them, in units of the stream.

    Cost: the forward itself.
    """
    reduce = subject.positions.reduce
    taps = {name: subject.positions.at(x) for name, x in subject.taps.items()}
    pairs = [(subject.seen[1:] - subject.seen[:-1], subject.seen[:-1])]
    pairs += [(taps[name], taps[f"{name}_onto"]) for name in subject.sublayers]
    added, onto = (jnp.stack(side) for side in zip(*pairs, strict=True))
    size, there = norm(added), norm(onto)
    dot = jnp.sum(added * onto, axis=-1, dtype=jnp.float32)
    cosine = dot / (jnp.maximum(size, TINY) * jnp.maximum(there, TINY))
    return {
        "relative_contribution": reduce(size / jnp.maximum(there, TINY), there > 0).named(
            "part", "layer"
        ),
        "cosine": reduce(cosine, there > 0).named("part", "layer"),
        "stream_norm": reduce(norm(subject.seen)).named("depth"),
    }


def angles(subject: Subject) -> dict[str, Stat]:
    """How far layers turn the stream (M11, M12).

        block_influence_l = 1 - cos(h_l, h_{l+1})            ShortGPT, arXiv 2403.03853
        angular_distance_{l, k} = angle(h_l, h_k) / pi       Gromov et al., arXiv 2403.17887

    Means over positions; Gromov et al. look at the last token alone, which in a model that reads
    both ways is one like any other. The angle is taken as 2 atan2(||u - v||, ||u + v||) of the unit
    vectors, because arccos loses half of the digits where streams are nearly parallel.

    Returns:
        "block_influence" (layer) in [0, 2], "angular_distance" (depth, other_depth) in [0, 1].

    Cost: the forward itself, and N^2 inner products for each position.
    """
    reduce = subject.positions.reduce
    size = norm(subject.seen)
    unit = subject.seen / jnp.maximum(size, TINY)[..., None]
    there = size > 0
    steps = unit[1:] - unit[:-1]
    gram = jnp.einsum("nBKD,mBKD->nmBK", steps, steps, precision=jax.lax.Precision.HIGHEST)
    apart = jnp.minimum(_squared_distances(gram), 4.0)
    turn = 2.0 * jnp.arctan2(jnp.sqrt(apart), jnp.sqrt(4.0 - apart)) / jnp.pi
    turned = 0.5 * jnp.diagonal(gram).transpose(2, 0, 1)  # 1 - cos, precise where it is small
    pairs = reduce(turn, there[:, None] & there[None])
    return {
        "block_influence": reduce(turned, there[1:] & there[:-1]).named("layer"),
        "angular_distance": pairs.named("depth", "other_depth"),
    }


def _squared_distances(gram: jax.Array) -> jax.Array:
    """||u_l - u_k||^2 of all pairs, [N + 1, N + 1, ...], from products of the steps between.

    Sums of what lies between l and k alone: a difference of large numbers would lose small angles.
    """
    number = gram.shape[0]
    first, last = jnp.indices((number, number))[..., *(None,) * (gram.ndim - 2)]
    before = jnp.where(first < last, gram, 0.0)
    crossed = jnp.cumsum(before[::-1], axis=0)[::-1]  # step k with the steps l to k - 1
    own = jnp.where(first == last, gram, 0.0).sum(axis=0, keepdims=True)
    grown = jnp.cumsum(jnp.where(first <= last, own + 2.0 * crossed, 0.0), axis=1)
    upper = jnp.pad(jnp.maximum(grown, 0.0), [(0, 1), (1, 0), *((0, 0),) * (gram.ndim - 2)])
    return upper + jnp.swapaxes(upper, 0, 1)

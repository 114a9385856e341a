"""What is read of the streams of one forward: contributions, angles, and the logit lens.

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

    with x what a sublayer added and y the stream that it was added to; for the whole layer, the
    first part, c_l and h_l: both (part, layer). Below a cosine of zero a layer erases, near zero
    it adds something new, above zero it amplifies. "stream_norm" (depth), N + 1 of them.
    """
    reduce = subject.positions.reduce
    taps = {name: subject.positions.at(x) for name, x in subject.taps.items()}
    pairs = [(subject.seen[1:] - subject.seen[:-1], subject.seen[:-1])]
    pairs += [(taps[name], taps[f"{name}_onto"]) for name in subject.sublayers]
    added, onto = (jnp.stack(side) for side in zip(*pairs, strict=True))
    size, there = norm(added), norm(onto)
    dot = jnp.sum(added * onto, axis=-1, dtype=jnp.float32)
    cosine = dot / (jnp.maximum(size, TINY) * jnp.maximum(there, TINY))
    ratio = size / jnp.maximum(there, TINY)
    return {
        "relative_contribution": reduce(ratio, there > 0).named("part", "layer"),
        "cosine": reduce(cosine, there > 0).named("part", "layer"),
        "stream_norm": reduce(norm(subject.seen)).named("depth"),
    }


def angles(subject: Subject) -> dict[str, Stat]:
    """How far layers turn the stream (M11, M12).

        block_influence_l = 1 - cos(h_l, h_{l+1})            ShortGPT, arXiv 2403.03853
        angular_distance_{l, k} = angle(h_l, h_k) / pi       Gromov et al., arXiv 2403.17887

    "block_influence" (layer) in [0, 2], "angular_distance" (depth, other_depth) in [0, 1]. The
    angle is 2 atan2(||u - v||, ||u + v||) of the unit vectors: arccos loses half of the digits
    where streams are nearly parallel. Cost: N^2 inner products for each position.
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


def differences(subject: Subject, base: jax.Array, other: jax.Array) -> dict[str, Stat]:
    """How an answer q differs from the model's own, p, and how good it is itself.

    "l2" is ||q - p|| in [0, sqrt 2] (Csordás et al. 2025, their effect on the output), "kl" is
    KL(q || p) and "kl_reverse" KL(p || q), both in nats; "top1_agreement" is 1 where the two name
    the same amino acid; "nll" is -log q of the true one, in nats, and "accuracy" 1 where q names
    it.

    Args:
        base, other: log p and log q, [B, K, 20] over the amino acids alone, so that families with
            other vocabularies compare.
    """
    p, q = jnp.exp(base), jnp.exp(other)
    best = jnp.argmax(other, axis=-1)
    values = {
        "l2": jnp.sqrt(jnp.sum(jnp.square(q - p), axis=-1)),
        "kl": jnp.sum(q * (other - base), axis=-1),
        "kl_reverse": jnp.sum(p * (base - other), axis=-1),
        "top1_agreement": best == jnp.argmax(base, axis=-1),
        "nll": -jnp.sum(other * subject.true, axis=-1),
        "accuracy": jnp.take_along_axis(subject.true, best[..., None], axis=-1)[..., 0],
    }
    peaked = ("l2", "kl", "kl_reverse")
    return {name: subject.positions.reduce(x, peak=name in peaked) for name, x in values.items()}


def own(subject: Subject) -> dict[str, Stat]:
    """The model's own loss and hits: "base_nll" in nats and "base_accuracy", without dimensions."""
    base = subject.answer(subject.streams[-1])
    found = differences(subject, base, base)
    return {f"base_{name}": found[name] for name in ("nll", "accuracy")}


def lens(subject: Subject, base: jax.Array, seen: jax.Array) -> dict[str, Stat]:
    """The answer if `head` read a stream [B, K, D], by `differences` and three more.

    "js" is the Jensen-Shannon divergence in nats, in [0, ln 2]; "top3_overlap" the share of the
    three best amino acids that both name (of 20, the best five overlap by chance);
    "rank_correlation" Spearman's of the 20.
    """
    other = subject.answer_of(seen)
    p, q = jnp.exp(base), jnp.exp(other)
    middle = jnp.log(0.5 * (p + q))
    js = 0.5 * jnp.sum(p * (base - middle) + q * (other - middle), axis=-1)
    ranks = [jnp.argsort(jnp.argsort(x, axis=-1), axis=-1) for x in (base, other)]  # from 0
    best = [rank >= 17 for rank in ranks]
    spread = (20**2 - 1) / 12  # variance of the ranks 0 to 19
    covariance = jnp.mean((ranks[0] - 9.5) * (ranks[1] - 9.5), axis=-1)
    values = {
        "js": js,
        "top3_overlap": jnp.sum(best[0] & best[1], axis=-1) / 3,
        "rank_correlation": covariance / spread,
    }
    reduced = subject.positions.reduce(jnp.stack(list(values.values())))
    more = {name: jax.tree.map(lambda x, i=i: x[i], reduced) for i, name in enumerate(values)}
    return differences(subject, base, other) | more


def logit_lens(subject: Subject) -> dict[str, Stat]:
    """The answer if `head` read the stream at each depth (M7; Csordás et al. 2025).

        q_l = softmax(head(h_l)), compared with p = softmax(head(h_N))

    "lens_<name>" (depth), N + 1 of them, for every name of `lens`. `head` includes the final norm,
    so that h_N is the stream before it. At depth N "kl" is 0, and "nll" and "accuracy" by depth
    are the quality of an early exit (M9). Cost: N + 1 heads, at the places that are read.
    """
    base = subject.answer_of(subject.seen[-1])
    found = jax.lax.map(lambda seen: lens(subject, base, seen), subject.seen)
    return {f"lens_{name}": stat.named("depth") for name, stat in found.items()}

"""How one answer differs from another, over the 20 amino acids, and the logit lens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from protlm_jax.evaluation.depth.positions import Stat
from protlm_jax.evaluation.depth.subject import Subject


def differences(subject: Subject, base: jax.Array, other: jax.Array) -> dict[str, Stat]:
    """How an answer q differs from the model's own, p, and how it fares itself.

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
    return {
        name: subject.positions.reduce(x, peak=name in peaked).named() for name, x in values.items()
    }


def likenesses(subject: Subject, base: jax.Array, other: jax.Array) -> dict[str, Stat]:
    """What else is compared of a lens: with 20 letters, overlap of the best five is coarse.

    "js" is the Jensen-Shannon divergence in nats, in [0, ln 2]; "top3_overlap" the share of the
    three best amino acids that both name; "rank_correlation" Spearman's of the 20.
    """
    p, q = jnp.exp(base), jnp.exp(other)
    middle = jnp.log(0.5 * (p + q))
    js = 0.5 * jnp.sum(p * (base - middle) + q * (other - middle), axis=-1)
    ranks = [_ranks(x) for x in (base, other)]
    best = [rank >= 17 for rank in ranks]
    spread = (20**2 - 1) / 12  # variance of the ranks 0 to 19
    covariance = jnp.mean((ranks[0] - 9.5) * (ranks[1] - 9.5), axis=-1)
    values = {
        "js": js,
        "top3_overlap": jnp.sum(best[0] & best[1], axis=-1) / 3,
        "rank_correlation": covariance / spread,
    }
    return subject.positions.reduce_each(values)


def own(subject: Subject) -> dict[str, Stat]:
    """The model's own loss and hits: "base_nll" in nats and "base_accuracy", without dimensions."""
    base = subject.answer(subject.streams[-1])
    found = differences(subject, base, base)
    return {f"base_{name}": found[name] for name in ("nll", "accuracy")}


def logit_lens(subject: Subject) -> dict[str, Stat]:
    """The answer if `head` read the stream at each depth (M7; Csordás et al. 2025).

        q_l = softmax(head(h_l)), compared with p = softmax(head(h_N))

    `head` includes the final norm, so that h_N is the stream before it. At depth N "kl" is 0, and
    "nll" and "accuracy" by depth are the quality of an early exit (M9).

    Returns:
        "lens_<name>" (depth), N + 1 of them, for every name of `differences` and `likenesses`.

    Cost: N + 1 times the head, at the places that are read.
    """
    base = subject.said_of(subject.seen[-1])

    def at(seen: jax.Array) -> dict[str, Stat]:
        other = subject.said_of(seen)
        return differences(subject, base, other) | likenesses(subject, base, other)

    found = jax.lax.map(at, subject.seen)
    return {f"lens_{name}": stat.named("depth") for name, stat in found.items()}


def _ranks(x: jax.Array) -> jax.Array:
    """Ranks from 0 along the last axis, [..., 20] int32."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)

"""The depth measurements of one batch, in one compiled program.

Sources: Csordás et al. 2025 (arXiv 2505.13898) for contributions, cosines and skip effects; the
logit lens with KL(layer || output). Means over positions of per-position ratios, as there; the
positions are residues that the model could not see, and softmax is over the 20 amino acids, so
that families with other vocabularies compare.

Letters: N layers, B batch, L length, D d_model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

TINY = 1e-6  # smallest norm that is divided by, as in the source

Batch = dict[str, jax.Array]
Sums = dict[str, Any]


@functools.partial(jax.jit, static_argnames=("model", "stack"))
def measure(
    model: nn.Module,
    params: Any,
    batch: Batch,
    targets: jax.Array,
    hidden: jax.Array,
    amino_acids: jax.Array,
    *,
    stack: str,
) -> Sums:
    """Sums over the hidden positions of a batch, for one stack.

    Args:
        model, params: any family.
        batch: what the model is shown, with residues hidden.
        targets: [B, L] int32, the true tokens.
        hidden: [B, L] bool, whose residue is asked. A causal model is measured one position
            before, where it predicts them.
        amino_acids: [20] int32 ids.
        stack: which of the model's stacks is measured.

    Returns:
        "count" and, each a sum over positions to be divided by it: "stream_norm" [N+1], "skip_map"
        [N, N]; per layer and sublayer "relative_contribution" and "cosine", to be divided by
        "defined" instead, which leaves out positions whose stream is zero; where the model answers
        from its stream, "skip_output" and "base_nll"; and where `head` reads this stack,
        "logit_lens".
    """
    run = functools.partial(model.apply, {"params": params})
    asked = model.readouts[0]
    h, context = run(batch, method="embed")
    out, taps = run(h, context, method="stack")
    context = run(out, context, method="connect")
    streams = jnp.concatenate([taps[stack]["stream"], out[stack][None]])
    weights = asked.positions(hidden).astype(jnp.float32)

    def over_positions(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(weights > 0, x, 0.0), axis=(-2, -1))

    result = _contributions(streams, taps[stack], over_positions)
    answer = None
    if asked.reads_stream:
        readout = _readout(run, stack, asked.stack, h, context, amino_acids)
        base = readout(streams[-1])
        correct = asked.positions(targets)[..., None] == amino_acids[None, None, :]
        correct = correct.astype(jnp.float32)
        result["base_nll"] = over_positions(-jnp.sum(base * correct, axis=-1))
        compare = functools.partial(_compare, base, correct, over_positions)

        def answer(final: jax.Array) -> Any:
            return compare(readout(final))

    result |= _skips(run, stack, streams, context[stack], over_positions, answer)
    if answer is not None and stack == asked.stack:
        result["logit_lens"] = jax.lax.map(answer, streams)
    result["count"] = jnp.sum(weights)
    return result


def _readout(
    run: Any, stack: str, read: str, h: Any, context: Any, amino_acids: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The model's answer if `stack` ended in a given stream: log-probabilities [B, L, 20].

    Where another stack is read, as of an encoder, it goes through the decoder that it feeds.
    """

    def readout(final: jax.Array) -> jax.Array:
        if stack != read:
            after = run({stack: final}, context, method="connect")[read]
            final, _ = run(read, h[read], after, method="run")
        return jax.nn.log_softmax(run({read: final}, method="head")[..., amino_acids])

    return readout


def _skips(
    run: Any,
    stack: str,
    streams: jax.Array,
    context: Any,
    over_positions: Any,
    answer: Callable[[jax.Array], Any] | None,
) -> Sums:
    """Each layer left out in turn: how far the others' contributions change, and the answer."""

    def visit(effects: jax.Array, layer: jax.Array, before: Any, after: Any, _: Any) -> jax.Array:
        clean = streams[layer + 1] - streams[layer]
        change = _norm(clean - (after - before)) / jnp.maximum(_norm(clean), TINY)
        return effects.at[layer].set(over_positions(change))

    def skip(layer: jax.Array) -> Sums:
        nothing = jnp.zeros(streams.shape[0] - 1)
        final, effects = run(
            stack, streams[layer], context, layer + 1, visit, nothing, method="resume"
        )
        if answer is None:
            return {"skip_map": effects}
        return {"skip_map": effects, "skip_output": answer(final)}

    result: Sums = jax.lax.map(skip, jnp.arange(len(streams) - 1))
    return result


def _contributions(streams: jax.Array, taps: dict[str, jax.Array], over_positions: Any) -> Sums:
    """Norm of what is added relative to the stream it is added to, and the cosine of the two.

    Both say nothing where that stream is zero, as token dropout makes it before block 0 at every
    residue shown as <mask>: there they are left out, and "defined" counts the other positions.
    """
    added = {"layer": (streams[1:] - streams[:-1], streams[:-1])}
    for name in taps:
        if f"{name}_onto" in taps:
            added[name] = (taps[name], taps[f"{name}_onto"])
    relative, cosine, defined = {}, {}, {}
    for name, (contribution, stream) in added.items():
        size, there = _norm(contribution), _norm(stream) > 0
        onto = jnp.maximum(_norm(stream), TINY)
        dot = jnp.sum(contribution * stream, axis=-1, dtype=jnp.float32)
        relative[name] = over_positions(jnp.where(there, size / onto, 0.0))
        cosine[name] = over_positions(dot / (jnp.maximum(size, TINY) * onto))
        defined[name] = over_positions(there.astype(jnp.float32))
    return {
        "relative_contribution": relative,
        "cosine": cosine,
        "defined": defined,
        "stream_norm": over_positions(_norm(streams)),
    }


def _compare(base: jax.Array, correct: jax.Array, over_positions: Any, other: jax.Array) -> Sums:
    """How another answer differs from the model's own; both log-probabilities [B, L, 20]."""
    difference = jnp.exp(other) - jnp.exp(base)
    agree = jnp.argmax(other, axis=-1) == jnp.argmax(base, axis=-1)
    return {
        "l2": over_positions(jnp.sqrt(jnp.sum(jnp.square(difference), axis=-1))),
        "kl": over_positions(jnp.sum(jnp.exp(other) * (other - base), axis=-1)),
        "top1_agreement": over_positions(agree.astype(jnp.float32)),
        "nll": over_positions(-jnp.sum(other * correct, axis=-1)),
    }


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))

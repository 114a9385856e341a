"""One pass of a model over a batch, and everything that measurements ask of it.

Letters: N layers, B rows, L tokens, K places of a row that are read, D d_model.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.evaluation.depth.positions import Positions
from protlm_jax.models.attention_context import AttentionContext, at_places
from protlm_jax.models.block import BlockContext
from protlm_jax.models.readouts import is_residue, residue_logits
from protlm_jax.models.stack import LayerProgram

TINY = 1e-6  # smallest norm that is divided by, as in Csordás et al. 2025


@dataclasses.dataclass(frozen=True)
class Subject:
    """A stack of a model with a batch in it, as measurements see it while they are traced."""

    run: Any  # the model's `apply`, with its parameters: run(*inputs, method="stack")
    stack: str  # which of the model's stacks is measured
    head_stack: str  # the stack whose stream `head` reads
    streams: jax.Array  # [N + 1, B, L, D], before each layer and after the last; no final norm
    seen: jax.Array  # [N + 1, B, K, D], of them what is read
    taps: dict[str, jax.Array]  # sublayer -> what it added, [N, B, L, D]; and "<name>_onto"
    start: dict[str, jax.Array]  # the streams before each stack's first block
    context: dict[str, BlockContext]  # of every stack, with what flows from one to another
    asking: AttentionContext | None  # of the places that are read, where it is known of them alone
    positions: Positions  # where layers are edited and effects read
    true: jax.Array  # [B, K, 20] float32, one-hot of the amino acid that belongs to each answer
    amino_acids: jax.Array  # [20, tokens] int32 ids
    pre_norm: bool  # whether a block adds to its stream and leaves it otherwise alone
    answers: bool  # whether the model answers from a stream

    @property
    def num_layers(self) -> int:
        return len(self.streams) - 1

    @property
    def sublayers(self) -> tuple[str, ...]:
        """In the order of a block's gate."""
        return tuple(name for name in self.taps if f"{name}_onto" in self.taps)

    def added(self, layer: jax.Array | int) -> jax.Array:
        """c_l = h_{l+1} - h_l: [B, L, D]."""
        return self.streams[layer + 1] - self.streams[layer]

    def layer(self, index: jax.Array | int, h: jax.Array, gate: jax.Array | None = None) -> Any:
        """The stream after one layer, run on any stream."""
        context = self.context[self.stack]
        return self.run(self.stack, index, h, context, gate, method="layer")[0]

    def layer_seen(self, index: jax.Array | int, h: jax.Array) -> jax.Array:
        """What is read of the stream after one layer, [B, K, D]; the rest is not computed.

        The places that are read are a stream of their own that looks at the whole row, as a query
        stream does: of the other positions the layer needs keys and values alone.
        """
        if self.asking is None:
            return self.positions.at(self.layer(index, h))
        context = dataclasses.replace(self.context[self.stack], query_attention=self.asking)
        pair = (h, self.positions.at(h))
        return self.run(self.stack, index, pair, context, None, method="layer")[0][1]

    def resume(
        self, h: jax.Array, start: jax.Array, visit: Any, carry: Any, program: Any = None
    ) -> tuple[jax.Array, Any]:
        """The last stream and what `visit` carried, from step `start` on; see `resume_stack`."""
        context = self.context[self.stack]
        return self.run(self.stack, h, context, start, visit, carry, program, method="resume")

    def execute(self, h: jax.Array, program: LayerProgram) -> jax.Array:
        """The stream after a program run from its first step; has a gradient."""
        return self.run(self.stack, h, self.context[self.stack], program, method="run")[0]

    def answer(self, final: jax.Array) -> jax.Array:
        """Log-probabilities [B, K, 20] if the stack ended in this stream [B, L, D].

        Where another stack is read, as of an encoder, it goes through the decoder that it feeds.
        """
        if self.stack != self.head_stack:
            after = self.run({self.stack: final}, self.context, method="connect")[self.head_stack]
            final, _ = self.run(self.head_stack, self.start[self.head_stack], after, method="run")
        return self.answer_of(self.positions.at(final))

    def answer_of(self, seen: jax.Array) -> jax.Array:
        """Log-probabilities [B, K, 20] of what is read, [B, K, D], of the head's own stack."""
        logits = self.run({self.head_stack: seen}, method="head").astype(jnp.float32)
        return jax.nn.log_softmax(residue_logits(logits, self.amino_acids))


def observe(
    model: nn.Module,
    params: Any,
    features: dict[str, jax.Array],
    true: jax.Array,
    positions: Positions,
    amino_acids: jax.Array,
    stack: str,
) -> Subject:
    """Runs the model once, and keeps its streams and what its sublayers added (traceable).

    Args:
        true: [B, L] int32, the tokens as they are.
        positions: of the answers: a causal model's before the residues they are about.
    """
    run = functools.partial(model.apply, {"params": params})
    h, context = run(features, method="embed")
    out, taps = run(h, context, method="stack")
    context = run(out, context, method="connect")
    asked = model.readouts[0]
    correct = is_residue(positions.at(asked.positions(true)[..., None])[..., 0], amino_acids)
    streams = jnp.concatenate([taps[stack]["stream"], out[stack][None]])
    own = run(stack, h[stack], context[stack], method="prepared")
    if own.skips is not None:
        own = dataclasses.replace(own, skips=streams[1 : len(own.skips) + 1])
    context = {**context, stack: own}
    return Subject(
        run=run,
        stack=stack,
        head_stack=asked.stack,
        streams=streams,
        seen=positions.at(streams),
        taps=taps[stack],
        start=h,
        context=context,
        asking=_asking(context[stack], positions.places),
        positions=positions,
        true=correct.astype(jnp.float32),
        amino_acids=amino_acids,
        pre_norm=model.config.adds_alone,
        answers=asked.reads_stream,
    )


def norm(x: jax.Array) -> jax.Array:
    """Euclidean length over the last axis, in float32."""
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))


def _asking(context: BlockContext, places: jax.Array | None) -> AttentionContext | None:
    """Self-attention of queries at these places alone, [B, K].

    None where a block needs more than its own row: a memory, a past, or distances.
    """
    attention = context.attention
    elsewhere = (context.memory, context.past, attention.distances)
    if places is None or any(x is not None for x in elsewhere):
        return None
    asked = at_places(attention, places)
    if attention.causal:
        order = places[..., None] >= jnp.arange(attention.key_segments.shape[1])[None, None]
        allowed = order if asked.allowed is None else order & asked.allowed
        asked = dataclasses.replace(asked, causal=False, allowed=allowed)
    if (bias := attention.bias) is not None:
        bias = jnp.broadcast_to(bias, (len(places), *bias.shape[1:]))
        mine = jnp.take_along_axis(bias, places[:, None, :, None], axis=2)
        asked = dataclasses.replace(asked, bias=mine)
    return asked

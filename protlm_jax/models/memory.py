"""Segment recurrence: streams of earlier rows that the next rows may see (Dai et al. 2019, 3.2).

A memory is two features of a batch, with the rows first, so that it is laid out on a mesh, split
and saved as rows are:

    past           [batch, layers, memory, d_model] what went into each block, newest last
    past_segments  [batch, memory] int32, the protein that each was of; 0 where nothing was yet

Attention stays inside a protein by these segments as it does in a row. No gradient flows into a
memory.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import relative_sinusoids
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import named
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.layers import logits_of
from protlm_jax.models.stacked import Batch, Streams, TokenStack

Memory = dict[str, jax.Array]


def empty_memory(config: ModelConfig, batch_size: int) -> Memory:
    """What is remembered before the first row: nothing; no entries without a memory."""
    if not config.memory_length:
        return {}
    shape = (batch_size, config.num_layers, config.memory_length, config.d_model)
    return {
        "past": jnp.zeros(shape, config.compute_dtype),
        "past_segments": jnp.zeros((batch_size, config.memory_length), jnp.int32),
    }


def remember(memory: Memory, streams: jax.Array, segments: jax.Array) -> Memory:
    """The memory after a row: the newest of what it held and of the row's own streams.

    Args:
        memory: as long as it will be; without entries it stays so.
        streams: [layers, batch, length, d_model], the stream before each block.
        segments: [batch, length] int32.
    """
    if not memory:
        return memory
    kept = memory["past_segments"].shape[1]
    streams = jnp.swapaxes(streams, 0, 1).astype(memory["past"].dtype)
    past = jnp.concatenate([memory["past"], streams], axis=2)[:, :, -kept:]
    past_segments = jnp.concatenate([memory["past_segments"], segments], axis=1)[:, -kept:]
    return jax.lax.stop_gradient({"past": past, "past_segments": past_segments})


def past_streams(batch: Memory) -> jax.Array | None:
    """The memory in a batch as blocks read it, [layers, batch, memory, d_model]; None without."""
    return jnp.swapaxes(batch["past"], 0, 1) if "past" in batch else None


def causal_context(config: ModelConfig, batch: Memory) -> AttentionContext:
    """Who sees whom in a causal row after its memory, and how far apart they are.

    With `same_length` every query sees as many tokens, however far into its row it stands: the
    `memory_length` up to itself.
    """
    segments = batch["segment_ids"]
    keys = segments
    if "past_segments" in batch:
        keys = jnp.concatenate([batch["past_segments"], segments], axis=1)
    length, key_length = segments.shape[1], keys.shape[1]
    allowed = None
    if config.same_length:
        query = jnp.arange(key_length - length, key_length)
        allowed = query[:, None] - jnp.arange(key_length)[None, :] < config.memory_length
        allowed = allowed[None]
    distances = relative_sinusoids(
        length, key_length, config.d_model, causal=True, clamp=config.clamp_length
    )
    return AttentionContext(segments, keys, causal=True, allowed=allowed, distances=distances)


class RecurrentStack(TokenStack):
    """A family of post-LN blocks whose rows may see those before them.

    The head is the token table with a bias; of a pair of streams the content is remembered, and
    the head reads the query.
    """

    def setup(self) -> None:
        super().setup()
        self.make_own_parameters()
        zeros = nn.initializers.zeros_init()
        self.head_bias = self.param("head_bias", named(zeros, "vocab"), (self.config.vocab_size,))

    def make_own_parameters(self) -> None:
        """Makes the family's own parameters."""

    def initial_carry(self, batch_size: int) -> Memory:
        return empty_memory(self.config, batch_size)

    def recur(
        self, batch: Batch, carry: Memory, deterministic: bool = True
    ) -> tuple[jax.Array, Memory]:
        h, context = self.embed({**batch, **carry}, deterministic)
        h, taps = self.stack(h, context, deterministic=deterministic)
        stream = taps["encoder"]["stream"]
        content = stream[0] if isinstance(stream, tuple) else stream
        return self.head(h, deterministic), remember(carry, content, batch["segment_ids"])

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits from the query stream where there is one, else from the only one."""
        stream = h["encoder"]
        x = self.dropout(stream[1] if isinstance(stream, tuple) else stream, deterministic)
        return logits_of(x, self.token) + self.head_bias[None, None]

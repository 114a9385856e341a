"""Multi-head attention that never crosses segments, with one reference and faster backends.

Axis letters: B batch, L query length, M key length, D d_model, H heads, K head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import constrain
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.layers import Normalization, Projection
from protlm_jax.models.positions import Rotation, rotate

MASKED = -1e9  # finite, so that a row without a visible key stays finite
MAPS = "attention_maps"  # collection in which attention leaves its weights when it is asked for


@flax.struct.dataclass
class AttentionContext:
    """What attention needs besides the stream; the same for every block of a stack.

    Attributes:
        query_segments: [batch, length] int32; a query sees the keys of its own segment only, and
            padding (segment 0) sees padding.
        key_segments: [batch, key_length] int32.
        bias: [1 or batch, heads, length, key_length] float32 added to the scores, or None.
        causal: whether a query sees itself and earlier keys only, by index in the row; of more
            keys than queries the last ones are the queries' own.
        allowed: [batch, length, key_length] bool, further limits on who sees whom, or None.
        distances: [positions, d_model] float32, what relative attention knows of each distance;
            see `relative_sinusoids`.
        places: [batch, length] int32, where in the row each query stands, for queries that are
            some of the row's positions only; None where they are the last keys, in order.
        query_types: [batch, length] int32, and
        key_types: [batch, key_length] int32: relative attention tells whether they are equal.
        query_rotation, key_rotation: where queries and keys stand, for rotary positions.
    """

    query_segments: jax.Array
    key_segments: jax.Array
    bias: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    allowed: jax.Array | None = None
    distances: jax.Array | None = None
    places: jax.Array | None = None
    query_types: jax.Array | None = None
    key_types: jax.Array | None = None
    query_rotation: Rotation | None = None
    key_rotation: Rotation | None = None


Dropout = Callable[[jax.Array], jax.Array]


def visible(context: AttentionContext) -> jax.Array:
    """Who sees whom: [B, 1, L, M] bool."""
    query, key = context.query_segments, context.key_segments
    mask = query[:, None, :, None] == key[:, None, None, :]
    if context.causal:
        before = key.shape[1] - query.shape[1]
        order = before + jnp.arange(query.shape[1])[:, None] >= jnp.arange(key.shape[1])[None, :]
        mask = mask & order[None, None]
    if context.allowed is not None:
        mask = mask & context.allowed[:, None]
    return mask


def at_places(context: AttentionContext, places: jax.Array) -> AttentionContext:
    """The context of queries that stand at some places of the row only: [B, queries] int32."""

    def pick(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)

    names = ("query_segments", "query_types", "query_rotation", "allowed")
    chosen = jax.tree.map(pick, {name: getattr(context, name) for name in names})
    return dataclasses.replace(context, places=places, **chosen)


def attention_weights(q: jax.Array, k: jax.Array, context: AttentionContext) -> jax.Array:
    """How much each query takes from each key: [B, H, L, M] float32, rows of sum 1.

    Arguments as in `reference_attention`.
    """
    scores = jnp.einsum("BLHK,BMHK->BHLM", q.astype(jnp.float32), k.astype(jnp.float32))
    if context.bias is not None:
        scores = scores + context.bias
    return jax.nn.softmax(jnp.where(visible(context), scores, MASKED), axis=-1)


def reference_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Dropout
) -> jax.Array:
    """Attention as the papers write it, every step in float32.

    Args:
        q: [B, L, H, K], already scaled.
        k: [B, M, H, K].
        v: [B, M, H, K].
        context: segments, bias and causality.
        drop: applied to the attention weights.

    Returns:
        [B, L, H, K] in the dtype of `q`.
    """
    weights = drop(attention_weights(q, k, context))
    return jnp.einsum("BHLM,BMHK->BLHK", weights, v.astype(jnp.float32)).astype(q.dtype)


def xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Dropout
) -> jax.Array:
    """The same in the compute dtype with a float32 softmax, normalised after the second product.

    Arguments and result as in `reference_attention`. Weights stay unnormalised until they have
    met the values, which saves one pass over the [B, H, L, M] array.
    """
    scores = jnp.einsum("BLHK,BMHK->BHLM", q, k, preferred_element_type=jnp.float32)
    if context.bias is not None:
        scores = scores + context.bias
    scores = jnp.where(visible(context), scores, MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1)  # [B, H, L]
    weights = drop(weights).astype(v.dtype)
    mixed = jnp.einsum("BHLM,BMHK->BLHK", weights, v, preferred_element_type=jnp.float32)
    return (mixed / jnp.swapaxes(total, 1, 2)[..., None]).astype(q.dtype)


def chunked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Dropout
) -> jax.Array:
    """The same, a few queries at a time, for inference on CPUs: it has no dropout.

    Arguments and result as in `reference_attention`. Scores of a few queries stay in a core's
    cache, where all of them make several trips to memory: a fifth of the time for rows of 512 and
    20 heads. Memory grows with the length instead of its square.
    """
    batch, length, heads, _ = q.shape
    chunk = chunk_of(length, batch * heads * k.shape[1])
    queries, values = jnp.swapaxes(q, 1, 2), jnp.swapaxes(v, 1, 2)
    keys = jnp.transpose(k, (0, 2, 3, 1))

    def some(start: jax.Array) -> jax.Array:
        asked = jax.lax.dynamic_slice_in_dim(queries, start, chunk, axis=2)
        scores = jnp.einsum("BHLK,BHKM->BHLM", asked, keys, preferred_element_type=jnp.float32)
        if context.bias is not None:
            scores = scores + jax.lax.dynamic_slice_in_dim(context.bias, start, chunk, axis=2)
        scores = jnp.where(_visible_to(context, start, chunk), scores, MASKED)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "BHLM,BHMK->BHLK",
            weights.astype(v.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        return mixed / total

    mixed = jax.lax.map(some, jnp.arange(0, length, chunk))  # [chunks, B, H, chunk, K]
    return jnp.transpose(mixed, (1, 0, 3, 2, 4)).reshape(q.shape).astype(q.dtype)


def chunk_of(length: int, scores: int) -> int:
    """Queries that `chunked_attention` asks at a time, a divisor of the length.

    Args:
        length: of the row.
        scores: how many each query of it has, over rows, heads and keys.
    """
    most = min(length, 256, max(8, (1 << 19) // scores))  # 2 MB
    return next(size for size in range(most, 0, -1) if length % size == 0)


def _visible_to(context: AttentionContext, start: jax.Array, count: int) -> jax.Array:
    """`visible` for `count` queries from `start` on: [B, 1, count, M] bool."""
    key, length = context.key_segments, context.query_segments.shape[1]
    query = jax.lax.dynamic_slice_in_dim(context.query_segments, start, count, axis=1)
    mask = query[:, None, :, None] == key[:, None, None, :]
    if context.causal:
        place = key.shape[1] - length + start + jnp.arange(count)
        mask = mask & (place[:, None] >= jnp.arange(key.shape[1])[None, :])[None, None]
    if context.allowed is not None:
        mask = mask & jax.lax.dynamic_slice_in_dim(context.allowed, start, count, axis=1)[:, None]
    return mask


BACKENDS = {
    "reference": reference_attention,
    "xla": xla_attention,
    "chunked": chunked_attention,
}


class Attention(nn.Module):
    """Projections around an attention backend: queries from `x`, keys and values from `memory`.

    Where the collection `MAPS` is mutable, "weights" [B, H, L, M] float32 is left in it.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array, context: AttentionContext, deterministic: bool
    ) -> jax.Array:
        """x [B, L, D], memory [B, M, D] -> [B, L, D]."""
        c = self.config
        q = self._project_in("query")(x)
        k = self._project_in("key")(memory)
        v = self._project_in("value")(memory)
        if c.qk_norm:
            axes = ("heads", "kv")
            q = Normalization(c, axes, bias=False, name="query_norm")(q)
            k = Normalization(c, axes, bias=False, name="key_norm")(k)
        if c.attention_scale:
            q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        if c.positions == "rotary":
            assert context.query_rotation is not None and context.key_rotation is not None
            q, k = rotate(q, context.query_rotation), rotate(k, context.key_rotation)
        q, k, v = (constrain(t, "batch", "length", "heads", "kv") for t in (q, k, v))
        if self.is_mutable_collection(MAPS) and not self.is_initializing():
            self.sow(MAPS, "weights", attention_weights(q, k, context))
        dropout = nn.Dropout(c.dropout_rate)
        mixed = BACKENDS[c.attention_backend](
            q, k, v, context, lambda weights: dropout(weights, deterministic=deterministic)
        )
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
        stddev = c.initializer_range
        if not c.attention_scale:
            stddev = (c.num_heads * c.head_dim) ** -0.5
        return Projection(
            "BLHK,HKD->BLD",
            ("heads", "kv", "embed"),
            (c.num_heads, c.head_dim, c.d_model),
            int(c.use_bias and c.attention_bias),
            stddev,
            c.compute_dtype,
            name="out",
        )(mixed)

    def _project_in(self, name: str) -> Projection:
        c = self.config
        stddev = c.initializer_range
        if not c.attention_scale:  # T5: no division of scores, so the query starts small
            stddev = c.d_model**-0.5
            if name == "query":
                stddev *= c.head_dim**-0.5
        return Projection(
            "BLD,DHK->BLHK",
            ("embed", "heads", "kv"),
            (c.d_model, c.num_heads, c.head_dim),
            2 if c.use_bias and c.attention_bias else 0,
            stddev,
            c.compute_dtype,
            name=name,
        )

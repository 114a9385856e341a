"""Multi-head attention that never crosses segments, with one reference and faster backends.

Axis letters: B batch, L query length, M key length, D d_model, H heads, K head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
    """The same, a tile of queries and keys at a time, for inference on CPUs: it has no dropout.

    Arguments and result as in `reference_attention`. A tile's scores stay in a core's cache, and
    keys of other segments are not asked, so that a row of many proteins costs what these cost alone
    and memory grows with the length instead of its square. The softmax is kept up from tile to tile
    by its peak and its total so far (Milakov & Gimelshein 2018, "Online normalizer calculation for
    softmax", arXiv:1805.02867). It has no gradient: how many tiles there are is found at run time.
    """
    batch, length, heads, size = q.shape
    queries = chunk_of(length, heads)
    tile = min(k.shape[1], _TILE)
    # What overflowed in one protein stays in its own stream, and does not reach its neighbours in
    # the row through weights of zero.
    finite = jnp.where(jnp.isfinite(v), v, jnp.zeros_like(v))
    asked, values = jnp.swapaxes(q, 1, 2), jnp.swapaxes(finite, 1, 2)
    keys = jnp.transpose(k, (0, 2, 3, 1))
    first, stop = _keys_of(context, queries)

    def some(chunk: jax.Array) -> jax.Array:
        row, at = jnp.divmod(chunk, length // queries)
        begin, end, start = first[row, at], stop[row, at], at * queries
        mine = _cut(asked, (row, 0, start, 0), (1, heads, queries, size))[0]

        def look(step: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            peak, total, mixed = so_far
            fresh = begin + step * tile  # before it stand keys that were seen
            place = jnp.minimum(fresh, k.shape[1] - tile)
            block = _cut(keys, (row, 0, 0, place), (1, heads, size, tile))[0]
            scores = jnp.einsum("HLK,HKM->HLM", mine, block, preferred_element_type=jnp.float32)
            scores = _seen_scores(scores, context, row, start, place)
            again = place + jnp.arange(tile) < fresh
            scores = jnp.where(again[None, None], MASKED, scores)
            higher = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
            weights, shrunk = jnp.exp(scores - higher), jnp.exp(peak - higher)
            total = total * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
            block = _cut(values, (row, 0, place, 0), (1, heads, tile, size))[0]
            added = jnp.einsum(
                "HLM,HMK->HLK",
                weights.astype(v.dtype),
                block,
                preferred_element_type=jnp.float32,
            )
            return higher, total, mixed * shrunk + added

        state = (
            jnp.full((heads, queries, 1), MASKED),
            jnp.zeros((heads, queries, 1)),
            jnp.zeros((heads, queries, size)),
        )
        _, total, mixed = jax.lax.fori_loop(0, -((begin - end) // tile), look, state)
        return mixed / jnp.maximum(total, 1e-30)  # nothing is visible to some

    mixed = jax.lax.map(some, jnp.arange(batch * (length // queries)))
    mixed = mixed.reshape(batch, -1, heads, queries, size)  # [B, chunks, H, queries, K]
    return jnp.transpose(mixed, (0, 1, 3, 2, 4)).reshape(q.shape).astype(q.dtype)


_TILE = 128  # keys asked at a time


def chunk_of(length: int, heads: int) -> int:
    """Queries that `chunked_attention` asks at a time, a divisor of the length: at most 128, and
    fewer where a tile of many heads would leave the cache (2 MB)."""
    most = min(length, _TILE, max(8, (1 << 19) // (heads * _TILE)))
    return next(size for size in range(most, 0, -1) if length % size == 0)


def _cut(x: jax.Array, starts: tuple[Any, ...], sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(x, starts, sizes)


def _keys_of(context: AttentionContext, queries: int) -> tuple[jax.Array, jax.Array]:
    """From which key to which each chunk of queries has to look: two of [B, chunks] int32.

    Between the two stands all that its segments see; where segments are in order, little else.
    """
    # Padding, which sees itself, ends a row.
    mine, theirs = (
        jnp.where(segments == 0, jnp.iinfo(jnp.int32).max, segments)
        for segments in (context.query_segments, context.key_segments)
    )
    keys, chunks = theirs.shape[1], mine.reshape(mine.shape[0], -1, queries)
    seen = theirs[:, None] >= jnp.min(chunks, axis=-1, keepdims=True)
    seen = seen & (theirs[:, None] <= jnp.max(chunks, axis=-1, keepdims=True))
    first = jnp.argmax(seen, axis=-1)
    stop = jnp.where(jnp.any(seen, axis=-1), keys - jnp.argmax(seen[..., ::-1], axis=-1), first)
    if context.causal:
        ends = keys - mine.shape[1] + queries * (1 + jnp.arange(chunks.shape[1]))
        stop = jnp.maximum(first, jnp.minimum(stop, ends[None]))
    return first, stop


def _seen_scores(
    scores: jax.Array, context: AttentionContext, row: jax.Array, start: jax.Array, place: jax.Array
) -> jax.Array:
    """A tile of scores with its bias, MASKED where a query does not see a key.

    Args:
        scores: [H, queries, keys] of one row, for queries from `start` on and keys from `place` on.
    """
    _, count, tile = scores.shape
    length, keys = context.query_segments.shape[1], context.key_segments.shape[1]
    if (bias := context.bias) is not None:
        own = row if bias.shape[0] > 1 else 0
        scores = scores + _cut(bias, (own, 0, start, place), (1, bias.shape[1], count, tile))[0]
    query = _cut(context.query_segments, (row, start), (1, count))[0]
    key = _cut(context.key_segments, (row, place), (1, tile))[0]
    mask = query[:, None] == key[None, :]
    if context.causal:
        order = keys - length + start + jnp.arange(count)
        mask = mask & (order[:, None] >= place + jnp.arange(tile)[None, :])
    if (allowed := context.allowed) is not None:
        own = row if allowed.shape[0] > 1 else 0
        mask = mask & _cut(allowed, (own, start, place), (1, count, tile))[0]
    return jnp.where(mask[None], scores, MASKED)


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

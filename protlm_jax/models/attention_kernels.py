"""Attention that keeps the scores of all pairs out of memory: by tiles on CPUs, in fused kernels.

Axis letters: B batch, L query length, M key length, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from protlm_jax.models.attention_context import (
    MASKED,
    SPLASH_TILE,
    AttentionContext,
    Drop,
    needs_float32,
    visible,
)
from protlm_jax.models.axes import device_kind, logical_spec

KEPT = "attention"  # name of what the kernel's gradient needs again, for rematerialisation
_LARGEST_TILE = 512  # tokens; scores of a tile and its gradients have to fit a core's own memory
_TILE = 128  # keys that chunked attention reads at a time


def chunked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Drop
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
    # What overflowed in one protein does not reach its neighbours in the row through weights of
    # zero; its own positions get it back at the end.
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
    mixed = jnp.transpose(mixed, (0, 1, 3, 2, 4)).reshape(q.shape).astype(q.dtype)
    own = v[:, -length:]  # without a past
    own = jnp.pad(own, ((0, 0), (length - own.shape[1], 0), (0, 0), (0, 0)))
    return jnp.where(jnp.isfinite(own), mixed, jnp.nan)


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


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    context: AttentionContext,
    drop: Drop,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Pallas splash attention, for TPU v3 and later.

    Arguments and result as in `reference_attention`; L and M are multiples of 128, and of the
    context it reads segments and causality (`choose` sends it nothing else). Nothing is dropped.
    Queries, keys, values and their gradients enter and leave the kernel in float32 on a TPU v3,
    where Mosaic refuses products of bfloat16 (E2001): twice the bytes of these arrays, and the
    scores stay in the kernel.

    The compiler cannot split a kernel over a mesh: each device gets whole rows of its own heads,
    as the active rules lay them out.

    Args:
        interpret: True runs the kernel's steps as plain JAX on any device, slowly.
    """

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, mine: jax.Array, theirs: jax.Array
    ) -> jax.Array:
        wide = jnp.float32 if needs_float32(device_kind()) else q.dtype
        query, key, value = (x.astype(wide) for x in (q, k, v))
        out = _splash(query, key, value, mine, theirs, context.causal, interpret)
        return out.astype(q.dtype)

    arrays = (q, k, v, context.query_segments, context.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return local(*arrays)
    rules = nn.get_logical_axis_rules()
    heads = logical_spec(("batch", None, "heads", None), q.shape, dict(mesh.shape), rules)
    rows = PartitionSpec(heads[0], None)
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False
    )(*arrays)


def _splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mine: jax.Array,
    theirs: jax.Array,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """One device's rows and heads: [B, L, H, K]; `mine`, `theirs` are segments [B, L], [B, M]."""
    # Pallas takes a second to import, and most programs never come here.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    shape = q.shape[1], k.shape[1]
    mask: Any = splash_attention_mask.FullMask(shape)
    if causal:
        mask = splash_attention_mask.CausalMask(shape, offset=shape[1] - shape[0])
    asking, asked = map(tile_of, shape)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * q.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=asking,
            block_kv=asked,
            block_q_dkv=asking,
            block_kv_dkv=asked,
            block_q_dq=asking,
            block_kv_dq=asked,
        ),
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    segments = splash_attention_kernel.SegmentIds(mine, theirs)
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, segments), 1, 2)


def tile_of(length: int) -> int:
    """The largest tile that divides a length, a multiple of 128."""
    sizes = range(_LARGEST_TILE, 0, -SPLASH_TILE)
    return next(size for size in sizes if length % size == 0)


def cudnn_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Drop
) -> jax.Array:
    """cuDNN's flash attention, for NVIDIA GPUs from Ampere on.

    Arguments and result as in `reference_attention`, in bfloat16 or float16. The bias is rounded to
    that dtype. Nothing is dropped.
    """
    bias = None if context.bias is None else context.bias.astype(q.dtype)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        mask=visible(context),
        scale=1.0,
        # The mask says it too; said like this, tiles that nobody sees are not computed.
        is_causal=context.causal and q.shape[1] == k.shape[1],
        implementation="cudnn",
    )

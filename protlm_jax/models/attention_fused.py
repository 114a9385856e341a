"""Attention in one kernel, which keeps the scores of all pairs out of memory.

Axis letters: B batch, L query length, M key length, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from protlm_jax.models.attention_choice import SPLASH_TILE, needs_float32
from protlm_jax.models.attention_context import AttentionContext, Drop, visible
from protlm_jax.models.axes import device_kind, logical_spec

KEPT = "attention"  # name of what the kernel's gradient needs again, for rematerialisation
_LARGEST_TILE = 512  # tokens; scores of a tile and its gradients have to fit a core's own memory


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

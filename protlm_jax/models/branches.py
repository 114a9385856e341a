"""Parts of a block that remedies for unused depth change: what a sublayer reads, and what it adds.

A stream is [batch, length, d_model], or a pair of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import named
from protlm_jax.models.config import ModelConfig

Stream = Any


def read(
    c: ModelConfig,
    h: Stream,
    norm: Callable[[jax.Array], jax.Array],
    layer: jax.Array,
    post: jax.Array,
) -> Stream:
    """What a sublayer reads of its stream; `post` is whether a layer of "mix" is post-LN."""
    if c.norm_placement == "post":
        return h
    if c.norm_placement == "mix":
        return jax.tree.map(lambda x: jnp.where(post, x, norm(x)), h)
    if c.norm_scale == "none":
        return jax.tree.map(norm, h)
    factor = jax.lax.rsqrt(layer + 1.0)
    return jax.tree.map(lambda x: norm(x) * factor.astype(x.dtype), h)


def scaled(block: Any, name: str, added: Stream) -> Stream:
    """What a sublayer of a block adds, after the scales of its branch."""
    c = block.config
    if c.residual_divisor != 1.0:
        added = jax.tree.map(lambda x: x / c.residual_divisor, added)
    scale: Any = c.branch_scale
    if c.branch_learned != "none":
        shape = (c.d_model,) if c.branch_learned == "channels" else ()
        init = named(nn.initializers.constant(scale), *("embed",) * len(shape))
        scale = block.param(f"{name}_scale", init, shape)
    elif scale == 1.0 and c.branch_power == 0.0:
        return added
    factor = jnp.asarray(scale * float(block.num_layers) ** -c.branch_power)
    factor = factor[None, None] if factor.ndim else factor
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), added)


def long_skip(block: Any, h: Stream, context: Any) -> Stream:
    """What a block's long skip adds: nothing in the first half of the stack."""
    scale = block.param("long_skip_scale", named(nn.initializers.ones_init()), ())
    skip = context.skips
    if skip is None:
        return jax.tree.map(jnp.zeros_like, h)
    skip = skip * scale.astype(skip.dtype)
    if not isinstance(h, tuple):
        return skip
    places = context.query_attention.places[..., None]
    return skip, jnp.take_along_axis(skip, places, axis=1)

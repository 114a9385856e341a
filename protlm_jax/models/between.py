"""What a block gets beside its parameters and the stream: its number, layer 1's values, long skips.

It travels in the `BlockContext`: around a stack for all layers, in a block for one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from protlm_jax.models.block import Block, BlockContext, Stream
from protlm_jax.models.layers import Normalization
from protlm_jax.models.merging import merged

Params = Any


def prepared(block: Block, params: Params, h: Stream, context: BlockContext) -> BlockContext:
    """The context with what flows between layers beside the stream.

    What is there already stays, so that `h` has to be the stream before the first block only where
    the context lacks the values of layer 1.
    """
    c = block.config
    if c.long_skips != "none" and context.skips is None:
        skips = jnp.zeros((block.num_layers // 2, *h.shape), h.dtype)
        context = dataclasses.replace(context, skips=skips)
    if c.value_residual == "none" or context.attention.first_value is not None:
        return context
    layer = merged(layer_params(params, 0))
    read = h
    if c.adds_alone or (c.norm_placement == "mix" and not round(c.post_share * block.num_layers)):
        name = "norm" if c.parallel_block else "attention_norm"
        read = Normalization(c, parent=None).apply({"params": layer[name]}, h)
    value = {name: x.astype(c.compute_dtype) for name, x in layer["attention"]["value"].items()}
    values = jnp.einsum("BLD,DHK->BLHK", read.astype(c.compute_dtype), value["kernel"])
    values = values + value["bias"][None, None] if "bias" in value else values
    attention = dataclasses.replace(context.attention, first_value=values)
    return dataclasses.replace(context, attention=attention)


def skip_of(block: Block, skips: Any, layer: jax.Array | int) -> Any:
    """The stream that a layer's long skip adds: zeros but in the second half of the stack."""
    if skips is None:
        return None
    last = block.num_layers - 1
    slot = jnp.clip(last - layer, 0, len(skips) - 1)
    skip = jax.lax.dynamic_index_in_dim(skips, slot, keepdims=False)
    return jnp.where(layer > last - len(skips), skip, jnp.zeros_like(skip))


def with_skip(skips: Any, layer: jax.Array | int, h: Stream) -> Any:
    """The streams for long skips after a layer, which are those of the first half."""
    if skips is None:
        return None
    slot = jnp.clip(layer, 0, len(skips) - 1)
    there = jax.lax.dynamic_index_in_dim(skips, slot, keepdims=False)
    h = jnp.where((layer >= 0) & (layer < len(skips)), h, there)
    return jax.lax.dynamic_update_index_in_dim(skips, h, slot, axis=0)


def dropped(block: Block, layer: jax.Array, gate: Any, key: jax.Array) -> Any:
    """The gate times stochastic depth's (1603.09382): 0, or 1 / (the probability to be kept)."""
    if not block.config.layer_drop:
        return gate
    kept = 1.0 - block.config.layer_drop * (layer + 1) / block.num_layers
    drawn = jax.random.bernoulli(jax.random.fold_in(key, block.num_layers), kept) / kept
    own = jnp.stack([jnp.ones(()) if n == "long_skip" else drawn for n in block.sublayers])
    return own if gate is None else own * gate


def at_layer(block: Block, context: BlockContext, index: jax.Array | int) -> BlockContext:
    """The context of one block, from that around the stack."""
    past, skip = layer_params(context.past, index), skip_of(block, context.skips, index)
    return dataclasses.replace(context, past=past, skips=skip, layer=jnp.asarray(index))


def layer_params(params: Params, index: jax.Array | int) -> Params:
    """Parameters of one layer of a stack; of the only one where all layers share it."""

    def take(leaf: jax.Array) -> jax.Array:
        last = leaf.shape[0] - 1
        return jax.lax.dynamic_index_in_dim(leaf, jnp.minimum(index, last), keepdims=False)

    return jax.tree.map(take, params)

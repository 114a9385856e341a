"""Contacts from attention: who looks at whom says who touches whom (Rao et al. 2021).

The attention maps of all heads are made symmetric and corrected for what a residue looks at anyway
(the average product correction of Dunn et al. 2008); a logistic regression over the heads then
tells contacts from the rest. One layer's maps are held at a time.

Letters: B batch, L length, N layers, H heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import MAPS
from protlm_jax.models.axes import named
from protlm_jax.models.between import Params, at_layer, layer_params, prepared, with_skip
from protlm_jax.models.block import Block, BlockContext
from protlm_jax.models.config import ModelConfig


def pairs_of(counted: jax.Array, segments: jax.Array) -> jax.Array:
    """Pairs of residues of one protein: [B, L, L] bool.

    Args:
        counted: [B, L] bool, what is a residue: no special token, no padding.
        segments: [B, L] int32.
    """
    both = counted[:, :, None] & counted[:, None, :]
    return both & (segments[:, :, None] == segments[:, None, :])


def corrected(maps: jax.Array, pairs: jax.Array) -> jax.Array:
    """Symmetric maps without what is owed to the residues alone: a_ij - a_i. a_.j / a_..

    Args:
        maps: [B, H, L, L] float32 attention weights.
        pairs: [B, L, L] bool, as of `pairs_of`; sums run over these, each protein's for itself.

    Returns:
        [B, H, L, L] float32, zero off the pairs.
    """
    seen = pairs[:, None]
    maps = jnp.where(seen, maps + jnp.swapaxes(maps, 2, 3), 0.0)
    each = jnp.sum(maps, axis=-1)  # [B, H, L]
    total = jnp.einsum("BLM,BHM->BHL", pairs.astype(jnp.float32), each)
    share = each / jnp.where(total > 0, total, 1.0)
    return jnp.where(seen, maps - share[..., :, None] * each[..., None, :], 0.0)


def over_attention_maps(
    block: Block,
    params: Params,
    h: jax.Array,
    context: BlockContext,
    visit: Callable[[Any, jax.Array, jax.Array], Any],
    carry: Any,
) -> Any:
    """Runs a row of blocks and shows the attention weights of each.

    Args:
        block, params, h, context: as of `run_stack`.
        visit: (carry, layer index, weights [B, H, L, L] float32) -> carry.
        carry: before the first block.

    Returns:
        The carry after the last block. Has no reverse-mode gradient.
    """

    context = prepared(block, params, h, context)

    def body(index: jax.Array, state: Any) -> Any:
        h, skips, carry = state
        own = at_layer(block, dataclasses.replace(context, skips=skips), index)
        layer = {"params": layer_params(params, index)}
        (h, _), left = block.apply(layer, h, own, mutable=[MAPS])
        carry = visit(carry, index, left[MAPS]["attention"]["weights"][0])
        return h, with_skip(skips, index, h), carry

    return jax.lax.fori_loop(0, block.num_layers, body, (h, context.skips, carry))[2]


def contact_logits(
    block: Block,
    params: Params,
    h: jax.Array,
    context: BlockContext,
    pairs: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Weighted sum of the corrected maps: [B, L, L] float32, zero off the pairs.

    Args:
        block, params, h, context: the row of blocks, and the stream before the first.
        pairs: [B, L, L] bool, see `pairs_of`.
        kernel: [N, H], the weight of each head.
    """

    def visit(logits: jax.Array, layer: jax.Array, weights: jax.Array) -> jax.Array:
        return logits + jnp.einsum("BHLM,H->BLM", corrected(weights, pairs), kernel[layer])

    logits = jnp.zeros(pairs.shape, jnp.float32)
    return over_attention_maps(block, params, h, context, visit, logits)


def corrected_maps(
    block: Block, params: Params, h: jax.Array, context: BlockContext, pairs: jax.Array
) -> jax.Array:
    """What a contact head weighs: [N, B, H, L, L] float32; arguments as of `contact_logits`."""

    def visit(maps: jax.Array, layer: jax.Array, weights: jax.Array) -> jax.Array:
        return maps.at[layer].set(corrected(weights, pairs))

    heads = block.config.num_heads
    batch, length, _ = pairs.shape
    maps = jnp.zeros((block.num_layers, batch, heads, length, length), jnp.float32)
    return over_attention_maps(block, params, h, context, visit, maps)


class ContactHead(nn.Module):
    """Logistic regression over the corrected maps of all heads of all layers.

    Parameters: "kernel" [N, H] and "bias" [1]. They are fitted on structures, not with the model:
    pretraining leaves them as they are.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, block: Block, params: Params, h: jax.Array, context: BlockContext, pairs: jax.Array
    ) -> jax.Array:
        """The probability that two residues touch: [B, L, L] float32, zero off the pairs.

        Args:
            block, params, h, context: the row of blocks, and the stream before the first.
            pairs: [B, L, L] bool, see `pairs_of`.
        """
        c = self.config
        kernel = self.param(
            "kernel",
            named(nn.initializers.normal(c.initializer_range), "layers", "heads"),
            (c.num_layers, c.num_heads),
        )
        bias = self.param("bias", named(nn.initializers.zeros_init(), "answers"), (1,))
        logits = contact_logits(block, params, h, context, pairs, kernel)
        return jnp.where(pairs, jax.nn.sigmoid(logits + bias[None, None]), 0.0)

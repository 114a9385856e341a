"""What attention is asked: who sees whom, and what else comes to the scores.

Axis letters: B batch, L query length, M key length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from protlm_jax.models.positions import Rotation

MASKED = -1e9  # finite, so that a row without a visible key stays finite

Drop = Callable[[jax.Array], jax.Array]


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

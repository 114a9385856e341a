"""Position schemes: relative biases on attention scores, and a start for learned tables."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def relative_buckets(
    query_length: int, key_length: int, num_buckets: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """T5's buckets of key position minus query position (Raffel et al. 2020, section 2.1).

    Half of the buckets hold exact distances, the other half grow logarithmically up to
    `max_distance` and share the last one beyond it. Both directions halve the buckets once more.

    Returns:
        [query_length, key_length] int32 in [0, num_buckets).
    """
    distance = jnp.arange(key_length)[None, :] - jnp.arange(query_length)[:, None]
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    scaled = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    scaled = scaled / jnp.log(max_distance / exact) * (num_buckets - exact)
    coarse = jnp.minimum(exact + scaled.astype(jnp.int32), num_buckets - 1)
    return (offset + jnp.where(distance < exact, distance, coarse)).astype(jnp.int32)


def relative_bias(
    table: jax.Array, query_length: int, key_length: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """The bias that T5 adds to attention scores, shared by all blocks of a stack.

    Distances are taken by index in the row: within a packed segment that equals the distance
    between residues, and attention never looks across segments.

    Args:
        table: [buckets, heads] learned values.

    Returns:
        [1, heads, query_length, key_length] float32.
    """
    buckets = relative_buckets(
        query_length, key_length, table.shape[0], max_distance, bidirectional
    )
    bias = jnp.take(table.astype(jnp.float32), buckets, axis=0)  # [L, M, H]
    return jnp.transpose(bias, (2, 0, 1))[None]


def sinusoidal(stddev: float) -> Callable[..., jax.Array]:
    """An initializer: the sinusoids of Vaswani et al. 2017 at a root mean square of `stddev`.

    A learned table that starts from them knows from the first step what "the residue before" is: a
    shift is a fixed rotation of the pairs. From noise it must learn that for each position alone,
    which a short training has no time for.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        length, width = shape
        frequency = 10_000.0 ** (-2.0 * jnp.arange((width + 1) // 2) / width)
        angle = jnp.arange(length)[:, None] * frequency[None, :]
        table = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(length, -1)
        return (stddev * 2**0.5 * table[:, :width]).astype(dtype)

    return init

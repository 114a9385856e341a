"""Position schemes: biases on attention scores, rotations, and a start for learned tables."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.axes import device_kind

ROTARY_THETA = 10_000.0


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


@flax.struct.dataclass
class Rotation:
    """Angles by which the pairs of a head are turned at each position (Su et al. 2021, RoPE).

    Attributes:
        cos, sin: [batch, length, pairs] float32; of a head that has more than these pairs, the
            first ones turn.
        neighbours: whether a pair is two entries that stand beside each other (Su et al.), or an
            entry of the first half and its counterpart in the second (ESM-2).
    """

    cos: jax.Array
    sin: jax.Array
    neighbours: bool = flax.struct.field(pytree_node=False, default=False)


def rotary_frequencies(size: int) -> jax.Array:
    """Radians per position of each pair: theta ** (-2 i / size), [size / 2] float32.

    Args:
        size: entries of a head that are turned.
    """
    exponent = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return 1.0 / ROTARY_THETA**exponent


def rotation(positions: jax.Array, frequencies: jax.Array, neighbours: bool = False) -> Rotation:
    """The angles of [batch, length] int32 positions; see `Rotation`."""
    angle = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
    return Rotation(jnp.cos(angle), jnp.sin(angle), neighbours)


def rotate(x: jax.Array, by: Rotation) -> jax.Array:
    """Turns each pair of [batch, length, heads, head_dim] by its angle, in float32.

    An entry and its partner of the pair are x cos + partner sin, where the partner of the pair's
    first entry is negative. On a TPU, whose vectors have 128 lanes, taking halves of 32 apart and
    together costs more than a product with the signed permutation that moves them.
    """
    if device_kind().startswith("TPU"):
        partner = _partner_by_product(x, by)
    else:
        partner = _partner_by_slices(x, by)
    rest = x.shape[-1] - 2 * by.cos.shape[-1]
    cos, sin = (_of_entries(angle, by.neighbours)[:, :, None] for angle in (by.cos, by.sin))
    cos = jnp.pad(cos, [(0, 0)] * 3 + [(0, rest)], constant_values=1.0)
    sin = jnp.pad(sin, [(0, 0)] * 3 + [(0, rest)])
    return (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)


def _of_entries(angle: jax.Array, neighbours: bool) -> jax.Array:
    """[..., pairs] -> [..., 2 * pairs]: for each entry that of its pair."""
    return jnp.repeat(angle, 2, axis=-1) if neighbours else jnp.concatenate([angle, angle], -1)


def _partner_by_slices(x: jax.Array, by: Rotation) -> jax.Array:
    """The signed partner of each entry, float32; 0 for entries that do not turn."""
    size = 2 * by.cos.shape[-1]
    wide = x[..., :size].astype(jnp.float32)
    if by.neighbours:
        partner = jnp.stack([-wide[..., 1::2], wide[..., 0::2]], axis=-1).reshape(wide.shape)
    else:
        first, second = jnp.split(wide, 2, axis=-1)
        partner = jnp.concatenate([-second, first], axis=-1)
    return jnp.pad(partner, [(0, 0)] * 3 + [(0, x.shape[-1] - size)])


def _partner_by_product(x: jax.Array, by: Rotation) -> jax.Array:
    """The same, exactly: the matrix holds 0, 1 and -1."""
    size = 2 * by.cos.shape[-1]
    entries = np.arange(size)
    pairs = entries.reshape(-1, 2) if by.neighbours else entries.reshape(2, -1).T
    matrix = np.zeros((x.shape[-1], x.shape[-1]), np.float32)
    matrix[pairs[:, 1], pairs[:, 0]] = -1.0
    matrix[pairs[:, 0], pairs[:, 1]] = 1.0
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(
        "BLHK,KJ->BLHJ",
        x,
        jnp.asarray(matrix, x.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )

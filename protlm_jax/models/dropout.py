"""Dropout, with random bits from where the device has them cheaply.

JAX's own bits (threefry) are a hundred operations each on the vector unit of a TPU, inside of the
products whose results they fall on. A TPU draws them itself in a fraction of that time, as plans
have it (`docs/pods.md`); but what it draws depends on how the array lies on the devices.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from protlm_jax.models.axes import device_kind, is_placed, logical_spec

STREAM = ("batch", "length", "embed")


class Dropout(nn.Module):
    """Zeroes a share of the values and scales the others up (Srivastava et al. 2014).

    On a TPU the masks come from the device's own generator: they repeat from run to run on one
    mesh, and differ between meshes. Elsewhere they are those of `flax.linen.Dropout`, on any mesh.

    Attributes:
        rate: the share, in 0 to 1.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, deterministic: bool, names: tuple[str | None, ...] = STREAM
    ) -> jax.Array:
        """x of any shape; `names` are the logical names of its axes."""
        if not self.rate or deterministic:
            return x
        key = self.make_rng("dropout")
        if is_placed() and device_kind().startswith("TPU"):
            return hardware_dropout(x, self.rate, key, names)
        kept = jax.random.bernoulli(key, 1.0 - self.rate, x.shape)
        return jnp.where(kept, x / (1.0 - self.rate), jnp.zeros_like(x))


def hardware_dropout(
    x: jax.Array, rate: float, key: jax.Array, names: tuple[str | None, ...]
) -> jax.Array:
    """Dropout of `x` with bits of the device's own generator.

    The rate is rounded to a multiple of 2^-16. Each device of a mesh draws for its own part of `x`,
    as the active rules lay it out, from a key of its own: XLA would otherwise draw the whole array
    on every device.
    """
    threshold = min(max(round((1.0 - rate) * 2**16), 1), 2**16 - 1)
    kept = _bits(key, x.shape, names) < jnp.uint16(threshold)
    return jnp.where(kept, x / (threshold / 2**16), jnp.zeros_like(x))


def _bits(key: jax.Array, shape: tuple[int, ...], names: tuple[str | None, ...]) -> jax.Array:
    """Random uint16 of a shape."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return _drawn(key, shape)
    spec = logical_spec(names, shape, dict(mesh.shape), nn.get_logical_axis_rules())
    own = NamedSharding(mesh, spec).shard_shape(shape)
    over = [axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ())]

    def local(key: jax.Array) -> jax.Array:
        place = jax.lax.axis_index(tuple(over)) if over else 0
        return _drawn(jax.random.fold_in(key, place), own)

    return jax.shard_map(local, in_specs=PartitionSpec(), out_specs=spec, check_vma=False)(key)


def _drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    words = jax.random.key_data(key)
    # The generator takes four: JAX's own "rbg" keys have them, and are made of a seed in this way.
    state = words if words.size == 4 else jnp.concatenate([words, words])
    return jax.lax.rng_bit_generator(state, shape, dtype=jnp.uint16)[1]

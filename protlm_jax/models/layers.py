"""Parameters and primitives: projections, norms, the MLP.

Axis letters, here and in every model file: B batch, L length, M key length, D d_model, H heads,
K head size, F d_ff, V vocabulary, N layers.

Projections are `self.param` and one einsum, never `nn.DenseGeneral`: inside a mesh flax constrains
its flattened kernel by the names of the unflattened one, and crashes.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import constrain, named
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function (Hendrycks & Gimpel 2016), by erf.

    jax.nn.gelu goes through erfc, whose branches cost a fifth of a train step on CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table: [V, D] by [B, L] -> [B, L, D].

    The whole table is brought to each device first. Left alone, the partitioner would move the
    parts of one that is split by rows all over the mesh, and between slices.
    """
    return jnp.take(constrain(table, None, None), ids, axis=0)


class Projection(nn.Module):
    """A linear map written as an einsum, its kernel and bias named by logical axes.

    Attributes:
        equation: for instance "BLD,DHK->BLHK".
        axes: logical name of each kernel dimension; several may share a size, never a name.
        shape: the kernel's shape.
        bias_rank: how many trailing kernel dimensions the bias has; 0 for no bias.
        stddev: of the normal initializer.
        dtype: compute dtype of inputs, kernel and output; the parameters are float32.
    """

    equation: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    bias_rank: int
    stddev: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = named(nn.initializers.normal(self.stddev), *self.axes)
        kernel = self.param("kernel", init, self.shape)
        y = jnp.einsum(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
        if self.bias_rank:
            init = named(nn.initializers.zeros_init(), *self.axes[-self.bias_rank :])
            bias = self.param("bias", init, self.shape[-self.bias_rank :])
            y = y + _broadcast_to_rank(bias.astype(self.dtype), y.ndim)
        return y


class Normalization(nn.Module):
    """LayerNorm, or RMSNorm (no mean, no bias; Zhang & Sennrich 2019), statistics in float32.

    Attributes:
        axes: logical names of the last dimensions, over which it norms together.
        bias: whether a LayerNorm has one.
    """

    config: ModelConfig
    axes: tuple[str, ...] = ("embed",)
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer_norm = self.config.norm == "layer_norm"
        over = tuple(range(-len(self.axes), 0))
        shape = x.shape[-len(self.axes) :]
        wide = x.astype(jnp.float32)
        if layer_norm:
            wide = wide - jnp.mean(wide, axis=over, keepdims=True)
        variance = jnp.mean(jnp.square(wide), axis=over, keepdims=True)
        scale = self.param("scale", named(nn.initializers.ones_init(), *self.axes), shape)
        y = wide * jax.lax.rsqrt(variance + self.config.norm_eps)
        y = y * _broadcast_to_rank(scale, y.ndim)
        if layer_norm and self.bias:
            bias = self.param("bias", named(nn.initializers.zeros_init(), *self.axes), shape)
            y = y + _broadcast_to_rank(bias, y.ndim)
        return y.astype(self.config.compute_dtype)


class Mlp(nn.Module):
    """Two projections with an activation between them: [B, L, D] -> [B, L, D].

    Gated (Shazeer 2020), the activated projection is multiplied with a second, linear one.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        wi_stddev, wo_stddev = c.initializer_range, c.initializer_range
        if not c.attention_scale:  # T5 initialises by fan-in
            wi_stddev, wo_stddev = c.d_model**-0.5, c.d_ff**-0.5
        out_gain, in_gain = c.init_gains
        wi_stddev, wo_stddev = wi_stddev * in_gain, wo_stddev * out_gain
        bias_rank = int(c.use_bias)

        def expand(name: str) -> jax.Array:
            shape = (c.d_model, c.d_ff)
            axes = ("embed", "mlp")
            return Projection(
                "BLD,DF->BLF", axes, shape, bias_rank, wi_stddev, c.compute_dtype, name=name
            )(x)

        activation = ACTIVATIONS[c.activation]
        h = activation(expand("wi_0")) * expand("wi_1") if c.gated_mlp else activation(expand("wi"))
        if c.mlp_dropout:
            h = Dropout(c.dropout_rate)(h, deterministic, ("batch", "length", "mlp"))
        return Projection(
            "BLF,FD->BLD",
            ("mlp", "embed"),
            (c.d_ff, c.d_model),
            bias_rank,
            wo_stddev,
            c.compute_dtype,
            name="wo",
        )(h)


def logits_of(x: jax.Array, table: jax.Array) -> jax.Array:
    """The product with every row of a table: [B, L, D] and [V, D] -> [B, L, V] float32."""
    return jnp.einsum("BLD,VD->BLV", x, table.astype(x.dtype), preferred_element_type=jnp.float32)


class Logits(nn.Module):
    """An output with weights of its own: [B, L, D] -> [B, L, V] float32."""

    config: ModelConfig
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        kernel = self.param("kernel", named(normal, "embed", "vocab"), (c.d_model, c.vocab_size))
        kernel = kernel.astype(c.compute_dtype)
        logits = jnp.einsum("BLD,DV->BLV", x, kernel, preferred_element_type=jnp.float32)
        if not self.bias:
            return logits
        bias = self.param("bias", named(nn.initializers.zeros_init(), "vocab"), (c.vocab_size,))
        return logits + bias[None, None]


def _broadcast_to_rank(x: jax.Array, rank: int) -> jax.Array:
    return jnp.expand_dims(x, tuple(range(rank - x.ndim)))

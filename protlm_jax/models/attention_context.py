"""What attention is asked, and which backend computes it on a device.

Fused kernels never write the scores of all pairs to memory. What each of them can:

    splash   TPU v3 and later   Pallas; segments and causal order, in bfloat16, rows of k x 128
    cudnn    NVIDIA, Ampere on  `jax.nn.dot_product_attention`; any mask and any bias, in 16 bits

Neither of them drops weights. cuDNN's public interface has no segments: who sees whom goes in as a
mask, which it adds to the scores as a bias, [B, 1, L, M] in the compute dtype.

Axis letters: B batch, L query length, M key length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import device_kind, is_placed
from protlm_jax.models.config import ModelConfig
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
        first_value: [batch, key_length, heads, head size], the values of layer 1, for value
            residuals; see `stack.prepared`.
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
    first_value: jax.Array | None = None


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


SPLASH_TILE = 128  # tokens, of queries and of keys

# Beginnings of what NVIDIA calls its devices, and parts of the names of those before Ampere, for
# which cuDNN has no flash attention.
_NVIDIA = ("NVIDIA", "Tesla", "Quadro", "GeForce")
_BEFORE_AMPERE = ("P100", "V100", "TITAN", "Tesla T4", "Quadro", "GTX", "RTX 20")


class Choice(NamedTuple):
    """A backend, and why it is no fused kernel; "" where it is one."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, because {self.reason}" if self.reason else self.name


@dataclasses.dataclass(frozen=True)
class Asked:
    """One call of attention, as far as a kernel cares.

    Attributes:
        queries, keys: tokens in a row of each.
        head_dim, dtype: of queries, keys and values.
        biased: whether something is added to the scores: positions, in T5 and Transformer-XL.
        limited: whether more than segments and order says who sees whom.
        dropping: whether weights are dropped.
    """

    queries: int
    keys: int
    head_dim: int
    dtype: str
    biased: bool
    limited: bool
    dropping: bool


def choose(device_kind: str, asked: Asked) -> Choice:
    """The backend for one call on a kind of device, as JAX names it ("TPU v4", "NVIDIA H200")."""
    if device_kind.startswith("TPU"):
        kernel, refusal = "splash", _no_splash(device_kind, asked)
    elif device_kind.startswith(_NVIDIA):
        kernel, refusal = "cudnn", _no_cudnn(device_kind, asked)
    else:
        kernel, refusal = "xla", f"there is no fused kernel for {device_kind}"
    return Choice("xla", refusal) if refusal else Choice(kernel, "")


def choose_backend(config: ModelConfig, device_kind: str, length: int) -> Choice:
    """The backend of a model's self-attention in training, on rows of so many tokens."""
    if config.attention_backend != "auto":
        return Choice(config.attention_backend, "model.attention_backend says so")
    return choose(device_kind, _in_training(config, length))


def describe(config: ModelConfig, device_kind: str, length: int) -> str:
    """`choose_backend` for people, with cross-attention where that is computed differently."""
    own = choose_backend(config, device_kind, length)
    if not config.num_decoder_layers or config.attention_backend != "auto":
        return str(own)
    # Positions come to the scores of self-attention only.
    cross = choose(
        device_kind, dataclasses.replace(_in_training(config, length), biased=False, limited=False)
    )
    return str(own) if cross == own else f"{own}; across {cross}"


def backend_of(
    config: ModelConfig, q: jax.Array, k: jax.Array, context: AttentionContext, deterministic: bool
) -> str:
    """The backend of the call that is being traced: q [B, L, H, K], k [B, M, H, K]."""
    if config.attention_backend != "auto":
        return config.attention_backend
    if not is_placed():
        return "xla"  # the compiler cannot split a kernel
    asked = Asked(
        queries=q.shape[1],
        keys=k.shape[1],
        head_dim=config.head_dim,
        dtype=q.dtype.name,
        biased=context.bias is not None,
        limited=context.allowed is not None,
        dropping=config.dropout_rate > 0 and not deterministic,
    )
    return choose(device_kind(), asked).name


def _in_training(config: ModelConfig, length: int) -> Asked:
    return Asked(
        queries=length,
        keys=length + config.memory_length,
        head_dim=config.head_dim,
        dtype=config.dtype,
        biased=config.positions in ("relative_bias", "relative_xl"),
        limited=config.same_length,
        dropping=config.dropout_rate > 0,
    )


def needs_float32(device_kind: str) -> bool:
    """Whether splash attention takes its operands in float32 there, whatever the compute dtype."""
    return device_kind == "TPU v3"


def _no_splash(device_kind: str, asked: Asked) -> str:
    """Why splash attention cannot compute this; "" where it can."""
    if device_kind == "TPU v2":
        return f"splash attention was not compiled for {device_kind}"
    if asked.biased:
        return "splash attention adds no positions to the scores"
    if asked.limited:
        return "splash attention knows segments and causal order only"
    if asked.dropping:
        return "splash attention drops no weights (model.dropout_rate)"
    if asked.dtype != "bfloat16":
        # In float32 XLA has the precision that one asks for; the kernel has its own.
        return f"splash attention is for bfloat16, and this is {asked.dtype}"
    if asked.queries % SPLASH_TILE or asked.keys % SPLASH_TILE:
        uneven = asked.queries if asked.queries % SPLASH_TILE else asked.keys
        return f"{uneven} tokens are not a multiple of splash attention's {SPLASH_TILE}"
    return ""


def _no_cudnn(device_kind: str, asked: Asked) -> str:
    """Why cuDNN cannot compute this; "" where it can."""
    if any(name in device_kind for name in _BEFORE_AMPERE):
        return f"cuDNN has no flash attention for {device_kind}"
    if asked.dropping:
        return "cuDNN's attention in JAX drops no weights (model.dropout_rate)"
    if asked.dtype not in ("bfloat16", "float16"):
        return f"cuDNN's attention is for bfloat16 and float16, and this is {asked.dtype}"
    if asked.head_dim > 128 or asked.head_dim % 8:  # on Hopper 256 would do
        return f"cuDNN takes heads of at most 128, a multiple of 8, and this is {asked.head_dim}"
    if asked.queries % 2 or asked.keys % 2:
        return "cuDNN takes a mask for even lengths only"
    return ""

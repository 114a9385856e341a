"""Multi-head attention that never crosses segments, with one reference and faster backends.

Axis letters: B batch, L query length, M key length, D d_model, H heads, K head size.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_choice import backend_of
from protlm_jax.models.attention_chunked import chunked_attention
from protlm_jax.models.attention_context import MASKED, AttentionContext, Drop, visible
from protlm_jax.models.attention_fused import cudnn_attention, splash_attention
from protlm_jax.models.axes import constrain
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Normalization, Projection
from protlm_jax.models.positions import rotate

MAP = ("batch", "heads", "length", None)  # logical names of a map's axes
MAPS = "attention_maps"  # collection in which attention leaves its weights when it is asked for


def attention_weights(q: jax.Array, k: jax.Array, context: AttentionContext) -> jax.Array:
    """How much each query takes from each key: [B, H, L, M] float32, rows of sum 1.

    Arguments as in `reference_attention`.
    """
    scores = jnp.einsum("BLHK,BMHK->BHLM", q.astype(jnp.float32), k.astype(jnp.float32))
    if context.bias is not None:
        scores = scores + context.bias
    return jax.nn.softmax(jnp.where(visible(context), scores, MASKED), axis=-1)


def reference_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Drop
) -> jax.Array:
    """Attention as the papers write it, every step in float32.

    Args:
        q: [B, L, H, K], already scaled.
        k: [B, M, H, K].
        v: [B, M, H, K].
        context: segments, bias and causality.
        drop: applied to the attention weights.

    Returns:
        [B, L, H, K] in the dtype of `q`.
    """
    weights = drop(attention_weights(q, k, context))
    return jnp.einsum("BHLM,BMHK->BLHK", weights, v.astype(jnp.float32)).astype(q.dtype)


def xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, context: AttentionContext, drop: Drop
) -> jax.Array:
    """The same in the compute dtype with a float32 softmax, normalised after the second product.

    Arguments and result as in `reference_attention`. Weights stay unnormalised until they have
    met the values, which saves one pass over the [B, H, L, M] array.
    """
    scores = jnp.einsum("BLHK,BMHK->BHLM", q, k, preferred_element_type=jnp.float32)
    if context.bias is not None:
        scores = scores + context.bias
    weights, total = _exponentials(scores, visible(context), v.dtype)
    mixed = jnp.einsum("BHLM,BMHK->BLHK", drop(weights), v, preferred_element_type=jnp.float32)
    return (mixed / jnp.swapaxes(total, 1, 2)[..., None]).astype(q.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _exponentials(
    scores: jax.Array, seen: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """exp(score - the row's largest) of what is seen [B, H, L, M] in `dtype`; sums [B, H, L].

    The gradient is computed from the weights in `dtype`, and rounded to it, as a TPU's products do
    with what goes into them. Left to itself XLA keeps the scores in float32 instead, and computes
    exponentials and gradient anew for each of those products: twice the bytes through memory, for
    which attention without a fused kernel waits (`docs/pods.md`).
    """
    return _exponentials_forward(scores, seen, dtype)[0]


def _exponentials_forward(
    scores: jax.Array, seen: jax.Array, dtype: jnp.dtype
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    scores = jnp.where(seen, scores, MASKED)
    # The largest score cancels out, and takes no part in the gradient.
    wide = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = wide.astype(dtype)
    return (weights, jnp.sum(wide, axis=-1)), (weights, seen)


def _exponentials_backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], gradients: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    weights, seen = kept
    to_weights, to_total = (gradient.astype(jnp.float32) for gradient in gradients)
    to_scores = (to_weights + to_total[..., None]) * weights.astype(jnp.float32)
    return jnp.where(seen, to_scores, 0.0).astype(dtype).astype(jnp.float32), None


_exponentials.defvjp(_exponentials_forward, _exponentials_backward)


BACKENDS = {
    "reference": reference_attention,
    "xla": xla_attention,
    "chunked": chunked_attention,
    "splash": splash_attention,
    "cudnn": cudnn_attention,
}


class Attention(nn.Module):
    """Projections around an attention backend: queries from `x`, keys and values from `memory`.

    Where the collection `MAPS` is mutable, "weights" [B, H, L, M] float32 is left in it.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array, context: AttentionContext, deterministic: bool
    ) -> jax.Array:
        """x [B, L, D], memory [B, M, D] -> [B, L, D]."""
        c = self.config
        q = self._project_in("query")(x)
        k = self._project_in("key")(memory)
        v = self._project_in("value")(memory)
        if c.qk_norm:
            axes = ("heads", "kv")
            q = Normalization(c, axes, bias=False, name="query_norm")(q)
            k = Normalization(c, axes, bias=False, name="key_norm")(k)
        if c.attention_scale:
            q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        if c.positions == "rotary":
            assert context.query_rotation is not None and context.key_rotation is not None
            q, k = rotate(q, context.query_rotation), rotate(k, context.key_rotation)
        q, k, v = (constrain(t, "batch", "length", "heads", "kv") for t in (q, k, v))
        if self.is_mutable_collection(MAPS) and not self.is_initializing():
            self.sow(MAPS, "weights", attention_weights(q, k, context))
        dropout = Dropout(c.dropout_rate)
        mixed = BACKENDS[backend_of(c, q, k, context, deterministic)](
            q, k, v, context, lambda weights: dropout(weights, deterministic, MAP)
        )
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
        stddev = c.initializer_range
        if not c.attention_scale:
            stddev = (c.num_heads * c.head_dim) ** -0.5
        return Projection(
            "BLHK,HKD->BLD",
            ("heads", "kv", "embed"),
            (c.num_heads, c.head_dim, c.d_model),
            int(c.use_bias and c.attention_bias),
            stddev,
            c.compute_dtype,
            name="out",
        )(mixed)

    def _project_in(self, name: str) -> Projection:
        c = self.config
        stddev = c.initializer_range
        if not c.attention_scale:  # T5: no division of scores, so the query starts small
            stddev = c.d_model**-0.5
            if name == "query":
                stddev *= c.head_dim**-0.5
        return Projection(
            "BLD,DHK->BLHK",
            ("embed", "heads", "kv"),
            (c.d_model, c.num_heads, c.head_dim),
            2 if c.use_bias and c.attention_bias else 0,
            stddev,
            c.compute_dtype,
            name=name,
        )

"""Multi-head attention that never crosses segments, with one reference and faster backends.

`RelativeAttention` (Dai et al. 2019, section 3.3) is that of Transformer-XL and XLNet. The score of
query i and key j at distance d = i - j is

    ((q_i + u) . k_j  +  (q_i + v) . (R_d W)) / sqrt(K)

with sinusoids R, a projection W of them, and biases u and v per head, all of each layer's own.
XLNet adds a third term, (q_i + s) . t, where t is one of two vectors: for keys of the query's own
token type and for others.

Axis letters: B batch, L query length, M key length, P distances, D d_model, H heads, K head size,
T token types equal or not.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import (
    MASKED,
    AttentionContext,
    Drop,
    backend_of,
    visible,
)
from protlm_jax.models.attention_kernels import chunked_attention, cudnn_attention, splash_attention
from protlm_jax.models.axes import constrain, named
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
        if context.first_value is not None:
            v = self._with_first(v, context.first_value)
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
        return self._project_out(self._mixed(q, k, v, context, deterministic))

    def _with_first(self, v: jax.Array, first: jax.Array) -> jax.Array:
        """The value residual (2410.17897): values mixed with those of layer 1 [B, M, H, K]."""
        own = shared = jnp.asarray(0.5, v.dtype)
        if self.config.value_residual == "learned":
            halves = named(nn.initializers.constant(0.5), "answers")
            own, shared = self.param("value_scale", halves, (2,)).astype(v.dtype)
        return own * v + shared * first

    @property
    def _biased_maps(self) -> bool:
        return self.config.use_bias and self.config.attention_bias

    def _project_in(self, name: str, equation: str = "BLD,DHK->BLHK") -> Projection:
        c = self.config
        stddev = c.initializer_range
        if not c.attention_scale:  # T5: no division of scores, so the query starts small
            stddev = c.d_model**-0.5 * (c.head_dim**-0.5 if name == "query" else 1.0)
        stddev *= c.init_gains[1] if name == "value" else 1.0
        axes, shape = ("embed", "heads", "kv"), (c.d_model, c.num_heads, c.head_dim)
        bias = 2 if self._biased_maps else 0
        return Projection(equation, axes, shape, bias, stddev, c.compute_dtype, name=name)

    def _mixed(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        context: AttentionContext,
        deterministic: bool,
    ) -> jax.Array:
        c, dropout = self.config, Dropout(self.config.dropout_rate)
        if self.is_mutable_collection(MAPS) and not self.is_initializing():
            self.sow(MAPS, "weights", attention_weights(q, k, context))
        backend = BACKENDS[backend_of(c, q, k, context, deterministic)]
        return backend(q, k, v, context, lambda weights: dropout(weights, deterministic, MAP))

    def _project_out(self, mixed: jax.Array) -> jax.Array:
        c = self.config
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
        stddev = c.initializer_range
        if not c.attention_scale:
            stddev = (c.num_heads * c.head_dim) ** -0.5
        stddev *= c.init_gains[0]
        axes, shape = ("heads", "kv", "embed"), (c.num_heads, c.head_dim, c.d_model)
        bias = int(self._biased_maps)
        out = Projection("BLHK,HKD->BLD", axes, shape, bias, stddev, c.compute_dtype, name="out")
        return out(mixed)


def relative_sinusoids(
    query_length: int, key_length: int, width: int, *, causal: bool, clamp: int = 0
) -> jax.Array:
    """R: sines, then cosines, of each distance from a query back to a key, farthest first.

    Distances fall from key_length - 1 to -1 in causal attention and to -query_length in
    bidirectional attention; the last one is never used and makes room for the shift.

    Args:
        query_length: L.
        key_length: M; the queries stand at the last L keys.
        width: D, even.
        causal: whether keys after the query are never asked.
        clamp: distances beyond it count as it; 0 for no limit.

    Returns:
        [M + 1, D] causal or [M + L, D] bidirectional, float32.
    """
    end = -2 if causal else -query_length - 1
    distance = jnp.arange(key_length - 1, end, -1)
    if clamp:
        distance = jnp.clip(distance, -clamp, clamp)
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = distance.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def shift(scores: jax.Array, key_length: int, places: jax.Array | None = None) -> jax.Array:
    """From a score per distance to a score per key.

    Distance d stands in column M - 1 - d, so each query's keys are M neighbouring columns, one
    further left for each query. Reading rows of P columns as rows of P - 1 moves just so.

    Args:
        scores: [B, H, L, P], columns as in `relative_sinusoids`.
        key_length: M.
        places: [B, L] where the queries stand, in bidirectional attention; None for the last keys.

    Returns:
        [B, H, L, M]; of keys after the query only bidirectional scores mean anything.
    """
    batch, heads, length, columns = scores.shape
    if places is None:
        flat = scores.reshape(batch, heads, length * columns)
        flat = flat[..., length - 1 : length - 1 + length * (columns - 1)]
        return flat.reshape(batch, heads, length, columns - 1)[..., :key_length]
    starts = columns - key_length - 1 - places

    def window(row: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(row, start, key_length, axis=-1)

    over_queries = jax.vmap(window, in_axes=(1, 0), out_axes=1)
    return jax.vmap(over_queries)(scores, starts)


class RelativeAttention(Attention):
    """Called as `Attention` is; the context brings `distances`, and token types where it has them.

    A query to which `allowed` leaves no key at all gets zeros.

    Parameters: kernels "query", "key", "value", "position" [D, H, K] and "out" [H, K, D], all
    without bias; "content_bias" u and "position_bias" v [H, K]; with token types also "type_bias"
    s [H, K] and "type" [2, H, K], the vectors of an equal and of another type.
    """

    _biased_maps = False

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array, context: AttentionContext, deterministic: bool
    ) -> jax.Array:
        """x [B, L, D], memory [B, M, D] -> [B, L, D]."""
        q = self._project_in("query")(x)
        k = self._project_in("key")(memory)
        v = self._project_in("value")(memory)
        assert context.distances is not None, "relative attention needs context.distances"
        r = self._project_in("position", "PD,DHK->PHK")(context.distances)
        q, k, v = (constrain(t, "batch", "length", "heads", "kv") for t in (q, k, v))

        asked = self._biased(q, "position_bias")
        scores = jnp.einsum("BLHK,PHK->BHLP", asked, r, preferred_element_type=jnp.float32)
        bias = shift(scores, memory.shape[1], context.places)
        if self.config.type_vocab_size:
            bias = bias + self._type_scores(q, context)
        context = dataclasses.replace(context, bias=constrain(bias, *MAP))
        mixed = self._mixed(self._biased(q, "content_bias"), k, v, context, deterministic)
        if context.allowed is not None:
            # Softmax over nothing would be an average of everything, the forbidden included.
            sees = jnp.any(visible(context)[:, 0], axis=-1)
            mixed = jnp.where(sees[..., None, None], mixed, jnp.zeros_like(mixed))
        return self._project_out(mixed)

    def _biased(self, q: jax.Array, name: str) -> jax.Array:
        """(q + bias) / sqrt(K): every term of the score is scaled alike."""
        c = self.config
        init = named(nn.initializers.normal(c.initializer_range), "heads", "kv")
        bias = self.param(name, init, (c.num_heads, c.head_dim)).astype(q.dtype)
        return (q + bias[None, None]) * jnp.asarray(c.head_dim**-0.5, q.dtype)

    def _type_scores(self, q: jax.Array, context: AttentionContext) -> jax.Array:
        """XLNet's term: [B, H, L, M], or zero where the context knows no types."""
        c = self.config
        init = named(nn.initializers.normal(c.initializer_range), "types", "heads", "kv")
        vectors = self.param("type", init, (2, c.num_heads, c.head_dim)).astype(q.dtype)
        asked = self._biased(q, "type_bias")
        if context.query_types is None or context.key_types is None:
            return jnp.zeros((1, 1, 1, 1))
        scores = jnp.einsum("BLHK,THK->BHLT", asked, vectors, preferred_element_type=jnp.float32)
        equal = context.query_types[:, None, :, None] == context.key_types[:, None, None, :]
        return jnp.where(equal, scores[..., :1], scores[..., 1:])

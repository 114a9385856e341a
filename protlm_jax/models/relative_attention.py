"""Attention by relative distance (Dai et al. 2019, section 3.3), for Transformer-XL and XLNet.

The score of query i and key j at distance d = i - j is

    ((q_i + u) . k_j  +  (q_i + v) . (R_d W)) / sqrt(K)

with sinusoids R, a projection W of them, and biases u and v per head, all of each layer's own.
XLNet adds a third term, (q_i + s) . t, where t is one of two vectors: for keys of the query's own
token type and for others.

Axis letters: B batch, L query length, M key length, P distances, D d_model, H heads, K head size,
T token types equal or not.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import BACKENDS, MAP, MAPS, attention_weights
from protlm_jax.models.attention_choice import backend_of
from protlm_jax.models.attention_context import AttentionContext, visible
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Projection


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


class RelativeAttention(nn.Module):
    """Called as `Attention` is; the context brings `distances`, and token types where it has them.

    A query to which `allowed` leaves no key at all gets zeros.

    Parameters: kernels "query", "key", "value", "position" [D, H, K] and "out" [H, K, D], all
    without bias; "content_bias" u and "position_bias" v [H, K]; with token types also "type_bias"
    s [H, K] and "type" [2, H, K], the vectors of an equal and of another type.
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
        assert context.distances is not None, "relative attention needs context.distances"
        r = self._project_in("position", "PD,DHK->PHK")(context.distances)
        q, k, v = (constrain(t, "batch", "length", "heads", "kv") for t in (q, k, v))

        asked = self._biased(q, "position_bias")
        scores = jnp.einsum("BLHK,PHK->BHLP", asked, r, preferred_element_type=jnp.float32)
        bias = shift(scores, memory.shape[1], context.places)
        if c.type_vocab_size:
            bias = bias + self._type_scores(q, context)
        bias = constrain(bias, *MAP)

        dropout = Dropout(c.dropout_rate)
        asked, context = self._biased(q, "content_bias"), dataclasses.replace(context, bias=bias)
        if self.is_mutable_collection(MAPS) and not self.is_initializing():
            self.sow(MAPS, "weights", attention_weights(asked, k, context))
        mixed = BACKENDS[backend_of(c, asked, k, context, deterministic)](
            asked,
            k,
            v,
            context,
            lambda weights: dropout(weights, deterministic, MAP),
        )
        if context.allowed is not None:
            # Softmax over nothing would be an average of everything, the forbidden included.
            sees = jnp.any(visible(context)[:, 0], axis=-1)
            mixed = jnp.where(sees[..., None, None], mixed, jnp.zeros_like(mixed))
        mixed = constrain(mixed, "batch", "length", "heads", "kv")
        return Projection(
            "BLHK,HKD->BLD",
            ("heads", "kv", "embed"),
            (c.num_heads, c.head_dim, c.d_model),
            0,
            c.initializer_range,
            c.compute_dtype,
            name="out",
        )(mixed)

    def _project_in(self, name: str, equation: str = "BLD,DHK->BLHK") -> Projection:
        c = self.config
        return Projection(
            equation,
            ("embed", "heads", "kv"),
            (c.d_model, c.num_heads, c.head_dim),
            0,
            c.initializer_range,
            c.compute_dtype,
            name=name,
        )

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

"""Attention backends against each other and NumPy; relative buckets against transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.models import attention_kernels
from protlm_jax.models.attention import BACKENDS
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.positions import relative_bias, relative_buckets

B, L, M, H, K = 2, 6, 6, 2, 4
PADDED = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)
PACKED = np.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 0, 0, 0]], np.int32)
CASES = {
    "padding": (PADDED, False, False),
    "segments": (PACKED, False, False),
    "causal": (PADDED, False, True),
    "bias": (PADDED, True, False),
    "causal segments with bias": (PACKED, True, True),
}


def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = [(B, L, H, K), (B, M, H, K), (B, M, H, K), (1, H, L, M), (B, L, H, K)]
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def by_hand(segments: np.ndarray, biased: bool, causal: bool) -> np.ndarray:
    """One query at a time, over the keys it may see and no others."""
    q, k, v, bias, _ = inputs()
    out = np.zeros((B, L, H, K))
    for b, i, h in np.ndindex(B, L, H):
        seen = [j for j in range(M) if segments[b, i] == segments[b, j] and (j <= i or not causal)]
        scores = np.array([q[b, i, h] @ k[b, j, h] + biased * bias[0, h, i, j] for j in seen])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = (weights / weights.sum()) @ v[b, seen, h]
    return out


def value_and_gradients(backend: str, segments: np.ndarray, biased: bool, causal: bool):
    q, k, v, bias, direction = inputs()

    def run(q, k, v, bias):
        context = AttentionContext(
            jnp.asarray(segments), jnp.asarray(segments), bias if biased else None, causal
        )
        out = BACKENDS[backend](q, k, v, context, lambda weights: weights)
        return jnp.sum(out * direction), out

    gradients, out = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    return out, gradients


@pytest.mark.parametrize("case", CASES)
def test_a_few_queries_at_a_time_are_the_same(case, assert_close, monkeypatch) -> None:
    monkeypatch.setattr(attention_kernels, "chunk_of", lambda length, heads: 2)
    monkeypatch.setattr(attention_kernels, "_TILE", 3)
    segments, biased, causal = CASES[case]
    q, k, v, bias, _ = inputs()
    allowed = np.ones((1, L, M), bool)
    context = AttentionContext(segments, segments, bias if biased else None, causal, allowed)
    out = attention_kernels.chunked_attention(q, k, v, context, lambda weights: weights)
    assert_close(out, by_hand(*CASES[case]), 1e-6, case)


def test_chunks_divide_a_row() -> None:
    for length in (1, 16, 240, 509, 1216, 4096):
        for heads in (1, 20, 128):
            assert length % attention_kernels.chunk_of(length, heads) == 0
    assert [attention_kernels.chunk_of(4096, heads) for heads in (20, 128)] == [128, 32]


@pytest.mark.parametrize("case", CASES)
def test_backends_agree_with_each_other_and_with_a_hand_written_loop(case, assert_close) -> None:
    out, gradients = value_and_gradients("reference", *CASES[case])
    assert_close(out, by_hand(*CASES[case]), 1e-6, case)
    faster, faster_gradients = value_and_gradients("xla", *CASES[case])
    assert_close(faster, out, 1e-6, case)
    for name, a, b in zip("qkvb", faster_gradients, gradients, strict=True):
        if name != "b" or CASES[case][1]:
            assert_close(a, b, 1e-5, f"{case}: gradient of {name}")
            assert np.abs(b).max() > 0.01


def test_gradients_in_bfloat16_are_as_good_as_the_dtype(assert_close) -> None:
    rng = np.random.default_rng(1)
    shape, segments = (4, 64, 2, 16), np.repeat([[1, 2]], 32, axis=1).repeat(4, axis=0)
    context = AttentionContext(segments, segments)
    q, k, v, direction = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(4))

    def gradients(backend: str, dtype: str) -> tuple[jax.Array, ...]:
        def run(q, k, v):
            return jnp.sum(BACKENDS[backend](q, k, v, context, lambda w: w) * direction)

        found = jax.grad(run, argnums=(0, 1, 2))(*(x.astype(dtype) for x in (q, k, v)))
        return tuple(g.astype(jnp.float32) for g in found)

    exact, found = gradients("reference", "float32"), gradients("xla", "bfloat16")
    for name, a, b in zip("qkv", found, exact, strict=True):
        assert_close(a, b, 1e-2, f"gradient of {name}")
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) < 6e-3  # half a step is 2e-3


@pytest.mark.parametrize("backend", ["reference", "xla", "chunked"])
def test_rows_without_a_visible_key_stay_finite(backend: str) -> None:
    """A decoder's padding looks at an encoder row without any, and whole rows are padding."""
    q, k, v, _, _ = inputs()
    queries = jnp.asarray(np.array([[0] * L, [1, 1, 1, 1, 0, 0]], np.int32))
    keys = jnp.ones((B, M), jnp.int32)

    def total(q, k, v):
        out = BACKENDS[backend](q, k, v, AttentionContext(queries, keys), lambda w: w)
        return jnp.sum(out**2)

    assert np.isfinite(total(q, k, v))
    if backend != "chunked":  # which is for inference
        q_gradient, k_gradient, v_gradient = jax.grad(total, argnums=(0, 1, 2))(q, k, v)
        # What sees nothing takes the mean of the values, whatever it asks.
        assert not np.any(q_gradient[queries == 0]) and np.any(q_gradient[queries == 1])
        assert not np.any(k_gradient[0]) and np.any(k_gradient[1])
        assert np.isfinite(v_gradient).all()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20)])
def test_relative_buckets_are_those_of_transformers(bidirectional, buckets, distance) -> None:
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    expected = t5.T5Attention._relative_position_bucket(relative, bidirectional, buckets, distance)
    found = relative_buckets(300, 300, buckets, distance, bidirectional)
    np.testing.assert_array_equal(found, expected.numpy())


def test_relative_bias_reads_the_table_by_query_and_key() -> None:
    table = np.arange(64, dtype=np.float32).reshape(32, 2)
    bias = np.asarray(relative_bias(jnp.asarray(table), 3, 4, 128, True))
    assert bias.shape == (1, 2, 3, 4)
    # Key after the query: the upper half; the query itself: bucket 0; before it: the lower half.
    assert bias[0, 0].tolist() == [[0, 34, 36, 38], [2, 0, 34, 36], [4, 2, 0, 34]]


def test_chunks_hide_no_value_that_is_not_finite() -> None:
    """It stays in its own stream: the protein beside it in the row does not see it."""
    q, k, v, _, _ = inputs()
    q, k, v = (x[:, : min(L, M)] for x in (q, k, v))
    segments = jnp.asarray(
        np.repeat([[1] * 3 + [2] * (q.shape[1] - 3)], B, axis=0).astype(np.int32)
    )
    for bad in (np.nan, np.inf):
        out = np.asarray(
            attention_kernels.chunked_attention(
                q,
                k,
                jnp.asarray(v).at[0, 1, 0, 2].set(bad),
                AttentionContext(segments, segments),
                lambda w: w,
            )
        )
        wrong = np.argwhere(~np.isfinite(out))
        assert wrong.tolist() == [[0, 1, 0, 2]]

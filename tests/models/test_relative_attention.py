"""Relative attention against the formula of the paper, one score at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax.models.attention import MAPS, RelativeAttention, relative_sinusoids
from protlm_jax.models.attention_context import MASKED, AttentionContext, visible
from protlm_jax.models.config import ModelConfig

B, L, PAST, D, H, K = 2, 6, 4, 8, 2, 3
CONFIG = ModelConfig(
    family="xlnet",
    vocabulary="prot_xlnet",
    vocab_size=30,
    d_model=D,
    num_layers=1,
    num_heads=H,
    head_dim=K,
    d_ff=8,
    positions="relative_xl",
    type_vocab_size=2,
    initializer_range=0.7,
)


def sinusoid(distance: int) -> np.ndarray:
    rates = [10_000.0 ** (-2 * i / D) for i in range(D // 2)]
    return np.array([np.sin(distance * r) for r in rates] + [np.cos(distance * r) for r in rates])


def by_hand(
    params: dict, x: np.ndarray, memory: np.ndarray, context: AttentionContext
) -> np.ndarray:
    """Section 3.3 of Dai et al. 2019 and section 2.5 of Yang et al. 2019, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    sees = np.asarray(visible(context))[:, 0]
    out = np.zeros((*x.shape[:2], D))
    before = memory.shape[1] - L
    for b in range(B):
        for i in range(x.shape[1]):
            place = i if context.places is None else int(context.places[b, i])
            for h in range(H):
                q = x[b, i] @ p["query"]["kernel"][:, h]
                scores = []
                for j in range(memory.shape[1]):
                    k = memory[b, j] @ p["key"]["kernel"][:, h]
                    r = sinusoid(before + place - j) @ p["position"]["kernel"][:, h]
                    score = (q + p["content_bias"][h]) @ k + (q + p["position_bias"][h]) @ r
                    if context.query_types is not None:
                        other = int(context.query_types[b, i] != context.key_types[b, j])
                        score += (q + p["type_bias"][h]) @ p["type"][other, h]
                    scores.append(score / K**0.5 if sees[b, i, j] else MASKED)
                weights = np.exp(scores - np.max(scores))
                values = memory[b] @ p["value"]["kernel"][:, h]
                out[b, i] += (weights / weights.sum()) @ values @ p["out"]["kernel"][h]
    return out


def inputs(
    past: int, *, causal: bool, types: bool
) -> tuple[np.ndarray, np.ndarray, AttentionContext]:
    rng = np.random.default_rng(past)
    x, older = rng.normal(size=(B, L, D)), rng.normal(size=(B, past, D))
    segments = jnp.asarray([[2, 2, 2, 3, 3, 0], [2, 2, 2, 2, 2, 2]])
    older_segments = jnp.asarray([[1, 1, 2, 2], [2, 2, 2, 2]])[:, :past]
    keys = jnp.concatenate([older_segments, segments], axis=1)
    context = AttentionContext(
        segments,
        keys,
        causal=causal,
        distances=relative_sinusoids(L, past + L, D, causal=causal),
        query_types=jnp.asarray([[0, 0, 2, 0, 2, 0], [0, 0, 0, 0, 0, 2]]) if types else None,
        key_types=jnp.asarray(rng.integers(0, 2, (B, past + L)) * 2) if types else None,
    )
    return x, np.concatenate([older, x], axis=1), context


def attend(
    params: dict, x: np.ndarray, memory: np.ndarray, context: AttentionContext
) -> np.ndarray:
    module = RelativeAttention(CONFIG)
    x, memory = (jnp.asarray(a, jnp.float32) for a in (x, memory))
    return module.apply({"params": params}, x, memory, context, True)


@pytest.fixture(scope="module")
def params() -> dict:
    x, memory, context = inputs(0, causal=False, types=True)
    x, memory = (jnp.asarray(a, jnp.float32) for a in (x, memory))
    boxed = RelativeAttention(CONFIG).init(jax.random.key(0), x, memory, context, True)["params"]
    return jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda b: hasattr(b, "names"))


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_formula(params: dict, causal: bool, past: int, types: bool) -> None:
    x, memory, context = inputs(past, causal=causal, types=types)
    ours = attend(params, x, memory, context)
    np.testing.assert_allclose(ours, by_hand(params, x, memory, context), atol=2e-5)


def test_the_weights_that_it_shows_are_those_it_mixes_with(params: dict) -> None:
    x, memory, context = inputs(PAST, causal=False, types=True)
    module = RelativeAttention(CONFIG)
    x, memory = (jnp.asarray(a, jnp.float32) for a in (x, memory))
    out, left = module.apply({"params": params}, x, memory, context, True, mutable=[MAPS])
    weights = left[MAPS]["weights"][0]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    values = jnp.einsum("BMD,DHK->BMHK", memory, params["value"]["kernel"])
    mixed = jnp.einsum("BHLM,BMHK,HKD->BLD", weights, values, params["out"]["kernel"])
    np.testing.assert_allclose(out, mixed, atol=2e-5)


@pytest.mark.parametrize("past", [0, PAST])
def test_some_places_of_the_row_ask(params: dict, past: int) -> None:
    x, memory, context = inputs(past, causal=False, types=True)
    places = jnp.asarray([[4, 0], [5, 2]])
    picked = dataclasses.replace(
        context,
        places=places,
        query_segments=jnp.take_along_axis(context.query_segments, places, 1),
        query_types=jnp.take_along_axis(context.query_types, places, 1),
    )
    chosen = np.take_along_axis(x, np.asarray(places)[..., None], 1)
    ours = attend(params, chosen, memory, picked)
    np.testing.assert_allclose(ours, by_hand(params, chosen, memory, picked), atol=2e-5)
    whole = np.asarray(attend(params, x, memory, context))
    of_whole = np.take_along_axis(whole, np.asarray(places)[..., None], 1)
    np.testing.assert_allclose(ours, of_whole, atol=1e-5)


def test_one_query_and_its_past(params: dict) -> None:
    """The smallest shift: a row of one token after a memory."""
    x, memory, context = inputs(PAST, causal=True, types=False)
    last = dataclasses.replace(
        context,
        query_segments=context.query_segments[:, -1:],
        distances=relative_sinusoids(1, PAST + L, D, causal=True),
    )
    whole = attend(params, x, memory, context)
    alone = attend(params, x[:, -1:], memory, last)
    np.testing.assert_allclose(alone, whole[:, -1:], atol=1e-5)


def test_a_query_that_may_see_nothing_sees_nothing(params: dict) -> None:
    x, memory, context = inputs(0, causal=False, types=True)
    allowed = np.ones((B, L, L), bool)
    allowed[0, :3, :3] = False  # the first protein of the first row
    limited = dataclasses.replace(context, allowed=jnp.asarray(allowed))
    ours = np.asarray(attend(params, x, memory, limited))
    assert not ours[0, :3].any()
    np.testing.assert_allclose(ours[1], attend(params, x, memory, context)[1], atol=1e-6)

    def read(memory: jax.Array) -> jax.Array:
        query = jnp.asarray(x, jnp.float32)
        out = RelativeAttention(CONFIG).apply({"params": params}, query, memory, limited, True)
        return jnp.sum(out[0, :3])

    assert not np.asarray(jax.grad(read)(jnp.asarray(memory, jnp.float32))).any()


def test_clamped_distances() -> None:
    table = np.asarray(relative_sinusoids(3, 5, D, causal=False, clamp=2))
    expected = [sinusoid(int(np.clip(d, -2, 2))) for d in (4, 3, 2, 1, 0, -1, -2, -3)]
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_axes_have_names() -> None:
    x, memory, context = inputs(0, causal=False, types=True)
    module = RelativeAttention(CONFIG)
    boxed = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(memory), context, True)
    )["params"]
    names = {
        path[0].key: box.names
        for path, box in jax.tree_util.tree_leaves_with_path(
            boxed, is_leaf=lambda leaf: hasattr(leaf, "names")
        )
    }
    assert names["position"] == ("embed", "heads", "kv")
    assert names["content_bias"] == names["position_bias"] == ("heads", "kv")
    assert names["type"] == ("types", "heads", "kv")

"""Transformer-XL against the equations of its paper, with and without a memory.

No class of transformers 5 is left to compare with. The reference is written in torch from sections
3.2 and 3.3 of Dai et al. 2019, pair by pair: no shift of scores by rows, and no mask but one made
from who is who. The class of transformers 4 is asked in tests/huggingface/test_transformer_xl.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
import zoo

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.models import ModelConfig
from protlm_jax.models.families.transformer_xl import transformer_xl_config
from protlm_jax.objectives.base import cross_entropy

torch = pytest.importorskip("torch")

CONFIG = transformer_xl_config(
    **zoo.SIZES, memory_length=6, initializer_range=0.2, dropout_rate=0.0
)
# A packed row, one with padding, and one protein that fills its row.
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0], [3] * 8 + [0] * 4, [4] * 12], np.int32)
TOKENS = np.random.default_rng(0).integers(4, 24, SEGMENTS.shape).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(4, 24, SEGMENTS.shape).astype(np.int32)

Batch = dict[str, np.ndarray]


@functools.cache
def params(seed: int = 0) -> Any:
    return zoo.perturbed(models.init_params(models.build(CONFIG), seed), seed + 1)


def distance_code(distance: int, width: int, clamp: int) -> Any:
    distance = min(distance, clamp) if clamp else distance
    rates = [10_000 ** (-2 * i / width) for i in range(width // 2)]
    wave = [math.sin(distance * r) for r in rates] + [math.cos(distance * r) for r in rates]
    return torch.tensor(wave, dtype=torch.float64)


class Reference:
    """The model in float64; `memory` is per layer [rows, remembered, width], with segments."""

    def __init__(self, config: ModelConfig, tree: Any) -> None:
        self.config = config
        leaf = functools.partial(torch.tensor, dtype=torch.float64, requires_grad=True)
        self.weights = jax.tree.map(lambda x: leaf(np.asarray(x)), tree)

    def __call__(
        self, tokens: np.ndarray, segments: np.ndarray, memory: Any = None, seen: Any = None
    ) -> tuple[Any, list[Any]]:
        """Logits, and the stream before each layer."""
        c, w = self.config, self.weights
        h = w["token"][torch.tensor(tokens).long()] * math.sqrt(c.d_model)
        streams = []
        for layer in range(c.num_layers):
            streams.append(h)
            past = h[:, :0] if memory is None else memory[layer]
            h = self.block(
                jax.tree.map(lambda x, n=layer: x[n], w["encoder"]), h, past, segments, seen
            )
        return h @ w["token"].T + w["head_bias"], streams

    def block(self, w: Any, h: Any, past: Any, segments: np.ndarray, seen: Any) -> Any:
        c, a = self.config, w["attention"]
        keys = torch.cat([past, h], dim=1)
        owners = segments if seen is None else np.concatenate([seen, segments], axis=1)
        q = torch.einsum("bld,dhk->blhk", h, a["query"]["kernel"])
        k = torch.einsum("bmd,dhk->bmhk", keys, a["key"]["kernel"])
        v = torch.einsum("bmd,dhk->bmhk", keys, a["value"]["kernel"])
        before = past.shape[1]
        codes = [distance_code(d, c.d_model, c.clamp_length) for d in range(keys.shape[1])]
        r = torch.einsum("pd,dhk->phk", torch.stack(codes), a["position"]["kernel"])
        mixed = []
        for i in range(h.shape[1]):
            scores = []
            for j in range(before + i + 1):
                distance = before + i - j
                content = ((q[:, i] + a["content_bias"]) * k[:, j]).sum(-1)
                place = ((q[:, i] + a["position_bias"]) * r[distance]).sum(-1)
                visible = torch.tensor(owners[:, j] == segments[:, i])
                if c.same_length and distance >= c.memory_length:
                    visible = torch.zeros_like(visible)
                score = (content + place) / math.sqrt(c.head_dim)
                scores.append(torch.where(visible[:, None], score, -torch.inf))
            weights = torch.stack(scores, dim=1).softmax(dim=1)
            mixed.append((weights[..., None] * v[:, : before + i + 1]).sum(dim=1))
        out = torch.einsum("blhk,hkd->bld", torch.stack(mixed, dim=1), a["out"]["kernel"])
        h = self.norm(h + out, w["attention_norm"])
        inner = (h @ w["mlp"]["wi"]["kernel"] + w["mlp"]["wi"]["bias"]).relu()
        return self.norm(
            h + inner @ w["mlp"]["wo"]["kernel"] + w["mlp"]["wo"]["bias"], w["mlp_norm"]
        )

    def norm(self, x: Any, w: Any) -> Any:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + self.config.norm_eps).sqrt() * w["scale"] + w["bias"]


def ours(config: ModelConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits, and the stream before each layer: [layers, batch, length, d_model]."""
    model = models.build(config)

    @jax.jit
    def run(params: Any) -> Any:
        h, context = model.apply({"params": params}, batch, method="embed")
        h, taps = model.apply({"params": params}, h, context, method="stack")
        return model.apply({"params": params}, h, method="head"), taps["encoder"]["stream"]

    return run(params())


def test_logits_streams_and_gradients_are_those_of_the_paper(assert_close: Any) -> None:
    """Packed and padded rows; gradients of the loss at real positions alone."""
    batch = {"input_tokens": TOKENS, "segment_ids": SEGMENTS}
    reference = Reference(CONFIG, params())
    expected, streams = reference(TOKENS, SEGMENTS)
    logits, taps = ours(CONFIG, batch)
    real = SEGMENTS > 0
    assert_close(logits[real], expected.detach().numpy()[real], 1e-5, "logits")
    for layer, stream in enumerate(streams):
        assert_close(taps[layer][real], stream.detach().numpy()[real], 1e-5, f"layer {layer}")

    def loss(params: Any) -> jax.Array:
        logits = models.build(CONFIG).apply({"params": params}, batch)
        return jax.numpy.sum(cross_entropy(logits, TARGETS) * real)

    chosen = expected[torch.tensor(real)]
    torch.nn.functional.cross_entropy(
        chosen, torch.tensor(TARGETS[real]).long(), reduction="sum"
    ).backward()
    gradients = jax.tree.map(lambda t: t.grad.numpy(), reference.weights)
    assert_close(jax.jit(jax.grad(loss))(params()), gradients, 1e-4, "gradient")


@pytest.mark.parametrize("change", [{}, {"same_length": True}, {"clamp_length": 4}], ids=str)
def test_a_row_after_its_memory_is_that_of_the_paper(
    change: dict[str, Any], assert_close: Any
) -> None:
    """A memory with streams of the same protein, of another one, and of nothing yet."""
    config = CONFIG.replace(**change)
    rng = np.random.default_rng(3)
    past = rng.normal(size=(3, config.num_layers, 6, config.d_model)).astype(np.float32)
    seen = np.array([[9, 9, 1, 1, 1, 1], [0, 0, 0, 0, 3, 3], [8] * 6], np.int32)
    memory = {"past": past, "past_segments": seen}
    logits, _ = ours(config, {"input_tokens": TOKENS, "segment_ids": SEGMENTS, **memory})
    layers = [torch.tensor(past[:, n], dtype=torch.float64) for n in range(config.num_layers)]
    expected, streams = Reference(config, params())(TOKENS, SEGMENTS, layers, seen)
    real = SEGMENTS > 0
    assert_close(logits[real], expected.detach().numpy()[real], 1e-5)
    _, carry = models.build(config).apply(
        {"params": params()},
        {"input_tokens": TOKENS, "segment_ids": SEGMENTS},
        memory,
        method="recur",
    )
    np.testing.assert_array_equal(carry["past_segments"], SEGMENTS[:, -6:])
    newest = np.stack([s.detach().numpy()[:, -6:] for s in streams], axis=1)
    kept = np.asarray(carry["past_segments"]) > 0
    assert_close(np.swapaxes(carry["past"], 1, 2)[kept], np.swapaxes(newest, 1, 2)[kept], 1e-5)


def recurred(config: ModelConfig, batch: Batch, piece: int) -> np.ndarray:
    """Logits of rows that are given in pieces."""
    model = models.build(config)
    recur = jax.jit(functools.partial(model.apply, {"params": params()}, method="recur"))
    carry, found = model.initial_carry(len(TOKENS)), []
    for start in range(0, TOKENS.shape[1], piece):
        part = {name: x[:, start : start + piece] for name, x in batch.items()}
        logits, carry = recur(part, carry)
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("piece", [1, 4, 6])
def test_pieces_with_a_memory_are_one_long_row(piece: int, assert_close: Any) -> None:
    """Exactly so where the memory holds all of it, or where every query sees the same number."""
    batch = {"input_tokens": TOKENS, "segment_ids": SEGMENTS}
    real = SEGMENTS > 0
    for config in (CONFIG.replace(memory_length=12), CONFIG.replace(same_length=True)):
        whole, _ = ours(config, batch)
        found = recurred(config, batch, piece)
        assert_close(found[real], np.asarray(whole)[real], 1e-5, str(config.same_length))
    whole, _ = ours(CONFIG, batch)
    short = recurred(CONFIG, batch, piece)
    shows = np.abs(short - whole)[2].max() > 1e-3
    assert shows == (piece + CONFIG.memory_length < TOKENS.shape[1]), "a short memory must show"


def test_a_memory_gives_no_gradient_and_takes_none() -> None:
    model = models.build(CONFIG)
    batch = {"input_tokens": TOKENS, "segment_ids": SEGMENTS}

    def remembered(params: Any) -> jax.Array:
        carry = model.initial_carry(3)
        _, carry = model.apply({"params": params}, batch, carry, method="recur")
        return jax.numpy.sum(carry["past"] ** 2)

    gradient = jax.grad(remembered)(params())
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_nobody_sees_what_comes_later() -> None:
    model = models.build(CONFIG)
    h, context = model.apply(
        {"params": params()}, {"input_tokens": TOKENS, "segment_ids": SEGMENTS}, method="embed"
    )

    def read(h: Any) -> jax.Array:
        out, _ = model.apply({"params": params()}, h, context, method="stack")
        return jax.numpy.sum(model.apply({"params": params()}, out, method="head")[2, 7, :7])

    reached = np.abs(np.asarray(jax.grad(read)(h)["encoder"])).max(axis=-1)
    assert (reached[2, :8] > 0).all() and not reached[2, 8:].any() and not reached[:2].any()


def test_published_sizes() -> None:
    """409 M and 562 M; the latter only with heads of 128."""
    for preset, millions in (("prot_txl", 409), ("prot_txl_bfd", 562)):
        model = models.build(models.preset(preset))
        assert round(models.parameter_count(models.abstract_params(model)) / 1e6) == millions
    narrow = models.build(models.preset("prot_txl_bfd").replace(head_dim=64))
    assert round(models.parameter_count(models.abstract_params(narrow)) / 1e6) == 416


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ProtlmError, match=r"same_length needs a model\.memory_length"):
        CONFIG.replace(memory_length=0, same_length=True)
    with pytest.raises(ProtlmError, match=r"model\.memory_length is -1"):
        CONFIG.replace(memory_length=-1)
    assert models.build(CONFIG.replace(memory_length=0)).initial_carry(4) == {}

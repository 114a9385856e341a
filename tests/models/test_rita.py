"""RITA against GPT-NeoX of transformers, which is the same network with fused projections."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from protlm_jax import models
from protlm_jax.huggingface.convert import EXCHANGES, params_from, tensors
from protlm_jax.objectives.base import cross_entropy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

REAL = np.arange(12)[None] < np.array([12, 5, 9])[:, None]
RNG = np.random.default_rng(3)
TOKENS = np.where(REAL, RNG.integers(3, 23, REAL.shape), 1).astype(np.int32)
TARGETS = RNG.integers(3, 23, REAL.shape).astype(np.int32)
BATCH = {
    "input_tokens": TOKENS,
    "segment_ids": REAL.astype(np.int32),
    "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
}
NAMES = {
    "transformer.embedding": "gpt_neox.embed_in",
    "transformer.final_norm": "gpt_neox.final_layer_norm",
    "transformer.layers": "gpt_neox.layers",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.0": "mlp.dense_h_to_4h",
    "mlp.2": "mlp.dense_4h_to_h",
    "self_attention.proj": "attention.dense",
}
FUSED = ("query", "key", "value")  # of each head, one after the other


def neox_name(name: str) -> tuple[str, int | None]:
    """GPT-NeoX's name of a tensor, and its part of a fused one."""
    part = next((i for i, p in enumerate(FUSED) if f"self_attention.{p}." in name), None)
    if part is not None:
        name = name.replace(f"self_attention.{FUSED[part]}", "attention.query_key_value")
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name, part


def parts(fused: Any, heads: int) -> Any:
    """[heads, 3, size, ...] of a fused weight or bias."""
    return fused.unflatten(0, (heads, 3, -1))


@functools.cache
def both() -> tuple[Any, Any, Any, Any]:
    """Streams and logits of ours and of GPT-NeoX, and both gradients in our tree."""
    loaded = zoo.loaded("rita")
    config, exchange = loaded.config, EXCHANGES["rita"]

    def loss(params: Any) -> tuple[jax.Array, Any]:
        h, context = loaded.model.apply({"params": params}, BATCH, method="embed")
        out, taps = loaded.model.apply({"params": params}, h, context, method="stack")
        logits = loaded.model.apply({"params": params}, out, method="head")
        lost = jnp.sum(cross_entropy(logits, jnp.asarray(TARGETS)) * REAL)
        return lost, {"streams": taps["encoder"]["stream"], "logits": logits}

    start = {**loaded.params, "frequencies": models.init_params(loaded.model, 0)["frequencies"]}
    gradients, seen = jax.jit(jax.grad(loss, has_aux=True))(start)
    network = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.d_ff,
            hidden_act="gelu_new",
            rotary_pct=1.0,
            use_parallel_residual=False,
            tie_word_embeddings=False,
        )
    ).eval()
    theirs = dict(network.named_parameters())
    with torch.no_grad():
        for name, array in tensors(exchange, start):
            if name == "transformer.inv_freq":
                continue
            target, part = neox_name(name)
            array = torch.tensor(array)
            if part is None:
                theirs[target].copy_(array)
            else:
                whole = parts(theirs[target], config.num_heads)
                whole[:, part] = array.unflatten(0, (config.num_heads, -1))
    out = network(torch.tensor(TOKENS).long(), output_hidden_states=True)
    real = torch.tensor(REAL)
    lost = torch.nn.functional.cross_entropy
    lost(out.logits[real], torch.tensor(TARGETS)[real].long(), reduction="sum").backward()

    def gradient(name: str) -> np.ndarray:
        if name == "transformer.inv_freq":
            return np.zeros(config.head_dim // 2, np.float32)
        target, part = neox_name(name)
        found = theirs[target].grad
        return (
            found if part is None else parts(found, config.num_heads)[:, part].flatten(0, 1)
        ).numpy()

    expected = params_from(exchange, models.abstract_params(loaded.model), gradient)
    return seen, out, gradients, expected


def test_streams_and_logits_are_those_of_gpt_neox(assert_close: Any) -> None:
    seen, out, _, _ = both()
    for depth, (ours, theirs) in enumerate(zip(seen["streams"], out.hidden_states, strict=False)):
        assert_close(np.asarray(ours)[REAL], theirs.detach().numpy()[REAL], 1e-4, f"block {depth}")
    logits = out.logits.detach().numpy()
    assert_close(np.asarray(seen["logits"])[REAL], logits[REAL], 1e-4, "logits")


def test_every_gradient_is_that_of_gpt_neox(assert_close: Any) -> None:
    _, _, gradients, expected = both()
    for path, one in jax.tree_util.tree_leaves_with_path(expected):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
        name = jax.tree_util.keystr(path)
        assert_close(ours, one, 1e-4, name)
        assert ("frequencies" in name) != (np.abs(one).max() > 0)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("rita_s", 85.1), ("rita_m", 302.4), ("rita_l", 680.0), ("rita_xl", 1208.7)],
)
def test_presets_have_their_published_sizes(preset: str, millions: float) -> None:
    tree = models.abstract_params(models.build(models.preset(preset)))
    assert round(models.parameter_count(tree) / 1e6, 1) == millions

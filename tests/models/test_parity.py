"""Every block's stream and every gradient against PyTorch's, with the same weights and padding.

The logits are compared in tests/huggingface/test_logits.py, through files.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protlm_jax import models
from protlm_jax.huggingface.convert import EXCHANGES, params_from, tensors
from protlm_jax.models.families.albert import albert_config
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.electra import (
    discriminator_config,
    electra_config,
    generator_config,
)
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.models.families.esmc import esmc_config
from protlm_jax.models.families.gpt2 import gpt2_config
from protlm_jax.models.families.roberta import roberta_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.objectives.base import cross_entropy
from protlm_jax.objectives.replaced_token import binary_cross_entropy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "d_ff": 32}
ELECTRA = electra_config(**SIZES, generator_shrink=2, max_positions=16, initializer_range=0.2)
CONFIGS = {
    "albert": albert_config(**SIZES, embedding_size=12, max_positions=16, initializer_range=0.2),
    "bert": bert_config(**SIZES, max_positions=16, initializer_range=0.2),
    "electra_discriminator": discriminator_config(ELECTRA),
    "electra_generator": generator_config(ELECTRA),
    "esm2": esm2_config(**SIZES, initializer_range=0.2),
    "esmc": esmc_config(**SIZES, initializer_range=0.2),
    "gpt2": gpt2_config(**SIZES, max_positions=16, initializer_range=0.2),
    "roberta": roberta_config(**SIZES, max_positions=16, initializer_range=0.2),
    "saprot": esm2_config(**SIZES, vocabulary="saprot", vocab_size=446, initializer_range=0.2),
    "t5": t5_config(**{**SIZES, "head_dim": 16}, num_decoder_layers=3),
}
LENGTHS = np.array([12, 5, 9])
REAL = np.arange(12)[None] < LENGTHS[:, None]  # [B, L]
# Where their blocks are; ALBERT has one, which runs again and again.
BLOCKS = {
    "albert": {"encoder": lambda network: network.albert.encoder.albert_layer_groups},
    "bert": {"encoder": lambda network: network.bert.encoder.layer},
    "electra_discriminator": {"encoder": lambda network: network.electra.encoder.layer},
    "electra_generator": {"encoder": lambda network: network.electra.encoder.layer},
    "esm2": {"encoder": lambda network: network.esm.encoder.layer},
    "esmc": {"encoder": lambda network: network.esmc.layers},
    "gpt2": {"encoder": lambda network: network.transformer.h},
    "roberta": {"encoder": lambda network: network.roberta.encoder.layer},
    "saprot": {"encoder": lambda network: network.esm.encoder.layer},
    "t5": {
        "encoder": lambda network: network.encoder.block,
        "decoder": lambda network: network.decoder.block,
    },
}


def tokens(seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(5, 23, REAL.shape)
    return np.where(REAL, ids, 0).astype(np.int32)


def batch(family: str) -> dict[str, np.ndarray]:
    sides = {
        "segment_ids": REAL.astype(np.int32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (3, 1)),
    }
    if family != "t5":
        return {"input_tokens": shown(family), **sides}
    made = {f"{stack}_{k}": v for stack in BLOCKS["t5"] for k, v in sides.items()}
    return {**made, "encoder_input_tokens": tokens(0), "decoder_input_tokens": tokens(1)}


TARGETS = tokens(2)
REPLACED = TARGETS % 3 == 0
ASKED = REAL & (np.random.default_rng(3).random(REAL.shape) < 0.5)
# Parameters that no loss reaches, so that PyTorch has no gradient of them.
UNREACHED = ("frequencies", "contact_head/kernel", "contact_head/bias")


def shown(family: str) -> np.ndarray:
    """The input; with <mask> in it where that is more than another token, another share a row."""
    return np.where(ASKED, 32, tokens(0)).astype(np.int32) if family == "esm2" else tokens(0)


@functools.cache
def ours(family: str) -> tuple[Any, Any, dict[str, np.ndarray], Any]:
    """Model, parameters, streams [blocks + 1, B, L, D] of each stack, and gradients."""
    model = models.build(CONFIGS[family])
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32),
        models.init_params(model, seed=0),
    )
    run = functools.partial(model.apply, method="stack")

    def loss(params: Any) -> tuple[jax.Array, Any]:
        h, context = model.apply({"params": params}, batch(family), method="embed")
        out, taps = run({"params": params}, h, context)
        streams = {name: jnp.concatenate([taps[name]["stream"], out[name][None]]) for name in taps}
        logits = model.apply({"params": params}, out, method="head")
        if family == "electra_discriminator":
            lost = binary_cross_entropy(logits[..., 0], jnp.asarray(REPLACED))
        else:
            lost = cross_entropy(logits, jnp.asarray(TARGETS))
        return jnp.sum(lost * ASKED), streams

    gradients, streams = jax.jit(jax.grad(loss, has_aux=True))(params)
    return model, params, streams, gradients


@functools.cache
def theirs(family: str) -> tuple[dict[str, np.ndarray], Any]:
    """The same from PyTorch: streams caught by hooks, gradients by name."""
    model, params, _, _ = ours(family)
    exchange = EXCHANGES[CONFIGS[family].family]
    config = transformers.AutoConfig.for_model(
        exchange.model_type, **exchange.to_config(model.config)
    )
    network = getattr(transformers, exchange.architecture)(config).eval()
    state = {name: torch.tensor(array) for name, array in tensors(exchange, params)}
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    network.tie_weights()
    rows = {name: find(network) for name, find in BLOCKS[family].items()}
    streams: dict[str, list[np.ndarray]] = {name: [] for name in rows}

    def catch(name: str, tensor: Any, first: bool = False) -> None:
        if first and streams[name]:
            return
        streams[name].append((tensor[0] if isinstance(tensor, tuple) else tensor).detach().numpy())

    for name, blocks in rows.items():
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs, name=name: catch(
                name, args[0] if args else kwargs["hidden_states"], first=True
            ),
            with_kwargs=True,
        )
        for block in blocks:
            block.register_forward_hook(lambda _, args, out, name=name: catch(name, out))
    mask = torch.tensor(REAL.astype(np.int64))
    inputs = {"input_ids": torch.tensor(shown(family)).long(), "attention_mask": mask}
    if family == "t5":
        inputs |= {"decoder_input_ids": torch.tensor(tokens(1)).long()}
        inputs |= {"decoder_attention_mask": mask}
    logits = network(**inputs).logits
    asked = torch.tensor(ASKED)
    if family == "electra_discriminator":
        lost, answer = torch.nn.functional.binary_cross_entropy_with_logits, torch.tensor(REPLACED)
        lost(logits[asked], answer[asked].float(), reduction="sum").backward()
    else:
        lost, answer = torch.nn.functional.cross_entropy, torch.tensor(TARGETS)
        lost(logits[asked], answer[asked].long(), reduction="sum").backward()
    named = dict(network.named_parameters()) | dict(network.named_buffers())

    def gradient(name: str) -> np.ndarray:
        found = named[name].grad
        return (torch.zeros_like(named[name]) if found is None else found).detach().numpy()

    gradients = params_from(exchange, models.abstract_params(model), gradient)
    return {name: np.stack(caught) for name, caught in streams.items()}, gradients


@pytest.mark.parametrize("family", CONFIGS)
def test_every_blocks_stream_is_that_of_torch(family: str, assert_close) -> None:
    _, _, streams, _ = ours(family)
    expected, _ = theirs(family)
    assert set(streams) == set(BLOCKS[family])
    for stack, found in streams.items():
        for depth, (a, b) in enumerate(zip(found, expected[stack], strict=True)):
            assert_close(np.asarray(a)[REAL], b[REAL], 1e-4, f"{stack} before block {depth}")


@pytest.mark.parametrize("family", CONFIGS)
def test_every_gradient_is_that_of_torch(family: str, assert_close) -> None:
    _, _, _, gradients = ours(family)
    _, expected = theirs(family)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for path, reference in jax.tree_util.tree_leaves_with_path(expected):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
        # Softmax does not see it, unless it is turned by its position: both are rounding noise.
        if name.endswith("key/bias") and CONFIGS[family].positions != "rotary":
            query = np.abs(expected["encoder"]["attention"]["query"]["bias"]).max()
            assert max(np.abs(found).max(), np.abs(reference).max()) < 1e-4 * query
            continue
        parts = zip(found, reference, strict=True) if "coder/" in name else [(found, reference)]
        for layer, (a, b) in enumerate(parts):
            assert_close(a, b, 1e-4, f"{name}, layer {layer}")
            assert (np.abs(b).max() > 0) != (name in UNREACHED), name

"""Sizes of the published models, and what a forward pass costs."""

from __future__ import annotations

import jax
import pytest

from protlm_jax import models
from protlm_jax.errors import ProtlmError
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models.build import example_batch
from protlm_jax.models.config import ModelConfig
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
from protlm_jax.models.families.progen2 import progen2_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.families.transformer_xl import transformer_xl_config
from protlm_jax.models.families.xlnet import xlnet_config
from protlm_jax.models.flops import forward_flops_per_token, training_flops_per_token


def counts(preset: str) -> dict[str, int]:
    """Parameters by top-level name; nothing is allocated."""
    tree = models.abstract_params(models.build(models.preset(preset)))
    return {name: models.parameter_count(part) for name, part in tree.items()}


def test_prot_bert_has_its_published_size() -> None:
    """Published with a pooler, which takes no part in masked modelling and which we do not hold."""
    size = counts("prot_bert")
    width = 1024
    assert size["embedder"] + size["encoder"] + width * width + width == 419_931_136  # 419.9 M
    assert size["head"] == width * width + width + 2 * width + 30


def test_prot_albert_has_its_published_size() -> None:
    """Published with a pooler, and without the head: 223.8 M. The file holds the head as well, and
    up to 0.1 % of names and offsets."""
    size = counts("prot_albert")
    pooler = 4096 * 4096 + 4096
    published = size["embedder"] + size["projection"] + size["encoder"] + pooler
    assert round(published / 1e6, 1) == 223.8
    assert 0.999 < 4 * (published + size["head"]) / 897_396_780 < 1


def test_prot_electra_has_its_published_size() -> None:
    """Published without the heads, which the files hold beside up to 0.1 % of names and offsets."""
    size = counts("prot_electra_bfd")
    assert size["embedder"] + size["encoder"] == 418_881_536  # 418.9 M
    config = generator_config(models.preset("prot_electra_bfd"))
    assert (config.d_model, config.d_ff, config.num_heads) == (256, 1024, 4)
    head = 256 * 1024 + 1024 + 2 * 1024 + 30
    generator = size["embedder"] + size["generator"] - head
    assert generator == 64_950_016  # 65.0 M
    whole = size["embedder"] + size["encoder"] + size["head"]
    assert 0.999 < 4 * whole / 1_679_849_201 < 1
    assert 0.999 < 4 * (generator + head) / 260_982_246 < 1


@pytest.mark.parametrize(
    ("preset", "total", "encoder"), [("prot_t5_xl", 2.82, 1.208), ("prot_t5_xxl", 11.27, 4.832)]
)
def test_prot_t5_has_its_published_size(preset: str, total: float, encoder: float) -> None:
    size = counts(preset)
    parts = ("embedder", "encoder", "encoder_norm", "encoder_relative_bias")
    assert round(sum(size.values()) / 1e9, 2) == total
    assert round(sum(size[name] for name in parts) / 1e9, 3) == encoder


def test_prot_xlnet_has_its_published_size() -> None:
    """The published file holds nothing else but names, up to 0.01 %; 37 tokens are from memory."""
    config = models.preset("prot_xlnet").replace(vocab_size=37)
    total = models.parameter_count(models.abstract_params(models.build(config)))
    assert total == 409_413_669  # 409.4 M
    assert 0.9999 < 4 * total / 1_637_757_076 < 1


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("esm2_8m", 7.5),
        ("esm2_35m", 33.5),
        ("esm2_150m", 148.1),
        ("esm2_650m", 651.0),
        ("esm2_3b", 2839.0),
        ("esm2_15b", 15_129.1),
    ],
)
def test_esm2_has_its_published_size(preset: str, millions: float) -> None:
    """By hand, and as transformers counts them; its frequencies are no parameters there."""
    size, config = counts(preset), models.preset(preset)
    width, layers, heads = config.d_model, config.num_layers, config.num_heads
    block = 12 * width**2 + 13 * width
    assert size["encoder"] == layers * block
    assert size["head"] == width**2 + 3 * width + 33
    assert size["contact_head"] == layers * heads + 1
    assert size.pop("frequencies") == width // heads // 2
    total = layers * block + 33 * width + 2 * width + size["head"] + size["contact_head"]
    assert sum(size.values()) == total
    assert round(total / 1e6, 1) == millions

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = EXCHANGES["esm2"].to_config(config)
    with torch.device("meta"):
        theirs = transformers.EsmForMaskedLM(transformers.EsmConfig(**fields))
    assert sum(p.numel() for p in theirs.parameters()) == total


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ProtlmError, match=r"unknown preset 'prot_t6'; there are dplm_150m"):
        models.preset("prot_t6")
    with pytest.raises(ProtlmError, match=r"unknown model family 'gpt'; there are albert, bert"):
        models.build(models.preset("prot_bert").replace(family="gpt"))


def test_flops_are_two_per_weight_and_token_plus_attention() -> None:
    """By hand for ProtBert at 512 tokens: weights of the matrices, and scores and mixing."""
    config, length = models.preset("prot_bert"), 512
    matrices = 30 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 1024 * 1024 + 30 * 1024
    attention = 30 * 2 * length * 1024  # each query with each key, and each weight with each value
    assert forward_flops_per_token(config, length) == 2 * (matrices + attention)
    assert training_flops_per_token(config, length) == 6 * (matrices + attention)


def test_flops_of_an_encoder_decoder_pair_of_tokens() -> None:
    config, length = models.preset("prot_t5_xl"), 512
    inner = 32 * 128
    attention = 4 * 1024 * inner + 2 * length * inner
    mlp = 2 * 1024 * 16_384
    expected = 24 * (attention + mlp) + 24 * (2 * attention + mlp) + 1024 * 128
    assert forward_flops_per_token(config, length) == 2 * expected


def test_sharing_parameters_saves_no_operations() -> None:
    """ALBERT's at 512 tokens by hand, but for the blocks, which cost what they cost unshared."""
    config, length = models.preset("prot_albert"), 512
    blocks = 12 * (4 * 4096 * 4096 + 2 * 4096 * 16_384 + 2 * length * 4096)
    narrow = 128 * 4096 + 4096 * 128 + 128 * 30  # to the stream, back in the head, to the tokens
    assert forward_flops_per_token(config, length) == 2 * (blocks + narrow)


def test_flops_of_two_streams_and_a_memory() -> None:
    """ProtXLNet at 512 tokens by hand: 90 of them are asked for, each by a query and the head."""
    config, length, queries = models.preset("prot_xlnet"), 512, 90
    mlp = 2 * 1024 * 4096
    scores = (2 * length + 2 * length) * 1024  # keys, values, and distances before and after
    content = length * (4 * 1024 * 1024 + scores + mlp)
    asked = queries * (2 * 1024 * 1024 + scores + mlp)
    expected = 30 * (content + asked) + queries * 1024 * 30
    found = training_flops_per_token(config, length, queries) * length
    assert abs(found - 6 * expected) < 6 * length  # rounded down once
    memory = config.replace(memory_length=256)
    more = 2 * 30 * (2 * 1024 * 1024 * 256 // length + 3 * 256 * 1024)
    assert forward_flops_per_token(memory, length) == forward_flops_per_token(config, length) + more


def test_electra_passes_each_token_through_both_models() -> None:
    config, length = models.preset("prot_electra_bfd"), 512
    parts = generator_config(config), discriminator_config(config)
    both = sum(forward_flops_per_token(part, length) for part in parts)
    assert forward_flops_per_token(config, length) == both


SIZES = {"d_model": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16, "d_ff": 256}


@pytest.mark.parametrize(
    "config",
    [
        # Its layers are a loop whatever their number, of which the compiler counts one round.
        albert_config(**{**SIZES, "num_layers": 1}, embedding_size=32, max_positions=64),
        bert_config(**SIZES, max_positions=64),
        discriminator_config(electra_config(**SIZES, max_positions=64)),
        generator_config(
            electra_config(**SIZES, generator_shrink=1, embedding_size=32, max_positions=64)
        ),
        esm2_config(**SIZES),
        esmc_config(**SIZES),
        gpt2_config(**SIZES, max_positions=64),
        progen2_config(**SIZES, rotary_dim=8),
        t5_config(**SIZES, num_decoder_layers=2),
        transformer_xl_config(**SIZES, memory_length=0),
        xlnet_config(**SIZES),
    ],
    ids=lambda config: config.family,
)
def test_flops_are_those_that_the_compiler_counts(config: ModelConfig) -> None:
    """Two layers are unrolled, so that the compiler sees both. It also counts what is not a matrix
    product (softmax, norms), which is some percent at this width."""
    batch, length = 8, 64
    model = models.build(config)
    run = jax.jit(lambda params, features: model.apply({"params": params}, features))
    lowered = run.lower(models.abstract_params(model), example_batch(config, batch, length))
    counted = lowered.compile().cost_analysis()["flops"]
    analytic = forward_flops_per_token(config, length) * batch * length
    assert 1.0 < counted / analytic < 1.1

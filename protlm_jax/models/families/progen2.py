"""ProGen2 (Nijkamp et al. 2023): proteins read from either end, each token from those before it.

Parallel blocks as in GPT-J: attention and MLP read one norm of the same stream, and both are added
to it. Attention has no biases, and turns the first entries of each head alone, in pairs of
neighbours. The output has weights of its own, and a bias.

A protein stands between the tokens 1 and 2, its N and C terminus: `1MKV2`, or `2VKM1` read
backwards. The model was trained on both, so that a protein has two likelihoods; scores are the mean
of the two.

ProGen2 in the published format: `ProGenForCausalLM`, as salesforce/progen and its conversions.

The rows of the fused projection are 8 groups of heads, each of all its queries, then values, then
keys: the layout of the machine that it was trained on. `transformers` has no such class; an export
carries one, made of CodeGen's, which computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    Exchange,
    Field,
    Key,
    fused_keys,
    linear_keys,
    mlp_keys,
    norm_keys,
    refuse_unless,
)
from protlm_jax.models.families import gpt2
from protlm_jax.models.layers import Logits
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import PreNormStack, Streams

HEAD_GROUPS = 8  # in which published checkpoints hold their heads


def progen2_config(**sizes: Any) -> ModelConfig:
    """A ProGen2 of any size over its 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "progen2",
        "vocabulary": "progen2",
        "vocab_size": 32,  # rows in the published conversions, of which 30 are tokens
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "parallel_block": True,
        "attention_bias": False,
        "positions": "rotary",
        "rotary_pairs": "neighbours",
        "max_positions": 1024,
        "tie_embeddings": False,
    }
    return ModelConfig(**{**fields, **sizes})


def _published(
    layers: int, width: int, heads: int, rotary: int, context: int = 1024
) -> ModelConfig:
    return progen2_config(
        num_layers=layers,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        rotary_dim=rotary,
        max_positions=context,
    )


# As published, but that the 64 turned entries of the largest are inferred and that the context of
# "base" is from memory. ProGen2-OAS is as "medium", ProGen2-BFD90 as "large".
PRESETS = {
    "progen2_small": _published(12, 1024, 16, 32),
    "progen2_medium": _published(27, 1536, 16, 48),
    "progen2_base": _published(27, 1536, 16, 48, context=2048),
    "progen2_large": _published(32, 2560, 32, 64),
    "progen2_xlarge": _published(32, 4096, 16, 64),
}


class ProGen2(PreNormStack):
    """ProGen2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder", both_ways=True),)
    objectives = ("causal",)
    causal = True

    def setup(self) -> None:
        super().setup()
        self.head_module = Logits(self.config, name="head")

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        return self.head_module(self.final_norm(h["encoder"]))


_LAYER = "transformer.h.{layer}."


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    refuse_unless(fields, "vocab_size_lm_head", known["vocab_size"])
    _require_groups(known["num_heads"])
    return {}


def _write(config: ModelConfig) -> dict[str, Any]:
    _require_groups(config.num_heads)
    return {"rotary_dim": config.rotary_size}


def _require_groups(heads: int) -> None:
    if heads % HEAD_GROUPS:
        raise ProtlmError(
            f"{heads} heads cannot be laid out in the {HEAD_GROUPS} groups of ProGen2's files: "
            f"choose a multiple of {HEAD_GROUPS}"
        )


EXCHANGE = Exchange(
    model_type="progen",
    architecture="ProGenForCausalLM",
    task="text-generation",
    keys=(
        Key("token", "transformer.wte.weight", "V D -> V D"),
        *norm_keys("encoder/norm", f"{_LAYER}ln_1"),
        *fused_keys(
            f"{_LAYER}attn.qkv_proj.weight",
            f"D ({HEAD_GROUPS} H) K -> ({HEAD_GROUPS} P H K) D",
            order=("query", "value", "key"),
        ),
        Key("encoder/attention/out/kernel", f"{_LAYER}attn.out_proj.weight", "H K D -> D (H K)"),
        *mlp_keys(f"{_LAYER}mlp.fc_in", f"{_LAYER}mlp.fc_out"),
        *norm_keys("final_norm", "transformer.ln_f"),
        *linear_keys("head", "lm_head", "D V -> V D"),
    ),
    make=progen2_config,
    # Two spellings of some: of the original and of its conversions.
    fields=(
        Field("d_model", "embed_dim n_embd"),
        *(field for field in gpt2.FIELDS if field.ours not in ("d_model", "max_positions")),
        Field("vocab_size", "vocab_size_emb vocab_size", also=("vocab_size_lm_head",)),
        Field("max_positions", "n_positions", also=("n_ctx",)),
        Field("rotary_dim", "rotary_dim"),
        Field("dropout_rate", "resid_pdrop", 0.0, ("embd_pdrop", "attn_pdrop")),
    ),
    fixed={"scale_attn_weights": (True,), "tie_word_embeddings": (False,)},
    write=_write,
    read=_read,
    imports="AutoModelForCausalLM",
    unused=gpt2.MASKS,
    keeps_rare=True,
    ends=("1", "2"),
    heads={"head": "the language-modelling head (lm_head)"},
    code=("modeling_progen2", "ProGen"),
)

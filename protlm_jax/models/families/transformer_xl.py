"""Transformer-XL for proteins (Dai et al. 2019; ProtTXL: Elnaggar et al. 2021).

Post-LN blocks that see the tokens before them alone, by relative distance, and, in every layer, the
streams of the rows before (`protlm_jax.models.memory`). Each position predicts the next token. The
embedding is scaled by the root of the width and tied to the output. The softmax is a plain one over
all tokens: the paper's adaptive softmax, made for 267,735 words, is the same thing with one cluster
of 29 tokens.

Neither ProtTXL nor ProtTXL-BFD was ever released: no file is there to compare with.

Transformer-XL in Hugging Face's format: `TransfoXLLMHeadModel` of transformers 4.

With no cutoffs and the embedding as wide as the model, its adaptive embedding and softmax are one
table and one bias. Version 5 of transformers has no such class any more: an export carries one of
our own, which reads the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from protlm_jax.models.axes import constrain
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    LARGEST,
    Exchange,
    Field,
    Key,
    fused_keys,
    mlp_keys,
    norm_keys,
    refuse_unless,
)
from protlm_jax.models.layers import lookup
from protlm_jax.models.memory import RecurrentStack, causal_context, past_streams
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, Streams


def transformer_xl_config(**sizes: Any) -> ModelConfig:
    """A Transformer-XL of any size over our 29 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "transformer_xl",
        "vocabulary": "prot_txl",
        "vocab_size": 29,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-5,
        "activation": "relu",
        "positions": "relative_xl",
        "mlp_dropout": True,
        "dropout_rate": 0.15,  # from memory of the paper
        "memory_length": 512,  # from memory of the paper
    }
    return ModelConfig(**{**fields, **sizes})


# From memory of the paper: all sizes of both but the 562 M parameters of ProtTXL-BFD (from notes on
# it) and the head size there. 14 heads do not divide a width of 1024; Transformer-XL's head size is
# free, and of the usual ones only 128 gives 562 M (64 gives 416 M).
PRESETS = {
    "prot_txl": transformer_xl_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096
    ),
    "prot_txl_bfd": transformer_xl_config(
        d_model=1024, num_layers=32, num_heads=14, head_dim=128, d_ff=4096
    ),
}


class TransformerXL(RecurrentStack):
    """Transformer-XL; see the module's docstring.

    A batch has `input_tokens` and `segment_ids`, and may have a memory; see `models.memory`.
    """

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)
    causal = True

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c = self.config
        h = lookup(self.token, batch["input_tokens"]) * c.d_model**0.5
        h = self.dropout(h.astype(c.compute_dtype), deterministic)
        h = constrain(h, "batch", "length", "embed")
        context = BlockContext(causal_context(c, batch), past=past_streams(batch))
        return {"encoder": h}, {"encoder": context}


_EMBEDDING = "transformer.word_emb.emb_layers.0.weight"
_ATTENTION = "transformer.layers.{layer}.dec_attn."
_MLP = "transformer.layers.{layer}.pos_ff."


def _frequencies(config: ModelConfig) -> np.ndarray:
    """Of the sinusoids: a buffer that their class does not fill in where a file lacks it."""
    exponent = np.arange(0, config.d_model, 2, dtype=np.float32) / np.float32(config.d_model)
    return (1 / 10_000.0**exponent).astype(np.float32)


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    refuse_unless(fields, "d_embed", known["d_model"])
    return {"clamp_length": max(0, known["clamp_length"])}


EXCHANGE = Exchange(
    model_type="transfo-xl",
    architecture="TransfoXLLMHeadModel",
    task="text-generation",
    keys=(
        Key("token", _EMBEDDING, "V D -> V D"),
        *fused_keys(f"{_ATTENTION}qkv_net.weight", "D H K -> (P H K) D"),
        Key("encoder/attention/position/kernel", f"{_ATTENTION}r_net.weight", "D H K -> (H K) D"),
        Key("encoder/attention/out/kernel", f"{_ATTENTION}o_net.weight", "H K D -> D (H K)"),
        Key("encoder/attention/content_bias", f"{_ATTENTION}r_w_bias", "H K -> H K"),
        Key("encoder/attention/position_bias", f"{_ATTENTION}r_r_bias", "H K -> H K"),
        *norm_keys("encoder/attention_norm", f"{_ATTENTION}layer_norm"),
        *mlp_keys(f"{_MLP}CoreNet.0", f"{_MLP}CoreNet.3"),
        *norm_keys("encoder/mlp_norm", f"{_MLP}layer_norm"),
        Key("head_bias", "crit.out_layers.0.bias", "V -> V"),
    ),
    make=transformer_xl_config,
    fields=(
        Field("vocab_size", "vocab_size"),
        Field("d_model", "d_model", also=("d_embed",)),
        Field("num_layers", "n_layer"),
        Field("num_heads", "n_head"),
        Field("head_dim", "d_head"),
        Field("d_ff", "d_inner"),
        Field("memory_length", "mem_len", least=0),
        Field("same_length", "same_length"),
        Field("clamp_length", "clamp_len", least=-LARGEST),
        Field("norm_eps", "layer_norm_epsilon", 1e-5),
        Field("initializer_range", "init_std", 0.02),
        Field("dropout_rate", "dropout", 0.1, ("dropatt",)),
    ),
    fixed={
        "cutoffs": ([],),
        "div_val": (1,),
        "pre_lnorm": (False,),
        "untie_r": (True,),
        "attn_type": (0,),
        "tie_word_embeddings": (True,),
    },
    write=lambda config: {"adaptive": False},
    read=_read,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True)
output = model(input_ids=batch["input_ids"], output_hidden_states=True)
hidden = output.hidden_states[-1]
# output.logits[:, i] predicts token i + 1; output.mems, given back, continues longer proteins.
""",
    copies={"crit.out_layers.0.weight": _EMBEDDING},
    heads={"head_bias": "the language-modelling head (crit)"},
    code=("modeling_prot_txl", "ProtTXL"),
    constants={"transformer.pos_emb.inv_freq": _frequencies},
)

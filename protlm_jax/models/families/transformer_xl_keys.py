"""Transformer-XL in Hugging Face's format: `TransfoXLLMHeadModel` of transformers 4.

With no cutoffs and the embedding as wide as the model, its adaptive embedding and softmax are one
table and one bias. Version 5 of transformers has no such class any more: an export carries one of
our own, which reads the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.transformer_xl import transformer_xl_config
from protlm_jax.vocabularies import get_vocabulary

_CODE = Path(__file__).parents[2] / "huggingface" / "remote" / "modeling_prot_txl.py"
_EMBEDDING = "transformer.word_emb.emb_layers.0.weight"
_ATTENTION = "transformer.layers.{layer}.dec_attn."
_MLP = "transformer.layers.{layer}.pos_ff."


KEYS = (
    Key("token", _EMBEDDING, "V D -> V D"),
    *(
        Key(
            f"encoder/attention/{name}/kernel",
            f"{_ATTENTION}qkv_net.weight",
            "D H K -> (P H K) D",
            part=(index, 3),
        )
        for index, name in enumerate(("query", "key", "value"))
    ),
    Key("encoder/attention/position/kernel", f"{_ATTENTION}r_net.weight", "D H K -> (H K) D"),
    Key("encoder/attention/out/kernel", f"{_ATTENTION}o_net.weight", "H K D -> D (H K)"),
    Key("encoder/attention/content_bias", f"{_ATTENTION}r_w_bias", "H K -> H K"),
    Key("encoder/attention/position_bias", f"{_ATTENTION}r_r_bias", "H K -> H K"),
    *norm_keys("encoder/attention_norm", f"{_ATTENTION}layer_norm"),
    *linear_keys("encoder/mlp/wi", f"{_MLP}CoreNet.0", "D F -> F D", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_MLP}CoreNet.3", "F D -> D F", "D -> D"),
    *norm_keys("encoder/mlp_norm", f"{_MLP}layer_norm"),
    Key("head_bias", "crit.out_layers.0.bias", "V -> V"),
)


def _frequencies(config: ModelConfig) -> np.ndarray:
    """Of the sinusoids: a buffer that their class does not fill in where a file lacks it."""
    exponent = np.arange(0, config.d_model, 2, dtype=np.float32) / np.float32(config.d_model)
    return (1 / 10_000.0**exponent).astype(np.float32)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_embed": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.head_dim,
        "d_inner": config.d_ff,
        "cutoffs": [],
        "div_val": 1,
        "adaptive": False,
        "pre_lnorm": False,
        "untie_r": True,
        "attn_type": 0,
        "mem_len": config.memory_length,
        "same_length": config.same_length,
        "clamp_len": config.clamp_length,
        "layer_norm_epsilon": config.norm_eps,
        "init_std": config.initializer_range,
        "dropout": config.dropout_rate,
        "dropatt": config.dropout_rate,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
        "auto_map": {
            auto: f"{_CODE.stem}.ProtTXL{name}"
            for auto, name in (
                ("AutoConfig", "Config"),
                ("AutoModel", "Model"),
                ("AutoModelForCausalLM", "ForCausalLM"),
            )
        },
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    width = required(fields, "d_model")
    refuse_unless(fields, "cutoffs", [])
    refuse_unless(fields, "d_embed", width)
    refuse_unless(fields, "div_val", 1)
    refuse_unless(fields, "pre_lnorm", False)
    refuse_unless(fields, "untie_r", True)
    refuse_unless(fields, "attn_type", 0)
    refuse_unless(fields, "tie_word_embeddings", True)
    return transformer_xl_config(
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=required(fields, "n_head"),
        head_dim=required(fields, "d_head"),
        d_ff=required(fields, "d_inner"),
        memory_length=required(fields, "mem_len"),
        same_length=required(fields, "same_length"),
        clamp_length=max(0, required(fields, "clamp_len")),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        initializer_range=fields.get("init_std", 0.02),
        dropout_rate=float(fields.get("dropout", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="transfo-xl",
    architecture="TransfoXLLMHeadModel",
    task="text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True)
output = model(input_ids=batch["input_ids"], output_hidden_states=True)
hidden = output.hidden_states[-1]
# output.logits[:, i] predicts token i + 1; output.mems, given back, continues longer proteins.
""",
    copies={"crit.out_layers.0.weight": _EMBEDDING},
    heads={"head_bias": "the language-modelling head (crit)"},
    files={_CODE.name: lambda config: _CODE.read_text()},
    constants={"transformer.pos_emb.inv_freq": _frequencies},
)

"""GPT-2 in Hugging Face's format: `GPT2LMHeadModel`.

Its maps are `Conv1D`: kernels of [in, out], where a Linear has [out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    ACTIVATION_NAMES,
    Exchange,
    Key,
    activation_field,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.gpt2 import gpt2_config
from protlm_jax.vocabularies import get_vocabulary

_TOKEN = "transformer.wte.weight"
_LAYER = "transformer.h.{layer}."


def _fused(part: str, layout: str) -> tuple[Key, ...]:
    """Query, key and value, one after the other along the last axis."""
    return tuple(
        Key(
            f"encoder/attention/{name}/{'kernel' if part == 'weight' else 'bias'}",
            f"{_LAYER}attn.c_attn.{part}",
            layout,
            part=(index, 3),
        )
        for index, name in enumerate(("query", "key", "value"))
    )


KEYS = (
    Key("token", _TOKEN, "V D -> V D"),
    Key("position", "transformer.wpe.weight", "P D -> P D"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}ln_1"),
    *_fused("weight", "D H K -> D (P H K)"),
    *_fused("bias", "H K -> (P H K)"),
    *linear_keys("encoder/attention/out", f"{_LAYER}attn.c_proj", "H K D -> (H K) D", "D -> D"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}ln_2"),
    *linear_keys("encoder/mlp/wi", f"{_LAYER}mlp.c_fc", "D F -> D F", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_LAYER}mlp.c_proj", "F D -> F D", "D -> D"),
    *norm_keys("final_norm", "transformer.ln_f"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.dropout_rate,
        "attn_pdrop": config.dropout_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.initializer_range,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    refuse_unless(fields, "scale_attn_weights", True)
    refuse_unless(fields, "scale_attn_by_inverse_layer_idx", False)
    refuse_unless(fields, "add_cross_attention", False)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "n_embd"), required(fields, "n_head")
    return gpt2_config(
        vocab_size=required(fields, "vocab_size"),
        max_positions=required(fields, "n_positions"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=heads,
        head_dim=width // heads,
        d_ff=fields.get("n_inner") or 4 * width,
        activation=activation_field(fields.get("activation_function", "gelu_new")),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("resid_pdrop", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    task="text-generation",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForCausalLM",
    usage="""\
model = AutoModelForCausalLM.from_pretrained("{title}")
logits = model(**batch).logits  # logits[:, i] predicts token i + 1
hidden = model.transformer(**batch).last_hidden_state
""",
    keeps_rare=True,
    copies={"lm_head.weight": _TOKEN},
    unused={
        "transformer.h.*.attn.bias": "the causal mask, a constant",
        "transformer.h.*.attn.masked_bias": "the causal mask, a constant",
    },
)

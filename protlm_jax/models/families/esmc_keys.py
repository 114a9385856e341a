"""ESM-C in Hugging Face's format: `EsmcForMaskedLM` of transformers 5.16, as biohub/ESMC-300M."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.esmc import esmc_config
from protlm_jax.models.positions import ROTARY_THETA
from protlm_jax.vocabularies import get_vocabulary

_LAYER = "esmc.layers.{layer}."
_ATTENTION = f"{_LAYER}self_attn."
_MLP = f"{_LAYER}mlp."
_HEAD = "the masked-language head (lm_head)"

KEYS = (
    Key("token", "esmc.embed_tokens.weight", "V D -> V D"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}input_layernorm"),
    *(
        Key(f"encoder/attention/{ours}/kernel", f"{_ATTENTION}{theirs}.weight", "D H K -> (H K) D")
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    ),
    Key("encoder/attention/query_norm/scale", f"{_ATTENTION}q_norm.weight", "H K -> (H K)"),
    Key("encoder/attention/key_norm/scale", f"{_ATTENTION}k_norm.weight", "H K -> (H K)"),
    Key("encoder/attention/out/kernel", f"{_ATTENTION}o_proj.weight", "H K D -> D (H K)"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}post_attention_layernorm"),
    Key("encoder/mlp/wi_0/kernel", f"{_MLP}gate_proj.weight", "D F -> F D"),
    Key("encoder/mlp/wi_1/kernel", f"{_MLP}up_proj.weight", "D F -> F D"),
    Key("encoder/mlp/wo/kernel", f"{_MLP}down_proj.weight", "F D -> D F"),
    Key("final_norm/scale", "esmc.norm.weight", "D -> D"),
    *linear_keys("head/dense", "lm_head.dense", "D E -> E D", "E -> E"),
    *norm_keys("head/norm", "lm_head.layer_norm"),
    Key("decoder", "lm_head.decoder.weight", "V D -> V D"),
    Key("head/bias", "lm_head.decoder.bias", "V -> V"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_THETA},
        "attention_dropout": config.dropout_rate,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        "mask_token_id": vocabulary.mask_id,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": next(iter(vocabulary.prefix_ids), None),
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": False,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    width, heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    refuse_unless(fields, "hidden_act", "silu")
    refuse_unless(fields, "attention_bias", False)
    refuse_unless(fields, "mlp_bias", False)
    refuse_unless(fields, "tie_word_embeddings", False)
    refuse_unless(fields, "num_key_value_heads", None, heads)
    refuse_unless(fields, "head_dim", None, width // heads)
    rope = fields.get("rope_parameters") or {}
    if (rope.get("rope_type", "default"), rope.get("rope_theta", ROTARY_THETA)) != (
        "default",
        ROTARY_THETA,
    ):
        raise ProtlmError(f"'rope_parameters' is {rope!r}; only theta {ROTARY_THETA:g} can be read")
    return esmc_config(
        required(fields, "num_hidden_layers"),
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=required(fields, "intermediate_size"),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("attention_dropout") or 0.0),
    )


EXCHANGE = Exchange(
    model_type="esmc",
    architecture="EsmcForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForMaskedLM",
    usage="""\
model = AutoModelForMaskedLM.from_pretrained("{title}")
logits = model(**batch).logits  # over all tokens, at each residue
hidden = model.esmc(**batch).last_hidden_state
""",
    heads={"head": _HEAD, "decoder": _HEAD},
    keeps_rare=True,
    row=lambda fields: fields.get("max_position_embeddings"),
)

"""XLNet in Hugging Face's format: `XLNetLMHeadModel`, as Rostlab/prot_xlnet."""

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
from protlm_jax.models.families.xlnet import CLOSING_TYPE, xlnet_config
from protlm_jax.vocabularies import get_vocabulary

_LAYER = "transformer.layer.{layer}."

_KERNELS = tuple(
    Key(f"encoder/attention/{ours}/kernel", f"{_LAYER}rel_attn.{theirs}", layout)
    for ours, theirs, layout in (
        ("query", "q", "D H K -> D H K"),
        ("key", "k", "D H K -> D H K"),
        ("value", "v", "D H K -> D H K"),
        ("position", "r", "D H K -> D H K"),
        ("out", "o", "H K D -> D H K"),
    )
)

_BIASES = tuple(
    Key(f"encoder/attention/{ours}", f"{_LAYER}rel_attn.{theirs}", "H K -> H K")
    for ours, theirs in (
        ("content_bias", "r_w_bias"),
        ("position_bias", "r_r_bias"),
        ("type_bias", "r_s_bias"),
    )
)


KEYS = (
    Key("token", "transformer.word_embedding.weight", "V D -> V D"),
    Key("query_start", "transformer.mask_emb", "D -> 1 1 D"),
    *_KERNELS,
    *_BIASES,
    Key("encoder/attention/type", f"{_LAYER}rel_attn.seg_embed", "T H K -> T H K"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}rel_attn.layer_norm"),
    *linear_keys("encoder/mlp/wi", f"{_LAYER}ff.layer_1", "D F -> F D", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_LAYER}ff.layer_2", "F D -> D F", "D -> D"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}ff.layer_norm"),
    Key("head_bias", "lm_loss.bias", "V -> V"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "d_head": config.head_dim,
        "d_inner": config.d_ff,
        "ff_activation": ACTIVATION_NAMES[config.activation],
        "attn_type": "bi",
        "untie_r": True,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "dropout": config.dropout_rate,
        "mem_len": config.memory_length or None,
        "use_mems_train": config.memory_length > 0,
        "use_mems_eval": False,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": None,
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    refuse_unless(fields, "attn_type", "bi")
    refuse_unless(fields, "untie_r", True)
    refuse_unless(fields, "bi_data", False)
    refuse_unless(fields, "clamp_len", -1, 0)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "d_model"), required(fields, "n_head")
    return xlnet_config(
        vocab_size=fields["n_token"] if "n_token" in fields else required(fields, "vocab_size"),
        d_model=width,
        num_layers=required(fields, "n_layer"),
        num_heads=heads,
        head_dim=fields.get("d_head") or width // heads,
        d_ff=required(fields, "d_inner"),
        activation=activation_field(fields.get("ff_activation", "gelu")),
        memory_length=(fields.get("mem_len") or 0) if fields.get("use_mems_train") else 0,
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("dropout", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="xlnet",
    architecture="XLNetLMHeadModel",
    task="fill-mask",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="XLNetLMHeadModel",
    usage="""\
model = XLNetLMHeadModel.from_pretrained("{title}")
hidden = model.transformer(**batch).last_hidden_state
# To predict residues, hide them with `perm_mask` and ask for them with `target_mapping`.
""",
    copies={"lm_loss.weight": "transformer.word_embedding.weight"},
    closing_type=CLOSING_TYPE,
    heads={"head_bias": "the language-modelling head (lm_loss)"},
)

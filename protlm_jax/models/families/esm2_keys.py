"""ESM-2 in Hugging Face's format: `EsmForMaskedLM`, as facebook/esm2_t33_650M_UR50D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    CONTACT_HEAD,
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.bert_keys import attention_keys
from protlm_jax.models.families.esm2 import esm2_config
from protlm_jax.models.positions import ROTARY_THETA, rotary_frequencies
from protlm_jax.vocabularies import get_vocabulary

_LAYER = "esm.encoder.layer.{layer}."
_TOKEN = "esm.embeddings.word_embeddings.weight"
_FREQUENCIES = "esm.rotary_embeddings.inv_freq"

KEYS = (
    Key("token", _TOKEN, "V D -> V D"),
    Key("frequencies", _FREQUENCIES, "R -> R"),
    *norm_keys("encoder/attention_norm", f"{_LAYER}attention.LayerNorm"),
    *attention_keys(f"{_LAYER}attention.self.", f"{_LAYER}attention.output.dense"),
    *norm_keys("encoder/mlp_norm", f"{_LAYER}LayerNorm"),
    *linear_keys("encoder/mlp/wi", f"{_LAYER}intermediate.dense", "D F -> F D", "F -> F"),
    *linear_keys("encoder/mlp/wo", f"{_LAYER}output.dense", "F D -> D F", "D -> D"),
    *norm_keys("final_norm", "esm.encoder.emb_layer_norm_after"),
    *linear_keys("head/dense", "lm_head.dense", "D E -> E D", "E -> E"),
    *norm_keys("head/norm", "lm_head.layer_norm"),
    Key("head/bias", "lm_head.bias", "V -> V"),
    *linear_keys(CONTACT_HEAD, "esm.contact_head.regression", "N H -> 1 (N H)", "A -> A"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    vocabulary = get_vocabulary(config.vocabulary)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "max_position_embeddings": 1026,  # of a table that rotary positions do without
        "position_embedding_type": "rotary",
        "rope_theta": ROTARY_THETA,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_eps,
        "emb_layer_norm_before": False,
        "token_dropout": config.token_dropout,
        "mask_token_id": vocabulary.mask_id,
        "pad_token_id": vocabulary.pad_id,
        "eos_token_id": next(iter(vocabulary.suffix_ids), None),
        "tie_word_embeddings": True,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    required(fields, "position_embedding_type")  # "absolute" where nothing is said: ESM-1b
    refuse_unless(fields, "position_embedding_type", "rotary")
    refuse_unless(fields, "rope_theta", ROTARY_THETA)
    refuse_unless(fields, "emb_layer_norm_before", False, None)
    refuse_unless(fields, "hidden_act", "gelu")
    refuse_unless(fields, "is_folding_model", False, None)
    refuse_unless(fields, "is_decoder", False)
    refuse_unless(fields, "add_cross_attention", False)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    return esm2_config(
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_layers=required(fields, "num_hidden_layers"),
        num_heads=heads,
        head_dim=width // heads,
        d_ff=required(fields, "intermediate_size"),
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("hidden_dropout_prob", 0.1)),
        token_dropout=bool(fields.get("token_dropout")),
    )


def _row(fields: Mapping[str, Any]) -> int | None:
    """The rows of a position table that rotary positions do without; two of them hold no token."""
    return fields["max_position_embeddings"] - 2 if "max_position_embeddings" in fields else None


EXCHANGE = Exchange(
    model_type="esm",
    architecture="EsmForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForMaskedLM",
    usage="""\
model = AutoModelForMaskedLM.from_pretrained("{title}")
logits = model(**batch).logits  # over all tokens, at each residue
hidden = model.esm(**batch).last_hidden_state
""",
    copies={"lm_head.decoder.weight": _TOKEN},
    defaults={_FREQUENCIES: lambda config: np.asarray(rotary_frequencies(config.head_dim))},
    # Before transformers 5 every layer had its own copy; 5.23 may write a star for the layer.
    aliases={"esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq": _FREQUENCIES},
    unused={
        "esm.embeddings.position_ids": "a constant range",
        "esm.embeddings.position_embeddings.weight": "positions are rotary",
        "esm.pooler.dense.weight": "the pooler takes no part in masked language modelling",
        "esm.pooler.dense.bias": "the pooler takes no part in masked language modelling",
    },
    heads={
        "head": "the masked-language head (lm_head)",
        CONTACT_HEAD: "the contact head (esm.contact_head)",
    },
    keeps_rare=True,
    row=_row,
)

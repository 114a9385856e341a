"""BERT in Hugging Face's format: `BertForMaskedLM`, as Rostlab/prot_bert and prot_bert_bfd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    ACTIVATION_NAMES,
    Exchange,
    Key,
    activation_field,
    refuse_unless,
    required,
)
from protlm_jax.models.families.bert import bert_config
from protlm_jax.vocabularies import get_vocabulary

_LAYER = "bert.encoder.layer.{layer}."


def _norm(ours: str, theirs: str) -> tuple[Key, Key]:
    return (
        Key(f"{ours}/scale", f"{theirs}.weight", "D -> D"),
        Key(f"{ours}/bias", f"{theirs}.bias", "D -> D"),
    )


def _linear(ours: str, theirs: str, kernel: str, bias: str) -> tuple[Key, Key]:
    return (
        Key(f"{ours}/kernel", f"{theirs}.weight", kernel),
        Key(f"{ours}/bias", f"{theirs}.bias", bias),
    )


_ATTENTION = tuple(
    key
    for name in ("query", "key", "value")
    for key in _linear(
        f"encoder/attention/{name}",
        f"{_LAYER}attention.self.{name}",
        "D H K -> (H K) D",
        "H K -> (H K)",
    )
)

KEYS = (
    Key("embedder/token", "bert.embeddings.word_embeddings.weight", "V D -> V D"),
    Key("embedder/position", "bert.embeddings.position_embeddings.weight", "P D -> P D"),
    Key("embedder/token_type", "bert.embeddings.token_type_embeddings.weight", "T D -> T D"),
    *_norm("embedder/norm", "bert.embeddings.LayerNorm"),
    *_ATTENTION,
    *_linear(
        "encoder/attention/out", f"{_LAYER}attention.output.dense", "H K D -> D (H K)", "D -> D"
    ),
    *_norm("encoder/attention_norm", f"{_LAYER}attention.output.LayerNorm"),
    *_linear("encoder/mlp/wi", f"{_LAYER}intermediate.dense", "D F -> F D", "F -> F"),
    *_linear("encoder/mlp/wo", f"{_LAYER}output.dense", "F D -> D F", "D -> D"),
    *_norm("encoder/mlp_norm", f"{_LAYER}output.LayerNorm"),
    *_linear("head/dense", "cls.predictions.transform.dense", "D E -> E D", "E -> E"),
    *_norm("head/norm", "cls.predictions.transform.LayerNorm"),
    Key("head/bias", "cls.predictions.bias", "V -> V"),
)


def _to_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_eps,
        "pad_token_id": get_vocabulary(config.vocabulary).pad_id,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    refuse_unless(fields, "position_embedding_type", "absolute")
    refuse_unless(fields, "is_decoder", False)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    return bert_config(
        vocab_size=required(fields, "vocab_size"),
        d_model=width,
        num_layers=required(fields, "num_hidden_layers"),
        num_heads=heads,
        head_dim=width // heads,
        d_ff=required(fields, "intermediate_size"),
        activation=activation_field(fields.get("hidden_act", "gelu")),
        max_positions=required(fields, "max_position_embeddings"),
        type_vocab_size=fields.get("type_vocab_size", 2),
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        initializer_range=fields.get("initializer_range", 0.02),
        dropout_rate=float(fields.get("hidden_dropout_prob", 0.1)),
    )


EXCHANGE = Exchange(
    model_type="bert",
    architecture="BertForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    to_config=_to_config,
    from_config=_from_config,
    imports="AutoModelForMaskedLM",
    usage="""\
model = AutoModelForMaskedLM.from_pretrained("{title}")
logits = model(**batch).logits  # over all tokens, at each residue
hidden = model.bert(**batch).last_hidden_state
""",
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused={
        "bert.embeddings.position_ids": "a constant range",
        "bert.pooler.dense.weight": "the pooler takes no part in masked language modelling",
        "bert.pooler.dense.bias": "the pooler takes no part in masked language modelling",
        "cls.seq_relationship.weight": "next-sentence prediction says nothing about proteins",
        "cls.seq_relationship.bias": "next-sentence prediction says nothing about proteins",
    },
)

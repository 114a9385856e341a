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
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.bert import bert_config
from protlm_jax.vocabularies import get_vocabulary


def embedder_keys(theirs: str) -> tuple[Key, ...]:
    """Token, position and type tables with their norm; `theirs` as "bert.embeddings"."""
    return (
        Key("embedder/token", f"{theirs}.word_embeddings.weight", "V D -> V D"),
        Key("embedder/position", f"{theirs}.position_embeddings.weight", "P D -> P D"),
        Key("embedder/token_type", f"{theirs}.token_type_embeddings.weight", "T D -> T D"),
        *norm_keys("embedder/norm", f"{theirs}.LayerNorm"),
    )


def attention_keys(theirs: str, out: str) -> tuple[Key, ...]:
    """Self-attention; `theirs` is what stands before "query", `out` the map back to the stream."""
    projected = tuple(
        key
        for name in ("query", "key", "value")
        for key in linear_keys(
            f"encoder/attention/{name}", f"{theirs}{name}", "D H K -> (H K) D", "H K -> (H K)"
        )
    )
    return (*projected, *linear_keys("encoder/attention/out", out, "H K D -> D (H K)", "D -> D"))


def block_keys(theirs: str) -> tuple[Key, ...]:
    """A block as BERT and ELECTRA name it; `theirs` as "bert.encoder.layer.{layer}."."""
    return (
        *attention_keys(f"{theirs}attention.self.", f"{theirs}attention.output.dense"),
        *norm_keys("encoder/attention_norm", f"{theirs}attention.output.LayerNorm"),
        *linear_keys("encoder/mlp/wi", f"{theirs}intermediate.dense", "D F -> F D", "F -> F"),
        *linear_keys("encoder/mlp/wo", f"{theirs}output.dense", "F D -> D F", "D -> D"),
        *norm_keys("encoder/mlp_norm", f"{theirs}output.LayerNorm"),
    )


KEYS = (
    *embedder_keys("bert.embeddings"),
    *block_keys("bert.encoder.layer.{layer}."),
    *linear_keys("head/dense", "cls.predictions.transform.dense", "D E -> E D", "E -> E"),
    *norm_keys("head/norm", "cls.predictions.transform.LayerNorm"),
    Key("head/bias", "cls.predictions.bias", "V -> V"),
)


def to_config(config: ModelConfig) -> dict[str, Any]:
    """The fields that BERT, ALBERT and ELECTRA have in common."""
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


def shared_fields(fields: Mapping[str, Any], *, activation: str, dropout: float) -> dict[str, Any]:
    """What `to_config` says, as fields of our config.

    Args:
        fields: their config.json.
        activation: what theirs is where `hidden_act` is absent.
        dropout: the same for `hidden_dropout_prob`.

    Raises:
        ProtlmError: a field is missing, or says what we cannot express.
    """
    refuse_unless(fields, "position_embedding_type", "absolute")
    refuse_unless(fields, "is_decoder", False)
    refuse_unless(fields, "tie_word_embeddings", True)
    width, heads = required(fields, "hidden_size"), required(fields, "num_attention_heads")
    return {
        "vocab_size": required(fields, "vocab_size"),
        "d_model": width,
        "num_layers": required(fields, "num_hidden_layers"),
        "num_heads": heads,
        "head_dim": width // heads,
        "d_ff": required(fields, "intermediate_size"),
        "activation": activation_field(fields.get("hidden_act", activation)),
        "max_positions": required(fields, "max_position_embeddings"),
        "type_vocab_size": fields.get("type_vocab_size", 2),
        "norm_eps": fields.get("layer_norm_eps", 1e-12),
        "initializer_range": fields.get("initializer_range", 0.02),
        "dropout_rate": float(fields.get("hidden_dropout_prob", dropout)),
    }


def _from_config(fields: Mapping[str, Any]) -> ModelConfig:
    return bert_config(**shared_fields(fields, activation="gelu", dropout=0.1))


EXCHANGE = Exchange(
    model_type="bert",
    architecture="BertForMaskedLM",
    task="fill-mask",
    keys=KEYS,
    to_config=to_config,
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
    heads={"head": "the masked-language head (cls.predictions)"},
)

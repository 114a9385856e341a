"""ALBERT encoder for proteins (Lan et al. 2020; ProtAlbert: Elnaggar et al. 2021).

BERT with two savings: the parameters of one block serve all layers, and the embeddings are narrow,
projected to the width of the stream after their norm. The masked-language head goes back to the
narrow width, where it is tied to the token table. Sentence order says nothing about proteins: there
is no head for it.

ALBERT in Hugging Face's format: `AlbertForMaskedLM`, the class of Rostlab/prot_albert.

Their layers lie in groups that share parameters, and a group may hold several. Ours is the case of
one group of one layer, the only one that ALBERT was published with: its stack of one block stands
for "albert_layer_groups.0".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import (
    Exchange,
    Field,
    attention_keys,
    linear_keys,
    mlp_keys,
    norm_keys,
)
from protlm_jax.models.families.bert import FIXED, Bert, embedder_keys, fields, head_keys


def albert_config(**sizes: Any) -> ModelConfig:
    """An ALBERT of any size over our own 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "albert",
        "vocabulary": "prot_albert",
        "vocab_size": 30,
        "share_layers": True,
        "embedding_size": 128,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-12,
        "activation": "gelu_tanh",
        "positions": "learned",
        "max_positions": 512,
        "type_vocab_size": 2,
    }
    return ModelConfig(**{**fields, **sizes})


# The shape of ALBERT-xxlarge with 40,000 positions, which fits the size of the published file.
# Shared parameters leave no trace of their number of uses there: 12 layers are from memory.
PRESETS = {
    "prot_albert": albert_config(
        d_model=4096, num_layers=12, num_heads=64, head_dim=64, d_ff=16_384, max_positions=40_000
    )
}


class Albert(Bert):
    """ALBERT: BERT's module under ALBERT's config; see the module's docstring."""


_LAYER = "albert.encoder.albert_layer_groups.{layer}.albert_layers.0."

_GROUPS = ("num_hidden_groups", "inner_group_num")


def _read(theirs: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    for name in _GROUPS:
        if theirs.get(name, 1) != 1:
            raise ProtlmError(
                f"{name!r} is {theirs[name]!r}; only an ALBERT whose layers all share the "
                f"parameters of one block can be read ({name!r} 1)"
            )
    return {}


_NO_ORDER = "sentence order says nothing about proteins"

EXCHANGE = Exchange(
    model_type="albert",
    architecture="AlbertForMaskedLM",
    task="fill-mask",
    keys=(
        *embedder_keys("albert.embeddings"),
        *linear_keys("projection", "albert.encoder.embedding_hidden_mapping_in", "E D -> D E"),
        *attention_keys(f"{_LAYER}attention.", f"{_LAYER}attention.dense"),
        *norm_keys("encoder/attention_norm", f"{_LAYER}attention.LayerNorm"),
        *mlp_keys(f"{_LAYER}ffn", f"{_LAYER}ffn_output"),
        *norm_keys("encoder/mlp_norm", f"{_LAYER}full_layer_layer_norm"),
        *head_keys("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
    ),
    make=albert_config,
    fields=(*fields("gelu_tanh", 0.0), Field("embedding_size", "embedding_size", 128)),
    fixed=FIXED,
    write=lambda config: dict.fromkeys(_GROUPS, 1),
    read=_read,
    imports="AutoModelForMaskedLM",
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    unused={
        "albert.embeddings.position_ids": "a constant range",
        "albert.pooler.*": "the pooler takes no part in masked language modelling",
        "sop_classifier.classifier.*": _NO_ORDER,
    },
    heads={"head": "the masked-language head (predictions)"},
    around=(("cls_token",), ("sep_token",)),
)

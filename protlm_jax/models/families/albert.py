"""ALBERT encoder for proteins (Lan et al. 2020; ProtAlbert: Elnaggar et al. 2021).

BERT with two savings: the parameters of one block serve all layers, and the embeddings are narrow,
projected to the width of the stream after their norm. The masked-language head goes back to the
narrow width, where it is tied to the token table. Sentence order says nothing about proteins: there
is no head for it.
"""

from __future__ import annotations

from typing import Any

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.bert import Bert


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

"""RoBERTa for proteins (Liu et al. 2019): BERT's network, as models of antibodies often have it.

What differs from BERT is the layout: one token type, and a position table whose first rows, to that
of the padding token, belong to no position (`ModelConfig.position_offset`).

RoBERTa in Hugging Face's format: `RobertaForMaskedLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.exchange import Exchange, typed
from protlm_jax.models.families.bert import (
    FIXED,
    Bert,
    bert_config,
    block_keys,
    embedder_keys,
    fields,
    head_keys,
)


def roberta_config(**sizes: Any) -> ModelConfig:
    """A RoBERTa of any size over ESM-2's 33 tokens, which begin as RoBERTa's own do."""
    own = {"family": "roberta", "vocabulary": "esm2", "vocab_size": 33, "norm_eps": 1e-5}
    return bert_config(**{**own, "type_vocab_size": 1, "position_offset": 2, **sizes})


class Roberta(Bert):
    """RoBERTa: BERT's module under RoBERTa's config; see the module's docstring."""


def _write(config: ModelConfig) -> dict[str, Any]:
    """The table's size, and the padding token, by which their class numbers positions."""
    rows = config.max_positions + config.position_offset
    return {"max_position_embeddings": rows, "pad_token_id": config.position_offset - 1}


def _read(theirs: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    offset = 1 + typed({"pad_token_id": 1, **theirs}, "pad_token_id", "int", least=0)
    if (rows := known["max_positions"]) <= offset:
        raise ProtlmError(
            f"'max_position_embeddings' is {rows}, and {offset} of these rows belong to no position"
        )
    return {"position_offset": offset, "max_positions": rows - offset}


EXCHANGE = Exchange(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    task="fill-mask",
    keys=(
        *embedder_keys("roberta.embeddings"),
        *block_keys("roberta.encoder.layer.{layer}."),
        *head_keys("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ),
    make=roberta_config,
    fields=fields("gelu", 0.1),
    fixed={**FIXED, "hidden_act": ("gelu", None)},  # the head has it whatever the blocks have
    write=_write,
    read=_read,
    imports="AutoModelForMaskedLM",
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    unused={
        "roberta.embeddings.position_ids": "a constant range",
        "roberta.embeddings.token_type_ids": "a constant",
        "roberta.pooler.dense.*": "the pooler takes no part in masked language modelling",
    },
    heads={"head": "the masked-language head (lm_head)"},
    around=(("cls_token",), ("sep_token",)),
    keeps_rare=True,
    closing_type=None,
)

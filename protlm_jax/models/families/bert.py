"""BERT encoder for proteins (Devlin et al. 2018; ProtBert: Elnaggar et al. 2021).

Post-LN blocks, learned absolute positions, token types (all zero here), and a masked-language
head tied to the token embedding. ProtBert's checkpoints have no next-sentence head.

BERT in Hugging Face's format: `BertForMaskedLM`, as Rostlab/prot_bert and prot_bert_bfd.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.exchange import (
    Exchange,
    Field,
    Key,
    attention_keys,
    linear_keys,
    mlp_keys,
    norm_keys,
)
from protlm_jax.models.layers import ACTIVATIONS, Normalization, Projection, lookup
from protlm_jax.models.positions import sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams


def bert_config(**sizes: Any) -> ModelConfig:
    """A BERT of any size over ProtBert's 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "bert",
        "vocabulary": "prot_bert",
        "vocab_size": 30,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-12,
        "activation": "gelu",
        "positions": "learned",
        "max_positions": 512,
        "type_vocab_size": 2,
    }
    return ModelConfig(**{**fields, **sizes})


# ProtBert and ProtBert-BFD share one shape (config.json of Rostlab/prot_bert_bfd).
PRESETS = {
    "prot_bert": bert_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096, max_positions=40_000
    )
}


class TokenEmbedding(nn.Module):
    """Token, position and type embeddings, normed: [B, L] -> [B, L, E], E the table's width."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        normal, width = nn.initializers.normal(c.initializer_range), c.embedding_width
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, width))
        start = normal if c.position_init == "normal" else sinusoidal(c.initializer_range)
        self.position = self.param(
            "position", named(start, "positions", "embed"), (c.position_rows, width)
        )
        self.token_type = self.param(
            "token_type", named(normal, "types", "embed"), (c.type_vocab_size, width)
        )
        self.norm = Normalization(c)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        h = lookup(self.token, tokens)
        h = h + lookup(self.position, positions + self.config.position_offset)
        h = h + self.token_type[0][None, None]
        return self.norm(h.astype(self.config.compute_dtype))


class Head(nn.Module):
    """The masked-language head: dense to the table's width, activation, norm, tied table, bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        c = self.config
        h = Projection(
            "BLD,DE->BLE",
            ("embed", "embed_out"),
            (c.d_model, c.embedding_width),
            1,
            c.initializer_range,
            c.compute_dtype,
            name="dense",
        )(h)
        h = Normalization(c, name="norm")(ACTIVATIONS[c.activation](h))
        kernel = embedding.astype(c.compute_dtype)
        logits = jnp.einsum("BLE,VE->BLV", h, kernel, preferred_element_type=jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros_init(), "vocab"), (c.vocab_size,))
        return logits + bias[None, None]


class Bert(SingleStack):
    """BERT; see the module's docstring. ALBERT and both halves of ELECTRA are made of it.

    Attributes:
        shared_embedder: of the model that this one is a part of; None makes its own.
    """

    shared_embedder: TokenEmbedding | None = None

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)
    make_head: ClassVar[type[nn.Module]] = Head
    dense_head = True

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.embedder = self.shared_embedder or TokenEmbedding(c)
        if c.embedding_size:
            self.projection = Projection(
                "BLE,ED->BLD",
                ("embed_in", "embed"),
                (c.embedding_size, c.d_model),
                1,
                c.initializer_range,
                c.compute_dtype,
            )
        self.head_module = self.make_head(c, name="head")
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        h = self.embedder(batch["input_tokens"], batch["positions"])
        h = self.dropout(h, deterministic)
        if self.config.embedding_size:
            h = self.projection(h)
        h = constrain(h, "batch", "length", "embed")
        segments = batch["segment_ids"]
        return {"encoder": h}, {"encoder": BlockContext(AttentionContext(segments, segments))}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(h["encoder"], self.embedder.token)


def embedder_keys(theirs: str) -> tuple[Key, ...]:
    """Token, position and type tables with their norm; `theirs` as "bert.embeddings"."""
    return (
        Key("embedder/token", f"{theirs}.word_embeddings.weight", "V D -> V D"),
        Key("embedder/position", f"{theirs}.position_embeddings.weight", "P D -> P D"),
        Key("embedder/token_type", f"{theirs}.token_type_embeddings.weight", "T D -> T D"),
        *norm_keys("embedder/norm", f"{theirs}.LayerNorm"),
    )


def block_keys(theirs: str) -> tuple[Key, ...]:
    """A block as BERT and ELECTRA name it; `theirs` as "bert.encoder.layer.{layer}."."""
    return (
        *attention_keys(f"{theirs}attention.self.", f"{theirs}attention.output.dense"),
        *norm_keys("encoder/attention_norm", f"{theirs}attention.output.LayerNorm"),
        *mlp_keys(f"{theirs}intermediate.dense", f"{theirs}output.dense"),
        *norm_keys("encoder/mlp_norm", f"{theirs}output.LayerNorm"),
    )


def head_keys(dense: str, norm: str, bias: str) -> tuple[Key, ...]:
    """The masked-language head; the names of their modules, and of the bias."""
    return (
        *linear_keys("head/dense", dense, "D E -> E D"),
        *norm_keys("head/norm", norm),
        Key("head/bias", bias, "V -> V"),
    )


SIZES = (
    Field("vocab_size", "vocab_size"),
    Field("d_model", "hidden_size"),
    Field("num_layers", "num_hidden_layers"),
    Field("num_heads", "num_attention_heads"),
    Field("d_ff", "intermediate_size"),
    Field("initializer_range", "initializer_range", 0.02),
)


def fields(activation: str, dropout: float) -> tuple[Field, ...]:
    """The fields of BERT, ALBERT and ELECTRA; what two of them are where they are absent."""
    return (
        *SIZES,
        Field("activation", "hidden_act", activation),
        Field("max_positions", "max_position_embeddings"),
        Field("type_vocab_size", "type_vocab_size", 2, least=0),
        Field("norm_eps", "layer_norm_eps", 1e-12),
        Field("dropout_rate", "hidden_dropout_prob", dropout, ("attention_probs_dropout_prob",)),
    )


FIXED = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "tie_word_embeddings": (True,),
}

_POOLER = "the pooler takes no part in masked language modelling"
_NEXT = "next-sentence prediction says nothing about proteins"

EXCHANGE = Exchange(
    model_type="bert",
    architecture="BertForMaskedLM",
    task="fill-mask",
    keys=(
        *embedder_keys("bert.embeddings"),
        *block_keys("bert.encoder.layer.{layer}."),
        *head_keys(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
    ),
    make=bert_config,
    fields=fields("gelu", 0.1),
    fixed=FIXED,
    imports="AutoModelForMaskedLM",
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused={
        "bert.embeddings.position_ids": "a constant range",
        "bert.pooler.dense.*": _POOLER,
        "cls.seq_relationship.*": _NEXT,
    },
    heads={"head": "the masked-language head (cls.predictions)"},
    around=(("cls_token",), ("sep_token",)),
)

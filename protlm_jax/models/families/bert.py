"""BERT encoder for proteins (Devlin et al. 2018; ProtBert: Elnaggar et al. 2021).

Post-LN blocks, learned absolute positions, token types (all zero here), and a masked-language
head tied to the token embedding. ProtBert's checkpoints have no next-sentence head.

BERT in Hugging Face's format: `BertForMaskedLM`, as Rostlab/prot_bert and prot_bert_bfd.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    ACTIVATION_NAMES,
    Exchange,
    Key,
    activation_field,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.layers import ACTIVATIONS, Normalization, Projection, lookup
from protlm_jax.models.positions import sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams
from protlm_jax.vocabularies import get_vocabulary


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


class Embedder(nn.Module):
    """Token, position and type embeddings, normed: ids [B, L] -> [B, L, E], E being the width of
    the token table."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        normal, width = nn.initializers.normal(c.initializer_range), c.embedding_width
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, width))
        start = normal if c.position_init == "normal" else sinusoidal(c.initializer_range)
        self.position = self.param(
            "position", named(start, "positions", "embed"), (c.max_positions, width)
        )
        self.token_type = self.param(
            "token_type", named(normal, "types", "embed"), (c.type_vocab_size, width)
        )
        self.norm = Normalization(c)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        h = lookup(self.token, tokens) + lookup(self.position, positions)
        h = h + self.token_type[0][None, None]
        return self.norm(h.astype(self.config.compute_dtype))


class Head(nn.Module):
    """The masked-language head: dense to the width of the token table, activation, norm, then the
    tied table and a bias."""

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

    shared_embedder: Embedder | None = None

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)
    make_head: ClassVar[type[nn.Module]] = Head

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.embedder = self.shared_embedder or Embedder(c)
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

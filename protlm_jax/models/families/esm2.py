"""ESM-2 (Lin et al. 2023): the masked protein language model that most others are compared with.

Pre-LN blocks with rotary positions, a norm after the last block, and BERT's masked-language head
tied to the token table. Two things are its own:

- *Token dropout.* A residue shown as <mask> embeds as zeros, and the tokens that are left are
  scaled up by what a dropout of as many would scale them: (1 - 0.15 x 0.8) / (1 - share of <mask>),
  over the tokens of one protein, specials included. A masked position's stream thus starts at zero.
- *A contact head* over all attention maps, see `protlm_jax.models.contacts`.

The rotary frequencies are parameters that no gradient reaches: published checkpoints hold them
rounded to half precision, and far from the start of a protein the difference shows.

ESM-2 in Hugging Face's format: `EsmForMaskedLM`, as facebook/esm2_t33_650M_UR50D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.contacts import ContactHead, pairs_of
from protlm_jax.models.exchange import (
    CONTACT_HEAD,
    Exchange,
    Key,
    linear_keys,
    norm_keys,
    refuse_unless,
    required,
)
from protlm_jax.models.families.bert import Head, attention_keys
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import ROTARY_THETA, rotary_frequencies, rotation
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams
from protlm_jax.vocabularies import get_vocabulary

MASKED_IN_TRAINING = 0.15 * 0.8  # share of tokens that training showed as <mask>


def esm2_config(**sizes: Any) -> ModelConfig:
    """An ESM-2 of any size over its 33 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "esm2",
        "vocabulary": "esm2",
        "vocab_size": 33,
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu",
        "positions": "rotary",
        "token_dropout": True,
    }
    return ModelConfig(**{**fields, **sizes})


def _published(num_layers: int, d_model: int, num_heads: int) -> ModelConfig:
    return esm2_config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=4 * d_model,
    )


# As in the names of the published models (esm2_t33_650M_UR50D has 33 layers), the two smallest by
# their config.json; the 40 heads of the largest are from memory.
PRESETS = {
    "esm2_8m": _published(6, 320, 20),
    "esm2_35m": _published(12, 480, 20),
    "esm2_150m": _published(30, 640, 20),
    "esm2_650m": _published(33, 1280, 20),
    "esm2_3b": _published(36, 2560, 40),
    "esm2_15b": _published(48, 5120, 40),
}


def token_dropout(masked: jax.Array, segments: jax.Array) -> jax.Array:
    """What each token's embedding is multiplied by: [B, L] float32.

    Args:
        masked: [B, L] bool, what is shown as <mask>.
        segments: [B, L] int32; the share of <mask> is each protein's own.
    """
    together = segments[:, :, None] == segments[:, None, :]
    hidden = jnp.sum(together & masked[:, None, :], axis=-1)
    tokens = jnp.sum(together, axis=-1)
    left = jnp.maximum(tokens - hidden, 1) / tokens  # of a protein all masked nothing is scaled
    scale = (1.0 - MASKED_IN_TRAINING) / left
    return jnp.where(masked | (segments == 0), 0.0, scale)


class Esm2(SingleStack):
    """ESM-2; see the module's docstring."""

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.frequencies = self.param(
            "frequencies",
            named(lambda key, shape: rotary_frequencies(2 * shape[0]), "frequencies"),
            (c.head_dim // 2,),
        )
        self.final_norm = Normalization(c)
        self.head_module = Head(c, name="head")
        self.contact_head = ContactHead(c)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c, tokens, segments = self.config, batch["input_tokens"], batch["segment_ids"]
        h = lookup(self.token, tokens)
        if c.token_dropout:
            masked = tokens == get_vocabulary(c.vocabulary).hiding_id
            h = h * token_dropout(masked, segments)[..., None]
        h = constrain(h.astype(c.compute_dtype), "batch", "length", "embed")
        turn = rotation(batch["positions"], jax.lax.stop_gradient(self.frequencies))
        attention = AttentionContext(segments, segments, query_rotation=turn, key_rotation=turn)
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(self.final_norm(h["encoder"]), self.token)

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)

    def contacts(self, batch: Batch) -> jax.Array:
        """The probability that two residues touch: [batch, length, length] float32.

        Zero where one of the two is a special token or padding, or of another protein.
        """
        h, context = self.embed(batch)
        vocabulary = get_vocabulary(self.config.vocabulary)
        specials = jnp.asarray((*vocabulary.prefix_ids, *vocabulary.suffix_ids), jnp.int32)
        tokens, segments = batch["input_tokens"], batch["segment_ids"]
        pairs = pairs_of((segments > 0) & ~jnp.isin(tokens, specials), segments)
        block, params = self.rows("encoder")
        return self.contact_head(block, params, h["encoder"], context["encoder"], pairs)

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        if self.is_initializing():
            self.contacts(batch)
        return super().__call__(batch, deterministic)


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

"""ESM-2 (Lin et al. 2023): the masked protein language model that most others are compared with.

Pre-LN blocks with rotary positions, a norm after the last block, and BERT's masked-language head
tied to the token table. Two things are its own:

- *Token dropout.* A residue shown as <mask> embeds as zeros, and the tokens that are left are
  scaled up by what a dropout of as many would scale them: (1 - 0.15 x 0.8) / (1 - share of <mask>),
  over the tokens of one protein, specials included. A masked position's stream thus starts at zero.
- *A contact head* over all attention maps, see `protlm_jax.models.contacts`.

ESM-2 in Hugging Face's format: `EsmForMaskedLM`, as facebook/esm2_t33_650M_UR50D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from protlm_jax.models.config import ModelConfig
from protlm_jax.models.contacts import ContactHead, pairs_of
from protlm_jax.models.exchange import (
    CONTACT_HEAD,
    Exchange,
    Field,
    Key,
    attention_keys,
    linear_keys,
    mlp_keys,
    norm_keys,
    required,
)
from protlm_jax.models.families.bert import SIZES, Head, head_keys
from protlm_jax.models.layers import lookup
from protlm_jax.models.positions import ROTARY_THETA, rotary_frequencies
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, PreNormStack, Streams
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

# SaProt (Su et al. 2023) is the network over pairs of a residue and a letter of its structure.
_PAIRS = {"vocabulary": "saprot", "vocab_size": 446}
PRESETS |= {
    "saprot_35m": _published(12, 480, 20).replace(**_PAIRS),
    "saprot_650m": _published(33, 1280, 20).replace(**_PAIRS),
    "saprot_1.3b": _published(66, 1280, 20).replace(**_PAIRS),
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


class Esm2(PreNormStack):
    """ESM-2; see the module's docstring."""

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)
    dense_head = True
    stored_frequencies = True

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.head_module = Head(c, name="head")
        self.contact_head = ContactHead(c)

    def tokens(self, batch: Batch, deterministic: bool) -> jax.Array:
        c, tokens = self.config, batch["input_tokens"]
        h = lookup(self.token, tokens)
        if c.token_dropout:
            masked = tokens == get_vocabulary(c.vocabulary).hiding_id
            h = h * token_dropout(masked, batch["segment_ids"])[..., None]
        return h.astype(c.compute_dtype)

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(self.final_norm(h["encoder"]), self.token)

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


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": 1026,  # of a table that rotary positions do without
        "mask_token_id": get_vocabulary(config.vocabulary).mask_id,
    }


def _read(fields: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    required(fields, "position_embedding_type")  # "absolute" where nothing is said: ESM-1b
    return {}


EXCHANGE = Exchange(
    model_type="esm",
    architecture="EsmForMaskedLM",
    task="fill-mask",
    keys=(
        Key("token", _TOKEN, "V D -> V D"),
        Key("frequencies", _FREQUENCIES, "R -> R"),
        *norm_keys("encoder/attention_norm", f"{_LAYER}attention.LayerNorm"),
        *attention_keys(f"{_LAYER}attention.self.", f"{_LAYER}attention.output.dense"),
        *norm_keys("encoder/mlp_norm", f"{_LAYER}LayerNorm"),
        *mlp_keys(f"{_LAYER}intermediate.dense", f"{_LAYER}output.dense"),
        *norm_keys("final_norm", "esm.encoder.emb_layer_norm_after"),
        *head_keys("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        *linear_keys(CONTACT_HEAD, "esm.contact_head.regression", "N H -> 1 (N H)", "A -> A"),
    ),
    make=esm2_config,
    fields=(
        *SIZES,
        Field("norm_eps", "layer_norm_eps", 1e-12),
        Field("dropout_rate", "hidden_dropout_prob", 0.1, ("attention_probs_dropout_prob",)),
        Field("token_dropout", "token_dropout", False),
    ),
    fixed={
        "position_embedding_type": ("rotary",),
        "rope_theta": (ROTARY_THETA, None),
        "emb_layer_norm_before": (False, None),
        "hidden_act": ("gelu", None),
        "is_folding_model": (False, None),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    write=_write,
    read=_read,
    imports="AutoModelForMaskedLM",
    copies={"lm_head.decoder.weight": _TOKEN},
    defaults={_FREQUENCIES: lambda config: np.asarray(rotary_frequencies(config.head_dim))},
    # Before transformers 5 every layer had its own copy; 5.23 may write a star for the layer.
    aliases={"esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq": _FREQUENCIES},
    unused={
        "esm.embeddings.position_ids": "a constant range",
        "esm.embeddings.position_embeddings.weight": "positions are rotary",
        "esm.pooler.dense.*": "the pooler takes no part in masked language modelling",
    },
    heads={
        "head": "the masked-language head (lm_head)",
        CONTACT_HEAD: "the contact head (esm.contact_head)",
    },
    keeps_rare=True,
    esm_tokenizer=True,
    row=("max_position_embeddings", 2),  # of the table's rows, two hold no token
    around=(("cls_token",), ("eos_token",)),
)

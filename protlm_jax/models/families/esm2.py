"""ESM-2 (Lin et al. 2023): the masked protein language model that most others are compared with.

Pre-LN blocks with rotary positions, a norm after the last block, and BERT's masked-language head
tied to the token table. Two things are its own:

- *Token dropout.* A residue shown as <mask> embeds as zeros, and the tokens that are left are
  scaled up by what a dropout of as many would scale them: (1 - 0.15 x 0.8) / (1 - share of <mask>),
  over the tokens of one protein, specials included. A masked position's stream thus starts at zero.
- *A contact head* over all attention maps, see `protlm_jax.models.contacts`.

The rotary frequencies are parameters that no gradient reaches: published checkpoints hold them
rounded to half precision, and far from the start of a protein the difference shows.
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
from protlm_jax.models.contacts import ContactHead, pairs_of
from protlm_jax.models.families.bert import Head
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import rotary_frequencies, rotation
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

"""Transformer-XL for proteins (Dai et al. 2019; ProtTXL: Elnaggar et al. 2021).

Post-LN blocks that see the tokens before them alone, by relative distance, and, in every layer, the
streams of the rows before (`protlm_jax.models.memory`). Each position predicts the next token. The
embedding is scaled by the root of the width and tied to the output. The softmax is a plain one over
all tokens: the paper's adaptive softmax, made for 267,735 words, is the same thing with one cluster
of 29 tokens.

Neither ProtTXL nor ProtTXL-BFD was ever released: no file is there to compare with.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import lookup
from protlm_jax.models.memory import (
    RecurrentStack,
    causal_context,
    past_streams,
)
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, Streams


def transformer_xl_config(**sizes: Any) -> ModelConfig:
    """A Transformer-XL of any size over our 29 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "transformer_xl",
        "vocabulary": "prot_txl",
        "vocab_size": 29,
        "norm": "layer_norm",
        "norm_placement": "post",
        "norm_eps": 1e-5,
        "activation": "relu",
        "positions": "relative_xl",
        "mlp_dropout": True,
        "dropout_rate": 0.15,  # from memory of the paper
        "memory_length": 512,  # from memory of the paper
    }
    return ModelConfig(**{**fields, **sizes})


# From memory of the paper: all sizes of both but the 562 M parameters of ProtTXL-BFD (from notes on
# it) and the head size there. 14 heads do not divide a width of 1024; Transformer-XL's head size is
# free, and of the usual ones only 128 gives 562 M (64 gives 416 M).
PRESETS = {
    "prot_txl": transformer_xl_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096
    ),
    "prot_txl_bfd": transformer_xl_config(
        d_model=1024, num_layers=32, num_heads=14, head_dim=128, d_ff=4096
    ),
}


class TransformerXL(RecurrentStack):
    """Transformer-XL; see the module's docstring.

    A batch has `input_tokens` and `segment_ids`, and may have a memory; see `models.memory`.
    """

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        zeros = nn.initializers.zeros_init()
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.head_bias = self.param("head_bias", named(zeros, "vocab"), (c.vocab_size,))
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c = self.config
        h = lookup(self.token, batch["input_tokens"]) * c.d_model**0.5
        h = self.dropout(h.astype(c.compute_dtype), deterministic)
        h = constrain(h, "batch", "length", "embed")
        context = BlockContext(causal_context(c, batch), past=past_streams(batch))
        return {"encoder": h}, {"encoder": context}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        x = self.dropout(h["encoder"], deterministic)
        logits = jnp.einsum(
            "BLD,VD->BLV", x, self.token.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + self.head_bias[None, None]

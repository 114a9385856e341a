"""GPT-2 for proteins (Radford et al. 2019; ProtGPT2: Ferruz et al. 2022).

Pre-LN blocks that see the tokens before them alone, learned absolute positions, a norm after the
last block, and an output tied to the token table. Each position predicts the next token.

ProtGPT2 itself reads pieces of several residues (byte-pair encoding), and says nothing about single
ones: here a token is a residue, and its folder is refused.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams


def gpt2_config(**sizes: Any) -> ModelConfig:
    """A GPT-2 of any size over our 29 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "gpt2",
        "vocabulary": "prot_txl",
        "vocab_size": 29,
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "positions": "learned",
        "max_positions": 1024,
        "dropout_rate": 0.1,
    }
    return ModelConfig(**{**fields, **sizes})


# The shape of ProtGPT2, which is that of GPT-2 large, from memory; its table has 50,257 rows.
PRESETS = {
    "prot_gpt2": gpt2_config(d_model=1280, num_layers=36, num_heads=20, head_dim=64, d_ff=5120)
}


class Gpt2(SingleStack):
    """GPT-2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder"),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        start = normal if c.position_init == "normal" else sinusoidal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.position = self.param(
            "position", named(start, "positions", "embed"), (c.max_positions, c.d_model)
        )
        self.final_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        h = lookup(self.token, batch["input_tokens"])
        h = h + lookup(self.position, batch["positions"])
        h = self.dropout(h.astype(self.config.compute_dtype), deterministic)
        h = constrain(h, "batch", "length", "embed")
        segments = batch["segment_ids"]
        attention = AttentionContext(segments, segments, causal=True)
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        x = self.final_norm(h["encoder"])
        return jnp.einsum(
            "BLD,VD->BLV", x, self.token.astype(x.dtype), preferred_element_type=jnp.float32
        )

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)

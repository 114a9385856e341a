"""ProGen2 (Nijkamp et al. 2023): proteins read from either end, each token from those before it.

Parallel blocks as in GPT-J: attention and MLP read one norm of the same stream, and both are added
to it. Attention has no biases, and turns the first entries of each head alone, in pairs of
neighbours. The output has weights of its own, and a bias.

A protein stands between the tokens 1 and 2, its N and C terminus: `1MKV2`, or `2VKM1` read
backwards. The model was trained on both, so that a protein has two likelihoods; scores are the mean
of the two.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Logits, Normalization, lookup
from protlm_jax.models.positions import rotary_frequencies, rotation
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams

HEAD_GROUPS = 8  # in which published checkpoints hold their heads


def progen2_config(**sizes: Any) -> ModelConfig:
    """A ProGen2 of any size over its 30 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "progen2",
        "vocabulary": "progen2",
        "vocab_size": 32,  # rows in the published conversions, of which 30 are tokens
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "parallel_block": True,
        "attention_bias": False,
        "positions": "rotary",
        "rotary_pairs": "neighbours",
        "max_positions": 1024,
        "tie_embeddings": False,
    }
    return ModelConfig(**{**fields, **sizes})


def _published(
    layers: int, width: int, heads: int, rotary: int, context: int = 1024
) -> ModelConfig:
    return progen2_config(
        num_layers=layers,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        rotary_dim=rotary,
        max_positions=context,
    )


# As published, but that the 64 turned entries of the largest are inferred and that the context of
# "base" is from memory. ProGen2-OAS is as "medium", ProGen2-BFD90 as "large".
PRESETS = {
    "progen2_small": _published(12, 1024, 16, 32),
    "progen2_medium": _published(27, 1536, 16, 48),
    "progen2_base": _published(27, 1536, 16, 48, context=2048),
    "progen2_large": _published(32, 2560, 32, 64),
    "progen2_xlarge": _published(32, 4096, 16, 64),
}


class ProGen2(SingleStack):
    """ProGen2; see the module's docstring."""

    readouts = (Readout("causal", stack="encoder", both_ways=True),)
    objectives = ("causal",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.final_norm = Normalization(c)
        self.head_module = Logits(c, name="head")
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c, segments = self.config, batch["segment_ids"]
        h = lookup(self.token, batch["input_tokens"]).astype(c.compute_dtype)
        h = constrain(self.dropout(h, deterministic), "batch", "length", "embed")
        neighbours = c.rotary_pairs == "neighbours"
        turn = rotation(batch["positions"], rotary_frequencies(c.rotary_size), neighbours)
        attention = AttentionContext(
            segments, segments, causal=True, query_rotation=turn, key_rotation=turn
        )
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits of the next token."""
        return self.head_module(self.final_norm(h["encoder"]))

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)

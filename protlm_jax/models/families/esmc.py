"""ESM-C (EvolutionaryScale 2024, "ESM Cambrian"): the successor of ESM-2 for representations.

Pre-LN blocks with rotary positions, gated MLPs (SwiGLU) and no biases but in the norms. Queries and
keys are normed over all heads together before they are turned. What a sublayer adds is divided by
sqrt(layers / 36), so that streams of deep models grow no faster. The masked-language head has a
table of its own, and <mask> is an ordinary token with an embedding that is learned: there is none
of ESM-2's token dropout.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.bert import Head
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import rotary_frequencies, rotation
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams

REFERENCE_DEPTH = 36  # layers of the model whose additions are not scaled


def residual_divisor(num_layers: int) -> float:
    """What additions to the stream are divided by in a model of so many layers."""
    return float((num_layers / REFERENCE_DEPTH) ** 0.5)


def esmc_config(num_layers: int, **sizes: Any) -> ModelConfig:
    """An ESM-C of any size over its 33 tokens; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "esmc",
        "vocabulary": "esmc",
        "vocab_size": 64,  # rows, of which 33 are tokens
        "norm": "layer_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-5,
        "activation": "silu",
        "gated_mlp": True,
        "use_bias": False,
        "qk_norm": True,
        "residual_divisor": residual_divisor(num_layers),
        "positions": "rotary",
        "tie_embeddings": False,
    }
    return ModelConfig(num_layers=num_layers, **{**fields, **sizes})


def _published(num_layers: int, d_model: int) -> ModelConfig:
    return esmc_config(
        num_layers,
        d_model=d_model,
        num_heads=d_model // 64,
        head_dim=64,
        d_ff=-(-d_model * 8 // 3 // 256) * 256,  # 8/3 of the width, up to a multiple of 256
    )


PRESETS = {
    "esmc_300m": _published(30, 960),
    "esmc_600m": _published(36, 1152),
    "esmc_6b": _published(80, 2560),
}


class Esmc(SingleStack):
    """ESM-C; see the module's docstring."""

    readouts = (Readout("masked", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ("masked",)

    def setup(self) -> None:
        super().setup()
        c = self.config
        table = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.token = self.param("token", table, (c.vocab_size, c.d_model))
        self.decoder = self.param("decoder", table, (c.vocab_size, c.d_model))
        self.final_norm = Normalization(c, bias=False)
        self.head_module = Head(c.replace(activation="gelu"), name="head")

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        c, segments = self.config, batch["segment_ids"]
        h = lookup(self.token, batch["input_tokens"]).astype(c.compute_dtype)
        h = constrain(h, "batch", "length", "embed")
        turn = rotation(batch["positions"], rotary_frequencies(c.rotary_size))
        attention = AttentionContext(segments, segments, query_rotation=turn, key_rotation=turn)
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        return self.head_module(self.final_norm(h["encoder"]), self.decoder)

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)

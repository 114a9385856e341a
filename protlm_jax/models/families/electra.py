"""ELECTRA for proteins (Clark et al. 2020; ProtElectra: Elnaggar et al. 2021).

Two encoders of BERT's kind that own their embeddings once. The generator, a quarter as wide, is a
masked language model; the discriminator says of each token whether it stood in the protein or came
from the generator. Only the discriminator is meant for use: embedding, probing and depth read it.

Three families: "electra", both together, which is what training needs, and each of the two alone,
as Hugging Face's folders hold them.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.families.bert import Bert, bert_config
from protlm_jax.models.layers import ACTIVATIONS, Projection
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Streams


def electra_config(**sizes: Any) -> ModelConfig:
    """An ELECTRA of any size over ProtBert's 30 tokens, described by its discriminator's sizes."""
    return bert_config(**{"family": "electra", "generator_shrink": 4, **sizes})


# 16 heads are from memory, and the generator's 4 follow from the quarter; the rest fits the sizes
# of the published files (Rostlab/prot_electra_discriminator_bfd and _generator_bfd).
PRESETS = {
    "prot_electra_bfd": electra_config(
        d_model=1024, num_layers=30, num_heads=16, head_dim=64, d_ff=4096, max_positions=40_000
    )
}


def discriminator_config(config: ModelConfig) -> ModelConfig:
    """The discriminator of a joint config, as a model of its own."""
    return config.replace(family="electra_discriminator", generator_shrink=0)


def generator_config(config: ModelConfig) -> ModelConfig:
    """The generator of a joint config: width, heads and MLP divided, depth and embeddings kept.

    Raises:
        ProtlmError: the sizes do not divide.
    """
    shrink = config.generator_shrink
    heads = max(1, config.num_heads // shrink) if shrink > 0 else 0
    if not heads or config.d_model % (shrink * heads) or config.d_ff % shrink:
        raise ProtlmError(
            f"model.generator_shrink is {shrink}; it must divide model.d_model {config.d_model} "
            f"and model.d_ff {config.d_ff}, and leave a width that its heads share"
        )
    width = config.d_model // shrink
    narrow = 0 if config.embedding_width == width else config.embedding_width
    return config.replace(
        family="electra_generator",
        generator_shrink=0,
        embedding_size=narrow,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=config.d_ff // shrink,
    )


class DetectionHead(nn.Module):
    """Dense, activation, dense to one number: the logit of "replaced" [B, L, 1] float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        c = self.config
        h = Projection(
            "BLD,DE->BLE",
            ("embed", "embed_out"),
            (c.d_model, c.d_model),
            1,
            c.initializer_range,
            c.compute_dtype,
            name="dense",
        )(h)
        return Projection(
            "BLD,DA->BLA",
            ("embed", "answers"),
            (c.d_model, 1),
            1,
            c.initializer_range,
            jnp.dtype("float32"),
            name="prediction",
        )(ACTIVATIONS[c.activation](h))


class ElectraGenerator(Bert):
    """The generator alone: an ordinary masked language model."""


class ElectraDiscriminator(Bert):
    """The discriminator alone; it cannot be trained without a generator."""

    readouts = (Readout("detection", stack="encoder"),)
    objectives: ClassVar[tuple[str, ...]] = ()
    make_head = DetectionHead

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits [batch, length, 1] float32 of "replaced" from the stream at any depth."""
        return cast(jax.Array, self.head_module(h["encoder"]))


class Electra(ElectraDiscriminator):
    """Both, the generator reading the discriminator's embeddings; as a model it is the latter."""

    objectives = ("replaced_token",)

    def setup(self) -> None:
        super().setup()
        self.generator = ElectraGenerator(
            generator_config(self.config), shared_embedder=self.embedder
        )

    def generate(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The generator's logits [batch, length, vocab] float32."""
        return self.generator(batch, deterministic)

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        if self.is_initializing():
            self.generate(batch)
        return super().__call__(batch, deterministic)

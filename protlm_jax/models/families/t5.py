"""T5 v1.0 encoder-decoder for proteins (Raffel et al. 2020; ProtT5: Elnaggar et al. 2021).

Pre-LN blocks with RMSNorm, no biases, ReLU, relative position biases shared by all blocks of a
stack, unscaled attention scores, and a head tied to the embedding after scaling by d_model**-0.5.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import Block, BlockContext, Taps
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import relative_bias
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stack import Params, init_stack
from protlm_jax.models.stacked import Batch, Contexts, Programs, Stacked, Streams


def t5_config(**sizes: Any) -> ModelConfig:
    """A T5 v1.0 of any size over ProtT5's 128 ids; `sizes` override the fields given here."""
    fields: dict[str, Any] = {
        "family": "t5",
        "vocabulary": "prot_t5",
        "vocab_size": 128,
        "norm": "rms_norm",
        "norm_placement": "pre",
        "norm_eps": 1e-6,
        "activation": "relu",
        "use_bias": False,
        "positions": "relative_bias",
        "relative_buckets": 32,
        "relative_max_distance": 128,
        "attention_scale": False,
        "scale_tied_logits": True,
        "dropout_rate": 0.1,
        "mlp_dropout": True,
        "initializer_range": 1.0,
    }
    return ModelConfig(**{**fields, **sizes})


# ProtT5-XL and -XXL, BFD and UniRef50 alike (config.json of Rostlab/prot_t5_xl_uniref50 and
# prot_t5_xxl_uniref50).
PRESETS = {
    "prot_t5_xl": t5_config(
        d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=32, head_dim=128, d_ff=16_384
    ),
    "prot_t5_xxl": t5_config(
        d_model=1024, num_layers=24, num_decoder_layers=24, num_heads=128, head_dim=128, d_ff=65_536
    ),
}


class Embedder(nn.Module):
    """The token embedding that encoder, decoder and head share."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        init = named(nn.initializers.normal(c.initializer_range), "vocab", "embed")
        self.token = self.param("token", init, (c.vocab_size, c.d_model))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return lookup(self.token, tokens).astype(self.config.compute_dtype)


class T5(Stacked):
    """T5: `embed -> stack -> head`; streams, contexts and taps are keyed by stack name."""

    config: ModelConfig

    stack_names = ("encoder", "decoder")
    readouts = (Readout("denoising", stack="decoder"),)
    objectives = ("denoising",)

    def setup(self) -> None:
        c = self.config
        self.encoder_block = Block(c, parent=None)
        self.decoder_block = Block(c, cross=True, parent=None)
        self.embedder = Embedder(c)
        self.encoder = self.param("encoder", init_stack, self.encoder_block)
        self.decoder = self.param("decoder", init_stack, self.decoder_block)
        bias = named(nn.initializers.normal(c.d_model**-0.5), "relpos_buckets", "heads")
        shape = (c.relative_buckets, c.num_heads)
        self.encoder_relative_bias = self.param("encoder_relative_bias", bias, shape)
        self.decoder_relative_bias = self.param("decoder_relative_bias", bias, shape)
        self.encoder_norm = Normalization(c)
        self.decoder_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)
        if not c.tie_embeddings:
            init = named(nn.initializers.normal(c.d_model**-0.5), "embed", "vocab")
            self.head_kernel = self.param("head_kernel", init, (c.d_model, c.vocab_size))

    def rows(self, stack: str) -> tuple[Block, Params]:
        if stack == "encoder":
            return self.encoder_block, self.encoder
        return self.decoder_block, self.decoder

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        """The streams before each stack's block 0 and what its blocks need, by stack name.

        The decoder's context has no memory yet: `connect` hands it the encoder's output.
        """
        encoder, encoder_context = self._embed_encoder(batch, deterministic)
        tokens, segments = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
        decoder = self.dropout(self.embedder(tokens), deterministic)
        decoder_context = BlockContext(
            AttentionContext(
                segments, segments, self._bias("decoder", tokens.shape[1]), causal=True
            ),
            AttentionContext(segments, batch["encoder_segment_ids"]),
        )
        return (
            {"encoder": encoder, "decoder": constrain(decoder, "batch", "length", "embed")},
            {"encoder": encoder_context, "decoder": decoder_context},
        )

    def stack(
        self,
        h: Streams,
        context: Contexts,
        programs: Programs | None = None,
        deterministic: bool = True,
    ) -> tuple[Streams, dict[str, Taps]]:
        """Runs the encoder, hands its output to the decoder, and runs the decoder."""
        programs = programs or {}
        encoder, encoder_taps = self.run(
            "encoder", h["encoder"], context["encoder"], programs.get("encoder"), deterministic
        )
        context = self.connect({"encoder": encoder}, context, deterministic)
        decoder, decoder_taps = self.run(
            "decoder", h["decoder"], context["decoder"], programs.get("decoder"), deterministic
        )
        return (
            {"encoder": encoder, "decoder": decoder},
            {"encoder": encoder_taps, "decoder": decoder_taps},
        )

    def connect(self, h: Streams, context: Contexts, deterministic: bool = True) -> Contexts:
        """Gives the decoder's context the normed encoder output as its memory."""
        memory = self.dropout(self.encoder_norm(h["encoder"]), deterministic)
        return {**context, "decoder": dataclasses.replace(context["decoder"], memory=memory)}

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits from the decoder's stream at any depth."""
        c = self.config
        x = self.dropout(self.decoder_norm(h["decoder"]), deterministic)
        if c.tie_embeddings:
            if c.scale_tied_logits:
                x = x * jnp.asarray(c.d_model**-0.5, x.dtype)
            kernel = self.embedder.token.T
        else:
            kernel = self.head_kernel
        return jnp.einsum(
            "BLD,DV->BLV", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32
        )

    def hidden(self, batch: Batch) -> jax.Array:
        """The normed encoder output [batch, length, d_model]; needs encoder features only."""
        h, context = self._embed_encoder(batch, deterministic=True)
        return self.encoder_norm(self.run("encoder", h, context)[0])

    def every_layer(self, batch: Batch) -> jax.Array:
        """The encoder's stream at every depth; needs encoder features only."""
        h, context = self._embed_encoder(batch, deterministic=True)
        out, taps = self.run("encoder", h, context)
        return jnp.concatenate([taps["stream"], self.encoder_norm(out)[None]])

    def before_blocks(self, batch: Batch) -> tuple[jax.Array, BlockContext]:
        """The encoder's; needs encoder features only."""
        return self._embed_encoder(batch, deterministic=True)

    def _embed_encoder(self, batch: Batch, deterministic: bool) -> tuple[jax.Array, BlockContext]:
        tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        h = self.dropout(self.embedder(tokens), deterministic)
        bias = self._bias("encoder", tokens.shape[1])
        context = BlockContext(AttentionContext(segments, segments, bias))
        return constrain(h, "batch", "length", "embed"), context

    def _bias(self, stack: str, length: int) -> jax.Array:
        tables = {"encoder": self.encoder_relative_bias, "decoder": self.decoder_relative_bias}
        distance = self.config.relative_max_distance
        return relative_bias(tables[stack], length, length, distance, stack == "encoder")

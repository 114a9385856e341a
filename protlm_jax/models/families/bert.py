"""BERT encoder for proteins (Devlin et al. 2018; ProtBert: Elnaggar et al. 2021).

Post-LN blocks, learned absolute positions, token types (all zero here), and a masked-language
head tied to the token embedding. ProtBert's checkpoints have no next-sentence head.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import Block, BlockContext, Taps
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.layers import ACTIVATIONS, Normalization, Projection
from protlm_jax.models.positions import sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stack import LayerProgram, Visit, init_stack, resume_stack, run_stack

Batch = dict[str, jax.Array]


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
    """Token, position and type embeddings, normed: ids [B, L] -> [B, L, D]."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        start = normal if c.position_init == "normal" else sinusoidal(c.initializer_range)
        self.position = self.param(
            "position", named(start, "positions", "embed"), (c.max_positions, c.d_model)
        )
        self.token_type = self.param(
            "token_type", named(normal, "types", "embed"), (c.type_vocab_size, c.d_model)
        )
        self.norm = Normalization(c)

    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        h = jnp.take(self.token, tokens, axis=0) + jnp.take(self.position, positions, axis=0)
        h = h + self.token_type[0][None, None]
        return self.norm(h.astype(self.config.compute_dtype))


class Head(nn.Module):
    """BERT's masked-language head: dense, activation, norm, then the tied embedding and a bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
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
        h = Normalization(c, name="norm")(ACTIVATIONS[c.activation](h))
        kernel = embedding.astype(c.compute_dtype)
        logits = jnp.einsum("BLD,VD->BLV", h, kernel, preferred_element_type=jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros_init(), "vocab"), (c.vocab_size,))
        return logits + bias[None, None]


class Bert(nn.Module):
    """BERT: `embed -> stack -> head`, and `__call__` is their composition."""

    config: ModelConfig

    stack_names = ("encoder",)
    readouts = (Readout("masked", stack="encoder"),)

    def setup(self) -> None:
        c = self.config
        self.block = Block(c, parent=None)
        self.embedder = Embedder(c)
        self.encoder = self.param("encoder", init_stack, self.block, c.num_layers)
        self.head_module = Head(c, name="head")
        self.dropout = nn.Dropout(c.dropout_rate)

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """Logits [batch, length, vocab] float32 of a batch with single-stack features."""
        h, context = self.embed(batch, deterministic)
        h, _ = self.stack(h, context, deterministic=deterministic)
        return self.head(h)

    def embed(
        self, batch: Batch, deterministic: bool = True
    ) -> tuple[dict[str, jax.Array], dict[str, BlockContext]]:
        """The stream before block 0, and what the blocks need; both keyed by stack name."""
        h = self.embedder(batch["input_tokens"], batch["positions"])
        h = constrain(self.dropout(h, deterministic=deterministic), "batch", "length", "embed")
        segments = batch["segment_ids"]
        return {"encoder": h}, {"encoder": BlockContext(AttentionContext(segments, segments))}

    def stack(
        self,
        h: dict[str, jax.Array],
        context: dict[str, BlockContext],
        programs: dict[str, LayerProgram] | None = None,
        deterministic: bool = True,
    ) -> tuple[dict[str, jax.Array], dict[str, Taps]]:
        """Runs the blocks."""
        program = (programs or {}).get("encoder")
        out, taps = self.run("encoder", h["encoder"], context["encoder"], program, deterministic)
        return {"encoder": out}, {"encoder": taps}

    def run(
        self,
        stack: str,
        h: jax.Array,
        context: BlockContext,
        program: LayerProgram | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Taps]:
        """Runs one stack; see `run_stack`."""
        rng = None if deterministic or not self.has_rng("dropout") else self.make_rng("dropout")
        return run_stack(self.block, self.encoder, h, context, program=program, dropout_rng=rng)

    def connect(
        self, h: dict[str, jax.Array], context: dict[str, BlockContext]
    ) -> dict[str, BlockContext]:
        """Nothing flows between stacks: there is one."""
        return context

    def resume(
        self,
        stack: str,
        h: jax.Array,
        context: BlockContext,
        start: jax.Array,
        visit: Visit,
        carry: object,
    ) -> tuple[jax.Array, object]:
        """Runs the blocks from `start` on; see `resume_stack`."""
        return resume_stack(self.block, self.encoder, h, context, start, visit, carry)

    def head(self, h: dict[str, jax.Array]) -> jax.Array:
        """Logits from a stream at any depth."""
        return self.head_module(h["encoder"], self.embedder.token)

    def hidden(self, batch: Batch) -> jax.Array:
        """What users call the embedding: [batch, length, d_model] after the last block."""
        h, context = self.embed(batch)
        return self.stack(h, context)[0]["encoder"]

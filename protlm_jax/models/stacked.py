"""What all families have in common: how their rows of blocks are run.

A family is `embed -> stack -> head`, and `__call__` is their composition. Streams, contexts, taps
and programs are keyed by the name of the row, of which most families have one.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import Block, BlockContext, Stream, Taps
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Normalization, lookup
from protlm_jax.models.positions import rotary_frequencies, rotation, sinusoidal
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stack import (
    LayerProgram,
    Params,
    Visit,
    apply_layer,
    init_stack,
    prepared,
    resume_stack,
    run_stack,
)

Batch = dict[str, jax.Array]
Streams = dict[str, Stream]
Contexts = dict[str, BlockContext]
Programs = dict[str, LayerProgram]


class Stacked(nn.Module):
    """A model made of rows of blocks; see `SingleStack` for a family with one.

    Attributes:
        stack_names: its rows, in the order in which they run.
        readouts: where residues can be read; the first is the one that evaluation asks.
        objectives: names of the objectives that train it.
        dense_head: whether its head has a dense layer between the stream and the token table.
        causal: whether a token sees itself and those before it alone.
    """

    config: ModelConfig

    stack_names: ClassVar[tuple[str, ...]] = ("encoder",)
    readouts: ClassVar[tuple[Readout, ...]] = ()
    objectives: ClassVar[tuple[str, ...]] = ()
    dense_head: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    @classmethod
    def head_flops(cls, config: ModelConfig) -> int:
        """Operations of the head per token; see `protlm_jax.models.flops`."""
        width = config.embedding_width
        dense = 2 * config.d_model * width if cls.dense_head else 0
        return dense + 2 * width * config.vocab_size

    def stacked(self, name: str, block: Block) -> Params:
        """The stacked parameters of a row, which may hold adapters beside what a block asks for."""
        if not self.is_initializing() and (params := self.get_variable("params", name)):
            return params
        return self.param(name, init_stack, block)

    def rows(self, stack: str) -> tuple[Block, Params]:
        """The block of one row, unbound, and its stacked parameters."""
        raise NotImplementedError

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        """The streams before each row's block 0, and what its blocks need."""
        raise NotImplementedError

    def stack(
        self,
        h: Streams,
        context: Contexts,
        programs: Programs | None = None,
        deterministic: bool = True,
    ) -> tuple[Streams, dict[str, Taps]]:
        """Runs all rows, each once and in order where no program says otherwise."""
        raise NotImplementedError

    def connect(self, h: Streams, context: Contexts, deterministic: bool = True) -> Contexts:
        """The contexts after what flows from one row's output to another."""
        raise NotImplementedError

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """Logits [batch, length, vocab] float32 from a stream at any depth."""
        raise NotImplementedError

    def hidden(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """What users call the embedding: [batch, length, d_model]."""
        raise NotImplementedError

    def every_layer(self, batch: Batch) -> jax.Array:
        """The stream at every depth of the row that is embedded: [layers + 1, B, L, d_model].

        Entry i is the stream before block i, 0 the embedding of the tokens; the last one is
        `hidden`, after the final norm where the family has one. These are the `hidden_states` of
        transformers.
        """
        raise NotImplementedError

    def before_blocks(self, batch: Batch) -> tuple[Stream, BlockContext]:
        """What enters block 0 of the row that is embedded, which is called "encoder"."""
        h, context = self.embed(batch)
        return h["encoder"], context["encoder"]

    def initial_carry(self, batch_size: int) -> Batch:
        """What a recurrent family carries from batch to batch, before the first; {} elsewhere.

        Features that a batch may have beside its own, every array with the rows first.
        """
        return {}

    def recur(
        self, batch: Batch, carry: Batch, deterministic: bool = True
    ) -> tuple[jax.Array, Batch]:
        """Logits of a batch that continues the one before, and the carry for the next.

        Args:
            batch: its rows continue, in their order, those of the batch that left `carry`.
            carry: of `initial_carry` or of `recur`; {} makes a recurrent family forget.
            deterministic: False applies dropout.
        """
        return self(batch, deterministic), carry

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """Logits [batch, length, vocab] float32 of a batch with the family's features."""
        h, context = self.embed(batch, deterministic)
        h, _ = self.stack(h, context, deterministic=deterministic)
        return self.head(h, deterministic)

    def run(
        self,
        stack: str,
        h: Stream,
        context: BlockContext,
        program: LayerProgram | None = None,
        deterministic: bool = True,
    ) -> tuple[Stream, Taps]:
        """Runs one row; see `run_stack`."""
        rng = None if deterministic or not self.has_rng("dropout") else self.make_rng("dropout")
        block, params = self.rows(stack)
        return run_stack(block, params, h, context, program=program, dropout_rng=rng)

    def prepared(self, stack: str, h: Stream, context: BlockContext) -> BlockContext:
        """The context with what flows between layers beside the stream; see `stack.prepared`."""
        block, params = self.rows(stack)
        return prepared(block, params, h, context)

    def resume(
        self,
        stack: str,
        h: Stream,
        context: BlockContext,
        start: jax.Array,
        visit: Visit,
        carry: object,
        program: LayerProgram | None = None,
    ) -> tuple[Stream, object]:
        """Runs one row's blocks from `start` on; see `resume_stack`."""
        block, params = self.rows(stack)
        return resume_stack(block, params, h, context, start, visit, carry, program)

    def layer(
        self,
        stack: str,
        index: jax.Array | int,
        h: Stream,
        context: BlockContext,
        gate: jax.Array | None = None,
    ) -> tuple[Stream, Taps]:
        """Runs one layer of a row on any stream; see `apply_layer`."""
        block, params = self.rows(stack)
        return apply_layer(block, params, h, context, index, gate)


class SingleStack(Stacked):
    """A family with one row, "encoder"; it adds `embed` and `head`, and its own `setup`."""

    def setup(self) -> None:
        self.block = Block(self.config, parent=None)
        self.encoder = self.stacked("encoder", self.block)

    def rows(self, stack: str) -> tuple[Block, Params]:
        return self.block, self.encoder

    def stack(
        self,
        h: Streams,
        context: Contexts,
        programs: Programs | None = None,
        deterministic: bool = True,
    ) -> tuple[Streams, dict[str, Taps]]:
        program = (programs or {}).get("encoder")
        out, taps = self.run("encoder", h["encoder"], context["encoder"], program, deterministic)
        return {"encoder": out}, {"encoder": taps}

    def connect(self, h: Streams, context: Contexts, deterministic: bool = True) -> Contexts:
        return context

    def finish(self, h: jax.Array) -> jax.Array:
        """From the last block's output to the embedding: a final norm, where there is one."""
        return h

    def hidden(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        h, context = self.embed(batch, deterministic)
        return self.finish(self.stack(h, context, deterministic=deterministic)[0]["encoder"])

    def every_layer(self, batch: Batch) -> jax.Array:
        h, context = self.embed(batch)
        out, taps = self.stack(h, context)
        last = self.finish(out["encoder"])
        return jnp.concatenate([taps["encoder"]["stream"], last[None]])


class TokenStack(SingleStack):
    """A family whose stream starts from the rows of a token table."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        normal = nn.initializers.normal(c.initializer_range)
        self.token = self.param("token", named(normal, "vocab", "embed"), (c.vocab_size, c.d_model))
        self.dropout = Dropout(c.dropout_rate)


class PreNormStack(TokenStack):
    """A family of pre-LN blocks with a norm after the last one; it adds `head`.

    Attributes:
        stored_frequencies: whether the rotary frequencies are a parameter, which no gradient
            reaches: published checkpoints hold them rounded to half precision, and far from the
            start of a protein the difference shows.
    """

    stored_frequencies: ClassVar[bool] = False

    def setup(self) -> None:
        super().setup()
        c = self.config
        if c.positions == "learned":
            kind = nn.initializers.normal if c.position_init == "normal" else sinusoidal
            table = named(kind(c.initializer_range), "positions", "embed")
            self.position = self.param("position", table, (c.max_positions, c.d_model))
        if self.stored_frequencies:
            start = named(lambda key, shape: rotary_frequencies(2 * shape[0]), "frequencies")
            self.frequencies = self.param("frequencies", start, (c.head_dim // 2,))
        self.final_norm = Normalization(c, bias=c.use_bias)

    def tokens(self, batch: Batch, deterministic: bool) -> jax.Array:
        """The embedding of each token: [batch, length, d_model]."""
        h = lookup(self.token, batch["input_tokens"])
        if self.config.positions == "learned":
            h = h + lookup(self.position, batch["positions"])
        return self.dropout(h.astype(self.config.compute_dtype), deterministic)

    def rotary_frequencies(self) -> jax.Array:
        """Radians per position of each pair that is turned."""
        if self.stored_frequencies:
            return jax.lax.stop_gradient(self.frequencies)
        return rotary_frequencies(self.config.rotary_size)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        h = constrain(self.tokens(batch, deterministic), "batch", "length", "embed")
        turn, segments = None, batch["segment_ids"]
        if self.config.positions == "rotary":
            neighbours = self.config.rotary_pairs == "neighbours"
            turn = rotation(batch["positions"], self.rotary_frequencies(), neighbours)
        attention = AttentionContext(
            segments, segments, causal=self.causal, query_rotation=turn, key_rotation=turn
        )
        return {"encoder": h}, {"encoder": BlockContext(attention)}

    def finish(self, h: jax.Array) -> jax.Array:
        return self.final_norm(h)

"""The residual block: every model is a row of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from protlm_jax.models import branches
from protlm_jax.models.attention import Attention, RelativeAttention
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.layers import Mlp, Normalization
from protlm_jax.models.positions import rotary_frequencies, rotation

# How a block attends where positions are not a matter of the embedding or of a bias.
ATTENTIONS: dict[str, type[nn.Module]] = {"relative_xl": RelativeAttention}

Stream = Any  # [batch, length, d_model], or a pair of them: (content, query)
Taps = dict[str, Stream]


@flax.struct.dataclass
class BlockContext:
    """What every block of a stack needs besides the stream.

    Attributes:
        attention: segments, bias and causality of self-attention.
        cross_attention: the same towards `memory`; None in an encoder.
        memory: [batch, key_length, d_model] encoder output; None in an encoder.
        query_attention: what the query stream of a pair may see of the content stream.
        past: streams of earlier segments that self-attention sees before its own row:
            [layers, batch, past_length, d_model] around a stack, without `layers` in a block.
        skips: around a stack [layers // 2, batch, length, d_model], the streams that left its first
            half, so far as they are known; in a block the one that its long skip adds.
        layer: int32, the number of a block in its stack, from 0; None around a stack.
    """

    attention: AttentionContext
    cross_attention: AttentionContext | None = None
    memory: jax.Array | None = None
    query_attention: AttentionContext | None = None
    past: jax.Array | None = None
    skips: jax.Array | None = None
    layer: jax.Array | None = None


class Block(nn.Module):
    """Attention, cross-attention where there is a memory, and the MLP, each added to the stream.

    `norm_placement` decides where the norms stand: pre x + f(N(x)), post N(x + f(x)), peri
    x + N'(f(N(x))) (2502.02732); mix is post in the first layers and pre in the others
    (2412.13795). A parallel block is x + attention(N(x)) + mlp(N(x)) with a single norm (Wang &
    Komatsuzaki 2021, GPT-J). A long skip is a sublayer before the others: what it adds is w * the
    stream that left layer L + 1 - l, of layer l from 1 in the second half.
    """

    config: ModelConfig
    cross: bool = False

    @property
    def sublayers(self) -> tuple[str, ...]:
        names = ("attention", "cross_attention", "mlp") if self.cross else ("attention", "mlp")
        return ("long_skip", *names) if self.config.long_skips != "none" else names

    @property
    def num_layers(self) -> int:
        """Blocks of the stack that this one stands for."""
        return self.config.num_decoder_layers if self.cross else self.config.num_layers

    @nn.compact
    def __call__(
        self,
        h: Stream,
        context: BlockContext,
        gate: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Stream, Taps]:
        """One block.

        Args:
            h: [batch, length, d_model], the residual stream; or a pair (content, query), of which
                the second asks the first and goes through the same parameters.
            context: see BlockContext.
            gate: [sublayers] multiplies what each sublayer adds, before any post-norm; None is 1.
            deterministic: False applies dropout.

        Returns:
            The stream after the block, and taps: "stream" (before it) and for each sublayer, by
            its name, what it added (divided, gated) and "<name>_onto", the stream that it reads
            and is added to: in a parallel block, "stream" for both.
        """
        c = self.config
        dropout = Dropout(c.dropout_rate)
        sublayers = self._sublayers(context, deterministic)
        shared = Normalization(c, name="norm") if c.parallel_block else None
        layer = jnp.asarray(0 if context.layer is None else context.layer)
        post = layer < round(c.post_share * self.num_layers)  # of "mix"
        before, taps = h, {"stream": h}
        for index, name in enumerate(self.sublayers):
            if name == "long_skip":
                onto, added, norm = h, branches.long_skip(self, h, context), lambda x: x
                before = None
            else:
                norm = shared if shared is not None else Normalization(c, name=f"{name}_norm")
                before = h if before is None else before
                onto = before if c.parallel_block else h
                added = sublayers[name](branches.read(c, onto, norm, layer, post))
                if c.norm_placement == "peri":
                    added = jax.tree.map(Normalization(c, name=f"{name}_out_norm"), added)
                added = jax.tree.map(lambda x: dropout(x, deterministic), added)
                added = branches.scaled(self, name, added)
            if gate is not None:
                weight = gate[index]
                added = jax.tree.map(lambda x, w=weight: x * w.astype(x.dtype), added)
            taps[name], taps[f"{name}_onto"] = added, onto
            h = jax.tree.map(jnp.add, h, added)
            if c.norm_placement == "post":
                h = jax.tree.map(norm, h)
            elif c.norm_placement == "mix":
                h = jax.tree.map(lambda x, n=norm: jnp.where(post, n(x), x), h)
            h = jax.tree.map(lambda x: constrain(x, "batch", "length", "embed"), h)
        return h, taps

    def _sublayers(
        self, context: BlockContext, deterministic: bool
    ) -> dict[str, Callable[[Stream], Stream]]:
        """Each sublayer as a function of the (normed) stream."""
        c = self.config
        attend = ATTENTIONS.get(c.positions, Attention)(c, name="attention")
        mlp = Mlp(c, name="mlp")

        def attention(h: Stream) -> Stream:
            content = h[0] if isinstance(h, tuple) else h
            seen = content
            if context.past is not None:
                seen = jnp.concatenate([context.past.astype(content.dtype), content], axis=1)
            mixed = attend(content, seen, context.attention, deterministic)
            if not isinstance(h, tuple):
                return mixed
            return mixed, attend(h[1], seen, context.query_attention, deterministic)

        functions = {
            "attention": attention,
            "mlp": lambda h: jax.tree.map(lambda x: mlp(x, deterministic), h),
        }
        if self.cross:
            cross = Attention(c, name="cross_attention")
            functions["cross_attention"] = lambda h: cross(
                h, context.memory, context.cross_attention, deterministic
            )
        return functions

    def example_inputs(self) -> tuple[jax.Array, BlockContext]:
        """The smallest inputs that create the parameters."""
        h = jnp.zeros((1, 1, self.config.d_model), self.config.compute_dtype)
        segments = jnp.ones((1, 1), jnp.int32)
        # Of positions there is what some kind of attention reads.
        turn = rotation(segments, rotary_frequencies(self.config.rotary_size))
        attention = AttentionContext(
            segments,
            segments,
            distances=jnp.zeros((2, self.config.d_model)),
            query_rotation=turn,
            key_rotation=turn,
        )
        cross = attention if self.cross else None
        if self.config.value_residual != "none":
            first = jnp.zeros((1, 1, self.config.num_heads, self.config.head_dim), h.dtype)
            attention = dataclasses.replace(attention, first_value=first)
        return h, BlockContext(attention, cross, h if self.cross else None)

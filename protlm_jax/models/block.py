"""The residual block: every model is a row of these."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from protlm_jax.models.attention import Attention, AttentionContext
from protlm_jax.models.axes import constrain
from protlm_jax.models.config import ModelConfig
from protlm_jax.models.layers import Mlp, Normalization

Taps = dict[str, jax.Array]


@flax.struct.dataclass
class BlockContext:
    """What every block of a stack needs besides the stream.

    Attributes:
        attention: segments, bias and causality of self-attention.
        cross_attention: the same towards `memory`; None in an encoder.
        memory: [batch, key_length, d_model] encoder output; None in an encoder.
    """

    attention: AttentionContext
    cross_attention: AttentionContext | None = None
    memory: jax.Array | None = None


class Block(nn.Module):
    """Attention, cross-attention where there is a memory, and the MLP, each added to the stream.

    `norm_placement` decides where the norms stand: pre x + f(N(x)), post N(x + f(x)).
    """

    config: ModelConfig
    cross: bool = False

    @property
    def sublayers(self) -> tuple[str, ...]:
        return ("attention", "cross_attention", "mlp") if self.cross else ("attention", "mlp")

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        context: BlockContext,
        gate: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Taps]:
        """One block.

        Args:
            h: [batch, length, d_model], the residual stream.
            context: see BlockContext.
            gate: [sublayers] multiplies what each sublayer adds, before any post-norm; None is 1.
            deterministic: False applies dropout.

        Returns:
            The stream after the block, and taps: "stream" (before it) and for each sublayer, by
            its name, what it added and "<name>_onto", the stream it was added to.
        """
        c = self.config
        functions: dict[str, Callable[[jax.Array], jax.Array]] = {
            "attention": lambda x: Attention(c, name="attention")(
                x, x, context.attention, deterministic
            ),
            "mlp": lambda x: Mlp(c, name="mlp")(x, deterministic),
        }
        if self.cross:
            functions["cross_attention"] = lambda x: Attention(c, name="cross_attention")(
                x, context.memory, context.cross_attention, deterministic
            )
        taps = {"stream": h}
        for index, name in enumerate(self.sublayers):
            norm = Normalization(c, name=f"{name}_norm")
            added = functions[name](norm(h) if c.norm_placement == "pre" else h)
            added = nn.Dropout(c.dropout_rate)(added, deterministic=deterministic)
            if gate is not None:
                added = added * gate[index].astype(added.dtype)
            taps[name], taps[f"{name}_onto"] = added, h
            h = h + added
            if c.norm_placement == "post":
                h = norm(h)
            h = constrain(h, "batch", "length", "embed")
        return h, taps

    def example_inputs(self) -> tuple[jax.Array, BlockContext]:
        """The smallest inputs that create the parameters."""
        h = jnp.zeros((1, 1, self.config.d_model), self.config.compute_dtype)
        segments = jnp.ones((1, 1), jnp.int32)
        attention = AttentionContext(segments, segments)
        if self.cross:
            return h, BlockContext(attention, attention, h)
        return h, BlockContext(attention)

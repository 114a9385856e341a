"""The encoder of a T5 alone, as ProtT5 is published for embedding (prot_t5_xl_half_uniref50-enc).

It can be embedded and probed. What T5 says about residues stands in its decoder, which is not here:
there is no head, nothing that trains it, and no likelihood.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from protlm_jax.errors import ProtlmError
from protlm_jax.models.attention_context import AttentionContext
from protlm_jax.models.axes import constrain, named
from protlm_jax.models.block import BlockContext
from protlm_jax.models.dropout import Dropout
from protlm_jax.models.families.t5 import Embedder
from protlm_jax.models.layers import Normalization
from protlm_jax.models.positions import relative_bias
from protlm_jax.models.readouts import Readout
from protlm_jax.models.stacked import Batch, Contexts, SingleStack, Streams


class T5Encoder(SingleStack):
    """The encoder half of `protlm_jax.models.families.t5.T5`, with its parameters' names."""

    readouts = (Readout("none", stack="encoder"),)

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.embedder = Embedder(c)
        bias = named(nn.initializers.normal(c.d_model**-0.5), "relpos_buckets", "heads")
        shape = (c.relative_buckets, c.num_heads)
        self.encoder_relative_bias = self.param("encoder_relative_bias", bias, shape)
        self.encoder_norm = Normalization(c)
        self.dropout = Dropout(c.dropout_rate)

    def embed(self, batch: Batch, deterministic: bool = True) -> tuple[Streams, Contexts]:
        tokens, segments = batch["input_tokens"], batch["segment_ids"]
        h = self.dropout(self.embedder(tokens), deterministic)
        bias = relative_bias(
            self.encoder_relative_bias,
            tokens.shape[1],
            tokens.shape[1],
            self.config.relative_max_distance,
            bidirectional=True,
        )
        context = BlockContext(AttentionContext(segments, segments, bias))
        return {"encoder": constrain(h, "batch", "length", "embed")}, {"encoder": context}

    def finish(self, h: jax.Array) -> jax.Array:
        return self.encoder_norm(h)

    def head(self, h: Streams, deterministic: bool = True) -> jax.Array:
        """There is none.

        Raises:
            ProtlmError: always.
        """
        raise ProtlmError(f"an encoder alone {self.readouts[0].silence}")

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The embedding [batch, length, d_model], for want of a head."""
        return self.hidden(batch)

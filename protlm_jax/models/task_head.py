"""A head that is trained on a task, on the model's embedding of each residue or of a protein."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.axes import named

_SPREAD = 0.02


class TaskHead(nn.Module):
    """Numbers for each token, or of the protein that the token is part of.

    Attributes:
        outputs: how many numbers.
        pools: whether it reads the mean over some tokens of a protein.
        dense: whether a dense layer with tanh comes before the outputs.
        dropout: before each of the two.
    """

    outputs: int
    pools: bool
    dense: bool
    dropout: float

    @nn.compact
    def __call__(
        self, h: jax.Array, segments: jax.Array, counted: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:  # fmt: skip
        """[B, L, D] -> [B, L, outputs] float32.

        Args:
            h: the embedding.
            segments: [B, L] int32, the protein of each token in its row.
            counted: [B, L] bool, the tokens over which the mean is; None: all.
            deterministic: False applies dropout.
        """
        h = h.astype(jnp.float32)
        if self.pools:
            same = segments[:, :, None] == segments[:, None, :]
            if counted is not None:
                same = same & counted[:, None, :]
            weights = same / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1)
            h = jnp.einsum("BLM,BMD->BLD", weights, h)
        if self.dense:
            h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
            h = jnp.tanh(self._linear("dense", h, h.shape[-1], "embed_out"))
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        return self._linear("out", h, self.outputs, "answers")

    def _linear(self, name: str, h: jax.Array, width: int, axis: str) -> jax.Array:
        normal, zeros = nn.initializers.normal(_SPREAD), nn.initializers.zeros_init()
        kernel = self.param(f"{name}_kernel", named(normal, "embed", axis), (h.shape[-1], width))
        bias = self.param(f"{name}_bias", named(zeros, axis), (width,))
        return jnp.einsum("BLD,DE->BLE", h, kernel) + bias[None, None]

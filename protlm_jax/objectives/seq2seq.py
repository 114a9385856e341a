"""Teacher-forced sequence to sequence: the model writes the target from a corrupted input.

The targets of ProtT5's own objective are the whole sequence, most of which the encoder sees; those
of T5's span corruption and Ankh's partial demasking are the hidden residues alone, between
sentinels. The corruption changes lengths, so the data pipeline does it
(`protlm_jax.data.token_rows`); here the prediction is scored, over all targets for the loss and
over the hidden residues for the metrics.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.objectives.base import Batch, Objective, Score, among, score_targets


@dataclasses.dataclass(frozen=True)
class DenoisingObjective(Objective):
    """Cross-entropy of `decoder_target_tokens` weighted by `decoder_loss_weights`.

    The loss is over every target token, sentinels and closing token too, as in T5. Sentinels are
    nearly certain, so losses of different tasks do not compare; "hidden/nll" does: it is over
    residues that the encoder does not see (the decoder sees the true prefix).
    """

    tasks: ClassVar[tuple[str, ...]] = ("prott5", "span3", "ankh")

    def hidden(self, batch: Batch) -> jax.Array:
        """Targets that the encoder does not see: [B, L] bool, sentinels and specials included.

        A row's targets with sentinels are only what was hidden. Without, they are the whole
        sequence, aligned with the encoder's input, and hidden where that is the mask.
        """
        asked = batch["decoder_loss_weights"] > 0
        sentinels = jnp.asarray(self.vocabulary.sentinel_ids)
        named = asked & among(batch["decoder_target_tokens"], sentinels)
        masked = batch["encoder_input_tokens"] == self.vocabulary.hiding_id
        return asked & (masked | jnp.any(named, axis=1, keepdims=True))

    def __call__(
        self,
        model: nn.Module,
        params: Any,
        batch: Batch,
        rng: jax.Array,
        carry: Any = None,
        *,
        evaluation: bool = False,
    ) -> Score:
        targets = batch["decoder_target_tokens"]
        logits = model.apply(
            {"params": params}, batch, deterministic=evaluation, rngs={"dropout": rng}
        )
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        hidden = self.hidden(batch)
        return score_targets(self.vocabulary, logits, targets, weights, hidden, carry)

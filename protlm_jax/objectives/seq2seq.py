"""Teacher-forced sequence to sequence: the model writes the target from a corrupted input.

ProtT5's own objective asks for the whole sequence, most of which the encoder shows. The corruption
is a SeqIO preprocessor (`protlm_jax.data.denoising`), because T5X must see it too; here the answer
is scored, over all targets for the loss and over the hidden residues for the metrics.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.objectives.base import Batch, Score, cross_entropy, hidden_residue_metrics
from protlm_jax.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class DenoisingObjective:
    """Cross-entropy of `decoder_target_tokens` weighted by `decoder_loss_weights`.

    Encoder and decoder rows are aligned: position i of both is the same residue. A residue counts
    as hidden where the encoder shows the mask token; the decoder sees the true prefix.
    """

    vocabulary: Vocabulary

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
        correct = (jnp.argmax(logits, axis=-1) == targets) * weights
        hidden = (batch["encoder_input_tokens"] == self.vocabulary.hiding_id) & (weights > 0)
        amino_acids = jnp.asarray(self.vocabulary.amino_acid_ids)
        return Score(
            loss_sum=jnp.sum(cross_entropy(logits, targets) * weights),
            weight_sum=jnp.sum(weights),
            metrics={
                "asked/correct_sum": jnp.sum(correct),
                "asked/count": jnp.sum(weights),
                **hidden_residue_metrics(logits, targets, hidden, amino_acids),
            },
            carry=carry,
        )

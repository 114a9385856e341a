"""Next-token prediction over streams of proteins, as ProtTXL was trained.

Each position predicts the token after it in the same protein: the residues and the closing token,
also where the next token stands in the next batch. The token that opens a protein is predicted by
nothing, since nothing but the order of a shuffle comes before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.objectives.base import (
    Batch,
    Objective,
    Score,
    cross_entropy,
    hidden_residue_metrics,
)


@dataclasses.dataclass(frozen=True)
class CausalObjective(Objective):
    """Cross-entropy of `target_tokens`, weighted by `target_weights`.

    "hidden" residues are all of the 20 but the first of each protein, which is M nearly always: a
    causal model sees none of what it predicts.

    Attributes:
        across_proteins: let attention and memory reach from a protein into those before it in its
            stream, as the original Transformer-XL does with articles; False keeps it inside.
        same_length: in evaluation every token sees as many before it, the model's memory_length
            with itself, as the paper measures; False shows the later ones of a row more.
    """

    across_proteins: bool = False
    same_length: bool = False

    tasks: ClassVar[tuple[str, ...]] = ("stream",)

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
        if evaluation and self.same_length:
            model = model.clone(config=model.config.replace(same_length=True))
        segments, targets = batch["segment_ids"], batch["target_tokens"]
        if self.across_proteins:
            segments = (segments > 0).astype(segments.dtype)
        logits, carry = model.apply(
            {"params": params},
            {**batch, "segment_ids": segments},
            carry or {},
            deterministic=evaluation,
            rngs={"dropout": rng},
            method="recur",
        )
        weights = batch["target_weights"].astype(jnp.float32)
        correct = (jnp.argmax(logits, axis=-1) == targets) * weights
        scored = (weights > 0) & (batch["positions"] >= len(self.vocabulary.prefix_ids))
        amino_acids = jnp.asarray(self.vocabulary.amino_acid_ids)
        return Score(
            loss_sum=jnp.sum(cross_entropy(logits, targets) * weights),
            weight_sum=jnp.sum(weights),
            metrics={
                "asked/accuracy_sum": jnp.sum(correct),
                "asked/count": jnp.sum(weights),
                **hidden_residue_metrics(logits, targets, scored, amino_acids),
            },
            carry=carry,
        )

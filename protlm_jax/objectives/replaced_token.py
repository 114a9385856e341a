"""Replaced-token detection (Clark et al. 2020, section 2), as ProtElectra used it.

A generator fills in masked residues by sampling from its predictions, and a discriminator predicts
for every token whether it is the original. Both learn at once: the generator to predict what was
masked, the discriminator from the samples, through which no gradient flows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.objectives.base import (
    Batch,
    Score,
    among,
    cross_entropy,
    hidden_residue_metrics,
)
from protlm_jax.objectives.masked import MaskedObjective

# Bins of the histogram of logits: 1/64 wide at 0, which is an edge, and in proportion to the logit
# far from it; the outermost bins begin at 109.
BINS = 2048


class Replaced(NamedTuple):
    """tokens: [B, L] int32 as the discriminator sees them; replaced: [B, L] bool, its labels."""

    tokens: jax.Array
    replaced: jax.Array


@dataclasses.dataclass(frozen=True)
class ReplacedTokenObjective(MaskedObjective):
    """The generator's masked language modelling plus the discriminator's binary cross-entropy.

    The paper adds two means, over the masked residues and over all tokens. Here the loss is a sum
    over the batch divided by its number of tokens, special ones included as in the authors' code;
    the generator's part is divided by the `rate` first, so that it is the mean over the expected
    number of masked residues (the authors mask rate times the number of tokens, rounded). It adds
    up exactly over parts of a batch, and its expectation is that of the paper's.

    Attributes:
        mask_fraction: all targets are masked, as in the paper's equations; in the authors' code
            85 %, the rest being unchanged.
        detection_weight: of the discriminator's loss, against 1 for the generator's.
    """

    mask_fraction: float = 1.0
    random_fraction: float = 0.0
    detection_weight: float = 50.0

    def replace(
        self, tokens: jax.Array, asked: jax.Array, logits: jax.Array, rng: jax.Array
    ) -> Replaced:
        """Puts samples of the generator's softmax at the targets, `asked` [B, L] bool, of [B, L]
        tokens.

        A sample that is the true residue is no replacement. `logits` are [B, L, V] float32.
        """
        drawn = jax.random.categorical(rng, jax.lax.stop_gradient(logits))
        shown = jnp.where(asked, drawn.astype(tokens.dtype), tokens)
        return Replaced(shown, shown != tokens)

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
        tokens, real = batch["input_tokens"], batch["segment_ids"] > 0
        corrupt_rng, draw_rng, *dropout_rngs = jax.random.split(rng, 4)

        def apply(shown: jax.Array, dropout_rng: jax.Array, method: str) -> jax.Array:
            return model.apply(
                {"params": params},
                {**batch, "input_tokens": shown},
                deterministic=evaluation,
                rngs={"dropout": dropout_rng},
                method=method,
            )

        seen = self.corrupt(tokens, batch["segment_ids"], corrupt_rng, evaluation=evaluation)
        logits = apply(seen.tokens, dropout_rngs[0], "generate")
        shown, replaced = self.replace(tokens, seen.asked, logits, draw_rng)
        answers = apply(shown, dropout_rngs[1], "__call__")[..., 0]

        generator = jnp.sum(cross_entropy(logits, tokens) * seen.asked)
        wrong = binary_cross_entropy(answers, replaced)
        columns = jnp.asarray(self.vocabulary.amino_acid_columns)
        residue = real & among(tokens, jnp.asarray(self.vocabulary.residue_ids))
        return Score(
            loss_sum=generator / self.rate + self.detection_weight * jnp.sum(wrong * real),
            weight_sum=jnp.sum(real.astype(jnp.float32)),
            metrics={
                **hidden_residue_metrics(logits, tokens, seen.shown_as_mask, columns),
                "detection/nll_sum": jnp.sum(wrong * residue),
                "detection/count": jnp.sum(residue.astype(jnp.float32)),
                "detection/histogram": logit_histogram(answers, replaced, residue),
                "detection/by_token": token_counts(shown, replaced, residue, logits.shape[-1]),
            },
            carry=carry,
        )

    def summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """As the base class, and "detection/*" of the discriminator at residues.

        Beside its nll, the entropy of the labels, alone and given the token that it sees; accuracy,
        precision and recall at probability 1/2, and the fraction that is replaced.
        """
        read = super().summary(metrics)
        read.pop("detection/perplexity")
        return {
            **read,
            **{f"detection/{k}": v for k, v in rates(metrics["detection/histogram"]).items()},
            "detection/label_entropy": label_entropy(
                jnp.sum(jnp.asarray(metrics["detection/by_token"]), axis=0, keepdims=True)
            ),
            "detection/label_entropy_given_token": label_entropy(metrics["detection/by_token"]),
        }


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log of the probability of each label, [B, L] float32; sigmoid(logits) is that of True."""
    return jax.nn.softplus(jnp.where(labels, -logits, logits))


def logit_histogram(logits: jax.Array, labels: jax.Array, scored: jax.Array) -> jax.Array:
    """Number of logits in each bin, ascending, by label: [BINS, 2] float32."""
    bins = jnp.floor(jnp.arcsinh(logits / 4) * (BINS / 8)).astype(jnp.int32) + BINS // 2
    bins = jnp.clip(bins, 0, BINS - 1)
    counts = jnp.zeros((BINS, 2), jnp.float32)
    return counts.at[bins, labels.astype(jnp.int32)].add(scored.astype(jnp.float32))


def token_counts(
    tokens: jax.Array, labels: jax.Array, scored: jax.Array, vocab_size: int
) -> jax.Array:
    """Number of occurrences of each token, by label: [vocab, 2] float32."""
    counts = jnp.zeros((vocab_size, 2), jnp.float32)
    return counts.at[tokens, labels.astype(jnp.int32)].add(scored.astype(jnp.float32))


def rates(histogram: Any) -> dict[str, Any]:
    """Rates of a detector from a histogram of its logits [BINS, 2].

    "auroc" is the probability that a replaced residue has the larger logit; ties, which two logits
    of one bin are, count half (Mann & Whitney 1947); 1/2 where one label does not occur.
    """
    histogram = jnp.asarray(histogram)
    kept, replaced = histogram[:, 0], histogram[:, 1]
    total, positive = jnp.sum(histogram), jnp.sum(replaced)
    flagged = jnp.sum(histogram[BINS // 2 :], axis=0)
    below = jnp.cumsum(kept) - kept / 2
    pairs = positive * jnp.sum(kept)
    return {
        "accuracy": (flagged[1] + jnp.sum(kept) - flagged[0]) / jnp.maximum(total, 1.0),
        "precision": flagged[1] / jnp.maximum(jnp.sum(flagged), 1.0),
        "recall": flagged[1] / jnp.maximum(positive, 1.0),
        "auroc": jnp.where(pairs > 0, jnp.sum(replaced * below) / jnp.maximum(pairs, 1.0), 0.5),
        "replaced": positive / jnp.maximum(total, 1.0),
    }


def label_entropy(counts: Any) -> jax.Array:
    """Entropy in nats of labels given the row of a table of counts [rows, labels]."""
    counts = jnp.asarray(counts)
    in_row = jnp.sum(counts, axis=1, keepdims=True)
    share = jnp.where(counts > 0, counts, 1.0) / jnp.maximum(in_row, 1.0)
    surprise = -jnp.where(counts > 0, jnp.log(share), 0.0)
    return jnp.sum(counts * surprise) / jnp.maximum(jnp.sum(counts), 1.0)

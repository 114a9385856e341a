"""Replaced-token detection (Clark et al. 2020, section 2), as ProtElectra used it.

A generator fills in masked residues by drawing from its own answers, and a discriminator says of
every token whether it stood there. Both learn at once: the generator to guess what was masked, the
discriminator from what the generator drew, through which no gradient flows.
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

# Logits are counted in bins: 1/64 wide at 0, an edge, and in proportion to the logit far from it;
# the outermost bins begin at 109.
BINS = 2048


class Replaced(NamedTuple):
    """tokens: [B, L] int32 as the discriminator sees them; replaced: [B, L] bool, its labels."""

    tokens: jax.Array
    replaced: jax.Array


@dataclasses.dataclass(frozen=True)
class ReplacedTokenObjective(MaskedObjective):
    """The generator's masked language modelling plus the discriminator's binary cross-entropy.

    The paper adds two means, over the asked residues and over all tokens. Here the loss is a sum
    over the batch divided by its number of tokens, special ones included as in the authors' code;
    the generator's part is divided by the `rate` first, so that it is the mean over the expected
    number of asked residues (the authors ask rate times the number of tokens, rounded). It adds up
    exactly over parts of a batch, and its expectation is that of the paper's.

    Attributes:
        mask_fraction: all that is asked is masked, as in the paper's equations; in the authors'
            code 85 %, the rest being shown as it is.
        detection_weight: of the discriminator's loss, against 1 for the generator's.
    """

    mask_fraction: float = 1.0
    random_fraction: float = 0.0
    detection_weight: float = 50.0

    def replace(
        self, tokens: jax.Array, asked: jax.Array, logits: jax.Array, rng: jax.Array
    ) -> Replaced:
        """Puts what the generator says, drawn from its softmax, where it was asked.

        A draw that happens to be the true residue is no replacement.

        Args:
            tokens: [B, L] int32, the true ones.
            asked: [B, L] bool.
            logits: [B, L, V] float32, the generator's.
            rng: of the draw.
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

        def ask(shown: jax.Array, dropout_rng: jax.Array, method: str) -> jax.Array:
            return model.apply(
                {"params": params},
                {**batch, "input_tokens": shown},
                deterministic=evaluation,
                rngs={"dropout": dropout_rng},
                method=method,
            )

        seen = self.corrupt(tokens, batch["segment_ids"], corrupt_rng, evaluation=evaluation)
        logits = ask(seen.tokens, dropout_rngs[0], "generate")
        shown, replaced = self.replace(tokens, seen.asked, logits, draw_rng)
        answers = ask(shown, dropout_rngs[1], "__call__")[..., 0]

        generator = jnp.sum(cross_entropy(logits, tokens) * seen.asked)
        wrong = binary_cross_entropy(answers, replaced)
        amino_acids = jnp.asarray(self.vocabulary.amino_acid_ids)
        residue = real & among(tokens, jnp.asarray(self.vocabulary.residue_ids))
        return Score(
            loss_sum=generator / self.rate + self.detection_weight * jnp.sum(wrong * real),
            weight_sum=jnp.sum(real.astype(jnp.float32)),
            metrics={
                **hidden_residue_metrics(logits, tokens, seen.shown_as_mask, amino_acids),
                "detection/nll_sum": jnp.sum(wrong * residue),
                "detection/count": jnp.sum(residue.astype(jnp.float32)),
                "detection/histogram": logit_histogram(answers, replaced, residue),
                "detection/by_token": token_counts(shown, replaced, residue, logits.shape[-1]),
            },
            carry=carry,
        )

    def summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """As the base class, and "detection/*": what the discriminator says of residues.

        nll stands beside the entropy of its labels, as they are and given the token that it sees;
        accuracy, precision and recall are at probability 1/2, beside the fraction that is replaced.
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
    """How many logits lie in each bin, ascending, by label: [BINS, 2] float32."""
    bins = jnp.floor(jnp.arcsinh(logits / 4) * (BINS / 8)).astype(jnp.int32) + BINS // 2
    bins = jnp.clip(bins, 0, BINS - 1)
    counts = jnp.zeros((BINS, 2), jnp.float32)
    return counts.at[bins, labels.astype(jnp.int32)].add(scored.astype(jnp.float32))


def token_counts(
    tokens: jax.Array, labels: jax.Array, scored: jax.Array, vocab_size: int
) -> jax.Array:
    """How often each token is shown, by label: [vocab, 2] float32."""
    counts = jnp.zeros((vocab_size, 2), jnp.float32)
    return counts.at[tokens, labels.astype(jnp.int32)].add(scored.astype(jnp.float32))


def rates(histogram: Any) -> dict[str, Any]:
    """What a histogram of logits [BINS, 2] says of a detector.

    "auroc" is the probability that a replaced residue has the larger logit, ties counting half,
    which two logits of one bin are (Mann & Whitney 1947); where one label does not occur, 1/2.
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

"""What all objectives share: the interface, and sums of losses.

Sums instead of means make gradient accumulation and data parallelism exact: the caller adds them up
and divides once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.models.readouts import is_residue, residue_logits
from protlm_jax.vocabularies import Vocabulary

Batch = dict[str, jax.Array]


class Score(NamedTuple):
    """Result of an objective on one batch.

    Attributes:
        loss_sum: float32, negative log-likelihood in nats, summed over the targets.
        weight_sum: float32, number of targets.
        metrics: float32 sums for the log, which add up over batches: "group/x_sum" belongs to
            "group/count"; see `Objective.summary`.
        carry: state of recurrent families, passed to the next batch; None elsewhere.
    """

    loss_sum: jax.Array
    weight_sum: jax.Array
    metrics: dict[str, jax.Array]
    carry: Any = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training task; a subclass's further fields are the options of `config.objective`.

    Attributes:
        vocabulary: token set.
        tasks: data tasks whose batches it reads.
    """

    vocabulary: Vocabulary

    tasks: ClassVar[tuple[str, ...]] = ()

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
        """Corrupts a batch, applies the model and scores it.

        Args:
            model, params: of a family that names this objective.
            batch: features of one of the tasks.
            rng: of corruption and dropout.
            carry: of the batch before; None or an empty dict at the start.
            evaluation: show every target as <mask>, without dropout.
        """
        raise NotImplementedError

    def head(self) -> nn.Module | None:
        """A head of the task's own, whose parameters stand beside the model's; None without."""
        return None

    def queries(self, length: int) -> int:
        """Positions of a row that a query stream predicts; 0 without a query stream."""
        return 0

    def summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Means from sums over any number of batches; works on traced values.

        "group/x_sum" becomes "group/x", divided by "group/count"; a perplexity is added to each
        "nll".
        """
        read = {}
        for name, value in metrics.items():
            if name.endswith("/count"):
                read[name] = value
            if not name.endswith("_sum"):
                continue
            group = name.rpartition("/")[0]
            mean = value / jnp.maximum(metrics[f"{group}/count"], 1.0)
            read[name.removesuffix("_sum")] = mean
            if name.endswith("/nll_sum"):
                read[f"{group}/perplexity"] = jnp.exp(mean)
        return read


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets]: [B, L, V] float32, [B, L] int32 -> [B, L] float32.

    The target is picked by comparison instead of a gather: with the vocabulary split over a mesh
    axis a gather would collect it first, and V is small here.
    """
    picked = jnp.arange(logits.shape[-1])[None, None, :] == targets[..., None]
    target_logits = jnp.sum(jnp.where(picked, logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def among(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether each token is one of `ids`: [B, L] bool."""
    return jnp.any(tokens[..., None] == ids[None, None, :], axis=-1)


def only_amino_acids(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Logits outside the 20 amino acids set to -1e9, so that softmax is over the residues alone."""
    allowed = jnp.zeros((logits.shape[-1],), bool).at[ids].set(True)
    return jnp.where(allowed[None, None, :], logits, -1e9)


def score_targets(
    vocabulary: Vocabulary,
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    hidden: jax.Array,
    carry: Any,
) -> Score:
    """Cross-entropy and accuracy of targets, and `hidden_residue_metrics`.

    `logits` are [B, L, V] float32, `targets` [B, L] int32, `weights` [B, L] float32, 0 where there
    is no target, and `hidden` [B, L] bool: targets that the model could not see.
    """
    count = jnp.sum(weights)
    correct = (jnp.argmax(logits, axis=-1) == targets) * weights
    columns = jnp.asarray(vocabulary.amino_acid_columns)
    return Score(
        loss_sum=jnp.sum(cross_entropy(logits, targets) * weights),
        weight_sum=count,
        metrics={
            "asked/accuracy_sum": jnp.sum(correct),
            "asked/count": count,
            **hidden_residue_metrics(logits, targets, hidden, columns),
        },
        carry=carry,
    )


def hidden_residue_metrics(
    logits: jax.Array, targets: jax.Array, scored: jax.Array, columns: jax.Array
) -> dict[str, jax.Array]:
    """Sums over hidden residues of the 20 amino acids, whose ids are [20, tokens] `columns`.

    `logits` are [B, L, V] float32, over whose amino acids alone is the softmax; `targets` [B, L]
    int32; `scored` [B, L] bool: positions whose residue the model could not see.
    """
    if columns.shape[1] > 1:  # from pairs to residues
        own = is_residue(targets, columns)
        scored &= jnp.any(own, axis=-1)
        logits, targets = residue_logits(logits, columns), jnp.argmax(own, axis=-1)
        columns = jnp.arange(len(columns))[:, None]
    amino_acids = columns[:, 0]
    logits = only_amino_acids(logits, amino_acids)
    weights = (scored & among(targets, amino_acids)).astype(jnp.float32)
    correct = jnp.argmax(logits, axis=-1) == targets
    return {
        "hidden/nll_sum": jnp.sum(cross_entropy(logits, targets) * weights),
        "hidden/accuracy_sum": jnp.sum(correct * weights),
        "hidden/count": jnp.sum(weights),
    }

"""Next-token prediction: over streams of proteins, as ProtTXL was trained, or over rows of whole
proteins, as GPT-2 and ProGen2 are.

Each position predicts the next token of the same protein: the residues and the closing token, also
where the next token is in the next batch. The token that opens a protein is not predicted, because
only the order of a shuffle comes before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.base import Batch, Objective, Score, score_targets


@dataclasses.dataclass(frozen=True)
class CausalObjective(Objective):
    """Cross-entropy of the token after each one.

    A stream gives it in `target_tokens` and `target_weights`; in a row of clean tokens it is the
    next one of the same protein. "hidden" residues are all of the 20 except the first of each
    protein, which is nearly always M: a causal model sees none of its targets.

    Attributes:
        across_proteins: let attention and memory reach from a protein into those before it in its
            row, as the original Transformer-XL does with articles.
        same_length: in evaluation every token sees the same number of tokens before it, the model's
            memory_length with itself, as the paper measures; False shows more to the later ones of
            a row.
        reversed_rate: share of the proteins of a row that are read from their last token to their
            first, in evaluation too (ProGen2: half of them); not for streams.
    """

    across_proteins: bool = False
    same_length: bool = False
    reversed_rate: float = 0.0

    tasks: ClassVar[tuple[str, ...]] = ("tokens", "stream")

    def __post_init__(self) -> None:
        if not 0.0 <= self.reversed_rate <= 1.0:
            raise ProtlmError(
                f"objective.reversed_rate is {self.reversed_rate}; it must be in [0, 1]"
            )

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
        if self.reversed_rate:
            rng, reverse_rng = jax.random.split(rng)
            ends = self.vocabulary.fixed_ends
            batch = reversed_proteins(batch, reverse_rng, self.reversed_rate, ends)
        batch = batch if "target_tokens" in batch else with_targets(batch)
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
        hidden = (weights > 0) & (batch["positions"] >= len(self.vocabulary.prefix_ids))
        return score_targets(self.vocabulary, logits, targets, weights, hidden, carry)


def with_targets(batch: Batch) -> Batch:
    """Adds `target_tokens` and `target_weights` to rows of clean tokens."""
    tokens, segments = batch["input_tokens"], batch["segment_ids"]
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    after = ((0, 0), (0, 1))
    return {
        **batch,
        "target_tokens": jnp.pad(tokens[:, 1:], after),
        "target_weights": jnp.pad(follows.astype(jnp.int32), after),
    }


def reversed_proteins(
    batch: Batch, rng: jax.Array, rate: float, ends: tuple[int, int] = (0, 0)
) -> Batch:
    """Rows of whole proteins, int32 [B, L], with each reversed with probability `rate`, but for so
    many special tokens at its `ends` (`Vocabulary.fixed_ends`).

    Raises:
        ProtlmError: for streams, in which a protein may span several batches.
    """
    if "target_tokens" in batch:
        raise ProtlmError(
            "objective.reversed_rate reverses whole proteins, and a stream cuts them: set "
            "data.task='tokens', or objective.reversed_rate=0"
        )
    tokens, segments = batch["input_tokens"], batch["segment_ids"]
    rows, length = tokens.shape
    ones = jnp.ones_like(segments)
    sizes = jax.vmap(lambda s, n: jnp.zeros(length + 1, jnp.int32).at[s].add(n))(segments, ones)
    size = jnp.take_along_axis(sizes, segments, axis=1)
    chosen = jax.random.bernoulli(rng, rate, (rows, length + 1))
    chosen = jnp.take_along_axis(chosen, segments, axis=1) & (segments > 0)
    here = jnp.arange(length)[None, :]
    mirrored = here + size - 1 - 2 * batch["positions"]
    if ends != (0, 0):
        at = batch["positions"]
        chosen &= (at >= ends[0]) & (at < size - ends[1])
        mirrored += ends[0] - ends[1]
    places = jnp.where(chosen, mirrored, here)
    return {**batch, "input_tokens": jnp.take_along_axis(tokens, places, axis=1)}

"""Permutation language modelling (Yang et al. 2019, section 2), as XLNet was trained.

Targets are predicted one after the other in a random order, each from all that is no target and
from the targets before it in that order. Only one token of K is a target (partial prediction,
section 2.3): spans of one to five residues, each somewhere in a window of K times its length, the
windows laid one after the other along the row (appendix A.2 of the paper). The paper's own code
differs in details, as far as we remember it: spans of n with a chance in proportion to 1/n,
permutations inside blocks of the row, and special tokens that take part in the order; here they
are context, like every token that is no target.

Proteins of one row do not see each other, and the order within each is a uniform one of its own.
On streams (task `stream`) a model with `memory_length` also sees, as context, the content stream of
the part of a protein that stood in the rows before (segment recurrence, section 2.4), targets there
included.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.base import (
    Batch,
    Objective,
    Score,
    among,
    cross_entropy,
    hidden_residue_metrics,
)


class Asked(NamedTuple):
    """What is predicted.

    order: [B, L] int32, 0 for context, else the target's place in the order of prediction.
    targets: [B, P] int32, positions of the targets in the row, then of anything.
    weights: [B, P] float32, 1 at targets and 0 at what fills up.
    """

    order: jax.Array
    targets: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class PermutationObjective(Objective):
    """Chooses targets and their order inside the jitted step.

    Attributes:
        every: K; one token of this many is a target.
        longest_span: spans have 1 to this many residues, each length as often.
    """

    every: int = 6
    longest_span: int = 5

    tasks: ClassVar[tuple[str, ...]] = ("tokens", "stream")

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ProtlmError(f"objective.every is {self.every}; it must be at least 1")
        if self.longest_span < 1:
            raise ProtlmError(
                f"objective.longest_span is {self.longest_span}; it must be at least 1"
            )

    def queries(self, length: int) -> int:
        """P: the most targets that a row of this length can have.

        Windows that lie in the row whole have one target in K tokens, and one more may be cut.
        """
        return min(length // self.every + self.longest_span, length)

    def ask(
        self, tokens: jax.Array, segments: jax.Array, rng: jax.Array, *, evaluation: bool
    ) -> Asked:
        """Chooses targets: [B, L] int32 tokens and segments -> Asked.

        In evaluation all targets are predicted at once, and none sees another: only then do the
        answers compare with those of models that hide what they ask.
        """
        choose, permute = jax.random.split(rng)
        residue = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        is_target = residue & self._spans(choose, tokens.shape)
        rank = 1 + jnp.argsort(jnp.argsort(jax.random.uniform(permute, tokens.shape)))
        order = jnp.where(is_target, 1 if evaluation else rank, 0).astype(jnp.int32)
        targets_first = jnp.argsort(~is_target, axis=1, stable=True)
        targets = targets_first[:, : self.queries(tokens.shape[1])].astype(jnp.int32)
        weights = jnp.take_along_axis(is_target, targets, axis=1).astype(jnp.float32)
        return Asked(order, targets, weights)

    def _spans(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Where spans lie, windows being laid from a random place of the row on, and round it."""
        rows, length = shape
        lengths_rng, place_rng, turn_rng = jax.random.split(rng, 3)
        windows = (rows, -(-length // self.every))  # enough, were all spans of length 1
        spans = jax.random.randint(lengths_rng, windows, 1, self.longest_span + 1)
        begin = self.every * (jnp.cumsum(spans, axis=1) - spans)
        begin += jax.random.randint(place_rng, windows, 0, spans * (self.every - 1) + 1)
        turn = jax.random.randint(turn_rng, (rows, 1), 0, length)
        place = ((jnp.arange(length)[None, :] + turn) % length)[..., None]
        return jnp.any((place >= begin[:, None]) & (place < (begin + spans)[:, None]), axis=-1)

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
        tokens = batch["input_tokens"]
        ask_rng, dropout_rng = jax.random.split(rng)
        asked = self.ask(tokens, batch["segment_ids"], ask_rng, evaluation=evaluation)
        logits, carry = model.apply(
            {"params": params},
            {**batch, "order": asked.order, "targets": asked.targets},
            carry or {},
            deterministic=evaluation,
            rngs={"dropout": dropout_rng},
            method="recur",
        )
        answers = jnp.take_along_axis(tokens, asked.targets, axis=1)
        correct = (jnp.argmax(logits, axis=-1) == answers) * asked.weights
        amino_acids = jnp.asarray(self.vocabulary.amino_acid_ids)
        return Score(
            loss_sum=jnp.sum(cross_entropy(logits, answers) * asked.weights),
            weight_sum=jnp.sum(asked.weights),
            metrics={
                "asked/accuracy_sum": jnp.sum(correct),
                "asked/count": jnp.sum(asked.weights),
                **hidden_residue_metrics(logits, answers, asked.weights > 0, amino_acids),
            },
            carry=carry,
        )

"""Permutation language modelling (Yang et al. 2019, section 2), as XLNet was trained.

Targets are predicted one after the other in a random order, each from all tokens that are no
targets and from the targets before it in that order. Only one token of K is a target (partial
prediction, section 2.3): spans of one to five residues, each at a random place of a window of K
times its length, the windows laid one after the other along the row (appendix A.2 of the paper).
The paper's own code differs in details, as far as we remember it: spans of n with a chance in
proportion to 1/n, permutations inside blocks of the row, and special tokens that take part in the
order; here they are context, like every token that is no target.

Proteins of one row do not see each other, and the order within each is a uniform one of its own.
On streams (task `stream`) a model with `memory_length` also sees, as context, the content stream of
the part of a protein that was in the rows before (segment recurrence, section 2.4), targets there
included.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.objectives.base import Batch, Objective, Score, among, score_targets


class Targets(NamedTuple):
    """What is predicted.

    order: [B, L] int32, 0 for context, else the target's place in the order of prediction.
    places: [B, P] int32, positions of the targets in the row, then filled up with others.
    weights: [B, P] float32, 1 at targets and 0 where filled up.
    """

    order: jax.Array
    places: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class PermutationObjective(Objective):
    """Chooses targets and their order inside the jitted step.

    Attributes:
        every: K; one token of this many is a target.
        longest_span: spans have 1 to this many residues, uniformly.
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
        """P: the largest number of targets of a row of this length.

        Windows within the row have one target in K tokens, and one more may be cut.
        """
        return min(length // self.every + self.longest_span, length)

    def choose(
        self, tokens: jax.Array, segments: jax.Array, rng: jax.Array, *, evaluation: bool
    ) -> Targets:
        """Chooses targets: [B, L] int32 tokens and segments -> Targets.

        In evaluation all targets are predicted at once, and none sees another, so that the
        predictions compare with those of masked models.
        """
        choose_rng, permute_rng = jax.random.split(rng)
        residue = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        is_target = residue & self._spans(choose_rng, tokens.shape)
        rank = 1 + jnp.argsort(jnp.argsort(jax.random.uniform(permute_rng, tokens.shape)))
        order = jnp.where(is_target, 1 if evaluation else rank, 0).astype(jnp.int32)
        targets_first = jnp.argsort(~is_target, axis=1, stable=True)
        places = targets_first[:, : self.queries(tokens.shape[1])].astype(jnp.int32)
        weights = jnp.take_along_axis(is_target, places, axis=1).astype(jnp.float32)
        return Targets(order, places, weights)

    def _spans(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Positions in spans: [B, L] bool; windows begin at a random place and wrap around."""
        rows, length = shape
        lengths_rng, place_rng, shift_rng = jax.random.split(rng, 3)
        windows = (rows, -(-length // self.every))  # enough, were all spans of length 1
        spans = jax.random.randint(lengths_rng, windows, 1, self.longest_span + 1)
        begin = self.every * (jnp.cumsum(spans, axis=1) - spans)
        begin += jax.random.randint(place_rng, windows, 0, spans * (self.every - 1) + 1)
        shift = jax.random.randint(shift_rng, (rows, 1), 0, length)
        place = ((jnp.arange(length)[None, :] + shift) % length)[..., None]
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
        choose_rng, dropout_rng = jax.random.split(rng)
        chosen = self.choose(tokens, batch["segment_ids"], choose_rng, evaluation=evaluation)
        logits, carry = model.apply(
            {"params": params},
            {**batch, "order": chosen.order, "targets": chosen.places},
            carry or {},
            deterministic=evaluation,
            rngs={"dropout": dropout_rng},
            method="recur",
        )
        targets = jnp.take_along_axis(tokens, chosen.places, axis=1)
        weights = chosen.weights
        return score_targets(self.vocabulary, logits, targets, weights, weights > 0, carry)

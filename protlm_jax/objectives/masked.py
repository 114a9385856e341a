"""Masked language modelling (Devlin et al. 2018), as ProtBert used it.

15 % of the residues are targets. Of those 80 % are shown as <mask>, 10 % as another amino acid and
10 % unchanged. Special tokens and padding are never targets and never changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.readouts import hiding, is_residue
from protlm_jax.objectives.base import Batch, Objective, Score, among, score_targets


class Corrupted(NamedTuple):
    """tokens: [B, L] int32 as shown; asked (the targets), shown_as_mask: [B, L] bool."""

    tokens: jax.Array
    asked: jax.Array
    shown_as_mask: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedObjective(Objective):
    """Corrupts inside the jitted step: fresh masks each epoch, exact replay from the key.

    Attributes:
        rate: fraction of residues that are targets.
        mask_fraction: of those, shown as <mask>.
        random_fraction: of those, shown as one of the 19 other amino acids, uniformly.
        ngram: the longest run of residues that is masked as one (ALBERT: 3); 1 for single residues.
    """

    rate: float = 0.15
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    ngram: int = 1

    tasks: ClassVar[tuple[str, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ProtlmError(f"objective.rate is {self.rate}; it must be in (0, 1]")
        if self.ngram < 1:
            raise ProtlmError(f"objective.ngram is {self.ngram}; it must be at least 1")

    def corrupt(
        self, tokens: jax.Array, segments: jax.Array, rng: jax.Array, *, evaluation: bool
    ) -> Corrupted:
        """Hides residues: [B, L] int32 tokens and segments -> Corrupted.

        In evaluation every target is shown as <mask>: where targets are shown unchanged, a model
        that copies looks 0.2 nats better than the unigram.
        """
        choose, how, which = jax.random.split(rng, 3)
        residue = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        chosen = jax.random.bernoulli(choose, self.rate, tokens.shape)
        if self.ngram > 1:
            starts = ngram_starts(residue, segments, self.ngram, jax.random.fold_in(choose, 1))
            chosen = jnp.take_along_axis(chosen, starts, axis=1)
        asked = residue & chosen
        uniform = jax.random.uniform(how, tokens.shape)
        masked = asked & ((uniform < self.mask_fraction) | evaluation)
        swapped = asked & ~masked & (uniform < self.mask_fraction + self.random_fraction)
        _ = self.vocabulary.hiding_id  # raises where there is none
        shown = jnp.where(masked, hiding(tokens, self.vocabulary.hides), tokens)
        shown = jnp.where(swapped, self._another(tokens, which), shown)
        return Corrupted(shown, asked, masked)

    def _another(self, tokens: jax.Array, rng: jax.Array) -> jax.Array:
        """A uniformly drawn amino acid other than the original; a pair keeps its structure."""
        columns = jnp.asarray(self.vocabulary.amino_acid_columns)
        if columns.shape[1] > 1:
            shape = jnp.any(tokens[..., None, None] == columns.T[None, None], axis=-1)
            rank = jnp.argmax(is_residue(tokens, columns), axis=-1)
            step = jax.random.randint(rng, tokens.shape, 1, len(columns))
            return columns[(rank + step) % len(columns), jnp.argmax(shape, axis=-1)]
        ids = columns[:, 0]
        matches = tokens[..., None] == ids[None, None, :]
        # X and other rare letters are none of the 20: all 20 are "other" for them.
        standard = jnp.any(matches, axis=-1)
        own = jnp.argmax(matches, axis=-1)
        draw = jax.random.randint(rng, tokens.shape, 0, len(ids) - 1)
        skip_own = draw + (draw >= own)
        full = jax.random.randint(jax.random.fold_in(rng, 1), tokens.shape, 0, len(ids))
        return jnp.take(ids, jnp.where(standard, skip_own, full))

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
        corrupt_rng, dropout_rng = jax.random.split(rng)
        seen = self.corrupt(tokens, batch["segment_ids"], corrupt_rng, evaluation=evaluation)
        logits = model.apply(
            {"params": params},
            {**batch, "input_tokens": seen.tokens},
            deterministic=evaluation,
            rngs={"dropout": dropout_rng},
        )
        weights = seen.asked.astype(jnp.float32)
        hidden = seen.shown_as_mask
        return score_targets(self.vocabulary, logits, tokens, weights, hidden, carry)


def ngram_starts(
    residue: jax.Array, segments: jax.Array, longest: int, rng: jax.Array
) -> jax.Array:
    """Tiles each run of residues with n-grams; returns the start of the n-gram of each position.

    p(n) is 1/n over the harmonic sum (Lan et al. 2020, equation 1). Masking each n-gram with a
    probability masks every residue with it; the last n-gram of a run is cut off at its end. (The
    published code draws places until the rate is reached.)

    Whether a position begins an n-gram depends on the one before: the automaton whose state is the
    number of positions left in the n-gram. Its transitions compose, so all positions are computed
    at once. `residue` [B, L] bool and `segments` [B, L] int32 delimit runs; the result is int32 [B,
    L].
    """
    lengths = jnp.arange(1, longest + 1)
    drawn = 1 + jax.random.categorical(rng, -jnp.log(lengths), shape=residue.shape)
    follows = (segments[:, 1:] == segments[:, :-1]) & residue[:, 1:] & residue[:, :-1]
    fresh = jnp.pad(~follows, ((0, 0), (1, 0)), constant_values=True)
    left = jnp.arange(longest)[None, None, :]  # before the position
    begins = fresh[..., None] | (left == 0)
    after = jnp.where(begins, drawn[..., None] - 1, left - 1)  # [B, L, state]

    def compose(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.take_along_axis(second, first, axis=-1)

    states = jax.lax.associative_scan(compose, after, axis=1)[..., 0]
    before = jnp.pad(states, ((0, 0), (1, 0)))[:, :-1]
    starts = fresh | (before == 0)
    positions = jnp.arange(residue.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(starts, positions[None, :], 0), axis=1)

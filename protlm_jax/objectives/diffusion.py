"""Absorbing diffusion over residues, as DPLM was trained (Wang et al. 2024, arXiv:2402.18567).

A time t of 1 to T is drawn for each protein, and each of its residues is shown as <mask> with
probability t / T: noise is a state that nothing leaves. The model predicts the residues, and its
losses are weighted by (T - t + 1) / T, or equally. Generation goes the other way: from all masks,
in steps after which fewer and fewer of the residues with the lowest scores are masked again (Zheng
et al. 2023, arXiv:2302.05737, reparameterised sampling).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.readouts import Hides, hiding, residue_logits
from protlm_jax.objectives.base import (
    Batch,
    Objective,
    Score,
    among,
    cross_entropy,
    hidden_residue_metrics,
)

Weighting = Literal["linear", "constant"]

LEVELS = ((0, 25), (25, 50), (50, 75), (75, 100))
"""Bands of noise that are reported apart, in percent of residues hidden: above the first number, up
to the second."""


class Noised(NamedTuple):
    """tokens: [B, L] int32 as shown; hidden: [B, L] bool; time: [B, L] int32, of its protein."""

    tokens: jax.Array
    hidden: jax.Array
    time: jax.Array


@dataclasses.dataclass(frozen=True)
class DiffusionObjective(Objective):
    """Cross-entropy at hidden residues, each protein at a noise level of its own.

    Evaluation hides as training does. Beside "hidden", the 20 residues at all levels without
    weights, the log has the bands of LEVELS, as "noise_25_50".

    Attributes:
        steps: T, the number of levels.
        weighting: of a residue's loss: "linear" (T - t + 1) / T, or "constant" 1.
    """

    steps: int = 500
    weighting: Weighting = "linear"

    tasks: ClassVar[tuple[str, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ProtlmError(f"objective.steps is {self.steps}; it must be at least 1")
        if self.weighting not in get_args(Weighting):
            choices = " or ".join(map(repr, get_args(Weighting)))
            raise ProtlmError(f"objective.weighting is {self.weighting!r}; choose {choices}")

    def corrupt(self, tokens: jax.Array, segments: jax.Array, rng: jax.Array) -> Noised:
        """Hides residues: [B, L] int32 tokens and segments -> Noised."""
        when, which = jax.random.split(rng)
        rows, length = tokens.shape
        drawn = jax.random.randint(when, (rows, length + 1), 1, self.steps + 1)
        time = jnp.take_along_axis(drawn, segments, axis=1)  # a segment's number is at most L
        residue = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        hidden = residue & (jax.random.uniform(which, tokens.shape) < time / self.steps)
        _ = self.vocabulary.hiding_id  # raises where there is none
        return Noised(
            jnp.where(hidden, hiding(tokens, self.vocabulary.hides), tokens), hidden, time
        )

    def weights(self, noised: Noised) -> jax.Array:
        """Of each residue's loss: [B, L] float32, zero where it is not hidden."""
        hidden = noised.hidden.astype(jnp.float32)
        if self.weighting == "constant":
            return hidden
        return hidden * (self.steps - noised.time + 1).astype(jnp.float32) / self.steps

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
        noised = self.corrupt(tokens, batch["segment_ids"], corrupt_rng)
        logits = model.apply(
            {"params": params},
            {**batch, "input_tokens": noised.tokens},
            deterministic=evaluation,
            rngs={"dropout": dropout_rng},
        )
        columns = jnp.asarray(self.vocabulary.amino_acid_columns)
        metrics = hidden_residue_metrics(logits, tokens, noised.hidden, columns)
        percent = 100 * noised.time / self.steps
        for low, high in LEVELS:
            at = noised.hidden & (percent > low) & (percent <= high)
            band = hidden_residue_metrics(logits, tokens, at, columns)
            metrics |= {n.replace("hidden/", f"noise_{low}_{high}/"): x for n, x in band.items()}
        return Score(
            loss_sum=jnp.sum(cross_entropy(logits, tokens) * self.weights(noised)),
            weight_sum=jnp.sum(noised.hidden.astype(jnp.float32)),
            metrics=metrics,
            carry=carry,
        )


@functools.partial(jax.jit, static_argnames=("model", "hides", "steps"))
def denoise(
    model: nn.Module,
    params: Any,
    batch: Batch,
    open_places: jax.Array,
    rng: jax.Array,
    temperature: jax.Array,
    *,
    hides: Hides,
    columns: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Draws residues at `open_places` [B, L] bool, from all masks to none, in `steps` forward
    passes.

    In each step every open place gets an amino acid, drawn by the Gumbel-max trick, and a score,
    its log-probability under the noise of the draw, which is multiplied by the temperature. The
    share 1 - step / steps of the places with the lowest scores is masked again; other masked places
    take their residue, and residues that were placed before stay. The batch holds one protein a
    row.

    Returns tokens [B, L] int32, unchanged outside of open places; and [B] bool, whether the model's
    logits at open places were finite in every step.
    """
    count = jnp.sum(open_places, axis=1, keepdims=True)
    masks = hiding(batch["input_tokens"], hides)
    # Which of a residue's tokens: the one that is hidden as the place is, with its structure.
    kinds = jnp.asarray(hiding(columns[0], hides)).reshape(1, 1, -1)
    kind = jnp.argmax(kinds == jnp.broadcast_to(masks, open_places.shape)[..., None], axis=-1)

    def step(state: tuple[jax.Array, ...], k: jax.Array) -> tuple[Any, None]:
        tokens, hidden, finite = state
        logits = model.apply({"params": params}, {**batch, "input_tokens": tokens})
        noise = jax.random.gumbel(jax.random.fold_in(rng, k), (*tokens.shape, len(columns)))
        chances = residue_logits(logits, columns) + temperature * noise
        chances = jax.nn.log_softmax(chances, axis=-1)
        drawn = columns[jnp.argmax(chances, axis=-1), kind]
        best = jnp.max(chances, axis=-1)
        finite &= jnp.all(jnp.isfinite(best) | ~open_places, axis=1)
        score = jnp.where(open_places, best, jnp.inf)
        rank = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
        again = open_places & (rank < count * (steps - k) // steps)
        tokens = jnp.where(hidden & ~again, drawn, tokens)
        return (jnp.where(again, masks, tokens), again, finite), None

    start = jnp.where(open_places, masks, batch["input_tokens"])
    state = start, open_places, jnp.ones(len(start), bool)
    (tokens, _, finite), _ = jax.lax.scan(step, state, jnp.arange(1, steps + 1))
    return tokens, finite

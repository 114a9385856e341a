"""Fine-tuning: labels of residues or of proteins, predicted by a head on the embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from protlm_jax.errors import ProtlmError
from protlm_jax.models.adapters import TASK_HEAD
from protlm_jax.models.task_head import TaskHead
from protlm_jax.objectives.base import Batch, Objective, Score, among, cross_entropy


@dataclasses.dataclass(frozen=True)
class LabelsObjective(Objective):
    """Cross-entropy of classes and squared error of numbers, summed over the labels there are.

    Attributes:
        outputs: of each target, in the order of the labels: its classes, or 1 for a number.
        weights: of the classes of all targets, one after the other; () weighs all alike.
        pool: what the head reads: each "residue", the "mean" over the residues of a protein, or
            the "first" token of a protein.
        dense: whether the head has a dense layer with tanh before its outputs.
        dropout: of the head.
    """

    outputs: tuple[int, ...] = (2,)
    weights: tuple[float, ...] = ()
    pool: Literal["residue", "mean", "first"] = "residue"
    dense: bool = False
    dropout: float = 0.1

    tasks: ClassVar[tuple[str, ...]] = ("labels",)

    def __post_init__(self) -> None:
        if not self.outputs or min(self.outputs) < 1:
            raise ProtlmError(f"objective.outputs is {self.outputs}; give one number per target")
        if self.weights and len(self.weights) != sum(self.outputs):
            raise ProtlmError(
                f"objective.weights has {len(self.weights)} numbers for {sum(self.outputs)} outputs"
            )

    def head(self) -> nn.Module:
        return TaskHead(sum(self.outputs), self.pool != "residue", self.dense, self.dropout)

    def answers(
        self, model: nn.Module, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> list[jax.Array]:
        """[B, L, outputs] float32 of each target; `rng` is that of dropout, None is without."""
        tokens, segments, still = batch["input_tokens"], batch["segment_ids"], rng is None
        rngs = {} if rng is None else {"dropout": rng}
        features = {n: x for n, x in batch.items() if n != "labels"}
        if model.config.num_decoder_layers:
            features = {f"encoder_{name}": x for name, x in features.items()}
        h = model.apply({"params": params}, features, still, method="hidden", rngs=rngs)
        counted = batch["positions"] == 0
        if self.pool == "mean":
            counted = among(tokens, jnp.asarray(self.vocabulary.residue_ids)) & (segments > 0)
        rngs = {} if rng is None else {"dropout": jax.random.fold_in(rng, 1)}
        weights = {"params": params[TASK_HEAD]}
        found = self.head().apply(weights, h, segments, counted, still, rngs=rngs)
        return jnp.split(found, _ends(self.outputs), axis=-1)

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
        answers = self.answers(model, params, batch, None if evaluation else rng)
        weights = jnp.split(jnp.asarray(self.weights or (1.0,) * sum(self.outputs)),
                            _ends(self.outputs))  # fmt: skip
        losses, totals = [], []
        for place, (found, weight) in enumerate(zip(answers, weights, strict=True)):
            labels = batch["labels"][..., place]
            known = ~jnp.isnan(labels) & (batch["segment_ids"] > 0)
            labels = jnp.where(known, labels, 0.0)
            loss, total = jnp.square(found[..., 0] - labels), known.astype(jnp.float32)
            if self.outputs[place] > 1:
                classes = labels.astype(jnp.int32)
                loss, total = cross_entropy(found, classes), total * jnp.take(weight, classes)
            losses.append(jnp.sum(loss * total))
            totals.append(jnp.sum(total))
        loss_sum, weight_sum = sum(losses[1:], losses[0]), sum(totals[1:], totals[0])
        metrics = {"hidden/loss_sum": loss_sum, "hidden/count": weight_sum}
        return Score(loss_sum, weight_sum, metrics, carry)


def _ends(sizes: Sequence[int]) -> list[int]:
    """Where a sequence of these parts is cut."""
    return [sum(sizes[: place + 1]) for place in range(len(sizes) - 1)]

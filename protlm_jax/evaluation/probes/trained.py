"""Trained heads, and what they answer for the proteins of a split.

Letters: S seeds, N inputs (layers), T rows, P protein slots, C classes (1 for a number).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.engine import float32_products
from protlm_jax.evaluation.probe_data.base import Target, known
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.features import FeatureBatch, FeatureSource
from protlm_jax.evaluation.probes.moments import Standard
from protlm_jax.evaluation.statistics import spearman

Found = dict[str, dict[str, np.ndarray]]
"""head -> target -> array."""


@dataclass(frozen=True)
class TrainedHeads:
    """Heads of one kind for S seeds and N inputs; S = 1 for linear heads, which have one optimum.

    Attributes:
        variables: of the network, every array [S, N, ...] float32.
        units: mean and standard deviation of each number in training.
        epochs, best_epoch: [S, N] int, until it stopped, and whose parameters these are; from 1.
        valid: target -> [S, N] float, accuracy or Spearman's correlation on validation proteins.
        losses: target -> [S, N] float, mean cross entropy in nats, or squared error of standardised
            numbers, on validation proteins; empty for heads of format 1 and 2.
        penalties: target -> [S, N] float, L2 chosen on validation proteins, where it was.
    """

    head: str
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    variables: Mapping[str, Any]
    standard: Standard
    units: Mapping[str, tuple[float, float]]
    epochs: np.ndarray
    best_epoch: np.ndarray
    valid: Mapping[str, np.ndarray]
    losses: Mapping[str, np.ndarray] = field(default_factory=dict)
    penalties: Mapping[str, np.ndarray] = field(default_factory=dict)

    def predict(self, batch: FeatureBatch) -> dict[str, np.ndarray]:
        """target -> probabilities [S, N, T or P, C] or numbers [S, N, T or P, 1], float32.

        They are undefined for rows without a protein.
        """
        module = heads.kind(self.head).module(self.targets)
        found = answer(
            module, self.variables, self.standard, batch.features, batch.protein, batch.slots
        )
        out = {}
        for target in self.targets:
            values = np.asarray(found[target.name])
            mean, deviation = self.units[target.name]
            out[target.name] = values if target.kind == "classes" else values * deviation + mean
        return out

    def select(self, index: int) -> TrainedHeads:
        """The heads of one input: N = 1."""
        at = slice(index, index + 1)
        return dataclasses.replace(
            self,
            variables=jax.tree.map(lambda x: x[:, at], self.variables),
            standard=Standard(self.standard.mean[at], self.standard.scale[at]),
            epochs=self.epochs[:, at],
            best_epoch=self.best_epoch[:, at],
            valid={name: values[:, at] for name, values in self.valid.items()},
            losses={name: values[:, at] for name, values in self.losses.items()},
            penalties={name: values[:, at] for name, values in self.penalties.items()},
        )


@partial(jax.jit, static_argnames=("module", "slots"))
@float32_products
def answer(
    module: Any,
    variables: Mapping[str, Any],
    standard: Standard,
    features: jax.Array,
    protein: jax.Array,
    slots: int,
) -> heads.Answers:
    """target -> probabilities [S, N, T or P, C], or standardised numbers [S, N, T or P, 1]."""

    def one(variables: Mapping[str, Any], x: jax.Array) -> heads.Answers:
        return module.apply(variables, x, protein, slots, False)

    x = standard.apply(features, protein)
    found = jax.vmap(jax.vmap(one), in_axes=(0, None))(variables, x)
    return {
        target.name: jax.nn.softmax(found[target.name])
        if target.kind == "classes"
        else found[target.name]
        for target in module.targets
    }


def require_rows(target: Target, batch: FeatureBatch) -> None:
    """Raises ProtlmError where not every row of a batch has a place for its label."""
    labels, rows = len(batch.labels[target.name]), len(batch.protein)
    if labels != rows:
        raise ProtlmError(
            f"{labels} labels of {target.name!r} for {rows} answers: a head that reads single rows "
            "needs a label for each, or pooled features"
        )


def require_label(target: Target, count: int) -> None:
    """Raises ProtlmError where validation proteins have no label of a target."""
    if not count:
        raise ProtlmError(
            f"no validation label of {target.name!r}: leave this target out or give its labels"
        )


def validate(
    module: Any,
    variables: Any,
    standard: Standard,
    units: Mapping[str, tuple[float, float]],
    valid: FeatureSource,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Accuracies or Spearman's correlations, and losses, target -> [S, N], of validation labels.

    Raises:
        ProtlmError: a target has no label, or proteins have labels and the head answers for rows.
    """
    found: dict[str, list[np.ndarray]] = {target.name: [] for target in module.targets}
    truth: dict[str, list[np.ndarray]] = {target.name: [] for target in module.targets}
    losses = {target.name: np.zeros(()) for target in module.targets}
    for batch in valid.batches(None):
        answers = answer(module, variables, standard, batch.features, batch.protein, batch.slots)
        for target in module.targets:
            labels, values = batch.labels[target.name], np.asarray(answers[target.name])
            if len(labels) != values.shape[2]:
                require_rows(target, batch)
            there = known(target, labels)
            labels, values = labels[there], values[:, :, there]
            found[target.name].append(_decided(target, values))
            truth[target.name].append(labels)
            each = _losses(target, values, labels, units[target.name])
            losses[target.name] = losses[target.name] + each.sum(-1, dtype=np.float64)
    scores = {}
    for target in module.targets:
        labels = np.concatenate([np.empty(0), *truth[target.name]])
        require_label(target, len(labels))
        losses[target.name] = losses[target.name] / len(labels)
        values = np.concatenate(found[target.name], axis=-1)
        if target.kind == "classes":
            scores[target.name] = (values == labels).mean(-1)
        else:  # a constant answer ranks nothing: 0
            correlations = [spearman(one, labels) or 0.0 for one in values.reshape(-1, len(labels))]
            scores[target.name] = np.reshape(correlations, values.shape[:2])
    return scores, losses


def _losses(
    target: Target, values: np.ndarray, labels: np.ndarray, unit: tuple[float, float]
) -> np.ndarray:
    """[S, N, items] of probabilities or standardised numbers [S, N, items, C]."""
    if target.kind == "classes":
        chosen = np.take_along_axis(values, labels[None, None, :, None].astype(np.int64), axis=-1)
        return np.asarray(-np.log(np.maximum(chosen[..., 0], 1e-30)))
    mean, deviation = unit
    return np.asarray((values[..., 0] - (labels - mean) / deviation) ** 2)


def _decided(target: Target, values: np.ndarray) -> np.ndarray:
    """The most probable class, or the number, of values [..., C]."""
    return values.argmax(axis=-1) if target.kind == "classes" else values[..., 0]


def decided(source: FeatureSource, trained: Mapping[str, TrainedHeads]) -> Found:
    """head -> target -> the most probable class, int16, or the number, float32, [S, N, items].

    Features are read once for all heads.
    """
    parts: dict[str, dict[str, list[np.ndarray]]] = {
        name: {t.name: [] for t in of.targets} for name, of in trained.items()
    }
    for batch in source.batches(None):
        rows = int((batch.protein >= 0).sum())
        items = rows if source.level == "residue" else len(batch.members)
        for name, of in trained.items():
            found = of.predict(batch)
            for target in of.targets:
                dtype = np.int16 if target.kind == "classes" else np.float32
                values = _decided(target, found[target.name][:, :, :items]).astype(dtype)
                parts[name][target.name].append(values)
    return {
        name: {target: np.concatenate(values, axis=-1) for target, values in by_target.items()}
        for name, by_target in parts.items()
    }

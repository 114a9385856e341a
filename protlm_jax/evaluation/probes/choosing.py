"""Chooses each head's epoch on validation proteins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probes.batches import FeatureSource
from protlm_jax.evaluation.probes.moments import Standard, known
from protlm_jax.evaluation.probes.trained import answer


def score(
    module: Any, variables: Any, standard: Standard, valid: FeatureSource
) -> dict[str, np.ndarray]:
    """target -> accuracy or Spearman's correlation [S, N] over all validation labels.

    Raises:
        ProtlmError: when a target has no validation label, or proteins have them and the head
            answers for residues.
    """
    found: dict[str, list[np.ndarray]] = {target.name: [] for target in module.targets}
    truth: dict[str, list[np.ndarray]] = {target.name: [] for target in module.targets}
    for batch in valid.batches(None):
        answers = answer(module, variables, standard, batch.features, batch.protein, batch.slots)
        for target in module.targets:
            if (labels := batch.labels.get(target.name)) is None:
                continue
            asked, values = known(target, labels), np.asarray(answers[target.name])
            if len(asked) != values.shape[2]:
                raise ProtlmError(
                    f"{len(asked)} labels of {target.name!r} for {values.shape[2]} answers: a head "
                    "that reads single rows needs a label for each, or pooled features"
                )
            values = values[:, :, asked]
            best = values.argmax(-1) if target.kind == "classes" else values[..., 0]
            found[target.name].append(best)
            truth[target.name].append(labels[asked])
    scores = {}
    for target in module.targets:
        labels = np.concatenate([np.empty(0), *truth[target.name]])
        if not len(labels):
            raise ProtlmError(
                f"no validation label of {target.name!r}: leave this target out or give its labels"
            )
        values = np.concatenate(found[target.name], axis=-1)
        right = target.kind == "classes"
        scores[target.name] = (values == labels).mean(-1) if right else spearman(values, labels)
    return scores


def spearman(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis, ties sharing ranks; 0 where one side is constant."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    a, b = rankdata(values, axis=-1), rankdata(truth)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean()
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum())
    return np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)


class Race:
    """Keeps each head's best parameters and says which heads still run.

    Attributes:
        best: variables of every head's best epoch.
        running: [S, N] bool.
        epochs, best_epoch: [S, N] int.
        valid: target -> scores [S, N] of the best epoch.
    """

    def __init__(self, variables: Any, scores: Mapping[str, np.ndarray], patience: int) -> None:
        self.best = variables
        self.valid = dict(scores)
        self._top = np.full(_mean(scores).shape, -np.inf)  # what has not learned is no candidate
        self.running = np.ones(self._top.shape, bool)
        self.epochs, self.best_epoch = np.zeros((2, *self._top.shape), int)
        self._patience = patience

    def judge(self, variables: Any, scores: Mapping[str, np.ndarray], epoch: int) -> None:
        """Takes in what heads are after an epoch. Of equals the earlier stays."""
        mean = _mean(scores)
        better = self.running & (mean > self._top)
        self.best = jax.tree.map(
            lambda old, new: np.where(_like(better, new), new, old), self.best, variables
        )
        self.valid = {
            name: np.where(better, values, self.valid[name]) for name, values in scores.items()
        }
        self._top = np.where(better, mean, self._top)
        self.epochs = np.where(self.running, epoch, self.epochs)
        self.best_epoch = np.where(better, epoch, self.best_epoch)
        self.running &= epoch - self.best_epoch < self._patience


def _mean(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.mean(list(scores.values()), axis=0)


def _like(mask: np.ndarray, array: Any) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim))

"""Which heads predict contacts: a sparse logistic regression on a few chains of known structure.

Rao et al. 2021 ("Transformer protein language models are unsupervised structure learners",
doi:10.1101/2020.12.15.422761): over the corrected maps of all heads and all pairs of 20 chains that
stand at least six residues apart, minimise |w|_1 + C sum(losses), the bias free. Rao et al. take
C = 0.15. The penalty is on unscaled maps, whose size differs between models: where there are
validation chains, C is the one of STRENGTHS with the least loss on them.

Solved by proximal Newton steps (Lee, Sun & Saunders 2014, doi:10.1137/130921428), each a quadratic
problem with an L1 penalty that coordinate descent solves. scikit-learn's solvers need columns of
like size, and have one penalty for all of them: scaled columns would be another problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.contacts.precision import contact_map
from protlm_jax.evaluation.contacts.predict import Weights, maps
from protlm_jax.evaluation.finite import not_finite
from protlm_jax.evaluation.probe_data import LabelledProtein
from protlm_jax.evaluation.probe_data.benchmarks import NEAREST
from protlm_jax.models.loaded import LoadedModel

STRENGTHS = (0.15, 0.015, 1.5, 15.0)  # C; the first where nothing chooses
_STEPS = 50
_SWEEPS = 200
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class FittedContacts:
    """What the regression found."""

    weights: Weights
    strength: float  # C
    spread: np.ndarray  # [layers, heads] standard deviation of each head's map over the pairs
    pairs: int  # that it was fitted on
    contacts: int  # pairs that touch
    loss: float  # mean cross-entropy on the pairs, nats
    valid: dict[float, float]  # C -> the same on the validation chains; empty without


def fit(
    loaded: LoadedModel,
    proteins: Sequence[LabelledProtein],
    valid: Sequence[LabelledProtein] = (),
) -> FittedContacts:
    """Weights of a model's heads, from chains of known structure.

    Args:
        loaded: the model.
        proteins: with the label "contact", [pairs, 2] counted from 0.
        valid: others, which choose C.

    Raises:
        ProtlmError: no two residues of the chains touch, or all do.
    """
    together = [_pairs(loaded, p) for p in proteins]
    x, y = (np.concatenate(parts) for parts in zip(*together, strict=True))
    if y.all() or not y.any():
        raise ProtlmError(
            f"of the {len(y):,} pairs of {len(proteins)} chains {int(y.sum()):,} touch: there is "
            f"nothing to tell apart; give chains with contacts"
        )
    found = {c: sparse_logistic(x, y, c) for c in (STRENGTHS if valid else STRENGTHS[:1])}
    losses = dict.fromkeys(found, 0.0) if valid else {}
    pairs = 0
    for p in valid:  # one at a time: the maps of all would be large
        x_valid, y_valid = _pairs(loaded, p)
        pairs += len(y_valid)
        for c, (kernel, bias, _) in found.items():
            losses[c] += float(_cross_entropy(x_valid @ kernel + bias, y_valid).sum())
    losses = {c: loss / max(pairs, 1) for c, loss in losses.items()}
    strength = min(losses, key=losses.__getitem__) if valid else STRENGTHS[0]
    kernel, bias, loss = found[strength]
    shape = (loaded.config.num_layers, loaded.config.num_heads)
    return FittedContacts(
        weights=Weights(kernel.reshape(shape).astype(np.float32), bias),
        strength=strength,
        spread=x.std(axis=0, dtype=np.float64).reshape(shape),
        pairs=len(y),
        contacts=int(y.sum()),
        loss=loss,
        valid=losses,
    )


def _pairs(loaded: LoadedModel, protein: LabelledProtein) -> tuple[np.ndarray, np.ndarray]:
    """Corrected maps [pairs, layers x heads], and which pairs touch [pairs]."""
    residues = len(protein.sequence)
    i, j = np.triu_indices(residues, NEAREST)
    found = maps(loaded, protein.sequence)
    if not np.isfinite(found).all():
        raise not_finite(loaded, protein.sequence, protein.id, "the attention maps")
    touching = contact_map(protein.labels["contact"], residues, protein.id)[i, j]
    return found.reshape(-1, residues, residues)[:, i, j].T, touching


def _cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, logits) - y * logits


def sparse_logistic(
    x: np.ndarray, y: np.ndarray, strength: float
) -> tuple[np.ndarray, float, float]:
    """Minimises |w|_1 + strength * sum(cross-entropy of y given x w + bias).

    Args:
        x: [pairs, features] float32.
        y: [pairs] bool.
        strength: C.

    Returns:
        w [features] float64, the bias, and the mean cross-entropy at the optimum.
    """
    count = len(y)
    scale = np.maximum(x.std(axis=0, dtype=np.float64), 1e-12)
    # Features are scaled, which makes the problem round, and the penalty with them, so that it is
    # still on w. The last column is the bias.
    rows = np.concatenate([x / scale.astype(np.float32), np.ones((count, 1), np.float32)], axis=1)
    penalty = np.append(1.0 / (strength * count * scale), 0.0)
    w = np.zeros(rows.shape[1])
    w[-1] = np.log(y.mean() / (1 - y.mean()))
    loss, probability = _loss(rows, y, w)
    for _ in range(_STEPS):
        before = loss + penalty @ np.abs(w)
        gradient = (rows.T @ (probability - y).astype(np.float32)).astype(np.float64) / count
        curvature = probability * (1 - probability)
        hessian = (rows.T @ (rows * curvature[:, None].astype(np.float32))).astype(np.float64)
        hessian = hessian / count + 1e-10 * np.eye(len(w))
        direction = _newton_direction(gradient, hessian, penalty, w)
        size = 1.0
        expected = gradient @ direction + penalty @ (np.abs(w + direction) - np.abs(w))
        while True:
            loss, probability = _loss(rows, y, w + size * direction)
            after = loss + penalty @ np.abs(w + size * direction)
            if after <= before + 1e-4 * size * expected or size < 1e-6:
                break
            size /= 2
        w = w + size * direction
        if before - after <= _TOLERANCE * before:
            break
    return w[:-1] / scale, float(w[-1]), float(loss)


def _loss(rows: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy, and the probabilities [pairs]."""
    logits = (rows @ w.astype(np.float32)).astype(np.float64)
    return float(_cross_entropy(logits, y).mean()), 0.5 * (1.0 + np.tanh(0.5 * logits))


def _newton_direction(
    gradient: np.ndarray, hessian: np.ndarray, penalty: np.ndarray, w: np.ndarray
) -> np.ndarray:
    """d that minimises gradient . d + d . hessian d / 2 + penalty . |w + d|."""
    d = np.zeros_like(w)
    slope = gradient.copy()  # of the quadratic at d
    for _ in range(_SWEEPS):
        largest = 0.0
        for k in range(len(w)):
            curve = hessian[k, k]
            target = w[k] + d[k] - slope[k] / curve
            shrunk = np.sign(target) * max(abs(target) - penalty[k] / curve, 0.0)
            change = shrunk - (w[k] + d[k])
            if change:
                d[k] += change
                slope += change * hessian[:, k]
                largest = max(largest, abs(change))
        if largest < 1e-6:
            break
    return d

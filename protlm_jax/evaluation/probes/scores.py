"""Scores of predictions, with errors by bootstrap over proteins.

Residues of one protein are not independent, so proteins are drawn. All inputs are scored on the
same draws, and differences are paired. Of several seeds, a score is the mean over the seeds'
scores, of the whole set and of every draw. Nothing here needs a probe.

Letters: S seeds, n scored items (residues or proteins), P proteins, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protlm_jax.evaluation.probe_data import LabelledProtein, Target, known
from protlm_jax.evaluation.statistics import (
    Bootstrapped,
    of_sums,
    rank_correlation,
    ratio,
    spearman,
)

MOST_IN_A_TABLE = 20  # classes of which a confusion matrix is kept
_ROUNDING = 1e-9  # of float64 sums of squares, relative


@dataclass(frozen=True)
class Labelled:
    """The labels of one target that a view counts.

    Attributes:
        places: [n] among the items of all proteins end to end.
        truth: [n] classes or numbers.
        owners: [n] the protein of each, counted from 0 over those that have any; ascending.
    """

    places: np.ndarray
    truth: np.ndarray
    owners: np.ndarray

    @property
    def proteins(self) -> int:
        return int(self.owners[-1]) + 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[..., P] of values [..., n]."""
        starts = np.flatnonzero(np.r_[True, self.owners[1:] != self.owners[:-1]])
        return np.asarray(np.add.reduceat(values.astype(np.float64), starts, axis=-1))


def labelled(
    proteins: Sequence[LabelledProtein], level: str, target: Target, mark: str = ""
) -> Labelled | None:
    """The labels of a target where a mark is True ("": everywhere); None where there is none."""
    places, truth, owners = [], [], []
    start = counted = 0
    for protein in proteins:
        if (labels := protein.labels.get(target.name)) is not None:
            labels = np.ravel(labels)
            counts = known(target, labels)
            if mark:
                counts = counts & protein.marks[mark]
            index = np.flatnonzero(counts)
            if index.size:
                places.append(start + index)
                truth.append(labels[index])
                owners.append(np.full(index.size, counted))
                counted += 1
        start += len(protein.sequence) if level == "residue" else 1
    if not counted:
        return None
    return Labelled(np.concatenate(places), np.concatenate(truth), np.concatenate(owners))


def primary(predicted: np.ndarray, of: Labelled, target: Target, seed: int) -> Bootstrapped | None:
    """Accuracy over all items, or Spearman's correlation; None where it is not defined.

    `predicted` has the classes or numbers [S, items] of all items; `seed` is of the draws.
    """
    chosen = predicted[:, of.places]
    if target.kind == "number":
        found = [rank_correlation(one, of.truth, of.owners, seed=seed) for one in chosen]
        there = [one for one in found if one is not None]
        if len(there) < len(found):
            return None
        drawn = np.mean([one.drawn for one in there], axis=0)
        return Bootstrapped(float(np.mean([one.value for one in there])), drawn, there[0].proteins)
    right = of.sums(chosen == of.truth)
    sums = np.concatenate([right, of.sums(np.ones((1, len(of.truth))))]).T
    return of_sums(sums, _accuracy, seed=seed)


def full(
    predicted: np.ndarray, of: Labelled, target: Target, level: str, seed: int
) -> dict[str, Any]:
    """All scores of one input on one view.

    "pooled" is `primary`; "per_protein" the mean over proteins of each one's own score (None where
    a protein is one item); "by_seed" the pooled score of each seed; for classes
    "balanced_accuracy", "mcc" and the "confusion" matrix (rows are the truth; mean over seeds; None
    for many classes); for numbers "pearson", "mae" and "r2", the coefficient of determination.
    """
    chosen = predicted[:, of.places]
    classes = target.kind == "classes"
    each = _per_protein(chosen, of, target) if level == "residue" else np.zeros(0)
    return {
        "pooled": estimated(primary(predicted, of, target, seed)),
        "per_protein": ratio(each, np.ones_like(each), seed=seed).to_dict() if each.size else None,
        "by_seed": [float(np.mean(one == of.truth)) if classes else spearman(one, of.truth)
                    for one in chosen],
        **(_of_classes if classes else _of_numbers)(chosen, of, target, seed),
    }  # fmt: skip


def estimated(found: Bootstrapped | None) -> dict[str, float | int | None] | None:
    """As a plain dict; None where it is not defined."""
    estimate = None if found is None else found.estimate()
    return None if estimate is None else estimate.to_dict()


def _of_classes(chosen: np.ndarray, of: Labelled, target: Target, seed: int) -> dict[str, Any]:
    count, everything = len(target.classes), np.ones(len(of.truth), bool)
    true = _counts(of, of.truth, count, everything)
    parts = [(_counts(of, of.truth, count, one == of.truth), true,
              _counts(of, one, count, everything)) for one in chosen]  # fmt: skip
    sums = np.array(parts).transpose(2, 0, 1, 3)  # [P, S, 3, C]
    confusion = None
    if count <= MOST_IN_A_TABLE:
        index = np.ravel(of.truth.astype(np.int64) * count + chosen)
        pairs = np.bincount(index, minlength=count**2).reshape(count, count)
        confusion = (pairs / len(chosen)).round(2).tolist()
    return {
        "balanced_accuracy": estimated(of_sums(sums, _balanced, seed=seed)),
        "mcc": estimated(of_sums(sums, _mcc, seed=seed)),
        "confusion": confusion,
    }


def _of_numbers(chosen: np.ndarray, of: Labelled, target: Target, seed: int) -> dict[str, Any]:
    x, y = chosen.astype(np.float64), of.truth.astype(np.float64)
    x, y = x - y.mean(), y - y.mean()  # digits are not lost in squares
    one = np.ones_like(x)
    moments = [of.sums(v) for v in (one, x, one * y, x * x, one * y * y, x * y)]
    sums = np.array(moments).transpose(2, 1, 0)  # [P, S, 6]
    errors = np.stack([of.sums(np.abs(x - y)), of.sums(one)]).transpose(2, 1, 0)
    defined = bool((np.ptp(chosen, axis=1) > 0).all() and np.ptp(y) > 0)
    return {
        "pearson": estimated(of_sums(sums, _pearson, seed=seed)) if defined else None,
        "mae": estimated(of_sums(errors, _mean_error, seed=seed)),
        "r2": estimated(of_sums(sums, _determination, seed=seed)) if np.ptp(y) > 0 else None,
    }


def _per_protein(chosen: np.ndarray, of: Labelled, target: Target) -> np.ndarray:
    """Each protein's own score, mean over seeds; of numbers, where there is a correlation."""
    if target.kind == "classes":
        counts = of.sums(np.ones(len(of.truth)))
        return np.asarray((of.sums(chosen == of.truth) / counts).mean(axis=0))
    cuts = np.flatnonzero(np.diff(of.owners)) + 1
    proteins = zip(np.split(chosen, cuts, axis=1), np.split(of.truth, cuts), strict=True)
    found = [[spearman(values, truth) for values in part] for part, truth in proteins]
    return np.array([np.mean(values) for values in found if None not in values], np.float64)  # type: ignore[arg-type]


def _counts(of: Labelled, classes: np.ndarray, count: int, where: np.ndarray) -> np.ndarray:
    """[P, C] how many items of each protein are of each class."""
    index = (of.owners * count + classes.astype(np.int64))[where]
    return np.bincount(index, minlength=of.proteins * count).reshape(of.proteins, count)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    """[draws, S + 1], right by seed and the number of items -> [draws]."""
    return np.asarray((sums[:, :-1] / sums[:, -1:]).mean(axis=1))


def _balanced(sums: np.ndarray) -> np.ndarray:
    """[draws, S, (right, true, predicted), C] -> [draws]: mean recall of the classes there are."""
    right, true = sums[:, :, 0], sums[:, :, 1]
    there = true > 0
    recall = np.divide(right, true, out=np.zeros_like(right), where=there)
    return np.asarray((recall.sum(axis=-1) / there.sum(axis=-1)).mean(axis=-1))


def _mcc(sums: np.ndarray) -> np.ndarray:
    """Matthews' correlation of several classes (Gorodkin 2004); 0 where one side is constant."""
    right, true, predicted = (sums[:, :, i] for i in range(3))
    total = true.sum(axis=-1)
    covariance = right.sum(axis=-1) * total - (true * predicted).sum(axis=-1)
    spread = [total**2 - (side**2).sum(axis=-1) for side in (true, predicted)]
    norm = np.sqrt(np.maximum(spread[0] * spread[1], 0))
    found = np.divide(covariance, norm, out=np.zeros_like(norm), where=norm > 0)
    return np.asarray(found.mean(axis=-1))


def _mean_error(sums: np.ndarray) -> np.ndarray:
    """[draws, S, (errors, items)] -> [draws]."""
    return np.asarray((sums[:, :, 0] / sums[:, :, 1]).mean(axis=-1))


def _determination(sums: np.ndarray) -> np.ndarray:
    """[draws, S, (1, x, y, xx, yy, xy)] -> [draws]: 1 - squared error / variance; nan without."""
    n, _, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = n * yy - y**2
    there = spread > _ROUNDING * n * yy
    spread = np.where(there, spread, np.nan)
    return np.asarray((1 - n * (xx - 2 * xy + yy) / spread).mean(axis=-1))


def _pearson(sums: np.ndarray) -> np.ndarray:
    """[draws, S, (1, x, y, xx, yy, xy)] -> [draws]; nan where a draw is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = [n * square - total**2 for total, square in ((x, xx), (y, yy))]
    # What is left of squares by rounding is no spread.
    there = (spread[0] > _ROUNDING * n * xx) & (spread[1] > _ROUNDING * n * yy)
    norm = np.sqrt(spread[0] * spread[1], out=np.full_like(n, np.nan), where=there)
    return np.asarray(np.clip((n * xy - x * y) / norm, -1.0, 1.0).mean(axis=-1))

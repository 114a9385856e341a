"""Error bars over proteins: the paired bootstrap of ratios of sums, and rank correlations.

Residues of one protein are not independent, so the protein is what is drawn again. A per-residue
score is a ratio of sums over proteins (correct residues / scored residues), and two systems scored
on the same residues are compared on the same draws: the difference of their numerators is itself
such a ratio. Where all draws give the same number, as of one protein, the error bar is None, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from protlm_jax.errors import ProtlmError

DRAWS = 2000
QUANTILES = (0.025, 0.975)
_ELEMENTS_AT_ONCE = 1 << 22  # bounds the memory of one block of draws to about 32 MB
_VALUES_DRAWN = 20_000_000  # ranked in all draws together
_ROUNDING = 1e-12  # relative; smaller differences are those of float64 sums

NO_ERROR = "No ± where one protein, or proteins that are all alike, give no error bar."


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar; where there is none, the three numbers of it are None."""

    value: float  # on all proteins
    standard_error: float | None  # standard deviation over the bootstrap draws
    low: float | None  # 2.5 % quantile over the draws, or the value where that is lower
    high: float | None  # 97.5 % quantile over the draws, or the value where that is higher
    proteins: int  # how many count: those with a denominator above zero

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def written(
    estimate: Mapping[str, Any] | None, digits: int, *, scale: float = 1, sign: str = ""
) -> str:
    """An estimate's dict as text: "0.52 ± 0.01", "0.52" without an error bar, "-" for None.

    Args:
        scale: 100 writes a share in percent.
        sign: "+" also writes the sign of positive values.
    """
    if estimate is None:
        return "-"
    value, error = estimate["value"], estimate["standard_error"]
    text = f"{scale * value:{sign}.{digits}f}"
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"


def ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, seed: int, draws: int = DRAWS
) -> Estimate:
    """Sum of numerators / sum of denominators, with a bootstrap over proteins (Efron 1979).

    Args:
        numerators: [proteins], for instance the correctly predicted residues of each protein.
        denominators: [proteins], the scored residues of each; proteins with 0 take no part.
        seed: of the draws; the same seed and proteins give the same draws for every system.

    Raises:
        ProtlmError: no protein has a denominator above zero, a number is not finite, or shapes
            differ.
    """
    tops, bottoms = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if tops.shape != bottoms.shape or tops.ndim != 1:
        raise ProtlmError(
            f"bootstrap needs two equally long lists, one entry a protein; got shapes "
            f"{tops.shape} and {bottoms.shape}"
        )
    _require_finite(tops, bottoms)
    counted = bottoms > 0
    if not counted.any():
        raise ProtlmError("nothing to score: no protein has a residue that counts")
    sums = np.stack([tops[counted], bottoms[counted]], axis=1)
    found = of_sums(sums, lambda s: s[:, 0] / s[:, 1], seed=seed, draws=draws).estimate()
    assert found is not None
    return found


def paired_difference(
    first: ArrayLike, second: ArrayLike, denominators: ArrayLike, *, seed: int, draws: int = DRAWS
) -> Estimate:
    """The ratio of `first` minus that of `second`, numerators on the same residues and draws."""
    difference = _difference(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return ratio(difference, denominators, seed=seed, draws=draws)


@dataclass(frozen=True)
class Bootstrapped:
    """A statistic and what it is on each draw; two of the same proteins and seed are paired."""

    value: float  # on all proteins
    drawn: np.ndarray  # [draws]; nan where a draw does not define it
    proteins: int  # how many count

    def minus(self, other: Bootstrapped) -> Bootstrapped:
        """The paired difference."""
        if self.proteins != other.proteins or self.drawn.shape != other.drawn.shape:
            raise ProtlmError("a paired difference needs the same proteins on both sides")
        values = np.array([self.value]), np.array([other.value])
        return Bootstrapped(
            float(_difference(*values)[0]), _difference(self.drawn, other.drawn), self.proteins
        )

    def interval(self, least: float = 0.5) -> tuple[float, float]:
        """Of 95 %, as `interval` finds it; nan of fewer than two proteins."""
        if self.proteins < 2:
            return math.nan, math.nan
        low, high = interval(self.drawn, least)
        return float(low), float(high)

    def estimate(self) -> Estimate | None:
        """With standard error and 95 % interval; None where all proteins do not define it."""
        if not math.isfinite(self.value):
            return None
        low, high = self.interval()
        if math.isnan(low):
            return Estimate(self.value, None, None, None, self.proteins)
        error = float(self.drawn[np.isfinite(self.drawn)].std(ddof=1))
        low, high = min(low, self.value), max(high, self.value)
        return Estimate(self.value, error, low, high, self.proteins)


def interval(drawn: np.ndarray, least: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5 and 97.5 % quantiles over draws, [...] each.

    Args:
        drawn: [draws, ...]; nan where a draw does not define the statistic.
        least: share of the draws that must define it.

    Returns:
        nan where fewer do, or where all that do give the same number.
    """
    there = np.isfinite(drawn)
    known = there.any(axis=0) & (there.mean(axis=0) >= least)
    drawn = np.where(known, np.where(there, drawn, np.nan), 0.0)
    quantile = np.quantile if np.isfinite(drawn).all() else np.nanquantile  # slower
    low, high = quantile(drawn, QUANTILES, axis=0)
    smallest, largest = np.nanmin(drawn, axis=0), np.nanmax(drawn, axis=0)
    alike = largest - smallest <= _ROUNDING * np.maximum(np.abs(smallest), np.abs(largest))
    return np.where(alike, np.nan, low), np.where(alike, np.nan, high)


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first - second, 0 where they differ by rounding."""
    found = first - second
    size = np.maximum(np.abs(first), np.abs(second))
    return np.where(np.abs(found) <= _ROUNDING * size, 0.0, found)


def _require_finite(*values: np.ndarray) -> None:
    for each in values:
        if not np.isfinite(each).all():
            index = int(np.flatnonzero(~np.isfinite(each))[0])
            raise ProtlmError(
                f"number {index} of {len(each)} is {each[index]}: statistics need finite numbers"
            )


def of_sums(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Bootstrapped:
    """Bootstraps any statistic of sums over proteins: accuracy, MCC, Pearson's correlation.

    Args:
        sums: [proteins, ...], what each protein adds; all of them are drawn from.
        statistic: sums over proteins [draws, ...] -> [draws].
        seed: of the draws, which are those of `ratio`.
    """
    flat = np.asarray(sums, np.float64).reshape(len(sums), -1)
    drawn = []
    for weights in _weights(len(flat), seed, draws, flat.shape[1]):
        drawn.append(statistic((weights @ flat).reshape(-1, *sums.shape[1:])))
    value = statistic(flat.sum(axis=0).reshape(1, *sums.shape[1:]))
    return Bootstrapped(float(value[0]), np.concatenate(drawn), len(flat))


def rank_correlation(
    predicted: np.ndarray, truth: np.ndarray, owners: np.ndarray, *, seed: int, draws: int = DRAWS
) -> Bootstrapped | None:
    """Spearman's correlation, ranked anew in every draw over proteins; ties at their mean rank.

    Args:
        predicted, truth: [n].
        owners: [n] integers, the protein of each, counted from 0 without gaps.
        seed: of the draws, which are those of `ratio`.
        draws: at most; of many values fewer, at least 200.

    Returns:
        None where one side is constant.

    Raises:
        ProtlmError: a number is not finite.
    """
    _require_finite(predicted, truth)
    if len(truth) < 2 or np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return None
    sides = [_Ranked(predicted), _Ranked(truth)]
    proteins = int(owners.max()) + 1
    draws = int(np.clip(_VALUES_DRAWN // len(truth), 200, draws))

    def correlation(weights: np.ndarray) -> np.ndarray:
        each = weights[:, owners]
        first, second = (side.ranks(each) for side in sides)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.sum(each * first * second, axis=1) / np.sqrt(
                np.sum(each * first**2, axis=1) * np.sum(each * second**2, axis=1)
            )
            return np.clip(found, -1.0, 1.0)

    drawn = [correlation(w) for w in _weights(proteins, seed, draws, len(truth))]
    value = correlation(np.ones((1, proteins)))
    return Bootstrapped(float(value[0]), np.concatenate(drawn), proteins)


class _Ranked:
    """Values sorted once, to be ranked under any weights."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.group = np.empty(len(values), np.int64)
        self.group[self.order] = np.cumsum(np.r_[False, ordered[1:] != ordered[:-1]])

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Mean ranks [draws, n] of values that occur `weights` [draws, n] times, mean taken off."""
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        ranks = (np.cumsum(tied, axis=1) - tied / 2)[:, self.group]
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(ranks - np.sum(weights * ranks, axis=1, keepdims=True) / total)


def auroc(
    scores: ArrayLike, labels: ArrayLike, proteins: ArrayLike, *, seed: int, draws: int = DRAWS
) -> Estimate | None:
    """Probability that a positive has the higher score than a negative, ties counting half.

    Scores are ranked into 256 classes of about equal size, which are ties from then on.

    Args:
        scores: [n].
        labels: [n] bool.
        proteins: [n], the protein of each, counted from 0.
        seed: of the draws over proteins.

    Returns:
        None where one of the two labels does not occur.

    Raises:
        ProtlmError: a score is not finite.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    owners = np.asarray(proteins)
    _require_finite(scores)
    if not labels.any() or labels.all():
        return None
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, 256, endpoint=False)[1:]))
    table = np.zeros((int(owners.max()) + 1, len(edges) + 1, 2))
    np.add.at(table, (owners, np.searchsorted(edges, scores, side="right"), labels.astype(int)), 1)
    return of_sums(table, _area, seed=seed, draws=draws).estimate()


def _area(counts: np.ndarray) -> np.ndarray:
    """AUROC of counts [..., classes, (negative, positive)] in ascending order; nan where empty."""
    negative, positive = counts[..., 0], counts[..., 1]
    below = np.cumsum(negative, axis=-1) - negative / 2
    pairs = negative.sum(axis=-1) * positive.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * below).sum(axis=-1) / pairs)


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation of two lists [n], ties at their mean rank.

    None where a list is constant, shorter than two, or not finite.
    """
    from scipy import stats  # type: ignore[import-untyped]

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.clip(stats.spearmanr(a, b).statistic, -1.0, 1.0))


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Probability that a positive (label above 0) scores above a negative, ties as half; None where
    one of them is missing or a score is not finite."""
    values, positive = np.asarray(scores, np.float64), np.asarray(labels) > 0
    if not positive.any() or positive.all() or not np.isfinite(values).all():
        return None
    _, place = np.unique(values, return_inverse=True)
    counts = [np.bincount(place, weights) for weights in (~positive, positive)]
    return float(_area(np.stack(counts, axis=-1)))


def _weights(proteins: int, seed: int, draws: int, values: int) -> Iterator[np.ndarray]:
    """`resampled` in blocks of draws whose [draws, values] are not too large."""
    most = max(1, _ELEMENTS_AT_ONCE // max(proteins, values))
    if draws * proteins <= _ELEMENTS_AT_ONCE:
        counts = resampled(proteins, seed, draws)
        yield from (counts[start : start + most] for start in range(0, draws, most))
        return
    generator = np.random.default_rng(seed)
    for start in range(0, draws, most):
        yield _counted(generator.integers(proteins, size=(min(most, draws - start), proteins)))


@lru_cache(maxsize=8)
def resampled(proteins: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """How often each protein occurs in each draw with replacement: [draws, proteins] float64."""
    return _counted(np.random.default_rng(seed).integers(proteins, size=(draws, proteins)))


def _counted(rows: np.ndarray) -> np.ndarray:
    """Draws [draws, proteins] of protein indices as counts."""
    index = rows + rows.shape[1] * np.arange(len(rows))[:, None]
    counts = np.bincount(index.ravel(), minlength=rows.size)
    return counts.reshape(rows.shape).astype(np.float64)

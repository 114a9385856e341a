"""What a bootstrap lets one say: runs below a bound, leaders and their rivals, numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protlm_jax.evaluation.depth.results import Measured, Quantity

LEVELS = "noise"  # a dimension before all others: what is said is said of one level
LOW, HIGH = 0.025, 0.975
_ENOUGH = 0.95  # share of the draws that need a value


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles; nan where more than one draw in twenty has no value.

    Args:
        draws: [draws] float64.
    """
    there = draws[~np.isnan(draws)]
    if len(there) < _ENOUGH * len(draws):
        return math.nan, math.nan
    low, high = np.quantile(there, [LOW, HIGH])
    return float(low), float(high)


def side(draws: np.ndarray, of: float = 0.0) -> int:
    """1 where the interval lies above a number, -1 below it, 0 where it holds it or is nan."""
    low, high = interval(draws)
    return int(low > of) - int(high < of)


def tail(draws: np.ndarray, below: float) -> tuple[int, float]:
    """How many of the last entries are all below a bound, with 97.5 % confidence for the run.

    The bound holds for the largest of the run, draw by draw: not for each entry on its own, which
    would be wrong more often the longer the run.

    Args:
        draws: [draws, entries]; an entry that has nan ends the run.
        below: the bound.

    Returns:
        The length of the longest such run, and the 97.5 % quantile of its largest entry (nan for
        length 0).
    """
    largest = np.maximum.accumulate(draws[:, ::-1], axis=1)
    bounds = np.quantile(largest, HIGH, axis=0)
    failed = np.flatnonzero(~(bounds < below))
    length = int(failed[0]) if len(failed) else len(bounds)
    return length, float(bounds[length - 1]) if length else math.nan


def leader(values: np.ndarray, draws: np.ndarray) -> tuple[int, list[int]]:
    """The entry with the largest value, and those that cannot be told from it, largest first.

    Args:
        values: [entries].
        draws: [draws, entries]; an entry is told apart when the 2.5 % quantile of the paired
            difference is above 0.
    """
    order = [int(i) for i in np.argsort(-values, kind="stable") if not math.isnan(values[i])]
    top = order[0]
    apart = np.quantile(draws[:, [top]] - draws, LOW, axis=0) > 0
    return top, [i for i in order[1:] if not apart[i]]


def written(value: float, draws: np.ndarray | None = None) -> str:
    """A number, and its interval in brackets where it has one: "0.31 (0.28 to 0.34)"."""
    low, high = (math.nan, math.nan) if draws is None else interval(draws)
    if math.isnan(low):
        return _short(value, value)
    # Enough digits to see the interval.
    scale = min(high - low, abs(value)) or abs(value)
    return f"{_short(value, scale)} ({_short(low, scale)} to {_short(high, scale)})"


def any_of(names: Sequence[object], last: str = "and") -> str:
    """a, b and c."""
    words = [str(name) for name in names]
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def quantity(measured: Measured, name: str) -> Quantity | None:
    """What was measured under a name; None where it was not, has no bootstrap, or has levels."""
    x = measured.quantities.get(name)
    return x if isinstance(x, Quantity) and x.dims[:1] != (LEVELS,) else None


def _short(value: float, scale: float) -> str:
    """Two digits of the scale, as far as they mean something."""
    if not scale:
        return f"{value:.2f}"
    decimals = max(2 if abs(value) < 10 else 1, 1 - math.floor(math.log10(abs(scale))))
    return f"{value:.{min(decimals, 3 if abs(value) >= 0.1 else 4)}f}"

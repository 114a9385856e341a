"""Numbers of several seeds of the depth study: means, intervals, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

# A layer is idle when skipping it costs less than this share of the model's lead.
IDLE = 0.05

Numbers = dict[str, float | None]


def idle_share(costs: np.ndarray, lead: float) -> float | None:
    """Share of layers whose skip raises the loss by less than IDLE of the lead; None without one.

    Args:
        costs: [N] rises of the loss, in nats.
        lead: what the model's loss is below that of the training frequencies, in nats.
    """
    return float(np.mean(costs < IDLE * lead)) if lead > 0 else None


def listed(values: np.ndarray) -> Any:
    """Nested lists, with None for nan."""
    return np.where(np.isnan(values), None, values.astype(object)).tolist()


def over_seeds(numbers: Sequence[Numbers]) -> dict[str, dict[str, float] | None]:
    """Mean, standard deviation and half of the 95 % t interval of each number over seeds.

    None where a seed has none.
    """
    result: dict[str, dict[str, float] | None] = {}
    for name in numbers[0]:
        values = [value for each in numbers if (value := each[name]) is not None]
        if len(values) < len(numbers):
            result[name] = None
            continue
        sd = float(np.std(values, ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1) * sd / np.sqrt(len(values)))
        result[name] = {"mean": float(np.mean(values)), "sd": sd, "half": half}
    return result


def compared(
    first: Sequence[Numbers], second: Sequence[Numbers]
) -> dict[str, dict[str, float] | None]:
    """`over_seeds` of the first minus the second, seed by seed."""
    return over_seeds([_minus(a, b) for a, b in zip(first, second, strict=True)])


def _minus(a: Numbers, b: Numbers) -> Numbers:
    found: Numbers = {}
    for name in a:
        x, y = a[name], b[name]
        found[name] = None if x is None or y is None else x - y
    return found

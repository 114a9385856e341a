"""An analysis as nested lists: what the report draws, ready for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from protlm_jax.evaluation.depth.evidence import quantity
from protlm_jax.evaluation.depth.headlines import headlines
from protlm_jax.evaluation.depth.reading import reading
from protlm_jax.evaluation.depth.results import Analysis, Estimate, Measured, Quantity, minus

_CHANGED = ("skip", "sublayer_skip", "swap", "repeat", "delete", "reverse")


def plain(analysis: Analysis, asked: str = "") -> dict[str, Any]:
    """Everything that was measured, with its intervals and what it says in words.

    Args:
        analysis: of one model.
        asked: in words, what the model is asked.

    Returns:
        "model", "positions", "proteins" (how many), "cost", and "stacks" -> name -> "layers",
        "coords", "undefined", "quantities" (see `described`; beside the measured ones
        "<prefix>_delta_nll", the rise of the loss), "headlines" (name -> value, low, high) and
        "reading" (sentences).
    """
    positions = "; ".join(filter(None, (asked, analysis.positions)))
    return {
        "model": analysis.model,
        "positions": positions,
        "proteins": len(analysis.proteins),
        "cost": analysis.cost,
        "stacks": {
            name: _stack(measured, len(analysis.proteins))
            for name, measured in analysis.stacks.items()
        },
    }


def described(x: Quantity | Estimate) -> dict[str, Any]:
    """ "dims", "values", "low" and "high" of the interval, "largest"; nested, None for nan.

    What has no interval or no largest value lacks it.
    """
    found = {"dims": list(x.dims), "values": nested(x.values)}
    if isinstance(x, Quantity):
        low, high = x.interval()
        found |= {"low": nested(low), "high": nested(high)}
        if x.peaks is not None:
            found["largest"] = nested(x.largest)
    return found


def nested(x: np.ndarray) -> Any:
    """Lists in lists, or one number; None for what is not finite."""
    return np.where(~np.isfinite(x), np.array(None), np.asarray(x).astype(object)).tolist()


def _stack(measured: Measured, proteins: int) -> dict[str, Any]:
    quantities = {**measured.quantities, **_rises(measured)}
    return {
        "layers": measured.num_layers,
        "coords": {dim: list(labels) for dim, labels in measured.coords.items()},
        "undefined": measured.undefined,
        "quantities": {name: described(x) for name, x in quantities.items()},
        "headlines": {name: x.numbers() for name, x in headlines(measured).items()},
        "reading": reading(measured, proteins),
    }


def _rises(measured: Measured) -> dict[str, Quantity]:
    """What the loss rises by under each change, protein by protein."""
    base, found = quantity(measured, "base_nll"), {}
    for prefix in _CHANGED:
        changed = quantity(measured, f"{prefix}_nll")
        if changed is not None and base is not None:
            found[f"{prefix}_delta_nll"] = minus(changed, base)
    return found

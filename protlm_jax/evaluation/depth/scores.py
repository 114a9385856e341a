"""One number from a curve over layers: where the work is done, and where the answer is there."""

from __future__ import annotations

import numpy as np

ENOUGH = 0.95


def per_layer_effect(skip_map: np.ndarray) -> np.ndarray:
    """Mean effect of each layer on later ones: e_s = sum_m E[s, m] / max(N - 1 - s, 1).

    Args:
        skip_map: [..., skipped, affected]; what is not above the diagonal does not count.

    Returns:
        [..., N]; zero for the last layer, which has no later one.
    """
    number = skip_map.shape[-1]
    later = np.maximum(number - 1 - np.arange(number), 1)
    return np.triu(skip_map, k=1).sum(axis=-1) / later


def depth_score(effect: np.ndarray) -> dict[str, float | None]:
    """Centre of mass of the layers' effects (M6; Csordás et al. 2025).

        D = sum_l l e_l / sum_l e_l

    Args:
        effect: [N], not negative: `per_layer_effect`, or the effect of each skip on the output.

    Returns:
        "layers", D itself, and "relative", D / (N - 1): 0 if only the first layer mattered, 1 if
        only the last. None where no layer has an effect, one is not known, or there is one layer.
    """
    if len(effect) < 2 or not effect.sum() > 0:
        return {"layers": None, "relative": None}
    centre = float((np.arange(len(effect)) * effect).sum() / effect.sum())
    return {"layers": centre, "relative": centre / (len(effect) - 1)}


def exit_depth(quality: np.ndarray) -> int | None:
    """Depth from which on a lens has 95 % of the model's own quality (M9).

    Args:
        quality: [N + 1] by depth, of which more is better and 0 is worthless: accuracy, or what
            the loss is below that of a guess among 20 amino acids, ln 20 - nll.

    Returns:
        The number of layers passed, 0 to N; None where the model's own quality is not above 0.
    """
    if not quality[-1] > 0:
        return None
    short = np.flatnonzero(~(quality >= ENOUGH * quality[-1]))
    return int(short[-1]) + 1 if len(short) else 0

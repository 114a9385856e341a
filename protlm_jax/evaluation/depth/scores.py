"""One number from a curve over layers: where the work is done, and where the answer is reached."""

from __future__ import annotations

import math

import numpy as np

ENOUGH = 0.95
GUESS = math.log(20)  # nats: the loss of a blind guess among the amino acids


def per_layer_effect(skip_map: np.ndarray) -> np.ndarray:
    """Mean effect of each layer on later ones: e_s = sum_m E[s, m] / max(N - 1 - s, 1), [..., N].

    Of a map [..., skipped, affected], of which only what is above the diagonal counts.
    """
    number = skip_map.shape[-1]
    later = np.maximum(number - 1 - np.arange(number), 1)
    return np.triu(skip_map, k=1).sum(axis=-1) / later


def centre(effect: np.ndarray) -> np.ndarray:
    """The depth score, the centre of mass of the layers' effects (M6; Csordás et al. 2025).

        D / (N - 1),   D = sum_l l e_l / sum_l e_l

    [...] of effects [..., N], not negative: 0 if only the first layer mattered, 1 if only the last.
    The last layer has no effect on later ones: of these the score is (N - 2) / (N - 1) at most.
    nan where no layer has an effect, or one is nan.
    """
    layers = np.arange(effect.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((effect @ layers) / effect.sum(-1) / (len(layers) - 1))


def reached(quality: np.ndarray, enough: float = ENOUGH) -> np.ndarray:
    """Share of the layers after which a lens has enough of the model's quality, and keeps it (M9).

    Args:
        quality: [..., N + 1] by depth, of which more is better and 0 is worthless: accuracy, or
            the loss of a guess minus the lens's, GUESS - nll.
        enough: share of the last.

    Returns:
        [...] in [0, 1]; nan where the last is not above 0.
    """
    last = quality[..., -1:]
    short = ~(quality >= enough * last)
    depth = np.where(short.any(-1), quality.shape[-1] - short[..., ::-1].argmax(-1), 0)
    return np.where(last[..., 0] > 0, depth / (quality.shape[-1] - 1), np.nan)

"""A model in a few numbers, each with the draws of its bootstrap over proteins.

The same seed draws the same proteins for every quantity, so that differences of two numbers of one
model, or of two models on the same proteins, are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protlm_jax.evaluation.depth.evidence import interval, quantity
from protlm_jax.evaluation.depth.results import Measured
from protlm_jax.evaluation.depth.scores import ENOUGH, per_layer_effect

NEGLIGIBLE = 0.05  # nats: a change of the answer below this is called small
GUESS = math.log(20)  # nats: the loss of a blind guess among the amino acids
HALF, MOST = 0.5, ENOUGH


@dataclass(frozen=True)
class Headline:
    """A number and its bootstrap.

    Attributes:
        value: of all proteins.
        draws: [draws] float64, of proteins drawn with replacement; nan where a draw has none, and
            everywhere where there is nothing to draw from (see `Quantity.drawn`).
    """

    value: float
    draws: np.ndarray

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval; see `evidence.interval`."""
        return interval(self.draws)[0]

    @property
    def high(self) -> float:
        """The upper end."""
        return interval(self.draws)[1]

    def numbers(self) -> dict[str, float | None]:
        """The value and both ends by name, with None for nan."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {key: None if math.isnan(x) else x for key, x in found.items()}

    def minus(self, other: Headline) -> Headline:
        """The difference, draw by draw."""
        return Headline(self.value - other.value, self.draws - other.draws)


def headlines(measured: Measured, seed: int = 0) -> dict[str, Headline]:
    """What of the following was measured and is defined, by name.

        loss                nats at the residues that are read, among the 20 amino acids
        accuracy            share of them that are right
        depth_score         centre of mass of the layers' effects on later ones, D / (N - 1)
        answer_depth_score  the same of their effects on the answer ("l2")
        small_share         share of layers whose skip changes the answer by KL < NEGLIGIBLE
        half_depth          share of layers after which half of ln 20 - loss is reached and kept by
                            the logit lens; none where the loss is not below ln 20
        exit_depth          the same of 95 %
        late_contribution   mean of relative_contribution over layers N // 2 to N - 1

    Args:
        measured: one stack.
        seed: of the draws of proteins.
    """
    found = {}
    for name, (source, of) in _HEADLINES.items():
        x = quantity(measured, source)
        if x is None or measured.num_layers < 2:
            continue
        value = float(of(x.values))
        drawn = x.drawn(seed)
        nothing = np.isnan(drawn).reshape(len(drawn), -1).all(axis=1)
        head = Headline(value, np.where(nothing, np.nan, of(drawn)))
        # Of some draws alone it is no number of the model; without any it has no interval.
        if not math.isnan(value) and (nothing.all() or not math.isnan(head.low)):
            found[name] = head
    return found


def reached(quality: np.ndarray, enough: float) -> np.ndarray:
    """Share of layers after which so much of the final quality is there and kept.

    Args:
        quality: [..., N + 1] by depth; what `scores.exit_depth` takes, of many draws.
        enough: share of the last.

    Returns:
        [...] in [0, 1]; nan where the last is not above 0.
    """
    last = quality[..., -1:]
    short = ~(quality >= enough * last)
    depth = np.where(short.any(-1), quality.shape[-1] - short[..., ::-1].argmax(-1), 0)
    return np.where(last[..., 0] > 0, depth / (quality.shape[-1] - 1), np.nan)


def _centre(effect: np.ndarray) -> np.ndarray:
    """D / (N - 1) of `scores.depth_score`, of many draws: [..., N] to [...]."""
    layers = np.arange(effect.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (effect @ layers) / effect.sum(-1) / (len(layers) - 1)


_HEADLINES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "loss": ("base_nll", lambda x: x),
    "accuracy": ("base_accuracy", lambda x: x),
    "depth_score": ("skip_effect", lambda x: _centre(per_layer_effect(x))),
    "answer_depth_score": ("skip_l2", _centre),
    "small_share": ("skip_kl", lambda x: np.mean(x < NEGLIGIBLE, axis=-1)),
    "half_depth": ("lens_nll", lambda x: reached(GUESS - x, HALF)),
    "exit_depth": ("lens_nll", lambda x: reached(GUESS - x, MOST)),
    "late_contribution": (
        "relative_contribution",
        lambda x: np.mean(x[..., 0, x.shape[-1] // 2 :], axis=-1),
    ),
}

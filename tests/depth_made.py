"""Measurements with numbers that were made up, so that what they say is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray

from protlm_jax.evaluation.depth.results import Quantity, Values, dataset, with_rises

PROTEINS = 40


def quantity(
    dims: Sequence[str], means: Any, spread: Any = 0.0, proteins: int = PROTEINS, seed: int = 0
) -> Quantity:
    """One position a protein, whose values have exactly these means and about this spread."""
    means = np.asarray(means, float)
    noise = np.random.default_rng(seed).normal(size=(*means.shape, proteins))
    noise -= noise.mean(axis=-1, keepdims=True)
    totals = means[..., None] + np.asarray(spread, float)[..., None] * noise
    counts = np.broadcast_to(~np.isnan(totals), totals.shape).astype(float)
    return Quantity(tuple(dims), np.nan_to_num(totals), counts, np.abs(np.nan_to_num(totals)))


def measured(
    layers: int,
    quantities: dict[str, Quantity | Values],
    name: str = "made",
    proteins: int = PROTEINS,
    **labels: Any,
) -> xarray.Dataset:
    places = {
        "part": ("layer", "attention", "mlp"),
        "sublayer": ("attention", "mlp"),
        "size": (2, 4),
        "at_depth": (0, layers // 2, layers - 1),
        "protein": [f"p{i}" for i in range(proteins)],
        **labels,
    }
    return dataset(
        with_rises(quantities), places, model=name, family="esm2", stack="encoder", layers=layers,
        positions="every position", undefined="{}", seconds=1.0, tokens=100, forwards=2.0,
    )  # fmt: skip


def everything(layers: int = 6, scale: float = 1.0, name: str = "made") -> xarray.Dataset:
    """Every measurement that there is, of effects that fall with depth, and two unknown ones."""
    later = np.arange(layers)[None] > np.arange(layers)[:, None]
    fall = scale * 2.0 ** -np.arange(layers)
    parts = np.stack([fall, 0.7 * fall, 0.5 * fall])
    lens = np.linspace(4.0, 2.0, layers + 1)
    blocks = np.stack([1.5 * fall, 2.5 * fall])
    by = {
        "base_nll": quantity((), 2.0, 0.1),
        "base_accuracy": quantity((), 0.3, 0.1),
        "relative_contribution": quantity(("part", "layer"), parts, 0.02),
        "cosine": quantity(("part", "layer"), 0.3 - parts, 0.02),
        "stream_norm": quantity(("depth",), 1.0 + np.arange(layers + 1), 0.1),
        "block_influence": quantity(("layer",), fall, 0.02),
        "angular_distance": quantity(("depth", "other_depth"), np.full((layers + 1,) * 2, 0.2)),
        "skip_effect": quantity(("skipped", "affected"), later * fall[:, None], 0.02),
        "local_effect": quantity(("skipped", "affected"), 0.5 * later * fall[:, None], 0.02),
        "sublayer_skip_effect": quantity(
            ("sublayer", "skipped", "affected"), np.stack([later, 0.5 * later]) * fall[:, None]
        ),
        "sublayer_skip_kl": quantity(("sublayer", "skipped"), parts[1:], 0.02),
        "swap_kl": quantity(("first",), fall[:-1], 0.02),
        "repeat_kl": quantity(("layer",), 0.5 * fall, 0.02),
        "delete_kl": quantity(("size", "first"), blocks[:, :-1], 0.02),
        "reverse_kl": quantity(("size", "first"), blocks[:, :-1], 0.02),
        "erasure_kl": quantity(("at_depth",), [0.5, 0.02, 0.001], 0.001),
        "context_share": quantity(("at_depth",), [0.9, 0.5, 0.1], 0.05),
        "tuned_lens_nll": quantity(("layer",), lens[:-1] - 0.2, 0.1),
        "swap_by_level_kl": quantity(("level", "layer"), blocks, 0.02),
        "odd": quantity(("corner", "side"), [[1.0, 2.0], [3.0, 4.0]], 0.1),
    }
    for measure in ("l2", "kl", "nll", "top1_agreement"):
        offset = 2.0 if measure == "nll" else 0.0
        by[f"skip_{measure}"] = quantity(("skipped",), offset + fall, 0.02)
        by[f"lens_{measure}"] = quantity(("depth",), lens if measure == "nll" else lens / 4, 0.02)
    similar = {
        "cka": (("depth", "other_depth"), np.full((layers + 1,) * 2, 0.5)),
        "effective_rank": (("depth",), np.linspace(30, 10, layers + 1)),
        "intrinsic_dimension": (("depth",), np.linspace(12, 8, layers + 1)),
    }
    return measured(layers, {**by, **similar}, name, level=(0.1, 0.5))


def by_noise(levels: Sequence[float] = (0.1, 0.5, 0.9), layers: int = 6) -> xarray.Dataset:
    """The same at several levels of noise, effects growing with it."""
    each = [everything(layers, 1.0 + level) for level in levels]
    found = xarray.concat(each, xarray.DataArray(list(levels), dims="noise", name="noise"),
                          data_vars="all", join="exact")  # fmt: skip
    unknown = [x for x in found.data_vars if str(x).startswith(("odd", "swap_by_level"))]
    return found.drop_vars(unknown)

"""Models whose measurements can be said beforehand: a silent layer, a copy, two that commute."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depth_reference import HIDDEN, measured, reference

from protlm_jax.models.loaded import LoadedModel

METRICS = (
    "contributions",
    "angles",
    "skips",
    "sublayer_skips",
    "local_effects",
    "swaps",
    "repeats",
)
COUNT = HIDDEN.sum()


def changed(family: str, change: Any) -> LoadedModel:
    """The reference's model with other weights: change(path, leaf) -> leaf."""

    def one(path: Any, leaf: Any) -> Any:
        return change(jax.tree_util.keystr(path, simple=True, separator="/"), jnp.asarray(leaf))

    loaded = reference(family, "encoder").loaded
    return dataclasses.replace(loaded, params=jax.tree_util.tree_map_with_path(one, loaded.params))


def means(found: Any, name: str) -> np.ndarray:
    return np.asarray(found[name].total.sum(-1) / COUNT)


def silent(layers: list[int], name: str, leaf: Any) -> Any:
    """What these layers write, biases included, becomes zero."""
    if name.startswith("encoder/") and ("/out/" in name or "/wo/" in name):
        return leaf.at[jnp.asarray(layers)].set(0.0)
    return leaf


@pytest.mark.parametrize("family", ["bert", "esm2"])
def test_a_layer_that_adds_zero_is_missed_by_nobody_in_pre_ln(family: str) -> None:
    """In post-LN its norms still act, so that leaving it out changes something."""
    metrics = METRICS if family == "esm2" else ("contributions", "angles", "skips")
    found = measured(
        family, "encoder", metrics, loaded=changed(family, lambda n, x: silent([1], n, x))
    )
    assert means(found, "relative_contribution")[1:, 1].max() == 0  # both sublayers
    assert means(found, "cosine")[1:, 1].max() == 0
    if family == "bert":
        assert means(found, "relative_contribution")[0, 1] > 0.01
        assert means(found, "skip_kl")[1] > 1e-4
        return
    assert means(found, "relative_contribution")[0, 1] == 0 == means(found, "block_influence")[1]
    assert means(found, "angular_distance")[1, 2] == 0
    for name in ("skip_effect", "local_effect"):
        assert means(found, name)[1].max() < 1e-5 < means(found, name)[0, 2]
    for name in ("skip_l2", "repeat_l2"):
        assert means(found, name)[1] < 1e-5 < means(found, name)[0]
    assert means(found, "skip_top1_agreement")[1] == 1


def test_layers_that_commute_can_be_swapped() -> None:
    """Layers 0 and 1 write constants, by their MLPs' biases alone: any order of them is one."""

    def constant(name: str, leaf: Any) -> Any:
        leaf = silent([0, 1], name, leaf)
        if name.startswith("encoder/") and "/wo/" in name and leaf.ndim == 2:  # its bias
            ramp = jnp.linspace(-1, 1, leaf.shape[1])
            return leaf.at[0].set(ramp).at[1].set(ramp**2)
        return leaf

    found = measured("esm2", "encoder", METRICS, loaded=changed("esm2", constant))
    # What is added does not depend on what stands before it.
    assert max(means(found, name)[0, 1] for name in ("skip_effect", "local_effect")) < 1e-6
    assert means(found, "skip_effect")[0, 2] > 1e-3
    swap = means(found, "swap_l2")
    assert swap[0] < 1e-6 < 1e-3 < swap[1]


def test_of_two_copies_of_a_layer_either_can_be_left_out_or_swapped() -> None:
    def copied(name: str, leaf: Any) -> Any:
        return leaf.at[2].set(leaf[1]) if name.startswith("encoder/") else leaf

    found = measured("esm2", "encoder", METRICS, loaded=changed("esm2", copied))
    assert means(found, "swap_l2")[1] == 0 < 1e-3 < means(found, "swap_l2")[0]
    for name in ("skip_kl", "skip_nll", "repeat_kl"):
        first, second = means(found, name)[1:]
        assert first == pytest.approx(second, rel=1e-5) and first > 1e-5

"""A layer that adds zero: every measurement is known beforehand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depth_reference import HIDDEN, measured, reference

METRICS = ("contributions", "angles", "skips", "local_effects", "swaps", "repeats")


def means(found: Any, name: str) -> np.ndarray:
    return np.asarray(found[name].total.sum(-1) / HIDDEN.sum())


def silent(path: Any, leaf: Any) -> Any:
    """What layer 1 writes, biases included, becomes zero."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    writes = name.startswith("encoder/") and ("/out/" in name or "/wo/" in name)
    return jnp.asarray(leaf).at[1].set(0.0) if writes else leaf


@pytest.mark.parametrize("family", ["bert", "esm2"])
def test_nothing_changes_without_a_layer_that_adds_zero_in_pre_ln(family: str) -> None:
    """In post-LN its norms still act, so that leaving it out changes something."""
    metrics = METRICS if family == "esm2" else METRICS[:3]
    model = reference(family, "encoder").loaded
    changed = jax.tree_util.tree_map_with_path(silent, model.params)
    model = dataclasses.replace(model, params=changed)
    found = measured(family, "encoder", metrics, loaded=model)
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

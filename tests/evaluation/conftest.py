"""Small randomly initialised models of all families, shared by the evaluation tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from zoo import ZOO

from protlm_jax import models
from protlm_jax.models.loaded import LoadedModel


@functools.cache
def _small_model(family: str, max_positions: int = 64, seed: int = 0) -> LoadedModel:
    """Two layers of width 16; position tables hold `max_positions` tokens."""
    config = ZOO[family].config
    if config.max_positions:
        config = config.replace(max_positions=max_positions)
    model = models.build(config)
    params = models.init_params(model, seed)
    return LoadedModel(model, params, ZOO[family].vocabulary, f"small-{family}")


@pytest.fixture(scope="session")
def small_model() -> Callable[..., LoadedModel]:
    """small_model(family, max_positions=64, seed=0) -> LoadedModel."""
    return _small_model

"""Small randomly initialised models of both families, shared by the evaluation tests."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from protlm_jax import models
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.models.loaded import LoadedModel
from protlm_jax.vocabularies import get_vocabulary

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8, "d_ff": 32}


@functools.cache
def _small_model(family: str, max_positions: int = 64, seed: int = 0) -> LoadedModel:
    """Two layers of width 16; BERT holds `max_positions` tokens, T5 any number."""
    if family == "bert":
        config = bert_config(**SIZES, max_positions=max_positions, initializer_range=0.3)
    else:
        config = t5_config(**SIZES, num_decoder_layers=2)
    model = models.build(config)
    params = models.init_params(model, seed)
    return LoadedModel(model, params, get_vocabulary(config.vocabulary), f"small-{family}")


@pytest.fixture(scope="session")
def small_model() -> Callable[..., LoadedModel]:
    """small_model("bert" | "t5", max_positions=64, seed=0) -> LoadedModel."""
    return _small_model

"""Small models of both families in both worlds, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from protlm_jax import models
from protlm_jax.huggingface import export
from protlm_jax.models import LoadedModel
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.vocabularies import PROT_BERT, PROT_T5

SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 4, "head_dim": 8, "d_ff": 64}
CONFIGS = {
    "bert": bert_config(**SIZES, max_positions=40),
    "t5": t5_config(**{**SIZES, "head_dim": 16}, num_decoder_layers=3),
}


def perturbed(params: Any, seed: int) -> Any:
    """Parameters without a zero or a one among them: fresh biases and norms would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="session", params=["bert", "t5"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(family: str) -> LoadedModel:
    model = models.build(CONFIGS[family])
    params = perturbed(models.init_params(model, seed=1), seed=2)
    vocabulary = PROT_BERT if family == "bert" else PROT_T5
    return LoadedModel(model, params, vocabulary, "small")


@pytest.fixture(scope="session")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(loaded, tmp_path_factory.mktemp("export") / "hf")

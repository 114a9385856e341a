"""The zoo's models in both worlds, with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo

from protlm_jax.huggingface import export
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models import LoadedModel

FAMILIES = [family for family in zoo.ZOO if family in EXCHANGES]


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(family: str) -> LoadedModel:
    return zoo.loaded(family)


@pytest.fixture(scope="session")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(loaded, tmp_path_factory.mktemp("export") / "hf")

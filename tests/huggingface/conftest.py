"""The zoo's models in both worlds, with the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import zoo

from protlm_jax.huggingface import export
from protlm_jax.huggingface.convert import EXCHANGES
from protlm_jax.models import LoadedModel
from protlm_jax.models.loaded import parts_of

# Of a joint family's specimen, the parts that it is written as.
PARTS = {
    "electra_discriminator": ("electra", "discriminator"),
    "electra_generator": ("electra", "generator"),
}
FAMILIES = [family for family in EXCHANGES if family in zoo.ZOO or family in PARTS]


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def loaded(family: str) -> LoadedModel:
    if family in PARTS:
        joint, part = PARTS[family]
        return parts_of(zoo.loaded(joint))[part]
    return zoo.loaded(family)


@pytest.fixture(scope="session")
def exported(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(loaded, tmp_path_factory.mktemp("export") / "hf")


@pytest.fixture(scope="module")
def exported_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the specimen that the module names as FAMILY."""
    return export(zoo.loaded(request.module.FAMILY), tmp_path_factory.mktemp("once") / "hf")


@pytest.fixture
def folder(exported_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_once, tmp_path / "model"))

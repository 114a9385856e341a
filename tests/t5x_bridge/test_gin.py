"""Every recipe as T5X's own programs parse it: each name is found, each value is one it takes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")

import gin
import t5x.infer
import t5x.train
from gin_files import ROOT

from protlm_jax.models import preset
from protlm_jax.t5x_bridge.partitioning import Partitioner

RECIPES = sorted(file.stem for file in (ROOT / "gin").glob("*.gin"))
MODELS = ["prot_t5_xl", "prot_t5_xxl", "prot_t5_tiny", "prot_bert_tiny"]
GIVEN = ["MODEL_DIR = 'runs/x'", "INITIAL_CHECKPOINT_PATH = 'runs/x/checkpoint_1'"]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Parses files as one of T5X's programs would, from the repository's root."""

    def parsed(program: ModuleType, files: list[str], bindings: list[str]) -> None:
        monkeypatch.setitem(sys.modules, "__main__", program)
        gin.parse_config_files_and_bindings(files, bindings)

    monkeypatch.chdir(ROOT)
    gin.clear_config(clear_constants=True)
    yield parsed
    gin.clear_config(clear_constants=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_parsed(recipe: str, parse) -> None:
    parse(t5x.train, [f"gin/{recipe}.gin"], GIVEN)
    model = copy.deepcopy(gin.query_parameter("%MODEL"))  # which is how gin evaluates
    assert model.optimizer_def is not None
    if "tiny" not in recipe:
        name = recipe.rsplit("_", 1)[0]
        assert model.module.config.d_ff == preset(name).d_ff
        assert model.module.config.dtype == "bfloat16"
    assert copy.deepcopy(gin.query_parameter("%TRAIN_STEPS")) > 0
    rates = copy.deepcopy(gin.query_parameter("trainer.Trainer.learning_rate_fn"))
    assert rates(0) >= 0
    partitioner = copy.deepcopy(gin.query_parameter("train_script.train.partitioner"))
    assert isinstance(partitioner, Partitioner)


@pytest.mark.parametrize("model", MODELS)
def test_inference_is_parsed_for_every_model(model: str, parse) -> None:
    task = "bundled_tokens" if "bert" in model else "bundled_prott5"
    files = [f"gin/models/{model}.gin", f"gin/tasks/{task}.gin", "gin/runs/infer.gin"]
    given = ["CHECKPOINT_PATH = 'runs/x/checkpoint_1'", "INFER_OUTPUT_DIR = 'runs/x/scores'"]
    parse(t5x.infer, files, given)
    assert copy.deepcopy(gin.query_parameter("%MODEL")).module.config.dropout_rate == 0.0

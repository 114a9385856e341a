"""A gin recipe and the config of the same run say the same; T5X need not be installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gin", reason="gin files are read with gin-config")

from gin_files import ROOT, GinFile

from protlm_jax.config.recipes import Phase, load_recipe
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.models import ModelConfig, preset
from protlm_jax.objectives import build_objective
from protlm_jax.training.schedules import build_schedule
from protlm_jax.vocabularies import get_vocabulary

# The gin file, the config file, and which of its phases the gin file is.
RECIPES = [
    ("prot_t5_xl_bfd", "prot_t5_xl_bfd", ""),
    ("prot_t5_xl_uniref50", "prot_t5_xl_uniref50", "uniref50"),
    ("prot_t5_xxl_bfd", "prot_t5_xxl_bfd", ""),
    ("prot_t5_xxl_uniref50", "prot_t5_xxl_uniref50", "uniref50"),
    ("prot_t5_tiny", "tiny.py:t5", ""),
    ("prot_bert_tiny", "tiny.py:bert", ""),
]
T5X_OF_OURS = "adafactor.Adafactor"


def phase_of(config: str, name: str) -> Phase:
    """A phase of a config, with a FASTA that does not exist for those that need one."""
    if config.startswith("tiny.py"):
        overrides = []
    elif name:
        overrides = [f"phases.{phase}.data.fasta=x.fasta" for phase in ("bfd", "uniref50")]
    else:
        overrides = ["data.fasta=x.fasta"]
    file = config if ".py" in config else f"{config}.py"
    phases = load_recipe(str(ROOT / "configs" / file), overrides, Path("runs"))
    return next(phase for phase in phases if phase.name == name)


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe[0])
def pair(request: pytest.FixtureRequest) -> tuple[GinFile, Phase]:
    gin, config, phase = request.param
    return GinFile(f"gin/{gin}.gin"), phase_of(config, phase)


def architecture(recipe: GinFile) -> ModelConfig:
    fields = recipe.arguments("models.architecture")
    return preset(fields.pop("name")).replace(**fields)


def model_class(recipe: GinFile) -> str:
    return recipe["MODEL"].strip("@()")


def test_the_model_and_what_it_is_asked(pair: tuple[GinFile, Phase]) -> None:
    recipe, phase = pair
    assert architecture(recipe) == phase.config.model
    arguments = recipe.arguments(model_class(recipe))
    vocabulary = get_vocabulary(phase.config.model.vocabulary)
    asked = phase.config.objective
    ours = build_objective(asked.name, vocabulary, **asked.options)
    assert build_objective(arguments["objective"], vocabulary) == ours


def test_the_optimizer(pair: tuple[GinFile, Phase]) -> None:
    recipe, phase = pair
    ours = phase.config.optimizer
    if recipe["OPTIMIZER"] == f"@{T5X_OF_OURS}()":
        # T5X's defaults are those of `training.optimizers`: tests/t5x_bridge/test_training.py.
        extra = set(recipe.arguments(T5X_OF_OURS)) - {"decay_rate", "step_offset"}
        assert extra == {"logical_factor_rules"}
        assert (ours.name, ours.weight_decay, ours.clip_norm) == ("adafactor", 0.0, 0.0)
    else:
        assert OptimizerConfig(**recipe.arguments("optimizers.Optimizer")) == ours


def test_the_rate_at_every_step(pair: tuple[GinFile, Phase]) -> None:
    recipe, phase = pair
    fields = recipe.arguments("optimizers.learning_rate")
    theirs = build_schedule(
        ScheduleConfig(**{k: v for k, v in fields.items() if k != "total_steps"}),
        fields["total_steps"],
    )
    ours = build_schedule(phase.config.schedule, phase.config.train.steps)
    first = phase.config.schedule.first_step  # T5X goes on counting
    for step in (0, 1, 99, 100, 101, 500, phase.config.train.steps - 1):
        np.testing.assert_allclose(theirs(first + step), ours(step), rtol=1e-6)


def test_how_long_on_what_and_how_many_rows(pair: tuple[GinFile, Phase]) -> None:
    recipe, phase = pair
    train, data = phase.config.train, phase.config.data
    assert recipe["TRAIN_STEPS"] == phase.config.schedule.first_step + train.steps
    assert recipe["BATCH_SIZE"] == train.batch_size
    assert recipe["CHECKPOINT_PERIOD"] == train.checkpoint_every
    assert recipe["RANDOM_SEED"] == train.seed
    assert recipe["train/utils.DatasetConfig.pack"] == data.pack
    assert set(recipe["TASK_FEATURE_LENGTHS"].values()) == {data.length}
    dataset, kind = recipe["MIXTURE_OR_TASK_NAME"].split("_")
    assert kind == data.task
    assert dataset == ("bundled" if data.fasta is None else phase.name or "bfd")


def test_everything_that_is_asked_for_is_given(pair: tuple[GinFile, Phase]) -> None:
    recipe, _ = pair
    on_the_command_line = {"MODEL_DIR", "INITIAL_CHECKPOINT_PATH"}
    missing = {name for name, value in recipe.values.items() if value == "%gin.REQUIRED"}
    assert missing <= on_the_command_line
    macros: set[Any] = {
        value.removeprefix("%")
        for value in recipe.values.values()
        if isinstance(value, str) and value.startswith("%") and "." not in value
    }
    assert macros <= set(recipe.values)


def test_a_second_phase_continues_the_first_one() -> None:
    for size in ("xl", "xxl"):
        first, second = (GinFile(f"gin/prot_t5_{size}_{on}.gin") for on in ("bfd", "uniref50"))
        both = load_recipe(
            str(ROOT / f"configs/prot_t5_{size}_uniref50.py"),
            [f"phases.{phase}.data.fasta=x.fasta" for phase in ("bfd", "uniref50")],
            Path("runs"),
        )
        assert first["TRAIN_STEPS"] == both[0].config.train.steps
        initializer = second["train_script.train.train_state_initializer_cls"]
        assert initializer == "@initial.FromCheckpoint"
        assert dataclasses.replace(both[0].config.model, dropout_rate=0.0) == dataclasses.replace(
            architecture(first), dropout_rate=0.0
        )

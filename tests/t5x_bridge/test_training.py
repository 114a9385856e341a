"""The same recipe on both roads: equal losses and parameters from equal parameters and batches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: requirements/t5x.txt")

import zoo
from flax.core import unfreeze
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from t5x import adafactor, trainer, utils

from protlm_jax import models
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.t5x_bridge import models as bridge
from protlm_jax.t5x_bridge import optimizers
from protlm_jax.t5x_bridge.partitioning import Partitioner, axis_rules
from protlm_jax.training.guard import SkipRules
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import TrainState
from protlm_jax.training.step import TrainStep

SEED, STEPS = 11, 3
# Wide enough for both Adafactors to factor every matrix.
WIDE = {"d_model": 128, "num_heads": 2, "head_dim": 64, "d_ff": 256}
CONFIGS = {
    "t5": zoo.ZOO["t5"].config.replace(**WIDE),
    "bert": zoo.ZOO["bert"].config,
    "gpt2": zoo.ZOO["gpt2"].config,
}
CLASSES = {
    "t5": bridge.EncoderDecoderModel,
    "bert": bridge.EncoderModel,
    "gpt2": bridge.DecoderModel,
}
OURS: dict[str, dict[str, Any]] = {
    "t5": {"name": "adafactor", "weight_decay": 0.0},
    "bert": {"name": "lamb", "weight_decay": 0.01, "clip_norm": 1.0},
    "gpt2": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "b2": 0.98},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "t5": {"name": "rsqrt", "learning_rate": 1.0, "warmup_steps": 10_000},
    "bert": {"name": "linear", "learning_rate": 1e-2, "warmup_steps": 2},
    "gpt2": {"name": "cosine", "learning_rate": 1e-2, "warmup_steps": 2},
}
TOTAL = 100


class T5xRun:
    """Three updates by T5X's trainer on a (data, model) mesh of 4 devices."""

    def __init__(self, family: str, model_partitions: int) -> None:
        specimen = zoo.ZOO[family]
        definition = optimizers.Optimizer(**OURS[family])
        if family == "t5":
            definition = adafactor.Adafactor(logical_factor_rules=optimizers.factor_rules())
        model = CLASSES[family](CONFIGS[family], specimen.objective, definition, specimen.options)
        self.partitioner = Partitioner(model_partitions, logical_axis_rules=axis_rules())
        self.batches = [zoo.training_batch(family, seed) for seed in range(STEPS)]
        shapes = {name: feature.shape for name, feature in self.batches[0].items()}
        initializer = utils.TrainStateInitializer(
            definition, model.get_initial_variables, shapes, self.partitioner
        )
        self.axes = initializer.train_state_axes
        state = initializer.from_scratch(jax.random.PRNGKey(0))
        self.before = jax.device_get(unfreeze(state.params))
        self.trainer = trainer.Trainer(
            model=model,
            train_state=state,
            partitioner=self.partitioner,
            eval_names=[],
            summary_dir=None,
            train_state_axes=self.axes,
            rng=jax.random.PRNGKey(SEED),
            learning_rate_fn=optimizers.learning_rate(TOTAL, **SCHEDULES[family]),
            num_microbatches=None,
        )
        self.losses = []
        for batch in self.batches:
            summary = self.trainer.train(iter([batch]), 1).result()
            self.losses.append(float(summary["loss"].value))
        self.after = jax.device_get(unfreeze(self.trainer.train_state.params))
        self.trainer.close()


@functools.cache
def t5x_run(family: str, model_partitions: int = 2) -> T5xRun:
    return T5xRun(family, model_partitions)


def native_run(family: str, params: Any) -> tuple[list[float], Any]:
    """Three updates by our own step, from the same parameters and with the same keys."""
    specimen, model = zoo.ZOO[family], models.build(CONFIGS[family])
    axes = models.logical_axes(model)
    schedule = build_schedule(ScheduleConfig(**SCHEDULES[family]), TOTAL)
    optimizer = build_optimizer(OptimizerConfig(**OURS[family]), schedule, axes)
    step = jax.jit(TrainStep(model, specimen.build_objective(), optimizer, axes, SEED))
    guard = SkipRules(model.config.dtype).initial()
    state = TrainState(np.int32(0), params, optimizer.init(params), {}, guard)
    losses = []
    for seed in range(STEPS):
        state, metrics = step(state, zoo.training_batch(family, seed))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("family", CONFIGS)
def test_both_roads_lose_the_same(family: str, assert_close: Any) -> None:
    theirs = t5x_run(family)
    losses, after = native_run(family, theirs.before)
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(theirs.losses, losses, rtol=1e-5)
    # A key's bias shifts all scores of a query alike: its gradient is rounding, and Adam scales it.
    kept = [flatten_dict(tree) for tree in (theirs.after, after)]
    kept = [{p: x for p, x in tree.items() if p[-2:] != ("key", "bias")} for tree in kept]
    assert_close(*kept, 1e-4, "parameters after three updates")


def test_parameters_and_moments_lie_where_the_rules_say() -> None:
    run = t5x_run("bert")
    assert dict(run.partitioner.mesh.shape) == {"data": 4, "model": 2}
    kernel = run.axes.params["encoder"]["mlp"]["wi"]["kernel"]
    assert kernel == PartitionSpec(None, "data", "model")
    # 31 rows of ProtBert's vocabulary and 30 of others do not divide: they are whole.
    found = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            run.axes.param_states, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
    }
    moments = [spec for path, spec in found.items() if "wi" in path and "kernel" in path]
    assert moments == [kernel, kernel], "Adam's two moments"


@pytest.mark.parametrize("family", [f for f in zoo.ZOO if f != "transformer_xl"])
def test_adafactor_knows_the_axes_of_every_family(family: str) -> None:
    """Layers keep their own moments: no mean is taken over a stack."""
    module = models.build(zoo.ZOO[family].config)
    axes = models.logical_axes(module)
    definition = adafactor.Adafactor(logical_factor_rules=optimizers.factor_rules())
    definition.set_param_axes(
        jax.tree.map(lambda n: PartitionSpec(*n), axes, is_leaf=lambda n: isinstance(n, tuple))
    )
    params = models.abstract_params(module)
    shapes = flatten_dict(params)
    moments = flatten_dict(jax.eval_shape(definition.init_state, params).param_states)
    for path, names in flatten_dict(axes).items():
        kept = [m for m in (moments[path].v, moments[path].v_row) if m.shape != (1,)]
        if "layers" in names:
            assert kept[0].shape[0] == shapes[path].shape[0], path


def test_constraints_on_activations_are_in_the_program() -> None:
    run = t5x_run("t5")
    text = run.trainer._partitioned_train_step.lower(
        run.trainer.train_state, run.batches[0]
    ).as_text()
    assert text.count("sharding_constraint") >= 14


def test_microbatches_weigh_alike() -> None:
    """T5X sums their gradients, and gives all of them one key; the logged loss is over residues."""
    model = bridge.EncoderModel(zoo.ZOO["bert"].config, "masked", optimizers.Optimizer())
    params, batch = zoo.loaded("bert").params, zoo.training_batch("bert", 0)
    key = jax.random.PRNGKey(0)
    parts = [{n: x[4 * i : 4 * i + 4] for n, x in batch.items()} for i in range(2)]
    gradient = jax.jit(jax.grad(model.loss_fn, has_aux=True))
    made = [gradient(params, part, jax.random.split(key)[1]) for part in parts]
    total, measured, _ = jax.jit(
        lambda p, b: trainer.accumulate_grads_microbatched(model, _State(p), b, key, 2)
    )(params, batch)
    expected = jax.tree.map(np.add, *(grads for grads, _ in made))
    for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
    of_parts = [metrics["loss"] for _, metrics in made]
    mean = sum(m.total for m in of_parts) / sum(m.count for m in of_parts)
    np.testing.assert_allclose(measured["loss"].compute(), mean, rtol=1e-5)


class _State:
    """What `accumulate_grads_microbatched` reads of a train state."""

    def __init__(self, params: Any) -> None:
        self.params, self.flax_mutables = params, {}

"""One seed, two meshes: equal losses; and constraints that are really in the program."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from zoo import ZOO, training_batch

from protlm_jax import models, partitioning
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import OptimizerConfig, build_optimizer
from protlm_jax.training.schedules import ScheduleConfig, build_schedule
from protlm_jax.training.state import init_state, state_layout

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
STEPS = 20
# The optimizer of each family's published runs; AdamW elsewhere.
OPTIMIZERS = {"bert": "lamb", "t5": "adafactor"}


def batches(family: str) -> list[dict[str, np.ndarray]]:
    """Random residues in packed rows."""
    return [training_batch(family, seed) for seed in range(STEPS)]


class Trained:
    """A compiled step on a mesh, and what it gave."""

    def __init__(self, family: str, shape: dict[str, int], accumulate: int = 1) -> None:
        objective = ZOO[family].build_objective()
        mesh = partitioning.make_mesh(shape)
        rows = partitioning.batch_sharding(mesh, 8)
        model = models.build(ZOO[family].config)
        axes = models.logical_axes(model)
        name = OPTIMIZERS.get(family, "adamw")
        optimizer = build_optimizer(
            OptimizerConfig(name=name),
            build_schedule(ScheduleConfig("constant", 1e-2), STEPS),
            axes,
        )
        abstract, layout = state_layout(model, optimizer, mesh, batch_size=8)
        step = steps.TrainStep(model, objective, optimizer, axes, 0, accumulate)
        self.layout = layout
        self.compiled = steps.compile_step(step, mesh, layout, rows)
        self.state = init_state(model, optimizer, layout, seed=0, batch_size=8)
        self.first = jax.device_put(batches(family)[0], rows)
        self.lowered = functools.partial(self.compiled.lower, abstract, self.first)
        self.rows, self.family = rows, family

    def losses(self) -> np.ndarray:
        losses = []
        for batch in batches(self.family):
            self.state, metrics = self.compiled(self.state, jax.device_put(batch, self.rows))
            losses.append(float(metrics["loss"]))
        return np.array(losses)


@pytest.mark.parametrize("family", ZOO)
def test_eight_devices_give_the_losses_of_one(family: str) -> None:
    one, eight = Trained(family, ONE), Trained(family, EIGHT)
    expected, found = one.losses(), eight.losses()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)
    assert expected[-1] < expected[0], "the model must have moved for this to mean anything"
    specs = [s.spec for s in jax.tree.leaves(eight.layout.params)]
    used = set(itertools.chain.from_iterable(spec for spec in specs))
    assert {"fsdp", "tensor"} <= used


def test_the_lowered_step_holds_sharding_constraints() -> None:
    """`with mesh:` would drop them silently, and a pod would run out of memory."""
    trained = Trained("bert", EIGHT)
    text = trained.lowered().as_text()
    # The embedding, and in the block (one function, called by each layer) q, k, v, the mixed heads
    # and two sums; backward as many again.
    assert text.count("sharding_constraint") >= 14


def test_optimizer_state_is_sharded_like_its_parameters() -> None:
    layout = Trained("bert", EIGHT).layout
    kernel = layout.params["encoder"]["mlp"]["wi"]["kernel"].spec
    moments = [
        sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(layout.opt_state)
        if "wi" in str(path) and "kernel" in str(path)
    ]
    assert kernel == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert moments == [kernel, kernel]


def test_a_memory_is_laid_out_like_the_rows_and_put_back_in_their_order() -> None:
    """Carried through accumulation too: the parts are rows, and each has its own memory."""
    whole, parts = Trained("transformer_xl", EIGHT), Trained("transformer_xl", EIGHT, accumulate=2)
    rows = whole.rows.spec[0]
    assert {s.spec[0] for s in jax.tree.leaves(whole.layout.carry)} == {rows}
    np.testing.assert_allclose(parts.losses(), whole.losses(), rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (parts.state.carry, whole.state.carry)), strict=True):
        assert a.sharding.spec[0] == rows
        assert len(np.unique(np.asarray(a).reshape(8, -1), axis=0)) > 1, "rows must differ"
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    """Denoising draws nothing inside the step, so that parts and whole see the same corruption."""
    whole, parts = Trained("t5", ONE), Trained("t5", ONE, accumulate=4)
    np.testing.assert_allclose(parts.losses(), whole.losses(), rtol=1e-5)

"""One seed, two meshes: equal losses; and constraints that are really in the program."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from zoo import ZOO, kinds_first, training_batch

from protlm_jax import models, partitioning
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import OptimizerConfig, build_optimizer
from protlm_jax.training.schedules import ScheduleConfig, build_schedule
from protlm_jax.training.state import TrainState, compile_init, state_layout

MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "eight": {"data": 2, "fsdp": 2, "tensor": 2},
}
STEPS = 20
# The optimizer of each family's published runs; AdamW elsewhere.
OPTIMIZERS = {"bert": "lamb", "t5": "adafactor"}


def batches(family: str) -> list[dict[str, np.ndarray]]:
    """Random residues in packed rows."""
    return [training_batch(family, seed) for seed in range(STEPS)]


class Trained:
    """A step on a mesh, and what it gave."""

    def __init__(self, family: str, shape: str, accumulate: int = 1) -> None:
        objective = ZOO[family].build_objective()
        mesh = partitioning.make_mesh(MESHES[shape])
        self.family, self.rows = family, partitioning.batch_sharding(mesh, 8)
        model = models.build(ZOO[family].config)
        axes = models.logical_axes(model)
        name = OPTIMIZERS.get(family, "adamw")
        optimizer = build_optimizer(
            OptimizerConfig(name=name),
            build_schedule(ScheduleConfig("constant", 1e-2), STEPS),
            axes,
        )
        self.abstract, self.layout = state_layout(model, optimizer, mesh, batch_size=8)
        step = steps.TrainStep(model, objective, optimizer, axes, 0, accumulate)
        self.compiled = steps.compile_step(step, mesh, self.layout, self.rows)
        self.evaluate = steps.compile_evaluation(step, mesh, self.layout, self.rows)
        self.init = compile_init(model, optimizer, self.layout, 8)

    @functools.cached_property
    def result(self) -> tuple[np.ndarray, TrainState]:
        """Its losses, and the last state."""
        losses, state = [], self.init(jax.random.key(0))
        for batch in batches(self.family):
            state, metrics = self.compiled(state, jax.device_put(batch, self.rows))
            losses.append(float(metrics["loss"]))
        return np.array(losses), state


@functools.cache
def trained(family: str, shape: str, accumulate: int = 1) -> Trained:
    """Made once, whatever is asked of it."""
    return Trained(family, shape, accumulate)


@pytest.mark.parametrize("family", kinds_first())
def test_eight_devices_give_the_losses_of_one(family: str) -> None:
    eight = trained(family, "eight")
    expected, found = trained(family, "one").result[0], eight.result[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)
    assert expected[-1] < expected[0], "the model must have moved for this to mean anything"
    specs = [s.spec for s in jax.tree.leaves(eight.layout.params)]
    used = set(itertools.chain.from_iterable(spec for spec in specs))
    assert {"fsdp", "tensor"} <= used


def test_the_lowered_step_holds_sharding_constraints() -> None:
    """`with mesh:` would drop them silently, and a pod would run out of memory."""
    eight = trained("bert", "eight")
    text = eight.compiled.lower(eight.abstract, batches("bert")[0]).as_text()
    # The embedding, and in the block (one function, called by each layer) q, k, v, the mixed heads
    # and two sums; backward as many again.
    assert text.count("sharding_constraint") >= 14


def test_optimizer_state_is_sharded_like_its_parameters() -> None:
    layout = trained("bert", "eight").layout
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
    whole, parts = trained("transformer_xl", "eight"), trained("transformer_xl", "eight", 2)
    rows = whole.rows.spec[0]
    assert {s.spec[0] for s in jax.tree.leaves(whole.layout.carry)} == {rows}
    np.testing.assert_allclose(parts.result[0], whole.result[0], rtol=1e-5)
    carries = (made.result[1].carry for made in (parts, whole))
    for a, b in zip(*map(jax.tree.leaves, carries), strict=True):
        assert a.sharding.spec[0] == rows
        assert len(np.unique(np.asarray(a).reshape(8, -1), axis=0)) > 1, "rows must differ"
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    """Denoising draws nothing inside the step, so that parts and whole see the same corruption."""
    whole, parts = trained("t5", "one"), trained("t5", "one", 4)
    np.testing.assert_allclose(parts.result[0], whole.result[0], rtol=1e-5)


@pytest.mark.parametrize("family", ["t5", "transformer_xl"])
def test_evaluation_in_parts_gives_the_sums_and_the_memory_of_the_whole(family: str) -> None:
    """Of a second batch, which follows the first; these two draw nothing. It takes less memory."""
    scores, temporary = [], []
    for accumulate in (1, 4):
        made = trained(family, "one", accumulate)
        state, rng = made.init(jax.random.key(0)), jax.random.key(1)
        first, second = (jax.device_put(batch, made.rows) for batch in batches(family)[:2])
        _, carry = made.evaluate(state.params, first, rng, state.carry)
        scores.append(made.evaluate(state.params, second, rng, carry))
        lowered = made.evaluate.lower(made.abstract.params, second, rng, made.abstract.carry)
        temporary.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    for one, other in zip(*map(jax.tree.leaves, scores), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert temporary[1] < 0.7 * temporary[0], temporary

"""One seed, two meshes: equal losses; and constraints that are really in the program."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from zoo import ROW, ZOO, kinds_first, training_batch

from protlm_jax import models, partitioning
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.planning.collectives import collectives_by_axis
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import (
    TrainState,
    abstract_state,
    compile_init,
    lay_out,
    state_layout,
)

MESHES = {
    "one": {"data": 1, "fsdp": 1, "tensor": 1},
    "eight": {"data": 2, "fsdp": 2, "tensor": 2},
    "slices": {"slices": 2, "data": 1, "fsdp": 2, "tensor": 2},
}
STEPS = 20
# The optimizer of each family's published runs; AdamW elsewhere.
OPTIMIZERS = {"bert": "lamb", "t5": "adafactor"}


def batches(family: str) -> list[dict[str, np.ndarray]]:
    """Random residues in packed rows."""
    return [training_batch(family, seed) for seed in range(STEPS)]


class Trained:
    """A step on a mesh, and what it gave."""

    def __init__(self, family: str, shape: str, accumulate: int, stream: str) -> None:
        objective = ZOO[family].build_objective()
        mesh = partitioning.make_mesh(MESHES[shape])
        self.family, self.mesh, self.rows = family, mesh, partitioning.batch_sharding(mesh, 8)
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
        sizes = {"length": ROW, "embed": model.config.d_model}
        rules = partitioning.step_rules(stream, sizes, mesh)
        self.compiled = steps.compile_step(step, mesh, self.layout, self.rows, rules)
        self.evaluate = steps.compile_evaluation(step, mesh, self.layout, self.rows, rules)
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
def trained(family: str, shape: str, accumulate: int = 1, stream: str = "whole") -> Trained:
    """Made once, whatever is asked of it."""
    return Trained(family, shape, accumulate, stream)


@pytest.mark.parametrize("family", kinds_first(exact=("bert", "t5")))
def test_eight_devices_give_the_losses_of_one(family: str) -> None:
    eight = trained(family, "eight")
    expected, found = trained(family, "one").result[0], eight.result[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)
    assert expected[-1] < expected[0], "the model must have moved for this to mean anything"
    specs = [s.spec for s in jax.tree.leaves(eight.layout.params)]
    used = set(itertools.chain.from_iterable(spec for spec in specs))
    assert {"fsdp", "tensor"} <= used


def test_slices_with_a_split_stream_give_the_losses_of_one_device() -> None:
    split = trained("bert", "slices", stream="length")
    np.testing.assert_allclose(split.result[0], trained("bert", "one").result[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("stream", "at"), [("length", 1), ("embed", 2)])
def test_a_split_stream_is_in_the_program(stream: str, at: int) -> None:
    step = trained("bert", "eight", stream=stream)
    text = step.compiled.lower(step.abstract, batches("bert")[0]).as_text()
    dimensions = [r'\{"data", "fsdp"\}', r"\{\}", r"\{\}"]
    dimensions[at] = r'\{"tensor"\}'
    constraints = re.findall(rf"sharding_constraint .*\[{', '.join(dimensions)}\]", text)
    assert len(constraints) >= 3, "the embedding, and what follows each sublayer"


def test_slices_say_nothing_to_each_other_but_sums() -> None:
    split = trained("bert", "slices", stream="length")
    text = split.compiled.lower(split.abstract, batches("bert")[0]).compile().as_text()
    spoken = collectives_by_axis(text, split.mesh.shape)
    across = {axes: kinds for axes, kinds in spoken.items() if "slices" in axes}
    assert {kind for kinds in across.values() for kind in kinds} == {"all-reduce"}
    within = {kind for axes, kinds in spoken.items() if axes not in across for kind in kinds}
    assert "all-gather" in within, "of FSDP; the reading of groups would otherwise mean nothing"


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


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 2, 4)])
def test_factored_moments_are_sharded_like_their_parameters(shape: tuple[int, ...]) -> None:
    """What a device holds of rows and columns: sums of what it holds of the matrix."""
    config = t5_config(d_model=256, num_layers=2, num_heads=4, head_dim=64, d_ff=512)
    model = models.build(config.replace(num_decoder_layers=2))
    axes = models.logical_axes(model)
    schedule = build_schedule(ScheduleConfig("constant", 1e-2), STEPS)
    abstract = abstract_state(model, build_optimizer(OptimizerConfig("adafactor"), schedule, axes))
    layout = lay_out(abstract, axes, AbstractMesh(shape, partitioning.MESH_AXES))
    (state,) = (s for s in abstract.opt_state if hasattr(s, "v_row"))
    (sharding,) = (s for s in layout.opt_state if hasattr(s, "v_row"))
    factored = 0
    for path, param in jax.tree_util.tree_leaves_with_path(abstract.params):
        names, own, *moments = (
            functools.reduce(lambda tree, key: tree[key.key], path, tree)
            for tree in (axes, layout.params, *state[1:3], *sharding[1:3])
        )
        if moments[0].ndim < 2 or moments[0].shape[1] == 1:
            continue  # not factored: a vector, or a table with a short side
        factored += 1
        local = own.shard_shape(param.shape)
        assert np.prod(local) < np.prod(param.shape)
        width = names.index("embed")  # the other side is that of the MLP, or of all heads
        whole, held = (
            (shape[width], np.prod(shape[1:]) // shape[width]) for shape in (param.shape, local)
        )
        found = {
            (moment.shape[1], split.shard_shape(moment.shape)[1])
            for moment, split in zip(moments[:2], moments[2:], strict=True)
        }
        assert found == set(zip(whole, held, strict=True)), path
    assert factored == 6 + 10, "kernels of the encoder's block and of the decoder's"


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

"""One seed, two meshes: equal losses; and constraints that are really in the program."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest

from protlm_jax import models, partitioning
from protlm_jax.models.families.bert import bert_config
from protlm_jax.models.families.t5 import t5_config
from protlm_jax.objectives import build_objective
from protlm_jax.training import step as steps
from protlm_jax.training.optimizers import OptimizerConfig, build_optimizer
from protlm_jax.training.schedules import ScheduleConfig, build_schedule
from protlm_jax.training.state import init_state, state_layout
from protlm_jax.vocabularies import get_vocabulary

SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 2, "head_dim": 16, "d_ff": 64}
MODELS = {
    "bert": bert_config(**SIZES, max_positions=16),
    "t5": t5_config(**SIZES, num_decoder_layers=2, dropout_rate=0.0),
}
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
STEPS = 20


def batches(family: str) -> list[dict[str, np.ndarray]]:
    """Random residues in packed rows."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        low, high = (5, 25) if family == "bert" else (3, 23)
        tokens = rng.integers(low, high, (8, 16)).astype(np.int32)
        segments = np.repeat([[1] * 9 + [2] * 5 + [0] * 2], 8, axis=0).astype(np.int32)
        positions = np.repeat([[*range(9), *range(5), 0, 0]], 8, axis=0).astype(np.int32)
        if family == "bert":
            made.append({"input_tokens": tokens, "segment_ids": segments, "positions": positions})
            continue
        hidden = np.where(rng.random(tokens.shape) < 0.15, 127, tokens).astype(np.int32)
        sides = {"segment_ids": segments, "positions": positions}
        made.append(
            {
                **{f"encoder_{name}": value for name, value in sides.items()},
                **{f"decoder_{name}": value for name, value in sides.items()},
                "encoder_input_tokens": hidden,
                "decoder_input_tokens": np.roll(tokens, 1, axis=1),
                "decoder_target_tokens": tokens,
                "decoder_loss_weights": (segments > 0).astype(np.int32),
            }
        )
    return made


class Trained:
    """A compiled step on a mesh, and what it gave."""

    def __init__(self, family: str, shape: dict[str, int], accumulate: int = 1) -> None:
        config = MODELS[family]
        vocabulary = get_vocabulary(config.vocabulary)
        objective = build_objective("masked" if family == "bert" else "denoising", vocabulary)
        mesh = partitioning.make_mesh(shape)
        rows = partitioning.batch_sharding(mesh, 8)
        model = models.build(config)
        axes = models.logical_axes(model)
        name = "lamb" if family == "bert" else "adafactor"
        optimizer = build_optimizer(
            OptimizerConfig(name=name),
            build_schedule(ScheduleConfig("constant", 1e-2), STEPS),
            axes,
        )
        abstract, layout = state_layout(model, optimizer, mesh)
        step = steps.TrainStep(model, objective, optimizer, axes, 0, accumulate)
        self.layout = layout
        self.compiled = steps.compile_step(step, mesh, layout, rows)
        self.state = init_state(model, optimizer, layout, seed=0)
        self.first = jax.device_put(batches(family)[0], rows)
        self.lowered = functools.partial(self.compiled.lower, abstract, self.first)
        self.rows, self.family = rows, family

    def losses(self) -> np.ndarray:
        losses = []
        for batch in batches(self.family):
            self.state, metrics = self.compiled(self.state, jax.device_put(batch, self.rows))
            losses.append(float(metrics["loss"]))
        return np.array(losses)


@pytest.mark.parametrize("family", MODELS)
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


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    """Denoising draws nothing inside the step, so that parts and whole see the same corruption."""
    whole, parts = Trained("t5", ONE), Trained("t5", ONE, accumulate=4)
    np.testing.assert_allclose(parts.losses(), whole.losses(), rtol=1e-5)

"""Updates that are left out: the scale of float16, a run's own rules, and nothing elsewhere."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO, training_batch

from protlm_jax import models, partitioning
from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.training import step as steps
from protlm_jax.training.guard import HISTORY, Guard, SkipRules, State
from protlm_jax.training.optimizers import build_optimizer
from protlm_jax.training.schedules import build_schedule
from protlm_jax.training.state import TrainState, compile_init, state_layout

Step = tuple[Any, TrainState]


@functools.cache
def programs(family: str, dtype: str, accumulate: int) -> tuple[Any, Any]:
    """The step on one device and what makes its first state, compiled once."""
    specimen = ZOO[family]
    model = models.build(specimen.config.replace(dtype=dtype))
    mesh = partitioning.make_mesh({"data": 1})
    axes = models.logical_axes(model)
    schedule = build_schedule(ScheduleConfig("constant", 1e-2), 100)
    optimizer = build_optimizer(OptimizerConfig("adamw"), schedule, axes)
    _, layout = state_layout(model, optimizer, mesh, batch_size=8)
    step = steps.TrainStep(model, specimen.build_objective(), optimizer, axes, 0, accumulate)
    compiled = steps.compile_step(step, mesh, layout, partitioning.batch_sharding(mesh, 8))
    return compiled, compile_init(model, optimizer, layout, 8)


def started(family: str, dtype: str, accumulate: int = 1) -> Step:
    """A compiled step on one device, and a first state."""
    compiled, init = programs(family, dtype, accumulate)
    return compiled, init(jax.random.key(0))


def at_scale(state: TrainState, scale: float) -> TrainState:
    return state.replace(guard={**state.guard, "scale": jnp.float32(scale)})


def scale_state(scale: float, finite_steps: int = 0) -> State:
    return {
        "scale": jnp.float32(scale),
        "finite_steps": jnp.int32(finite_steps),
        "skipped": jnp.int32(3),
    }


@pytest.mark.parametrize(
    ("scale", "finite_steps", "value", "after"),
    [
        (8.0, 5, 1.0, (8.0, 6, 3)),
        (8.0, 1999, 1.0, (16.0, 0, 3)),
        (2.0**24, 1999, 1.0, (2.0**24, 0, 3)),
        (8.0, 5, np.inf, (4.0, 0, 4)),
        (8.0, 5, np.nan, (4.0, 0, 4)),
        (1.0, 5, np.inf, (1.0, 0, 3)),  # no scale can help: not skipped, and the run stops
    ],
)
def test_the_scale_follows_what_happened(
    scale: float, finite_steps: int, value: float, after: tuple[float, int, int]
) -> None:
    state = scale_state(scale, finite_steps)
    guard = Guard.of(SkipRules("float16"), state, jnp.float32(value), {"a": jnp.ones(3)})
    found = guard.after()
    assert tuple(float(found[name]) for name in state) == after
    assert bool(guard.skipped) == (after[2] == 4)


MARKS = {"t5": pytest.mark.long, "xlnet": pytest.mark.slow}


@pytest.mark.parametrize(
    "family", ["bert", "transformer_xl", *(pytest.param(f, marks=m) for f, m in MARKS.items())]
)
def test_float16_gives_the_gradients_of_float32(family: str) -> None:
    """Attention's masks, norms and logits included; and the scale leaves no trace in them."""
    batch = training_batch(family, seed=1)
    compiled, state = started(family, "float32")
    _, expected = compiled(state, batch)
    compiled, state = started(family, "float16")
    after, found = compiled(at_scale(state, 1024.0), batch)
    assert not found["skipped/now"] and int(after.guard["finite_steps"]) == 1
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=5e-3)
    np.testing.assert_allclose(found["gradient_norm"], expected["gradient_norm"], rtol=3e-2)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_overflow_changes_nothing_but_the_scale(accumulate: int) -> None:
    compiled, state = started("bert", "float16", accumulate)
    state = at_scale(state, 2.0**24)
    before = jax.device_get(state)
    seen = []
    for seed in range(12):
        state, metrics = compiled(state, training_batch("bert", seed))
        seen.append(bool(metrics["skipped/now"]))
        assert np.isfinite([metrics[n] for n in ("loss", "gradient_norm", "update_norm")]).all()
        if seed == 0:
            assert seen[0] and metrics["update_norm"] == metrics["gradient_norm"] == 0
            after = jax.device_get(state)
            jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
            moments = (after.opt_state[:-1], before.opt_state[:-1])
            jax.tree.map(np.testing.assert_array_equal, *moments)
            assert int(after.step) == int(after.opt_state[-1].count) == 1
    skipped = sum(seen)
    assert 0 < skipped < 12 and not seen[-1]
    assert float(state.guard["scale"]) == 2.0 ** (24 - skipped)
    assert int(metrics["skipped/in_all"]) == skipped
    assert int(state.opt_state[0].count) == 12 - skipped, "Adam counts the updates it made"


def test_other_dtypes_know_nothing_of_it() -> None:
    checks = {}
    for dtype in ("float32", "bfloat16", "float16"):
        compiled, state = started("bert", dtype)
        assert bool(state.guard) == (dtype == "float16")
        lowered = compiled.lower(state, training_batch("bert", 0))
        checks[dtype] = lowered.as_text().count("is_finite")
        metrics = lowered.out_info[1]
        told = [name for name in metrics if name.startswith(("loss_scale", "skipped"))]
        assert bool(told) == (dtype == "float16")
    arrays = len(jax.tree.leaves(state.params))
    assert checks["float32"] == checks["bfloat16"] == checks["float16"] - arrays - 1


def test_a_skipped_step_leaves_an_empty_memory() -> None:
    """What overflowed would else be seen, and overflow, for as long as it is remembered."""
    step, state = started("transformer_xl", "float16")
    state, _ = step(state, training_batch("transformer_xl", 0))
    assert state.carry["past_segments"].any() and state.carry["past"].any()
    state, metrics = step(at_scale(state, np.inf), training_batch("transformer_xl", 1))
    assert metrics["skipped/now"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.carry))


def test_a_run_leaves_out_what_is_not_finite_or_far_too_large() -> None:
    rules = SkipRules("bfloat16", limit=3, above=4.0)
    state = rules.initial()
    assert SkipRules("bfloat16").initial() == {} and "scale" not in state
    seen = []
    series = [50.0] * HISTORY + [199.0, 203.0, np.nan, 1.0, 1e6]
    for norm in series:
        guard = Guard.of(rules, state, jnp.float32(1.0), {"a": jnp.array([norm, 0.0])})
        state = guard.after()
        seen.append((bool(guard.skipped), int(state["in_a_row"])))
    # Nothing is judged before there is a history; then the limit is 200.
    assert seen[:HISTORY] == [(False, 0)] * HISTORY
    assert seen[HISTORY:] == [(False, 0), (True, 1), (True, 2), (False, 0), (True, 1)]
    assert int(state["skipped"]) == 3
    assert np.isfinite(state["norms"]).all() and float(state["norms"][-1]) == 1e6
    not_finite = Guard.of(rules, state, jnp.float32(np.inf), {"a": jnp.zeros(2)})
    old, new = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    np.testing.assert_array_equal(not_finite.kept(old, new)["w"], old["w"])

"""Every schedule against its closed form, at the corners and in between."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from protlm_jax.config.run import ScheduleConfig
from protlm_jax.errors import ProtlmError
from protlm_jax.training.schedules import build_schedule


def rates(config: ScheduleConfig, total: int, steps: list[int]) -> np.ndarray:
    schedule = jax.jit(build_schedule(config, total))
    return np.array([schedule(np.int32(step)) for step in steps])


@pytest.mark.parametrize(
    ("peak", "warmup", "total"),
    [(2e-3, 40_000, 300_000), (1e-5, 20_000, 847_000), (2e-3, 5000, 150_000)],
    ids=["ProtBert", "ProtXLNet", "ProtAlbert"],
)
def test_linear(peak: float, warmup: int, total: int) -> None:
    steps = [0, 1, warmup // 2, warmup - 1, warmup, warmup + 1, (warmup + total) // 2]
    steps += [total - 1, total, total + 1]
    expected = [
        peak * min(step / warmup, max(total - step, 0) / (total - warmup)) for step in steps
    ]
    actual = rates(ScheduleConfig("linear", peak, warmup), total, steps)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * peak)
    assert actual[0] == 0 and actual[4] == np.float32(peak)


def test_t5_inverse_square_root() -> None:
    steps = [0, 1, 9_999, 10_000, 10_001, 40_000, 991_500]
    actual = rates(ScheduleConfig("rsqrt", 1.0, 10_000), 991_500, steps)
    expected = [1 / math.sqrt(max(step, 1e4)) for step in steps]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(actual[:4], 0.01, rtol=1e-6)
    doubled = rates(ScheduleConfig("rsqrt", 2.0, 10_000), 991_500, steps)
    np.testing.assert_allclose(doubled, 2 * actual, rtol=1e-6)


def test_cosine() -> None:
    total, warmup, peak = 110, 10, 0.5
    steps = [0, 5, 10, 35, 60, 110, 200]
    actual = rates(ScheduleConfig("cosine", peak, warmup), total, steps)
    angle = [math.pi * min(max(step - warmup, 0) / (total - warmup), 1) for step in steps]
    expected = [
        peak * step / warmup if step < warmup else peak * (1 + math.cos(a)) / 2
        for step, a in zip(steps, angle, strict=True)
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig("linear", 2e-3, 40),
        ScheduleConfig("cosine", 2e-3, 40),
        ScheduleConfig("rsqrt", 1.0, 10),
        ScheduleConfig("constant", 1e-3, 40),
        ScheduleConfig("wsd", 1e-3, 40, decay_steps=150),
    ],
)
def test_parts_that_continue_each_other_are_the_whole(config: ScheduleConfig) -> None:
    """300 steps and 100 more, as one schedule of 400."""
    whole = rates(config, 400, list(range(401)))
    total = 400 if config.name in ("linear", "cosine", "wsd") else 0
    first = dataclasses.replace(config, total_steps=total)
    second = dataclasses.replace(first, first_step=300)
    np.testing.assert_array_equal(rates(first, 300, list(range(301))), whole[:301])
    np.testing.assert_array_equal(rates(second, 100, list(range(101))), whole[300:])


def test_warmup_stable_decay() -> None:
    config = ScheduleConfig("wsd", 0.5, 10, decay_steps=40)
    steps = [0, 5, 10, 60, 61, 80, 100, 120]
    expected = [0.5 * min(s / 10, 1, max(100 - s, 0) / 40) for s in steps]
    np.testing.assert_allclose(rates(config, 100, steps), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.1] * 4), (4, [0, 0.05, 0.1, 0.1])])
def test_constant(warmup: int, expected: list[float]) -> None:
    actual = rates(ScheduleConfig("constant", 0.1, warmup), 10, [0, 2, 4, 100])
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScheduleConfig("linear", 1e-3, 10), "warmup_steps=10 leaves nothing of 10"),
        (ScheduleConfig("rsqrt", 1.0, 0), "at least 1"),
        (ScheduleConfig("wsd", 1.0, 4, decay_steps=7), "decay_steps=7 must be 1 to 6"),
        (ScheduleConfig("linear", 1e-3, 1, 5, 14), "total_steps=14 ends before the run"),
        (ScheduleConfig("square", 1.0, 0), "'square' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_named(config: ScheduleConfig, message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        build_schedule(config, 10)

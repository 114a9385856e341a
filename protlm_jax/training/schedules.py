"""Learning-rate schedules."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from protlm_jax.config.run import ScheduleConfig
from protlm_jax.errors import ProtlmError


def build_schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    """The function from an update's step (int32 scalar) to its learning rate (fp32 scalar).

    Decaying schedules reach 0 after the run's `total_steps` updates, unless the config says
    otherwise. Raises a ProtlmError for an unknown name, a warmup without steps to decay in, or a
    schedule that ends before the run. ProtBert is ("linear", 2e-3, 40_000); ProtT5 ("rsqrt", 1.0,
    10_000).
    """
    last = config.first_step + total_steps
    if config.total_steps and config.total_steps < last:
        raise ProtlmError(
            f"schedule.total_steps={config.total_steps} ends before the run does, at step {last}: "
            f"raise it, or lower train.steps"
        )
    whole = _whole_schedule(config, config.total_steps or last)
    return (lambda step: whole(step + config.first_step)) if config.first_step else whole


def _whole_schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.name == "rsqrt":
        return rsqrt(peak, warmup)
    if config.name in ("linear", "cosine") and warmup >= total_steps:
        raise ProtlmError(
            f"schedule.warmup_steps={warmup} leaves nothing of {total_steps} training steps to "
            f"decay in: lower schedule.warmup_steps or raise train.steps"
        )
    if config.name == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.name == "wsd":
        decay = config.decay_steps
        if not 0 < decay <= total_steps - warmup:
            raise ProtlmError(
                f"schedule.decay_steps={decay} must be 1 to {total_steps - warmup} for wsd: "
                f"{total_steps} steps without {warmup} of warmup"
            )
        stable = total_steps - warmup - decay
        schedule = optax.linear_schedule(peak, 0.0, decay, transition_begin=stable)
    elif config.name == "linear":
        schedule = optax.linear_schedule(peak, 0.0, total_steps - warmup)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, total_steps - warmup)
    else:
        raise ProtlmError(
            f"schedule.name={config.name!r} is unknown: use constant, linear, cosine, rsqrt or wsd"
        )
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def rsqrt(factor: float, floor: int) -> optax.Schedule:
    """T5's `factor / sqrt(max(step, floor))` (Raffel et al. 2020, section 3.1.2).

    T5 and ProtT5 use factor 1 and floor 10,000 with Adafactor, whose update is relative to each
    parameter's scale: 0.01 of it during the first 10,000 steps.
    """
    if floor < 1:
        raise ProtlmError(
            "schedule.warmup_steps must be at least 1 for rsqrt (T5 uses 10000): "
            "1/sqrt(step) has no value at step 0"
        )
    return lambda step: factor / jnp.sqrt(jnp.maximum(jnp.asarray(step, jnp.float32), floor))

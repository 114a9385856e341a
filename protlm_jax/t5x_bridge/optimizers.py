"""Optimizers and schedules for T5X: its Adafactor told of our axes, and our own.

T5X gives the learning rate of each step to the optimizer (`trainer.Trainer.learning_rate_fn`), so
that here they are apart: `learning_rate` makes a schedule of `training.schedules`, and `Optimizer`
an optimizer of `training.optimizers` without one.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax.core import freeze, unfreeze
from flax.serialization import to_state_dict
from jax.sharding import PartitionSpec
from t5x import adafactor
from t5x import optimizers as t5x_optimizers

from protlm_jax.config.run import OptimizerConfig, ScheduleConfig
from protlm_jax.training.optimizers import build_optimizer, opt_state_axes
from protlm_jax.training.schedules import build_schedule


def factor_rules() -> dict[str, adafactor.FactorDim]:
    """`Adafactor.logical_factor_rules` for our parameters.

    Layers are a batch, and (heads, kv) one dimension of a matrix, as in `training.optimizers`: on
    the full-size models both Adafactors make the same updates. On small ones they do not: T5X
    factors the matrices of a stack whatever their size, and ours those with both sides of at
    least 128.
    """
    names = ("embed_in", "embed_out", "positions", "types", "answers", "frequencies")
    # They occur in arrays of rank 2 alone, where T5X factors by size whatever the rules say.
    unfactored = dict.fromkeys(names, adafactor.FactorDim.NONE)
    return {**unfreeze(adafactor.standard_logical_factor_rules()), **unfactored}


def learning_rate(total_steps: int, **fields: Any) -> optax.Schedule:
    """The rate at each step.

    Args:
        total_steps: where a decaying schedule reaches 0.
        fields: of `ScheduleConfig`.

    Raises:
        ProtlmError: see `build_schedule`.
    """
    return build_schedule(ScheduleConfig(**fields), total_steps)


class Optimizer(t5x_optimizers.OptaxWrapper):
    """AdamW, LAMB or Adafactor of `training.optimizers`, statistics per layer of a stack.

    Args:
        fields: of `OptimizerConfig`.
    """

    def __init__(self, **fields: Any) -> None:
        self._config = OptimizerConfig(**fields)
        super().__init__(optax.identity())

    def set_param_axes(self, param_logical_axes: Any) -> None:
        """T5X calls this with the axes of the parameters, before anything else."""
        self._axes = jax.tree.map(
            tuple, unfreeze(param_logical_axes), is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
        # Updates are linear in the rate: `apply_gradient` multiplies by that of the step.
        self.optax_optimizer = build_optimizer(self._config, lambda count: 1.0, self._axes)

    def init_state(self, params: Any) -> Any:
        return super().init_state(unfreeze(params))

    def apply_gradient(
        self, hyper_params: Any, params: Any, state: Any, grads: Any
    ) -> tuple[Any, Any]:
        """New parameters and state."""
        before = unfreeze(params)
        updates, moments = self.optax_optimizer.update(unfreeze(grads), state.param_states, before)
        updates = jax.tree.map(lambda update: update * hyper_params.learning_rate, updates)
        after = optax.apply_updates(before, updates)
        return freeze(after), t5x_optimizers.OptimizerState(state.step + 1, moments)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """The optimizer with a PartitionSpec of logical names, or None, per array."""
        state = optimizer.state.param_states
        names = opt_state_axes(state, unfreeze(optimizer.target), self._axes)
        axes = jax.tree.map(lambda _, n: PartitionSpec(*n) if n else None, state, names)
        logical = jax.tree.map(lambda _: None, optimizer.state_dict())
        logical["target"] = unfreeze(param_logical_axes)
        logical["state"]["param_states"] = to_state_dict(axes)
        return optimizer.restore_state(logical)

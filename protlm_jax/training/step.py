"""One update and one evaluation: pure functions, compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from protlm_jax import partitioning
from protlm_jax.objectives import Objective, Score
from protlm_jax.training.optimizers import layer_statistics
from protlm_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)  # jit needs a hash: this object's identity
class TrainStep:
    """`state, metrics = step(state, batch)`.

    Attributes:
        model: a family's module.
        objective: what is asked of it.
        optimizer: an optax transformation over the stacked parameters.
        axes: logical axes of the parameters.
        seed: of corruption and dropout; the key of step i is fold_in(key(seed), i).
        accumulate: how many equal parts a batch is computed in, one after the other.
    """

    model: nn.Module
    objective: Objective
    optimizer: optax.GradientTransformation
    axes: Any
    seed: int
    accumulate: int = 1

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
        grads, score = self._gradients(state.params, batch, rng)
        weight = jnp.maximum(score.weight_sum, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": score.loss_sum / weight,
            **self.objective.summary(score.metrics),
            **layer_statistics(grads, updates, state.params, self.axes),
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.carry), metrics

    def _gradients(self, params: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Score]:
        """Gradients of the summed loss and the summed score, over all parts of the batch."""

        def loss(params: Any, part: Batch, rng: jax.Array) -> tuple[jax.Array, Score]:
            score = self.objective(self.model, params, part, rng)
            return score.loss_sum, score

        gradient = jax.grad(loss, has_aux=True)
        if self.accumulate == 1:
            return gradient(params, batch, rng)

        def add(total: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            part, index = xs
            result = gradient(params, part, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, total, result), None

        parts = jax.tree.map(self._split, batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, first, rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(self.accumulate)))
        return total

    def _split(self, rows: jax.Array) -> jax.Array:
        """[B, L] -> [parts, B / parts, L]; row i goes to part i mod parts.

        Interleaved, so that each part takes an equal share of every device's rows and nothing
        has to move.
        """
        split = rows.reshape(-1, self.accumulate, *rows.shape[1:])
        return jnp.swapaxes(split, 0, 1)


def compile_step(
    step: TrainStep, mesh: Mesh, layout: TrainState, rows: NamedSharding
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted train step on a mesh; the old state's memory is reused for the new one."""
    everywhere = partitioning.replicated(mesh)
    jitted = jax.jit(
        step, in_shardings=(layout, rows), out_shardings=(layout, everywhere), donate_argnums=0
    )
    return _inside(mesh, jitted)


def compile_evaluation(
    model: nn.Module, objective: Objective, mesh: Mesh, layout: TrainState, rows: NamedSharding
) -> Callable[[Any, Batch, jax.Array], Score]:
    """The jitted evaluation step: (params, batch, key) -> sums."""

    def evaluate(params: Any, batch: Batch, rng: jax.Array) -> Score:
        return objective(model, params, batch, rng, evaluation=True)

    everywhere = partitioning.replicated(mesh)
    jitted = jax.jit(
        evaluate, in_shardings=(layout.params, rows, everywhere), out_shardings=everywhere
    )
    return _inside(mesh, jitted)


class _inside:
    """A jitted function called, lowered and traced with the mesh and its rules active."""

    def __init__(self, mesh: Mesh, function: Any) -> None:
        self.mesh, self.function = mesh, function

    def __call__(self, *args: Any) -> Any:
        with partitioning.on_mesh(self.mesh):
            return self.function(*args)

    def lower(self, *args: Any) -> Any:
        with partitioning.on_mesh(self.mesh):
            return self.function.lower(*args)

"""One update and one evaluation: pure functions, compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from protlm_jax import partitioning
from protlm_jax.models.adapters import Tuning
from protlm_jax.objectives import Objective, Score
from protlm_jax.training.guard import Guard, SkipRules
from protlm_jax.training.optimizers import layer_statistics
from protlm_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Part = Callable[[Batch, jax.Array, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)  # jit needs a hash: this object's identity
class TrainStep:
    """`state, metrics = step(state, batch)`.

    Attributes:
        model: a family's module.
        objective: its training task.
        optimizer: an optax transformation over the stacked parameters.
        axes: logical axes of the parameters.
        seed: of corruption and dropout; the key of step i is fold_in(key(seed), i).
        accumulate: how many equal parts a batch is computed in, one after the other.
        rules: which updates are skipped; None where it depends on the dtype alone.
        tuning: joins what is trained with the frozen base; None where all is trained.
    """

    model: nn.Module
    objective: Objective
    optimizer: optax.GradientTransformation
    axes: Any
    seed: int
    accumulate: int = 1
    rules: SkipRules | None = None
    tuning: Tuning | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
        scale = state.guard.get("scale")
        grads, score = self._gradients(state, batch, rng, scale)
        weight = jnp.maximum(score.weight_sum, 1.0)
        loss = score.loss_sum / weight
        grads = jax.tree.map(lambda g: g / weight, grads)
        rules = self.rules or SkipRules(self.model.config.dtype)
        guard = Guard.of(rules, state.guard, loss, grads)
        grads = guard.zeroed(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        updates = guard.zeroed(updates)
        # The last link of the chain is the schedule's count, which goes with the steps.
        opt_state = (*guard.kept(state.opt_state[:-1], opt_state[:-1]), opt_state[-1])
        metrics = {
            "loss": loss,
            **self.objective.summary(score.metrics),
            **layer_statistics(grads, updates, state.params, self.axes),
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            **guard.metrics(),
        }
        params = optax.apply_updates(state.params, updates)
        # The carry of a skipped step may not be finite either: it is emptied.
        carry = guard.zeroed(score.carry)
        after = TrainState(state.step + 1, params, opt_state, carry, guard.after(), state.base)
        return after, metrics

    def _whole(self, base: Any, params: Any) -> Any:
        """What the model is applied with."""
        return params if self.tuning is None else self.tuning.join(base, params)

    def _gradients(
        self, state: TrainState, batch: Batch, rng: jax.Array, scale: jax.Array | None
    ) -> tuple[Any, Score]:
        """Gradients of the summed loss and the summed score, over all parts of the batch.

        With a scale, gradients of the mean loss times the scale go through float16.
        """

        def factor(score: Score) -> Any:
            return 1.0 if scale is None else scale / jnp.maximum(score.weight_sum, 1.0)

        def loss(
            params: Any, part: Batch, rng: jax.Array, carry: Any
        ) -> tuple[jax.Array, tuple[Score, Any]]:
            whole = self._whole(state.base, params)
            score = self.objective(self.model, whole, part, rng, carry)
            return score.loss_sum * factor(score), (score._replace(carry=None), score.carry)

        def part(batch: Batch, rng: jax.Array, carry: Any) -> tuple[Any, Any]:
            grads, (score, carry) = jax.grad(loss, has_aux=True)(state.params, batch, rng, carry)
            return (jax.tree.map(lambda g: g / factor(score), grads), score), carry

        (grads, score), carry = in_parts(part, self.accumulate, batch, rng, state.carry)
        return grads, score._replace(carry=carry)

    def evaluate(self, params: Any, batch: Batch, rng: jax.Array, carry: Any) -> tuple[Score, Any]:
        """Sums over a held-out batch, computed in as many parts as an update, and the next carry.

        Accumulation draws other masks, as it does in training. `params` is the pair of the base
        and what is trained where there is a base.
        """
        whole = self._whole(*params) if isinstance(params, tuple) else params

        def part(batch: Batch, rng: jax.Array, carry: Any) -> tuple[Score, Any]:
            score = self.objective(self.model, whole, batch, rng, carry, evaluation=True)
            return score._replace(carry=None), score.carry

        return in_parts(part, self.accumulate, batch, rng, carry)


def in_parts(
    function: Part, parts: int, batch: Batch, rng: jax.Array, carry: Any
) -> tuple[Any, Any]:
    """Applies (batch, key, carry) -> (tree of sums, next carry) to parts of the rows, one after the
    other.

    The first axis of `batch` and `carry` are the rows; part i has the key fold_in(rng, i). Returns
    the sums over all parts, and the next carry of all rows, in their order.
    """
    if parts == 1:
        return function(batch, rng, carry)

    def add(total: Any, xs: tuple[Batch, Any, jax.Array]) -> tuple[Any, Any]:
        rows, carry, index = xs
        sums, carry = function(rows, jax.random.fold_in(rng, index), carry)
        return jax.tree.map(jnp.add, total, sums), carry

    split = jax.tree.map(functools.partial(_split, parts), (batch, carry))
    first = jax.tree.map(lambda x: x[0], split)
    sums, _ = jax.eval_shape(function, first[0], rng, first[1])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    sums, carries = jax.lax.scan(add, zeros, (*split, jnp.arange(parts)))
    return sums, jax.tree.map(_join, carries)


def _split(parts: int, rows: jax.Array) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]; row i goes to part i mod parts.

    Interleaved, so that each part has an equal share of every device's rows, and no row moves.
    """
    return jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)


def _join(parts: jax.Array) -> jax.Array:
    """The reverse of `_split`."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def compile_step(
    step: TrainStep,
    mesh: Mesh,
    layout: TrainState,
    rows: NamedSharding,
    rules: partitioning.Rules = partitioning.RULES,
) -> OnMesh:
    """The jitted train step on a mesh; the old state's memory is reused for the new one."""
    everywhere = partitioning.replicated(mesh)
    jitted = jax.jit(
        step, in_shardings=(layout, rows), out_shardings=(layout, everywhere), donate_argnums=0
    )
    return OnMesh(mesh, jitted, rules)


def compile_evaluation(
    step: TrainStep,
    mesh: Mesh,
    layout: TrainState,
    rows: NamedSharding,
    rules: partitioning.Rules = partitioning.RULES,
) -> OnMesh:
    """The jitted evaluation: (params, batch, key, carry) -> sums and the next carry."""
    everywhere = partitioning.replicated(mesh)
    params = layout.params if step.tuning is None else (layout.base, layout.params)
    jitted = jax.jit(
        step.evaluate,
        in_shardings=(params, rows, everywhere, layout.carry),
        out_shardings=(everywhere, layout.carry),
    )
    return OnMesh(mesh, jitted, rules)


class OnMesh:
    """A jitted function called, lowered and traced with the mesh and its rules active."""

    def __init__(self, mesh: Mesh, function: Any, rules: partitioning.Rules) -> None:
        self.mesh, self.function, self.rules = mesh, function, rules

    def __call__(self, *args: Any) -> Any:
        with partitioning.on_mesh(self.mesh, self.rules):
            return self.function(*args)

    def lower(self, *args: Any) -> Any:
        with partitioning.on_mesh(self.mesh, self.rules):
            return self.function.lower(*args)

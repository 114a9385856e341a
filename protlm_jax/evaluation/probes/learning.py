"""One step of learning for the heads of all seeds and all inputs: one program.

Networks learn by Adam. Linear heads descend along plain gradients in whitened features, where every
direction has about unit curvature, and are read as the mean of an epoch's parameters: that is
within a percent of the optimum of the plain problem after two or three passes.

Letters: S seeds, N inputs, T rows, D features, P protein slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.embedding import memory
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes.heads import Answers
from protlm_jax.evaluation.probes.moments import Standard

_ADAM = optax.scale_by_adam()


class State(NamedTuple):
    """Heads as they learn; every array [S, N, ...].

    Attributes:
        params: of the network; kernels of linear heads before `Fixed.basis`.
        statistics: running ones, of BatchNorm.
        adam: None for linear heads.
        total: of linear heads, the sum of parameters over this epoch's steps; else None.
    """

    params: Any
    statistics: Any
    adam: Any
    total: Any


class Fixed(NamedTuple):
    """What does not change while heads learn.

    Attributes:
        standard: of the features.
        labelled: target -> labels that a batch has on average.
        basis: [N, D, D] float32 of linear heads, else None: what parameters of kernels stand for is
            `basis` times them.
        penalty: L2 on kernels.
        rates: of the steps, for each parameter.
        keys: [S] of dropout.
    """

    standard: Standard
    labelled: Mapping[str, Any]
    basis: Any
    penalty: float
    rates: Any
    keys: jax.Array


class Rows(NamedTuple):
    """A batch as the program takes it: as `Batch`, with a label of every target, numbers in
    standard deviations."""

    features: Any
    protein: Any
    labels: Mapping[str, Any]


def start(
    module: Any, seeds: Sequence[int], inputs: int, width: int, linear: bool
) -> tuple[State, jax.Array]:
    """The state before the first step, heads of one seed alike, and the keys of dropout.

    Raises:
        ProtlmError: when the heads do not fit into memory.
    """

    def one(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((8, width)), jnp.arange(8), 8, False)

    pairs = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(np.array(seeds))
    shapes = jax.eval_shape(jax.vmap(one), pairs[:, 0])
    # The parameters, their gradient, Adam's two moments, and the best so far.
    needed = 5 * 4 * inputs * sum(x.size for x in jax.tree.leaves(shapes))
    if needed > (has := memory.device_memory()):
        raise ProtlmError(
            f"heads of {inputs} layers and {len(seeds)} seeds need {memory.size(needed)} of memory "
            f"for their parameters alone, and there are {memory.size(has)}: probe fewer layers or "
            "seeds at a time"
        )
    variables = jax.jit(jax.vmap(one))(pairs[:, 0])
    params, statistics = (
        jax.tree.map(lambda x: np.repeat(np.asarray(x)[:, None], inputs, axis=1), tree)
        for tree in (variables["params"], variables.get("batch_stats", {}))
    )
    if linear:
        state = State(params, statistics, None, jax.tree.map(np.zeros_like, params))
    else:
        state = State(params, statistics, jax.vmap(jax.vmap(_ADAM.init))(params), None)
    return state, pairs[:, 1]


@partial(jax.jit, static_argnames=("module", "slots"), donate_argnames="state")
def step(
    module: Any,
    slots: int,
    state: State,
    running: jax.Array,
    fixed: Fixed,
    rows: Rows,
    count: int,
) -> tuple[State, jax.Array]:
    """One batch for all heads.

    Args:
        module: the head.
        slots: P.
        state: before.
        running: [S, N] bool; the others stay as they are.
        fixed: see there.
        rows: the batch.
        count: steps done before.

    Returns:
        The state after, and losses [S, N] before.
    """
    x = fixed.standard.apply(rows.features, rows.protein)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(fixed.keys, count)

    def loss(params: Any, statistics: Any, x: Any, basis: Any, key: Any) -> tuple[Any, Any]:
        variables = {"params": plain(params, basis), "batch_stats": statistics}
        answers, changed = module.apply(
            variables, x, rows.protein, slots, True, mutable="batch_stats", rngs={"dropout": key}
        )
        value = losses(module.targets, answers, rows.labels, fixed.labelled)
        value += 0.5 * fixed.penalty * _squares(variables["params"])
        return value, changed.get("batch_stats", {})

    def one(state: State, runs: Any, x: Any, basis: Any, key: Any) -> tuple[State, Any]:
        slope = jax.value_and_grad(loss, has_aux=True)
        (value, statistics), gradient = slope(state.params, state.statistics, x, basis, key)
        update, adam = gradient, None
        if state.adam is not None:
            update, adam = _ADAM.update(gradient, state.adam)
        params = jax.tree.map(lambda p, u, r: p - r * u, state.params, update, fixed.rates)
        total = None
        if state.total is not None:
            total = jax.tree.map(jnp.add, state.total, params)
        new = State(params, statistics, adam, total)
        return jax.tree.map(lambda n, o: jnp.where(runs, n, o), new, state), value

    over_inputs = jax.vmap(one, in_axes=(0, 0, 0, 0, None))
    over_seeds = jax.vmap(over_inputs, in_axes=(0, 0, None, None, 0))
    return over_seeds(state, running, x, fixed.basis, keys)


def plain(params: Any, basis: Any) -> Any:
    """Parameters of one head as the network takes them."""
    if basis is None:
        return params
    return jax.tree.map(lambda p: basis @ p if p.ndim == 2 else p, params)


@jax.jit
def epoch_mean(state: State, basis: Any, steps: int) -> tuple[State, Any]:
    """Linear heads after an epoch of `steps`: -> the state for the next, and what they are now."""
    mean = jax.tree.map(lambda p: p / steps, state.total)
    params = jax.vmap(jax.vmap(plain), in_axes=(0, None))(mean, basis)
    return state._replace(total=jax.tree.map(jnp.zeros_like, state.total)), params


def _squares(params: Any) -> jax.Array:
    return sum((jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1), jnp.zeros(()))


def losses(
    targets: Sequence[Target],
    answers: Answers,
    labels: Mapping[str, jax.Array],
    labelled: Mapping[str, jax.Array],
) -> jax.Array:
    """Cross entropy of classes plus squared error of numbers; what is not labelled adds nothing.

    A target's sum over the batch is divided by the labels that a batch has on average, not by those
    of this one: so an epoch's mean is the mean over labels, however they fall into batches.
    """
    total = jnp.zeros(())
    for target in targets:
        answer, truth = answers[target.name], labels[target.name]
        if target.kind == "classes":
            asked = truth >= 0
            each = optax.softmax_cross_entropy_with_integer_labels(answer, jnp.maximum(truth, 0))
        else:
            asked = jnp.isfinite(truth)
            each = jnp.square(answer[:, 0] - jnp.where(asked, truth, 0.0))
        total += jnp.sum(jnp.where(asked, each, 0.0)) / labelled[target.name]
    return total

"""Trains the heads of one kind for all seeds and all inputs (layers) as one program.

A head's epoch is chosen on validation proteins; a head that has not become better for a while stops
and keeps its parameters, whatever the others do. Every input sees the same batches, and heads of
one seed start alike and drop the same units: no head depends on which others it is trained with.

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
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.batches import Batch, FeatureSource
from protlm_jax.evaluation.probes.choosing import Race, score
from protlm_jax.evaluation.probes.moments import Moments, Standard, measure
from protlm_jax.evaluation.probes.trained import TrainedHeads

_ADAM = optax.scale_by_adam()


class State(NamedTuple):
    """All heads as they learn; every array [S, N, ...]."""

    params: Any
    statistics: Any
    adam: Any


class Fixed(NamedTuple):
    """What does not change while heads learn."""

    standard: Standard
    labelled: Mapping[str, Any]
    basis: Any
    penalty: float
    rate: float


class Rows(NamedTuple):
    """A batch as the program takes it: `Batch` with a label of every target, numbers in units."""

    features: Any
    protein: Any
    labels: Mapping[str, Any]


def train(
    head: str,
    targets: Sequence[Target],
    source: FeatureSource,
    valid: FeatureSource,
    *,
    seeds: Sequence[int] = (0,),
    max_epochs: int | None = None,
    patience: int | None = None,
    learning_rate: float | None = None,
    progress: bool = False,
) -> TrainedHeads:
    """Trains on `source`, choosing each head's epoch on `valid`.

    Args:
        head: of `heads.NAMES`.
        targets: read together; losses are added up.
        source: training proteins.
        valid: proteins that choose the epoch by the mean of their targets' scores.
        seeds: of initialisation and dropout; the first also of the order of proteins.
        max_epochs: passes over the training proteins at most; None: the head's own.
        patience: passes without a better score after which a head stops; None: the head's own.
        learning_rate: of Adam; None: the head's own.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: for an unknown head, a target without labels, features or losses that are not
            finite.
    """
    from tqdm import tqdm

    kind = heads.kind(head)
    module = kind.module(tuple(targets))
    seeds = tuple(seeds) if kind.seeded else tuple(seeds)[:1]
    moments = measure(source, targets, seeds[0], covariance=kind.whitened)
    basis = _basis(moments, kind.penalty) if kind.whitened else None
    rate = kind.learning_rate if learning_rate is None else learning_rate
    fixed = Fixed(moments.standard, moments.labelled, basis, kind.penalty, rate)
    state = _start(module, seeds, source)
    race = Race(*_judged(module, state, fixed, valid), patience or kind.patience)
    step = 0
    epochs = range(1, (max_epochs or kind.max_epochs) + 1)
    for epoch in tqdm(epochs, head, disable=None if progress else True):
        losses = []
        for batch in source.batches(_order(seeds[0], epoch)):
            rows = _rows(batch, targets, moments, kind.pools)
            keys = _keys(seeds, step)
            state, loss = _step(module, batch.slots, state, race.running, fixed, rows, keys)
            losses.append(loss)
            step += 1
        if not np.isfinite(np.sum(losses)):
            raise ProtlmError(f"the loss of a {head} head is not finite; lower the learning rate")
        race.judge(*_judged(module, state, fixed, valid), epoch)
        if not race.running.any():
            break
    return TrainedHeads(
        head=head,
        targets=tuple(targets),
        seeds=seeds,
        variables=race.best,
        standard=moments.standard,
        units=moments.units,
        epochs=race.epochs,
        best_epoch=race.best_epoch,
        valid=race.valid,
    )


def _start(module: Any, seeds: Sequence[int], source: FeatureSource) -> State:
    def one(key: jax.Array) -> Any:
        x = jnp.zeros((8, source.width))
        return module.init(key, x, jnp.arange(8), 8, False)

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    variables = jax.jit(jax.vmap(one))(keys)
    variables = jax.tree.map(
        lambda x: np.repeat(np.asarray(x)[:, None], source.num_inputs, axis=1), variables
    )
    adam = jax.vmap(jax.vmap(_ADAM.init))(variables["params"])
    return State(variables["params"], variables.get("batch_stats", {}), adam)


def _basis(moments: Moments, penalty: float) -> np.ndarray:
    """[N, D, D] float32: directions in which a linear head's loss has about unit curvature.

    With H the curvature and H = L L', kernels are L'^-1 times what Adam sees: the optimum is that
    of the plain problem, reached in a few passes where correlated features would take hundreds.
    """
    assert moments.covariance is not None
    # p (1 - p) of a few classes is about 0.2; the floor keeps dead directions still.
    curvature = 0.2 * moments.covariance + (penalty + 1e-6) * np.eye(moments.covariance.shape[1])
    lower = np.linalg.cholesky(curvature)
    return np.swapaxes(np.linalg.inv(lower), 1, 2).astype(np.float32)


def _order(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _rows(batch: Batch, targets: Sequence[Target], moments: Moments, pools: bool) -> Rows:
    size = batch.slots if pools else len(batch.protein)
    labels = {}
    for target in targets:
        classes = target.kind == "classes"
        found = batch.labels.get(target.name)
        if found is None:
            found = np.full(size, -1 if classes else np.nan)
        if len(found) != size:
            raise ProtlmError(
                f"{len(found)} labels of {target.name!r} for {size} answers: a head that reads "
                "single rows needs a label for each, or pooled features"
            )
        mean, deviation = moments.units[target.name]
        units = found if classes else (found - mean) / deviation
        labels[target.name] = units.astype(np.int32 if classes else np.float32)
    return Rows(batch.features, batch.protein, labels)


def _keys(seeds: Sequence[int], step: int) -> jax.Array:
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), step))(jnp.asarray(seeds))


def _plain(params: Any, basis: jax.Array | None) -> Any:
    """Parameters as the network takes them, of one head."""
    if basis is None:
        return params
    return jax.tree.map(lambda p: basis @ p if p.ndim == 2 else p, params)


@partial(jax.jit, static_argnames=("module", "slots"), donate_argnames="state")
def _step(
    module: Any,
    slots: int,
    state: State,
    running: jax.Array,
    fixed: Fixed,
    rows: Rows,
    keys: jax.Array,
) -> tuple[State, jax.Array]:
    """One batch for all heads; -> the new state and losses [S, N]."""
    x = fixed.standard.apply(rows.features, rows.protein)

    def loss(
        params: Any, statistics: Any, x: jax.Array, basis: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        variables = {"params": _plain(params, basis), "batch_stats": statistics}
        answers, changed = module.apply(
            variables, x, rows.protein, slots, True, mutable="batch_stats", rngs={"dropout": key}
        )
        value = _loss(module.targets, answers, rows.labels, fixed.labelled)
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(variables["params"]) if p.ndim == 2)
        return value + 0.5 * fixed.penalty * squares, changed.get("batch_stats", {})

    def one(
        state: State, runs: jax.Array, x: jax.Array, basis: jax.Array | None, key: jax.Array
    ) -> tuple[State, jax.Array]:
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.statistics, x, basis, key
        )
        update, adam = _ADAM.update(gradient, state.adam)
        params = jax.tree.map(lambda p, u: p - fixed.rate * u, state.params, update)
        new = State(params, statistics, adam)
        return jax.tree.map(lambda n, o: jnp.where(runs, n, o), new, state), value

    over_inputs = jax.vmap(one, in_axes=(0, 0, 0, 0, None))
    over_seeds = jax.vmap(over_inputs, in_axes=(0, 0, None, None, 0))
    return over_seeds(state, running, x, fixed.basis, keys)


def _loss(
    targets: Sequence[Target],
    answers: heads.Answers,
    labels: Mapping[str, jax.Array],
    labelled: Mapping[str, jax.Array],
) -> jax.Array:
    """Sum over targets of the mean over labels, taken as sums over a batch's expected number: so
    that an epoch's mean is the mean over all labels, however they fall into batches."""
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


@partial(jax.jit, static_argnames="whitened")
def _unwhitened(params: Any, basis: jax.Array | None, whitened: bool) -> Any:
    if not whitened:
        return params
    return jax.vmap(jax.vmap(_plain), in_axes=(0, None))(params, basis)


def _judged(
    module: Any, state: State, fixed: Fixed, valid: FeatureSource
) -> tuple[Any, dict[str, np.ndarray]]:
    """Variables as the network takes them, on the host, and their validation scores."""
    params = _unwhitened(state.params, fixed.basis, fixed.basis is not None)
    variables = jax.tree.map(np.asarray, {"params": params, "batch_stats": state.statistics})
    return variables, score(module, variables, fixed.standard, valid)

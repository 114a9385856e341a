"""Trains the heads of one kind for all seeds and all inputs (layers) as one program.

Networks learn by Adam. Linear heads, which have one optimum, are solved by `linear`.

The loss on validation proteins chooses a head's epoch; a head whose loss no longer falls stops and
keeps its parameters. All inputs see the same batches, and heads of one seed start alike and drop
the same units: no head depends on which others it is trained with.

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
from protlm_jax.evaluation.engine import float32_products
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads, linear
from protlm_jax.evaluation.probes.features import FeatureBatch, FeatureSource
from protlm_jax.evaluation.probes.moments import Moments, Standard, measure
from protlm_jax.evaluation.probes.trained import TrainedHeads, validate

STEPS = 16  # of an epoch at least: of fewer batches, each has several steps
_ADAM = optax.scale_by_adam()


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
    """Trains on `source`, choosing each head's epoch, or a linear head's penalty, on `valid`.

    Args:
        head: of `heads.NAMES`; `max_epochs`, `patience` and `learning_rate` are its own by default.
        targets: learned together; their losses are added up.
        valid: proteins that choose the epoch by the mean of their targets' losses.
        seeds: of initialisation and dropout; the first also of the order of proteins.

    Raises:
        ProtlmError: for an unknown head, a target without labels, or features or losses that are
            not finite.
    """
    from protlm_jax.process.progress import Bar

    kind, targets = heads.kind(head), tuple(targets)
    seeds = tuple(seeds)[:1] if kind.linear else tuple(seeds)
    moments = measure(source, targets, seeds[0], covariance=kind.linear)
    if kind.linear:
        return linear.fit(targets, source, valid, moments, seeds, progress)
    learning = _Learning(kind, targets, moments, seeds, source, learning_rate)
    stopping = EarlyStopping(*learning.validated(valid), patience or kind.patience)
    epochs = range(1, (max_epochs or kind.max_epochs) + 1)
    for epoch in Bar(epochs, head, show=progress):
        learning.epoch(source, epoch, stopping.running)
        stopping.update(*learning.validated(valid), epoch)
        if not stopping.running.any():
            break
    return TrainedHeads(
        head=head,
        targets=targets,
        seeds=seeds,
        variables=stopping.best,
        standard=moments.standard,
        units=moments.units,
        epochs=stopping.epochs,
        best_epoch=stopping.best_epoch,
        valid=stopping.valid,
        losses=stopping.losses,
    )


Scores = Mapping[str, np.ndarray]
"""target -> [S, N]."""


class EarlyStopping:
    """Each head's best `variables`, their epoch, `valid` scores and `losses`, and which run."""

    def __init__(self, variables: Any, valid: Scores, losses: Scores, patience: int) -> None:
        self.best, self.valid, self.losses = variables, dict(valid), dict(losses)
        shape = next(iter(losses.values())).shape
        self._lowest = np.full(shape, np.inf)  # a head before its first step is no candidate
        self.running = np.ones(shape, bool)
        self.epochs, self.best_epoch = np.zeros((2, *shape), int)
        self._patience = patience

    def update(self, variables: Any, valid: Scores, losses: Scores, epoch: int) -> None:
        """Compares the heads after an epoch with the best; of equals the earlier stays."""
        mean = np.mean(list(losses.values()), axis=0)
        better = self.running & (mean < self._lowest)

        def chosen(new: Any, old: Any) -> np.ndarray:
            return np.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)

        now, before = (variables, dict(valid), dict(losses)), (self.best, self.valid, self.losses)
        self.best, self.valid, self.losses = jax.tree.map(chosen, now, before)
        self._lowest = chosen(mean, self._lowest)
        self.epochs = np.where(self.running, epoch, self.epochs)
        self.best_epoch = np.where(better, epoch, self.best_epoch)
        self.running &= epoch - self.best_epoch < self._patience


class State(NamedTuple):
    """Heads as they learn; every array [S, N, ...]."""

    params: Any
    statistics: Any  # running ones, of BatchNorm
    adam: Any


class Fixed(NamedTuple):
    """What does not change while heads learn."""

    standard: Standard
    labelled: Mapping[str, Any]  # target -> labels that a batch has on average
    rate: float
    keys: jax.Array  # [S] of dropout


class _Learning:
    """The heads of one kind while they learn."""

    def __init__(
        self,
        kind: heads.Kind,
        targets: tuple[Target, ...],
        moments: Moments,
        seeds: tuple[int, ...],
        source: FeatureSource,
        rate: float | None,
    ) -> None:
        self.kind, self.targets, self.moments, self.seeds = kind, targets, moments, seeds
        self.module = kind.module(targets)
        self.state, keys = _start(self.module, seeds, source.num_inputs, source.width)
        rate = kind.learning_rate if rate is None else rate
        self.fixed = Fixed(moments.standard, moments.labelled, rate, keys)
        self.count = 0

    def epoch(self, source: FeatureSource, epoch: int, running: np.ndarray) -> None:
        """One pass over the training proteins, with several steps on each of few batches."""
        loss: Any = np.zeros(())
        steps_each = -(-STEPS // (self.moments.batches or STEPS))
        order = int(np.random.SeedSequence((self.seeds[0], epoch)).generate_state(1)[0])
        for batch in source.batches(order):
            labels = self._labels(batch)
            for _ in range(steps_each):
                jax.block_until_ready(loss)  # one batch at work, one in the making, no more
                self.state, loss = step(
                    self.module, batch.slots, self.state, running, self.fixed,
                    batch.features, batch.protein, labels, self.count,
                )  # fmt: skip
                self.count += 1
        if not np.isfinite(loss).all():
            raise ProtlmError(
                "the loss of heads is not finite: features of training proteins are not, or the "
                "learning rate is too high"
            )

    def validated(self, valid: FeatureSource) -> tuple[Any, Scores, Scores]:
        """The network's variables, on the host, and their validation scores and losses."""
        variables = {"params": self.state.params, "batch_stats": self.state.statistics}
        variables = jax.tree.map(np.asarray, variables)
        units = self.moments.units
        return variables, *validate(self.module, variables, self.fixed.standard, units, valid)

    def _labels(self, batch: FeatureBatch) -> dict[str, np.ndarray]:
        """The batch's labels, numbers in standard deviations."""
        labels = {}
        for target in self.targets:
            found, (mean, deviation) = batch.labels[target.name], self.moments.units[target.name]
            labels[target.name] = found
            if target.kind == "number":
                labels[target.name] = ((found - mean) / deviation).astype(np.float32)
        return labels


def _start(module: Any, seeds: Sequence[int], inputs: int, width: int) -> tuple[State, jax.Array]:
    """The state before the first step, the same for all inputs, and the keys of dropout."""

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
    return State(params, statistics, jax.vmap(jax.vmap(_ADAM.init))(params)), pairs[:, 1]


@partial(jax.jit, static_argnames=("module", "slots"), donate_argnames="state")
@float32_products
def step(
    module: Any,
    slots: int,
    state: State,
    running: jax.Array,
    fixed: Fixed,
    features: jax.Array,
    protein: jax.Array,
    labels: Mapping[str, jax.Array],
    count: int,
) -> tuple[State, jax.Array]:
    """One batch for all heads: -> the state after, and the losses [S, N] before.

    Heads that are not `running` [S, N] stay as they are. `labels` are [T or P], classes (-1
    unknown) or numbers in standard deviations; `count` steps were done before.
    """
    x = fixed.standard.apply(features, protein)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(fixed.keys, count)

    def loss(params: Any, statistics: Any, x: Any, key: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": statistics}
        answers, changed = module.apply(
            variables, x, protein, slots, True, mutable="batch_stats", rngs={"dropout": key}
        )
        value = losses(module.targets, answers, labels, fixed.labelled)
        return value, changed.get("batch_stats", {})

    def one(state: State, runs: Any, x: Any, key: Any) -> tuple[State, Any]:
        slope = jax.value_and_grad(loss, has_aux=True)
        (value, statistics), gradient = slope(state.params, state.statistics, x, key)
        update, adam = _ADAM.update(gradient, state.adam)
        params = jax.tree.map(lambda p, u: p - fixed.rate * u, state.params, update)
        new = State(params, statistics, adam)
        return jax.tree.map(lambda n, o: jnp.where(runs, n, o), new, state), value

    over_inputs = jax.vmap(one, in_axes=(0, 0, 0, None))
    over_seeds = jax.vmap(over_inputs, in_axes=(0, 0, None, 0))
    return over_seeds(state, running, x, keys)


def losses(
    targets: Sequence[Target],
    answers: heads.Answers,
    labels: Mapping[str, jax.Array],
    labelled: Mapping[str, jax.Array],
) -> jax.Array:
    """Cross entropy of classes plus squared error of numbers; unknown labels add nothing.

    A target's sum is divided by the labels of an average batch, not of this one: so an epoch's mean
    is the mean over labels, however they fall into batches.
    """
    total = jnp.zeros(())
    for target in targets:
        answer, truth = answers[target.name], labels[target.name]
        if target.kind == "classes":
            there = truth >= 0
            each = optax.softmax_cross_entropy_with_integer_labels(answer, jnp.maximum(truth, 0))
        else:
            there = jnp.isfinite(truth)
            each = jnp.square(answer[:, 0] - jnp.where(there, truth, 0.0))
        total += jnp.sum(jnp.where(there, each, 0.0)) / labelled[target.name]
    return total

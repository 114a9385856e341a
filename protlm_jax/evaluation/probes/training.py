"""Trains the heads of one kind for all seeds and all inputs (layers) as one program.

A head's epoch is chosen on validation proteins; a head that has not become better for a while stops
and keeps its parameters, whatever the others do. Every input sees the same batches, and heads of
one seed start alike and drop the same units: no head depends on which others it is trained with.

Letters: S seeds, N inputs, T rows, D features, P protein slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.evaluation.probe_data.base import Target
from protlm_jax.evaluation.probes import heads
from protlm_jax.evaluation.probes.batches import Batch, FeatureSource
from protlm_jax.evaluation.probes.choosing import Race, score
from protlm_jax.evaluation.probes.learning import Fixed, Rows, State, all_plain, start, step
from protlm_jax.evaluation.probes.moments import Moments, measure
from protlm_jax.evaluation.probes.trained import TrainedHeads


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
    state, keys = start(module, seeds, source.num_inputs, source.width)
    fixed = Fixed(moments.standard, moments.labelled, basis, kind.penalty, rate, keys)
    race = Race(*_judged(module, state, fixed, valid), patience or kind.patience)
    count = 0
    epochs = range(1, (max_epochs or kind.max_epochs) + 1)
    for epoch in tqdm(epochs, head, disable=None if progress else True):
        loss = np.zeros(())
        for batch in source.batches(_order(seeds[0], epoch)):
            rows = _rows(batch, targets, moments, kind.pools)
            jax.block_until_ready(loss)  # one batch at work, one in the making, no more in memory
            state, loss = step(module, batch.slots, state, race.running, fixed, rows, count)
            count += 1
        if not np.isfinite(loss).all():
            raise ProtlmError(
                f"the loss of a {head} head is not finite: features of training proteins are not, "
                "or the learning rate is too high"
            )
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


def _judged(
    module: Any, state: State, fixed: Fixed, valid: FeatureSource
) -> tuple[Any, dict[str, np.ndarray]]:
    """Variables as the network takes them, on the host, and their validation scores."""
    params = state.params if fixed.basis is None else all_plain(state.params, fixed.basis)
    variables = jax.tree.map(np.asarray, {"params": params, "batch_stats": state.statistics})
    return variables, score(module, variables, fixed.standard, valid)

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
from protlm_jax.evaluation.probes import heads, ridge
from protlm_jax.evaluation.probes.batches import Batch, FeatureSource
from protlm_jax.evaluation.probes.choosing import Race, score
from protlm_jax.evaluation.probes.heads import PARTS
from protlm_jax.evaluation.probes.learning import Fixed, Rows, epoch_mean, start, step
from protlm_jax.evaluation.probes.moments import Moments, measure
from protlm_jax.evaluation.probes.trained import TrainedHeads

STEPS = 16
"""Of an epoch at least: where there are fewer batches, several steps are made on each."""


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

    Numbers under the linear head are fitted in closed form, see `ridge`, and their penalty chosen.

    Args:
        head: of `heads.NAMES`.
        targets: read together; losses are added up.
        source: training proteins.
        valid: proteins that choose the epoch by the mean of their targets' scores.
        seeds: of initialisation and dropout; the first also of the order of proteins.
        max_epochs: epochs at most, each of one pass over the source; None: the head's own.
        patience: epochs without a better score after which a head stops; None: the head's own.
        learning_rate: of the steps; None: the head's own.
        progress: draw a progress bar on a terminal.

    Raises:
        ProtlmError: for an unknown head, a target without labels, features or losses that are not
            finite.
    """
    kind, targets = heads.kind(head), tuple(targets)
    seeds = tuple(seeds) if kind.seeded else tuple(seeds)[:1]
    moments = measure(source, targets, seeds[0], covariance=kind.linear)
    numbers = tuple(t for t in targets if t.kind == "number" and kind.linear)
    others = tuple(t for t in targets if t not in numbers)
    if not others:
        return ridge.fit(numbers, source, valid, moments, seeds)
    course = _Course(kind, others, moments, seeds, source, learning_rate)
    race = Race(*course.judged(valid), patience or kind.patience)
    _run(course, race, source, valid, max_epochs or kind.max_epochs, head if progress else "")
    learned = TrainedHeads(
        head=head,
        targets=others,
        seeds=seeds,
        variables=race.best,
        standard=moments.standard,
        units=moments.units,
        epochs=race.epochs,
        best_epoch=race.best_epoch,
        valid=race.valid,
    )
    if not numbers:
        return learned
    return learned.joined(ridge.fit(numbers, source, valid, moments, seeds))


def _run(
    course: _Course,
    race: Race,
    source: FeatureSource,
    valid: FeatureSource,
    max_epochs: int,
    title: str,
) -> None:
    """Until all heads have stopped."""
    from tqdm import tqdm

    for epoch in tqdm(range(1, max_epochs + 1), title, disable=None if title else True):
        course.epoch(source, epoch, race.running)
        race.judge(*course.judged(valid), epoch)
        if not race.running.any():
            break


def _order(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


class _Course:
    """The heads as they learn, and all that they need for it."""

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
        self.state, keys = start(self.module, seeds, source.num_inputs, source.width, kind.linear)
        rate = kind.learning_rate if rate is None else rate
        rates = jax.tree.map(lambda _: rate, self.state.params)
        basis = None
        if kind.linear:
            basis = _basis(moments, kind.penalty)
            # A batch of fewer labels than features overrates its own directions.
            shares = {t: rate / (1 + source.width / n) for t, n in moments.labelled.items()}
            readout = {
                f"{heads.key(t.name)}_{part}": shares[t.name] for t in targets for part in PARTS
            }
            rates = {"readout": readout}
        self.fixed = Fixed(moments.standard, moments.labelled, basis, kind.penalty, rates, keys)
        self.params = self.state.params
        self.count = 0

    def epoch(self, source: FeatureSource, epoch: int, running: np.ndarray) -> None:
        """Reads all training proteins once, with several steps on each batch if they are few."""
        loss: Any = np.zeros(())
        before = self.count
        steps_each = -(-STEPS // (self.moments.batches or STEPS))
        for batch in source.batches(_order(self.seeds[0], epoch)):
            rows = self._rows(batch)
            for _ in range(steps_each):
                jax.block_until_ready(loss)  # one batch at work, one in the making, no more
                self.state, loss = step(
                    self.module, batch.slots, self.state, running, self.fixed, rows, self.count
                )
                self.count += 1
        if not np.isfinite(loss).all():
            raise ProtlmError(
                "the loss of heads is not finite: features of training proteins are not, or the "
                "learning rate is too high"
            )
        self.params = self.state.params
        if self.kind.linear:
            steps = self.count - before
            self.state, self.params = epoch_mean(self.state, self.fixed.basis, steps)

    def judged(self, valid: FeatureSource) -> tuple[Any, dict[str, np.ndarray]]:
        """Variables as the network takes them, on the host, and their validation scores."""
        variables = {"params": self.params, "batch_stats": self.state.statistics}
        variables = jax.tree.map(np.asarray, variables)
        return variables, score(self.module, variables, self.fixed.standard, valid)

    def _rows(self, batch: Batch) -> Rows:
        size = batch.slots if self.kind.pools else len(batch.protein)
        labels = {}
        for target in self.targets:
            classes = target.kind == "classes"
            found = batch.labels.get(target.name)
            if found is None:
                found = np.full(size, -1 if classes else np.nan)
            mean, deviation = self.moments.units[target.name]
            units = found if classes else (found - mean) / deviation
            labels[target.name] = units.astype(np.int32 if classes else np.float32)
        return Rows(batch.features, batch.protein, labels)


def _basis(moments: Moments, penalty: float) -> np.ndarray:
    """[N, D, D] float32: directions in which a linear head's loss has about unit curvature.

    With the curvature H = L L' it is L'^-1.
    """
    from scipy.linalg import solve_triangular  # type: ignore[import-untyped]

    assert moments.covariance is not None
    # p (1 - p) of a few classes is about 0.2; the floor keeps dead directions still.
    unit = np.eye(moments.covariance.shape[1])
    out = np.empty(moments.covariance.shape, np.float32)
    for index, covariance in enumerate(moments.covariance):
        lower = np.linalg.cholesky(0.2 * covariance + (penalty + 1e-6) * unit)
        out[index] = solve_triangular(lower, unit, lower=True).T
    return out

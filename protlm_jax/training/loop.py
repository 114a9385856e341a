"""Training: from a config and a folder to a trained model, resumable at any step.

The loop has one order: evaluate -> save -> next batch -> step -> log the previous step. Metrics are
read one step late, while the device computes the next step, so that it never waits for the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from protlm_jax import models, partitioning
from protlm_jax.config.run import RunConfig
from protlm_jax.data.config import DataConfig
from protlm_jax.data.splits import Split, unigram_entropy
from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.models.build import count_tokens
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.process.sigterm import told_to_end
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import write_json
from protlm_jax.training.assembly import Assembly, assemble
from protlm_jax.training.checkpoints import Checkpoints, DamagedCheckpoint
from protlm_jax.training.distributed import SigtermNotice, is_primary, owned_by_hosts, print_once
from protlm_jax.training.hosts import state_of_all, state_of_this
from protlm_jax.training.initial import Load, Report, continue_from, require_base
from protlm_jax.training.metrics import MetricsWriter
from protlm_jax.training.progress import LONG_PROTEINS, StepLog, Throughput, is_due
from protlm_jax.training.state import TrainState
from protlm_jax.training.stopping import Patience, is_complete
from protlm_jax.training.workdir import claim_workdir
from protlm_jax.vocabularies import get_vocabulary

if TYPE_CHECKING:
    from protlm_jax.data.batches import ResumableBatches

Batch = dict[str, np.ndarray]


def train(config: RunConfig, workdir: Path, load: Load | None = None) -> int:
    """Trains until `config.train.steps`, from the newest checkpoint if `workdir` has one.

    Returns the number of updates made by this call. `load` reads the model of `config.init_from`;
    see `protlm_jax.huggingface`. Raises a ProtlmError (a folder of another config, bad data, a loss
    that is not finite, a full disk), or Stopped when the process received SIGTERM and has saved.
    """
    with owned_by_hosts(workdir):
        claim_workdir(config, workdir)
        with contextlib.closing(Run(config, workdir, load)) as run:
            return run.fit()


class Run:
    """A run's programs, data, checkpoints and state, ready to train."""

    def __init__(self, config: RunConfig, workdir: Path, load: Load | None = None) -> None:
        self.config, self.workdir = config, workdir
        train, length = config.train, config.data.length
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            every=train.checkpoint_every,
            keep=train.keep,
            keep_every=train.keep_every,
        )
        self.parts = parts = assemble(config)
        self.local_rows = partitioning.local_rows(parts.rows, train.batch_size)
        self.batches = self._open("train", config.data)
        self.heldout: list[Batch] = []
        self.guessing: dict[str, float] = {}
        if train.evaluate_every:
            self.heldout = self._heldout(config.data)
            if config.data.task != "labels":
                self.guessing = {"heldout/unigram_entropy": unigram_entropy(config.data)}
        self.info: dict[str, Any] = {}  # written beside every checkpoint
        self.state, self.start = self._first_state(load)
        self.complete = is_complete(train, workdir)
        self.patience = Patience.of_run(train, workdir, self.start)
        until = train.steps if self.complete else self.start
        self.writer = MetricsWriter(workdir, until) if is_primary() else None
        if is_primary():
            info = partitioning.describe(parts.abstract.params, parts.axes, parts.mesh)
            write_atomically(workdir / "model-info.txt", info)
        flops = training_flops_per_token(config.model, length, parts.objective.queries(length))
        self.throughput = Throughput(flops, jax.devices())

    def fit(self) -> int:
        """Trains until the last step; returns the number of updates."""
        train, parts, start = self.config.train, self.parts, self.start
        if self.complete:
            return 0
        print_once(self._summary())
        log = StepLog(train, start, self.writer, parts.schedule, self.throughput)
        with log, SigtermNotice() as sigterm, contextlib.ExitStack() as trace:
            for step in range(start, train.steps + 1):
                stop = sigterm.received(step)
                last, improved = step == train.steps, False
                new = step > start or step == 0  # a restored state is evaluated and saved already
                if new and is_due(step, train.evaluate_every, train.steps):
                    with log.paused():
                        scores = self._scores(self.heldout)
                    log.evaluated(step, {**scores, **self.guessing})
                    improved = self.patience.add(step, scores)
                    last |= self.patience.exhausted
                if new and step > 0 and self._due(step, improved, last, stop):
                    with log.paused():
                        self._save(step)
                if last:
                    break
                if stop:
                    raise Stopped(told_to_end(step or None))

                if step + 1 in train.profile_steps[:1]:
                    trace.enter_context(jax.profiler.trace(self.workdir))
                batch = next(self.batches)
                # Other hosts' rows are counted as if they held as many tokens as these.
                tokens = count_tokens(batch) * train.batch_size // len(self.local_rows)
                self.state, metrics = parts.update(self.state, self._put(batch))
                sigterm.listen()  # from now on there is something to save
                log.add(step + 1, metrics, tokens)
                if step + 1 in train.profile_steps[1:]:
                    jax.block_until_ready(self.state)  # so that the trace has all of the step
                    trace.close()
        if train.patience and is_primary():
            print_once(f"the lowest held-out loss was that of step {self.patience.best_step}")
        return step - start

    def _due(self, step: int, improved: bool, last: bool, stop: bool) -> bool:
        """Whether to save: with patience at improvements, and before the first evaluation."""
        due = stop or last or self.checkpoints.should_save(step)
        return improved or (due and not self.patience.best_step)

    def _scores(self, batches: list[Batch]) -> dict[str, float]:
        return score(self.parts, self.state, self._put_all(batches))

    def score_heldout(self, data: DataConfig) -> dict[str, float]:
        """Held-out metrics of the present state on the proteins of any data section."""
        return self._scores(self._heldout(data))

    def close(self) -> None:
        """Waits for checkpoints that are being written, and raises their failures."""
        with SigtermNotice() as sigterm:
            sigterm.listen()
            try:
                if self.writer is not None:
                    self.writer.close()
            finally:
                self.checkpoints.close()

    def _open(self, split: Split, data: DataConfig) -> ResumableBatches:
        from protlm_jax.data.pipeline import open_batches

        return open_batches(
            data,
            get_vocabulary(self.config.model.vocabulary),
            split=split,
            seed=self.config.train.seed,
            batch_size=self.config.train.batch_size,
            rows=None if jax.process_count() == 1 else self.local_rows,
        )

    def _heldout(self, data: DataConfig) -> list[Batch]:
        batches = self._open("heldout", data)
        return list(itertools.islice(batches, self.config.train.evaluate_batches))

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        return partitioning.put_rows(batch, self.parts.rows, self.config.train.batch_size)

    def _put_all(self, batches: list[Batch]) -> Any:
        return map(self._put, batches)

    def _first_state(self, load: Load | None) -> tuple[TrainState, int]:
        """The newest intact checkpoint's state and step; else that of `init_from`, or a fresh one.

        The data iterator is set to the same step.
        """
        config, parts = self.config, self.parts
        while (latest := self.checkpoints.latest_step()) is not None:
            try:
                return self._restored(latest, load), latest
            except DamagedCheckpoint as error:
                print_once(self.checkpoints.set_aside(latest, error))
        state = parts.first_state(jax.random.key(config.train.seed))
        if config.init_from is not None:
            state, report = self._continued(state, load)
            print_once("\n".join(report.lines()))
            if is_primary():
                write_json(self.workdir / "init.json", dataclasses.asdict(report))
        return state, 0

    def _continued(self, state: TrainState, load: Load | None) -> tuple[TrainState, Report]:
        """The state with the parameters of `init_from`, of which checkpoints note the digest."""
        assert load is not None, "a run with init_from needs `load`"
        state, report = continue_from(self.config, self.parts, state, load)
        if self.parts.layout.base:
            self.info = {"base": report.digest}
        return state, report

    def _restored(self, step: int, load: Load | None) -> TrainState:
        parts, reset = self.parts, self.config.train.carry == "reset"
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            *(_stored(x, reset) for x in (parts.abstract, parts.layout)),
        )
        stored, data = self.checkpoints.restore(step, target)
        if note := self.batches.restore(state_of_this(data)):
            print_once(note)
        state = TrainState(**stored)
        if parts.layout.base:
            fresh, _ = self._continued(parts.first_state(jax.random.key(0)), load)
            path = self.checkpoints.directory / str(step)
            require_base(path, self.info["base"], str(self.config.init_from))
            state = dataclasses.replace(state, base=fresh.base)
        return dataclasses.replace(state, carry=parts.empty_carry()) if reset else state

    def _save(self, step: int) -> None:
        if self.writer is not None:
            self.writer.flush()
        stored = _stored(self.state, self.config.train.carry == "reset")
        self.checkpoints.save(step, stored, state_of_all(self.batches.state()), self.info)

    def _summary(self) -> str:
        """The model, the devices, the data and the mesh, for people."""
        counts, data = self.batches.counts, self.config.data
        source = data.labels or data.prepared or data.fasta or "the bundled proteins"
        parameters = models.parameter_count(self.parts.abstract.params)
        frozen = models.parameter_count(self.parts.abstract.base)
        trained = f" ({frozen:,} more are frozen)" if frozen else ""
        lines = [
            f"{self.config.model.family} with {parameters:,} parameters{trained} on "
            f"{len(jax.devices())} {jax.devices()[0].device_kind} device(s)",
            f"training on {counts.proteins:,} proteins, {counts.residues:,} residues, of {source}",
        ]
        if counts.longer:
            lines.append(
                f"{counts.longer:,} of them are longer than a row of {data.length} tokens: "
                f"{LONG_PROTEINS[data.long_proteins]}"
            )
        if counts.filled is not None:
            lines.append(f"{counts.filled:.1%} of the tokens of a row are not padding")
        lines += [self.parts.chosen] if self.parts.chosen else []
        if self.start:
            lines.append(f"going on from the checkpoint of step {self.start}")
        return "\n".join(lines)


def _stored(state: TrainState, reset: bool) -> dict[str, Any]:
    """What a checkpoint holds of a state, without the carry where it is reset."""
    return state.stored() | ({"carry": {}} if reset else {})


def score(parts: Assembly, state: TrainState, batches: Any) -> dict[str, float]:
    """Metrics at residues that the model cannot see, of batches on the devices; the same masks
    always.

    Raises a ProtlmError where the batches hold no residue to score.
    """
    totals: dict[str, Any] = {}
    params, carry = parts.scored(state), parts.empty_carry()
    for index, batch in enumerate(batches):
        rng = jax.random.fold_in(jax.random.key(0), index)
        result, carry = parts.evaluate(params, batch, rng, carry)
        for name, value in jax.device_get(result.metrics).items():
            totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
    if not totals.get("hidden/count"):
        raise ProtlmError(
            "the held-out split has no residue to score: raise data.heldout_percent, "
            "or set train.evaluate_every=0"
        )
    return {
        f"heldout/{name.removeprefix('hidden/')}": float(value)
        for name, value in parts.objective.summary(totals).items()
        if not name.startswith("asked/")
    }

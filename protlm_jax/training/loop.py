"""The run: from a config and a folder to a trained model, resumable at any moment.

The order inside the loop is fixed: (evaluate) -> (save) -> next batch -> step -> log the previous
step. Evaluation and saving see the state between two updates; logging one step late keeps the
device busy while the host reads.
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
from protlm_jax.data.splits import Split, training_frequencies
from protlm_jax.errors import ProtlmError, Stopped
from protlm_jax.models.build import count_tokens
from protlm_jax.models.flops import training_flops_per_token
from protlm_jax.process.sigterm import told_to_end
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import write_json
from protlm_jax.training.assembly import assemble
from protlm_jax.training.checkpoints import Checkpoints, DamagedCheckpoint
from protlm_jax.training.distributed import Farewell, leads, owned_by_all, say
from protlm_jax.training.hosts import state_of_all, state_of_this
from protlm_jax.training.initial import Load, continue_from
from protlm_jax.training.metrics import (
    MetricsWriter,
    NoMetrics,
    ProgressReporter,
    Throughput,
    require_finite,
)
from protlm_jax.training.profile import Profile
from protlm_jax.training.state import TrainState
from protlm_jax.training.workdir import claim_workdir
from protlm_jax.vocabularies import get_vocabulary

if TYPE_CHECKING:
    from protlm_jax.data.batches import ResumableBatches

Batch = dict[str, np.ndarray]

LONG_PROTEINS = {
    "crop": "each epoch shows another random piece of them",
    "chunk": "each is read in pieces of nearly equal length",
    "drop": "they are left out",
}


@dataclasses.dataclass
class Pending:
    """A step that was dispatched and not read yet."""

    step: int
    metrics: dict[str, jax.Array]
    tokens: int


def train(config: RunConfig, workdir: Path, load: Load | None = None) -> int:
    """Trains until `config.train.steps`, from the newest checkpoint if the folder has one.

    Args:
        config: the run.
        workdir: its folder: config.json, checkpoints/, metrics.jsonl, TensorBoard events.
        load: reads the model that `config.init_from` names; see `protlm_jax.huggingface`.

    Returns:
        How many updates this call made; 0 when the run was complete already.

    Raises:
        ProtlmError: a folder of another config, bad data, a loss that is not finite, a full disk.
        Stopped: the process was told to end (SIGTERM) and has saved.
    """
    with owned_by_all(workdir):
        claim_workdir(config, workdir)
        run = Run(config, workdir, load)
        with contextlib.closing(run):
            return run.to_the_end()


class Run:
    """The parts of a training run, put together once."""

    def __init__(self, config: RunConfig, workdir: Path, load: Load | None = None) -> None:
        self.config, self.workdir, self.load = config, workdir, load
        self.checkpoints = Checkpoints(
            workdir / "checkpoints",
            every=config.train.checkpoint_every,
            keep=config.train.keep,
            keep_every=config.train.keep_every,
        )
        self.parts = parts = assemble(config)
        self.local_rows = partitioning.local_rows(parts.rows, config.train.batch_size)
        self.batches = self._open("train")
        self.heldout: list[Batch] = []
        if config.train.evaluate_every:
            present = training_frequencies(config.data)
            present = present[present > 0]
            self.unigram_entropy = float(-np.sum(present * np.log(present)))
            pieces = self._open("heldout")
            self.heldout = list(itertools.islice(pieces, config.train.evaluate_batches))
        self.state, self.start = self._initial_state()
        self.writer = MetricsWriter(workdir, self.start) if leads() else NoMetrics()
        self.parameters = models.parameter_count(parts.abstract.params)
        if leads():
            info = partitioning.describe(parts.abstract.params, parts.axes, parts.mesh)
            write_atomically(workdir / "model-info.txt", info)
        self.throughput = Throughput(
            training_flops_per_token(
                config.model, config.data.length, self.parts.objective.queries(config.data.length)
            ),
            jax.devices(),
        )

    def to_the_end(self) -> int:
        """The loop."""
        train = self.config.train
        if self.start >= train.steps:
            return 0
        say(self._opening())
        pending: Pending | None = None
        progress = ProgressReporter(train.steps, self.start, train.log_every, shown=leads())
        profile = Profile(train.profile_steps, self.workdir)
        with progress, profile, Farewell() as farewell:
            for step in range(self.start, train.steps + 1):
                told = farewell.due(step)
                if step > self.start or step == 0:
                    if self._due(step, train.evaluate_every):
                        self._read(pending, progress)
                        pending = None
                        self._evaluate(step, progress)
                    due = step == train.steps or self.checkpoints.should_save(step)
                    if step > 0 and (due or told):
                        self._read(pending, progress)
                        pending = None
                        self._save(step)
                if step == train.steps:
                    break
                if told:
                    raise Stopped(told_to_end(step or None))
                profile.before(step + 1)
                batch = next(self.batches)
                tokens = self._all_hosts(count_tokens(batch))
                self.state, metrics = self.parts.update(self.state, self._put(batch))
                farewell.listen()  # from now on there is something to save
                self._read(pending, progress)
                pending = Pending(step + 1, metrics, tokens)
                profile.after(pending.step, self.state)
        return train.steps - self.start

    def _opening(self) -> str:
        """What is about to run, on what."""
        counts, length = self.batches.counts, self.config.data.length
        data = self.config.data
        source = data.prepared or data.fasta or "the bundled proteins"
        lines = [
            f"{self.config.model.family} with {self.parameters:,} parameters on "
            f"{len(jax.devices())} {jax.devices()[0].device_kind} device(s)",
            f"training on {counts.proteins:,} proteins, {counts.residues:,} residues, of {source}",
        ]
        if counts.longer:
            lines.append(
                f"{counts.longer:,} of them are longer than a row of {length} tokens: "
                f"{LONG_PROTEINS[data.long_proteins]}"
            )
        if counts.filled is not None:
            lines.append(f"{counts.filled:.1%} of the tokens of a row are not padding")
        lines += [self.parts.chosen] if self.parts.chosen else []
        if self.start:
            lines.append(f"going on from the checkpoint of step {self.start}")
        return "\n".join(lines)

    def close(self) -> None:
        """Waits for checkpoints under way; reports what went wrong with them."""
        with Farewell() as farewell:
            farewell.listen()
            try:
                self.writer.close()
            finally:
                self.checkpoints.close()

    def _open(self, split: Split, data: DataConfig | None = None) -> ResumableBatches:
        from protlm_jax.data.pipeline import open_batches

        config = self.config
        return open_batches(
            data or config.data,
            get_vocabulary(config.model.vocabulary),
            split=split,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            rows=None if jax.process_count() == 1 else self.local_rows,
        )

    def _put(self, batch: Batch) -> dict[str, jax.Array]:
        return partitioning.put_rows(batch, self.parts.rows, self.config.train.batch_size)

    def _all_hosts(self, count: int) -> int:
        """A count in this host's rows, as if those of the others were like them."""
        return count * self.config.train.batch_size // len(self.local_rows)

    def _initial_state(self) -> tuple[TrainState, int]:
        """The newest whole checkpoint's state, or a first one: fresh, or another model's."""
        parts = self.parts
        while (latest := self.checkpoints.latest_step()) is not None:
            try:
                return self._restored(latest), latest
            except DamagedCheckpoint as error:
                say(self.checkpoints.set_aside(latest, error))
        state = parts.first_state(jax.random.key(self.config.train.seed))
        return self._continued(state, parts.layout, parts.axes), 0

    def _restored(self, step: int) -> TrainState:
        """The state of a checkpoint, and the data from there on."""
        parts = self.parts
        abstract, layout = parts.abstract, parts.layout
        forget = self.config.train.carry == "reset"
        if forget:
            abstract, layout = (dataclasses.replace(x, carry={}) for x in (abstract, layout))
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            layout,
        )
        state, data = self.checkpoints.restore(step, target)
        if note := self.batches.restore(state_of_this(data)):
            say(note)
        if forget:
            state = dataclasses.replace(state, carry=parts.empty_carry())
        return state

    def _continued(self, fresh: TrainState, layout: TrainState, axes: Any) -> TrainState:
        if self.config.init_from is None:
            return fresh
        assert self.load is not None, "a run that starts from a model needs to be told how"
        state, report = continue_from(self.config, fresh, layout, axes, self.load)
        say("\n".join(report.lines()))
        if leads():
            write_json(self.workdir / "init.json", dataclasses.asdict(report))
        return state

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.config.train.steps)

    def _read(self, pending: Pending | None, progress: ProgressReporter) -> None:
        """Waits for a dispatched step, refuses what is not finite, logs it where due.

        A finite update of a finite state is what makes the next state one that may be saved.
        """
        if pending is None:
            return
        metrics = jax.device_get(pending.metrics)
        if metrics.get("skipped/now"):
            self._left_out(pending.step, int(metrics.get("skipped/in_a_row", 0)))
        else:
            for name in ("loss", "gradient_norm", "update_norm"):
                require_finite(pending.step, float(metrics[name]), name)
        self.throughput.add(pending.tokens)
        progress.update(pending.step, metrics)
        if self._due(pending.step, self.config.train.log_every) or pending.step == 1:
            rate = float(self.parts.schedule(pending.step - 1))
            line = {**metrics, "learning_rate": rate, **self.throughput.read()}
            self.writer.write(pending.step, line)

    def _left_out(self, step: int, in_a_row: int) -> None:
        """An update was not made, which changed nothing; refuses the one that is too many."""
        limit = self.config.train.skip_limit
        if in_a_row > limit > 0:
            raise ProtlmError(
                f"training stopped: updates {step - limit} to {step} had losses or gradients that "
                f"are not finite, or far too large, and train.skip_limit is {limit}. The last "
                f"checkpoint is from before or amid them, with finite parameters; go on in a new "
                f"workdir with a lower schedule.learning_rate, or with optimizer.clip_norm=1.0"
            )
        if in_a_row:
            say(f"step {step}: the update was left out, {in_a_row} in a row")

    def _evaluate(self, step: int, progress: ProgressReporter) -> None:
        """Logs the held-out loss.

        Beside it the entropy of the training residues: what guessing by frequency alone costs.
        """
        with self.throughput.paused():
            line = self._score(self.heldout)
        line["heldout/unigram_entropy"] = self.unigram_entropy
        self.writer.write(step, line)
        progress.evaluated(step, line)

    def score_heldout(self, data: DataConfig) -> dict[str, float]:
        """Held-out numbers of the present state on the proteins of any data section."""
        pieces = self._open("heldout", data)
        return self._score(list(itertools.islice(pieces, self.config.train.evaluate_batches)))

    def _score(self, batches: list[Batch]) -> dict[str, float]:
        """Numbers at residues that the model cannot see; the same masks every time."""
        totals: dict[str, Any] = {}
        carry = self.parts.empty_carry()
        for index, batch in enumerate(batches):
            rng = jax.random.fold_in(jax.random.key(0), index)
            rows = self._put(batch)
            score, carry = self.parts.evaluate(self.state.params, rows, rng, carry)
            for name, value in jax.device_get(score.metrics).items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        if not totals.get("hidden/count"):
            raise ProtlmError(
                "the held-out split has no residue to score: raise data.heldout_percent, "
                "or set train.evaluate_every=0"
            )
        return {
            f"heldout/{name.removeprefix('hidden/')}": float(value)
            for name, value in self.parts.objective.summary(totals).items()
            if not name.startswith("asked/")
        }

    def _save(self, step: int) -> None:
        with self.throughput.paused():
            self.writer.flush()
            state = self.state
            if self.config.train.carry == "reset":
                state = dataclasses.replace(state, carry={})
            self.checkpoints.save(step, state, state_of_all(self.batches.state()))

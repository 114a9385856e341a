"""From a config to batches of tokens, with an iterator that can be stopped and taken up again.

    batches = open_batches(config.data, PROT_BERT, split="train", seed=0, batch_size=64)
    batch = next(batches)            # {"input_tokens": int32 [64, length], ...}
    state = batches.state()          # bytes; goes into the checkpoint
    ...                              # another process, another day
    batches.restore(state)           # the next batch is the one that would have come next

Training batches never end; every epoch has a new order, new crops and new noise. Held-out batches
are one pass over every held-out residue, in a fixed order, and the last one is filled up with empty
rows (segment 0 throughout).
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.packing import EncoderDecoderConverter, SingleStackConverter
from protlm_jax.data.runtime import tf
from protlm_jax.data.splits import Split, load_records
from protlm_jax.data.tasks import build_task, residues_per_row, task_features
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

THREADS = 2
FORMAT = 1
"""Raised when a change of the pipeline gives other batches than before from the same seed."""


@dataclass(frozen=True)
class Counts:
    """What was read, for the log.

    proteins, residues: of this side of the split.
    longer: proteins that do not fit a row; in training each epoch shows a random piece of them, and
      held out they are cut into pieces.
    """

    proteins: int
    residues: int
    longer: int


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """Batches of a tf.data pipeline, with a state that can be saved and restored."""

    def __init__(self, ds: tf.data.Dataset, counts: Counts, identity: str) -> None:
        self.counts = counts
        self._identity = identity
        self._iterator = iter(ds)
        self._checkpoint = tf.train.Checkpoint(iterator=self._iterator)

    def __next__(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in next(self._iterator).items()}

    def state(self) -> bytes:
        """Where the iterator stands after the last batch it gave, whatever was prefetched."""
        with tempfile.TemporaryDirectory() as folder:
            self._checkpoint.write(f"{folder}/state")
            files = {f.name: f.read_bytes().hex() for f in sorted(Path(folder).iterdir())}
        text = json.dumps({"identity": self._identity, "files": files})
        return zlib.compress(text.encode())

    def restore(self, state: bytes) -> None:
        """Continues behind the batch after which `state` was taken.

        Raises:
          ProtlmError: the state comes from other proteins, another seed or another shape of batch.
        """
        saved = json.loads(zlib.decompress(state))
        if saved["identity"] != self._identity:
            raise ProtlmError(
                "the data are not those of the checkpoint, so the run cannot be continued exactly: "
                f"it was reading {saved['identity']}, and now {self._identity}; give it the same "
                "data and settings, or start in a new folder"
            )
        with tempfile.TemporaryDirectory() as folder:
            for name, content in saved["files"].items():
                Path(folder, name).write_bytes(bytes.fromhex(content))
            self._checkpoint.read(f"{folder}/state").assert_consumed()


def open_batches(
    config: DataConfig, vocabulary: Vocabulary, *, split: Split, seed: int, batch_size: int
) -> BatchIterator:
    """Batches of one side of the split, for the whole machine (`batch_size` is the global one).

    Args:
      config: which proteins, and how they become rows.
      vocabulary: of the model.
      split: "train" (endless) or "heldout" (one pass).
      seed: of order, crops and noise in training; held out, order and noise are the same for
        every seed, so that runs can be compared.
      batch_size: rows per batch.
    Returns:
      An iterator over dicts of int32 [batch_size, config.length]: input_tokens, segment_ids and
      positions for the task "tokens"; encoder_* and decoder_* for the others.
    Raises:
      ProtlmError: the FASTA file is at fault, a side of the split is empty, a row is too short,
        or the task needs sentinels that the vocabulary does not have.
    """
    lengths = dict.fromkeys(task_features(config.task), config.length)
    room = residues_per_row(config.task, vocabulary, lengths)
    if room < 1:
        raise ProtlmError(f"data.length={config.length} leaves no room for residues; raise it")
    corpus = Corpus.from_records(load_records(config, split), vocabulary)
    converter = EncoderDecoderConverter if "inputs" in lengths else SingleStackConverter
    seed = seed if split == "train" else 0
    task = build_task(config.task, corpus, vocabulary, split)
    ds = task.get_dataset(
        lengths, split, shuffle=False, seed=seed, trim_output_features=False, try_in_mem_cache=False
    )
    ds = converter(several=config.pack)(ds, lengths)
    if split == "heldout":
        empty = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in ds.element_spec.items()}
        ds = ds.concatenate(tf.data.Dataset.from_tensors(empty).repeat(batch_size - 1))
    ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
    counts = Counts(len(corpus), len(corpus.tokens), int((corpus.lengths > room).sum()))
    settings = {**asdict(config), "fasta": corpus.digest()}
    identity = f"format {FORMAT}, {vocabulary.name}, {settings}, {split}, seed {seed}"
    identity += f", batches of {batch_size}"
    return BatchIterator(ds.with_options(_options()), counts, identity)


def _options() -> tf.data.Options:
    """Deterministic, on few threads, and with a checkpoint of counters in place of buffers."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = THREADS
    options.experimental_symbolic_checkpoint = True
    return options

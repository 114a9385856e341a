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

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.packing import EncoderDecoderConverter, SingleStackConverter
from protlm_jax.data.resumable import Counts, ResumableBatches, identity_of
from protlm_jax.data.runtime import tf
from protlm_jax.data.splits import Split, load_records
from protlm_jax.data.streams import StreamIterator
from protlm_jax.data.tasks import build_task, residues_per_row, task_features
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

THREADS = 2


class BatchIterator(ResumableBatches):
    """Batches of a tf.data pipeline."""

    def __init__(self, ds: tf.data.Dataset, counts: Counts, identity: str) -> None:
        super().__init__(counts, identity)
        self._iterator = iter(ds)
        self._checkpoint = tf.train.Checkpoint(iterator=self._iterator)

    def __next__(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in next(self._iterator).items()}

    def _position(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            self._checkpoint.write(f"{folder}/state")
            return {"files": {f.name: f.read_bytes().hex() for f in sorted(Path(folder).iterdir())}}

    def _move_to(self, position: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in position["files"].items():
                Path(folder, name).write_bytes(bytes.fromhex(content))
            self._checkpoint.read(f"{folder}/state").assert_consumed()


def open_batches(
    config: DataConfig, vocabulary: Vocabulary, *, split: Split, seed: int, batch_size: int
) -> ResumableBatches:
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
      positions for the task "tokens"; those and target_tokens and target_weights for "stream";
      encoder_* and decoder_* for the others.
    Raises:
      ProtlmError: the FASTA file is at fault, a side of the split is empty, a row is too short,
        or the task needs sentinels that the vocabulary does not have.
    """
    corpus = Corpus.from_records(load_records(config, split), vocabulary)
    seed = seed if split == "train" else 0
    identity = identity_of(
        config, corpus, vocabulary, split=split, seed=seed, batch_size=batch_size
    )
    if config.task == "stream":
        shape = (batch_size, config.length)
        return StreamIterator(corpus, vocabulary, identity, shape, split=split, seed=seed)
    lengths = dict.fromkeys(task_features(config.task), config.length)
    room = residues_per_row(config.task, vocabulary, lengths)
    if room < 1:
        raise ProtlmError(f"data.length={config.length} leaves no room for residues; raise it")
    task = build_task(config.task, corpus, vocabulary, split)
    ds = task.get_dataset(
        lengths, split, shuffle=False, seed=seed, trim_output_features=False, try_in_mem_cache=False
    )
    converter = EncoderDecoderConverter if "inputs" in lengths else SingleStackConverter
    ds = converter(several=config.pack)(ds, lengths)
    if split == "heldout":
        empty = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in ds.element_spec.items()}
        ds = ds.concatenate(tf.data.Dataset.from_tensors(empty).repeat(batch_size - 1))
    ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
    counts = Counts(len(corpus), len(corpus.tokens), int((corpus.lengths > room).sum()))
    return BatchIterator(ds.with_options(_options()), counts, identity)


def _options() -> tf.data.Options:
    """Deterministic, on few threads, and with a checkpoint of counters in place of buffers."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = THREADS
    options.experimental_symbolic_checkpoint = True
    return options

"""Batches of a SeqIO task: tf.data under an iterator that can be stopped and taken up again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.packing import EncoderDecoderConverter, SingleStackConverter
from protlm_jax.data.resumable import (
    Counts,
    ResumableBatches,
    Wanted,
    no_protein_fits,
    require_room,
)
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.tasks import build_task, residues_per_row, task_features
from protlm_jax.vocabularies import Vocabulary

THREADS = 2


class BatchIterator(ResumableBatches):
    """Batches of a tf.data pipeline; each host makes all rows, and takes those that it wants."""

    def __init__(
        self,
        ds: tf.data.Dataset,
        counts: Counts,
        identity: str,
        wanted: Wanted,
    ) -> None:
        super().__init__(counts, identity)
        self._iterator = iter(ds)
        self._checkpoint = tf.train.Checkpoint(iterator=self._iterator)
        self._rows = slice(None) if wanted.rows is None else wanted.numbers

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        return {name: value.numpy()[self._rows] for name, value in batch.items()}

    def _position(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            self._checkpoint.write(f"{folder}/state")
            return {"files": {f.name: f.read_bytes().hex() for f in sorted(Path(folder).iterdir())}}

    def _move_to(self, position: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in position["files"].items():
                Path(folder, name).write_bytes(bytes.fromhex(content))
            self._checkpoint.read(f"{folder}/state").assert_consumed()


def corpus_batches(
    corpus: Corpus, config: DataConfig, vocabulary: Vocabulary, identity: str, wanted: Wanted
) -> BatchIterator:
    """Batches of the SeqIO task that a config names, over proteins in memory.

    Raises:
      ProtlmError: a row has no room for residues, no protein fits one, or the task needs sentinels
        that the vocabulary does not have.
    """
    lengths = dict.fromkeys(task_features(config.task), config.length)
    room = require_room(residues_per_row(config.task, vocabulary, lengths), config)
    counts = Counts(len(corpus), len(corpus.tokens), int((corpus.lengths > room).sum()))
    dropping = wanted.split == "train" and config.long_proteins == "drop"
    if dropping and counts.longer == counts.proteins:
        raise no_protein_fits(config)
    task = build_task(config.task, corpus, vocabulary, wanted.split, config.long_proteins)
    return BatchIterator(batched(task, config, wanted), counts, identity, wanted)


def batched(task: seqio.Task, config: DataConfig, wanted: Wanted) -> tf.data.Dataset:
    """Packed batches of a task; held out, the last one is filled with empty rows."""
    lengths = dict.fromkeys(task.output_features, config.length)
    split, batch_size = wanted.split, wanted.batch_size
    ds = task.get_dataset(
        lengths,
        split,
        shuffle=False,
        seed=wanted.seed,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    converter = EncoderDecoderConverter if "inputs" in lengths else SingleStackConverter
    ds = converter(several=config.pack)(ds, lengths)
    if split == "heldout":
        empty = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in ds.element_spec.items()}
        ds = ds.concatenate(tf.data.Dataset.from_tensors(empty).repeat(batch_size - 1))
    ds = ds.batch(batch_size, drop_remainder=True).prefetch(2)
    return ds.with_options(_options())


def _options() -> tf.data.Options:
    """Deterministic, on few threads, and with a checkpoint of counters in place of buffers."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = THREADS
    options.experimental_symbolic_checkpoint = True
    return options

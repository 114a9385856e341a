"""Batches from the records of a prepared folder, through SeqIO, for corpora that fit no memory.

Hosts that take equal blocks of a batch's rows each read proteins of their own. How many such data
shards there are decides which protein comes when, so it belongs to the state of an iterator: a run
goes on with as many hosts as it had. (On token files any number can go on.)

TFRecord files carry a checksum for every record, so a flipped byte is seen when it is read; then
the shard is found by its hash in the manifest.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.record_source import EpochSource, RecordSource
from protlm_jax.data.resumable import (
    Counts,
    Wanted,
    identity_of,
    no_protein_fits,
    require_room,
)
from protlm_jax.data.runtime import tf
from protlm_jax.data.seqio_batches import BatchIterator, batched
from protlm_jax.data.tasks import make_task, residues_per_row, steps, task_features
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

_NEXT_SEED = 1_000_003  # between the noise of one data shard and that of the next


def open_record_batches(
    prepared: Prepared, config: DataConfig, vocabulary: Vocabulary, wanted: Wanted
) -> RecordBatches:
    """Batches of the SeqIO task that a config names, over records.

    Raises:
      ProtlmError: the folder has no records, or a shard is missing or of another size; the task is
        "stream", or needs sentinels that the vocabulary does not have; or no protein fits a row.
    """
    if config.task == "stream":
        raise ProtlmError(
            f"{config.prepared} has no token files, which data.task=stream reads; run protlm "
            "prepare with --tokens into another folder"
        )
    side = prepared.splits[wanted.split]
    if not side.records:
        raise ProtlmError(
            f"{config.prepared} has no records, which data.task={config.task} reads; run protlm "
            "prepare with --records into another folder"
        )
    for shard in side.records:
        prepared.require(shard)
    lengths = dict.fromkeys(task_features(config.task), config.length)
    room = require_room(residues_per_row(config.task, vocabulary, lengths), config)
    if wanted.split == "train" and config.long_proteins == "drop" and side.lengths[0, 0] > room:
        raise no_protein_fits(config)
    longer = int(side.lengths[side.lengths[:, 0] > room, 1].sum())
    counts = Counts(side.proteins, side.residues, longer)
    identity = identity_of(config, f"records of {prepared.digest}", vocabulary, wanted)
    return RecordBatches(prepared, config, vocabulary, wanted, counts, identity)


class RecordBatches(BatchIterator):
    """Batches of records; each data shard makes its own rows."""

    def __init__(
        self,
        prepared: Prepared,
        config: DataConfig,
        vocabulary: Vocabulary,
        wanted: Wanted,
        counts: Counts,
        identity: str,
    ) -> None:
        self._prepared, self._side = prepared, prepared.splits[wanted.split]
        self._shard = index, number = data_shard(wanted)
        if number > 1:
            size = wanted.batch_size // number
            seed = wanted.seed + index * _NEXT_SEED
            mine = replace(wanted, batch_size=size, seed=seed, rows=None)
        else:
            mine = wanted
        files = [str(prepared.folder / s.file) for s in self._side.records if s.proteins]
        source = (
            EpochSource(files, wanted.seed, self._shard)
            if wanted.split == "train"
            else RecordSource(lambda split: files, [wanted.split])
        )
        task = make_task(
            f"records_{config.task}_{wanted.split}",
            source,
            config.task,
            vocabulary,
            steps(
                config.task,
                vocabulary,
                wanted.split,
                config.long_proteins,
                letter_table(vocabulary, config.rare_residues),
            ),
        )
        super().__init__(batched(task, config, mine), counts, identity, mine)

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            return super().__next__()
        except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
            for shard in self._side.records:
                self._prepared.require(shard, whole=True)
            raise ProtlmError(f"cannot read {self._prepared.folder}: {error.message}") from None

    def restore(self, state: bytes) -> None:
        """As `ResumableBatches.restore`; also refuses a state of another number of data shards."""
        saved = json.loads(zlib.decompress(state)).get("shard")
        if saved is not None and tuple(saved) != self._shard:
            (index, number), (here, hosts) = saved, self._shard
            raise ProtlmError(
                f"the checkpoint is of data shard {index + 1} of {number}, and this host reads "
                f"{here + 1} of {hosts}: go on with {number} (as many hosts as before), or train "
                "from token files (protlm prepare --tokens), where any number of hosts can go on"
            )
        super().restore(state)

    def _position(self) -> dict[str, Any]:
        return {**super()._position(), "shard": self._shard}


def data_shard(wanted: Wanted) -> tuple[int, int]:
    """(index, number) of the data shard whose rows are wanted.

    One of several, where they are one of several equal blocks of a training batch. Held-out batches
    are one pass of the same length for every host, or one would wait for another for ever: there
    each host makes all rows, and takes its own.
    """
    rows = wanted.numbers
    block = len(rows) and rows[0] % len(rows) == 0 and wanted.batch_size % len(rows) == 0
    if wanted.split == "train" and block and rows[-1] - rows[0] == len(rows) - 1:
        return int(rows[0]) // len(rows), wanted.batch_size // len(rows)
    return 0, 1


def letter_table(vocabulary: Vocabulary, rare_residues: str) -> np.ndarray:
    """int32 [256]: ids of letters, under a config's rule for rare residues."""
    table = vocabulary.letter_table.copy()
    if rare_residues == "X":
        table[[ord(letter) for letter in "UZOB"]] = table[ord("X")]
    return table

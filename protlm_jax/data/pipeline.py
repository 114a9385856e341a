"""From a config to batches of tokens, with an iterator that can be stopped and taken up again.

    batches = open_batches(config.data, PROT_BERT, split="train", seed=0, batch_size=64)
    batch = next(batches)            # {"input_tokens": int32 [64, length], ...}
    state = batches.state()          # bytes; goes into the checkpoint
    ...                              # another process, another day
    batches.restore(state)           # the next batch is the one that would have come next

Training batches never end; every epoch has a new order, new crops and new noise. Held-out batches
are one pass over every held-out residue, in a fixed order, and the last one is filled up with empty
rows (segment 0 throughout).

A FASTA file, the token files of a prepared folder, and its records all become `TokenShard`s, and
every task reads those. Only records need TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from protlm_jax.data.config import DataConfig
from protlm_jax.data.prepared import Prepared, PreparedSplit
from protlm_jax.data.resumable import BatchRequest, ResumableBatches, identity_of
from protlm_jax.data.splits import Split, load_records, open_prepared
from protlm_jax.data.streams import StreamIterator
from protlm_jax.data.token_batches import TokenBatches
from protlm_jax.data.token_files import TokenShard, open_token_shards
from protlm_jax.data.token_rows import Alphabet
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary


def open_batches(
    config: DataConfig,
    vocabulary: Vocabulary,
    *,
    split: Split,
    seed: int,
    batch_size: int,
    rows: Sequence[int] | None = None,
) -> ResumableBatches:
    """Batches of one side of the split.

    Args:
      config: which proteins, and how they become rows.
      vocabulary: of the model.
      split: "train" (endless) or "heldout" (one pass).
      seed: of order, crops and noise in training; held out, order and noise are the same for
        every seed, so that runs can be compared.
      batch_size: rows of a batch of all hosts together.
      rows: which of them this host wants, ascending; None for all. The batches of all hosts and
        the state do not depend on it.
    Returns:
      An iterator over dicts of int32 [rows, config.length]: input_tokens, segment_ids and
      positions for the task "tokens"; those and target_tokens and target_weights for "stream";
      encoder_* and decoder_* for the others.
    Raises:
      ProtlmError: the file or the folder is at fault, a side of the split is empty, a row is too
        short, or the task needs sentinels that the vocabulary does not have.
    """
    wanted = BatchRequest(split, seed if split == "train" else 0, batch_size, rows)
    prepared = open_prepared(config)
    if prepared is None:
        shards, digest = _from_fasta(config, vocabulary, split)
    else:
        shards, digest = _from_prepared(prepared, config, vocabulary, split)
    identity = identity_of(config, digest, vocabulary, wanted)
    kind = StreamIterator if config.task == "stream" else TokenBatches
    return kind(shards, config, vocabulary, identity, wanted)


def _from_fasta(
    config: DataConfig, vocabulary: Vocabulary, split: Split
) -> tuple[list[TokenShard], str]:
    """The proteins of a FASTA file, or the bundled ones, and a digest of their ids."""
    records = load_records(config, split)
    shard = TokenShard.of([record.sequence for record in records])
    ids = Alphabet(vocabulary).ids(shard.letters)
    lacking = vocabulary.letter_table[shard.letters] < 0
    if lacking.any():
        at = int(np.searchsorted(shard.offsets, lacking.argmax(), side="right")) - 1
        try:
            vocabulary.encode(records[at].sequence)
        except ProtlmError as error:
            raise ProtlmError(f"record {records[at].id!r}, {error}") from error
    dtype = np.uint8 if vocabulary.residue_ids.max() < 256 else np.uint16
    digest = blake2b(ids.astype(dtype).tobytes(), digest_size=8)
    digest.update(shard.offsets.tobytes())
    return [shard], digest.hexdigest()


def _from_prepared(
    prepared: Prepared, config: DataConfig, vocabulary: Vocabulary, split: Split
) -> tuple[list[TokenShard], str]:
    """The token files of a prepared folder, or its records, and a digest."""
    side = prepared.splits[split]
    if not side.proteins:
        raise ProtlmError(
            f"{config.prepared} holds no protein out; prepare it with --heldout_percent above 0, "
            "or set train.evaluate_every=0"
        )
    _require_letters(side, config, vocabulary)
    if side.tokens or not side.records:
        return open_token_shards(prepared, split), prepared.digest
    from protlm_jax.data.record_source import read_sequences  # TensorFlow

    shards = []
    for shard in side.records:
        path = prepared.require(shard, whole=True)
        shards.append(TokenShard.of(read_sequences(path)))
    return shards, f"records of {prepared.digest}"


def _require_letters(side: PreparedSplit, config: DataConfig, vocabulary: Vocabulary) -> None:
    """Raises ProtlmError where the vocabulary lacks a residue that occurs."""
    alphabet = Alphabet(vocabulary, config.rare_residues)
    for letter, count in side.residue_counts.items():
        if count and alphabet.lacks(letter):
            raise ProtlmError(
                f"{config.prepared}, split {side.name!r}: {count:,} residues are {letter!r}, which "
                f"has no id in {vocabulary.name}; prepare the data without such proteins"
            )

"""From a config to batches of tokens, by an iterator that can be stopped and resumed.

    batches = open_batches(config.data, PROT_BERT, split="train", seed=0, batch_size=64)
    batch = next(batches)            # {"input_tokens": int32 [64, length], ...}
    state = batches.state()          # bytes; goes into the checkpoint
    ...                              # another process, another day
    batches.restore(state)           # the next batch is the one that would have come next

A FASTA file, the token files of a prepared folder, and its records all become `TokenShard`s, which
every task reads. Only records need TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b

import numpy as np

from protlm_jax.data.batches import BatchRequest, ResumableBatches, TokenBatches
from protlm_jax.data.config import DataConfig
from protlm_jax.data.labelled import LabelBatches, read_labels
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.splits import Split, load_records, open_prepared
from protlm_jax.data.streams import StreamIterator
from protlm_jax.data.token_files import TokenShard, open_token_shards
from protlm_jax.data.token_rows import Alphabet
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import Vocabulary

FORMAT = 2
"""Raised when the same seed gives other batches than before."""


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
      split: "train" (endless; each epoch has a new order, new crops and new noise) or "heldout"
        (one pass over every held-out residue in a fixed order; the last batch is filled up with
        empty rows).
      seed: of order, crops and noise in training; held-out batches are the same for every seed.
      batch_size: rows of a batch of all hosts together.
      rows: the rows of this host, ascending; None for all. The batches of all hosts and the state
        do not depend on it.
    Returns:
      An iterator over dicts of int32 [rows, config.length]: input_tokens, segment_ids and
      positions for the task "tokens"; those and target_tokens and target_weights for "stream";
      encoder_* and decoder_* for the others.
    Raises:
      ProtlmError: the file or the folder is at fault, a side of the split is empty, a row is too
        short, or the vocabulary lacks the sentinels of the task.
    """
    request = BatchRequest(split, seed if split == "train" else 0, batch_size, rows)
    if config.task == "labels":
        labelled, values, digest = read_labels(config, split)
        identity = _identity(config, digest, vocabulary, request)
        return LabelBatches(labelled, values, config, vocabulary, identity, request)
    prepared = open_prepared(config)
    if prepared is None:
        shards, digest = _from_fasta(config, vocabulary, split)
    else:
        shards, digest = _from_prepared(prepared, config, vocabulary, split)
    identity = _identity(config, digest, vocabulary, request)
    kind = StreamIterator if config.task == "stream" else TokenBatches
    return kind(shards, config, vocabulary, identity, request)


def _from_fasta(
    config: DataConfig, vocabulary: Vocabulary, split: Split
) -> tuple[list[TokenShard], str]:
    """The proteins of a FASTA file, or the bundled ones, and a digest of their ids."""
    records = load_records(config, split)
    shard = TokenShard.of([record.sequence for record in records])
    lacking = np.take(vocabulary.letter_table, shard.letters, mode="clip") < 0
    if lacking.any():
        at = int(np.searchsorted(shard.offsets, lacking.argmax(), side="right")) - 1
        try:
            vocabulary.encode(records[at].sequence)
        except ProtlmError as error:
            raise ProtlmError(f"record {records[at].id!r}, {error}") from error
    ids = Alphabet(vocabulary).ids(shard.letters)
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
    alphabet = Alphabet(vocabulary, config.rare_residues)
    for letter, count in side.residue_counts.items():
        if count and alphabet.lacks(letter):
            raise ProtlmError(
                f"{config.prepared}, split {side.name!r}: {count:,} residues are {letter!r}, which "
                f"has no id in {vocabulary.name}; prepare the data without such proteins"
            )
    if side.tokens or not side.records:
        return open_token_shards(prepared, split), prepared.digest
    from protlm_jax.data.records import read_sequences  # TensorFlow

    paths = [prepared.require(shard, whole=True) for shard in side.records]
    return [TokenShard.of(read_sequences(path)) for path in paths], f"records of {prepared.digest}"


def _identity(
    config: DataConfig, digest: str, vocabulary: Vocabulary, request: BatchRequest
) -> str:
    """A name for exactly these batches; `digest` is of the proteins, wherever their file is."""
    settings = {**asdict(config), "proteins": digest}
    del settings["fasta"], settings["prepared"], settings["labels"]
    if config.prepared is not None:
        del settings["heldout_percent"]
    name = f"format {FORMAT}, {vocabulary.name}, {settings}, {request.split}, seed {request.seed}"
    return name + f", batches of {request.batch_size}"

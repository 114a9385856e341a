"""From a config to batches of tokens, with an iterator that can be stopped and taken up again.

    batches = open_batches(config.data, PROT_BERT, split="train", seed=0, batch_size=64)
    batch = next(batches)            # {"input_tokens": int32 [64, length], ...}
    state = batches.state()          # bytes; goes into the checkpoint
    ...                              # another process, another day
    batches.restore(state)           # the next batch is the one that would have come next

Training batches never end; every epoch has a new order, new crops and new noise. Held-out batches
are one pass over every held-out residue, in a fixed order, and the last one is filled up with empty
rows (segment 0 throughout).

There are three roads. A FASTA file goes through SeqIO's tasks, all of it in memory. So does a
prepared folder with records, shard by shard. One with token files needs no TensorFlow, for the
tasks `tokens`, `prott5` and `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence

from protlm_jax.data.config import DataConfig
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.prepared import Prepared, PreparedSplit
from protlm_jax.data.resumable import ResumableBatches, Wanted, identity_of
from protlm_jax.data.splits import Split, load_records, open_prepared
from protlm_jax.data.streams import StreamIterator, TokenFileProteins
from protlm_jax.data.token_batches import TokenBatches
from protlm_jax.data.token_files import open_token_shards
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
    wanted = Wanted(split, seed if split == "train" else 0, batch_size, rows)
    prepared = open_prepared(config)
    if prepared is None:
        return _from_fasta(config, vocabulary, wanted)
    side = prepared.splits[split]
    if not side.proteins:
        raise ProtlmError(
            f"{config.prepared} holds no protein out; prepare it with --heldout_percent above 0, "
            "or set train.evaluate_every=0"
        )
    _require_letters(side, config, vocabulary)
    if side.tokens and config.task in ("tokens", "prott5", "stream"):
        return _from_token_files(prepared, config, vocabulary, wanted)
    from protlm_jax.data.records import open_record_batches

    return open_record_batches(prepared, config, vocabulary, wanted)


def _from_fasta(config: DataConfig, vocabulary: Vocabulary, wanted: Wanted) -> ResumableBatches:
    """Batches of a FASTA file, or of the bundled proteins."""
    corpus = Corpus.from_records(load_records(config, wanted.split), vocabulary)
    identity = identity_of(config, corpus.digest(), vocabulary, wanted)
    if config.task == "stream":
        return StreamIterator(corpus, vocabulary, identity, config.length, wanted)
    from protlm_jax.data.seqio_batches import corpus_batches

    return corpus_batches(corpus, config, vocabulary, identity, wanted)


def _from_token_files(
    prepared: Prepared, config: DataConfig, vocabulary: Vocabulary, wanted: Wanted
) -> ResumableBatches:
    """Batches of token files, without TensorFlow."""
    shards = open_token_shards(prepared, wanted.split)
    alphabet = Alphabet(vocabulary, config.rare_residues)
    identity = identity_of(config, prepared.digest, vocabulary, wanted)
    if config.task == "stream":
        proteins = TokenFileProteins(shards, alphabet)
        return StreamIterator(proteins, vocabulary, identity, config.length, wanted)
    return TokenBatches(shards, config, vocabulary, identity, wanted)


def _require_letters(side: PreparedSplit, config: DataConfig, vocabulary: Vocabulary) -> None:
    """Raises ProtlmError where the vocabulary lacks a residue that occurs."""
    alphabet = Alphabet(vocabulary, config.rare_residues)
    for letter, count in side.residue_counts.items():
        if count and alphabet.lacks(letter):
            raise ProtlmError(
                f"{config.prepared}, split {side.name!r}: {count:,} residues are {letter!r}, which "
                f"has no id in {vocabulary.name}; prepare the data without such proteins"
            )

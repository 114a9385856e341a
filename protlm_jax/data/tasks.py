"""SeqIO tasks over proteins: `tokens` (clean rows), and three ways to corrupt them for a T5.

A task is a source and a list of preprocessors:

    CorpusSource        {"targets": residues of one protein}
    cut_evenly          held out: a protein longer than the row in pieces of nearly equal length
    fill                training: a random piece of it; then, in the same call,
                        prott5: adds "inputs", the whole protein with residues hidden
                        span3 and ankh: "inputs" and "targets" share the protein out
                        [CLS] M K T [SEP] in ProtBert's alphabet, M K T </s> in ProtT5's

so that every row begins and ends as a whole protein would, and nothing is cut off unseen: over the
epochs a random crop shows every residue (how many proteins are cropped stands in the run's log).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from protlm_jax.data.config import LongProteins
from protlm_jax.data.corpus import Corpus
from protlm_jax.data.denoising import RANDOM_SHARE, Corruption, Example, prott5_corruption
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.seqio_vocabulary import SeqioVocabulary
from protlm_jax.data.spans import SPAN_TASKS, sentinels_of, span_corruption
from protlm_jax.data.splits import Split
from protlm_jax.vocabularies import Vocabulary

Preprocessor = Callable[..., tf.data.Dataset]
Room = Callable[[Mapping[str, int]], int]
"""From the lengths of a row to the residues that fit beside the special tokens."""


class CorpusSource(seqio.DataSource):
    """Proteins of a `Corpus` in random order, as {"targets": int32 [residues]}.

    Split "train" never ends: epoch after epoch, each protein exactly once per epoch, each epoch in
    an order of its own over the whole corpus (not a shuffle buffer). Split "heldout" is one pass in
    one fixed random order, the same for every seed. All of it follows from a counter, so the state
    of an iterator over it is that counter.
    """

    def __init__(self, corpus: Corpus, split: Split) -> None:
        self._corpus = corpus
        size = {split: len(corpus)} if split == "heldout" else None
        super().__init__(
            splits=[split],
            num_input_examples=size,
            caching_permitted=False,
            performs_internal_shuffling=True,
        )

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """`shuffle` is without effect: the order is always random and always reproducible."""
        count = len(self._corpus)
        training = split == "train"
        numbers = tf.data.Dataset.range(tf.int64.max if training else count)
        if shard_info is not None:
            numbers = numbers.shard(shard_info.num_shards, shard_info.index)
        tokens = tf.constant(self._corpus.tokens)
        spans = tf.constant(np.stack([self._corpus.offsets[:-1], self._corpus.lengths], axis=1))
        order_seed = tf.constant((seed or 0) if training else 0, tf.int64)

        def read(number: tf.Tensor) -> Example:
            epoch, index = number // count, number % count
            where = tf.random.experimental.index_shuffle(
                index, tf.stack([order_seed, epoch]), tf.constant(count - 1, tf.int64)
            )
            start, length = tf.split(tf.gather(spans, where), 2)
            return {"targets": tf.cast(tf.slice(tokens, start, length), tf.int32)}

        return numbers.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def build_task(
    kind: str,
    corpus: Corpus,
    vocabulary: Vocabulary,
    split: Split,
    long_proteins: LongProteins = "crop",
) -> seqio.Task:
    """The SeqIO task `kind` ("tokens", "prott5", "span3" or "ankh") over one side of a split.

    Its features are int32, "targets" and but for `tokens` also "inputs", which have the same length
    in `prott5`. Give `get_dataset` a `sequence_length` for them, of at least one token more than
    the specials; the returned task is not in SeqIO's registry (see `register`).

    Raises:
      ProtlmError: the task needs sentinels, and the vocabulary has none.
    """
    source = CorpusSource(corpus, split)
    preprocessors = steps(kind, vocabulary, split, long_proteins)
    return make_task(f"protlm_{kind}_{split}", source, kind, vocabulary, preprocessors)


def make_task(
    name: str,
    source: seqio.DataSource,
    kind: str,
    vocabulary: Vocabulary,
    preprocessors: Sequence[Preprocessor],
    shuffle_buffer_size: int | None = None,
) -> seqio.Task:
    """A SeqIO task of a kind, not registered. `preprocessors` end with those of `steps`."""
    feature = seqio.Feature(SeqioVocabulary(vocabulary), add_eos=False)
    return seqio.Task(
        name,
        source=source,
        preprocessors=preprocessors,
        output_features=dict.fromkeys(task_features(kind), feature),
        shuffle_buffer_size=shuffle_buffer_size,
    )


def steps(
    kind: str,
    vocabulary: Vocabulary,
    split: Split,
    long_proteins: LongProteins = "crop",
    letter_table: np.ndarray | None = None,
) -> list[Preprocessor]:
    """The preprocessors from {"targets": residues of a protein} to the examples of a task.

    Args:
      long_proteins: what becomes of proteins longer than a row, in training. Held out, they are cut
        into pieces.
      letter_table: of `encode`, where the examples are {"sequence": letters}.
    Raises:
      ProtlmError: the task needs sentinels, and the vocabulary has none.
    """
    room = functools.partial(residues_per_row, kind, vocabulary)
    corruption = _corruption(kind, vocabulary, split)
    if split == "train" and long_proteins == "crop":
        return [fill(vocabulary, corruption, crop=room, letter_table=letter_table)]
    drop = split == "train" and long_proteins == "drop"
    fit = functools.partial(drop_longer if drop else cut_evenly, room=room)
    first = [] if letter_table is None else [encode(letter_table)]
    return [*first, fit, fill(vocabulary, corruption)]


def _corruption(kind: str, vocabulary: Vocabulary, split: Split) -> Corruption | None:
    if kind == "prott5":
        return prott5_corruption(vocabulary, RANDOM_SHARE if split == "train" else 0.0)
    return span_corruption(vocabulary, SPAN_TASKS[kind]) if kind in SPAN_TASKS else None


def register(task: seqio.Task) -> str:
    """Puts a task into SeqIO's registry, where T5X finds it by the name that is returned.

    The name is protlm_<kind>_<split>, whatever the corpus; the last one registered counts.
    """
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    return str(task.name)


def task_features(kind: str) -> tuple[str, ...]:
    """The features of a task's examples: "targets", and "inputs" where there is a decoder."""
    return ("targets",) if kind == "tokens" else ("inputs", "targets")


def residues_per_row(kind: str, vocabulary: Vocabulary, sequence_length: Mapping[str, int]) -> int:
    """The longest piece of a protein, in residues, that fits beside the special tokens.

    Span corruption shortens what it shows: a row of 512 tokens of `span3` holds 568 residues, as
    T5's own do. There, and in `ankh`, the number of sentinels is a limit of its own.

    Raises:
      ProtlmError: the task needs sentinels, and the vocabulary has none.
    """
    free = {name: length - vocabulary.num_specials for name, length in sequence_length.items()}
    if kind not in SPAN_TASKS:
        return min(free.values())
    sentinels = len(sentinels_of(vocabulary))
    return SPAN_TASKS[kind].longest(free["inputs"], free["targets"], sentinels)


def fill(
    vocabulary: Vocabulary,
    corruption: Corruption | None,
    *,
    crop: Room | None = None,
    letter_table: np.ndarray | None = None,
) -> Preprocessor:
    """Preprocessor: crops a protein, corrupts it, and puts the specials around every feature.

    All in one, since what a step of tf.data does here takes less time than to begin it.

    Args:
      crop: where given, proteins longer than the row give a piece of it that begins at a random
        residue.
      letter_table: where given, encodes letters first, as `encode` does.
    """
    start, end = (
        tf.constant(ids, tf.int32) for ids in (vocabulary.prefix_ids, vocabulary.suffix_ids)
    )

    @seqio.map_over_dataset(num_seeds=2)
    def filled(
        example: Example, seeds: Sequence[tf.Tensor], sequence_length: Mapping[str, int]
    ) -> Example:
        left = list(seeds)
        if letter_table is not None:
            example = _encoded(example, letter_table)
        if crop is not None:
            example = _cropped(example, left.pop(0), crop(sequence_length))
        if corruption is not None:
            example = corruption(example, left.pop(0))
        return {name: tf.concat([start, ids, end], axis=0) for name, ids in example.items()}

    return filled


def _cropped(example: Example, seed: tf.Tensor, length: int) -> Example:
    """At most `length` residues of a protein, from a random place."""
    targets = example["targets"]
    size = tf.minimum(tf.size(targets), length)
    starts = tf.size(targets) - size + 1
    start = tf.random.stateless_uniform([1], seed, 0, starts, tf.int32)
    return {**example, "targets": tf.slice(targets, start, [size])}


def cut_evenly(
    ds: tf.data.Dataset, sequence_length: Mapping[str, int], *, room: Room
) -> tf.data.Dataset:
    """Preprocessor: every protein whole, in as few pieces as fit the row, of nearly equal length.

    (Filling row after row would leave a last piece of a few residues, scored without context.)
    """
    length = room(sequence_length)

    def pieces(example: Example) -> tf.data.Dataset:
        targets = example["targets"]
        total = tf.size(targets, tf.int64)
        count = (total + length - 1) // length
        return tf.data.Dataset.range(count).map(
            lambda i: {"targets": targets[i * total // count : (i + 1) * total // count]}
        )

    return ds.flat_map(pieces)


def drop_longer(
    ds: tf.data.Dataset, sequence_length: Mapping[str, int], *, room: Room
) -> tf.data.Dataset:
    """Preprocessor: leaves out proteins that are longer than the row."""
    length = room(sequence_length)
    return ds.filter(lambda example: tf.size(example["targets"]) <= length)


def encode(letter_table: np.ndarray) -> Preprocessor:
    """Preprocessor: from {"sequence": letters} to {"targets": int32 [residues]}.

    Args:
      letter_table: int32 [256], the id of each ASCII code, as `Vocabulary.letter_table`; -1 for
        what has none, which fails with TensorFlow's InvalidArgumentError.
    """

    return seqio.map_over_dataset(lambda example: _encoded(example, letter_table))


def _encoded(example: Example, letter_table: np.ndarray) -> Example:
    codes = tf.cast(tf.io.decode_raw(example["sequence"], tf.uint8), tf.int32)
    ids = tf.gather(tf.constant(letter_table), codes)
    check = tf.debugging.assert_non_negative(ids, "a residue that the vocabulary does not have")
    with tf.control_dependencies([] if check is None else [check]):
        return {"targets": tf.identity(ids)}

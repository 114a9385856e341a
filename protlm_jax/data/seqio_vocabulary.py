"""A `Vocabulary` as SeqIO and T5X expect it."""

from __future__ import annotations

from collections.abc import Sequence

from protlm_jax.data.runtime import seqio, tf
from protlm_jax.vocabularies import RARE, Vocabulary, normalise


class SeqioVocabulary(seqio.Vocabulary):
    """Wraps a `Vocabulary`; residues are characters, there is no sub-word model to train.

    `encode` and `encode_tf` add no specials (SeqIO's preprocessors append them). `encode`
    normalises first and so refuses what is not a residue; `encode_tf` runs inside a graph, where
    no message can name a record: it fails on such characters with TensorFlow's own error.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(extra_ids=0)
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> int | None:
        return next(iter(self.vocabulary.prefix_ids), None)

    @property
    def eos_id(self) -> int | None:
        return next(iter(self.vocabulary.suffix_ids), None)

    @property
    def unk_id(self) -> int:
        return self.vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> list[int]:
        residues = normalise(s, record=s[:20])
        return self.vocabulary.encode(residues, specials=False).tolist()

    def _decode(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        letters = tf.strings.regex_replace(tf.strings.upper(s), r"\s", "")
        letters = tf.strings.regex_replace(letters, f"[{RARE}]", "X")
        codes = tf.io.decode_raw(letters, tf.uint8)
        ids = tf.gather(self.vocabulary.letter_table, tf.cast(codes, tf.int32))
        check = tf.debugging.assert_non_negative(ids, "a character that is not an amino acid")
        # In a graph an assertion runs only when something depends on it.
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        letters = tf.gather(list(self.vocabulary.tokens), ids)
        # What follows a closing token is padding, which SeqIO writes as 0, whatever that is here.
        ends = tf.cast(tf.equal(ids, -1 if self.eos_id is None else self.eos_id), tf.int32)
        after = tf.cumsum(ends, axis=-1, exclusive=True) > 0
        return tf.strings.reduce_join(tf.where(after, "", letters), axis=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.vocabulary == other.vocabulary

    def __hash__(self) -> int:
        return hash(self.vocabulary)

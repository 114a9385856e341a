"""What SeqIO and T5X need of this package: vocabularies, and feature converters that pack rows.

The converters pack examples in windows of 2,048 by the `PackingPlan` of native training (which
packs a whole epoch). Inputs and targets of an encoder-decoder are packed together: the k-th protein
of a row is segment k on both sides, and a row is full when either side is.

    tokens       2 21 12 15  3  2 21  7  3  0
    segment_ids  1  1  1  1  1  2  2  2  2  0      0 marks padding
    positions    0  1  2  3  4  0  1  2  3  0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from protlm_jax.data.rows import PackingPlan
from protlm_jax.data.runtime import numpy_function, seqio, tf
from protlm_jax.data.token_rows import Layout, encoder_decoder, single_stack, spread
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import RARE, Vocabulary, normalise

WINDOW = 2048

_NOTHING = -1

Spec = seqio.FeatureConverter.FeatureSpec


class SeqioVocabulary(seqio.Vocabulary):
    """A `Vocabulary` as SeqIO and T5X expect it.

    `encode` and `encode_tf` add no specials (SeqIO's preprocessors append them). `encode`
    normalises first; `encode_tf`, inside a graph, fails on characters that are not residues with
    TensorFlow's own error.
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
        # After a closing token comes padding, which SeqIO writes as 0.
        ends = tf.cast(tf.equal(ids, -1 if self.eos_id is None else self.eos_id), tf.int32)
        after = tf.cumsum(ends, axis=-1, exclusive=True) > 0
        return tf.strings.reduce_join(tf.where(after, "", letters), axis=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.vocabulary == other.vocabulary

    def __hash__(self) -> int:
        return hash(self.vocabulary)


class _PackingConverter(seqio.FeatureConverter):
    """`pack` puts several examples into a row; segment ids exist either way.

    Examples hold ids of 0 or more, none longer than its row (TensorFlow's DataLossError). Features
    that a model does not read are dropped.
    """

    def __init__(self, pack: bool = True, use_custom_packing_ops: bool = False) -> None:
        if use_custom_packing_ops:
            raise ProtlmError(
                "DatasetConfig.use_custom_packing_ops asks for the packing of tensor2tensor; rows "
                "are packed by protlm_jax.data.rows: set it to False"
            )
        super().__init__(pack=True, apply_length_check=False)
        self._several = pack

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        names = list(self.TASK_FEATURES)
        lengths = [task_feature_lengths[name] for name in names]
        made = self.get_model_feature_lengths(task_feature_lengths)

        def packed(*padded: np.ndarray) -> list[np.ndarray]:
            found = self._rows(padded, lengths)
            return [found[name] for name in made]

        def rows(examples: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            tensors = [examples[name] for name in names]
            found = numpy_function(packed, tensors, [tf.int32] * len(made))
            for values, length in zip(found, made.values(), strict=True):
                values.set_shape([None, length])
            return dict(zip(made, found, strict=True))

        ds = ds.map(lambda example: {name: example[name] for name in names})
        shapes = {name: [task_feature_lengths[name]] for name in names}
        ds = ds.padded_batch(WINDOW, shapes, dict.fromkeys(names, _NOTHING))
        return ds.map(rows, num_parallel_calls=2).unbatch()

    def _rows(self, padded: tuple[np.ndarray, ...], lengths: list[int]) -> dict[str, np.ndarray]:
        """Rows of some examples, int32 [examples, length] for each feature, -1 after their end."""
        sizes = [(ids != _NOTHING).sum(axis=1) for ids in padded]
        # An example takes the larger of its shares of the rows.
        room = max(lengths)
        shares = [-(-n * room // length) for n, length in zip(sizes, lengths, strict=True)]
        share = np.maximum(np.max(shares, axis=0), 1)
        row = np.arange(len(share))
        if self._several:
            row = PackingPlan(np.bincount(share), room, 0).rows_of(share)
        order = np.argsort(row, kind="stable")
        sides: list[tuple[np.ndarray, Layout]] = []
        for ids, size, length in zip(padded, sizes, lengths, strict=True):
            layout = Layout(row[order], size[order], int(row.max()) + 1, length)
            tokens = np.zeros_like(layout.segment_ids)
            values = ids[order][ids[order] != _NOTHING]
            spread(values, layout.begin, layout.sizes, tokens.reshape(-1))
            sides.append((tokens, layout))
        return self._model_features(sides)

    def _model_features(self, sides: list[tuple[np.ndarray, Layout]]) -> dict[str, np.ndarray]:
        """From rows of the task's features to those of the model."""
        raise NotImplementedError


class SingleStackConverter(_PackingConverter):
    """Task feature "targets" -> input_tokens, segment_ids, positions: clean tokens.

    The training step hides residues in them.
    """

    TASK_FEATURES: ClassVar = {"targets": Spec(dtype=tf.int32)}
    MODEL_FEATURES: ClassVar = {"input_tokens": Spec(dtype=tf.int32)}
    PACKING_FEATURE_DTYPES: ClassVar = {"segment_ids": tf.int32, "positions": tf.int32}

    def _model_features(self, sides: list[tuple[np.ndarray, Layout]]) -> dict[str, np.ndarray]:
        return single_stack(*sides[0])

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        length = task_feature_lengths["targets"]
        return dict.fromkeys(("input_tokens", "segment_ids", "positions"), length)


class EncoderDecoderConverter(_PackingConverter, seqio.EncDecFeatureConverter):
    """Task features "inputs" and "targets" -> the encoder-decoder features of SeqIO and T5X.

    decoder_input_tokens are the targets shifted right by one within each segment, after a 0;
    decoder_loss_weights are 1 at every target, the closing token included.
    """

    def _model_features(self, sides: list[tuple[np.ndarray, Layout]]) -> dict[str, np.ndarray]:
        return encoder_decoder(*sides[0], *sides[1])

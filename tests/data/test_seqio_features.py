"""SeqIO adapters: packing loses nothing, segments are exact, ids are those of the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.data import seqio_features
from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.seqio_features import (
    EncoderDecoderConverter,
    SeqioVocabulary,
    SingleStackConverter,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import BUILT_IN, PROT_BERT, PROT_T5

LENGTH = 16


def dataset(examples: list[dict[str, list[int]]]) -> tf.data.Dataset:
    spec = {name: tf.TensorSpec([None], tf.int32) for name in examples[0]}
    return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)


def segments(row: dict[str, np.ndarray], name: str) -> list[list[int]]:
    """The examples in a packed row, after checking how they lie there."""
    ids, positions = row[f"{name}_segment_ids"], row[f"{name}_positions"]
    used = ids > 0
    assert not row[name][~used].any() and not positions[~used].any()
    found = []
    for segment in range(1, ids.max() + 1):
        places = np.flatnonzero(ids == segment)
        assert places.size and np.array_equal(places, np.arange(places[0], places[-1] + 1))
        assert np.array_equal(positions[places], np.arange(places.size))
        found.append(row[name][places].tolist())
    return found


token_lists = st.lists(st.integers(1, 99), min_size=1, max_size=LENGTH)


def packed(examples: list[list[int]], length: int = LENGTH, pack: bool = True) -> list[dict]:
    """Rows of a single stack, under the names that `segments` takes."""
    ds = dataset([{"targets": e} for e in examples])
    rows = SingleStackConverter(pack)(ds, {"targets": length})
    new = {"x": "input_tokens", "x_segment_ids": "segment_ids", "x_positions": "positions"}
    return [{k: row[v] for k, v in new.items()} for row in rows.as_numpy_iterator()]


@settings(deadline=None, max_examples=20)
@given(examples=st.lists(token_lists, min_size=1, max_size=40), several=st.booleans())
def test_every_example_comes_out_once_and_whole(examples, several):
    rows = [segments(row, "x") for row in packed(examples, pack=several)]
    assert sorted(e for row in rows for e in row) == sorted(examples)
    if not several:
        assert rows == [[e] for e in examples]
    else:
        # Best-fit leaves no two rows that would fit into one.
        sizes = sorted(sum(map(len, row)) for row in rows)
        assert len(sizes) < 2 or sizes[0] + sizes[1] > LENGTH


def test_rows_are_not_sorted_by_length():
    rng = np.random.default_rng(0)
    rows = packed([[1] * int(n) for n in rng.integers(9, LENGTH + 1, 256)])
    used = [int((row["x"] > 0).sum()) for row in rows]
    assert len(used) == 256
    assert abs(np.corrcoef(used, np.arange(256))[0, 1]) < 0.2


def test_more_than_one_window_is_packed(monkeypatch):
    monkeypatch.setattr(seqio_features, "WINDOW", 256)
    rows = packed([[i] * (1 + i % 16) for i in range(1, 701)])
    assert sorted(e[0] for row in rows for e in segments(row, "x")) == list(range(1, 701))


def test_an_example_longer_than_its_row_is_refused():
    with pytest.raises(tf.errors.DataLossError):
        packed([[1] * (LENGTH + 1)])


def test_an_iterator_can_be_saved_and_goes_on_the_same(tmp_path):
    rng = np.random.default_rng(0)
    sizes = tf.data.Dataset.from_tensor_slices(rng.integers(1, LENGTH, 99))
    examples = sizes.map(lambda n: {"targets": tf.fill([n], tf.cast(n, tf.int32))})
    ds = SingleStackConverter()(examples, {"targets": LENGTH}).repeat()
    first, again = iter(ds), iter(ds)
    for _ in range(7):
        next(first)
    path = tf.train.Checkpoint(iterator=first).write(str(tmp_path / "state"))
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    for _ in range(60):
        a, b = next(first), next(again)
        assert all(np.array_equal(a[name], b[name]) for name in a)


@settings(deadline=None, max_examples=12)
@given(
    pairs=st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=25),
    several=st.booleans(),
)
def test_both_sides_of_a_pair_are_the_same_segment(pairs, several):
    ds = dataset([{"inputs": a, "targets": b} for a, b in pairs])
    converter = EncoderDecoderConverter(pack=several)
    found = []
    for row in converter(ds, {"inputs": LENGTH, "targets": LENGTH}).as_numpy_iterator():
        sides = []
        for side, tokens in (("encoder", "input"), ("decoder", "target")):
            keys = {"x": f"{side}_{tokens}_tokens"}
            keys |= {f"x_{k}": f"{side}_{k}" for k in ("segment_ids", "positions")}
            sides.append(segments({new: row[old] for new, old in keys.items()}, "x"))
        found += zip(*sides, strict=True)
        assert several or row["encoder_segment_ids"].max() == 1
        assert np.array_equal(row["decoder_loss_weights"], row["decoder_segment_ids"] > 0)
        shifted = np.concatenate([[0, *s[:-1]] for s in sides[1]])
        assert np.array_equal(row["decoder_input_tokens"][: len(shifted)], shifted)
    assert sorted(found) == sorted(pairs)


both = pytest.mark.parametrize("vocabulary", BUILT_IN, ids=lambda v: v.name)


@both
@pytest.mark.parametrize("text", ["MKTAYIAK", "M K T A Y I A K", "mktayiak"])
def test_both_roads_give_the_same_ids(vocabulary, text):
    wrapped, read = SeqioVocabulary(vocabulary), "MKTAYIAK"
    expected = vocabulary.encode(read, specials=False).tolist()
    read = "M#K#T#A#Y#I#A#K#" if vocabulary.name == "saprot" else read  # without structure
    assert wrapped.encode(text) == expected
    ids = wrapped.encode_tf(tf.constant(text))
    assert ids.dtype == tf.int32 and ids.numpy().tolist() == expected
    assert wrapped.decode(expected) == read
    assert wrapped.decode_tf(tf.constant(expected)).numpy() == read.encode()
    padded = tf.constant([*expected, wrapped.eos_id, expected[0], wrapped.pad_id])
    closing = wrapped.vocabulary.tokens[wrapped.eos_id].encode()
    assert wrapped.decode_tf(padded).numpy() == read.encode() + closing


@both
def test_specials_agree(vocabulary):
    wrapped = SeqioVocabulary(vocabulary)
    # SeqIO pads with 0 whatever the vocabulary; our batches mark padding by segment 0.
    ones = ("esm2", "esmc", "rita", "saprot")
    assert wrapped.pad_id == 0 and vocabulary.pad_id == int(vocabulary.name in ones)
    assert wrapped.unk_id == vocabulary.unk_id and wrapped.vocab_size == vocabulary.size
    assert wrapped.eos_id == vocabulary.suffix_ids[0]
    assert wrapped.bos_id == (vocabulary.prefix_ids[0] if vocabulary.prefix_ids else None)


def test_characters_that_are_not_residues_are_refused():
    wrapped = SeqioVocabulary(PROT_T5)
    with pytest.raises(ProtlmError, match="position 2"):
        wrapped.encode("M*")
    data = tf.data.Dataset.from_tensors("M*").map(wrapped.encode_tf)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not an amino acid"):
        next(iter(data))


def test_equality_follows_the_vocabulary():
    assert SeqioVocabulary(PROT_T5) == SeqioVocabulary(PROT_T5) != SeqioVocabulary(PROT_BERT)
    assert isinstance(SeqioVocabulary(PROT_T5), seqio.Vocabulary)

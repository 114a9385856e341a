"""The SeqIO wrapper gives the ids of the vocabulary it wraps."""

from __future__ import annotations

import pytest

from protlm_jax.data.runtime import seqio, tf
from protlm_jax.data.seqio_features import SeqioVocabulary
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import BUILT_IN, PROT_BERT, PROT_T5

both = pytest.mark.parametrize("vocabulary", BUILT_IN, ids=lambda v: v.name)


@both
@pytest.mark.parametrize("text", ["MKTAYIAK", "M K T A Y I A K", "mktayiak"])
def test_both_roads_give_the_same_ids(vocabulary, text):
    wrapped = SeqioVocabulary(vocabulary)
    expected = vocabulary.encode("MKTAYIAK", specials=False).tolist()
    assert wrapped.encode(text) == expected
    ids = wrapped.encode_tf(tf.constant(text))
    assert ids.dtype == tf.int32 and ids.numpy().tolist() == expected
    assert wrapped.decode(expected) == "MKTAYIAK"
    assert wrapped.decode_tf(tf.constant(expected)).numpy() == b"MKTAYIAK"
    padded = tf.constant([*expected, wrapped.eos_id, expected[0], wrapped.pad_id])
    closing = wrapped.vocabulary.tokens[wrapped.eos_id].encode()
    assert wrapped.decode_tf(padded).numpy() == b"MKTAYIAK" + closing


@both
def test_specials_agree(vocabulary):
    wrapped = SeqioVocabulary(vocabulary)
    # SeqIO pads with 0 whatever the vocabulary; our batches mark padding by segment 0.
    assert wrapped.pad_id == 0 and vocabulary.pad_id == int(vocabulary.name in ("esm2", "esmc"))
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

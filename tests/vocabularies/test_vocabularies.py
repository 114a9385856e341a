"""Vocabularies against the published id lists, and normalisation against its own rules."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import (
    AMINO_ACIDS,
    BUILT_IN,
    PROT_ALBERT,
    PROT_BERT,
    PROT_T5,
    PROT_TXL,
    PROT_XLNET,
    RESIDUES,
    ResiduePolicy,
    get_vocabulary,
    normalise,
)
from protlm_jax.vocabularies.structure import without_structure

# The published files, written out: vocab.txt of prot_bert, the pieces of prot_t5's spiece.model.
PROT_BERT_TXT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
PROT_T5_IDS = {
    "<pad>": 0, "</s>": 1, "<unk>": 2, "A": 3, "L": 4, "G": 5, "V": 6, "S": 7, "R": 8, "E": 9,
    "D": 10, "T": 11, "I": 12, "P": 13, "K": 14, "F": 15, "Q": 16, "N": 17, "Y": 18, "M": 19,
    "H": 20, "W": 21, "C": 22, "X": 23, "B": 24, "O": 25, "U": 26, "Z": 27,
    "<extra_id_99>": 28, "<extra_id_98>": 29, "<extra_id_50>": 77, "<extra_id_1>": 126,
    "<extra_id_0>": 127,
}  # fmt: skip
both = pytest.mark.parametrize("vocabulary", BUILT_IN, ids=lambda v: v.name)
residues = st.text(RESIDUES, min_size=1, max_size=60)


def test_prot_bert_has_the_published_ids():
    assert list(PROT_BERT.tokens) == PROT_BERT_TXT
    assert (PROT_BERT.pad_id, PROT_BERT.unk_id) == (0, 1)
    assert (PROT_BERT.prefix_ids, PROT_BERT.suffix_ids) == ((2,), (3,))
    assert PROT_BERT.mask_id == 4 and PROT_BERT.size == 30 and PROT_BERT.num_specials == 2


def test_prot_t5_has_the_published_ids():
    assert {t: PROT_T5.tokens.index(t) for t in PROT_T5_IDS} == PROT_T5_IDS
    assert PROT_T5.size == 128 and len(set(PROT_T5.tokens)) == 128
    assert (PROT_T5.pad_id, PROT_T5.unk_id) == (0, 2)
    assert (PROT_T5.prefix_ids, PROT_T5.suffix_ids) == ((), (1,))
    assert PROT_T5.mask_id == 127 and PROT_T5.num_specials == 1


def test_sentinels_are_counted_down_from_the_last_id():
    assert PROT_T5.sentinel_ids.tolist() == list(range(127, 27, -1))
    assert PROT_BERT.sentinel_ids.shape == (0,)


def test_amino_acid_ids_follow_the_order_of_the_letters():
    assert PROT_BERT.amino_acid_ids.tolist() == [
        6, 23, 14, 9, 19, 7, 22, 11, 12, 5, 21, 17, 16, 18, 13, 10, 15, 8, 24, 20,
    ]  # fmt: skip
    assert PROT_T5.amino_acid_ids.tolist() == [
        3, 22, 10, 9, 15, 5, 20, 12, 14, 4, 19, 17, 13, 16, 8, 7, 11, 6, 21, 18,
    ]  # fmt: skip
    assert PROT_BERT.residue_ids.tolist() == list(range(5, 30))
    assert PROT_T5.residue_ids.tolist() == list(range(3, 28))
    assert len(set(AMINO_ACIDS)) == 20


def test_encode_writes_the_ids_and_the_specials():
    assert PROT_BERT.encode("MKTX").tolist() == [2, 21, 12, 15, 25, 3]
    assert PROT_T5.encode("MKTX").tolist() == [19, 14, 11, 23, 1]
    assert PROT_T5.encode("MKTX", specials=False).tolist() == [19, 14, 11, 23]
    assert PROT_BERT.encode("M").dtype == np.int32
    assert PROT_BERT.encode("", specials=False).dtype == np.int32
    assert PROT_BERT.decode([2, 21, 4, 3, 0]) == "[CLS]M[MASK][SEP][PAD]"


@both
def test_every_vocabulary_is_whole(vocabulary):
    assert len(set(vocabulary.tokens)) == vocabulary.size
    known = {"rita": AMINO_ACIDS, "saprot": ""}.get(vocabulary.name, RESIDUES)
    assert set(known) <= set(vocabulary.tokens)
    assert len(vocabulary.residue_ids) == (len(known) or 20 * 21)
    assert vocabulary.tokens[vocabulary.pad_id] in ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
    later = ("esm2", "esmc", "rita", "saprot")  # another special token comes first
    assert vocabulary.pad_id == 0 or vocabulary.name in later
    specials = {*vocabulary.prefix_ids, *vocabulary.suffix_ids, vocabulary.unk_id}
    assert not specials & {vocabulary.pad_id, *vocabulary.residue_ids.tolist()}
    assert vocabulary.encode("MK").tolist() == [
        *vocabulary.prefix_ids, *vocabulary.encode("MK", specials=False), *vocabulary.suffix_ids
    ]  # fmt: skip


def test_our_own_layouts():
    assert PROT_ALBERT.decode(PROT_ALBERT.encode("MX")) == "[CLS]MX[SEP]"
    assert PROT_XLNET.decode(PROT_XLNET.encode("MX")) == "MX<sep><cls>"
    assert PROT_TXL.decode(PROT_TXL.encode("MX")) == "<s>MX</s>"
    assert PROT_XLNET.encode("ACO").tolist() == [5, 6, 29, 3, 2] and PROT_XLNET.mask_id == 4
    assert (PROT_ALBERT.size, PROT_XLNET.size, PROT_TXL.size) == (30, 30, 29)


@pytest.mark.parametrize(
    "vocabulary", [v for v in BUILT_IN if "X" in v.tokens], ids=lambda v: v.name
)
@given(sequence=residues)
def test_encode_and_decode_are_inverse(vocabulary, sequence):
    ids = vocabulary.encode(sequence, specials=False)
    assert vocabulary.decode(ids) == sequence
    assert vocabulary.unk_id not in ids and set(ids) <= set(vocabulary.residue_ids.tolist())


@given(sequence=residues)
def test_spaces_and_case_do_not_change_a_sequence(sequence):
    plain = normalise(sequence, record="p")
    assert normalise(" ".join(sequence), record="p") == plain
    assert normalise("\n".join(sequence.lower()) + "\r\n", record="p") == plain
    assert normalise(plain, record="p") == plain


def test_rare_residues_follow_the_policy():
    assert normalise("MUZOBX", record="p") == "MXXXXX"
    assert normalise("muzobx", ResiduePolicy(rare="keep"), record="p") == "MUZOBX"


@pytest.mark.parametrize(
    ("sequence", "position", "character", "remedy"),
    [
        ("MK*", 3, "*", "stop"),
        ("M K - A", 3, "-", "gap"),
        ("MKJA", 3, "J", "L, I or X"),
        ("1 MKTA", 1, "1", "numbers"),
        ("MKß", 3, "ß", "replace"),
        ("MKé", 3, "é", "replace"),
        ("M\x00K", 2, "\\x00", "replace"),
    ],
)
def test_other_characters_are_refused_by_name_and_place(sequence, position, character, remedy):
    with pytest.raises(ProtlmError) as error:
        normalise(sequence, record="sp|P1")
    message = str(error.value)
    assert "'sp|P1'" in message and f"position {position}:" in message
    assert character in message and remedy in message


def test_lower_case_can_be_refused():
    with pytest.raises(ProtlmError, match="'p', position 3: lower-case residue 'a'"):
        normalise("M KaT", ResiduePolicy(lower_case="error"), record="p")


@pytest.mark.parametrize("sequence", ["", " \n"])
def test_an_empty_sequence_is_refused(sequence):
    with pytest.raises(ProtlmError, match="'p' has no residues"):
        normalise(sequence, record="p")


@given(text=st.text(max_size=30))
def test_any_text_gives_residues_or_one_error(text):
    try:
        assert set(without_structure(normalise(text, record="p"))) <= set(RESIDUES)
    except ProtlmError as error:
        assert "'p'" in str(error)


@both
@pytest.mark.parametrize("sequence", ["MK*", "mk", "M K", "MK\u4e00"])
def test_encode_never_writes_unknown(vocabulary, sequence):
    with pytest.raises(ProtlmError, match="normalise"):
        vocabulary.encode(sequence)


def test_bad_names_and_ids_are_refused():
    with pytest.raises(ProtlmError, match="prot_bert, prot_t5"):
        get_vocabulary("esm")
    with pytest.raises(ProtlmError, match="0 to 29"):
        PROT_BERT.decode([30])
    assert get_vocabulary("prot_t5") is PROT_T5


def test_vocabularies_need_neither_jax_nor_tensorflow():
    code = (
        "import sys, protlm_jax.vocabularies, protlm_jax.data; "
        "assert not {'jax', 'tensorflow', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Proteins as token ids: every letter has one, or its record is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protlm_jax.data.corpus import Corpus
from protlm_jax.data.fasta import Record
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, PROT_BERT, Vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary

ROLES: dict[str, Any] = {"pad_id": 0, "unk_id": 0, "prefix_ids": [], "suffix_ids": []}


def records(*sequences: str) -> list[Record]:
    return [Record(f"p{i}", "", s, "f.fasta", 2 * i + 1) for i, s in enumerate(sequences)]


def without_x(before: int = 0) -> Vocabulary:
    tokens = ["<pad>", *(f"<unused_{i}>" for i in range(before)), *AMINO_ACIDS]
    return custom_vocabulary(tokens, mask_id=None, **ROLES)


def test_proteins_are_slices() -> None:
    corpus = Corpus.from_records(records("MK", "T", "LLX"), PROT_BERT)
    assert corpus.offsets.tolist() == [0, 2, 3, 6] and corpus.lengths.tolist() == [2, 1, 3]
    assert corpus.tokens.dtype == np.uint8
    assert corpus.tokens.tolist() == PROT_BERT.encode("MKTLLX", specials=False).tolist()


def test_a_residue_without_an_id_names_its_record() -> None:
    with pytest.raises(ProtlmError, match=r"record 'p2', position 3: 'X' has no id in custom-"):
        Corpus.from_records(records("MK", "T", "LLX", "X"), without_x())


def test_ids_beyond_a_byte_are_kept() -> None:
    vocabulary = without_x(before=300)
    corpus = Corpus.from_records(records("ACY"), vocabulary)
    assert corpus.tokens.tolist() == vocabulary.encode("ACY").tolist() == [301, 302, 320]

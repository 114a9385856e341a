"""The exported tokenizer in `transformers` against our own vocabularies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax.huggingface.read_tokenizer import read_vocabulary
from protlm_jax.huggingface.tokenizers import fits_esm, write_tokenizer
from protlm_jax.vocabularies import BUILT_IN, ESM2, ESMC, PROT_BERT, Vocabulary, normalise

transformers = pytest.importorskip("transformers")

LETTERS = "ACDEFGHIKLMNPQRSTVWYXUZOB"


# Pairs of residue and structure are tested in tests/evaluation/scoring/test_pairs.py.
LETTERED = [v for v in BUILT_IN if not v.structured]


@pytest.fixture(scope="module", params=LETTERED, ids=lambda v: v.name)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return request.param


@pytest.fixture(scope="module")
def folder(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as exported, with the config.json that AutoTokenizer looks at first."""
    folder = tmp_path_factory.mktemp(vocabulary.name)
    bert = vocabulary is PROT_BERT
    closing_type = {"prot_bert": 0, "prot_xlnet": 2}.get(vocabulary.name)
    write_tokenizer(vocabulary, folder, "X", 512 if bert else 0, closing_type)
    types = {"prot_bert": "bert", "prot_xlnet": "xlnet", "esm2": "esm", "esmc": "esmc"}
    model_type = types.get(vocabulary.name, "t5")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=50, deadline=None)
@given(sequence=st.text(LETTERS + LETTERS.lower(), min_size=1, max_size=60))
def test_same_ids_spaced_and_unspaced(
    tokenizer: Any, vocabulary: Vocabulary, sequence: str
) -> None:
    if "X" not in vocabulary.tokens:  # RITA knows the 20 alone
        sequence = sequence.translate(dict.fromkeys(map(ord, "XUZOBxuzob"), "A"))
    expected = vocabulary.encode(normalise(sequence, record="p")).tolist()
    assert tokenizer(sequence)["input_ids"] == expected
    assert tokenizer(" ".join(sequence))["input_ids"] == expected
    assert tokenizer(f"  {sequence[:9]}\n{sequence[9:]}\t\n")["input_ids"] == expected
    assert tokenizer(list(sequence), is_split_into_words=True)["input_ids"] == expected


@pytest.mark.parametrize(("vocabulary", "kind"), [(ESM2, "esm"), (ESMC, "esmc")])
def test_esm_tokenizer_gives_the_same_ids(
    vocabulary: Vocabulary, kind: str, tmp_path: Path
) -> None:
    """Of tools that choose the model's class by the tokenizer's; upper case, rare ones kept."""
    assert [v.name for v in BUILT_IN if fits_esm(v)] == ["esm2", "esmc"]
    assert not fits_esm(dataclasses.replace(vocabulary, tokens=(*vocabulary.tokens, "AA")))
    write_tokenizer(vocabulary, tmp_path, "keep", as_esm=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, transformers.EsmTokenizer)
    rng = np.random.default_rng(0)
    for _ in range(20):
        sequence = "".join(rng.choice(list(LETTERS), rng.integers(1, 80)))
        expected = vocabulary.encode(sequence).tolist()
        for text in (sequence, " ".join(sequence), f" {sequence[:9]}\n{sequence[9:]}\t"):
            assert tokenizer(text)["input_ids"] == expected
    assert tokenizer("M<mask>K.-", add_special_tokens=False)["input_ids"] == [20, 32, 15, 29, 30]
    roles = ("pad_token_id", "unk_token_id", "mask_token_id", "cls_token_id", "eos_token_id")
    assert [getattr(tokenizer, role) for role in roles] == [1, 3, 32, 0, 2]
    assert len(tokenizer) == vocabulary.size
    assert read_vocabulary(tmp_path) == vocabulary
    if vocabulary is ESM2:
        assert len((tmp_path / "vocab.txt").read_text().strip()) == 93  # as the published file


def test_bert_tokenizer_reads_a_folder_with_spaces(tmp_path: Path) -> None:
    """As ProtTrans's users name it; without spaces it gives the unknown token."""
    write_tokenizer(PROT_BERT, tmp_path, closing_type=0)
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer("M K T U")["input_ids"] == PROT_BERT.encode("MKTU").tolist()


def test_token_types_where_the_model_takes_them(tokenizer: Any, vocabulary: Vocabulary) -> None:
    one = tokenizer("MKV").get("token_type_ids")
    two = tokenizer("MK", "V").get("token_type_ids")
    expected = {
        "prot_bert": ([0] * 5, [0] * 4 + [1] * 2),
        "prot_xlnet": ([0] * 4 + [2], [0] * 3 + [1] * 2 + [2]),  # as XLNetTokenizer gives them
    }
    assert (one, two) == expected.get(vocabulary.name, (None, None))


def test_rare_residues_can_be_kept(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_tokenizer(vocabulary, tmp_path, "keep")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    known = "MUZOB" if "X" in vocabulary.tokens else "MKV"
    assert tokenizer(known.lower())["input_ids"] == vocabulary.encode(known).tolist()


def test_specials_keep_their_ids(tokenizer: Any, vocabulary: Vocabulary) -> None:
    special = vocabulary.suffix_ids[0] if vocabulary.mask_id is None else vocabulary.mask_id
    token = vocabulary.tokens[special]
    ids = tokenizer(f"MK{token}V", add_special_tokens=False)["input_ids"]
    letters = vocabulary.encode("MKV", specials=False).tolist()
    assert ids == [*letters[:2], special, letters[2]]
    assert tokenizer(f"M K {token} V", add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.convert_ids_to_tokens(range(vocabulary.size)) == list(vocabulary.tokens)
    assert len(tokenizer) == vocabulary.size
    assert tokenizer.pad_token_id == vocabulary.pad_id
    assert tokenizer.unk_token_id == vocabulary.unk_id
    expected = {
        "prot_bert": {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4},
        "prot_t5": {"eos_token_id": 1, "mask_token_id": None},
        "prot_albert": {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4},
        "prot_xlnet": {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4},
        "prot_txl": {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": None},
        "esmc": {"cls_token_id": 0, "eos_token_id": 2, "mask_token_id": 32},
        "progen2": {"bos_token_id": 3, "eos_token_id": 4, "mask_token_id": None},
        "rita": {"eos_token_id": 2, "pad_token_id": 1, "mask_token_id": None},
        "esm2": {"cls_token_id": 0, "eos_token_id": 2, "mask_token_id": 32},
    }[vocabulary.name]
    assert {role: getattr(tokenizer, role) for role in expected} == expected
    if vocabulary is PROT_BERT:
        assert tokenizer.model_max_length == 512


def test_pairs(tokenizer: Any, vocabulary: Vocabulary) -> None:
    m, k = vocabulary.encode("MK", specials=False).tolist()
    first, last = list(vocabulary.prefix_ids), list(vocabulary.suffix_ids)
    assert tokenizer("M", "K")["input_ids"] == [*first, m, last[0], k, *last]


def test_padding_and_features(tokenizer: Any, vocabulary: Vocabulary) -> None:
    batch = tokenizer(["MKV", "M"], padding=True)
    specials = vocabulary.num_specials
    assert batch["attention_mask"][1] == [1] * (1 + specials) + [0, 0]
    assert batch["input_ids"][1][-2:] == [vocabulary.pad_id] * 2
    assert ("token_type_ids" in batch) == (vocabulary.name in ("prot_bert", "prot_xlnet"))


def test_unknown_characters_become_the_unknown_token(
    tokenizer: Any, vocabulary: Vocabulary
) -> None:
    ids = tokenizer("MJ*K", add_special_tokens=False)["input_ids"]
    m, k = vocabulary.encode("MK", specials=False).tolist()
    assert ids == [m, vocabulary.unk_id, vocabulary.unk_id, k]


def test_decode_gives_the_residues_back(tokenizer: Any, vocabulary: Vocabulary) -> None:
    ids = tokenizer(["M K T a y u", "MK"], padding=True)["input_ids"]
    last = "X" if "X" in vocabulary.tokens else ""  # the unknown token is a special one
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [f"MKTAY{last}", "MK"]


def test_the_files_are_recognised(vocabulary: Vocabulary, folder: Path, tmp_path: Path) -> None:
    assert read_vocabulary(folder) == vocabulary
    if vocabulary is PROT_BERT:
        (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
        assert read_vocabulary(tmp_path) == vocabulary
        assert len((folder / "vocab.txt").read_bytes()) == 81  # as the published file


def test_resaved_by_transformers_it_is_still_ours(
    tokenizer: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path) == vocabulary

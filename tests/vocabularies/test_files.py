"""Names and files of vocabularies that came with a downloaded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.vocabularies import PROT_BERT, RESIDUES, VOCABULARIES, Vocabulary, get_vocabulary
from protlm_jax.vocabularies.files import custom_vocabulary, find_vocabulary, write_vocabulary

ROLES: dict[str, Any] = {"unk_id": 1, "mask_id": None, "prefix_ids": [], "suffix_ids": [2, 0]}


def made(pad_id: int = 3) -> Vocabulary:
    return custom_vocabulary(["<s>", "<unk>", "</s>", "<pad>", *RESIDUES], pad_id=pad_id, **ROLES)


def test_the_name_follows_the_content() -> None:
    vocabulary = made()
    assert vocabulary is made() is get_vocabulary(vocabulary.name)
    assert made(pad_id=1).name != vocabulary.name
    assert vocabulary.name.startswith("custom-") and len(vocabulary.name) == 15
    assert vocabulary.encode("AC").tolist() == [4, 5, 2, 0]


def test_another_process_finds_it_in_the_folder(tmp_path: Path) -> None:
    vocabulary = made()
    write_vocabulary(vocabulary, tmp_path)
    code = (
        "import pathlib, sys; from protlm_jax.vocabularies.files import find_vocabulary as find; "
        "print(find(sys.argv[1], pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, vocabulary.name, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == repr(vocabulary)


def test_ours_need_no_file(tmp_path: Path) -> None:
    write_vocabulary(PROT_BERT, tmp_path)
    assert not any(tmp_path.iterdir())
    assert find_vocabulary("prot_bert", tmp_path) is PROT_BERT
    with pytest.raises(ProtlmError, match="no vocabulary 'prot_gpt'"):
        find_vocabulary("prot_gpt", tmp_path)


def test_absent_damaged_and_exchanged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, other = made(), made(pad_id=1)
    monkeypatch.delitem(VOCABULARIES, vocabulary.name)
    with pytest.raises(ProtlmError, match=r"vocabulary.json cannot be read: No such file"):
        find_vocabulary(vocabulary.name, tmp_path)
    write_vocabulary(other, tmp_path)
    with pytest.raises(ProtlmError, match=f"holds the vocabulary {other.name}, config.json asks"):
        find_vocabulary(vocabulary.name, tmp_path)
    for text, message in {
        "{": "is not JSON",
        "[]": "must hold a JSON object",
        "{}": "is no vocabulary",
        '{"tokens": ["A"], "pad_id": 0}': "is no vocabulary",
    }.items():
        (tmp_path / "vocabulary.json").write_text(text)
        with pytest.raises(ProtlmError, match=f"vocabulary.json {message}"):
            find_vocabulary(vocabulary.name, tmp_path)
    write_vocabulary(vocabulary, tmp_path)
    text = (tmp_path / "vocabulary.json").read_text()
    (tmp_path / "vocabulary.json").write_text(text.replace('"A"', '"Z"', 1))
    with pytest.raises(Damaged, match="vocabulary.json is not as it was written"):
        find_vocabulary(vocabulary.name, tmp_path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<pad>", "<unk>", "</s>", *RESIDUES, "A"], "token 'A' has two ids"),
        (["<pad>", "<unk>", "</s>", "L", "A"], r"amino acid\(s\) C, D, "),
        (["<pad>", *"ACDEFGHIKLMNPQRSTVWY"], "id 30 is not one of 0 to 20"),
    ],
)
def test_what_makes_no_vocabulary(tokens: list[str], message: str) -> None:
    with pytest.raises(ProtlmError, match=message):
        custom_vocabulary(tokens, pad_id=30 if "id 30" in message else 0, **ROLES)

"""A prepared folder is opened whole, or with a message that says what to do."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

import pytest

from protlm_jax.data.prepared import Prepared
from protlm_jax.errors import ProtlmError

FASTA = b">p uniref50=UniRef50_p\nWW\n"


def split(length: int, proteins: int) -> dict:
    return {
        "proteins": proteins,
        "residues": proteins * length,
        "longest": length,
        "lengths": [[length, proteins]],
        "residue_counts": {"A": proteins * length},
        "tokens": [{"file": "tokens/x", "proteins": proteins, "bytes": 9, "blake2b": "00"}],
        "records": [],
    }


@pytest.fixture
def told() -> dict:
    digest = blake2b(FASTA, digest_size=16).hexdigest()
    return {
        "format": 1,
        "dataset": "uniref50",
        "release": "2024_01",
        "sources": [],
        "rules": {"rare_residues": "X"},
        "read": 4,
        "kept": 4,
        "dropped": {},
        "splits": {"train": split(5, 3), "heldout": split(2, 1)},
        "heldout": {"file": "heldout.fasta", "bytes": len(FASTA), "blake2b": digest},
    }


def write(folder: Path, told: dict) -> Path:
    (folder / "manifest.json").write_text(json.dumps(told))
    (folder / "heldout.fasta").write_bytes(FASTA)
    return folder


def test_what_the_manifest_says(tmp_path, told):
    prepared = Prepared.open(write(tmp_path, told))
    train = prepared.splits["train"]
    assert (train.proteins, train.residues, train.longest) == (3, 15, 5)
    assert train.lengths.dtype == "int64" and train.lengths.tolist() == [[5, 3]]
    assert prepared.token_files("train") == [tmp_path / "tokens/x"]
    assert prepared.heldout_fasta().read_bytes() == FASTA
    assert prepared.source == "uniref50 2024_01"


def test_what_is_not_finished_says_how_to_go_on(tmp_path):
    with pytest.raises(ProtlmError, match="does not exist"):
        Prepared.open(tmp_path / "none")
    with pytest.raises(ProtlmError, match=r"no manifest.json"):
        Prepared.open(tmp_path)
    (tmp_path / ".work").mkdir()
    with pytest.raises(ProtlmError, match="not finished; run the same protlm prepare command"):
        Prepared.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format=2), "has format 2"),
        (lambda t: t["heldout"].pop("blake2b"), "damaged .*blake2b"),
        (lambda t: t.pop("splits"), "damaged .*splits"),
        (lambda t: t["splits"].pop("heldout"), "damaged .*heldout"),
        (lambda t: t["splits"]["train"].update(proteins=4), "the lengths come to 3, not 4"),
        (lambda t: t["splits"]["train"].update(residues=16), "come to 15, not 16"),
        (lambda t: t["splits"]["train"]["tokens"].pop(), None),
        (lambda t: t["splits"]["train"]["tokens"][0].update(proteins=2), "tokens come to 2, not 3"),
        (lambda t: t["splits"]["train"].update(lengths=[[5]]), "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path, told, change, message):
    change(told)
    write(tmp_path, told)
    if message is None:
        assert Prepared.open(tmp_path).splits["train"].tokens == ()
        return
    with pytest.raises(ProtlmError, match=message) as caught:
        Prepared.open(tmp_path)
    assert "manifest.json" in str(caught.value)


def test_held_out_proteins_that_changed_are_noticed(tmp_path, told):
    prepared = Prepared.open(write(tmp_path, told))
    (tmp_path / "heldout.fasta").write_bytes(FASTA.replace(b"WW", b"WY"))
    with pytest.raises(ProtlmError, match=r"heldout.fasta is damaged: its checksum"):
        prepared.heldout_fasta()
    (tmp_path / "heldout.fasta").unlink()
    with pytest.raises(ProtlmError, match=r"heldout.fasta is missing"):
        prepared.heldout_fasta()
    told["heldout"]["file"] = None
    with pytest.raises(ProtlmError, match="holds no protein out"):
        Prepared.open(write(tmp_path, told)).heldout_fasta()

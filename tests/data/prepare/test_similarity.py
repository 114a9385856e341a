"""Similar proteins, by MMseqs2 where it is installed, and what is said of it elsewhere."""

from __future__ import annotations

import os
import random
import shutil
from itertools import islice
from pathlib import Path

import pytest

from protlm_jax import bundled
from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.prepare.rules import Similar
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS

has_mmseqs = pytest.mark.skipif(shutil.which("mmseqs") is None, reason="needs MMseqs2")


@pytest.fixture(scope="module")
def proteins() -> list[str]:
    records = islice(read_fasta(bundled.path("pretraining")), 400)
    return [r.sequence for r in records if len(r.sequence) >= 100]


def found(frozen: list[str], asked: list[str]) -> list[bool]:
    return Similar(frozen).find(asked)


def mutated(sequence: str, share: float, seed: int) -> str:
    """The sequence with about this share of its residues drawn anew."""
    draw = random.Random(seed)
    return "".join(draw.choice(AMINO_ACIDS) if draw.random() < share else c for c in sequence)


def test_without_mmseqs_only_equal_ones_are_found_and_the_rest_is_an_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert found([], ["MKTAYIAKQR"]) == [False]
    assert found(["MKTAYIAKQR"], []) == []
    assert found(["MK"], ["MK"]) == [True]
    with pytest.raises(ProtlmError, match="no program mmseqs on the PATH: install it"):
        found(["MK"], ["MK", "MKK"])
    assert Similar(["MK"]).describe()["version"] is None


@has_mmseqs
def test_real_proteins_by_mmseqs(proteins):
    frozen, others = proteins[:80:2], proteins[1:81:2]
    asked = [*(mutated(s, 0.3, 3) for s in frozen), *others, *frozen, frozen[0] + others[0]]
    answers = found(frozen, asked)
    assert answers[:40] == [True] * 40
    assert sum(answers[40:80]) <= 1  # representatives of clusters at 50 %
    assert answers[80:] == [True] * 41
    told = Similar(frozen).describe()
    assert told["method"] == "mmseqs2" and told["version"] and "--min-seq-id 0.5" in told["command"]


def program(folder: Path, monkeypatch, text: str) -> None:
    """Puts a program called mmseqs on the PATH."""
    (folder / "mmseqs").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "mmseqs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_either_of_two_proteins_may_be_covered(tmp_path, monkeypatch):
    hits = r"0\t0.9\t0.1\n0\t0.2\t0.3\n1\t0.1\t0.8\n2\t0.79\t0.79\n"
    program(tmp_path, monkeypatch, f'[ "$1" = version ] && echo 9 || printf "{hits}" > "$4"')
    assert found(["MKV"], ["AAA", "CCC", "DDD", "MKV"]) == [True, True, False, True]
    assert Similar(["MKV"]).describe()["version"] == "9"


def test_a_program_that_fails_is_named(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, '[ "$1" = version ] && echo 9 && exit; echo no memory; exit 3')
    with pytest.raises(ProtlmError, match=r"mmseqs easy-search failed .*3: no memory"):
        found(["MKV"], ["AAA"])

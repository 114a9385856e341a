"""Similar proteins: k-mers against brute force, MMseqs2 where it is installed."""

from __future__ import annotations

import os
import random
import shutil
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protlm_jax import bundled
from protlm_jax.data.entries import Entry
from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.prepare.similarity import _PORTION, KMER, LETTERS, SHARE, SHARED, Similar
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import AMINO_ACIDS, RESIDUES

has_mmseqs = pytest.mark.skipif(shutil.which("mmseqs") is None, reason="needs MMseqs2")


@pytest.fixture
def by_kmers(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.fixture(scope="module")
def proteins() -> list[str]:
    records = islice(read_fasta(bundled.path("pretraining")), 400)
    return [r.sequence for r in records if len(r.sequence) >= 100]


def found(frozen: list[str], asked: list[str]) -> list[bool]:
    return Similar(frozen).find([Entry(f"p{i}", s) for i, s in enumerate(asked)])


def mutated(sequence: str, share: float, seed: int) -> str:
    """The sequence with about this share of its residues drawn anew."""
    draw = random.Random(seed)
    return "".join(draw.choice(AMINO_ACIDS) if draw.random() < share else c for c in sequence)


def kmers(sequence: str) -> set[str]:
    every = {sequence[i : i + KMER] for i in range(len(sequence) - KMER + 1)}
    return {k for k in every if set(k) <= set(AMINO_ACIDS) and len(set(k)) >= LETTERS}


def brute_force(frozen: list[str], asked: list[str]) -> list[bool]:
    answers = []
    for sequence in asked:
        mine, answer = kmers(sequence), sequence in frozen
        for other in map(kmers, frozen):
            shared = len(mine & other)
            answer |= shared >= SHARED and shared >= SHARE * min(len(mine), len(other))
        answers.append(answer)
    return answers


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_kmers_are_counted_as_brute_force_counts_them(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        seed = data.draw(st.integers(0, 1000))
        draw = random.Random(seed)
        frozen = ["".join(draw.choices(RESIDUES, k=draw.randint(1, 300))) for _ in range(5)]
        frozen.append("PQ" * 30 + "X" + "ACDEFG" * 4)
        asked = [
            mutated(s, draw.choice([0, 0.2, 0.5, 0.6]), seed)[draw.randint(0, 20) :] for s in frozen
        ]
        asked = [*(s or "M" for s in asked), "PQ" * 20, "ACDEFGHI", "M", frozen[0]]
        assert found(frozen, asked) == brute_force(frozen, asked)


def test_real_proteins_by_kmers(by_kmers, proteins):
    frozen, others = proteins[::2], proteins[1::2]
    assert all(found(frozen, frozen))
    assert all(found(frozen, [mutated(s, 0.2, 1) for s in frozen]))
    assert all(found(frozen, [s[20:80] for s in frozen]))  # fragments
    assert all(found(frozen, [others[0] + s for s in frozen]))  # fusions
    # Clustered at 50 %: nearly none resembles another one.
    assert sum(found(frozen, others)) < 0.1 * len(others)


def test_the_batch_does_not_matter(by_kmers, proteins):
    frozen = proteins[::2]
    asked = [mutated(s, 0.5, 2) for s in proteins] * (1 + _PORTION // sum(map(len, proteins)))
    assert sum(map(len, asked)) > _PORTION  # compared in more than one portion
    together = found(frozen, asked)
    assert 0 < sum(together) < len(together)
    assert together[:50] == [found(frozen, [s])[0] for s in asked[:50]]


def test_nothing_resembles_nothing(by_kmers):
    assert found([], ["MKTAYIAKQR"]) == [False]
    assert found(["MKTAYIAKQR"], []) == []
    assert found(["MK"], ["MK", "MKK"]) == [True, False]


def test_the_manifest_says_how(by_kmers):
    told = Similar(["MK"]).describe()
    assert "k-mers" in told["method"] and told["k"] == KMER


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

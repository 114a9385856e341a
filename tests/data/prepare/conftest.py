"""A small release: two files, one of them compressed, with everything that rules look at."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from pathlib import Path

import pytest

from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SelectionRules
from protlm_jax.vocabularies import AMINO_ACIDS

PROTEINS = 400


def proteins(seed: int, number: int = PROTEINS) -> list[tuple[str, str]]:
    """Names and random sequences of 5 to 60 residues."""
    rng = random.Random(seed)
    return [
        (f"{seed}_{i}", "".join(rng.choices(AMINO_ACIDS, k=rng.randint(5, 60))))
        for i in range(number)
    ]


def to_fasta(records: list[tuple[str, str]]) -> bytes:
    return "".join(f">{name} protein {name}\n{sequence}\n" for name, sequence in records).encode()


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> list[tuple[str, list[tuple[str, str]]]]:
    """Paths and records of two files; every tenth sequence of the second stands in the first."""
    folder = tmp_path_factory.mktemp("release")
    first, second = proteins(1), proteins(2)
    second[::10] = [(f"twin_{i}", first[i][1]) for i in range(0, PROTEINS, 10)]
    (folder / "first.fasta").write_bytes(to_fasta(first))
    (folder / "second.fasta.gz").write_bytes(gzip.compress(to_fasta(second)))
    return [(str(folder / "first.fasta"), first), (str(folder / "second.fasta.gz"), second)]


@pytest.fixture
def plan(release, tmp_path) -> PreparePlan:
    """Token files of the release: ten blocks or so, four buckets."""
    made = PreparePlan.make(
        "fasta",
        [path for path, _ in release],
        tmp_path / "out",
        SelectionRules(min_length=8, heldout_percent=20.0),
        tokens=True,
        records=False,
    )
    return replace(made, block_bytes=4000, buckets=4)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

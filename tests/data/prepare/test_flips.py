"""A bit flipped anywhere in a prepared folder is named by whoever reads it, or changes nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from protlm_jax import bundled
from protlm_jax.cli import main
from protlm_jax.data.fasta import read_fasta
from protlm_jax.data.prepared import Prepared
from protlm_jax.data.token_files import open_token_shards
from protlm_jax.errors import ProtlmError


def everything(folder: Path) -> list[object]:
    """All that runs and `--heldout_from` read of a folder."""
    prepared = Prepared.open(folder)
    for split in prepared.splits.values():
        for shard in split.records:
            prepared.require(shard, whole=True)
    letters = [
        list(shard.proteins())
        for side in prepared.splits
        for shard in open_token_shards(prepared, side)
    ]
    heldout = [record.sequence for record in read_fasta(prepared.heldout_fasta())]
    return [prepared.digest, prepared.manifest, letters, heldout]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("flips") / "out"
    command = ["prepare", "--dataset", "fasta", "--input", str(bundled.path("pretraining"))]
    command += ["--max_length", "60", "--tokens", "--workers", "1", "--output", str(output)]
    assert main(command) == 0
    return output


@pytest.mark.parametrize("number", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_every_flip_is_named_or_without_effect(folder, number):
    before, rng = everything(folder), random.Random(number)
    files = [folder / "manifest.json", folder / "heldout.fasta", *(folder / "tokens").iterdir()]
    for _ in range(number):
        file = rng.choice(files[: rng.choice((2, len(files)))])
        whole = file.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            after = everything(folder)
        except ProtlmError as error:
            assert file.name in str(error)
        else:  # a space for a tab between two values, say
            assert file.name == "manifest.json" and after[1:] == before[1:]
        file.write_bytes(whole)


def test_a_manifest_of_earlier_versions_is_read_and_names_the_same_data(folder):
    """They had no digest of their own; then any value that is read later is checked."""
    file, before = folder / "manifest.json", Prepared.open(folder)
    whole = file.read_bytes()
    first, second, rest = whole.split(b"\n", 2)
    assert second.startswith(b' "digest": "blake2b:')
    old = first + b"\n" + rest
    rng, opened = random.Random(0), 0
    try:
        file.write_bytes(old)
        assert Prepared.open(folder).digest == before.digest
        assert Prepared.open(folder).manifest == before.manifest
        for _ in range(300):
            data = bytearray(old)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            try:
                everything(folder)
                opened += 1
            except ProtlmError as error:
                assert os.fspath(folder) in str(error)
    finally:
        file.write_bytes(whole)
    assert opened < 100  # flips in names of records, of files of the input, or in their hashes

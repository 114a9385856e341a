"""Token files: what goes in comes out, and nothing that was changed is read."""

from __future__ import annotations

import os
import resource
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_data import proteins, write_prepared

from protlm_jax.data.prepared import Prepared, Shard
from protlm_jax.data.token_files import (
    TokenShard,
    open_token_shards,
    write_token_shard,
)
from protlm_jax.errors import ProtlmError
from protlm_jax.vocabularies import RESIDUES

FEW = [("a", "MKTAYIAKQR"), ("tr|Ä ö", "X"), ("", "GGSU")]


def of(info: dict[str, Any]) -> Shard:
    return Shard("any", info["proteins"], info["bytes"], info["blake2b"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(RESIDUES, min_size=1, max_size=50))))
def test_what_is_written_is_read(tmp_path_factory, pairs: list[tuple[str, str]]) -> None:
    pairs = [(name.encode(errors="replace").decode(), sequence) for name, sequence in pairs]
    path = tmp_path_factory.mktemp("shard") / "one.tokens"
    info = write_token_shard(path, iter(pairs))
    shard = TokenShard.open(path, of(info))
    assert list(shard.proteins()) == pairs
    assert (info["proteins"], info["bytes"]) == (len(pairs), path.stat().st_size)
    assert info["residues"] == len(shard.letters) == sum(len(s) for _, s in pairs)
    first = path.read_bytes()
    assert write_token_shard(path, pairs) == info and path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read back with nothing but `struct`, as another program would."""
    write_token_shard(tmp_path / "few.tokens", FEW)
    data = (tmp_path / "few.tokens").read_bytes()
    assert data[:8] == b"PRTLMTOK"
    version, header = struct.unpack_from("<II", data, 8)
    begin = 16 + header
    assert version == 1 and begin % 64 == 0 and data[16:begin].strip().endswith(b"}")
    assert struct.unpack_from("<4q", data, begin) == (0, 10, 11, 15)
    assert struct.unpack_from("<4q", data, begin + 32) == (0, 1, 9, 9)
    assert data[begin + 64 :] == b"MKTAYIAKQRXGGSU" + "atr|Ä ö".encode()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "few.tokens"
    shard = of(write_token_shard(path, FEW))
    intact = path.read_bytes()
    for place in range(len(intact)):
        data = bytearray(intact)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ProtlmError, match=r"few\.tokens .*(prepare|copy)"):
            TokenShard.open(path, shard)
    path.write_bytes(intact)
    TokenShard.open(path, shard)


def test_missing_cut_and_strange_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "few.tokens"
    shard = of(write_token_shard(path, FEW))
    intact = path.read_bytes()
    for size in (0, 5, 20, len(intact) - 1):
        path.write_bytes(intact[:size])
        with pytest.raises(ProtlmError, match=r"few\.tokens is (no token file|not the shard)"):
            TokenShard.open(path, shard)
    path.write_bytes(intact[:8] + struct.pack("<I", 2) + intact[12:])
    with pytest.raises(ProtlmError, match=r"few\.tokens has format version 2; .* reads 1: prepare"):
        TokenShard.open(path, shard)
    path.write_bytes(intact)
    for other in (replace(shard, proteins=2), replace(shard, blake2b="0" * 32)):
        with pytest.raises(ProtlmError, match=r"few\.tokens is not the shard that was prepared"):
            TokenShard.open(path, other)
    path.unlink()
    with pytest.raises(ProtlmError, match=r"few\.tokens is missing, and with it its proteins"):
        TokenShard.open(path, shard)
    with pytest.raises(ProtlmError, match=r"protein 'b' has no residues"):
        write_token_shard(path, [("a", "MK"), ("b", "")])
    assert not path.exists()


def test_all_shards_of_a_split_are_opened_in_order(tmp_path: Path) -> None:
    sequences = proteins(list(range(1, 30)))
    prepared = Prepared.open(write_prepared(tmp_path, sequences, shards=4))
    found = {}
    for split, side in prepared.splits.items():
        shards = open_token_shards(prepared, split)
        assert [len(s.offsets) - 1 for s in shards] == [shard.proteins for shard in side.tokens]
        for shard in shards:
            found |= dict(shard.proteins())
            assert shard.letters.dtype == np.uint8 and not shard.letters.flags.writeable
    assert found == sequences
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 2, hard))
    try:
        assert len(open_token_shards(prepared, "train")) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    damaged = tmp_path / prepared.splits["heldout"].tokens[1].file
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    open_token_shards(prepared, "train")
    with pytest.raises(ProtlmError, match=damaged.name):
        open_token_shards(prepared, "heldout")

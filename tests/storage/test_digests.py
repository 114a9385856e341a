"""Seals of folders, and JSON that carries its own digest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage import digests
from protlm_jax.storage.digests import Damaged, seal, verify
from protlm_jax.storage.json_files import parse_json, read_json, read_text, write_json


def a_folder(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "inner" / "b.txt").write_text("MKTAYIAKQR\n" * 50)
    (folder / "empty").touch()
    return folder


def flipped(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("algorithm", ["xxh3", "blake2b"])
def test_every_flipped_bit_of_a_sealed_folder_is_named(
    tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xxhash")
    monkeypatch.setattr(digests.digest_of, "__defaults__", (algorithm,))
    folder = a_folder(tmp_path / "f")
    seal(folder)
    verify(folder)
    rng = np.random.default_rng(1)
    for name in ("a.bin", "inner/b.txt", digests.SEAL):
        for bit in rng.integers(0, 8 * (folder / name).stat().st_size, 20):
            flipped(folder / name, int(bit))
            with pytest.raises(Damaged, match="damaged"):
                verify(folder)
            flipped(folder / name, int(bit))
    verify(folder)


def test_missing_and_longer_files_are_named(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "f")
    seal(folder)
    with (folder / "empty").open("w") as file:
        file.write("x")
    with pytest.raises(Damaged, match="empty has 1 bytes instead of 0"):
        verify(folder)
    (folder / "empty").unlink()
    with pytest.raises(Damaged, match=r"checkpoint 5 is damaged: empty is missing"):
        verify(folder, what="checkpoint 5")


def test_sizes_alone_are_checked_where_no_digest_was_kept(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "f")
    (folder / "files.json").write_text(json.dumps({"a.bin": 5000, "empty": 0}))
    verify(folder, "files.json")
    flipped(folder / "a.bin", 8)
    verify(folder, "files.json")
    (folder / "a.bin").write_bytes(b"")
    with pytest.raises(Damaged, match=r"a\.bin has 0 bytes instead of 5000"):
        verify(folder, "files.json")


def test_a_flipped_bit_of_our_json_is_seen_or_without_effect(tmp_path: Path) -> None:
    value = {"name": "é", "numbers": [1, 2.5, -3e-7], "none": None, "inner": {"b": True}}
    file = tmp_path / "a.json"
    write_json(file, value)
    assert read_json(file) == value
    for bit in range(8 * file.stat().st_size):
        flipped(file, bit)
        try:
            found = read_json(file)
        except ProtlmError:
            pass
        else:  # the word "digest" itself, or the case of a hexadecimal digit of an escape
            assert found == value or {k: found[k] for k in value} == value
        flipped(file, bit)


def test_json_of_others_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content, reason in (
        (b"[" * 200_000, "nested too deeply"),
        (b"{", "not JSON"),
        (b"[]", "must hold a JSON object"),
        (b"\xff\xfe", "UTF-8"),
    ):
        file.write_bytes(content)
        with pytest.raises(ProtlmError, match=reason):
            read_json(file)
    with pytest.raises(ProtlmError, match="nested too deeply"):
        parse_json('{"a":' * 100_000, "line 3")
    with pytest.raises(ProtlmError, match="cannot be read"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(ProtlmError, match="not an ordinary file"):
        read_json(Path("/dev/zero"))
    file.write_text("{}")
    with pytest.raises(ProtlmError, match="more than 1"):
        read_text(file, largest=1)

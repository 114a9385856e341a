"""NumPy archives: what is written is read, and what is broken is one error."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from protlm_jax.errors import ProtlmError
from protlm_jax.storage.arrays import read_npz

ARRAYS = {
    "a": np.arange(12, dtype=np.int64).reshape(6, 2),
    "b": np.asfortranarray(np.ones((2, 3), np.float32)),
    "none": np.zeros((0, 2), np.int32),
    "text": np.array("settings"),
    "x/y": np.array(3),
}


def written(file: Path, save: object = np.savez) -> Path:
    save(file, **ARRAYS)  # type: ignore[operator]
    return file


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, save: object) -> None:
    found = read_npz(written(tmp_path / "a.npz", save))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def member(descr: str, shape: str, body: bytes = b"") -> bytes:
    """An array file with any header."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def archive(content: bytes, method: int = zipfile.ZIP_STORED, name: str = "a.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        opened.writestr(name, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    """The flag is set in both headers."""
    content = bytearray(archive(member("'<i8'", "(1, 2)", bytes(16))))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 2)))
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], object))
    return buffer.getvalue()


BROKEN = {
    "empty": b"",
    "npy": npy(),
    "pickle": pickled(),
    "encrypted": encrypted(),
    "bzip2": archive(member("'<i8'", "(1, 2)", bytes(16)), zipfile.ZIP_BZIP2),
    "lzma": archive(member("'<i8'", "(1, 2)", bytes(16)), zipfile.ZIP_LZMA),
    "1.5 TiB": archive(member("'<i8'", "(103079215104, 2)", bytes(16))),
    "negative": archive(member("'<i8'", "(-1, -2)", bytes(16))),
    "deep": archive(member("(" * 3000, "(1,)")),
    "no end": archive(member("'''", "(1,)")),
    "other": archive(b"text", name="a.txt"),
    "bomb": archive(member("'|u1'", "(8388608,)", bytes(1 << 23)), zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_refuses_in_one_line(tmp_path: Path, kind: str) -> None:
    (file := tmp_path / "a.npz").write_bytes(BROKEN[kind])
    with pytest.raises(ProtlmError, match=r"a\.npz") as caught:
        read_npz(file, largest=1 << 22)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    for name, said in (("pipe.npz", "ordinary"), ("missing.npz", "cannot be read"), (".", "ordin")):
        with pytest.raises(ProtlmError, match=said):
            read_npz(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_refused_or_the_same(tmp_path: Path, save: object) -> None:
    """Truncated anywhere, or with bytes changed: a zip's checksums see what matters."""
    content = written(tmp_path / "a.npz", save).read_bytes()
    rng, file, refused = random.Random(0), tmp_path / "b.npz", 0
    for _ in range(400):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        file.write_bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
        try:
            found = read_npz(file)
        except ProtlmError:
            refused += 1
            continue
        for name in found.keys() & ARRAYS.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name])
    assert refused > 200

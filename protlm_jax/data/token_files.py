"""Token files: proteins, one after the other, in files that are mapped into memory.

A shard holds letters, not ids, and proteins, not rows: one copy serves every vocabulary and every
row length, and rows are packed again in every epoch.

    8 bytes                  PRTLMTOK
    uint32, uint32           format version; length of the header in bytes
    header                   JSON: proteins, residues, name_bytes, and blake2b of all that follows;
                             spaces up to a multiple of 64 bytes
    int64 [proteins + 1]     where each protein begins among the residues
    int64 [proteins + 1]     where its name begins among the names
    uint8 [residues]         letters, in ASCII
    uint8 [name_bytes]       names, in UTF-8

All numbers are little-endian. The same proteins make the same bytes.
"""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
import resource
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from protlm_jax.data.prepared import REMEDY, Prepared, Shard
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import atomic_file

MAGIC = b"PRTLMTOK"
VERSION = 1

_PRELUDE = struct.Struct("<8sII")
_ALIGNMENT = 64


def write_token_shard(path: Path, proteins: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Writes one shard atomically; all of its proteins are held in memory.

    Args:
      path: of the file, which is replaced.
      proteins: names and normalised sequences (`protlm_jax.vocabularies.normalise`), in order.
    Returns:
      For the manifest: proteins, residues, bytes of the file, and blake2b (32 hexadecimal digits)
      of all that follows the header.
    Raises:
      ProtlmError: a protein without residues; or the disk does not take the file.
    """
    pairs = list(proteins)
    for name, sequence in pairs:
        if not sequence:
            raise ProtlmError(f"{path}: protein {name!r} has no residues; leave it out")
    names = [name.encode() for name, _ in pairs]
    sequences = [sequence.encode("ascii") for _, sequence in pairs]
    payload = b"".join([_offsets(sequences), _offsets(names), *sequences, *names])
    digest = blake2b(payload, digest_size=16).hexdigest()
    residues = sum(map(len, sequences))
    start = _prelude(len(pairs), residues, sum(map(len, names)), digest)
    with atomic_file(path) as file:
        file.write(start)
        file.write(payload)
    size = len(start) + len(payload)
    return {"proteins": len(pairs), "residues": residues, "bytes": size, "blake2b": digest}


def _offsets(parts: list[bytes]) -> bytes:
    """int64 [parts + 1], as bytes."""
    ends = itertools.accumulate(map(len, parts), initial=0)
    return np.fromiter(ends, "<i8", len(parts) + 1).tobytes()


def _prelude(proteins: int, residues: int, name_bytes: int, digest: str) -> bytes:
    """Everything before the offsets."""
    fields = {
        "proteins": proteins,
        "residues": residues,
        "name_bytes": name_bytes,
        "blake2b": digest,
    }
    text = json.dumps(fields).encode()
    size = len(text) + -(_PRELUDE.size + len(text)) % _ALIGNMENT
    return _PRELUDE.pack(MAGIC, VERSION, size) + text.ljust(size)


@dataclass(frozen=True)
class TokenShard:
    """The proteins of one shard, mapped into memory.

    offsets: int64 [proteins + 1]; protein i is letters[offsets[i] : offsets[i + 1]].
    letters: uint8 [residues], ASCII; in memory uint16 where residues have a structure.
    name_offsets, names: the same for the names, in UTF-8.
    """

    offsets: np.ndarray
    letters: np.ndarray
    name_offsets: np.ndarray
    names: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[str]) -> TokenShard:
        """Normalised sequences in memory, without names."""
        offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        joined = "".join(sequences)
        letters = np.frombuffer(joined.encode("utf-16-le"), "<u2")
        if joined.isascii():
            letters = letters.astype(np.uint8)
        return cls(offsets, letters, np.zeros_like(offsets), np.zeros(0, np.uint8))

    @classmethod
    def open(cls, path: Path, shard: Shard) -> TokenShard:
        """Maps the file of a manifest's shard, and verifies its checksum (about 1 GB a second);
        raises ProtlmError where it is missing, of another version, truncated, damaged, or another
        shard."""
        data = _mapped(path)
        if len(data) < _PRELUDE.size or not data[: len(MAGIC)] == MAGIC:
            raise Damaged(f"{path} is no token file, or its beginning is damaged; {REMEDY}")
        _, version, size = _PRELUDE.unpack(data[: _PRELUDE.size])
        if version != VERSION:
            raise ProtlmError(
                f"{path} has format version {version}; this version of protlm_jax reads {VERSION}: "
                "prepare the data again with this version"
            )
        begin = _PRELUDE.size + size
        try:
            fields = json.loads(data[_PRELUDE.size : begin])
            residues, name_bytes = int(fields["residues"]), int(fields["name_bytes"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            residues = name_bytes = 0
        # A header that differs in any byte is damaged too.
        intact = data[:begin] == _prelude(shard.proteins, residues, name_bytes, shard.blake2b)
        count = shard.proteins + 1
        expected = begin + 16 * count + residues + name_bytes
        if not (intact and len(data) == expected == shard.bytes):
            raise Damaged(f"{path} is not the shard that was prepared; {REMEDY}")
        if blake2b(memoryview(data)[begin:], digest_size=16).hexdigest() != shard.blake2b:
            raise Damaged(f"{path} is damaged: its checksum is wrong; {REMEDY}")
        letters = begin + 16 * count
        return cls(
            np.frombuffer(data, "<i8", count, begin),
            np.frombuffer(data, np.uint8, residues, letters),
            np.frombuffer(data, "<i8", count, begin + 8 * count),
            np.frombuffer(data, np.uint8, name_bytes, letters + residues),
        )

    def proteins(self) -> Iterator[tuple[str, str]]:
        """Names and sequences, in order."""
        names, letters = self.names.tobytes(), self.letters.data
        bounds = zip(
            itertools.pairwise(self.name_offsets.tolist()),
            itertools.pairwise(self.offsets.tolist()),
            strict=True,
        )
        for (a, b), (c, d) in bounds:
            yield names[a:b].decode(), str(letters[c:d], "ascii")


def open_token_shards(prepared: Prepared, split: str) -> list[TokenShard]:
    """All shards of one side of a split, opened in as many threads as there are cores; raises
    ProtlmError where there are no token files, or one is at fault."""
    paths = prepared.token_files(split)
    # Each mapped shard is an open file: raise this process's limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        more = soft + len(paths)
        most = more if hard == resource.RLIM_INFINITY else min(more, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(TokenShard.open, paths, prepared.splits[split].tokens))


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, mapped."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing, and with it its proteins; {REMEDY}") from None
    except OSError as error:
        many = error.errno == errno.EMFILE
        remedy = "allow more open files (ulimit -n)" if many else REMEDY
        raise ProtlmError(f"cannot read {path}: {error.strerror}; {remedy}") from None

"""Token files: proteins as they are, one after the other, in files that are mapped into memory.

A shard holds letters and not ids, and proteins and not rows: one copy serves every vocabulary and
every row length, and what is packed with what is decided anew in every epoch (`packing_plan.py`).

    8 bytes                  PRTLMTOK
    uint32, uint32           format version; length of the header in bytes
    header                   JSON: proteins, residues, name_bytes, and blake2b of all that follows;
                             spaces up to a multiple of 64 bytes
    int64 [proteins + 1]     where each protein begins among the residues
    int64 [proteins + 1]     where its name begins among the names
    uint8 [residues]         letters, in ASCII
    uint8 [name_bytes]       names, in UTF-8

All numbers are little-endian. The same proteins make the same bytes.

Needs no TensorFlow.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from protlm_jax.errors import ProtlmError
from protlm_jax.files import atomic_file

MAGIC = b"PRTLMTOK"
VERSION = 1

_PRELUDE = struct.Struct("<8sII")
_ALIGNMENT = 64


@dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of a shard.

    file is its name in the folder, bytes the size of the file, and blake2b (32 hexadecimal digits)
    the hash of all that follows the header.
    """

    file: str
    proteins: int
    residues: int
    bytes: int
    blake2b: str


def write_token_shard(path: Path, proteins: Iterable[tuple[str, str]]) -> ShardInfo:
    """Writes one shard, whole or not at all.

    Args:
      path: of the file; what was there is replaced.
      proteins: names and normalised sequences (`protlm_jax.vocabularies.normalise`), in the order
        in which they are to be read. All of them are held in memory.
    Returns:
      What belongs into the manifest.
    Raises:
      ProtlmError: a protein without residues; or the folder or the disk does not take the file.
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
    return ShardInfo(path.name, len(pairs), residues, len(start) + len(payload), digest)


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

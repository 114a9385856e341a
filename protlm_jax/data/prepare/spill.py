"""Spill files: the rows of one block of input, by bucket, so that a bucket is read directly.

    table [buckets + 1]   of each part: its first byte, its bytes, and a digest of all three
    parts                 `rows.to_bytes` of each bucket; then JSON of the block's digest and counts

A file is there whole or not at all, and is a function of block and plan alone, so a restart keeps
those that it finds. One that has changed since is removed, to be made again.
"""

from __future__ import annotations

import json
import os
import struct
from hashlib import blake2b
from pathlib import Path

from protlm_jax.data.blocks import TextBlock
from protlm_jax.data.prepare.manifest import RecordCounts
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rows import Row, from_bytes, judge, to_bytes
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged, digest_of_data
from protlm_jax.storage.files import atomic_file

SCATTERED = "scattered"
"""The file beside the folder of spill files that says that all of them are there."""

_PART = struct.Struct("<qq16s")


def scatter(block: TextBlock, source: int, plan: PreparePlan, path: Path) -> None:
    """Judges one block (`rows.judge`), and writes its spill file.

    Raises:
        ProtlmError: see `rows.judge`; or the disk does not take the file.
    """
    buckets, counts = judge(block, source, plan)
    tail = {"digest": digest_of_data(block.data, "blake2b"), "counts": counts.to_json()}
    parts = [*map(to_bytes, buckets), json.dumps(tail).encode()]
    table, at = [], _PART.size * len(parts)
    for part in parts:
        table.append(_PART.pack(at, len(part), _digest(at, part)))
        at += len(part)
    with atomic_file(path) as file:
        file.writelines(table + parts)


def read_rows(path: Path, bucket: int) -> list[Row]:
    """The rows of one bucket in a spill file.

    Raises:
        Damaged: the file has changed since it was written; it is removed.
        ProtlmError: it cannot be read.
    """
    return from_bytes(_read(path, bucket))


def read_tail(path: Path, plan: PreparePlan) -> tuple[str, RecordCounts]:
    """The digest of the block that a spill file was made from, and its counts.

    Raises:
        Damaged, ProtlmError: as `read_rows`.
    """
    tail = json.loads(_read(path, plan.buckets))
    return tail["digest"], RecordCounts.from_json(tail["counts"])


def _digest(start: int, data: bytes) -> bytes:
    person = struct.pack("<qq", start, len(data))
    return blake2b(data, digest_size=16, person=person).digest()


def _read(path: Path, number: int) -> bytes:
    """One part of a spill file."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(_PART.size * number)
            start, size, digest = _PART.unpack(file.read(_PART.size))
            if start >= 0 and 0 <= size <= os.fstat(file.fileno()).st_size:
                file.seek(start)
                if _digest(start, data := file.read(size)) == digest:
                    return data
    except struct.error:
        pass
    except OSError as error:
        raise ProtlmError(
            f"cannot read {path} ({error.strerror}), a part of an unfinished run; remove the "
            "folder and prepare the data again"
        ) from None
    path.unlink(missing_ok=True)
    (path.parent.parent / SCATTERED).unlink(missing_ok=True)
    raise Damaged(
        f"{path}, a part of an unfinished run, was not as it was written, and is removed: run the "
        "same command again, which makes it anew"
    )

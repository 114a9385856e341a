"""The files of the work folder: one of rows for each block, and for each bucket its shards.

    spill/000000      the rows of a block by bucket: a table [buckets + 1] with first byte, size and
                      digest of each part; the parts (`rows.to_bytes`); digest and counts
    tokens, records   one shard of each side for each bucket
    heldout/00000.fasta    the held-out proteins of a bucket
    gathered/00000    written last: the shards of this bucket are complete

Each file appears whole and is a function of the input and the plan alone, so a restart keeps the
files that it finds. A spill file that has changed since is removed, to be made again.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from protlm_jax.data.blocks import TextBlock
from protlm_jax.data.prepare.manifest import RecordCounts
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rows import Row, from_bytes, heldout_fasta, judge, split, to_bytes
from protlm_jax.data.prepare.rules import SIDES
from protlm_jax.data.prepared import HELDOUT, RECORDS, TOKENS
from protlm_jax.data.token_files import write_token_shard
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged, digest_of, digest_of_data
from protlm_jax.storage.files import atomic_file, write_atomically
from protlm_jax.storage.json_files import read_json, write_json

SCATTERED = "scattered"
"""The file of the work folder that marks the spill files as complete."""

_PART = struct.Struct("<qq16s")


def scatter(block: TextBlock, source: int, plan: PreparePlan, path: Path) -> None:
    """Judges one block (`rows.judge`), and writes its spill file."""
    buckets, counts = judge(block, source, plan)
    tail = {"digest": digest_of_data(block.data), "counts": counts.to_json()}
    parts = [*map(to_bytes, buckets), json.dumps(tail).encode()]
    table, at = [], _PART.size * len(parts)
    for part in parts:
        table.append(_PART.pack(at, len(part), _digest(part)))
        at += len(part)
    with atomic_file(path) as file:
        file.writelines(table + parts)


def read_tail(path: Path, plan: PreparePlan) -> tuple[str, RecordCounts]:
    """The digest of the block of a spill file, and its counts; raises Damaged, and removes the
    file, where it has changed since it was written."""
    tail = json.loads(_read(path, plan.buckets))
    return tail["digest"], RecordCounts.from_json(tail["counts"])


def _digest(data: bytes) -> bytes:
    return bytes.fromhex(digest_of_data(data).partition(":")[2])


def _read(path: Path, number: int) -> bytes:
    """One part of a spill file; raises as `read_tail`."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(_PART.size * number)
            start, size, digest = _PART.unpack(file.read(_PART.size))
            if start >= 0 and 0 <= size <= os.fstat(file.fileno()).st_size:
                file.seek(start)
                if _digest(data := file.read(size)) == digest:
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
        "same command again, which makes it again"
    )


def gather(bucket: int, spills: Sequence[Path], plan: PreparePlan, work: Path) -> None:
    """Writes the shards of one bucket of all spill files."""
    rows = [row for path in spills for row in from_bytes(_read(path, bucket))]
    write_bucket(bucket, rows, plan, work)


def write_bucket(bucket: int, rows: Iterable[Row], plan: PreparePlan, work: Path) -> None:
    """As `gather`, from rows in any order."""
    kept, counts = split(rows, plan.rules.deduplicate)
    shards: dict[str, dict[str, dict[str, Any]]] = {TOKENS: {}, RECORDS: {}}
    number = f"{bucket:05d}-of-{plan.buckets:05d}"
    for side in SIDES:
        mine = [row for row in kept if row.side == side]
        if plan.tokens:
            name = f"{TOKENS}/{side}-{number}.tokens"
            pairs = ((row.id, row.sequence) for row in mine)
            shards[TOKENS][side] = {"file": name} | write_token_shard(work / name, pairs)
        if plan.records:
            from protlm_jax.data.records import write_record_shard  # needs TensorFlow

            name = f"{RECORDS}/{plan.dataset}-{side}.tfrecord-{number}"  # as TFDS names it
            shards[RECORDS][side] = {"file": name} | write_record_shard(work / name, mine)
    piece = heldout_piece(work, bucket)
    write_atomically(piece, heldout_fasta(kept))
    done = {"counts": counts.to_json(), "heldout": digest_of(piece)}
    write_json(_marker(work, bucket), done | shards, indent=None)


def finished_bucket(work: Path, bucket: int) -> dict[str, Any] | None:
    """The counts of a finished bucket, and by kind and side the manifest's entries of its shards;
    None where it is to be made (again)."""
    if not _marker(work, bucket).exists():
        return None
    try:
        done = read_json(_marker(work, bucket))
        done["counts"] = RecordCounts.from_json(done["counts"])
        if done["heldout"] != digest_of(heldout_piece(work, bucket)):
            return None
        for shard in (*done[TOKENS].values(), *done[RECORDS].values()):
            path = work / shard["file"]
            if path.exists() and path.stat().st_size != shard["bytes"]:
                return None
    except (ProtlmError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return done


def _marker(work: Path, bucket: int) -> Path:
    return work / "gathered" / f"{bucket:05d}"


def heldout_piece(work: Path, bucket: int) -> Path:
    """The file of the held-out proteins of a bucket."""
    return work / "heldout" / f"{bucket:05d}.fasta"


def join_heldout(pieces: Iterable[bytes], file: IO[bytes]) -> dict[str, Any]:
    """Writes the held-out proteins of all buckets to one file; returns its entry of the manifest
    ("file" is None where there are none: the caller then removes the file)."""
    digest, size = blake2b(digest_size=16), 0
    for data in pieces:
        digest.update(data)
        size += len(data)
        file.write(data)
    return {"file": HELDOUT if size else None, "bytes": size, "blake2b": digest.hexdigest()}

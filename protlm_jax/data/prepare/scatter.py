"""A block of input becomes a spill file: its proteins, judged, grouped by bucket.

    table [buckets + 1]   of each part: its first byte, its bytes, and a digest of all three
    rows of each bucket   see `rows`, in the order of the input; nothing where there are none
    tail                  JSON of `Tail`: the block it was made from, and what was left out

A file is there whole or not at all, and is a function of block and plan alone, so a restart keeps
those that it finds. One that has changed since is removed, to be made again.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from protlm_jax.data.blocks import Block, entries
from protlm_jax.data.entries import Entry
from protlm_jax.data.fasta import BadRecord, looks_like_nucleotides
from protlm_jax.data.prepare.manifest import Counts, Position
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rows import Row, from_bytes, to_bytes
from protlm_jax.data.prepare.rules import BAD_RECORD, SIDES, bucket_of, order_key
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged
from protlm_jax.storage.files import atomic_file

SCATTERED = "scattered"
"""The file beside the folder of spill files that says that all of them are there."""

_PART = struct.Struct("<qq16s")


@dataclass(frozen=True)
class Tail:
    """digest: of `digest_of`. counts: records read, and those left out so far."""

    digest: str
    counts: Counts


def scatter(block: Block, source: int, plan: Plan, path: Path) -> None:
    """Parses and judges one block, and writes its spill file.

    Args:
        source: number of the block's file in the plan.
    Raises:
        ProtlmError: a record is no protein (under `bad_records="error"`) or not of this dataset;
            or the disk does not take the file.
    """
    buckets, counts = judge(block, source, plan)
    tail = {"digest": digest_of(block), "counts": counts.to_json()}
    parts = [*map(to_bytes, buckets), json.dumps(tail).encode()]
    table, at = [], _PART.size * len(parts)
    for part in parts:
        table.append(_PART.pack(at, len(part), _digest(at, part)))
        at += len(part)
    with atomic_file(path) as file:
        file.writelines(table + parts)


def judge(block: Block, source: int, plan: Plan) -> tuple[list[list[Row]], Counts]:
    """The rows of a block by bucket, in the order of the input, and what was read and left out.

    Raises:
        ProtlmError: see `scatter`.
    """
    counts = Counts()
    proteins = _proteins(block, source, plan, counts)
    buckets: list[list[Row]] = [[] for _ in range(plan.buckets)]
    for entry, verdict in zip(proteins, plan.rules.verdicts(proteins), strict=True):
        position = (source, entry.line)
        if verdict in SIDES:
            row = to_row(entry, verdict, position)
            buckets[bucket_of(row.key, plan.buckets)].append(row)
        else:
            counts.dropped[verdict].note(position, entry.id)
    return buckets, counts


def to_row(entry: Entry, side: str, position: Position) -> Row:
    """What is kept of an entry."""
    return Row(
        order_key(entry.sequence),
        side,
        position,
        entry.id,
        entry.sequence,
        entry.description,
        entry.members,
        entry.taxon,
        entry.taxon_id,
        entry.representative,
        entry.uniref50,
    )


def digest_of(block: Block) -> str:
    """Tells whether a spill file was made from this very block."""
    return blake2b(block.data, digest_size=16).hexdigest()


def read_rows(path: Path, bucket: int) -> list[Row]:
    """The rows of one bucket in a spill file.

    Raises:
        Damaged: the file has changed since it was written; it is removed.
        ProtlmError: it cannot be read.
    """
    data = _read(path, bucket)
    try:
        return from_bytes(data)
    except ValueError:
        raise _removed(path) from None


def read_tail(path: Path, plan: Plan) -> Tail:
    """What a spill file was made from, and what was left out.

    Raises:
        Damaged, ProtlmError: as `read_rows`.
    """
    data = _read(path, plan.buckets)
    try:
        told = json.loads(data)
        return Tail(str(told["digest"]), Counts.from_json(told["counts"]))
    except (ValueError, KeyError, TypeError):
        raise _removed(path) from None


def _digest(start: int, data: bytes) -> bytes:
    person = struct.pack("<qq", start, len(data))
    return blake2b(data, digest_size=16, person=person).digest()


def _read(path: Path, number: int) -> bytes:
    """One part of a spill file."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(_PART.size * number)
            start, size, digest = _PART.unpack(file.read(_PART.size))
            if start < 0 or not 0 <= size <= os.fstat(file.fileno()).st_size:
                raise _removed(path)
            file.seek(start)
            data = file.read(size)
    except struct.error:
        raise _removed(path) from None
    except OSError as error:
        raise ProtlmError(
            f"cannot read {path} ({error.strerror}), a part of an unfinished run; remove the "
            "folder and prepare the data again"
        ) from None
    if _digest(start, data) != digest:
        raise _removed(path)
    return data


def _removed(path: Path) -> Damaged:
    """Takes a damaged spill file away, and says so."""
    path.unlink(missing_ok=True)
    (path.parent.parent / SCATTERED).unlink(missing_ok=True)
    return Damaged(
        f"{path}, a part of an unfinished run, was not as it was written, and is removed: run the "
        "same command again, which makes it anew"
    )


def _proteins(block: Block, source: int, plan: Plan, counts: Counts) -> Sequence[Entry]:
    """The proteins of a block; counts the records."""
    proteins = []
    for entry in entries(block, plan.rules.policy):
        counts.read += 1
        if isinstance(entry, BadRecord):
            if plan.rules.bad_records == "error":
                raise entry.error
            counts.dropped[BAD_RECORD].note((source, entry.line), entry.id)
            continue
        plan.check(entry)
        counts.nucleotides += looks_like_nucleotides(entry.sequence)
        proteins.append(entry)
    return proteins

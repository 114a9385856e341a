"""A block of input becomes a spill file: its proteins, judged, grouped by bucket.

    8 bytes               magic
    int64 [buckets + 1]   where each bucket's rows begin in the file; the last is their end
    rows of each bucket   a pickled list, in the order of the input; nothing where there are none
    tail                  pickled `Tail`: the block it was made from, and what was left out

A file is there whole or not at all, and is a function of block and plan alone, so a restart keeps
those that it finds. Pickles here are read by the program that wrote them, from its own folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protlm_jax.data.blocks import Block, entries
from protlm_jax.data.entries import Entry
from protlm_jax.data.fasta import BadRecord
from protlm_jax.data.prepare.manifest import Counts, Position
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rules import BAD_RECORD, SIDES, bucket_of, order_key
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.files import atomic_file

MAGIC = b"PRTSPILL"


class Row(NamedTuple):
    """A protein on its way into a shard: what is kept of its entry, and where it belongs.

    key: of `order_key`. side: of the split. position: in the input.
    """

    key: bytes
    side: str
    position: Position
    id: str
    sequence: str
    description: str
    members: int
    taxon: str
    taxon_id: int
    representative: str
    uniref50: str


@dataclass(frozen=True)
class Tail:
    """digest: of the text of the block. counts: records read, and those left out so far."""

    digest: bytes
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
    parts = [pickle.dumps(rows, pickle.HIGHEST_PROTOCOL) if rows else b"" for rows in buckets]
    starts = np.cumsum([len(MAGIC) + 8 * (plan.buckets + 1), *map(len, parts)], dtype=np.int64)
    with atomic_file(path) as file:
        file.write(MAGIC + starts.tobytes())
        file.writelines(parts)
        file.write(pickle.dumps(Tail(digest_of(block), counts), pickle.HIGHEST_PROTOCOL))


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


def digest_of(block: Block) -> bytes:
    """Tells whether a spill file was made from this very block."""
    return blake2b(block.data, digest_size=16).digest()


def read_rows(path: Path, bucket: int) -> list[Row]:
    """The rows of one bucket in a spill file."""
    with _opened(path) as file:
        file.seek(len(MAGIC) + 8 * bucket)
        start, end = np.frombuffer(file.read(16), np.int64).tolist()
        file.seek(start)
        return pickle.loads(file.read(end - start)) if end > start else []


def read_tail(path: Path, plan: Plan) -> Tail:
    """What a spill file was made from, and what was left out."""
    with _opened(path) as file:
        file.seek(len(MAGIC) + 8 * plan.buckets)
        file.seek(int(np.frombuffer(file.read(8), np.int64)[0]))
        return pickle.loads(file.read())


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ProtlmError(
            f"cannot read {path} ({error.strerror}), a part of an unfinished run; remove the "
            "folder and prepare the data again"
        ) from None


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
        proteins.append(entry)
    return proteins

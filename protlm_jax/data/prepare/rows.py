"""From entries to the rows of shards, as pure functions that both drivers call.

    judge   a block of input -> the rows of its proteins, by bucket, and counts of the others
    split   all rows of a bucket -> those that are kept, in the order of the shard, and counts

Between the two, rows are text: no program code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from protlm_jax.data.blocks import TextBlock, entries
from protlm_jax.data.entries import ReleaseEntry
from protlm_jax.data.fasta import BadRecord, looks_like_nucleotides
from protlm_jax.data.prepare.manifest import Position, RecordCounts, Tally
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import BAD_RECORD, DUPLICATE, KEY, SIDES, bucket_of, order_key


class Row(NamedTuple):
    """What is kept of a protein's entry.

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

    @classmethod
    def of(cls, entry: ReleaseEntry, side: str, position: Position) -> Row:
        """The row of an entry."""
        return cls(order_key(entry.sequence), side, position, *_kept(entry))


_kept = attrgetter(*Row._fields[3:])


def to_bytes(rows: Sequence[Row]) -> bytes:
    """Rows, in their order: a line of JSON with their other columns, then a line for each sequence;
    nothing for none."""
    if not rows:
        return b""
    keys, sides, positions, ids, sequences, *others = zip(*rows, strict=True)
    columns = [b"".join(keys).hex(), sides, positions, ids, *others]
    return "\n".join((json.dumps(columns, ensure_ascii=False), *sequences)).encode()


def from_bytes(data: bytes) -> list[Row]:
    """The rows of `to_bytes`."""
    if not data:
        return []
    columns, *sequences = data.decode().split("\n")
    joined, sides, positions, ids, *others = json.loads(columns)
    joined = bytes.fromhex(joined)
    keys = [joined[i : i + KEY] for i in range(0, len(joined), KEY)]
    rows = zip(keys, sides, map(tuple, positions), ids, sequences, *others, strict=True)
    return list(map(Row._make, rows))


def judge(block: TextBlock, source: int, plan: PreparePlan) -> tuple[list[list[Row]], RecordCounts]:
    """The rows of a block by bucket, in the order of the input, and counts of what was read and
    left out; `source` is the number of the block's file. Raises ProtlmError for a record that is no
    protein (under `bad_records="error"`) or not of this dataset."""
    counts, proteins = RecordCounts(), []
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
    buckets: list[list[Row]] = [[] for _ in range(plan.buckets)]
    for entry, verdict in zip(proteins, plan.rules.verdicts(proteins), strict=True):
        position = (source, entry.line)
        if verdict in SIDES:
            row = Row.of(entry, verdict, position)
            buckets[bucket_of(row.key, plan.buckets)].append(row)
        else:
            counts.dropped[verdict].note(position, entry.id)
    return buckets, counts


def split(rows: Iterable[Row], deduplicate: bool) -> tuple[list[Row], RecordCounts]:
    """The rows of a bucket that are kept, in the order of storage, and their counts.

    Rows are sorted by the hash of their sequence, so equal sequences are neighbours; with
    `deduplicate` the first of them in the order of the input is kept.
    """
    counts = RecordCounts()
    kept = list(_keep_one(sorted(rows, key=attrgetter("key", "position")), deduplicate, counts))
    for side in SIDES:
        counts.splits[side] = Tally.of(row.sequence for row in kept if row.side == side)
    return kept, counts


def _keep_one(rows: Iterable[Row], deduplicate: bool, counts: RecordCounts) -> Iterator[Row]:
    """The first of each run of equal sequences, or all; counts the others.

    Equal sequences are on one side, also where the cluster of only one of them is held out.
    """
    for _, group in groupby(rows, key=attrgetter("key")):
        first, *others = group
        if others and any(row.side == "heldout" for row in others):
            first, *others = [row._replace(side="heldout") for row in (first, *others)]
        yield first
        for row in others:
            if deduplicate:
                counts.dropped[DUPLICATE].note(row.position, row.id)
            else:
                yield row


def heldout_fasta(rows: Iterable[Row]) -> str:
    """FASTA of the held-out rows, with their UniRef50 clusters; `rules.Frozen` reads it."""
    return "".join(
        f">{row.id} uniref50={row.uniref50}\n{row.sequence}\n"
        for row in rows
        if row.side == "heldout"
    )

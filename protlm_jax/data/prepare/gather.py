"""A bucket of all spill files becomes one shard of each side.

Rows are sorted by the hash of their sequence, so equal sequences stand side by side, and the first
of them in the order of the input is kept. The bucket's counts are written last: where they lie, its
shards lie too, and a restart goes to the next bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from protlm_jax.data.prepare.manifest import Counts, Tally
from protlm_jax.data.prepare.plan import Plan, record_file, token_file
from protlm_jax.data.prepare.rows import Row
from protlm_jax.data.prepare.rules import DUPLICATE, SIDES
from protlm_jax.data.prepare.scatter import read_rows
from protlm_jax.data.prepared import HELDOUT, RECORDS, TOKENS
from protlm_jax.data.token_files import write_token_shard
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import digest_of
from protlm_jax.storage.files import atomic_file, write_atomically
from protlm_jax.storage.json_files import read_json, write_json


@dataclass
class Gathered:
    """What became of a bucket: counts of its proteins, a digest of those that are held out, and its
    shards by side."""

    counts: Counts
    heldout: str = ""
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, work: Path, bucket: int) -> Gathered | None:
        """What a finished bucket left in the work folder; None where it is to be made (again)."""
        file = marker(work, bucket)
        if not file.exists():
            return None
        try:
            told = read_json(file)
            counts = Counts.from_json(told["counts"])
            done = cls(counts, told["heldout"], told["tokens"], told["records"])
            if done.heldout != digest_of(heldout_piece(work, bucket), "blake2b"):
                return None
            shards = [*done.tokens.values(), *done.records.values()]
            there = {work / shard["file"]: shard["bytes"] for shard in shards}
        except (ProtlmError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        whole = all(not path.exists() or path.stat().st_size == n for path, n in there.items())
        return done if whole else None


def gather(bucket: int, spills: Sequence[Path], plan: Plan, work: Path) -> None:
    """Writes the shards of one bucket below the work folder, and what became of it.

    Raises:
        ProtlmError: a spill file cannot be read, or the disk does not take a shard.
    """
    write_bucket(bucket, [row for path in spills for row in read_rows(path, bucket)], plan, work)


def write_bucket(bucket: int, rows: Iterable[Row], plan: Plan, work: Path) -> None:
    """As `gather`, from rows in any order."""
    kept, counts = settle(rows, plan)
    done = Gathered(counts)
    for side in SIDES:
        mine = [row for row in kept if row.side == side]
        if plan.tokens:
            name = token_file(side, bucket, plan.buckets)
            info = write_token_shard(work / TOKENS / name, ((row.id, row.sequence) for row in mine))
            done.tokens[side] = asdict(info) | {"file": f"{TOKENS}/{name}"}
        if plan.records:
            from protlm_jax.data.prepare.records import write_record_shard  # needs TensorFlow

            name = record_file(plan.dataset, side, bucket, plan.buckets)
            told = write_record_shard(work / RECORDS / name, mine)
            done.records[side] = {"file": f"{RECORDS}/{name}"} | told
        if side == "heldout":
            write_atomically(heldout_piece(work, bucket), heldout_fasta(mine))
            done.heldout = digest_of(heldout_piece(work, bucket), "blake2b")
    told = {"counts": counts.to_json(), "heldout": done.heldout}
    told |= {"tokens": done.tokens, "records": done.records}
    write_json(marker(work, bucket), told, indent=None)


def settle(rows: Iterable[Row], plan: Plan) -> tuple[list[Row], Counts]:
    """The rows of a bucket that are kept, in the order in which they are stored, and their counts.

    Args:
        rows: all rows of the bucket, in any order.
    """
    counts = Counts()
    ordered = sorted(rows, key=attrgetter("key", "position"))
    kept = list(keep_one(ordered, plan.rules.deduplicate, counts))
    for side in SIDES:
        counts.splits[side] = Tally.of(row.sequence for row in kept if row.side == side)
    return kept, counts


def keep_one(rows: Iterable[Row], deduplicate: bool, counts: Counts) -> Iterator[Row]:
    """Of rows with equal sequences (neighbours, in the order of the input) the first; all of them
    with `deduplicate` off. Counts the others.

    Equal sequences stand on one side, also where the cluster of only one of them is held out.
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
    """FASTA of held-out proteins, with their UniRef50 clusters; `frozen.Frozen` reads it."""
    return "".join(f">{row.id} uniref50={row.uniref50}\n{row.sequence}\n" for row in rows)


def marker(work: Path, bucket: int) -> Path:
    """The file that says that a bucket is done."""
    return work / "gathered" / f"{bucket:05d}"


def heldout_piece(work: Path, bucket: int) -> Path:
    """The held-out proteins of a bucket."""
    return work / "heldout" / f"{bucket:05d}.fasta"


def join_heldout(plan: Plan, work: Path) -> dict[str, Any]:
    """Puts the held-out proteins of all buckets into one file; returns what a manifest says of it.

    Raises:
        ProtlmError: the disk does not take the file.
    """
    digest, size = blake2b(digest_size=16), 0
    with atomic_file(work / HELDOUT) as file:
        for bucket in range(plan.buckets):
            data = heldout_piece(work, bucket).read_bytes()
            digest.update(data)
            size += len(data)
            file.write(data)
    if not size:
        (work / HELDOUT).unlink()
    return {"file": HELDOUT if size else None, "bytes": size, "blake2b": digest.hexdigest()}

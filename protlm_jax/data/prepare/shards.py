"""A bucket of rows becomes one shard of each side.

The bucket's marker is written last: where it lies, its shards lie too, and a restart goes to the
next bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from protlm_jax.data.prepare.manifest import RecordCounts
from protlm_jax.data.prepare.plan import PreparePlan, record_file, token_file
from protlm_jax.data.prepare.rows import Row, heldout_fasta, split
from protlm_jax.data.prepare.rules import SIDES
from protlm_jax.data.prepare.spill import read_rows
from protlm_jax.data.prepared import HELDOUT, RECORDS, TOKENS
from protlm_jax.data.token_files import write_token_shard
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import digest_of
from protlm_jax.storage.files import write_atomically
from protlm_jax.storage.json_files import read_json, write_json


def gather(bucket: int, spills: Sequence[Path], plan: PreparePlan, work: Path) -> None:
    """Writes the shards of one bucket of all spill files.

    Raises:
        ProtlmError: a spill file cannot be read, or the disk does not take a shard.
    """
    write_bucket(bucket, [row for path in spills for row in read_rows(path, bucket)], plan, work)


def write_bucket(bucket: int, rows: Iterable[Row], plan: PreparePlan, work: Path) -> None:
    """As `gather`, from rows in any order."""
    kept, counts = split(rows, plan.rules.deduplicate)
    tokens: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        mine = [row for row in kept if row.side == side]
        if plan.tokens:
            name = token_file(side, bucket, plan.buckets)
            pairs = ((row.id, row.sequence) for row in mine)
            info = write_token_shard(work / TOKENS / name, pairs)
            tokens[side] = {"file": f"{TOKENS}/{name}"} | info
        if plan.records:
            from protlm_jax.data.prepare.records import write_record_shard  # needs TensorFlow

            name = record_file(plan.dataset, side, bucket, plan.buckets)
            info = write_record_shard(work / RECORDS / name, mine)
            records[side] = {"file": f"{RECORDS}/{name}"} | info
    piece = heldout_piece(work, bucket)
    write_atomically(piece, heldout_fasta(kept))
    done = {"counts": counts.to_json(), "heldout": digest_of(piece, "blake2b")}
    write_json(_marker(work, bucket), done | {"tokens": tokens, "records": records}, indent=None)


def finished_bucket(work: Path, bucket: int) -> dict[str, Any] | None:
    """What a finished bucket left in the work folder: its counts, and what a manifest says of its
    shards by side ("tokens", "records"); None where it is to be made (again)."""
    if not _marker(work, bucket).exists():
        return None
    try:
        done = read_json(_marker(work, bucket))
        done["counts"] = RecordCounts.from_json(done["counts"])
        if done["heldout"] != digest_of(heldout_piece(work, bucket), "blake2b"):
            return None
        for shard in (*done["tokens"].values(), *done["records"].values()):
            path = work / shard["file"]
            if path.exists() and path.stat().st_size != shard["bytes"]:
                return None
    except (ProtlmError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return done


def _marker(work: Path, bucket: int) -> Path:
    return work / "gathered" / f"{bucket:05d}"


def heldout_piece(work: Path, bucket: int) -> Path:
    """The held-out proteins of a bucket."""
    return work / "heldout" / f"{bucket:05d}.fasta"


def join_heldout(pieces: Iterable[bytes], file: IO[bytes]) -> dict[str, Any]:
    """Writes the held-out proteins of all buckets to one file; returns what a manifest says of it
    (no file where there are none, which the caller then removes)."""
    digest, size = blake2b(digest_size=16), 0
    for data in pieces:
        digest.update(data)
        size += len(data)
        file.write(data)
    return {"file": HELDOUT if size else None, "bytes": size, "blake2b": digest.hexdigest()}

"""What workers leave in the work folder for whoever started them, and the manifest made of it.

    counts          `Counts` of all records, as JSON
    sources         [{name, bytes, sha256}], as JSON
    heldout/00000   the held-out proteins of a bucket, as FASTA

Paths are etils', so the folder may be local or in a bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

from etils import epath

from protlm_jax.data.prepare import manifest
from protlm_jax.data.prepare.gather import heldout_fasta
from protlm_jax.data.prepare.manifest import Counts
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rows import Row
from protlm_jax.data.prepared import HELDOUT, MANIFEST

COUNTS = "counts"
SOURCES = "sources"

_THREADS = 8
_PIECE = 1 << 20


def save_counts(counts: Counts, path: str) -> None:
    """Writes counts as JSON."""
    save(counts.to_json(), path)


def save(value: Any, path: str) -> None:
    """Writes something as JSON."""
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def load(path: str) -> Any:
    """What was saved."""
    return json.loads(epath.Path(path).read_text())


def load_counts(path: str) -> Counts:
    """The counts that were saved."""
    return Counts.from_json(load(path))


def save_heldout(bucket: int, rows: Iterable[Row], work: str) -> None:
    """Writes the held-out ones of a bucket's rows as FASTA."""
    file = epath.Path(work) / "heldout" / f"{bucket:05d}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(heldout_fasta(row for row in rows if row.side == "heldout"))


def write_manifest(
    folder: str, work: str, plan: Plan, shards: Mapping[str, Sequence[tuple[str, int]]]
) -> None:
    """Writes manifest.json and heldout.fasta beside the shards that TFDS wrote.

    Args:
        shards: for each side the file names in `folder`, in order, and their numbers of proteins.
    """
    heldout = _join_heldout(folder, work, plan)
    with ThreadPoolExecutor(_THREADS) as threads:
        records = {
            side: list(threads.map(lambda shard: _describe(folder, *shard), files))
            for side, files in shards.items()
        }
    told = manifest.build(
        dataset=plan.dataset,
        release=plan.release,
        sources=load(f"{work}/{SOURCES}"),
        rules=plan.rules,
        counts=load_counts(f"{work}/{COUNTS}"),
        tokens={},
        records=records,
        heldout=heldout,
    )
    (epath.Path(folder) / MANIFEST).write_text(manifest.to_text(told))


def _describe(folder: str, name: str, proteins: int) -> dict[str, Any]:
    """What a manifest says of a shard."""
    digest, size = blake2b(digest_size=16), 0
    with (epath.Path(folder) / name).open("rb") as file:
        while data := file.read(_PIECE):
            digest.update(data)
            size += len(data)
    return {"file": name, "proteins": proteins, "bytes": size, "blake2b": digest.hexdigest()}


def _join_heldout(folder: str, work: str, plan: Plan) -> dict[str, Any]:
    """Puts the held-out proteins of all buckets into one file."""
    digest, size = blake2b(digest_size=16), 0
    with (epath.Path(folder) / HELDOUT).open("wb") as file:
        for bucket in range(plan.buckets):
            data = (epath.Path(work) / "heldout" / f"{bucket:05d}").read_bytes()
            digest.update(data)
            size += len(data)
            file.write(data)
    if not size:
        (epath.Path(folder) / HELDOUT).unlink()
    return {"file": HELDOUT if size else None, "bytes": size, "blake2b": digest.hexdigest()}

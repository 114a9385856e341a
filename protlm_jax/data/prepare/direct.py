"""Prepares a folder on one machine, and continues where the same command was stopped.

    OUT/.lock                 the process that is writing
    OUT/.work/plan.json       the settings; another command refuses to continue with this folder
    OUT/.work/spill/000000    one file per block of input
    OUT/.work/scattered       number of blocks, and hashes of the sources, once all exist
    OUT/.work/gathered/00000  one file per bucket whose shards exist
    OUT/.work/tokens, ...     the shards; moved into OUT when the last one exists
    OUT/manifest.json         comes last; then .work is removed

The parent process reads and cuts the input, because decompression is sequential; workers parse,
judge, sort and write. Files are named by what they are made from, and appear whole; so no existing
file is made again, and nothing depends on which worker made it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from hashlib import file_digest, sha256
from itertools import chain, product
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from protlm_jax.data.blocks import TextBlock, cut
from protlm_jax.data.prepare import manifest
from protlm_jax.data.prepare.manifest import RecordCounts, total
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rules import SIDES
from protlm_jax.data.prepare.shards import (
    SCATTERED,
    finished_bucket,
    gather,
    heldout_piece,
    join_heldout,
    read_tail,
    scatter,
)
from protlm_jax.data.prepared import HELDOUT, MANIFEST, RECORDS, TOKENS, WORK, Prepared
from protlm_jax.data.sources import explained
from protlm_jax.data.token_files import TokenShard
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.digests import Damaged, digest_of_data
from protlm_jax.storage.files import atomic_file, cannot_write, write_atomically
from protlm_jax.storage.json_files import read_json, write_json
from protlm_jax.storage.owner import LOCK, owned

HASHED = 1 << 30
"""Bytes of a source up to which its content is compared where the folder is finished."""

_WAITING = 2  # tasks per worker that may wait: each holds a block of input in memory


def prepare(plan: PreparePlan, workers: int = 2, *, progress: bool = False) -> Prepared:
    """Makes the folder of a plan, or returns it where it exists, by some worker processes (one
    works in this process).

    Raises:
        ProtlmError: the input is at fault, the disk is full, a worker was killed, no protein is
            left, or the folder holds something else. The same call then continues.
        Occupied: another process works in the output folder.
    """
    with owned(plan.output, inside=True):
        if (plan.output / MANIFEST).exists():
            return finished(plan)
        with work_folder(plan) as work, Workers(workers) as pool:
            spills, sources = _scatter_all(plan, work, pool, progress)
            _gather_all(plan, work, pool, spills, progress)
            counts = total(read_tail(path, plan)[1] for path in spills)
            finish(plan, work, pool, counts, sources)
    return Prepared.open(plan.output)


def finished(plan: PreparePlan) -> Prepared:
    """The finished folder of this plan, all its checksums verified; raises Damaged where a file is
    missing or has changed, ProtlmError where it was made from something else."""
    prepared = Prepared.open(plan.output)
    there = prepared.manifest
    settings = _as_json(plan.settings())
    found = {
        "dataset": there["dataset"],
        "release": there["release"],
        "sources": [{"name": s["name"], "bytes": s["bytes"]} for s in there["sources"]],
        "rules": there["rules"],
        "tokens": any(split.tokens for split in prepared.splits.values()),
        "records": any(split.records for split in prepared.splits.values()),
    }
    _compare(plan, {key: settings[key] for key in found}, found)
    for source, was in zip(plan.sources, there["sources"], strict=True):
        if "://" not in source.path and source.bytes <= HASHED:
            with explained(source.path, lambda: 0), open(source.path, "rb") as file:
                content = {"sha256 of " + source.name: file_digest(file, "sha256").hexdigest()}
            _compare(plan, content, {"sha256 of " + source.name: was["sha256"]})
    try:
        for split in prepared.splits.values():
            for shard in split.tokens:
                TokenShard.open(prepared.folder / shard.file, shard)
            for shard in split.records:
                prepared.require(shard, whole=True)
        if there["heldout"]["file"] is not None:
            prepared.heldout_fasta()
    except Damaged as error:
        raise Damaged(f"{error} (remove {plan.output} first)") from None
    shutil.rmtree(plan.output / WORK, ignore_errors=True)
    return prepared


def _as_json(settings: dict[str, Any]) -> Any:
    return json.loads(json.dumps(settings))


def _compare(plan: PreparePlan, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises ProtlmError where a folder was begun with other settings."""
    if settings.get("layout") != found.get("layout"):
        raise ProtlmError(
            f"{plan.output} was begun by another version of protlm_jax, which did not finish it; "
            f"remove {plan.output / WORK} to begin again"
        )
    for key in settings:
        if settings[key] != found.get(key):
            raise ProtlmError(
                f"{plan.output} was begun with another {key} ({json.dumps(found.get(key))}, not "
                f"{json.dumps(settings[key])}); give another --output, or remove that folder"
            )


@contextmanager
def work_folder(plan: PreparePlan) -> Iterator[Path]:
    """The work folder of this plan, without files that a kill left half written; removed when the
    block ends without an error. Raises ProtlmError where the folder holds something else, or
    links."""
    work = plan.output / WORK
    others = {entry.name for entry in plan.output.iterdir()} - {LOCK}
    if others and WORK not in others:
        raise ProtlmError(
            f"{plan.output} holds something that protlm prepare did not write; give another "
            "--output, or remove that folder"
        )
    try:
        work.mkdir(exist_ok=True)
        for path in (work, *work.rglob("*")):
            if path.is_symlink():
                raise ProtlmError(f"{path} is a link, which is not followed; remove it")
            if path.name.startswith(".") and path != work:
                path.unlink()  # half written
    except OSError as error:
        raise cannot_write(work, error) from error
    if (work / "plan.json").exists():
        found = read_json(work / "plan.json", remedy=f"remove {work} to begin again")
        _compare(plan, _as_json(plan.settings()), found)
    else:
        write_json(work / "plan.json", plan.settings())
    yield work
    shutil.rmtree(work)


def _scatter_all(
    plan: PreparePlan, work: Path, pool: Workers, progress: bool
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Every block's spill file, and the manifest's entry of each source."""
    done = work / SCATTERED
    if done.exists():
        with suppress(ProtlmError, KeyError, TypeError):  # else it is made again
            found = read_json(done)
            return [_spill(work, unit) for unit in range(found["units"])], found["sources"]
    spills: list[Path] = []
    sources: list[dict[str, Any]] = []
    size_of_all = sum(source.bytes for source in plan.sources)
    with _bar("reading", size_of_all, progress, unit="B", unit_scale=True) as bar:

        def tasks() -> Iterator[tuple[TextBlock, int, PreparePlan, Path]]:
            """Blocks without a spill file."""
            for number, source in enumerate(plan.sources):
                hashed = HashedSource(bar.update)
                for block in cut(source.path, plan.block_bytes, hashed):
                    path = _spill(work, len(spills))
                    spills.append(path)
                    made_from = None
                    with suppress(Damaged):  # which removes it, to be made again
                        made_from = read_tail(path, plan)[0] if path.exists() else None
                    if made_from is None:
                        yield block, number, plan, path
                    elif made_from != digest_of_data(block.data):
                        raise ProtlmError(
                            f"{source.path} is not the file with which {plan.output} was begun; "
                            f"put that one back, or remove {work} to begin again"
                        )
                sources.append(hashed.describe(source.name))

        for _ in pool.run(scatter, tasks()):
            pass
    write_json(done, {"units": len(spills), "sources": sources})
    return spills, sources


class HashedSource:
    """Watches the bytes of a source file: their number and SHA-256."""

    def __init__(self, passed: Callable[[int], object] = lambda _: None) -> None:
        self._hash, self._size, self._passed = sha256(), 0, passed

    def __call__(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._passed(len(data))

    def describe(self, name: str) -> dict[str, Any]:
        """The manifest's entry of the file, once all of it was read."""
        return {"name": name, "bytes": self._size, "sha256": self._hash.hexdigest()}


def _spill(work: Path, unit: int) -> Path:
    return work / "spill" / f"{unit:06d}"


def _gather_all(
    plan: PreparePlan, work: Path, pool: Workers, spills: Sequence[Path], progress: bool
) -> None:
    """Every bucket's shards."""
    with _bar("writing", plan.buckets, progress, unit=" shards") as bar:
        missing = [b for b in range(plan.buckets) if finished_bucket(work, b) is None]
        bar.update(plan.buckets - len(missing))
        for _ in pool.run(gather, ((bucket, spills, plan, work) for bucket in missing)):
            bar.update()


def finish(
    plan: PreparePlan,
    work: Path,
    pool: Workers,
    counts: RecordCounts,
    sources: Sequence[dict[str, Any]],
) -> None:
    """Moves the shards to their places, and writes the manifest; `counts` are of the records read
    and left out before they came to a bucket."""
    shards: dict[str, dict[str, list[dict[str, Any]]]]
    shards = {kind: {side: [] for side in SIDES} for kind in (TOKENS, RECORDS)}
    for bucket in range(plan.buckets):
        done = finished_bucket(work, bucket)
        if done is None:
            raise ProtlmError(
                f"a shard of bucket {bucket} in {work} has changed since it was written; run the "
                "same command again, which makes it again"
            )
        counts.add(done["counts"])
        for kind, side in product(shards, SIDES):
            shards[kind][side] += [done[kind][side]] if side in done[kind] else []
    for kind, side in product(shards, SIDES):
        if not counts.splits[side].lengths:
            for shard in shards[kind].pop(side):
                (work / shard["file"]).unlink(missing_ok=True)
    for shard in chain(*(some for kind in shards.values() for some in kind.values())):
        if not any((folder / shard["file"]).exists() for folder in (work, plan.output)):
            raise ProtlmError(
                f"{work / shard['file']} was there and has vanished; remove {plan.output} and "
                "prepare the data again"
            )
    with atomic_file(work / HELDOUT) as file:
        pieces = (heldout_piece(work, bucket).read_bytes() for bucket in range(plan.buckets))
        heldout = join_heldout(pieces, file)
    if heldout["file"] is None:
        (work / HELDOUT).unlink()
    content = manifest.build(plan, counts, sources=sources, heldout=heldout, **shards)
    if (work / RECORDS).exists():
        list(pool.run(_describe_records, [(work / RECORDS, plan, shards[RECORDS])]))
    for name in (TOKENS, RECORDS, HELDOUT):
        if (work / name).exists():
            try:
                os.replace(work / name, plan.output / name)
            except OSError as error:
                raise cannot_write(plan.output / name, error) from error
    write_atomically(plan.output / MANIFEST, manifest.to_text(content))


def _describe_records(
    folder: Path, plan: PreparePlan, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Makes a TFDS folder of the records; in a worker, which has loaded TensorFlow already."""
    from protlm_jax.data.records import write_metadata

    write_metadata(folder, plan.dataset, plan.release, shards)


def _bar(what: str, total: int, progress: bool, **options: Any) -> Any:
    from protlm_jax.process.progress import Bar

    return Bar(total=total, desc=what, show=progress, dynamic_ncols=True, **options)


class Workers(ExitStack):
    """Worker processes for the block of a `with`; one worker works in this process."""

    def __init__(self, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ProtlmError(f"workers is {count}; at least one has to do the work")
        self._limit = _WAITING * count
        self._executor: ProcessPoolExecutor | None = None
        if count > 1:
            # Not fork: the caller may have threads, and JAX's do not survive it.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(count, context, _follow_parent)
            self.callback(self._executor.shutdown, cancel_futures=True)

    def run(
        self, function: Callable[..., None], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[None]:
        """Calls `function` with the arguments of each task; yields None for each that has ended.

        The earliest failed task raises here, or a ProtlmError where a worker was killed; then no
        further tasks are started.
        """
        running: deque[Future[None]] = deque()
        try:
            for task in tasks:
                if self._executor is None:
                    function(*task)
                    yield
                    continue
                if len(running) >= self._limit:
                    yield running.popleft().result()
                running.append(self._executor.submit(function, *task))
            while running:
                yield running.popleft().result()
        except BrokenProcessPool:
            raise ProtlmError(
                "a worker process was killed, probably because memory ran out; run the same "
                "command again to go on, with fewer --workers"
            ) from None


def _follow_parent() -> None:
    """In a worker: ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

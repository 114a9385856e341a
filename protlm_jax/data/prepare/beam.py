"""`protlm prepare --runner beam`, and the steps that it shares with the TFDS builders.

    sources   (number, path)                one element per file
    blocks    (number of source, TextBlock) cut sequentially, then spread over all workers
    rows      (bucket, bytes of rows)       of one block; what the rules leave out is counted
    buckets   (bucket, all its rows)        every bucket once, also those without a row

A bucket is a range of hashes of sequences, so equal sequences meet in it. `prepare.rows` does all
the work.

Workers of `prepare_with_beam` write the shards below the output folder, each atomically: all of
them must see it under the same path (one machine, or a shared file system). Shards and manifest are
the same bytes as those of the direct driver. After a kill the next run starts again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from protlm_jax.data.blocks import TextBlock, cut
from protlm_jax.data.prepare.direct import HashedSource, Workers, finish, finished, work_folder
from protlm_jax.data.prepare.manifest import RecordCounts, total
from protlm_jax.data.prepare.plan import PreparePlan
from protlm_jax.data.prepare.rows import Row, from_bytes, judge, to_bytes
from protlm_jax.data.prepare.shards import write_bucket
from protlm_jax.data.prepared import MANIFEST, Prepared
from protlm_jax.errors import ProtlmError
from protlm_jax.storage.owner import owned

_disabled = logging.root.manager.disable
logging.disable(logging.WARNING)  # Beam warns of every package for Google's cloud that is absent
try:
    import apache_beam as beam
except ImportError as error:
    raise ProtlmError(
        f"this needs Apache Beam ({error}): pip install 'protlm-jax[beam]'"
    ) from error
finally:
    logging.disable(_disabled)

COUNTED = "counted"
"""File of the work folder: counts of all records, and size and hash of each source."""

_OUR_ERROR = re.compile(r"ProtlmError: (.*?)(?: \[while running|\n|$)")


def prepare_with_beam(plan: PreparePlan, flags: str = "") -> Prepared:
    """Makes the folder of a plan by Beam, or returns it where it exists; raises as
    `direct.prepare`.

    flags: Beam's command-line flags. The default is one process of this machine;
      "--direct_num_workers=2 --direct_running_mode=multi_processing" takes two.
    """
    options = beam.options.pipeline_options.PipelineOptions(shlex.split(flags))
    workers = options.view_as(beam.options.pipeline_options.WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "WARNING"
    with owned(plan.output, inside=True):
        if (plan.output / MANIFEST).exists():
            return finished(plan)
        with work_folder(plan) as work:
            with plain_errors(), beam.Pipeline(options=options) as pipeline:
                buckets, counts, sources = judged(pipeline, plan)
                _ = buckets | "write" >> beam.Map(_write, plan, work)
                save_counted(counts, sources, os.fspath(work))
            with Workers(1) as pool:
                finish(plan, work, pool, *load_counted(os.fspath(work)))
    return Prepared.open(plan.output)


def _write(element: tuple[int, Iterable[bytes]], plan: PreparePlan, work: Path) -> None:
    bucket, parts = element
    write_bucket(bucket, rows_of(parts), plan, work)


def judged(pipeline: beam.Pipeline, plan: PreparePlan) -> tuple[Any, Any, Any]:
    """Adds the first steps of a plan to a pipeline. Returns PCollections: (bucket, list of bytes of
    rows); a `RecordCounts` per block, of records read and left out; (number, {name, bytes, sha256})
    of
    each source."""
    blocks = (
        pipeline
        | "sources" >> beam.Create([(i, s.path) for i, s in enumerate(plan.sources)])
        | "cut" >> beam.FlatMap(_cut, plan).with_outputs("sources", main="blocks")
    )
    rows = (
        blocks.blocks
        | "spread" >> beam.Reshuffle()
        | "judge" >> beam.FlatMap(_judge, plan).with_outputs("counts", main="rows")
    )
    every = pipeline | "every bucket" >> beam.Create([(i, b"") for i in range(plan.buckets)])
    buckets = (rows.rows, every) | beam.Flatten() | "group" >> beam.GroupByKey()
    return buckets, rows.counts, blocks.sources


def _cut(element: tuple[int, str], plan: PreparePlan) -> Iterator[Any]:
    number, path = element
    hashed = HashedSource()
    for block in cut(path, plan.block_bytes, hashed):
        yield number, block
    source = hashed.describe(plan.sources[number].name)
    yield beam.pvalue.TaggedOutput("sources", (number, source))


def _judge(element: tuple[int, TextBlock], plan: PreparePlan) -> Iterator[Any]:
    number, block = element
    buckets, counts = judge(block, number, plan)
    for bucket, rows in enumerate(buckets):
        if rows:
            yield bucket, to_bytes(rows)
    yield beam.pvalue.TaggedOutput("counts", counts)


def rows_of(parts: Iterable[bytes]) -> list[Row]:
    """The rows of a bucket, in no order."""
    return [row for data in parts for row in from_bytes(data)]


def save_counted(counts: Any, sources: Any, work: str) -> None:
    """Adds the step that writes sums of `counts`, and `sources`, for `load_counted`."""
    every = sources | beam.combiners.ToList()
    _ = (
        counts
        | beam.CombineGlobally(total)
        | "counted" >> beam.Map(_save, beam.pvalue.AsSingleton(every), work)
    )


def _save(counts: RecordCounts, sources: list[tuple[int, dict[str, Any]]], work: str) -> None:
    content = {
        "counts": counts.to_json(),
        "sources": [source for _, source in sorted(sources, key=lambda pair: pair[0])],
    }
    folder = epath.Path(work)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COUNTED).write_text(json.dumps(content))


def load_counted(work: str) -> tuple[RecordCounts, list[dict[str, Any]]]:
    """Counts of all records, and the manifest's entry of each source."""
    content = json.loads((epath.Path(work) / COUNTED).read_text())
    return RecordCounts.from_json(content["counts"]), content["sources"]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raises a worker's ProtlmError as it was, without the text that Beam adds."""
    try:
        yield
    except Exception as error:
        if found := _OUR_ERROR.search(f"{type(error).__name__}: {error}"):
            raise ProtlmError(found[1]) from None
        raise

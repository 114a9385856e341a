"""The steps that all pipelines share: sources -> blocks -> judged rows -> buckets.

    sources   (number, path)                one element per file
    blocks    (number of source, Block)     cut from front to back, then spread over all workers
    rows      (bucket, bytes of rows)       of one block; what the rules leave out is counted
    buckets   (bucket, all its rows)        every bucket once, also those without a row

A bucket is a range of hashes of sequences, so equal sequences meet in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from protlm_jax.data.blocks import Block, cut
from protlm_jax.data.builders.runtime import beam
from protlm_jax.data.prepare.manifest import Counts
from protlm_jax.data.prepare.plan import Plan
from protlm_jax.data.prepare.rows import Row, from_bytes, to_bytes
from protlm_jax.data.prepare.scatter import judge
from protlm_jax.errors import ProtlmError

_OUR_ERROR = re.compile(r"ProtlmError: (.*?)(?: \[while running|\n|$)")


@dataclass(frozen=True)
class Judged:
    """What comes out of the first steps, as PCollections.

    buckets: (bucket, list of bytes of rows).
    counts: one `Counts` per block, of records read and left out by the rules.
    sources: (number, {name, bytes, sha256}) of each source.
    """

    buckets: beam.PCollection
    counts: beam.PCollection
    sources: beam.PCollection


def judged(pipeline: beam.Pipeline, plan: Plan) -> Judged:
    """Adds the first steps of a plan to a pipeline."""
    blocks = (
        pipeline
        | "sources" >> beam.Create([(i, s.path) for i, s in enumerate(plan.sources)])
        | "cut" >> beam.ParDo(_Cut(plan)).with_outputs("sources", main="blocks")
    )
    rows = (
        blocks.blocks
        | "spread" >> beam.Reshuffle()
        | "judge" >> beam.ParDo(_Judge(plan)).with_outputs("counts", main="rows")
    )
    every = pipeline | "every bucket" >> beam.Create([(i, b"") for i in range(plan.buckets)])
    buckets = (rows.rows, every) | beam.Flatten() | "group" >> beam.GroupByKey()
    return Judged(buckets, rows.counts, blocks.sources)


def rows_of(parts: Iterable[bytes]) -> list[Row]:
    """The rows of a bucket, in no order."""
    return [row for data in parts for row in from_bytes(data)]


class Sum(beam.CombineFn):
    """Adds up `Counts`."""

    def create_accumulator(self) -> Counts:
        return Counts()

    def add_input(self, accumulator: Counts, element: Counts) -> Counts:
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        total = Counts()
        for accumulator in accumulators:
            total.add(accumulator)
        return total

    def extract_output(self, accumulator: Counts) -> Counts:
        return accumulator


def options(text: str) -> beam.options.pipeline_options.PipelineOptions:
    """Options from command-line flags; workers tell of warnings alone, if not asked for more."""
    given = beam.options.pipeline_options.PipelineOptions(shlex.split(text))
    workers = given.view_as(beam.options.pipeline_options.WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "WARNING"
    return given


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raises a worker's ProtlmError as it was, without what Beam tells around it."""
    try:
        yield
    except Exception as error:
        if found := _OUR_ERROR.search(f"{type(error).__name__}: {error}"):
            raise ProtlmError(found[1]) from None
        raise


class _Cut(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, element: tuple[int, str]) -> Iterator[Any]:
        number, path = element
        hashed, size = sha256(), 0

        def watch(data: bytes) -> None:
            nonlocal size
            hashed.update(data)
            size += len(data)

        for block in cut(path, self._plan.block_bytes, watch):
            yield number, block
        name = self._plan.sources[number].name
        told = {"name": name, "bytes": size, "sha256": hashed.hexdigest()}
        yield beam.pvalue.TaggedOutput("sources", (number, told))


class _Judge(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def process(self, element: tuple[int, Block]) -> Iterator[Any]:
        number, block = element
        buckets, counts = judge(block, number, self._plan)
        for bucket, rows in enumerate(buckets):
            if rows:
                yield bucket, to_bytes(rows)
        yield beam.pvalue.TaggedOutput("counts", counts)
